// SPDX-License-Identifier: Apache-2.0
// Exec / open of a file deeper than 4096 bytes below a blocked recursive directory: must be killed (or at least told as a match of the rule).
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
int main(int c, char **v) { // deepexe exec|open|setup STARTDIR PROGRAM
    char n[251]; memset(n, 'e', 250); n[250] = 0;
    int src = open(v[3], O_RDONLY);
    int cwd = open("/", O_RDONLY | O_DIRECTORY);
    if (chdir(v[2])) { perror(v[2]); return 9; }
    for (int i = 0; i < 18; i++) { mkdir(n, 0755); if (chdir(n)) { perror("chdir"); return 9; } }
    int d = open(".", O_PATH);
    if (!strcmp(v[1], "setup")) {
        unlink("p"); int o = open("p", O_WRONLY | O_CREAT, 0755); char b[65536]; int r; while ((r = read(src, b, sizeof b)) > 0) write(o, b, r); close(o); return 0; }
    fchdir(cwd); // cwd is short again: only the file's own path is long
    char p[64]; snprintf(p, sizeof p, "/proc/self/fd/%d/p", d);
    if (!strcmp(v[1], "exec")) { char *a[] = {p, "EXEC-BYPASSED", 0}; execv(p, a); perror("execv"); return 8; }
    int f = open(p, O_RDONLY); char b[8] = {}; read(f, b, 4); printf("OPEN-BYPASSED fd=%d magic=%.3s\n", f, b + 1); return 0;
}
