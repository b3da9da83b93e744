/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks on files. What is opened, made, removed, renamed or changed is known by its dentry, whatever call it came by
 * and whatever name was used: 32-bit entries, io_uring, descriptors of others, links, file handles.
 */
#define FMODE_READ_ 1
#define FMODE_WRITE_ 2
#define FMODE_EXEC_ 0x20 /* __FMODE_EXEC in f_flags: execve opens it, which asks by itself */
#define O_APPEND_ 02000
#define O_TRUNC_ 01000
#define RENAME_EXCHANGE_ 2
#define S_IFMT_HOOK 0170000
#define S_IFDIR_HOOK 0040000

static __always_inline u32 is_directory(u64 inode)
{
    return inode && (READ16(inode, K_inode__i_mode) & S_IFMT_HOOK) == S_IFDIR_HOOK ? ACCESS_DIRECTORY : 0;
}

int lsm_file_open(struct bpf_raw_tracepoint_args *ctx) /* file */
{
    void *file = (void *)ctx->args[0];
    u32 mode = LOAD32(file, K_file__f_mode), flags = LOAD32(file, K_file__f_flags);
    if (mode & FMODE_NOACCOUNT_ || flags & FMODE_EXEC_)
        return 0;
    u32 access = (mode & FMODE_READ_ ? ACCESS_READ : 0) | (mode & FMODE_WRITE_ ? ACCESS_WRITE : 0) | (flags & O_TRUNC_ ? ACCESS_TRUNCATE : 0);
    if (mode & FMODE_WRITE_ && flags & O_APPEND_)
        access |= ACCESS_APPEND;
    ENTER(CLASS_FILE, TABLE_HAS_FILE | TABLE_PROC | TABLE_ENVIRON, OP_OPEN, access);
    w->b.flags = flags;
    int stop = on_object(w, LOAD64(file, K_file__f_path__dentry), LOAD64(file, K_file__f_path__mnt), LOAD64(file, K_file__f_inode));
    return leave(w, stop);
}

/* A name below a directory, as the path hooks give it: what is there, or is to be made. */
static __always_inline int on_name(u64 directory, u64 dentry, u32 operation, u32 access)
{
    ENTER(CLASS_FILE, TABLE_HAS_FILE, operation, access);
    int stop = on_object(w, dentry, READ64(directory, K_file__f_path__mnt - K_file__f_path), READ64(dentry, K_dentry__d_inode));
    return leave(w, stop);
}

/* A path that is there. */
static __always_inline int on_place(u64 path, u32 operation, u32 access)
{
    ENTER(CLASS_FILE, TABLE_HAS_FILE, operation, access);
    u64 dentry = READ64(path, K_file__f_path__dentry - K_file__f_path);
    int stop = on_object(w, dentry, READ64(path, K_file__f_path__mnt - K_file__f_path), READ64(dentry, K_dentry__d_inode));
    return leave(w, stop);
}

int lsm_path_mknod(struct bpf_raw_tracepoint_args *ctx) { return on_name(ctx->args[0], ctx->args[1], OP_MKNOD, ACCESS_CREATE); }
int lsm_path_mkdir(struct bpf_raw_tracepoint_args *ctx) { return on_name(ctx->args[0], ctx->args[1], OP_MKDIR, ACCESS_CREATE); }
int lsm_path_symlink(struct bpf_raw_tracepoint_args *ctx) { return on_name(ctx->args[0], ctx->args[1], OP_SYMLINK, ACCESS_CREATE); }
int lsm_path_unlink(struct bpf_raw_tracepoint_args *ctx) { return on_name(ctx->args[0], ctx->args[1], OP_UNLINK, ACCESS_DELETE); }
int lsm_path_rmdir(struct bpf_raw_tracepoint_args *ctx) { return on_name(ctx->args[0], ctx->args[1], OP_RMDIR, ACCESS_DELETE); }
int lsm_path_chmod(struct bpf_raw_tracepoint_args *ctx) { return on_place(ctx->args[0], OP_CHMOD, ACCESS_METADATA); }
int lsm_path_chown(struct bpf_raw_tracepoint_args *ctx) { return on_place(ctx->args[0], OP_CHOWN, ACCESS_METADATA); }
int lsm_path_truncate(struct bpf_raw_tracepoint_args *ctx) { return on_place(ctx->args[0], OP_TRUNCATE, ACCESS_TRUNCATE); }
int lsm_file_truncate(struct bpf_raw_tracepoint_args *ctx) { return on_place(ctx->args[0] + K_file__f_path, OP_TRUNCATE, ACCESS_TRUNCATE); }

/* link(old dentry, new directory, new dentry): the old one lies in the same mount, and gets a name that no rule knows. */
int lsm_path_link(struct bpf_raw_tracepoint_args *ctx)
{
    ENTER(CLASS_FILE, TABLE_HAS_FILE, OP_LINK, ACCESS_CREATE);
    u64 mount = READ64(ctx->args[1], K_file__f_path__mnt - K_file__f_path), inode = READ64(ctx->args[0], K_dentry__d_inode);
    int stop = on_object(w, ctx->args[2], mount, inode) || on_object(w, ctx->args[0], mount, inode);
    return leave(w, stop);
}

/* rename(old directory, old dentry, new directory, new dentry, flags). Of two names that change places each goes and comes: the kernel
 * says so by a flag, and before Linux 5.19 by asking twice, the other way round first. What lies at the new name is asked about as itself. */
int lsm_path_rename(struct bpf_raw_tracepoint_args *ctx)
{
    u64 inode = READ64(ctx->args[1], K_dentry__d_inode), there = READ64(ctx->args[3], K_dentry__d_inode);
    u32 goes = ACCESS_DELETE | is_directory(inode), comes = ACCESS_CREATE;
#ifdef K_RENAME_FLAGS
    if (ctx->args[4] & RENAME_EXCHANGE_) {
        goes |= ACCESS_CREATE;
        comes |= ACCESS_DELETE | is_directory(there);
    }
#endif
    ENTER(CLASS_FILE, TABLE_HAS_FILE, OP_RENAME, goes);
    int stop = on_object(w, ctx->args[1], READ64(ctx->args[0], K_file__f_path__mnt - K_file__f_path), inode);
    if (!stop) {
        w->access = w->b.access = comes;
        stop = on_object(w, ctx->args[3], READ64(ctx->args[2], K_file__f_path__mnt - K_file__f_path), there ? there : inode);
    }
    return leave(w, stop);
}

/* ---- what gives a file other paths without touching it ---- */
static __always_inline int on_mounts(u32 operation)
{
    ENTER(CLASS_FILE, TABLE_MOUNTS, operation, ACCESS_METADATA);
    int stop = answer(w, 1);
    return leave(w, stop);
}

int lsm_sb_mount(struct bpf_raw_tracepoint_args *ctx) { return on_mounts(OP_MOUNT); }
int lsm_move_mount(struct bpf_raw_tracepoint_args *ctx) { return on_mounts(OP_MOUNT); }
int lsm_sb_pivotroot(struct bpf_raw_tracepoint_args *ctx) { return on_mounts(OP_CALL); }
int lsm_userns_create(struct bpf_raw_tracepoint_args *ctx) { return on_mounts(OP_CALL); }
