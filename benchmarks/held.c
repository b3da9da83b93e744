/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Calls of held.py: held CGROUP.PROCS PROFILE FILE PROGRAM OPENS EXECS CONNECTS. Joins the cgroup, takes the profile of AppArmor on
 * ("-": none), then opens and closes FILE, starts PROGRAM and waits for it, and connects to itself by TCP on loopback (socket,
 * connect, accept, two closes). Prints the median of the batches of each in nanoseconds a call, 0 where there are none.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static const char *file, *program;
static struct sockaddr_in here = {.sin_family = AF_INET};
static int listener;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}

static void failed(const char *what)
{
    perror(what);
    exit(1);
}

static void say(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        failed(path);
    close(fd);
}

static void opens(void)
{
    int fd = open(file, O_RDONLY);
    if (fd < 0)
        failed(file);
    close(fd);
}

static void execs(void)
{
    char *words[] = {(char *)program, NULL};
    pid_t pid;
    int status;
    if (posix_spawn(&pid, program, NULL, NULL, words, environ) || waitpid(pid, &status, 0) < 0 || status)
        failed(program);
}

static void connects(void)
{
    /* Without it each connection leaves an entry for a minute. */
    struct linger at_once = {.l_onoff = 1};
    int near = socket(AF_INET, SOCK_STREAM, 0), far;
    if (near < 0 || connect(near, (struct sockaddr *)&here, sizeof(here)) || (far = accept(listener, NULL, NULL)) < 0)
        failed("connect");
    setsockopt(near, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(near);
    close(far);
}

static int order(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(void (*call)(void), long count, long size)
{
    long batches = count / size;
    double *took = calloc(batches + 1, sizeof(double));
    for (long b = 0; b < batches; b++) {
        double start = now();
        for (long i = 0; i < size; i++)
            call();
        took[b] = (now() - start) / size;
    }
    qsort(took, batches, sizeof(double), order);
    return took[batches / 2];
}

int main(int argc, char **argv)
{
    char word[300];
    socklen_t length = sizeof(here);
    if (argc != 8)
        return 2;
    file = argv[3], program = argv[4];
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&here, sizeof(here)) || listen(listener, 16) || getsockname(listener, (struct sockaddr *)&here, &length))
        failed("listen");
    say(argv[1], "0");
    if (strcmp(argv[2], "-")) {
        snprintf(word, sizeof(word), "changeprofile %s", argv[2]);
        say("/proc/self/attr/apparmor/current", word);
    }
    double open_ = median(opens, atol(argv[5]), 20), exec_ = median(execs, atol(argv[6]), 1), connect_ = median(connects, atol(argv[7]), 5);
    printf("%.1f %.1f %.1f\n", open_, exec_, connect_);
    return 0;
}
