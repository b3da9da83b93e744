/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Paths, from the right: hop_join takes a user's string apart, hop_walk climbs the dentries above it.
 *
 * A path that cannot be resolved or does not fit is counted, marked ACCESS_PARTIAL and never passed off as whole: of one that
 * does not fit the beginning is told, with a slash and three dots behind it; of one that could not be resolved the end, with three dots before it.
 */
#define WALK_STEPS 256 /* components per program: the 2048 that fit in PATH_MAX take 8 of the 33 tail calls */
#define JOIN_STEPS 1024

#ifdef K_CAST
/* Pointers that can be read through: each member is one load, and only what is looked at is read. */
struct dentry_part {
    void *parent;
    u32 length;
    u64 name;
};

struct mount_part {
    void *parent;
    void *mountpoint;
    void *root;
};

static __always_inline int read_dentry(struct dentry_part *d, void *dentry)
{
    d->parent = (void *)GET64(dentry, K_dentry__d_parent);
    d->length = GET32(dentry, K_dentry__d_name + 4);
    d->name = GET64(dentry, K_dentry__d_name + 8);
    return d->parent ? 0 : -1; /* a load that faults gives 0 */
}

static __always_inline void read_mount(struct mount_part *m, void *mount)
{
    m->parent = (void *)GET64(mount, K_mount__mnt_parent);
    m->mountpoint = (void *)GET64(mount, K_mount__mnt_mountpoint);
    m->root = (void *)GET64(mount, K_mount__mnt);
}

#define NAME_WORD(d, dentry, i) GET64(dentry, K_dentry__d_iname + 8 * (i))
#else
/* One probe read for all of it; members.py refuses a kernel where these members do not lie like this. */
struct dentry_part {
    void *parent;
    u32 hash;
    u32 length;
    u64 name;
    u64 inode;
#ifdef K_NAME_WORDS
    u64 inline_name[K_NAME_WORDS]; /* where short names lie: nearly all */
#endif
};

struct mount_part {
    void *parent;
    void *mountpoint;
    void *root;
};

static __always_inline int read_dentry(struct dentry_part *d, void *dentry)
{
    return bpf_probe_read_kernel(d, sizeof(*d), dentry + K_dentry__d_parent);
}

static __always_inline void read_mount(struct mount_part *m, void *mount)
{
    __builtin_memset(m, 0, sizeof(*m));
    bpf_probe_read_kernel(m, sizeof(*m), mount + K_mount__mnt_parent);
}

#define NAME_WORD(d, dentry, i) (d)->inline_name[i]
#endif

/* Puts raw[start..start+length) before the text, with a slash in front. */
static __always_inline void prepend(struct work *w, const void *from, u32 length)
{
    u32 at = w->at;
    if (at > TEXT_MAX) { /* second walk: left out whole, a part of a name is another name */
        at -= length + 1;
        if (at <= TEXT_MAX) {
            at = TEXT_MAX - CUT_BYTES;
            *(u32 *)&w->text[TEXT_MAX - CUT_BYTES] = CUT_MARK;
        }
        w->at = at;
        w->steer.dropped++;
        return;
    }
    if (length + 1 > at) { /* only counted from here on: with `at` 0 nothing more fits */
        w->steer.excess += length + 1 - at;
        w->at = 0;
        return;
    }
    at -= length + 1;
    w->at = at;
    at &= TEXT_MAX - 1;
    w->text[at] = '/';
    KEEP(length); /* its mask must be seen by the verifier */
    bpf_probe_read_kernel(&w->text[at + 1], length & (TEXT_MAX - 1), from);
}

/* The name of a dentry that was read. Short names lie in the dentry and are moved by words, the last byte of the last
 * word next to the text: what is too much is on the left, where the next component or nothing comes. */
static __always_inline void prepend_dentry(struct work *w, struct dentry_part *d, void *dentry)
{
    u32 length = d->length & 255;
#ifdef K_NAME_WORDS
    u32 at = w->at;
    if (d->name == (u64)dentry + K_dentry__d_iname && length - 1 < 8 * K_NAME_WORDS && at - 8 * K_NAME_WORDS - 1 < TEXT_MAX - 8 * K_NAME_WORDS) {
        u32 whole = (length + 7) & ~7u, shift = (whole - length) * 8, from = (at - whole) & (TEXT_MAX - 1);
        u64 before = 0;
#pragma unroll
        for (int i = 0; i < K_NAME_WORDS; i++) {
            if (8 * i >= length)
                break;
            u64 word = NAME_WORD(d, dentry, i);
            STORE_WORD(&w->text[from + 8 * i], word << shift | before >> 1 >> (63 - shift));
            before = word;
        }
        at -= length + 1;
        w->at = at;
        w->text[at & (TEXT_MAX - 1)] = '/';
        return;
    }
#endif
    prepend(w, (void *)d->name, length);
}

static __always_inline void component(struct work *w, u32 start, u32 end)
{
    u32 length = (end - start) & (TEXT_MAX - 1);
    start &= TEXT_MAX - 1;
    if (length == 0)
        return;
    /* Without a branch for each byte: the verifier would follow every way through them, for each byte of the text. */
    u32 first = w->raw[start] ^ '.', same = first | (length ^ 1), above = first | (w->raw[start + 1] ^ '.') | (length ^ 2);
    KEEP(same);
    KEEP(above);
    if (!same)
        return;
    if (!above) {
        w->skip++;
        return;
    }
    if (w->skip) {
        w->skip--;
        return;
    }
    prepend(w, &w->raw[start], length);
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
        if (may_go_on(w)) {
            go(ctx, w, HOP_JOIN);
            return 0;
        }
        unresolved(w, LOSS_CHAIN_BROKEN);
        store(ctx, w);
        return 0;
    }
    component(w, 0, w->end);
    if (w->raw[0] == '/') {
        w->skip = 0; /* ".." of the root is the root */
        w->dentry = w->root_dentry;
        w->mount = w->root_mount;
    } else {
        struct job *job = current_job(w);
        walk_from_fd(w, TASK(), job->fd);
    }
    go(ctx, w, HOP_WALK);
    return 0;
}

/* From w->dentry in w->mount to the top of the mount namespace, past a root that the task set with chroot(2), which would
 * otherwise give a file another path. Only ".." stops at the task's root. Returns when the path is whole or cannot become so;
 * after `steps` components hop_walk goes on. */
static __always_inline void climb(void *ctx, struct work *w, int steps)
{
    if (!w->dentry)
        return;
    void *root_dentry = (void *)w->root_dentry, *root_mount = (void *)w->root_mount;
    void *dentry = CAST(w->dentry, dentry), *mount = CAST(w->mount, mount);
    struct mount_part m;
    struct dentry_part d;
    int deep = 0;
    read_mount(&m, mount);
    for (int i = 0; i < steps; i++) {
        deep = 1;
        if (w->skip && dentry == root_dentry && mount == root_mount)
            w->skip = 0;
        if (dentry == m.root) {
            if (m.parent != mount && m.parent) {
                dentry = m.mountpoint;
                mount = m.parent;
                read_mount(&m, mount);
                continue;
            }
            /* The top of the mount namespace, a root without parent; or a mount that is detached, as what runc runs from and
             * what open_tree(2) clones: its place in its filesystem is told, or /etc would have no name for who cloned it. ".." stays in it. */
            w->skip = 0;
        }
        if (read_dentry(&d, dentry)) {
            unresolved(w, LOSS_PATH_UNRESOLVED);
            deep = 0;
            break;
        }
        if (d.parent == dentry) { /* has no place in a tree: memfd, anonymous inode; d_path() knows no slash either */
            u32 at = w->at;
            KEEP(at); /* the verifier cannot follow what the compiler makes of a known `at` */
            if (d.length && at == TEXT_MAX) {
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
        w->dentry = (u64)dentry;
        w->mount = (u64)mount;
        if (may_go_on(w))
            go(ctx, w, HOP_WALK);
        unresolved(w, LOSS_CHAIN_BROKEN);
    } else if (w->steer.excess) {
        lose(LOSS_PATH_TRUNCATED);
        if (!w->steer.beyond && current_job(w)->kind <= JOB_FD && may_go_on(w))
            go(ctx, w, HOP_AGAIN);
        w->steer.flaw |= FLAW_UNKNOWN;
    }
}

/* The path of the current job is longer than the text, by `excess`: the same walk again, for its beginning. */
int hop_again(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    w->at = TEXT_MAX - 1;
    for (int i = 0; i < NAME_BYTES; i++) { /* `at` in the map, as in hop_join */
        if (w->text[(w->at - 1) & (TEXT_MAX - 1)] == '/')
            break;
        w->at--;
    }
    w->at = hidden(w->at) & (TEXT_MAX - 1);
    w->name = hash_text(w);
    w->steer.flaw |= FLAW_CUT;
    w->steer.beyond = w->steer.excess + 1 + CUT_BYTES;
    w->steer.excess = 0;
    w->steer.dropped = 0;
    next_job(ctx, w);
    return 0;
}

int hop_walk(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    climb(ctx, w, WALK_STEPS);
    store(ctx, w);
    return 0;
}

int hop_finish(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (w)
        finish(w, w->steer.text_id);
    return 0;
}
