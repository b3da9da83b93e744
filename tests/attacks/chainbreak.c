// SPDX-License-Identifier: Apache-2.0
// An exec whose path and working directory are both ~2000 components deep runs out of the 33 tail calls: it must be killed and told all the same, and must not
// leave the per-CPU scratch so that the NEXT enforced call on this CPU (of any container) escapes.
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
#include <fcntl.h>
#include <errno.h>
#include <sys/stat.h>
#include <sys/wait.h>
int main(int c, char **v) { // chainbreak DIR PROGRAM(copied) DEPTH [then-program args...]
    int depth = atoi(v[3]);
    cpu_set_t s; CPU_ZERO(&s); CPU_SET(0, &s); sched_setaffinity(0, sizeof s, &s);
    int src = open(v[2], O_RDONLY), home = open(".", O_PATH);
    if (chdir(v[1])) { perror(v[1]); return 9; }
    for (int i = 0; i < depth; i++) { mkdir("a", 0755); if (chdir("a")) { perror("chdir"); return 9; } }
    if (access("p", X_OK)) { int o = open("p", O_WRONLY | O_CREAT, 0755); char b[65536]; int r; while ((r = read(src, b, sizeof b)) > 0) write(o, b, r); close(o); }
    if (c > 4) {
        int pid = fork(), st;
        if (!pid) { char *a[] = {"./p", "DEEP-EXEC-RAN", 0}; execv("./p", a); perror("exec"); _exit(1); }
        waitpid(pid, &st, 0); printf("deep exec: status %x\n", st); fflush(stdout);
        fchdir(home);
        if (!strcmp(v[4], "open")) { int f = open(v[5], O_RDONLY); char b[16] = {}; read(f, b, 15); printf("then open=%d: %s\n", f, b); return 0; }
        execv(v[4], v + 4); perror("then"); return 8;
    }
    char *a[] = {"./p", "DEEP-EXEC-RAN", 0}; execv("./p", a); perror("exec"); return 8;
}
