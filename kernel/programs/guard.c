/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cgroup backend: socket calls of a container that its rules forbid get EPERM before anything is sent.
 *
 * Two questions, either may stop a call: may this kind of socket be used (DIRECTION_CREATE), and may this address and port be
 * talked to or taken (DIRECTION_SEND, DIRECTION_BIND). Each is a fixed number of trie lookups, whatever the number of rules:
 * source or any, protocol or type or any, port or any. The greatest rank wins, the stricter action among equals.
 * The guard tells its denial itself: not every call that it stops is watched when it ends (io_uring, the first write of a
 * connection opened by TCP Fast Open), and by then the caller may have changed what it asked for. A note keeps the end of the
 * call from telling it again. Only for a process that is not known yet the end has to tell it, after it has met the process.
 */
struct denial {
    u32 direction; /* 0: of the socket's creation */
    u32 type;
    u32 protocol;
    u32 connects; /* DIRECTION_SEND: by connect or as good as one */
    u32 packet;   /* 1: a packet is stopped. Its socket was asked for, and has a type that says nothing of it. */
    u32 hidden;   /* 1: what the packet carries could not be found, so no rule on ports can be asked: it is stopped */
};

/* Whether the end of call `number` looks for what a guard noted; one that is not known (0) may. */
static __always_inline int ends_watched(u32 number)
{
    return number == 0 || number == NR_SOCKET || number == NR_BIND || number == NR_CONNECT || number == NR_SENDTO || number == NR_SENDMSG ||
           number == NR_SENDMMSG;
}

/* As bpf_get_current_pid_tgid says it, which Linux 6.1 does not let programs on packets call. */
static __always_inline u64 ids_of_current(void)
{
    u64 task = bpf_get_current_task();
    return (u64)READ32(task, K_task_struct__tgid) << 32 | READ32(task, K_task_struct__pid);
}

/* As bpf_get_current_cgroup_id says it; the same. */
static __always_inline u64 cgroup_of_current(void)
{
    u64 group = READ64(READ64(bpf_get_current_task(), K_task_struct__cgroups), K_css_set__dfl_cgrp);
    return READ64(READ64(group, K_cgroup__kn), K_kernfs_node__id);
}

/* A denial is told. Its records are on the stack: unlike the tracepoints a guard may be preempted, so the scratch is not its own. */
static __always_inline void tell_denial(struct question *q, struct denial *d, struct image *image, u64 key, u64 cgroup, u64 payer, u32 visibility)
{
    struct {
        struct definition head;
        struct behaviour b;
    } told = {};
    struct occurrence o = {};
    struct behaviour *b = &told.b;
    void *task = (void *)bpf_get_current_task();
    u64 registers;
    u32 number = call_of(task, &registers);
    struct note note = {.kind = NOTE_TOLD, .number = number, .family = q->key.family, .port = q->key.port};
    if (d->direction)
        __builtin_memcpy(note.address, q->key.address, 16);
    if (!image && ends_watched(number) && visibility >> CLASS_NETWORK & 1) {
        note.kind = NOTE_DENIED;
        notes.update(&key, &note);
        return;
    }
    if (ends_watched(number))
        notes.update(&key, &note);
    b->cgroup = cgroup;
    b->mnt_ns = READ32(READ64(READ64(task, K_task_struct__nsproxy), K_nsproxy__mnt_ns), K_mnt_namespace__ns__inum);
    b->uid = READ32(READ64(task, K_task_struct__cred), K_cred__uid);
    b->owner = 0xffffffff;
    b->tty = READ64(READ64(task, K_task_struct__signal), K_signal_struct__tty) != 0;
    b->syscall = number ? number : !d->direction ? NR_SOCKET : d->direction == DIRECTION_BIND ? NR_BIND : d->connects ? NR_CONNECT : NR_SENDTO;
    b->result = EPERM_;
    b->enforcer = BACKEND_CGROUP;
    b->family = q->key.family;
    b->socket_type = d->type;
    b->protocol = d->protocol;
    o.ret = EPERM_;
    o.pid = key >> 32;
    if (image) {
        b->executable = image->executable;
        b->parent = image->parent;
        b->pid_ns = image->pid_ns;
        o.process = image->process;
        o.ns_pid = image->ns_pid;
        o.ppid = image->ppid;
        o.ns_ppid = image->ns_ppid;
    }
    if (!d->direction) {
        b->operation = OP_SOCKET;
        if (number == NR_SOCKET && registers) { /* as they were asked for, like every other call of socket */
            b->flags = READ64(registers, K_REG_ARG1) & ~0xfULL;
            b->protocol = READ64(registers, K_REG_ARG2);
        }
    } else {
        b->operation = d->direction == DIRECTION_BIND ? OP_BIND : d->connects ? OP_CONNECT : OP_SEND;
        b->port = q->key.port;
        __builtin_memcpy(b->address, q->key.address, 16);
        if (b->operation == OP_SEND && registers && ends_watched(number)) {
            o.aux = READ64(registers, K_REG_ARG0);
            b->flags = number == NR_SENDMSG ? READ64(registers, K_REG_ARG2) : READ64(registers, K_REG_ARG3);
        }
    }
    o.time = bpf_ktime_get_boot_ns();
    if (!observed(o.time)) {
        if (setting(CONFIG_OBSERVED_UNTIL))
            lose(LOSS_UNREAD);
        return;
    }
#pragma clang loop unroll(disable)
    for (int i = 0; i < 2; i++) {
        u32 known;
        o.id = id_of(b, &known);
        if (known || ((i || affordable(b, payer, 0)) && !announce_behaviour(&told.head, o.id)))
            break;
        strip(b);
    }
    /* Who may be preempted cannot count: the time is as good, and a bit of its own keeps it apart from what the tracepoints count. */
    o.sequence = (0x4000ULL | bpf_get_smp_processor_id()) << 48 | (o.time & 0xffffffffffffULL);
    if (occurrences.ringbuf_output(&o, sizeof(o), 1 /* BPF_RB_NO_WAKEUP */))
        lose(LOSS_OCCURRENCES_FULL);
    hasten();
}

/* 1: go on, 0: EPERM. `q`: family, address and port are set; a creation has no address to ask about. `skb`: the packet, 0 for a call. */
static __always_inline int guard(struct question *q, struct denial *d, u64 cgroup, void *skb)
{
    u64 key = skb ? ids_of_current() : bpf_get_current_pid_tgid();
    u32 tgid = key >> 32;
    u16 port = q->key.port;
    struct scope scope;
    u64 payer = scope_for(cgroup, &scope, skb);
    if (!(scope.flags & SCOPE_ENFORCE_CGROUP) || is_excluded(tgid))
        return 1;
    struct image *image = processes.lookup(&tgid);
    u64 source = image ? image->executable : 0;
    u8 number = protocol_of(d->type, d->protocol);
    if (skb)
        number = hidden(number);
    q->key.table = scope.table;
    q->key.prefix = NET_FIXED_BITS;
    /* Rules on packets have no such limit, and who sends them again may be any task. */
    q->limited = d->packet ? ACTION_ALLOW : limited(READ64(READ64(bpf_get_current_task(), K_task_struct__signal), K_signal_struct__tty));
    u32 kind = d->packet ? ACTION_ALLOW : ask(q, DIRECTION_CREATE, source, number, 0xf0 | (d->type & 0xf), 0);
    int denied = kind == ACTION_BLOCK || (kind == NO_OPINION && scope.flags & SCOPE_WHITELIST_NETWORK);
    if (!denied && d->direction) {
        q->key.prefix = NET_FIXED_BITS + (q->key.family == AF_INET_ ? 32 : 128);
        denied = ask(q, d->direction, source, number, 0xf0 | (d->type & 0xf), port) == ACTION_BLOCK || d->hidden;
    }
    if (!denied)
        return 1;
    q->key.port = port;
    /* Sent again by a timer, in whatever task that interrupts: told when it was sent first. */
    if (!skb || cgroup_of_current() == cgroup)
        tell_denial(q, d, image, key, cgroup, payer, scope.visibility);
    return 0;
}

int guard_sock_create(struct bpf_sock *ctx)
{
    struct question q = {};
    struct denial d = {.type = ctx->type, .protocol = ctx->protocol};
    q.key.family = ctx->family;
    return guard(&q, &d, bpf_get_current_cgroup_id(), 0);
}

#define LOAD_SOCK(sock, member) \
    ({ u32 v_; asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(v_) : "r"(sock), "i"(__builtin_offsetof(struct bpf_sock, member))); v_; })

#define GUARD4(name, side, connecting)                                                                                 \
    int guard_##name##4(struct bpf_sock_addr *ctx)                                                                     \
    {                                                                                                                  \
        struct question q = {};                                                                                        \
        struct denial d = {.direction = side, .type = ctx->type, .protocol = ctx->protocol, .connects = connecting};   \
        u32 bound[4] = {}, *address = (u32 *)q.key.address;                                                            \
        q.key.family = AF_INET_;                                                                                       \
        q.key.port = swap16(ctx->user_port);                                                                           \
        address[0] = ctx->user_ip4;                                                                                    \
        if (side == DIRECTION_SEND) {                                                                                  \
            struct bpf_sock *sk = ctx->sk;                                                                             \
            if (sk)                                                                                                    \
                bound[0] = LOAD_SOCK(sk, src_ip4);                                                                     \
            destination(AF_INET_, address, bound);                                                                     \
        }                                                                                                              \
        return guard(&q, &d, bpf_get_current_cgroup_id(), 0);                                                             \
    }
#define GUARD6(name, side, connecting)                                                                                 \
    int guard_##name##6(struct bpf_sock_addr *ctx)                                                                     \
    {                                                                                                                  \
        struct question q = {};                                                                                        \
        struct denial d = {.direction = side, .type = ctx->type, .protocol = ctx->protocol, .connects = connecting};   \
        u32 bound[4] = {}, *address = (u32 *)q.key.address;                                                            \
        q.key.family = AF_INET6_;                                                                                      \
        q.key.port = swap16(ctx->user_port);                                                                           \
        address[0] = ctx->user_ip6[0];                                                                                 \
        address[1] = ctx->user_ip6[1];                                                                                 \
        address[2] = ctx->user_ip6[2];                                                                                 \
        address[3] = ctx->user_ip6[3];                                                                                 \
        if (side == DIRECTION_SEND) {                                                                                  \
            struct bpf_sock *sk = ctx->sk;                                                                             \
            if (sk) {                                                                                                  \
                bound[0] = LOAD_SOCK(sk, src_ip6[0]);                                                                  \
                bound[1] = LOAD_SOCK(sk, src_ip6[1]);                                                                  \
                bound[2] = LOAD_SOCK(sk, src_ip6[2]);                                                                  \
                bound[3] = LOAD_SOCK(sk, src_ip6[3]);                                                                  \
            }                                                                                                          \
            destination(AF_INET6_, address, bound);                                                                    \
        }                                                                                                              \
        return guard(&q, &d, bpf_get_current_cgroup_id(), 0);                                                             \
    }
GUARD4(bind, DIRECTION_BIND, 0)
GUARD6(bind, DIRECTION_BIND, 0)
GUARD4(connect, DIRECTION_SEND, 1)
GUARD6(connect, DIRECTION_SEND, 1)
GUARD4(sendmsg, DIRECTION_SEND, 0)
GUARD6(sendmsg, DIRECTION_SEND, 0)

#define EXTENSION_HEADERS 6 /* one more than are looked behind; what honest senders write has two or three */
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTHENTICATION 51
#define NEXT_OPTIONS 60 /* and 0, those of each hop */

/* What an IPv6 packet carries behind its extension headers, and where; `after` is 0 when that begins in another fragment. 1 when that cannot
 * be found: there are more of them than are looked behind, or one is cut. `part`: room for eight bytes. Strictly nothing that is known goes
 * on into the next round, or out of the loop: the verifier would follow what comes then once for each. */
static __always_inline u32 look_behind(void *skb, u8 *part, u32 *protocol, u32 *after)
{
    u64 next = *protocol, at = *after, more = 1;
    /* Unrolled: a counter on the stack is no difference to the verifier of Linux 6.1, which then finds a loop without an end. */
#pragma unroll
    for (int i = 0; i < EXTENSION_HEADERS; i++) {
        at = hidden(at);
        next = hidden(next) & 255;
        more = next == 0 || next == NEXT_ROUTING || next == NEXT_FRAGMENT || next == NEXT_AUTHENTICATION || next == NEXT_OPTIONS;
        if (!more || i == EXTENSION_HEADERS - 1 || bpf_skb_load_bytes(skb, at, part, 8))
            break; /* `next` is then what was found, or the header that is not looked behind, which is told as the protocol */
        if (next == NEXT_FRAGMENT)
            at = part[2] | (part[3] & 0xf8) ? 0 : at + 8;
        else
            at += next == NEXT_AUTHENTICATION ? (part[1] + 2) * 4 : (part[1] + 1) * 8;
        next = part[0];
        if (!at)
            break;
    }
    *protocol = next;
    *after = at;
    return more && at;
}

/* Packets of sockets that connect and send without asking: raw ones, ICMP's datagrams, SCTP. What the packet says counts, whatever
 * the socket says: a raw socket writes addresses, protocol and ports itself. Of the others, packets with options: a source route (RFC 791,
 * RFC 8754) has them go to another address first than the one that was asked about. In the sender's context: ip_finish_output. */
int guard_egress(struct __sk_buff *skb)
{
    struct bpf_sock *sk = skb->sk;
    if (!sk)
        return 1;
    sk = bpf_sk_fullsock(sk);
    if (!sk)
        return 1;
    u32 type = LOAD_SOCK(sk, type), protocol = LOAD_SOCK(sk, protocol);
    u32 asked = (type == 1 && protocol != IPPROTO_SCTP_) || (type == 2 && (protocol == 17 || protocol == 136));
    u8 head[20]; /* no more than this: the stack is full */
    struct question q = {};
    struct denial d = {.direction = DIRECTION_SEND, .packet = 1};
    u32 *address = (u32 *)q.key.address, after = 40, family = AF_INET_;
    if (bpf_skb_load_bytes(skb, 0, head, 20))
        return 1;
    if (asked && (head[0] == 0x45 || (head[0] >> 4 == 6 && (head[6] == 6 || head[6] == 17 || head[6] == 136))))
        return 1;
    if (head[0] >> 4 == 4) {
        d.protocol = head[9];
        __builtin_memcpy(address, head + 16, 4);
        after = (head[6] & 0x1f) | head[7] ? 0 : (head[0] & 15) * 4;
    } else {
        if (bpf_skb_load_bytes(skb, 24, address, 16))
            return 1;
        family = AF_INET6_;
        d.protocol = head[6];
        d.hidden = look_behind(skb, head, &d.protocol, &after);
    }
    /* From here on both are one to the verifier, which has most to go through behind this. */
    q.key.family = hidden(family);
    d.protocol = hidden(d.protocol);
    d.hidden = hidden(d.hidden);
    after = hidden(after);
#pragma unroll
    for (int i = 1; i < 4; i++)
        address[i] = hidden(address[i]);
    if (after && (d.protocol == 6 || d.protocol == 17 || d.protocol == IPPROTO_SCTP_) && !bpf_skb_load_bytes(skb, after, head, 4))
        q.key.port = head[2] << 8 | head[3];
    q.key.port = hidden(q.key.port);
    return guard(&q, &d, bpf_skb_cgroup_id(skb), skb);
}
