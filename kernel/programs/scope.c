/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is watched: visibility and enforcement per cgroup, and which processes are left alone.
 *
 *     cgroup id -> scopes -+-> owner set: the scope of the container this cgroup was made in
 *                          +-> absent: config[HOST_VISIBILITY], no enforcement
 */
static __always_inline void scope_of(u64 cgroup, struct scope *out)
{
    struct scope *scope = scopes.lookup(&cgroup);
    if (scope && scope->owner) {
        u64 owner = scope->owner;
        scope = scopes.lookup(&owner);
    }
    if (scope) {
        *out = *scope;
        return;
    }
    out->table = 0;
    out->owner = 0;
    out->flags = 0;
    out->visibility = setting(CONFIG_HOST_VISIBILITY);
}

static __always_inline int is_excluded(u32 tgid)
{
    return excluded.lookup(&tgid) != 0;
}

static __always_inline int in_default_hierarchy(void *cgroup)
{
    void *root = (void *)READ64(cgroup, K_cgroup__root);
    return READ32(root, K_cgroup_root__hierarchy_id) == 0;
}

static __always_inline u64 cgroup_id(void *cgroup)
{
    return READ64(READ64(cgroup, K_cgroup__kn), K_kernfs_node__id);
}

static __always_inline void announce_cgroup(struct work *w, u64 id, u32 kind, const char *path)
{
    /* Right-aligned like every text would need its length first; the header's room is used from the left instead. */
    long size = bpf_probe_read_kernel_str(w->raw + sizeof(struct definition), TEXT_MAX, path);
    if (size < 1)
        size = 1;
    struct definition *head = (struct definition *)w->raw;
    head->id = id;
    head->kind = kind;
    head->size = kind == DEFINE_CGROUP ? size - 1 : 0;
    if (definitions.ringbuf_output(head, sizeof(*head) + (head->size & (TEXT_MAX - 1)), 1))
        lose(LOSS_DEFINITIONS_FULL);
}

/* cgroup_mkdir(cgroup, path): a container's cgroup is known, and watched, before anything runs in it. */
int on_cgroup_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
    void *cgroup = (void *)ctx->args[0];
    struct work *w = work();
    if (!w || !in_default_hierarchy(cgroup))
        return 0;
    u64 id = cgroup_id(cgroup), parent_id = 0;
    void *parent_node = (void *)READ64(READ64(cgroup, K_cgroup__kn), K_kernfs_node__parent);
    parent_id = READ64(parent_node, K_kernfs_node__id);
    announce_cgroup(w, id, DEFINE_CGROUP, (const char *)ctx->args[1]);
    struct scope fresh = {};
    struct scope *parent = scopes.lookup(&parent_id);
    if (parent && (parent->owner || parent->flags & SCOPE_CONTAINER)) {
        fresh.owner = parent->owner ? parent->owner : parent_id;
        fresh.flags = SCOPE_FRESH;
    } else {
        fresh.visibility = setting(CONFIG_NEW_VISIBILITY);
        fresh.flags = SCOPE_FRESH;
        if (!fresh.visibility)
            return 0;
    }
    if (scopes.insert(&id, &fresh))
        lose(LOSS_MAP_FULL);
    return 0;
}

int on_cgroup_rmdir(struct bpf_raw_tracepoint_args *ctx)
{
    void *cgroup = (void *)ctx->args[0];
    struct work *w = work();
    if (!w || !in_default_hierarchy(cgroup))
        return 0;
    u64 id = cgroup_id(cgroup);
    announce_cgroup(w, id, DEFINE_CGROUP_GONE, (const char *)ctx->args[1]);
    scopes.delete(&id);
    return 0;
}
