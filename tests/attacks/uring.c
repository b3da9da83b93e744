/* SPDX-License-Identifier: Apache-2.0 */
/* A file, a socket and a connection through io_uring: `uring PATH`. */
#define _GNU_SOURCE
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/mman.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <fcntl.h>
#include <stdint.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <sys/socket.h>
static int ring; static unsigned *sqt, *sqm, *sqa, *cqh, *cqt, *cqm; static struct io_uring_sqe *sqes; static struct io_uring_cqe *cqes;
static int submit(struct io_uring_sqe *e) {
    unsigned t = *sqt, i = t & *sqm; sqes[i] = *e; sqa[i] = i; __atomic_store_n(sqt, t + 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0) { perror("enter"); return -1; }
    unsigned h = *cqh; int r = cqes[h & *cqm].res; __atomic_store_n(cqh, h + 1, __ATOMIC_RELEASE); return r;
}
int main(int c, char **v) {
    struct io_uring_params p = {}; ring = syscall(SYS_io_uring_setup, 8, &p); if (ring < 0) { perror("setup"); return 1; }
    char *s = mmap(0, p.sq_off.array + p.sq_entries * 4, 3, MAP_SHARED, ring, IORING_OFF_SQ_RING), *q = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof *cqes, 3, MAP_SHARED, ring, IORING_OFF_CQ_RING);
    sqes = mmap(0, p.sq_entries * sizeof *sqes, 3, MAP_SHARED, ring, IORING_OFF_SQES);
    sqt = (void *)(s + p.sq_off.tail); sqm = (void *)(s + p.sq_off.ring_mask); sqa = (void *)(s + p.sq_off.array); cqh = (void *)(q + p.cq_off.head); cqt = (void *)(q + p.cq_off.tail); cqm = (void *)(q + p.cq_off.ring_mask); cqes = (void *)(q + p.cq_off.cqes);
    struct io_uring_sqe e = {.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .addr = (uint64_t)v[1], .open_flags = O_RDONLY};
    int fd = submit(&e); char b[32] = {}; int n = read(fd, b, 31); printf("io_uring openat=%d read %d: %s\n", fd, n, b);
    struct io_uring_sqe so = {.opcode = IORING_OP_SOCKET, .fd = AF_INET, .off = SOCK_STREAM, .len = 0}; int k = submit(&so); printf("io_uring socket=%d\n", k);
    if (k >= 0) { struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = inet_addr("127.0.0.1")}; struct io_uring_sqe ce = {.opcode = IORING_OP_CONNECT, .fd = k, .addr = (uint64_t)&a, .off = sizeof a}; printf("io_uring connect=%d\n", submit(&ce)); }
    return 0;
}
