/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tries the rules of soak.py: prober BLOCKED SECRET MILLISECONDS, inside the cgroup that is held, until SIGTERM.
 * In turn: a connect, an exec of BLOCKED, an open of SECRET. One line of JSON for each try that was not stopped, one at the end.
 * In C because a fork of an interpreter costs milliseconds on a crowded machine; a fork, not a vfork, because what is killed
 * must be the child alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t over;

static void end(int number)
{
    (void)number;
    over = 1;
}

static double now(clockid_t clock)
{
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

/* The guard refuses the socket already; one that is made must not connect either. */
static int connect_stopped(void)
{
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return errno == EPERM || errno == EACCES;
    int stopped = connect(fd, (struct sockaddr *)&peer, sizeof(peer)) < 0 && (errno == EPERM || errno == EACCES);
    close(fd);
    return stopped;
}

static int killed(pid_t pid)
{
    int status = 0;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return 0;
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

int main(int argc, char **argv)
{
    static const char *ways[] = {"connect", "exec", "open"};
    unsigned long tries[3] = {0}, misses[3] = {0}, late = 0, number = 0;
    double longest = 0;
    if (argc != 4)
        return 2;
    double period = atof(argv[3]) / 1e3, started = now(CLOCK_MONOTONIC), due = started, before = started;
    struct sigaction action = {.sa_handler = end};
    sigaction(SIGTERM, &action, NULL);
    while (!over) {
        int way = number++ % 3, stopped;
        double at = now(CLOCK_MONOTONIC);
        if (at - before > longest)
            longest = at - before;
        late += at - due > period;
        before = at;
        tries[way]++;
        if (way == 0) {
            stopped = connect_stopped();
        } else {
            pid_t pid = fork();
            if (!pid) {
                if (way == 1)
                    execl(argv[1], argv[1], (char *)NULL);
                else
                    open(argv[2], O_RDONLY);
                _exit(0);
            }
            stopped = pid > 0 && killed(pid);
        }
        if (!stopped) {
            misses[way]++;
            printf("{\"missed\": \"%s\", \"at\": %.3f}\n", ways[way], now(CLOCK_REALTIME));
            fflush(stdout);
        }
        due += period;
        at = now(CLOCK_MONOTONIC);
        if (due < at)
            due = at;
        struct timespec until = {.tv_sec = (time_t)due, .tv_nsec = (long)((due - (time_t)due) * 1e9)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    printf("{\"tries\": [%lu, %lu, %lu], \"misses\": [%lu, %lu, %lu], \"late\": %lu, \"longest_ms\": %.1f, \"seconds\": %.3f}\n",
           tries[0], tries[1], tries[2], misses[0], misses[1], misses[2], late, longest * 1e3, now(CLOCK_MONOTONIC) - started);
    return 0;
}
