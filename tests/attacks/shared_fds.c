// SPDX-License-Identifier: Apache-2.0
// A file rule kills who opens; another process that shares the descriptor table (clone CLONE_FILES, not a thread) must not be left holding the open file.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
static char stack[65536];
static const char *path;
static int child(void *x) { open(path, O_RDONLY); _exit(0); }
int main(int c, char **v) {
    path = v[1];
    int next = dup(0); close(next);
    int pid = clone(child, stack + sizeof stack, CLONE_FILES | SIGCHLD, 0), st;
    waitpid(pid, &st, 0);
    char b[64] = {}; int n = pread(next, b, 63, 0);
    printf("child signal=%d; parent read %d bytes from fd %d: %s\n", WTERMSIG(st), n, next, b);
    return 0;
}
