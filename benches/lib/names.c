/* Asks SERVER for the address of NAME for SECONDS, with so many questions OUTSTANDING, and says how many answers came. */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    unsigned char question[300] = { 0, 0, 1, 0, 0, 1 }, answer[1500];
    if (argc != 5 || strlen(argv[2]) > 200)
        return 2;
    size_t length = 12;
    for (char *label = strtok(argv[2], "."); label; label = strtok(NULL, ".")) {
        question[length++] = strlen(label);
        memcpy(question + length, label, strlen(label));
        length += strlen(label);
    }
    memcpy(question + length, "\0\0\1\0\1", 5);
    length += 5;
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons(53) };
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0) {
        perror("connect");
        return 1;
    }
    int outstanding = atoi(argv[4]), waiting = 0;
    unsigned short id = 0;
    long answered = 0, lost = 0;
    double from = now(), until = from + atof(argv[3]);
    while (now() < until) {
        for (; waiting < outstanding; waiting++) {
            id++;
            memcpy(question, &id, 2);
            send(fd, question, length, 0);
        }
        struct pollfd ready = { .fd = fd, .events = POLLIN };
        if (poll(&ready, 1, 1000) == 0) {
            lost += waiting;
            waiting = 0;
        }
        ssize_t n;
        while ((n = recv(fd, answer, sizeof answer, MSG_DONTWAIT)) > 0) {
            if (waiting > 0)
                waiting--;
            /* An answer, without a failure, with a record. */
            if (n > 12 && (answer[3] & 15) == 0 && answer[7] > 0)
                answered++;
        }
    }
    printf("%.0f answers/s, %ld lost\n", answered / (now() - from), lost);
    return answered == 0;
}
