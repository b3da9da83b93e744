/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Jobs: each turns one text into a string id. A path is built backwards, from the leaf's dentry up to the top of its mount namespace:
 *
 *     start_jobs -> next_job -+-> hop_join (user string: components from the right, "." and ".." folded)
 *                             |       |
 *                             +-------+-> hop_walk (dentries, then mount points; tail-calls itself while deep)
 *                                             |
 *                                           store (hash, announce) -> next job, or w->after
 *
 * A path longer than TEXT_MAX is walked to the top all the same, to learn how long it is, and then once more by hop_again
 * without the components at its end that are too many. So a text is the whole path, its beginning, or known to be neither.
 */
/* Steps for what must follow the texts of an event: a whole scan, the verdict, the end. */
#define AFTER_FINISH 2
#define AFTER_ENFORCE (SCAN_PROGRAMS + 2)
#define AFTER_ADOPTED 21 /* the adopted task's own event: its last text has nine of them for itself when it is to be judged */
#define AFTER_SENT 4
#define SCAN_AGAIN 8 /* rules limited to a script are asked in a scan of their own: enough for a path of some length */
#define OTHER_PATH 7 /* a rename or link has one more path to be judged: enough for one of some length */
#define LEAST 2 /* for a text that is still to come */
#define ANY 255

static __always_inline struct job *current_job(struct work *w)
{
    return &w->jobs[w->steer.job & 3];
}

static __always_inline void add_short_job(struct work *w, u16 kind, u8 sid, s32 fd, u64 pointer, u64 mount, u8 share)
{
    struct job *job = &w->jobs[w->steer.count & 3];
    job->kind = kind;
    job->sid = sid;
    job->fd = fd;
    job->pointer = pointer;
    job->mount = mount;
    job->share = share;
    w->steer.count++;
}

static __always_inline void add_job(struct work *w, u16 kind, u8 sid, s32 fd, u64 pointer, u64 mount)
{
    add_short_job(w, kind, sid, fd, pointer, mount, ANY);
}

/* How many steps the text of the next job may use: its share, and less when what comes after it would be short of them. */
static __always_inline u32 limit_of(struct work *w, struct job *job)
{
    u32 after = w->steer.after, limit = w->steer.steps + job->share, kept = AFTER_FINISH;
    if (after == HOP_ADOPTED)
        kept = AFTER_ADOPTED;
    else if (after == HOP_EXEC || after == HOP_ENFORCE)
        kept = AFTER_ENFORCE;
    else if (after == HOP_SENT)
        kept = AFTER_SENT;
    if (w->steer.stage == STAGE_SECOND)
        kept += OTHER_PATH;
    if (w->b.script && kept == AFTER_ENFORCE)
        kept += SCAN_AGAIN;
    kept += LEAST * (w->steer.count - w->steer.job - 1);
    return limit < STEPS - kept ? limit : STEPS - kept;
}

/* struct file of a descriptor of the current task, 0 if there is none. */
static __always_inline void *file_of(void *task, s32 fd)
{
    void *files = (void *)LOAD64(task, K_task_struct__files);
    void *table = (void *)LOAD64(files, K_files_struct__fdt);
    u32 limit = LOAD32(table, K_fdtable__max_fds);
    u64 slots = LOAD64(table, K_fdtable__fd);
    if ((u32)fd >= limit)
        return 0;
    return CAST(GET64(CAST(slots + 8 * (u64)(u32)fd, list_head), 0), file);
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
        void *file = file_of(task, fd);
        if (file) {
            path[0] = GET64(file, K_file__f_path__mnt);
            path[1] = GET64(file, K_file__f_path__dentry);
        }
    }
    if (!path[1]) {
        unresolved(w, LOSS_PATH_UNRESOLVED);
        w->dentry = 0;
        return;
    }
    walk_from(w, path[1], path[0]);
}

/* Begins the job at w->steer.job, or goes on to w->steer.after. Does not return unless a tail call is refused. */
static __always_inline void next_job(void *ctx, struct work *w)
{
    if (w->steer.job >= w->steer.count) {
        /* Constants, not `w->steer.after` itself: a tail call to a known program is a jump, to an unknown one a retpoline. */
        if (w->steer.after == HOP_FINISH)
            go(ctx, w, HOP_FINISH);
        else if (w->steer.after == HOP_ENFORCE)
            go(ctx, w, HOP_ENFORCE);
        else if (w->steer.after == HOP_EXEC)
            go(ctx, w, HOP_EXEC);
        else if (w->steer.after == HOP_SCRIPT)
            go(ctx, w, HOP_SCRIPT);
        else if (w->steer.after == HOP_SENT)
            go(ctx, w, HOP_SENT);
        else
            go(ctx, w, HOP_ADOPTED);
        return;
    }
    struct job *job = current_job(w);
    w->at = TEXT_MAX + w->steer.beyond;
    w->skip = 0;
    if (!w->steer.beyond)
        w->steer.limit = limit_of(w, job);
    if (job->kind == JOB_DENTRY) {
        walk_from(w, job->pointer, job->mount);
        go(ctx, w, HOP_WALK);
    } else if (job->kind == JOB_FD) {
        walk_from_fd(w, TASK(), job->fd);
        go(ctx, w, HOP_WALK);
    } else if (job->kind == JOB_USER) {
        long size = bpf_probe_read_user_str(w->raw, TEXT_MAX, (void *)job->pointer);
        if (size <= 0) {
            unresolved(w, LOSS_PATH_UNRESOLVED);
            go(ctx, w, HOP_STORE);
            return;
        }
        if (size == TEXT_MAX) /* no room for a NUL: ENAMETOOLONG for the caller, the head is kept */
            lose(LOSS_PATH_TRUNCATED);
        w->cursor = w->end = size - 1;
        go(ctx, w, HOP_JOIN);
    } else if (job->kind == JOB_ARGUMENTS) {
        u32 length = job->fd, room = TEXT_MAX - 1;
        long called = w->bprm ? bpf_probe_read_kernel_str(w->raw, CALLED_MAX, (void *)READ64(w->bprm, K_linux_binprm__filename)) : 0;
        if (called < 2 || called == CALLED_MAX)
            called = 0;
        room -= called;
        if (length > room) {
            length = room;
            w->flags |= PROCESS_CUT;
        }
        length &= TEXT_MAX - 1;
        w->at = TEXT_MAX - length;
        if (bpf_probe_read_user(&w->text[w->at & (TEXT_MAX - 1)], length, (void *)job->pointer)) {
            w->at = TEXT_MAX; /* swapped out; the image is known all the same */
            w->flags |= PROCESS_CUT;
        }
        if (called) {
            w->at -= called;
            bpf_probe_read_kernel(&w->text[w->at & (TEXT_MAX - 1)], called & (CALLED_MAX - 1), w->raw);
            w->flags |= PROCESS_CALLED;
        }
        go(ctx, w, HOP_STORE);
    } else if (job->kind == JOB_RAW) { /* a path lies in raw, `cursor` bytes long */
        go(ctx, w, HOP_JOIN);
    } else {
        if (job->kind == JOB_STRING) {
            long size = bpf_probe_read_user_str(w->raw, TEXT_MAX, (void *)job->pointer);
            w->cursor = size > 0 ? size - 1 : 0;
        }
        /* JOB_TEXT: `cursor` bytes lie in raw already and are taken as they are. */
        u32 length = w->cursor & (TEXT_MAX - 1);
        w->at = TEXT_MAX - length;
        bpf_probe_read_kernel(&w->text[w->at & (TEXT_MAX - 1)], length, w->raw);
        go(ctx, w, HOP_STORE);
    }
}

/* The root the task sees: absolute names begin there. Call before the first job of an event. */
static __always_inline void start_jobs(struct work *w, void *task)
{
    void *fs = (void *)LOAD64(task, K_task_struct__fs);
    w->root_mount = LOAD64(fs, K_fs_struct__root__mnt) - K_mount__mnt;
    w->root_dentry = LOAD64(fs, K_fs_struct__root__dentry);
    w->steer.job = 0;
    w->steer.count = 0;
    w->steer.afford = AFFORD_UNASKED;
    w->steer.text_id = 0;
}

/* A text is complete: its id, 0 when there is nothing to tell. */
static __always_inline u64 complete(struct work *w)
{
    struct job *job = current_job(w);
    u32 sid = job->sid & (SIDS - 1);
    u64 id = 0;
    if (w->at > TEXT_MAX) { /* shorter than a moment ago: somebody renames */
        unresolved(w, LOSS_PATH_UNRESOLVED);
        w->at = TEXT_MAX;
    }
    if (w->at == TEXT_MAX && job->kind <= JOB_RAW && !w->steer.flaw) {
        w->at = TEXT_MAX - 1;
        w->text[TEXT_MAX - 1] = '/';
    }
    if (w->at < TEXT_MAX) {
        if (w->steer.flaw & FLAW_UNKNOWN) { /* it is no absolute path, and must not look like one */
            u32 start = w->at < 3 ? 0 : w->at - 3;
            KEEP(start);
            start &= TEXT_MAX - 1;
            w->text[start] = w->text[start + 1] = w->text[start + 2] = '.';
            w->at = start;
        }
        id = hash_text(w);
    }
    w->sids[sid] = id;
    w->steer.flaws = (w->steer.flaws & ~FLAWS(sid, 3)) | FLAWS(sid, w->steer.flaw);
    w->steer.flaw = 0;
    w->steer.beyond = 0;
    w->steer.job++;
    return id;
}

/* Inlined where paths end, with the end of the event: a tail call less each for the usual call. */
static __always_inline void store(void *ctx, struct work *w)
{
    u64 id = complete(w);
    if (w->steer.job >= w->steer.count && w->steer.after == HOP_FINISH) {
        finish_or_go(ctx, w, id);
        return;
    }
    if (w->steer.job >= w->steer.count && w->steer.after == HOP_ENFORCE && !w->steer.stage) { /* the verdict first: what is denied has more room */
        w->steer.text_id = id;
        w->steer.text_at = w->at;
    } else if (id) {
        if (w->steer.afford == AFFORD_UNASKED && w->scope.flags & SCOPE_ENFORCE_SIGNAL)
            w->steer.afford = AFFORD_VERDICT;
        announce_text(w, id, w->at);
    }
    next_job(ctx, w);
}
