/* SPDX-License-Identifier: Apache-2.0 */
/* Datagrams and raw packets, message by message, and streams that their first bytes open. */
#define MESSAGE_STEPS 5 /* of a message that is a DNS query to a name's end */
#define MMSGHDR 64      /* sizeof(struct mmsghdr) of a 64-bit task */

/* sendto, sendmsg, sendmmsg on datagram and raw sockets. A stream is told by connect and accept, and here when it is opened by
 * its first bytes (TCP Fast Open, RFC 7413). */
int hop_send(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *sk = socket_of(w, TASK(), w->args[0]);
    if (!sk)
        return 0;
    u64 pointer = 0, parts = 0;
    u32 length = 0;
    w->steer.after = HOP_FINISH;
    w->query = 0;
    w->parts = 0;
    if (w->number == NR_SENDTO) {
        pointer = w->args[4];
        length = w->args[5];
        w->b.flags = w->args[3];
    } else { /* struct msghdr (the first member of a struct mmsghdr): name, name length, parts, how many */
        u32 narrow = w->call.marks & MARK_NARROW, word = narrow ? 4 : 8;
        u64 header = w->args[1] + w->steer.message * (narrow ? MMSGHDR / 2 : MMSGHDR);
        bpf_probe_read_user(&pointer, word, (void *)header);
        bpf_probe_read_user(&length, 4, (void *)header + word);
        bpf_probe_read_user(&parts, word, (void *)header + (narrow ? 8 : 16));
        bpf_probe_read_user(&w->parts, 4, (void *)header + (narrow ? 12 : 24));
        if (w->number == NR_SENDMMSG && (s32)w->steer.message + 1 < (s32)w->ret)
            w->steer.after = HOP_SENT;
        w->b.flags = w->number == NR_SENDMSG ? w->args[2] : w->args[3];
    }
    w->b.args[0] = 0;
    w->o.aux = w->args[0];
    w->steer.count = w->steer.job = 0;
    w->sids[SID_RESOURCE] = 0;
    w->steer.flaws = 0;
    if (w->b.socket_type == 1 && w->b.flags & MSG_FASTOPEN_ && w->b.family != AF_UNIX_) {
        w->b.operation = OP_CONNECT;
        w->b.flags = 0;
        w->steer.after = HOP_FINISH;
        if (connected(w, sk, pointer, length))
            next_job(ctx, w);
        return 0;
    }
    if ((w->b.socket_type != 2 && w->b.socket_type != 3) || w->ret <= -512)
        return 0;
    if (w->scope.flags & SCOPE_ENFORCE_CGROUP && w->steer.message == 0) {
        if (claimed(w, 0))
            return 0;
        if (w->b.enforcer) {
            next_job(ctx, w);
            return 0;
        }
    }
    u16 family = w->b.family;
    int inet = family == AF_INET_ || family == AF_INET6_;
    if (pointer && length)
        user_address(w, pointer, length);
    if (inet && w->b.family == 0 && pointer && length) {
        /* AF_UNSPEC: an IPv4 socket and a raw one read it as their own family, a UDP one of IPv6 as no address. */
        w->b.family = family;
        if (family == AF_INET_ || w->b.socket_type == 3)
            inet_address(w, pointer, family);
        else
            pointer = 0;
    }
    if (!pointer || !length) {
        socket_address(w, sk, 1);
        if (w->b.family != AF_UNIX_)
            w->b.port = swap16(READ16(sk, K_sock__dport));
    } else if (w->b.family == AF_INET_ || w->b.family == AF_INET6_) {
        u32 bound[4] = {};
        bound_to((u64)sk, w->b.family, family, bound);
        destination(w->b.family, (u32 *)w->b.address, bound);
    }
    if (w->ret >= 0 && w->b.port == DNS_PORT && w->b.socket_type == 2 && inet) {
        w->query = w->number == NR_SENDTO ? w->args[1] : parts;
        w->query_size = w->args[2];
        w->steer.after = HOP_SENT;
    }
    next_job(ctx, w);
    return 0;
}

/* On to the next message of a sendmmsg, if there is one: each may go somewhere else. */
static __always_inline void next_message(void *ctx, struct work *w)
{
    if (w->number != NR_SENDMMSG || (s32)w->steer.message + 1 >= (s32)w->ret)
        return;
    w->b.operation = OP_SEND;
    w->steer.message++;
    if (w->steer.steps + MESSAGE_STEPS <= STEPS)
        go(ctx, w, HOP_SEND);
    else
        lose(LOSS_CHAIN_BROKEN);
}

/* A message is told; what it asks a name server comes after it. */
int hop_sent(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    finish(w, 0);
    if (w->query)
        go(ctx, w, HOP_QUERY);
    else
        next_message(ctx, w);
    return 0;
}
