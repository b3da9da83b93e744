/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks on sockets: the same two questions as the guards of the cgroup backend ask (question.c), of sockets of every family,
 * before the protocol sees the call. So TCP Fast Open, MPTCP and SMC are asked as what they carry.
 */
#define AF_SMC_ 43
#define AF_NETLINK_ 16

/* `ask` for whoever acts: the executable, the script that it runs, and the sets that they are in. */
static __always_inline u32 ask_all(struct asked *w, struct question *q, u32 direction, u8 kind, u16 port)
{
    u32 answered = ask(q, direction, w->sources[0], w->number, kind, port), rank = q->rank;
#pragma clang loop unroll(disable)
    for (int i = 1; i < 4; i++) {
        u64 source = w->sources[i & 3];
        if (!source)
            continue;
        u32 other = ask(q, direction, source, w->number, kind, port);
        if (other != NO_OPINION && (answered == NO_OPINION || q->rank > rank)) {
            answered = other;
            rank = q->rank;
        }
    }
    return answered;
}

/* What the rules say of the socket and address in the behaviour, asked in `direction`: 1 to stop. */
int sub_sockets(u64 argument)
{
    struct asked *w = ASKED(argument);
    struct question q = {};
    u32 family = w->b.family, direction = w->direction;
    u32 internet = family == AF_INET_ || family == AF_INET6_, local = family == AF_UNIX_ || family == AF_NETLINK_;
    u8 kind = 0xf0 | (w->b.socket_type & 0xf);
    if (local && kind == 0xf3)
        kind = 0; /* SOCK_RAW means nothing there */
    if (!internet)
        w->number = 0; /* numbers of protocols are its own */
    q.limited = limited(w->tty);
    q.key.table = w->table;
    q.key.family = internet ? family : 0;
    q.key.prefix = NET_FIXED_BITS;
    u32 answered = ask_all(w, &q, DIRECTION_CREATE, kind, 0);
    if (answered == ACTION_BLOCK || (answered == NO_OPINION && !local && w->header.flags & TABLE_WHITELIST_NETWORK))
        return 1;
    if (!direction || !internet)
        return 0;
    if (direction == DIRECTION_SEND)
        destination(family, (u32 *)w->b.address, w->bound);
    __builtin_memcpy(q.key.address, w->b.address, 16);
    q.key.prefix = NET_FIXED_BITS + (family == AF_INET_ ? 32 : 128);
    return ask_all(w, &q, direction, kind, w->b.port) == ACTION_BLOCK;
}

/* The socket of the question, by the family that rules name. SMC speaks TCP to a peer that knows no SMC. */
static __always_inline void socket_of(struct asked *w, u32 family, u32 type, u32 protocol)
{
    int tcp = family == AF_SMC_ && (type & 0xf) == 1;
    w->b.family = tcp ? AF_INET_ : family;
    w->b.socket_type = type;
    w->b.protocol = protocol;
    w->number = tcp ? 6 : protocol_of(type, protocol);
}

/* An operation on a socket of `family`, bound to `bound`; `port` and `address` are asked about in `direction`, 0: in none. */
static __always_inline int on_socket(
    u32 operation, u32 direction, u32 family, u32 type, u32 protocol, u16 port, const u32 *address, const u32 *bound)
{
    ENTER(CLASS_NETWORK, TABLE_HAS_NETWORK, operation, 0);
    socket_of(w, family, type, protocol);
    w->b.port = port;
    __builtin_memcpy(w->b.address, address, 16);
    __builtin_memcpy(w->bound, bound, 16);
    w->direction = direction;
    int stop = sub_sockets_(w);
    stop = answer(w, stop);
    return leave(w, stop);
}

/* What the kernel takes an address of the family `named` for: one of AF_UNSPEC is of the socket's own family where datagrams and raw packets
 * are sent (udp_sendmsg, raw_sendmsg, rawv6_sendmsg, l2tp_ip_sendmsg), but no address for UDP of IPv6, and where an IPv4 socket is
 * bound (inet_bind, smc_bind); raw_bind does not look. A connect with it disconnects. */
static __always_inline u32 taken_for(u32 operation, u32 family, u32 type, u32 protocol, u32 named)
{
    u32 udp = type == 2 && (protocol == 17 || protocol == 136);
    if (operation == OP_BIND && (family == AF_INET_ || family == AF_SMC_))
        return named == 0 || type == 3 ? AF_INET_ : named;
    if (operation != OP_SEND || named || type == 1)
        return named;
    return family == AF_INET6_ && udp ? 0 : family;
}

/* The same with an address that the caller gave. */
static __always_inline int on_address(u32 operation, u32 direction, u64 sk, u32 family, u32 type, u32 protocol, u64 address, int length)
{
    u32 peer[4] = {}, bound[4] = {}, own = family;
    u16 port = 0, named = address && length >= 2 ? taken_for(operation, family, type, protocol, READ16(address, 0)) : 0;
    if (named == AF_INET_ && length >= 8) {
        port = swap16(READ16(address, 2));
        bpf_probe_read_kernel(peer, 4, (void *)address + 4);
        family = AF_INET_;
    } else if (named == AF_INET6_ && length >= 24) {
        port = swap16(READ16(address, 2));
        bpf_probe_read_kernel(peer, 16, (void *)address + 8);
        family = AF_INET6_;
    } else {
        direction = 0; /* a disconnect, no address, or of a family whose addresses no rule names */
    }
    if (direction == DIRECTION_SEND)
        bound_to(sk, family, own, bound);
    return on_socket(operation, direction, family, type, protocol, port, peer, bound);
}

#define SOCKET(socket)                                                                       \
    u64 sk = READ64(socket, K_socket__sk);                                                   \
    u32 family = READ16(sk, K_sock__family), protocol = READ16(sk, K_sock__protocol), type = READ16(socket, K_socket__type)

int lsm_socket_create(struct bpf_raw_tracepoint_args *ctx) /* family, type, protocol, kern */
{
    if ((u32)ctx->args[3])
        return 0;
    u32 nowhere[4] = {};
    return on_socket(OP_SOCKET, 0, (u32)ctx->args[0], (u32)ctx->args[1] & 0xf, (u32)ctx->args[2], 0, nowhere, nowhere);
}

int lsm_socket_bind(struct bpf_raw_tracepoint_args *ctx) /* socket, address, length */
{
    SOCKET(ctx->args[0]);
    return on_address(OP_BIND, DIRECTION_BIND, sk, family, type, protocol, ctx->args[1], (int)ctx->args[2]);
}

int lsm_socket_connect(struct bpf_raw_tracepoint_args *ctx) /* socket, address, length */
{
    SOCKET(ctx->args[0]);
    return on_address(OP_CONNECT, DIRECTION_SEND, sk, family, type, protocol, ctx->args[1], (int)ctx->args[2]);
}

/* socket, message, size: an address that is given here was never connected to: datagrams, TCP Fast Open */
int lsm_socket_sendmsg(struct bpf_raw_tracepoint_args *ctx)
{
    u64 address = READ64(ctx->args[1], K_msghdr__msg_name);
    if (!address)
        return 0;
    SOCKET(ctx->args[0]);
    return on_address(OP_SEND, DIRECTION_SEND, sk, family, type, protocol, address, READ32(ctx->args[1], K_msghdr__msg_namelen));
}

/* The port that the socket has by now: one that listens without bind gets it after the hook on listen, and is asked at accept. */
static __always_inline int on_own_port(u32 operation, u64 socket)
{
    u32 anywhere[4] = {};
    SOCKET(socket);
    return on_socket(operation, DIRECTION_BIND, family, type, protocol, READ16(sk, K_sock__num), anywhere, anywhere);
}

int lsm_socket_listen(struct bpf_raw_tracepoint_args *ctx) { return on_own_port(OP_LISTEN, ctx->args[0]); }
int lsm_socket_accept(struct bpf_raw_tracepoint_args *ctx) { return on_own_port(OP_ACCEPT, ctx->args[0]); }
