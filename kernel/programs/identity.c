/* SPDX-License-Identifier: Apache-2.0 */
/* Calls whose arguments say everything: identities, ptrace, bpf, modules; and paths that are texts, not places. */
int hop_identity(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    next_job(ctx, w);
    return 0;
}

/* symlink: what it points at is a text and is kept as it was written. */
int hop_symlink(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    struct call *call = &w->call;
    s32 dirfd = argument(w, call->dirfd, AT_FDCWD_);
    w->o.aux = dirfd;
    add_job(w, JOB_USER, SID_RESOURCE, dirfd, argument(w, call->path, 0), 0);
    add_job(w, JOB_STRING, SID_RESOURCE2, 0, argument(w, call->path2, 0), 0);
    next_job(ctx, w);
    return 0;
}

/* mount(source, target, type, flags, data): the source is a device, a directory or a word; only the caller knows. */
int hop_mount(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    add_job(w, JOB_USER, SID_RESOURCE, AT_FDCWD_, w->args[1], 0);
    if (w->args[0])
        add_job(w, JOB_STRING, SID_RESOURCE2, 0, w->args[0], 0);
    next_job(ctx, w);
    return 0;
}
