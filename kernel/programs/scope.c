/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is watched: visibility and enforcement per cgroup, and which processes are left alone.
 *
 *     cgroup id -> scopes -> absent: the nearest ancestor that is in scopes -> absent: config[HOST_VISIBILITY], no enforcement
 *
 * A scope that the kernel made at birth and nobody has claimed says only what is watched: a claimed ancestor goes before it, however
 * late it was claimed. Or a cgroup that is older than its container's rules would be held by none.
 * So a cgroup inside a container needs no entry, and none is made for it: a container that makes thousands fills nothing.
 */
#define LEVELS 32 /* of the hierarchy that are asked: what runs containers puts them within ten */

static __always_inline u64 kin_check(u64 cgroup, u64 owner, u64 generation)
{
    return cgroup + owner * 0x9e3779b97f4a7c15ULL + generation * 0xc2b2ae3d27d4eb4fULL;
}

static __always_inline int unclaimed(struct scope *scope)
{
    return (scope->flags & (SCOPE_FRESH | SCOPE_CONTAINER)) == SCOPE_FRESH;
}

/* Of a cgroup that has no claimed scope of its own: the current task's, or that of the socket that sends the packet `skb`, which may be
 * another's, who was interrupted. Level by level, and remembered until somebody writes scopes. */
static __always_inline u64 nearest_with_scope(u64 cgroup, void *skb)
{
    u64 generation = setting(CONFIG_GENERATION); /* strictly before the lookups: what is written meanwhile counts it up */
    u32 slot = cgroup & (KIN - 1);
    struct kin *kin = kinship.lookup(&slot);
    if (!kin)
        return 0;
    u64 owner = kin->owner;
    if (kin->check == kin_check(cgroup, owner, generation))
        return owner;
    owner = hidden(0); /* a zero that it knew would be told apart from each level's answer, in every program, from here to its end */
    u64 claimed = hidden(0);
    for (int level = 1; level < LEVELS; level++) {
        u64 ancestor = skb ? bpf_skb_ancestor_cgroup_id(skb, level) : bpf_get_current_ancestor_cgroup_id(level);
        if (!ancestor || ancestor == cgroup)
            break;
        struct scope *scope = scopes.lookup(&ancestor);
        if (!scope)
            continue;
        /* Without a branch: the verifier would go through the rest of the loop once more for each. */
        u64 kept = 0 - hidden(unclaimed(scope));
        claimed = (claimed & kept) | (ancestor & ~kept);
        owner = ancestor;
    }
    if (claimed)
        owner = claimed;
    kin->owner = owner;
    kin->check = kin_check(cgroup, owner, generation);
    return owner;
}

/* Returns the cgroup whose scope it is, which pays for its new names: what a container makes inside does not multiply its share. */
static __always_inline u64 scope_for(u64 cgroup, struct scope *out, void *skb)
{
    struct scope *scope = scopes.lookup(&cgroup);
    u64 payer = cgroup;
    if (!scope || unclaimed(scope)) {
        u64 owner = nearest_with_scope(cgroup, skb);
        struct scope *above = owner ? scopes.lookup(&owner) : 0;
        if (above && (!scope || !unclaimed(above))) {
            payer = owner;
            scope = above;
        }
    }
    if (scope) {
        *out = *scope;
        return payer;
    }
    out->table = 0;
    out->reserved = 0;
    out->flags = 0;
    out->visibility = setting(CONFIG_HOST_VISIBILITY);
    return payer;
}

static __always_inline u64 scope_of(u64 cgroup, struct scope *out)
{
    return scope_for(cgroup, out, 0);
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
    hasten();
}

/* cgroup_mkdir(cgroup, path): a container's cgroup is known, and watched, before anything runs in it. */
int on_cgroup_mkdir(struct bpf_raw_tracepoint_args *ctx)
{
    void *cgroup = (void *)ctx->args[0];
    struct work *w = work();
    if (!w || !in_default_hierarchy(cgroup))
        return 0;
    u64 id = cgroup_id(cgroup), node = READ64(cgroup, K_cgroup__kn);
    announce_cgroup(w, id, DEFINE_CGROUP, (const char *)ctx->args[1]);
    for (int level = 0; level < LEVELS; level++) {
        node = READ64(node, K_kernfs_node__parent);
        if (!node)
            break;
        u64 ancestor = READ64(node, K_kernfs_node__id);
        struct scope *scope = scopes.lookup(&ancestor);
        if (scope && scope->flags & SCOPE_CONTAINER)
            return 0; /* that scope is this cgroup's too */
    }
    struct scope fresh = {};
    fresh.visibility = setting(CONFIG_NEW_VISIBILITY);
    fresh.flags = SCOPE_FRESH;
    if (!fresh.visibility)
        return 0;
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
