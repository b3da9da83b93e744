/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A load generator that counts what it did: flood PROCS COUNT PATH DISTINCT [THREADS]
 * joins the cgroup whose cgroup.procs is PROCS ("-": stays), then opens and closes PATH (or PATH.0 .. PATH.DISTINCT-1 when
 * DISTINCT > 0) COUNT times per thread, and prints calls made and nanoseconds per call. The tests and bench_flood use it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static long count, distinct;
static const char *path;

static void *work(void *unused)
{
    char name[512];
    for (long i = 0; i < count; i++) {
        const char *what = path;
        if (distinct > 0) {
            snprintf(name, sizeof(name), "%s.%ld", path, i % distinct);
            what = name;
        }
        long fd = syscall(SYS_openat, AT_FDCWD, what, O_RDONLY);
        if (fd >= 0)
            syscall(SYS_close, fd);
    }
    return unused;
}

int main(int argc, char **argv)
{
    if (argc < 5)
        return 2;
    if (strcmp(argv[1], "-")) {
        int fd = open(argv[1], O_WRONLY);
        char self[32];
        int length = snprintf(self, sizeof(self), "%d", getpid());
        if (fd < 0 || write(fd, self, length) != length) {
            perror(argv[1]);
            return 1;
        }
        close(fd);
    }
    count = atol(argv[2]);
    path = argv[3];
    distinct = atol(argv[4]);
    int threads = argc > 5 ? atoi(argv[5]) : 1;
    if (threads < 1 || threads > 64)
        return 2;
    pthread_t others[64];
    struct timespec before, after;
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (int i = 1; i < threads; i++)
        pthread_create(&others[i], NULL, work, NULL);
    work(NULL);
    for (int i = 1; i < threads; i++)
        pthread_join(others[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    double ns = (after.tv_sec - before.tv_sec) * 1e9 + (after.tv_nsec - before.tv_nsec);
    printf("%ld %.0f\n", count * threads, ns / ((double)count * threads));
    return 0;
}
