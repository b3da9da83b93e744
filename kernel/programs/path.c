/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Texts become string ids here. A path is built backwards, from the leaf's dentry up to the task's root directory:
 *
 *     start_jobs -> next_job -+-> hop_join (user string: components from the right, "." and ".." folded)
 *                             |       |
 *                             +-------+-> hop_walk (dentries, then mount points; tail-calls itself while deep)
 *                                             |
 *                                         hop_store (hash, announce) -> next job, or w->after
 *
 * A path that cannot be resolved or does not fit is counted, marked ACCESS_PARTIAL and never passed off as whole.
 */
#define WALK_STEPS 256 /* components per program: the 2048 that fit in PATH_MAX take 8 of the 33 tail calls */
#define JOIN_STEPS 1024

struct dentry_part { /* consecutive members of struct dentry; members.py refuses a kernel where they are not */
    u64 parent;
    u32 hash;
    u32 length;
    u64 name;
    u64 inode;
#ifdef K_NAME_WORDS
    u64 inline_name[K_NAME_WORDS]; /* where short names lie: nearly all */
#endif
};

struct mount_part { /* consecutive members of struct mount */
    u64 parent;
    u64 mountpoint;
    u64 root;
};

/* The end of every event: the behaviour gets its id, is announced when new, and the occurrence leaves. */
static __always_inline void finish(struct work *w)
{
    struct behaviour *b = &w->b;
    b->resource = w->sids[SID_RESOURCE];
    b->resource2 = w->sids[SID_RESOURCE2];
    if (w->partial)
        b->access |= ACCESS_PARTIAL;
    u64 id = hash_behaviour(b);
    if (!behaviours.lookup(&id)) {
        w->behaviour_head.id = id;
        w->behaviour_head.kind = DEFINE_BEHAVIOUR;
        w->behaviour_head.size = sizeof(*b);
        if (definitions.ringbuf_output(&w->behaviour_head, sizeof(w->behaviour_head) + sizeof(*b), 1)) {
            lose(LOSS_DEFINITIONS_FULL);
        } else {
            u64 one = 1;
            behaviours.update(&id, &one);
        }
    }
    u32 zero = 0;
    u64 *sequence = sequences.lookup(&zero);
    if (!sequence)
        return;
    w->o.id = id;
    w->o.time = bpf_ktime_get_boot_ns();
    w->o.sequence = (u64)bpf_get_smp_processor_id() << 48 | ++*sequence;
    if (occurrences.ringbuf_output(&w->o, sizeof(w->o), 1 /* BPF_RB_NO_WAKEUP */))
        lose(LOSS_OCCURRENCES_FULL);
}

static __always_inline void partial(struct work *w, u32 loss)
{
    w->partial = 1;
    lose(loss);
}

/* Puts raw[start..start+length) before the text, with a slash in front. */
static __always_inline void prepend(struct work *w, const void *from, u32 length)
{
    u32 at = w->at;
    if (length + 1 > at) {
        partial(w, LOSS_PATH_TRUNCATED);
        w->skip = 0x7fffffff; /* nothing more to the left: a shorter component would hide the hole */
        return;
    }
    at -= length + 1;
    w->at = at;
    at &= TEXT_MAX - 1;
    w->text[at] = '/';
    bpf_probe_read_kernel(&w->text[at + 1], length & (TEXT_MAX - 1), from);
}

/* The name of a dentry that was read: short ones came with it and need no second read. */
static __always_inline void prepend_dentry(struct work *w, struct dentry_part *d, u64 dentry)
{
    u32 length = d->length & 255;
#ifdef K_NAME_WORDS
    u32 at = w->at;
    if (d->name == dentry + K_dentry__d_iname && length < at && length <= 8 * K_NAME_WORDS) {
        /* Whole words are written; what they overrun to the right is put back. */
        u64 *right = (u64 *)&w->text[at & (2 * TEXT_MAX - 1)], kept[K_NAME_WORDS];
        at -= length + 1;
        w->at = at;
        at &= TEXT_MAX - 1;
        u64 *name = (u64 *)&w->text[at + 1];
#pragma unroll
        for (int i = 0; i < K_NAME_WORDS; i++)
            kept[i] = right[i];
        w->text[at] = '/';
#pragma unroll
        for (int i = 0; i < K_NAME_WORDS; i++)
            name[i] = d->inline_name[i];
#pragma unroll
        for (int i = 0; i < K_NAME_WORDS; i++)
            right[i] = kept[i];
        return;
    }
#endif
    prepend(w, (void *)d->name, length);
}

static __always_inline struct job *current_job(struct work *w)
{
    return &w->jobs[w->job & 3];
}

static __always_inline void add_job(struct work *w, u16 kind, u16 sid, s32 fd, u64 pointer, u64 mount)
{
    struct job *job = &w->jobs[w->count & 3];
    job->kind = kind;
    job->sid = sid;
    job->fd = fd;
    job->pointer = pointer;
    job->mount = mount;
    w->count++;
}

/* struct file of a descriptor of the current task, 0 if there is none. */
static __always_inline u64 file_of(void *task, s32 fd)
{
    void *files = (void *)LOAD64(task, K_task_struct__files);
    void *table = (void *)LOAD64(files, K_files_struct__fdt);
    u32 limit = LOAD32(table, K_fdtable__max_fds);
    u64 slots = LOAD64(table, K_fdtable__fd);
    if ((u32)fd >= limit)
        return 0;
    return READ64(slots, 8 * (u64)(u32)fd);
}

static __always_inline void walk_from(struct work *w, u64 dentry, u64 vfsmount)
{
    w->dentry = dentry;
    w->mount = vfsmount - K_mount__mnt;
}

static __always_inline void walk_from_fd(struct work *w, void *task, s32 fd)
{
    u64 path[2] = {};
    if (fd == AT_FDCWD_) {
        void *fs = (void *)LOAD64(task, K_task_struct__fs);
        path[0] = LOAD64(fs, K_fs_struct__pwd__mnt);
        path[1] = LOAD64(fs, K_fs_struct__pwd__dentry);
    } else {
        u64 file = file_of(task, fd);
        if (file)
            bpf_probe_read_kernel(path, sizeof(path), (void *)file + K_file__f_path);
    }
    if (!path[1]) {
        partial(w, LOSS_PATH_UNRESOLVED);
        w->dentry = 0;
        return;
    }
    walk_from(w, path[1], path[0]);
}

/* Begins the job at w->job, or goes on to w->after. Does not return unless a tail call is refused. */
static __always_inline void next_job(void *ctx, struct work *w)
{
    if (w->job >= w->count) {
        /* Constants, not `w->after` itself: a tail call to a known program is a jump, to an unknown one a retpoline. */
        if (w->after == HOP_FINISH)
            go(ctx, HOP_FINISH);
        else if (w->after == HOP_ENFORCE)
            go(ctx, HOP_ENFORCE);
        else if (w->after == HOP_EXEC)
            go(ctx, HOP_EXEC);
        else if (w->after == HOP_SENT)
            go(ctx, HOP_SENT);
        else
            go(ctx, HOP_ADOPTED);
        return;
    }
    struct job *job = current_job(w);
    w->at = TEXT_MAX;
    w->skip = 0;
    if (job->kind == JOB_DENTRY) {
        walk_from(w, job->pointer, job->mount);
        go(ctx, HOP_WALK);
    } else if (job->kind == JOB_FD) {
        walk_from_fd(w, TASK(), job->fd);
        go(ctx, HOP_WALK);
    } else if (job->kind == JOB_USER) {
        long size = bpf_probe_read_user_str(w->raw, TEXT_MAX, (void *)job->pointer);
        if (size <= 0) {
            partial(w, LOSS_PATH_UNRESOLVED);
            size = 0;
        } else {
            if (size == TEXT_MAX) /* no room for a NUL: ENAMETOOLONG for the caller, the head is kept */
                lose(LOSS_PATH_TRUNCATED);
            size--;
        }
        w->cursor = w->end = size;
        if (w->partial && size == 0) {
            w->dentry = 0;
            go(ctx, HOP_STORE);
        }
        go(ctx, HOP_JOIN);
    } else if (job->kind == JOB_ARGUMENTS) {
        u32 length = (u32)job->fd & (TEXT_MAX - 1);
        w->at = TEXT_MAX - length;
        if (bpf_probe_read_user(&w->text[w->at & (TEXT_MAX - 1)], length, (void *)job->pointer))
            w->at = TEXT_MAX; /* swapped out; the image is known all the same */
        go(ctx, HOP_STORE);
    } else if (job->kind == JOB_RAW) { /* a path lies in raw, `cursor` bytes long */
        go(ctx, HOP_JOIN);
    } else {
        if (job->kind == JOB_STRING) {
            long size = bpf_probe_read_user_str(w->raw, TEXT_MAX, (void *)job->pointer);
            w->cursor = size > 0 ? size - 1 : 0;
        }
        /* JOB_TEXT: `cursor` bytes lie in raw already and are taken as they are. */
        u32 length = w->cursor & (TEXT_MAX - 1);
        w->at = TEXT_MAX - length;
        bpf_probe_read_kernel(&w->text[w->at & (TEXT_MAX - 1)], length, w->raw);
        go(ctx, HOP_STORE);
    }
}

/* The root the task sees; paths end there. Call before the first job of an event. */
static __always_inline void start_jobs(struct work *w, void *task)
{
    void *fs = (void *)LOAD64(task, K_task_struct__fs);
    w->root_mount = LOAD64(fs, K_fs_struct__root__mnt) - K_mount__mnt;
    w->root_dentry = LOAD64(fs, K_fs_struct__root__dentry);
    w->job = 0;
    w->count = 0;
    w->partial = 0;
}

static __always_inline void component(struct work *w, u32 start, u32 end)
{
    u32 length = (end - start) & (TEXT_MAX - 1);
    start &= TEXT_MAX - 1;
    if (length == 0)
        return;
    if (w->raw[start] == '.') {
        if (length == 1)
            return;
        if (length == 2 && w->raw[start + 1] == '.') {
            w->skip++;
            return;
        }
    }
    if (w->skip) {
        w->skip--;
        return;
    }
    prepend(w, &w->raw[start], length);
}

static __always_inline void announce_text(struct work *w, u64 id)
{
    if (strings.lookup(&id))
        return;
    u32 at = w->at & (TEXT_MAX - 1), length = TEXT_MAX - at;
    struct definition *head = (struct definition *)((u8 *)&w->text_room + at);
    head->id = id;
    head->kind = DEFINE_STRING;
    head->size = length;
    /* Strictly announced before it is marked as announced: another CPU may use the mark at once. */
    if (definitions.ringbuf_output(head, sizeof(*head) + length, 1 /* BPF_RB_NO_WAKEUP */)) {
        lose(LOSS_DEFINITIONS_FULL);
        return;
    }
    u64 one = 1;
    strings.update(&id, &one);
}

/* A text is complete. Inlined where paths end, with the end of the event: a tail call less each for the usual open. */
static __always_inline void store(void *ctx, struct work *w)
{
    struct job *job = current_job(w);
    u16 sid = job->sid & (SIDS - 1);
    if (w->at == TEXT_MAX && job->kind <= JOB_RAW && !w->partial) {
        w->at = TEXT_MAX - 1;
        w->text[TEXT_MAX - 1] = '/';
    }
    if (w->at < TEXT_MAX) {
        u64 id = hash_text(w);
        w->sids[sid] = id;
        announce_text(w, id);
    } else {
        w->sids[sid] = 0;
    }
    w->job++;
    if (w->job >= w->count && w->after == HOP_FINISH)
        finish(w);
    else
        next_job(ctx, w);
}

int hop_store(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (w)
        store(ctx, w);
    return 0;
}

int hop_join(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    /* cursor and end live in the map, not in registers: the verifier then sees the same state after every byte. */
    u32 cursor = 1;
    for (int i = 0; i < JOIN_STEPS; i++) {
        cursor = w->cursor;
        if (cursor == 0)
            break;
        cursor--;
        w->cursor = cursor;
        if (w->raw[cursor & (TEXT_MAX - 1)] == '/') {
            component(w, cursor + 1, w->end);
            w->end = cursor;
        }
    }
    if (cursor) {
        go(ctx, HOP_JOIN);
        return 0;
    }
    component(w, 0, w->end);
    if (w->raw[0] == '/') {
        w->dentry = 0;
        go(ctx, HOP_STORE);
        return 0;
    }
    struct job *job = current_job(w);
    walk_from_fd(w, TASK(), job->fd);
    go(ctx, HOP_WALK);
    return 0;
}

int hop_walk(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    u64 dentry = w->dentry, mount = w->mount, root_dentry = w->root_dentry, root_mount = w->root_mount;
    struct mount_part m = {};
    struct dentry_part d;
    int deep = 0;
    if (!dentry)
        goto store;
    bpf_probe_read_kernel(&m, sizeof(m), (void *)mount + K_mount__mnt_parent);
    for (int i = 0; i < WALK_STEPS; i++) {
        deep = 1;
        if (dentry == root_dentry && mount == root_mount) {
            deep = 0;
            break;
        }
        if (dentry == m.root) {
            if (m.parent == mount || !m.parent) { /* top of the mount namespace, or detached */
                deep = 0;
                break;
            }
            dentry = m.mountpoint;
            mount = m.parent;
            bpf_probe_read_kernel(&m, sizeof(m), (void *)mount + K_mount__mnt_parent);
            continue;
        }
        if (bpf_probe_read_kernel(&d, sizeof(d), (void *)dentry + K_dentry__d_parent)) {
            partial(w, LOSS_PATH_UNRESOLVED);
            deep = 0;
            break;
        }
        if (d.parent == dentry) { /* has no place in a tree: memfd, anonymous inode; d_path() knows no slash either */
            if (d.length) {
                prepend_dentry(w, &d, dentry);
                w->at++;
            }
            deep = 0;
            break;
        }
        if (w->skip)
            w->skip--;
        else
            prepend_dentry(w, &d, dentry);
        dentry = d.parent;
    }
    if (deep) {
        w->dentry = dentry;
        w->mount = mount;
        go(ctx, HOP_WALK);
        partial(w, LOSS_PATH_TRUNCATED);
    }
store:
    store(ctx, w);
    return 0;
}

int hop_finish(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (w)
        finish(w);
    return 0;
}
