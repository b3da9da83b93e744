/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The matcher of the bpf-lsm backend: what the rules of a table say of a path. The judge's order, exactly: rules limited to a
 * source before others, then exact path, name, the longest directory; of equals the one that forbids. Its cost depends on the path
 * alone: one pass hashes it and asks for the directories on the way, at the depths where some rule is.
 */
#define SCAN_ROUNDS 2700 /* words and slashes of the longest path */
#define CHANGES (ACCESS_WRITE | ACCESS_APPEND | ACCESS_CREATE | ACCESS_TRUNCATE | ACCESS_DELETE | ACCESS_METADATA)
#define EACH_BYTE(b) (0x0101010101010101ULL * (b))
#define RANK(shape, weight) ((u64)(shape) << 32 | (u32)(weight))

static __always_inline u32 forbids(struct asked *w, struct rule *rule)
{
    u32 flags = rule->flags;
    if (!flags)
        return rule->action == ACTION_BLOCK;
    if (flags & FLAG_OWNER_ONLY && (w->inode_owner == 0xffffffff || w->inode_owner != w->uid))
        return 1;
    return flags & FLAG_READ_ONLY && w->access & CHANGES;
}

/* One rule that matches: it counts where none of a greater rank does. */
static __always_inline void weigh_rule(struct asked *w, u32 column, struct rule *rule, u64 rank)
{
    if (!rule || rank < w->best[column].rank)
        return;
    u32 stop = forbids(w, rule);
    if (rank == w->best[column].rank && stop <= w->best[column].stop)
        return;
    w->best[column].rank = rank;
    w->best[column].stop = stop;
    w->best[column].index = rule->index;
}

/* A question to the table: rules for `id`, of this kind and rank. */
int sub_lookup(u64 argument)
{
    struct asked *w = ASKED(argument);
    struct rule_key key = {.table = w->table, .path = w->lookup.id, .class_ = w->class_, .kind = w->lookup.kind};
    u32 weight = w->lookup.weight, shape = w->lookup.shape;
    struct rule *rule = rules.lookup(&key);
    if (rule)
        weigh_rule(w, 1, rule, RANK(shape, weight));
    if (!(w->header.flags & TABLE_SOURCES))
        return 0;
#pragma clang loop unroll(disable)
    for (int i = 0; i < 2; i++) {
        key.source = w->sources[i & 1];
        rule = key.source ? rules.lookup(&key) : 0;
        if (rule)
            weigh_rule(w, 0, rule, RANK(shape, weight));
    }
    return 0;
}

static __always_inline void ask_for(struct asked *w, u64 id, u32 kind, u32 shape, u32 weight)
{
    w->lookup.id = id;
    w->lookup.kind = kind;
    w->lookup.shape = shape;
    w->lookup.weight = weight;
    sub_lookup_(w);
}

/* The top bit of every byte of `word` that is a slash; exact, also for what stands right of one. */
static __always_inline u64 slashes_in(u64 word)
{
    u64 x = word ^ EACH_BYTE('/');
    return ~((x & EACH_BYTE(0x7f)) + EACH_BYTE(0x7f) | x | EACH_BYTE(0x7f));
}

int cb_scan(u64 index)
{
    struct asked *w = CONTEXT();
    u32 at = w->scan.at;
    if (at >= TEXT_MAX)
        return 1;
    u64 word = word_at(w, at), slashes = slashes_in(word) & ~w->scan.seen, id;
    struct sip copy = w->scan.sip;
    u32 length = at - w->at;
    if (slashes & ~(1ULL << 63)) { /* a slash inside the word: its directory ends with a part of the word */
        u64 low = slashes & -slashes;
        length += ((low >> 7) * 0x0001020304050607ULL >> 56) + 1;
        id = sip_end(&copy, word & ((low << 1) - 1), length);
        w->scan.seen |= low;
    } else {
        sip_word(&copy, word);
        w->scan.at = at + 8;
        w->scan.seen = 0;
        if (at + 8 > TEXT_MAX)
            return 1; /* the last bytes stay out of the state: whole() and as_directory() put them behind it */
        w->scan.sip = copy;
        if (!slashes)
            return 0;
        length += 8;
        id = sip_end(&copy, 0, length);
    }
    w->scan.slash = length;
    w->scan.parent = id;
    u32 depth = w->scan.depth;
    if (depth < 31)
        w->scan.depth = depth + 1;
    if (w->scan.depths >> (depth & 31) & 1)
        ask_for(w, id, RULE_RECURSIVE, 2, 2 * length);
    return 0;
}

static __always_inline void scan_text(struct asked *w, u32 depths)
{
    u64 frame = (u64)w;
    w->scan.at = w->at;
    w->scan.seen = 0;
    w->scan.slash = 0;
    w->scan.parent = 0;
    w->scan.depth = 0;
    w->scan.depths = depths;
    sip_start(&w->scan.sip);
    bpf_loop_(SCAN_ROUNDS, CALLBACK_SCAN, &frame, 0);
}

/* Id of the text that was scanned. */
static __always_inline u64 whole(struct asked *w)
{
    struct sip s = w->scan.sip;
    u32 length = TEXT_MAX - w->at, left = length & 7;
    u64 tail = left ? word_at(w, TEXT_MAX - left) : 0;
    return sip_end(&s, tail, length);
}

/* The same with a slash behind it: a directory rule covers the directory itself too. */
static __always_inline u64 as_directory(struct asked *w)
{
    struct sip s = w->scan.sip;
    u32 length = TEXT_MAX - w->at, left = length & 7;
    u64 word = left ? word_at(w, TEXT_MAX - left) : 0;
    word |= (u64)'/' << left * 8;
    if (left == 7) {
        sip_word(&s, word);
        word = 0;
    }
    return sip_end(&s, word, length + 1);
}

/* Id of the last component. */
static __always_inline u64 last_name(struct asked *w)
{
    struct sip s;
    u32 at = w->at + w->scan.slash, length;
    if (at >= TEXT_MAX)
        return 0;
    length = TEXT_MAX - at;
    sip_start(&s);
#pragma clang loop unroll(disable)
    for (int i = 0; i < 32; i++) { /* it has 255 bytes at most */
        KEEP(at);
        if (at + 8 > TEXT_MAX)
            break;
        sip_word(&s, word_at(w, at));
        at += 8;
    }
    u64 tail = at < TEXT_MAX ? word_at(w, at) : 0;
    return sip_end(&s, tail, length);
}

/* What the rules say of the text in the scratch: 1 to stop. */
int sub_verdict(u64 argument)
{
    struct asked *w = ASKED(argument);
    u32 flags = w->header.flags;
    w->best[0].rank = w->best[1].rank = 0;
    w->best[0].stop = w->best[1].stop = 0;
    scan_text(w, w->header.action);
    w->path = whole(w);
    u32 length = TEXT_MAX - w->at, slash = w->scan.slash;
    u64 object = w->header.action ? as_directory(w) : 0, name = flags & TABLE_NAMES && w->class_ == CLASS_PROCESS ? last_name(w) : 0;
    ask_for(w, w->path, RULE_EXACT, 5, 1);
    if (name)
        ask_for(w, name, RULE_EXECNAME, 4, 1);
    if (object) {
        ask_for(w, w->scan.parent, RULE_DIRECTORY, 2, 2 * slash + 1);
        ask_for(w, object, RULE_DIRECTORY, 2, 2 * (length + 1) + 1);
        ask_for(w, object, RULE_RECURSIVE, 2, 2 * (length + 1));
    }
    w->index = ~0U;
    if (w->best[0].rank) {
        w->index = w->best[0].index;
        return w->best[0].stop;
    }
    if (w->best[1].rank) {
        w->index = w->best[1].index;
        return w->best[1].stop;
    }
    return (flags & (w->class_ == CLASS_PROCESS ? TABLE_WHITELIST_PROCESS : TABLE_WHITELIST_FILE)) != 0;
}
