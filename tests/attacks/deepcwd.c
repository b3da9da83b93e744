// SPDX-License-Identifier: Apache-2.0
// Exec of a blocked program from a working directory whose path is longer than 4096 bytes: must be killed and told like from anywhere else.
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/stat.h>
#include <errno.h>
int main(int c, char **v) { // deepcwd START PROG args
    char n[251]; memset(n, 'd', 250); n[250] = 0;
    if (chdir(v[1])) { perror(v[1]); return 9; }
    for (int i = 0; i < 18; i++) { mkdir(n, 0755); if (chdir(n)) { perror("chdir"); return 9; } }
    execv(v[2], v + 2);
    perror("execv"); return 8;
}
