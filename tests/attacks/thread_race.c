// SPDX-License-Identifier: Apache-2.0
// Another thread reads the descriptor between open and SIGKILL and hands the bytes out by a pipe: how often does the secret get out?
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
#include <fcntl.h>
#include <sys/wait.h>
static int fd, out; static volatile int go;
static void *reader(void *x) { char b[16]; for (;;) { go = 1; int n = pread(fd, b, 16, 0); if (n > 0) { write(out, b, n); } } }
int main(int c, char **v) {
    int wins = 0, tries = atoi(v[2]);
    for (int i = 0; i < tries; i++) {
        int p[2]; pipe(p);
        int pid = fork();
        if (!pid) { fd = dup(0); close(fd); out = p[1]; pthread_t t; pthread_create(&t, 0, reader, 0); while (!go); open(v[1], O_RDONLY); pause(); }
        close(p[1]); int st; char b[64] = {}; waitpid(pid, &st, 0); int n = read(p[0], b, 60); close(p[0]); if (n > 0) { if (!wins) printf("first leak: %.10s\n", b); wins++; }
    }
    printf("leaked %d of %d\n", wins, tries); return 0;
}
