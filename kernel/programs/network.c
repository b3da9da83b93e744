/* SPDX-License-Identifier: Apache-2.0 */
/* Sockets: who is talked to, from the caller's address where one is given and from the socket where not. */
#define S_IFMT_ 0170000
#define S_IFSOCK_ 0140000
#define EPERM_ (-1)
#define EINTR_ (-4)
#define ECONNRESET_ (-104)
#define ETIMEDOUT_ (-110)
#define ECONNREFUSED_ (-111)
#define EINPROGRESS_ (-115)
#define TCP_CLOSE_ 7 /* include/net/tcp_states.h */
#define MSG_FASTOPEN_ 0x20000000
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
    /* Its length by a helper, not by a loop: 108 ways out of one, each with all that follows, are more states than 6.1 verifies. */
    long read = bpf_probe_read_kernel_str(w->raw, 128, w->raw);
    u32 end = read > 0 ? read - 1 : 0;
    KEEP(end);
    end &= 127;
    w->cursor = w->end = end;
    add_job(w, JOB_RAW, SID_RESOURCE, AT_FDCWD_, 0, 0);
}

/* Port and address of a sockaddr of the caller, read as `family`. */
static __always_inline void inet_address(struct work *w, u64 pointer, u16 family)
{
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
    }
}

/* A sockaddr of the caller. */
static __always_inline void user_address(struct work *w, u64 pointer, u32 length)
{
    u16 family = 0;
    if (length < 2 || bpf_probe_read_user(&family, 2, (void *)pointer))
        return;
    w->b.family = family;
    if (family == AF_INET_ || family == AF_INET6_) {
        inet_address(w, pointer, family);
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

/* Where the registers of a system call lie from the task's stack: the guards, which are not given them, read the call's number
 * there. The same for every task of a kernel, and learned from the first. */
static __always_inline void locate_registers(struct bpf_raw_tracepoint_args *ctx)
{
    u32 index = CONFIG_REGISTERS;
    u64 *known = config.lookup(&index);
    if (known && !*known)
        *known = hidden(ctx->args[0]) - LOAD64(TASK(), K_task_struct__stack); /* a program of a function is given a typed pointer */
}

/* Inode of the socket behind a descriptor: never used twice in a short time, as the address of a struct sock is. */
static __always_inline u64 socket_inode(void *task, s32 fd)
{
    void *file = file_of(task, fd);
    return file ? READ64(GET64(file, K_file__f_inode), K_inode__i_ino) : 0;
}

/* What a guard or an earlier round of this call left for its end: 1 when the call is told already, so nothing is left to tell.
 * A note is for one call: whatever it says, it ends here. */
static __always_inline int claimed(struct work *w, u64 inode)
{
    u64 key = bpf_get_current_pid_tgid();
    struct note *found = notes.lookup(&key);
    if (!found)
        return 0;
    struct note note = *found;
    notes.delete(&key);
    if (note.kind == NOTE_INTERRUPTED)
        return inode && note.inode == inode;
    if (w->ret != EPERM_ || (note.number && note.number != w->number))
        return 0;
    if (note.kind == NOTE_TOLD)
        return 1;
    w->b.enforcer = BACKEND_CGROUP;
    w->b.family = note.family;
    w->b.port = note.port;
    __builtin_memcpy(w->b.address, note.address, 16);
    return 0;
}

int hop_socket(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    locate_registers(ctx);
    w->b.family = w->args[0];
    w->b.socket_type = w->args[1] & 0xf;
    w->b.flags = w->args[1] & ~0xfULL;
    w->b.protocol = w->args[2];
    u16 family = w->b.family;
    if (w->ret == EPERM_ && claimed(w, 0))
        return 0;
    w->b.family = family;
    next_job(ctx, w);
    return 0;
}

/* The end of a connect, or of a send that opens a connection: who is at the other end. The socket knows; the caller's memory may
 * have been written to since the kernel read it. 0: nothing happened that is to be told. */
static __always_inline int connected(struct work *w, void *sk, u64 pointer, u32 length)
{
    u16 family = w->b.family;
    int restart = w->ret <= -512, going = w->ret >= 0 || w->ret == EINPROGRESS_ || restart;
    if (restart && (!sk || (family != AF_INET_ && family != AF_INET6_) || READ8(sk, K_sock__state) == TCP_CLOSE_))
        return 0; /* the call is about to be made again, or never happened */
    u64 inode = socket_inode(TASK(), w->args[0]);
    if (claimed(w, inode))
        return 0;
    if (w->b.enforcer)
        return 1;
    if (restart) { /* a handler without SA_RESTART leaves it at that: it goes on in the background as if EINPROGRESS */
        u64 key = bpf_get_current_pid_tgid();
        struct note note = {.kind = NOTE_INTERRUPTED, .inode = inode};
        notes.update(&key, &note);
        w->o.ret = EINTR_;
    }
    if (going)
        w->b.result = 0;
    user_address(w, pointer, length);
    if (!sk || (family != AF_INET_ && family != AF_INET6_))
        return 1;
    w->o.aux = READ16(sk, K_sock__num);
    u16 asked = w->b.family, port = swap16(READ16(sk, K_sock__dport));
    u32 address[4];
    __builtin_memcpy(address, w->b.address, 16);
    __builtin_memset(w->b.address, 0, 16);
    w->b.family = family;
    socket_address(w, sk, 1);
    u32 *own = (u32 *)w->b.address;
    if (going && (port || own[0] | own[1] | own[2] | own[3])) {
        w->b.port = port;
        return 1;
    }
    /* Refused or timed out: the kernel has put its port aside, the address not. */
    if ((w->ret == ECONNREFUSED_ || w->ret == ETIMEDOUT_ || w->ret == ECONNRESET_) && (own[0] | own[1] | own[2] | own[3]))
        return 1;
    w->b.family = asked;
    __builtin_memcpy(w->b.address, address, 16);
    return 1;
}

/* bind(fd, address, length), connect(fd, address, length) */
int hop_address(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    w->b.flags = 0;
    void *sk = socket_of(w, TASK(), w->args[0]);
    if (w->b.operation == OP_CONNECT) {
        if (!connected(w, sk, w->args[1], w->args[2]))
            return 0;
        next_job(ctx, w);
        return 0;
    }
    u16 family = w->b.family;
    if (w->ret == EPERM_ && claimed(w, 0))
        return 0;
    if (!w->b.enforcer) {
        user_address(w, w->args[1], w->args[2]);
        if (sk && (family == AF_INET_ || family == AF_INET6_)) {
            w->o.aux = READ16(sk, K_sock__num);
            if (w->ret == 0) { /* port 0: the kernel chose; the behaviour keeps what was asked */
                w->b.family = family;
                w->b.port = w->b.port ? w->o.aux : 0;
                socket_address(w, sk, 0);
            }
        }
    }
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
