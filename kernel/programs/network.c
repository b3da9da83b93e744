/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: who is talked to, from the caller's address where one is given and from the socket where not. */
#define AF_UNIX_ 1
#define AF_INET_ 2
#define AF_INET6_ 10
#define S_IFMT_ 0170000
#define S_IFSOCK_ 0140000
#define EINPROGRESS_ (-115)
#define DNS_PORT 53

/* struct sock of a descriptor; 0 when it is no socket. Fills type, protocol and family. */
static __always_inline void *socket_of(struct work *w, void *task, s32 fd)
{
    void *file = file_of(task, fd);
    if (!file)
        return 0;
    u64 inode = GET64(file, K_file__f_inode);
    if ((READ16(inode, K_inode__i_mode) & S_IFMT_) != S_IFSOCK_)
        return 0;
    u64 socket = GET64(file, K_file__private_data);
    void *sk = (void *)READ64(socket, K_socket__sk);
    if (!sk)
        return 0;
    w->b.socket_type = READ16(socket, K_socket__type);
    w->b.family = READ16(sk, K_sock__family);
    w->b.protocol = READ16(sk, K_sock__protocol);
    return sk;
}

static __always_inline u16 swap16(u16 v)
{
    return v << 8 | v >> 8;
}

/* A name of an AF_UNIX socket lies in raw[0..length) as sun_path: path, abstract name, or nothing. */
static __always_inline void unix_name(struct work *w, u32 length)
{
    length &= 127;
    w->raw[length] = 0;
    if (!length)
        return;
    if (w->raw[0] == 0) { /* abstract: every byte counts, NULs too; shown as ss and netstat do */
        w->raw[0] = '@';
        w->cursor = length;
        add_job(w, JOB_TEXT, SID_RESOURCE, 0, 0, 0);
        return;
    }
    u32 end = 0;
    for (int i = 0; i < 108; i++) {
        if (i >= length || w->raw[i] == 0)
            break;
        end = i + 1;
    }
    w->cursor = w->end = end;
    add_job(w, JOB_RAW, SID_RESOURCE, AT_FDCWD_, 0, 0);
}

/* A sockaddr of the caller. */
static __always_inline void user_address(struct work *w, u64 pointer, u32 length)
{
    u16 family = 0;
    if (length < 2 || bpf_probe_read_user(&family, 2, (void *)pointer))
        return;
    w->b.family = family;
    if (family == AF_INET_) {
        struct {
            u16 family, port;
            u32 address;
        } in = {};
        bpf_probe_read_user(&in, sizeof(in), (void *)pointer);
        w->b.port = swap16(in.port);
        __builtin_memcpy(w->b.address, &in.address, 4);
    } else if (family == AF_INET6_) {
        struct {
            u16 family, port;
            u32 flow;
            u64 address[2];
        } in = {};
        bpf_probe_read_user(&in, sizeof(in), (void *)pointer);
        w->b.port = swap16(in.port);
        __builtin_memcpy(w->b.address, in.address, 16);
    } else if (family == AF_UNIX_ && length > 2) {
        u32 size = length - 2;
        if (size > 108)
            size = 108;
        KEEP(size);
        bpf_probe_read_user(w->raw, size & 127, (void *)(pointer + 2));
        unix_name(w, size);
    }
}

/* The socket's own idea of an address: the far end (`remote`) or ours. */
static __always_inline void socket_address(struct work *w, void *sk, int remote)
{
    u16 family = w->b.family;
    if (family == AF_INET_) {
        u32 address = remote ? READ32(sk, K_sock__daddr) : READ32(sk, K_sock__rcv_saddr);
        __builtin_memcpy(w->b.address, &address, 4);
#ifdef K_sock__v6_daddr
    } else if (family == AF_INET6_) {
        bpf_probe_read_kernel(w->b.address, 16, sk + (remote ? K_sock__v6_daddr : K_sock__v6_rcv_saddr));
#endif
    } else if (family == AF_UNIX_) {
        void *named = sk;
        if (remote)
            named = (void *)READ64(sk, K_unix_sock__peer);
        void *address = named ? (void *)READ64(named, K_unix_sock__addr) : 0;
        if (!address)
            return;
        u32 length = READ32(address, K_unix_address__len);
        if (length <= 2 || length > 110)
            return;
        length -= 2;
        KEEP(length);
        bpf_probe_read_kernel(w->raw, length & 127, address + K_unix_address__name + 2);
        unix_name(w, length);
    }
}

/* A denial by a cgroup program is told by the call it stopped, once. */
static __always_inline void claim_denial(struct work *w)
{
    u64 key = bpf_get_current_pid_tgid();
    if (w->ret != -1) /* EPERM */
        return;
    if (!denials.lookup(&key))
        return;
    denials.delete(&key);
    w->b.enforcer = BACKEND_CGROUP;
}

int hop_socket(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    w->b.family = w->args[0];
    w->b.socket_type = w->args[1] & 0xf;
    w->b.flags = w->args[1] & ~0xfULL;
    w->b.protocol = w->args[2];
    claim_denial(w);
    next_job(ctx, w);
    return 0;
}

/* bind(fd, address, length), connect(fd, address, length) */
int hop_address(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    w->b.flags = 0;
    if (w->ret == EINPROGRESS_)
        w->b.result = 0;
    void *sk = socket_of(w, TASK(), w->args[0]);
    user_address(w, w->args[1], w->args[2]);
    if (sk && w->b.operation == OP_CONNECT && w->b.family != AF_UNIX_)
        w->o.aux = READ16(sk, K_sock__num);
    if (sk && w->b.operation == OP_BIND && w->b.port == 0 && w->b.family != AF_UNIX_)
        w->o.aux = READ16(sk, K_sock__num); /* bind to port 0: the kernel chose; the behaviour keeps what was asked */
    claim_denial(w);
    next_job(ctx, w);
    return 0;
}

int hop_listen(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *sk = socket_of(w, TASK(), w->args[0]);
    w->o.aux = w->args[0];
    if (sk) {
        if (w->b.family != AF_UNIX_)
            w->b.port = READ16(sk, K_sock__num);
        socket_address(w, sk, 0);
    }
    next_job(ctx, w);
    return 0;
}

int hop_accept(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    s32 fd = w->ret >= 0 ? w->ret : (s32)w->args[0];
    void *sk = socket_of(w, TASK(), fd);
    if (sk) {
        if (w->b.family == AF_UNIX_) {
            socket_address(w, sk, 0); /* the listener's name: the client seldom has one */
        } else {
            w->b.port = READ16(sk, K_sock__num);
            if (w->ret >= 0) {
                w->o.aux = swap16(READ16(sk, K_sock__dport));
                socket_address(w, sk, 1);
            }
        }
    }
    next_job(ctx, w);
    return 0;
}

#define MESSAGE_STEPS 5 /* of a message that is a DNS query to a name's end */
#define MMSGHDR 64  /* sizeof(struct mmsghdr) of a 64-bit task */

/* sendto, sendmsg, sendmmsg on datagram and raw sockets; streams are told by connect and accept. */
int hop_send(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *sk = socket_of(w, TASK(), w->args[0]);
    if (!sk || (w->b.socket_type != 2 && w->b.socket_type != 3))
        return 0;
    u64 pointer = 0, parts = 0;
    u32 length = 0;
    w->steer.after = HOP_FINISH;
    w->query = 0;
    if (w->number == NR_SENDTO) {
        pointer = w->args[4];
        length = w->args[5];
        w->b.flags = w->args[3];
    } else { /* struct msghdr (the first member of a struct mmsghdr): name, name length, parts */
        u32 narrow = w->call.marks & MARK_NARROW, word = narrow ? 4 : 8;
        u64 header = w->args[1] + w->steer.message * (narrow ? MMSGHDR / 2 : MMSGHDR);
        bpf_probe_read_user(&pointer, word, (void *)header);
        bpf_probe_read_user(&length, 4, (void *)header + word);
        bpf_probe_read_user(&parts, word, (void *)header + (narrow ? 8 : 16));
        if (w->number == NR_SENDMMSG && (s32)w->steer.message + 1 < (s32)w->ret)
            w->steer.after = HOP_SENT;
        w->b.flags = w->number == NR_SENDMSG ? w->args[2] : w->args[3];
    }
    w->b.args[0] = 0;
    w->o.aux = w->args[0];
    w->steer.count = w->steer.job = 0;
    w->sids[SID_RESOURCE] = 0;
    w->steer.flaws = 0;
    if (pointer && length)
        user_address(w, pointer, length);
    else {
        socket_address(w, sk, 1);
        if (w->b.family != AF_UNIX_)
            w->b.port = swap16(READ16(sk, K_sock__dport));
    }
    if (w->ret >= 0 && w->b.port == DNS_PORT && w->b.socket_type == 2 && w->b.family != AF_UNIX_) {
        u64 part[2] = {w->args[1], w->args[2]};
        if (w->call.marks & MARK_NARROW) {
            u32 half[2] = {};
            bpf_probe_read_user(half, sizeof(half), (void *)parts);
            part[0] = half[0];
            part[1] = half[1];
        } else if (w->number != NR_SENDTO)
            bpf_probe_read_user(part, sizeof(part), (void *)parts);
        w->query = part[0];
        w->query_size = part[1];
        w->steer.after = HOP_SENT;
    }
    claim_denial(w);
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
