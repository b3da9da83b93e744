/* SPDX-License-Identifier: Apache-2.0 */
/* System calls of a 64-bit program by the other entries: `entries CALL ARGUMENT` by int 0x80, `entries x32 PATH`. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static char *low; /* memory below 4 GiB: a 32-bit pointer reaches no other */

static long i386(long n, long a, long b, long c, long d, long e)
{
    long r;
    asm volatile("int $0x80" : "=a"(r) : "a"(n), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e) : "memory", "r8", "r9", "r10", "r11");
    return (int)r;
}

static uint32_t place(const void *what, size_t size)
{
    static size_t used;
    char *at = low + used;
    memcpy(at, what, size);
    used += (size + 63) & ~63UL;
    return (uint32_t)(uintptr_t)at;
}

static uint32_t text(const char *what) { return place(what, strlen(what) + 1); }

int main(int count, char **words)
{
    low = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = inet_addr("127.0.0.9")};
    const char *what = words[1];
    long r = -1;
    if (!strcmp(what, "open"))
        r = i386(5, text(words[2]), O_RDONLY, 0, 0, 0);
    else if (!strcmp(what, "openat"))
        r = i386(295, AT_FDCWD, text(words[2]), O_RDONLY, 0, 0);
    else if (!strcmp(what, "unlink"))
        r = i386(10, text(words[2]), 0, 0, 0, 0);
    else if (!strcmp(what, "chown"))
        r = i386(182, text(words[2]), 7, 8, 0, 0);
    else if (!strcmp(what, "unshare"))
        r = i386(310, 0x04000000, 0, 0, 0, 0);
    else if (!strcmp(what, "umount"))
        r = i386(22, text(words[2]), 0, 0, 0, 0);
    else if (!strcmp(what, "execve")) {
        uint32_t argv[3] = {text(words[2]), text("told"), 0};
        r = i386(11, argv[0], place(argv, sizeof(argv)), 0, 0, 0);
    } else if (!strcmp(what, "connect")) {
        long fd = i386(359, AF_INET, 1, 0, 0, 0);
        r = i386(362, fd, place(&peer, sizeof(peer)), sizeof(peer), 0, 0);
    } else if (!strcmp(what, "socketcall")) {
        uint32_t made[3] = {AF_INET, 1, 0};
        long fd = i386(102, 1, place(made, sizeof(made)), 0, 0, 0);
        uint32_t to[3] = {fd, place(&peer, sizeof(peer)), sizeof(peer)};
        r = i386(102, 3, place(to, sizeof(to)), 0, 0, 0);
    } else if (!strcmp(what, "sendmsg")) {
        long fd = i386(359, AF_INET, 2, 0, 0, 0);
        uint32_t part[2] = {text("hello"), 5};
        uint32_t head[7] = {place(&peer, sizeof(peer)), sizeof(peer), place(part, sizeof(part)), 1, 0, 0, 0};
        r = i386(370, fd, place(head, sizeof(head)), 0, 0, 0);
    } else if (!strcmp(what, "x32")) {
        r = syscall(0x40000000 | 2, text(words[2]), O_RDONLY);
        r = r < 0 ? -errno : r;
    }
    printf("%ld\n", r);
    return 0;
}
