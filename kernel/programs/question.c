/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Network rules and how they are asked: by the guards of the cgroup backend and by the hooks of the LSM backend, which may both
 * stop a call. Nothing here knows who asks.
 */
#define AF_UNIX_ 1
#define AF_INET_ 2
#define AF_INET6_ 10

static __always_inline u16 swap16(u16 v)
{
    return v << 8 | v >> 8;
}

#define LOOPBACK4 __builtin_bswap32(0x7f000001)
#define MAPPED4 __builtin_bswap32(0xffff) /* third word of ::ffff:0:0/96 */

/* Where a packet to "any" goes: to the address the socket is bound to, else to the loopback. (net/ipv4/route.c
 * ip_route_output_key_hash_rcu; net/ipv6/tcp_ipv6.c tcp_v6_connect; net/ipv6/udp.c udpv6_sendmsg) */
static __always_inline void destination(u32 family, u32 *address, u32 *bound)
{
    if (family == AF_INET_) {
        if (!address[0])
            address[0] = bound[0] ? bound[0] : LOOPBACK4;
        return;
    }
    if (address[0] | address[1] | address[3])
        return;
    u32 mapped = !(bound[0] | bound[1]) && bound[2] == MAPPED4;
    if (address[2] == MAPPED4) {
        address[3] = mapped && bound[3] ? bound[3] : LOOPBACK4;
    } else if (!address[2]) {
        address[2] = mapped ? MAPPED4 : 0;
        address[3] = mapped ? LOOPBACK4 : __builtin_bswap32(1);
    }
}

/* The address a socket is bound to, as the family of the message writes it. */
static __always_inline void bound_to(u64 sk, u32 family, u32 own, u32 *bound)
{
    if (family == AF_INET_)
        bound[0] = READ32(sk, K_sock__rcv_saddr);
#ifdef K_sock__v6_rcv_saddr
    else if (own == AF_INET6_)
        bpf_probe_read_kernel(bound, 16, sk + K_sock__v6_rcv_saddr);
#endif
}

BPF_F_TABLE("lpm_trie", struct net_key, struct rule, net_rules, NET_RULES, 1);

#define NO_OPINION 0

struct question {
    struct net_key key;
    u32 rank;
    u32 action;
    u32 limited; /* what a rule says that only those without a terminal pass */
};

/* Computed and not asked: a branch here is a state more for the verifier in each round of `ask`. */
#define ONE_STATE(value) asm volatile("" : "+r"(value))

/* What a rule with such a limit says to a task whose terminal is `tty`; Allow and Block mean the same for it. */
static __always_inline u32 limited(u64 tty)
{
    u64 one = (tty | -tty) >> 63;
    ONE_STATE(one);
    return ACTION_ALLOW + (u32)one * (ACTION_BLOCK - ACTION_ALLOW);
}

static __always_inline void weigh(struct question *q)
{
    struct rule *rule = net_rules.lookup(&q->key);
    if (!rule)
        return;
    u32 limit = rule->flags / FLAG_NO_TERMINAL & 1;
    ONE_STATE(limit);
    u32 action = rule->action + limit * (q->limited - rule->action);
    if (q->action == NO_OPINION || rule->rank > q->rank || (rule->rank == q->rank && action > q->action)) {
        q->rank = rule->rank;
        q->action = action;
    }
}

/* Every combination a rule may have been written for. */
static __always_inline u32 ask(struct question *q, u32 direction, u64 source, u8 protocol, u8 type, u16 port)
{
    q->key.direction = direction;
    q->rank = 0;
    q->action = NO_OPINION;
#pragma clang loop unroll(disable) /* in each of eight programs, twice */
    for (int i = 0; i < 12; i++) {
        if ((i & 1 && !source) || (i >= 6 && !port))
            continue;
        q->key.source = i & 1 ? source : 0;
        q->key.protocol = i / 2 % 3 == 0 ? 0 : i / 2 % 3 == 1 ? type : protocol;
        q->key.port = i >= 6 ? port : 0;
        weigh(q);
    }
    return q->action;
}

#define IPPROTO_SCTP_ 132
#define IPPROTO_SMC_ 256
#define IPPROTO_MPTCP_ 262

/* The protocol as rules name it. SMC and MPTCP speak TCP to any TCP peer; of the raw sockets only those of ICMP have a word, and
 * no protocol may be taken for a type (SOCKET_TYPE). */
static __always_inline u8 protocol_of(u32 type, u32 protocol)
{
    if (type == 1)
        return protocol == 0 || protocol == IPPROTO_SMC_ || protocol == IPPROTO_MPTCP_ ? 6 : protocol < 0xf0 ? protocol : 0;
    if (type == 2)
        return protocol == 0 ? 17 : protocol < 0xf0 ? protocol : 0;
    if (type == 3)
        return protocol == 1 || protocol == 58 ? protocol : 0;
    return protocol < 0xf0 ? protocol : 0;
}
