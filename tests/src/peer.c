/* What a test has a guest do to the files of a directory that it shares with the host: peer DIR. Each step leaves a file that
   says how it went. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void say(const char *name)
{
    int fd = open(name, O_CREAT | O_WRONLY, 0644);
    if (fd < 0)
        _exit(2);
    close(fd);
}

int main(int argc, char **argv)
{
    if (argc != 2 || chdir(argv[1]) != 0)
        return 2;
    int record = open("record", O_RDWR), lock = open("lock", O_RDWR), file = open("map", O_RDWR);
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int done = fcntl(record, F_SETLK, &whole);
    say(done == -1 && (errno == EAGAIN || errno == EACCES) ? "record-busy" : "record-wrong");
    done = flock(lock, LOCK_EX | LOCK_NB);
    say(done == -1 && errno == EWOULDBLOCK ? "flock-busy" : "flock-wrong");
    /* Until the host gives it back. */
    say(flock(lock, LOCK_EX) == 0 ? "flock-got" : "flock-lost");
    char *map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (map == MAP_FAILED)
        return 2;
    memcpy(map, "from the guest", 14);
    say(msync(map, 4096, MS_SYNC) == 0 ? "map-written" : "map-lost");
    struct stat looked;
    while (*(volatile char *)(map + 100) != 'h') {
        usleep(50000);
        if (stat("map", &looked) != 0)
            return 2;
    }
    say("map-read");
    pause();
    return 0;
}
