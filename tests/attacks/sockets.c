// Sockets used in unusual ways, one per word: what each call answered is printed as `WORD: ok` or `WORD: errno`.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

static void say(const char *word, long answer)
{
    printf("%s: %s\n", word, answer < 0 ? strerrorname_np(errno) : "ok");
    fflush(stdout);
}

static struct sockaddr_in v4(const char *ip, int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, ip, &a.sin_addr);
    return a;
}

static struct sockaddr_in6 v6(const char *ip, int port)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_flowinfo = htonl(0x12345)};
    inet_pton(AF_INET6, ip, &a.sin6_addr);
    return a;
}

// A listener whose queue is full: the next connect waits until somebody accepts.
static int full(int port)
{
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in a = v4("127.0.0.1", port);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (void *)&a, sizeof a) || listen(listener, 0))
        perror("listener");
    for (int i = 0; i < 2; i++)
        connect(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), (void *)&a, sizeof a);
    usleep(50000);
    return listener;
}

static void *drain(void *listener)
{
    usleep(700000);
    for (int n = 0; n < 3; n++)
        accept((int)(long)listener, 0, 0);
    return 0;
}

static void nothing(int number) {}
static struct sockaddr_in shared;

static void *rewrite(void *with)
{
    usleep(200000);
    shared = *(struct sockaddr_in *)with;
    return 0;
}

static void ring(const char *ip, int port)
{
    struct io_uring_params p = {};
    int fd = syscall(SYS_io_uring_setup, 8, &p);
    char *s = mmap(0, p.sq_off.array + p.sq_entries * 4, 3, MAP_SHARED, fd, IORING_OFF_SQ_RING);
    char *q = mmap(0, p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe), 3, MAP_SHARED, fd, IORING_OFF_CQ_RING);
    struct io_uring_sqe *e = mmap(0, p.sq_entries * sizeof *e, 3, MAP_SHARED, fd, IORING_OFF_SQES);
    struct sockaddr_in a = v4(ip, port);
    *e = (struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = socket(AF_INET, SOCK_STREAM, 0), .addr = (uint64_t)&a, .off = sizeof a};
    *(unsigned *)(s + p.sq_off.array) = 0;
    __atomic_store_n((unsigned *)(s + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, fd, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
        perror("io_uring_enter");
    int answer = ((struct io_uring_cqe *)(q + p.cq_off.cqes))->res;
    errno = -answer;
    say("uring", answer < 0 && answer != -EINPROGRESS ? -1 : 0);
}

int main(int count, char **words)
{
    signal(SIGPIPE, SIG_IGN);
    const char *word = words[1], *ip = count > 2 ? words[2] : "127.0.0.1";
    int port = count > 3 ? atoi(words[3]) : 9, other = count > 4 ? atoi(words[4]) : 0;
    struct sockaddr_in a = v4(ip, port);
    char query[] = "\0\1\1\0\0\1\0\0\0\0\0\0\4evil\7example\0\0\1\0\1";
#define IS(name) (!strcmp(word, name))
    if (IS("connect") || IS("mptcp") || IS("fastopen") || IS("fastopen-connect") || IS("fastopen-msg")) {
        int s = socket(AF_INET, SOCK_STREAM, IS("mptcp") ? 262 : 0), one = 1;
        if (s < 0)
            say(word, s);
        else if (IS("fastopen"))
            say(word, sendto(s, "x", 1, MSG_FASTOPEN, (void *)&a, sizeof a));
        else if (IS("fastopen-msg")) {
            struct iovec part = {"x", 1};
            struct msghdr m = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &part, .msg_iovlen = 1};
            say(word, sendmsg(s, &m, MSG_FASTOPEN));
        } else {
            if (IS("fastopen-connect"))
                setsockopt(s, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof one);
            say(word, connect(s, (void *)&a, sizeof a));
            if (IS("fastopen-connect"))
                (void)!write(s, "x", 1);
        }
        usleep(100000);
    } else if (IS("interrupted") || IS("restarted")) {
        struct sigaction act = {.sa_handler = nothing, .sa_flags = IS("restarted") ? SA_RESTART : 0};
        struct itimerval soon = {.it_value = {0, 300000}};
        pthread_t thread;
        sigset_t set;
        int s = socket(AF_INET, SOCK_STREAM, 0), listener = full(port), error = 0;
        socklen_t length = sizeof error;
        sigemptyset(&set);
        sigaddset(&set, SIGALRM);
        pthread_sigmask(SIG_BLOCK, &set, 0);
        pthread_create(&thread, 0, drain, (void *)(long)listener);
        pthread_sigmask(SIG_UNBLOCK, &set, 0);
        sigaction(SIGALRM, &act, 0);
        setitimer(ITIMER_REAL, &soon, 0);
        say(word, connect(s, (void *)&a, sizeof a));
        struct pollfd p = {s, POLLOUT};
        poll(&p, 1, 20000);
        say("then", getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &length) || error ? -1 : 0);
    } else if (IS("rewritten") || IS("rewritten-fastopen")) {
        int s = socket(AF_INET, SOCK_STREAM, 0), listener = full(port);
        pthread_t first, second;
        struct sockaddr_in with = v4("192.0.2.1", 443);
        shared = a;
        pthread_create(&first, 0, rewrite, &with);
        pthread_create(&second, 0, drain, (void *)(long)listener);
        say(word, IS("rewritten") ? connect(s, (void *)&shared, sizeof shared) : sendto(s, "x", 1, MSG_FASTOPEN, (void *)&shared, sizeof shared));
    } else if (IS("unspec") || IS("udp")) {
        if (IS("unspec"))
            a.sin_family = AF_UNSPEC;
        say(word, sendto(socket(AF_INET, SOCK_DGRAM, 0), query, sizeof query - 1, 0, (void *)&a, sizeof a));
    } else if (IS("unspec-raw")) {
        a.sin_family = AF_UNSPEC;
        say(word, sendto(socket(AF_INET, SOCK_RAW, 253), "x", 1, 0, (void *)&a, sizeof a));
    } else if (IS("unspec-raw6")) {
        struct sockaddr_in6 b = v6(ip, 0);
        b.sin6_family = AF_UNSPEC;
        say(word, sendto(socket(AF_INET6, SOCK_RAW, 253), "x", 1, 0, (void *)&b, sizeof b));
    } else if (IS("parts")) { // a query of one byte a part, empty ones between
        struct iovec parts[128] = {};
        for (unsigned i = 0; i < sizeof query - 1; i++)
            parts[2 * i] = (struct iovec){query + i, 1};
        struct msghdr m = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = parts, .msg_iovlen = 2 * (sizeof query - 1)};
        say(word, sendmsg(socket(AF_INET, SOCK_DGRAM, 0), &m, 0));
    } else if (IS("two-questions")) {
        query[5] = 2;
        say(word, sendto(socket(AF_INET, SOCK_DGRAM, 0), query, sizeof query - 1, 0, (void *)&a, sizeof a));
    } else if (IS("second-message")) { // the first of a sendmmsg goes where it may
        struct sockaddr_in to[2] = {v4("127.0.0.9", other), a};
        struct iovec part = {"x", 1};
        struct mmsghdr m[2] = {};
        int s = socket(AF_INET, SOCK_DGRAM, 0), sent;
        for (int i = 0; i < 2; i++)
            m[i].msg_hdr = (struct msghdr){.msg_name = &to[i], .msg_namelen = sizeof a, .msg_iov = &part, .msg_iovlen = 1};
        sent = sendmmsg(s, m, 2, 0);
        printf("sent: %d\n", sent);
        errno = 0;
        say("next", sendto(s, "x", 1, 0, (void *)&to[0], sizeof a));
    } else if (IS("alias")) {
        struct sockaddr_in6 b = v6(ip, port);
        int six = strchr(ip, ':') != 0, s = socket(six ? AF_INET6 : AF_INET, other == 17 ? SOCK_DGRAM : SOCK_STREAM, 0);
        void *to = six ? (void *)&b : (void *)&a;
        say(word, other == 17 ? sendto(s, "x", 1, 0, to, six ? sizeof b : sizeof a) : connect(s, to, six ? sizeof b : sizeof a));
    } else if (IS("bound-alias")) { // bound to an address, "any" is that address
        struct sockaddr_in own = v4(ip, 0), any = v4("0.0.0.0", port);
        int s = socket(AF_INET, SOCK_STREAM, 0);
        (void)!bind(s, (void *)&own, sizeof own);
        say(word, connect(s, (void *)&any, sizeof any));
    } else if (IS("raw")) {
        say("raw-send", sendto(socket(AF_INET, SOCK_RAW, 253), "x", 1, 0, (void *)&a, sizeof a));
        int s = socket(AF_INET, SOCK_RAW, 253);
        say("raw-connect", connect(s, (void *)&a, sizeof a));
        say("raw-sent-connected", send(s, "x", 1, 0));
    } else if (IS("routed")) { // routed FINAL PORT VIA TYPE: options of the socket send its packets by VIA first
        const char *via = words[4];
        int six = strchr(ip, ':') != 0, s = socket(six ? AF_INET6 : AF_INET, atoi(words[5]), 0);
        struct sockaddr_in6 b = v6(ip, port);
        struct timeval soon = {0, 300000};
        uint8_t loose[8] = {131, 7, 4}, segments[40] = {0, 4, 4, 1, 1}; // RFC 791, RFC 8754
        inet_pton(AF_INET, via, loose + 3);
        inet_pton(AF_INET6, ip, segments + 8);
        inet_pton(AF_INET6, via, segments + 24);
        b.sin6_flowinfo = 0;
        setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon);
        if (six ? setsockopt(s, IPPROTO_IPV6, IPV6_RTHDR, segments, sizeof segments) : setsockopt(s, IPPROTO_IP, IP_OPTIONS, loose, sizeof loose))
            say("option", -1);
        else if (atoi(words[5]) == SOCK_STREAM)
            say(word, connect(s, six ? (void *)&b : (void *)&a, six ? sizeof b : sizeof a));
        else
            say(word, sendto(s, "x", 1, 0, six ? (void *)&b : (void *)&a, six ? sizeof b : sizeof a));
    } else if (IS("behind")) { // behind IP PORT HEADERS: a TCP segment behind so many empty extension headers, from a raw socket
        unshare(CLONE_NEWNET); // where the address is its own: nothing leaves the machine
        int headers = atoi(words[4]), s = socket(AF_INET6, SOCK_RAW, IPPROTO_RAW);
        struct sockaddr_in6 b = v6(ip, 0);
        b.sin6_flowinfo = 0;
        struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
        struct in6_ifreq own = {.ifr6_prefixlen = 128, .ifr6_ifindex = 1};
        inet_pton(AF_INET6, ip, &own.ifr6_addr);
        if (ioctl(s, SIOCSIFFLAGS, &up) || ioctl(s, SIOCSIFADDR, &own))
            say("address", -1);
        for (int tries = 0; tries < 5000 && bind(socket(AF_INET6, SOCK_DGRAM, 0), (void *)&b, sizeof b); tries++)
            usleep(1000); // the address is usable a moment later; what is sent before is dropped unseen
        uint8_t packet[40 + 64 * 8 + 20] = {0x60, [5] = headers * 8 + 20, [6] = headers ? 60 : 6, [7] = 64};
        packet[4] = (headers * 8 + 20) >> 8;
        inet_pton(AF_INET6, ip, packet + 8);
        inet_pton(AF_INET6, ip, packet + 24);
        for (int i = 0; i < headers; i++) {
            packet[40 + 8 * i] = i + 1 < headers ? 60 : 6;
            packet[40 + 8 * i + 2] = 1; // PadN
            packet[40 + 8 * i + 3] = 4;
        }
        uint8_t *tcp = packet + 40 + 8 * headers;
        tcp[2] = port >> 8;
        tcp[3] = port;
        tcp[12] = 0x50;
        tcp[13] = 2;
        say(word, sendto(s, packet, 40 + headers * 8 + 20, 0, (void *)&b, sizeof b));
    } else if (IS("create")) { // create FAMILY TYPE PROTOCOL
        say(word, socket(atoi(words[2]), atoi(words[3]), atoi(words[4])));
    } else if (IS("bind") || IS("bind-unspec")) {
        if (IS("bind-unspec")) // which the kernel takes for IPv4 where the address is any
            a.sin_family = AF_UNSPEC;
        say(word, bind(socket(AF_INET, SOCK_STREAM, 0), (void *)&a, sizeof a));
    } else if (IS("autobind")) { // the port a listener gets unasked, chosen by the range it asks for
        int s = socket(AF_INET, SOCK_STREAM, 0);
        uint32_t range = port | port << 16;
        setsockopt(s, IPPROTO_IP, 51 /* IP_LOCAL_PORT_RANGE */, &range, sizeof range);
        say(word, listen(s, 1));
        struct sockaddr_in own;
        socklen_t length = sizeof own;
        getsockname(s, (void *)&own, &length);
        printf("port: %d\n", ntohs(own.sin_port));
        fflush(stdout);
        accept(s, 0, 0);
    } else if (IS("uring")) {
        ring(ip, port);
    } else if (IS("inherited")) { // a socket that was connected before, on descriptor 0
        say(word, send(0, "x", 1, 0));
    } else
        return 2;
    return 0;
}
