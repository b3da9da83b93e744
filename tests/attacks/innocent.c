// SPDX-License-Identifier: Apache-2.0
// Opens /etc/hostname on cpu 0 for four seconds; no rule of its container speaks of it, so it must live
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <unistd.h>
#include <fcntl.h>
#include <time.h>
int main(void) { cpu_set_t s; CPU_ZERO(&s); CPU_SET(0, &s); sched_setaffinity(0, sizeof s, &s); long n = 0; time_t t = time(0); while (time(0) < t + 4) { int f = open("/etc/hostname", O_RDONLY); close(f); n++; usleep(200); } printf("innocent lives, %ld opens\n", n); return 0; }
