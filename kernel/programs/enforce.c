/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The signal backend: an exec or open that the scope's rules forbid ends its process before it goes on.
 *
 *     hop_enforce (one pass over the path: the id of every directory on the way; again while long)
 *         -> hop_decide (pick, kill) -> hop_finish
 *         -> hop_ascend (where there are many directories: the deepest with a rule; again while many) -> hop_decide
 *
 * The order is the judge's: rules limited to the acting executable first, then exact path, last component, directories from
 * the deepest upwards. Never killed: pid 1, excluded processes, anything in the root cgroup.
 */
#define DECIDE_DIRECTORIES 32 /* as many as hop_decide looks up itself: deeper paths are rare */
#define ASCEND_DIRECTORIES 512
#define EACH_BYTE(b) (0x0101010101010101ULL * (b))
#define CHANGES (ACCESS_WRITE | ACCESS_APPEND | ACCESS_CREATE | ACCESS_TRUNCATE | ACCESS_DELETE | ACCESS_METADATA)

static __always_inline struct rule *find_rule(struct work *w, u64 path, u64 source, u32 kind)
{
    struct rule_key key = {};
    key.table = w->scope.table;
    key.path = path;
    key.source = source;
    key.class_ = w->scan.class_;
    key.kind = kind;
    return rules.lookup(&key);
}

/* The rule of a directory, where no deeper one has one. 1 when nothing further up can matter: a rule for the source was found, or
 * there is no source and one for anybody was. */
static __always_inline int directory(struct work *w, u64 id, u32 kind)
{
    struct scan *scan = &w->scan;
    struct rule *rule = find_rule(w, id, scan->source, kind);
    if (rule) { /* without a source both lookups ask for the same, and hop_decide does not look at deep[0] then */
        scan->deep[0] = *rule;
        if (!scan->source && !scan->deep[1].action)
            scan->deep[1] = *rule;
        return 1;
    }
    if (!scan->source || scan->deep[1].action)
        return 0;
    rule = find_rule(w, id, 0, kind);
    if (rule)
        scan->deep[1] = *rule;
    return 0;
}

/* Up from directory `next`, `most` of them. 1 when all were looked at that matter. */
static __always_inline int ascend(struct work *w, int most)
{
    for (int i = 0; i < most; i++) {
        u32 next = w->scan.next;
        if (!next)
            return 1;
        w->scan.next = --next;
        if (directory(w, w->directories[next & (DIRECTORIES - 1)], RULE_RECURSIVE)) {
            w->scan.next = 0;
            return 1;
        }
    }
    return !w->scan.next;
}

static __always_inline void start_scan(struct work *w)
{
    struct scan *scan = &w->scan;
    scan->at = w->at;
    scan->seen = 0;
    scan->slash = 0;
    scan->count = 0;
    scan->deep[0].action = 0;
    scan->deep[1].action = 0;
    scan->class_ = w->b.operation == OP_EXEC ? CLASS_PROCESS : CLASS_FILE;
    scan->source = w->b.executable;
    if (w->b.operation == OP_EXEC && w->b.parent)
        scan->source = w->b.parent;
    if (w->b.script && !w->steer.plain)
        scan->source = w->b.script;
    scan->start = w->at;
    sip_start(&scan->sip);
}

/* The top bit of every byte of `word` that is a slash; exact, also for what stands right of one. */
static __always_inline u64 slashes_of(u64 word)
{
    u64 x = word ^ EACH_BYTE('/');
    return ~((x & EACH_BYTE(0x7f)) + EACH_BYTE(0x7f) | x | EACH_BYTE(0x7f));
}

int hop_enforce(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    struct scan *scan = &w->scan;
    if (!w->steer.scanning) {
        w->steer.scanning = 1;
        start_scan(w);
    }
    for (int i = 0; i < SCAN_STEPS; i++) {
        u32 at = scan->at;
        if (at >= TEXT_MAX)
            break;
        u64 word = text_word(w, at), slashes = slashes_of(word) & ~scan->seen, part = 0;
        struct sip copy = scan->sip;
        u32 length = at - w->at;
        if (slashes & ~(1ULL << 63)) { /* a slash inside the word: its directory ends with a part of the word */
            u64 low = slashes & -slashes;
            length += ((low >> 7) * 0x0001020304050607ULL >> 56) + 1;
            part = word & ((low << 1) - 1);
            scan->seen |= low;
        } else {
            sip_word(&copy, word);
            scan->at = at + 8;
            scan->seen = 0;
            if (at + 8 > TEXT_MAX)
                break; /* the last bytes stay out of the state: object_id() puts a slash behind them */
            scan->sip = copy;
            if (!slashes)
                continue;
            length += 8;
        }
        scan->slash = length;
        w->directories[scan->count & (DIRECTORIES - 1)] = sip_end(&copy, part, length);
        scan->count++;
    }
    if (scan->at < TEXT_MAX && w->steer.steps < STEPS - 2) {
        go(ctx, w, HOP_ENFORCE);
        return 0;
    }
    scan->next = scan->count;
    go(ctx, w, HOP_DECIDE);
    return 0;
}

/* Id of the path with a slash at its end: a directory rule covers the directory itself too. */
static __always_inline u64 object_id(struct work *w)
{
    struct sip s = w->scan.sip;
    u32 length = TEXT_MAX - w->at, left = length & 7;
    u64 word = left ? text_word(w, TEXT_MAX - left) : 0;
    word |= (u64)'/' << left * 8;
    if (left == 7) {
        sip_word(&s, word);
        word = 0;
    }
    return sip_end(&s, word, length + 1);
}

/* 1 when the rule forbids what was done. */
static __always_inline int forbids(struct work *w, struct rule *rule)
{
    u32 flags = rule->flags;
    if (rule->action == ACTION_AUDIT)
        return 0;
    if (!flags)
        return rule->action == ACTION_BLOCK;
    /* What has just been unlinked or renamed has no owner to ask any more: it is told, and nobody is killed for not being known. */
    u32 by_name = w->b.owner == 0xffffffff && w->b.operation > OP_CREATE;
    if (flags & FLAG_OWNER_ONLY && !by_name && (w->b.owner == 0xffffffff || w->b.owner != w->b.uid))
        return 1;
    return flags & FLAG_READ_ONLY && w->b.access & CHANGES;
}

/* What is deepest comes first: the path itself as a directory, then the directory it lies in. 1 as `directory`. */
static __always_inline int leaf(struct work *w, u32 flaw)
{
    u64 object = object_id(w);
    u32 count = w->scan.count;
    if (!(flaw & FLAW_CUT) && (directory(w, object, RULE_DIRECTORY) || directory(w, object, RULE_RECURSIVE)))
        return 1;
    if (!count || (flaw & FLAW_CUT && w->steer.dropped > 1)) /* it lies in a directory that is not in the text */
        return 0;
    return directory(w, w->directories[(count - 1) & (DIRECTORIES - 1)], RULE_DIRECTORY);
}

/* More directories than hop_decide takes on. */
int hop_ascend(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    if (!ascend(w, ASCEND_DIRECTORIES) && w->steer.steps < STEPS - 2)
        go(ctx, w, HOP_ASCEND);
    else
        go(ctx, w, HOP_DECIDE);
    return 0;
}

int hop_decide(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    struct scan *scan = &w->scan;
    u32 whitelist = scan->class_ == CLASS_PROCESS ? SCOPE_WHITELIST_PROCESS : SCOPE_WHITELIST_FILE;
    u32 sid = w->steer.stage == STAGE_SECOND ? SID_RESOURCE2 : SID_RESOURCE;
    u32 tgid = bpf_get_current_pid_tgid() >> 32, flaw = w->steer.flaws >> 2 * sid & 3;
    int stop = (w->scope.flags & whitelist) != 0, found = 0;
    u64 path = w->sids[sid], name = w->name;
    if (!w->steer.ascending) {
        w->steer.ascending = 1;
        if (flaw & FLAW_UNKNOWN || w->at >= TEXT_MAX || scan->at < TEXT_MAX) {
            w->steer.flaws |= FLAWS(sid, FLAW_UNKNOWN);
            flaw |= FLAW_UNKNOWN;
        } else if (leaf(w, flaw)) {
            scan->next = 0;
        } else if (!ascend(w, DECIDE_DIRECTORIES) && w->steer.steps < STEPS - 2) {
            go(ctx, w, HOP_ASCEND);
            return 0;
        }
    }
    if (flaw & FLAW_UNKNOWN || scan->next) { /* no rule can be asked: what the scope says of such paths holds, and it is told */
        stop |= (w->scope.flags & SCOPE_CLOSED) != 0;
        w->steer.visible = 1;
        goto verdict;
    }
    if (flaw & FLAW_CUT) { /* the whole path is longer than that of any rule */
        path = 0;
    } else {
        w->at = (w->at + scan->slash) & (TEXT_MAX - 1);
        name = hash_text(w);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u64 source = i ? 0 : scan->source;
        struct rule *rule = 0;
        if (found || (!i && !source))
            continue;
        rule = find_rule(w, path, source, RULE_EXACT);
        if (!rule)
            rule = find_rule(w, name, source, RULE_EXECNAME);
        if (!rule && scan->deep[i].action)
            rule = &scan->deep[i];
        if (!rule && !i && w->b.script && !w->steer.plain) { /* once more, for the interpreter and for anybody */
            w->steer.plain = 1;
            w->steer.scanning = w->steer.ascending = 0;
            w->at = scan->start;
            go(ctx, w, HOP_ENFORCE);
            return 0;
        }
        if (rule) {
            found = 1;
            stop = forbids(w, rule);
        }
    }
verdict:
    if (w->ret < 0 && w->b.operation != OP_EXEC)
        stop = 0; /* it failed by itself; ending the process would punish a question */
    if (stop && tgid > 1 && w->b.cgroup > 1 && !is_excluded(tgid)) {
        if (bpf_send_signal(9) == 0) {
            w->b.enforcer = BACKEND_SIGNAL;
            w->steer.visible = 1;
        }
    }
    if (w->steer.stage) { /* another path of the same event */
        w->steer.scanning = w->steer.ascending = w->steer.plain = 0;
        if (w->steer.stage == STAGE_SECOND)
            go(ctx, w, HOP_PATHS);
        else
            go(ctx, w, HOP_SCRIPT);
    } else if (w->steer.visible) {
        go(ctx, w, HOP_FINISH);
    }
    return 0;
}

/* io_uring_setup: what goes through the ring is no system call and no rule sees it, so the ring itself is refused where asked. */
int hop_uring(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    u32 tgid = bpf_get_current_pid_tgid() >> 32;
    if (w->scope.flags & SCOPE_STOP_IO_URING && w->ret >= 0 && tgid > 1 && w->b.cgroup > 1 && !is_excluded(tgid)) {
        if (bpf_send_signal(9) == 0) {
            w->b.enforcer = BACKEND_SIGNAL;
            w->steer.visible = 1;
        }
    }
    if (w->steer.visible)
        go(ctx, w, HOP_FINISH);
    return 0;
}
