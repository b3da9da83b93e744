/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Load generator of bench_overhead.py: storm KIND COUNT [PATH].
 * Calls are timed in batches; prints the fastest and the median batch in nanoseconds per call: on a shared machine the
 * fastest batch is the one nobody disturbed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static int call(const char *kind, const char *path)
{
    if (kind[0] == 'g') {
        syscall(SYS_getppid);
    } else if (kind[0] == 'o') {
        close(open(path, O_RDONLY));
    } else {
        char *child[] = {(char *)path, NULL};
        pid_t pid;
        if (posix_spawn(&pid, path, NULL, NULL, child, environ))
            return 1;
        waitpid(pid, NULL, 0);
    }
    return 0;
}

static int order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 2;
    const char *kind = argv[1], *path = argc > 3 ? argv[3] : "/etc/hosts";
    long count = atol(argv[2]), size = kind[0] == 'e' ? 1 : 50, batches = count / size;
    double *took = calloc(batches, sizeof(double));
    for (long b = 0; b < batches; b++) {
        double start = now();
        for (long i = 0; i < size; i++)
            if (call(kind, path))
                return 3;
        took[b] = (now() - start) / size;
    }
    qsort(took, batches, sizeof(double), order);
    printf("%.1f %.1f\n", took[batches / 100], took[batches / 2]);
    return 0;
}
