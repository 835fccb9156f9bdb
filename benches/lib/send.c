/* Sends MIB mebibytes to HOST PORT and says how long that took, in microseconds: what a guest's network is measured with. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static char data[1 << 16];
    if (argc != 4)
        return 2;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[2])) };
    if (inet_pton(AF_INET, argv[1], &to.sin_addr) != 1)
        return 2;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
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
