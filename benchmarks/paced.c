/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Opens and closes at a steady pace: paced PROCS RATE SECONDS DIRECTORY FILES
 * joins the cgroup whose cgroup.procs is PROCS, then makes RATE system calls a second (an open and a close are two) on DIRECTORY/0 ..
 * FILES-1, a millisecond's worth at a time, and prints the opens made. One that falls behind by 20,000 does not catch up: a
 * machine that cannot make so many is to be seen in the figure.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    int procs = open(argv[1], O_WRONLY);
    char text[4096];
    int length = snprintf(text, sizeof(text), "%d", getpid());
    if (procs < 0 || write(procs, text, length) != length) {
        perror(argv[1]);
        return 1;
    }
    close(procs);
    double pace = atof(argv[2]) / 2, begun = now(), left = atof(argv[3]), passed;
    long made = 0, due, skipped = 0, files = atol(argv[5]);
    while ((passed = now() - begun) < left) {
        due = passed * pace - skipped;
        if (due > made + 20000) {
            skipped += due - made - 20000;
            due = made + 20000;
        }
        for (; made < due; made++) {
            snprintf(text, sizeof(text), "%s/%ld", argv[4], made % files);
            long fd = syscall(SYS_openat, AT_FDCWD, text, O_RDONLY);
            if (fd >= 0)
                syscall(SYS_close, fd);
        }
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
    printf("%ld\n", made);
    return 0;
}
