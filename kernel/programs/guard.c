/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cgroup backend: socket calls of a container that its rules forbid get EPERM before anything is sent.
 *
 * Two questions, either may stop a call: may this kind of socket be used (DIRECTION_CREATE), and may this address and port be
 * talked to or taken (DIRECTION_SEND, DIRECTION_BIND). Each is a fixed number of trie lookups, whatever the number of rules:
 * source or any, protocol or type or any, port or any. The greatest rank wins, the stricter action among equals.
 * The denial is noted in `denials`, where the event of the stopped call picks it up: one denial, one event.
 */
BPF_F_TABLE("lpm_trie", struct net_key, struct rule, net_rules, NET_RULES, 1);

#define NO_OPINION 0

struct question {
    struct net_key key;
    u32 rank;
    u32 action;
};

static __always_inline void weigh(struct question *q)
{
    struct rule *rule = net_rules.lookup(&q->key);
    if (!rule)
        return;
    if (q->action == NO_OPINION || rule->rank > q->rank || (rule->rank == q->rank && rule->action > q->action)) {
        q->rank = rule->rank;
        q->action = rule->action;
    }
}

/* Every combination a rule may have been written for. */
static __always_inline u32 ask(struct question *q, u32 direction, u64 source, u8 protocol, u8 type, u16 port)
{
    q->key.direction = direction;
    q->rank = 0;
    q->action = NO_OPINION;
#pragma unroll
    for (int i = 0; i < 12; i++) {
        if ((i & 1 && !source) || (i >= 6 && !port))
            continue;
        q->key.source = i & 1 ? source : 0;
        q->key.protocol = i / 2 % 3 == 0 ? 0 : i / 2 % 3 == 1 ? type : protocol;
        q->key.port = i >= 6 ? port : 0;
        weigh(q);
    }
    return q->action;
}

static __always_inline u8 protocol_of(u32 family, u32 type, u32 protocol)
{
    if (protocol)
        return protocol;
    return type == 1 ? 6 : type == 2 ? 17 : 0;
}

/* 1: go on, 0: EPERM. `direction` 0: there is no address to ask about. */
static __always_inline int guard(u32 direction, u32 family, u32 type, u32 protocol, u32 address0, u32 address1, u32 address2, u32 address3, u16 port)
{
    u64 cgroup = bpf_get_current_cgroup_id(), pid_tgid = bpf_get_current_pid_tgid();
    u32 tgid = pid_tgid >> 32, backend = BACKEND_CGROUP;
    struct scope scope;
    struct question q = {};
    scope_of(cgroup, &scope);
    if (!(scope.flags & SCOPE_ENFORCE_CGROUP) || is_excluded(tgid))
        return 1;
    struct image *image = processes.lookup(&tgid);
    u64 source = image ? image->executable : 0;
    u8 number = protocol_of(family, type, protocol);
    q.key.table = scope.table;
    q.key.family = family;
    q.key.prefix = NET_FIXED_BITS;
    u32 kind = ask(&q, DIRECTION_CREATE, source, number, 0xf0 | (type & 0xf), 0);
    if (kind == ACTION_BLOCK || (kind == NO_OPINION && scope.flags & SCOPE_WHITELIST_NETWORK))
        goto deny;
    if (!direction)
        return 1;
    q.key.prefix = NET_FIXED_BITS + (family == AF_INET_ ? 32 : 128);
    ((u32 *)q.key.address)[0] = address0;
    ((u32 *)q.key.address)[1] = address1;
    ((u32 *)q.key.address)[2] = address2;
    ((u32 *)q.key.address)[3] = address3;
    if (ask(&q, direction, source, number, 0xf0 | (type & 0xf), port) != ACTION_BLOCK)
        return 1;
deny:
    denials.update(&pid_tgid, &backend);
    return 0;
}

int guard_sock_create(struct bpf_sock *ctx)
{
    return guard(0, ctx->family, ctx->type, ctx->protocol, 0, 0, 0, 0, 0);
}

#define GUARD4(name, direction)                                                                                        \
    int guard_##name##4(struct bpf_sock_addr *ctx)                                                                     \
    {                                                                                                                  \
        return guard(direction, AF_INET_, ctx->type, ctx->protocol, ctx->user_ip4, 0, 0, 0, swap16(ctx->user_port));   \
    }
#define GUARD6(name, direction)                                                                                        \
    int guard_##name##6(struct bpf_sock_addr *ctx)                                                                     \
    {                                                                                                                  \
        return guard(direction, AF_INET6_, ctx->type, ctx->protocol, ctx->user_ip6[0], ctx->user_ip6[1],               \
                     ctx->user_ip6[2], ctx->user_ip6[3], swap16(ctx->user_port));                                      \
    }
GUARD4(bind, DIRECTION_BIND)
GUARD6(bind, DIRECTION_BIND)
GUARD4(connect, DIRECTION_SEND)
GUARD6(connect, DIRECTION_SEND)
GUARD4(sendmsg, DIRECTION_SEND)
GUARD6(sendmsg, DIRECTION_SEND)
