/* Sends MIB mebibytes to HOST PORT and says how long that took, in microseconds: what a guest's network is measured with.
 * Waits up to two minutes for somebody to listen there, as a guest may be starting. With `listen PORT` takes what is sent, one
 * connection after the other. */
#include <netinet/in.h>
#include <string.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char data[1 << 16];

static int take(int port)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(port), .sin_addr = { INADDR_ANY } };
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) != 0 || listen(fd, 16) != 0) {
        perror("listen");
        return 1;
    }
    for (;;) {
        int from = accept(fd, NULL, NULL);
        while (from >= 0 && read(from, data, sizeof data) > 0)
            ;
        close(from);
    }
}

static int reach(const struct sockaddr_in *to)
{
    for (int tries = 0; tries < 600; tries++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd >= 0 && connect(fd, (const struct sockaddr *)to, sizeof *to) == 0)
            return fd;
        close(fd);
        usleep(200000);
    }
    return -1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "listen") == 0)
        return take(atoi(argv[2]));
    if (argc != 4)
        return 2;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
    if (inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
        return 2;
    int fd = reach(&to);
    if (fd < 0) {
        perror("connect");
        return 1;
    }
    struct timespec from, until;
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (long left = atol(argv[3]) << 20; left > 0;) {
        ssize_t n = write(fd, data, left < (long)sizeof data ? left : (long)sizeof data);
        if (n < 0) {
            perror("write");
            return 1;
        }
        left -= n;
    }
    /* Until the last byte has been taken. */
    shutdown(fd, SHUT_WR);
    if (read(fd, data, 1) < 0)
        perror("read");
    clock_gettime(CLOCK_MONOTONIC, &until);
    printf("took %lld us\n", (until.tv_sec - from.tv_sec) * 1000000LL + (until.tv_nsec - from.tv_nsec) / 1000);
    return 0;
}
