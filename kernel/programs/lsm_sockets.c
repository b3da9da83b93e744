/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks on sockets: the same two questions as the guards of the cgroup backend ask (question.c), of sockets of every family that
 * rules can name, before the protocol sees the call. So TCP Fast Open, MPTCP and SMC are asked as what they carry.
 */
#define AF_SMC_ 43
#define AF_UNSPEC_ 0

/* `ask` for whoever acts: the executable, and the script that it runs. */
static __always_inline u32 ask_both(struct asked *w, struct question *q, u32 direction, u8 kind, u16 port)
{
    u32 answered = ask(q, direction, w->sources[0], w->number, kind, port), rank = q->rank;
    if (w->sources[1]) {
        u32 other = ask(q, direction, w->sources[1], w->number, kind, port);
        if (other != NO_OPINION && (answered == NO_OPINION || q->rank > rank))
            answered = other;
    }
    return answered;
}

/* What the rules say of the socket and address in the behaviour, asked in `direction`: 1 to stop. */
int sub_sockets(u64 argument)
{
    struct asked *w = ASKED(argument);
    struct question q = {};
    u32 family = w->b.family, direction = w->direction;
    u8 kind = 0xf0 | (w->b.socket_type & 0xf);
    q.key.table = w->table;
    q.key.family = family;
    q.key.prefix = NET_FIXED_BITS;
    u32 answered = ask_both(w, &q, DIRECTION_CREATE, kind, 0);
    if (answered == ACTION_BLOCK || (answered == NO_OPINION && w->header.flags & TABLE_WHITELIST_NETWORK))
        return 1;
    if (!direction)
        return 0;
    u32 bound[4] = {};
    __builtin_memcpy(q.key.address, w->b.address, 16);
    if (direction == DIRECTION_SEND)
        destination(family, (u32 *)q.key.address, bound);
    q.key.prefix = NET_FIXED_BITS + (family == AF_INET_ ? 32 : 128);
    return ask_both(w, &q, direction, kind, w->b.port) == ACTION_BLOCK;
}

static __always_inline int on_socket(u32 operation, u32 direction, u32 family, u32 type, u32 protocol, u64 address, int length)
{
    u8 peer[16] = {};
    u16 asked = family, port = 0;
    u32 carried = family == AF_SMC_ ? AF_INET_ : family;
    if (address && length >= 2) {
        asked = READ16(address, 0);
        if (asked == AF_INET_ && length >= 8) {
            port = swap16(READ16(address, 2));
            bpf_probe_read_kernel(peer, 4, (void *)address + 4);
            carried = AF_INET_;
        } else if (asked == AF_INET6_ && length >= 24) {
            port = swap16(READ16(address, 2));
            bpf_probe_read_kernel(peer, 16, (void *)address + 8);
            carried = AF_INET6_;
        } else {
            direction = 0; /* AF_UNSPEC: a disconnect; or of a family whose addresses no rule names */
        }
    } else if (direction) {
        return 0;
    }
    if (carried == AF_UNIX_ || carried == 16 /* AF_NETLINK: neither leaves the machine */)
        return 0;
    ENTER(CLASS_NETWORK, TABLE_HAS_NETWORK, operation, 0);
    w->b.family = carried;
    w->b.socket_type = type;
    w->b.protocol = protocol;
    w->b.port = port;
    __builtin_memcpy(w->b.address, peer, 16);
    w->direction = direction;
    w->number = family == AF_SMC_ ? 6 : protocol_of(type, protocol);
    int stop = sub_sockets_(w);
    stop = answer(w, stop);
    return leave(w, stop);
}

#define SOCKET(socket)                                                                       \
    u64 sk = READ64(socket, K_socket__sk);                                                   \
    u32 family = READ16(sk, K_sock__family), protocol = READ16(sk, K_sock__protocol), type = READ16(socket, K_socket__type)

int lsm_socket_create(struct bpf_raw_tracepoint_args *ctx) /* family, type, protocol, kern */
{
    if ((u32)ctx->args[3])
        return 0;
    return on_socket(OP_SOCKET, 0, (u32)ctx->args[0], (u32)ctx->args[1] & 0xf, (u32)ctx->args[2], 0, 0);
}

int lsm_socket_bind(struct bpf_raw_tracepoint_args *ctx) /* socket, address, length */
{
    SOCKET(ctx->args[0]);
    return on_socket(OP_BIND, DIRECTION_BIND, family, type, protocol, ctx->args[1], (int)ctx->args[2]);
}

int lsm_socket_connect(struct bpf_raw_tracepoint_args *ctx) /* socket, address, length */
{
    SOCKET(ctx->args[0]);
    return on_socket(OP_CONNECT, DIRECTION_SEND, family, type, protocol, ctx->args[1], (int)ctx->args[2]);
}

/* socket, message, size: an address that is given here was never connected to: datagrams, TCP Fast Open */
int lsm_socket_sendmsg(struct bpf_raw_tracepoint_args *ctx)
{
    u64 address = READ64(ctx->args[1], K_msghdr__msg_name);
    if (!address)
        return 0;
    SOCKET(ctx->args[0]);
    return on_socket(OP_SEND, DIRECTION_SEND, family, type, protocol, address, READ32(ctx->args[1], K_msghdr__msg_namelen));
}
