/* SPDX-License-Identifier: Apache-2.0 */
/* Files: what a call did to which path. Opened files are named by the kernel, others by the caller's string. */
#define O_ACCMODE_ 3
#define O_CREAT_ 0100
#define O_TRUNC_ 01000
#define O_APPEND_ 02000
#define O_DIRECTORY_ K_O_DIRECTORY
#define O_PATH_ 010000000
#define PROC_SUPER_MAGIC_ 0x9fa0
/* include/linux/fs.h */
#define FMODE_READ_ 1
#define FMODE_WRITE_ 2
#define FMODE_PATH_ 0x4000
#define FMODE_CREATED_ 0x100000 /* since 4.19: this open made the file */

#define OPEN_STEPS 24 /* components before another program goes on: deeper files are rare */

static __always_inline u32 access_of(u32 flags)
{
    u32 mode = flags & O_ACCMODE_, access;
    if (flags & O_PATH_) /* a name for the file: nothing of it is read or changed, whatever else was asked for */
        return flags & O_DIRECTORY_ ? ACCESS_DIRECTORY : 0;
    access = mode == 1 ? ACCESS_WRITE : mode == 2 ? ACCESS_READ | ACCESS_WRITE : ACCESS_READ;
    if (flags & O_APPEND_)
        access |= ACCESS_APPEND;
    if (flags & O_CREAT_)
        access |= ACCESS_CREATE;
    if (flags & O_TRUNC_)
        access |= ACCESS_TRUNCATE;
    if (flags & O_DIRECTORY_)
        access |= ACCESS_DIRECTORY;
    return access;
}

/* The flags with what decides about access as the opened file has it: struct open_how lies in memory that another thread can
 * write to while the call runs. What only the call knows (O_CREAT, O_TRUNC, ...) stays as it was read. */
static __always_inline u32 flags_of(u32 flags, u32 mode, u32 kept)
{
    u32 access = mode & (FMODE_READ_ | FMODE_WRITE_); /* O_ACCMODE + 1 */
    if (mode & FMODE_PATH_)
        return flags & ~(O_ACCMODE_ | O_APPEND_ | O_CREAT_ | O_TRUNC_) | O_PATH_;
    if (access)
        flags = flags & ~O_ACCMODE_ | (access - 1);
    if (mode & FMODE_CREATED_)
        flags |= O_CREAT_;
    return flags & ~(O_APPEND_ | O_PATH_) | kept & O_APPEND_;
}

static __always_inline void owner_from_file(struct work *w, void *file)
{
    void *inode = (void *)GET64(file, K_file__f_inode);
    if (inode)
        w->b.owner = GET32(inode, K_inode__i_uid);
}

/* Whether the path lies below /proc/<pid>/ of the task itself, as its own namespace counts it: what a process reads of itself is
 * told apart here, for a behaviour has no pid. */
static __always_inline int own_proc(struct work *w)
{
    u32 at = w->at;
    if (at > TEXT_MAX - 8)
        return 0;
    at &= TEXT_MAX - 1;
    const u8 *text = &w->text[at];
    if (text[1] != 'p' || text[2] != 'r' || text[3] != 'o' || text[4] != 'c' || text[5] != '/')
        return 0;
    u32 number = 0;
    for (int i = 6; i < 17; i++) { /* bytes past the text are zero */
        u32 digit = text[i] - '0';
        if (digit > 9)
            return text[i] == '/' && number == w->o.ns_pid;
        number = number * 10 + digit;
    }
    return 0;
}

/* Whether the file lies in a procfs that counts pids as the task does: in that of another pid namespace, which it sees after
 * unshare(2), its number is somebody else's. */
static __always_inline int counts_alike(struct work *w, void *file)
{
#ifdef K_proc_fs_info__pid_ns
    u64 super = READ64(GET64(file, K_file__f_inode), K_inode__i_sb);
    if (READ64(super, K_super_block__s_magic) != PROC_SUPER_MAGIC_)
        return 0;
    u64 pid_ns = READ64(READ64(super, K_super_block__s_fs_info), K_proc_fs_info__pid_ns);
    return READ32(pid_ns, K_pid_namespace__ns__inum) == w->b.pid_ns;
#else
    return 1;
#endif
}

/* Inlined into on_sys_exit, which stays small enough to load quickly because what is rarer goes on elsewhere. */
static __always_inline void open_file(void *ctx, struct work *w, void *task)
{
    struct call *call = &w->call;
    s32 dirfd = argument(w, call->dirfd, AT_FDCWD_);
    u32 flags = w->b.flags;
    if (call->flags == NONE) /* creat(2) */
        flags = O_CREAT_ | O_TRUNC_ | 1;
    else if (w->number == NR_OPENAT2) { /* struct open_how: u64 flags first */
        u64 how = 0;
        bpf_probe_read_user(&how, sizeof(how), (void *)(w->b.flags | (w->args[2] & ~0xffffffffULL)));
        flags = how;
    }
    w->o.aux = dirfd;
    void *file = w->ret >= 0 ? file_of(task, w->ret) : 0;
    u32 mode = 0;
    if (file) {
        mode = GET32(file, K_file__f_mode);
        flags = flags_of(flags, mode, GET32(file, K_file__f_flags));
    }
    w->b.flags = flags;
    w->b.access = access_of(flags);
    if (w->scope.flags & SCOPE_ENFORCE_SIGNAL)
        w->steer.after = HOP_ENFORCE;
    if (!file) {
        if (w->ret >= 0) /* another thread has closed it meanwhile, and may have kept a copy: the caller's text proves nothing */
            unresolved(w, LOSS_PATH_UNRESOLVED);
        add_job(w, JOB_USER, SID_RESOURCE, dirfd, argument(w, call->path, 0), 0);
        go(ctx, w, HOP_IDENTITY); /* whose one step is the next job */
        return;
    }
    owner_from_file(w, file);
    if (mode & FMODE_CREATED_)
        w->b.operation = OP_CREATE;
    u64 dentry = GET64(file, K_file__f_path__dentry), mount = GET64(file, K_file__f_path__mnt);
    add_job(w, JOB_DENTRY, SID_RESOURCE, 0, dentry, mount);
    w->at = TEXT_MAX;
    w->skip = 0;
    w->steer.limit = STEPS - AFTER_ENFORCE;
    walk_from(w, dentry, mount);
    climb(ctx, w, OPEN_STEPS);
    if (own_proc(w) && counts_alike(w, file))
        w->b.access |= ACCESS_OWN;
    if (w->steer.after == HOP_FINISH)
        finish_or_go(ctx, w, complete(w));
    else
        go(ctx, w, HOP_STORE);
}

int hop_open(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (w)
        open_file(ctx, w, TASK());
    return 0;
}

/* Every call that names one or two paths, or a descriptor in place of the first. Where rules on files are enforced, each path is
 * judged while its text lies in the scratch: of two the second first, and then this program runs again for the first. */
int hop_paths(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    struct call *call = &w->call;
    void *task = TASK();
    u32 second = call->path2 < 6 && w->steer.stage != STAGE_SECOND;
    w->steer.stage = 0;
    w->steer.job = w->steer.count = 0;
    w->at = TEXT_MAX;
    if (w->scope.flags & SCOPE_ENFORCE_SIGNAL && call->class_ == CLASS_FILE) {
        w->steer.after = HOP_ENFORCE;
        if (second) {
            w->steer.stage = STAGE_SECOND;
            add_job(w, JOB_USER, SID_RESOURCE2, (s32)argument(w, call->dirfd2, AT_FDCWD_), argument(w, call->path2, 0), 0);
            next_job(ctx, w);
            return 0;
        }
    }
    if (call->fd == FD_ROOT && w->ret >= 0) { /* chroot: the caller's text begins at a root that is gone */
        add_job(w, JOB_DENTRY, SID_RESOURCE, 0, w->root_dentry, w->root_mount + K_mount__mnt);
    } else if (call->fd < 6) {
        s32 fd = argument(w, call->fd, 0);
        void *file = file_of(task, fd);
        w->o.aux = fd;
        if (file)
            owner_from_file(w, file);
        if (file)
            add_job(w, JOB_FD, SID_RESOURCE, fd, 0, 0);
    } else if (call->path < 6) {
        s32 dirfd = argument(w, call->dirfd, AT_FDCWD_);
        w->o.aux = dirfd;
        add_job(w, JOB_USER, SID_RESOURCE, dirfd, argument(w, call->path, 0), 0);
    }
    if (second)
        add_job(w, JOB_USER, SID_RESOURCE2, (s32)argument(w, call->dirfd2, AT_FDCWD_), argument(w, call->path2, 0), 0);
    next_job(ctx, w);
    return 0;
}
