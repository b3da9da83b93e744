/* SPDX-License-Identifier: Apache-2.0 */
/* Calls whose numbers say everything: identities, ptrace, bpf, namespaces; and names that are texts, not places. */
int hop_identity(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    next_job(ctx, w);
    return 0;
}

/* A path, and a text that is kept as it was written: where a symlink points, the name of an attribute. */
int hop_path_text(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    struct call *call = &w->call;
    s32 dirfd = argument(w, call->dirfd, AT_FDCWD_);
    w->o.aux = dirfd;
    if (w->scope.flags & SCOPE_ENFORCE_SIGNAL && call->class_ == CLASS_FILE)
        w->steer.after = HOP_ENFORCE;
    add_job(w, JOB_STRING, SID_RESOURCE2, 0, argument(w, call->path2, 0), 0);
    /* Strictly last: enforcement looks at the text that was stored last. */
    add_job(w, JOB_USER, SID_RESOURCE, dirfd, argument(w, call->path, 0), 0);
    next_job(ctx, w);
    return 0;
}

/* Names that are no paths: of a memfd, a file system, a key, a module. */
int hop_text(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    struct call *call = &w->call;
    add_job(w, JOB_STRING, SID_RESOURCE, 0, argument(w, call->path, 0), 0);
    if (call->path2 < 6)
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
