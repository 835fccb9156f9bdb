/* Writes 4 KiB blocks at random places of FILE (MIB mebibytes), each followed by fsync, for SECONDS; says how many a second. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static char block[4096] __attribute__((aligned(4096)));
    if (argc != 4)
        return 2;
    long blocks = atol(argv[2]) * 256;
    double limit = atof(argv[3]), spent = 0;
    int fd = open(argv[1], O_RDWR | O_CREAT, 0644);
    if (fd < 0) {
        perror(argv[1]);
        return 1;
    }
    /* Laid out first, so that each write is one of data. */
    for (long n = 0; n < blocks; n++)
        if (pwrite(fd, block, sizeof block, n * 4096) != sizeof block) {
            perror("write");
            return 1;
        }
    if (fsync(fd) != 0) {
        perror("fsync");
        return 1;
    }
    struct timespec from, now;
    long done = 0;
    srandom(1);
    clock_gettime(CLOCK_MONOTONIC, &from);
    while (spent < limit) {
        block[0]++;
        if (pwrite(fd, block, sizeof block, random() % blocks * 4096) != sizeof block || fsync(fd) != 0) {
            perror("write");
            return 1;
        }
        done++;
        clock_gettime(CLOCK_MONOTONIC, &now);
        spent = (now.tv_sec - from.tv_sec) + (now.tv_nsec - from.tv_nsec) / 1e9;
    }
    printf("%.1f writes/s\n", done / spent);
    return 0;
}
