/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The matcher of the bpf-lsm backend: what the rules of a table say of a path. The judge's order, exactly: rules limited to a
 * source before others, then exact path, name, the longest directory, then what says most of the source; of equals the one that forbids. Its cost depends on the path
 * alone: one pass hashes it and asks for the directories on the way, at the depths where some rule is.
 */
#define SCAN_ROUNDS 2700 /* words and slashes of the longest path */
#define CHANGES (ACCESS_WRITE | ACCESS_APPEND | ACCESS_CREATE | ACCESS_TRUNCATE | ACCESS_DELETE | ACCESS_METADATA)
#define EACH_BYTE(b) (0x0101010101010101ULL * (b))
#define RANK(shape, weight) ((u64)(shape) << 48 | (u64)(u32)(weight) << 20) /* the last bits are the source's (struct rule) */

static __always_inline u32 forbids(struct asked *w, struct rule *rule)
{
    u32 flags = rule->flags;
    if (!flags)
        return rule->action == ACTION_BLOCK;
    if (flags & FLAG_OWNER_ONLY && (w->inode_owner == 0xffffffff || w->inode_owner != w->uid))
        return 1;
    if (flags & FLAG_NO_TERMINAL && w->tty)
        return 1;
    return flags & FLAG_READ_ONLY && w->access & CHANGES;
}

/* One rule that matches: it counts where none of a greater rank does. */
static __always_inline void weigh_rule(struct asked *w, u32 column, struct rule *rule)
{
    u64 rank = w->lookup.rank | (rule->rank & 0xfffff);
    if (rank < w->best[column].rank)
        return;
    u32 stop = forbids(w, rule);
    if (rank == w->best[column].rank && stop <= w->best[column].stop)
        return;
    w->best[column].rank = rank;
    w->best[column].stop = stop;
    w->best[column].index = rule->index;
}

/* A question to the table: rules for `id`, of this kind and rank. Its frame is the key alone: the stacks of five functions are full (512 bytes). */
int sub_lookup(u64 argument)
{
    struct asked *w = ASKED(argument);
    struct rule_key key = {.table = w->table, .path = w->lookup.id, .class_ = w->class_, .kind = w->lookup.kind};
    struct rule *rule = rules.lookup(&key);
    if (rule)
        weigh_rule(w, 1, rule);
    if (!(w->header.flags & TABLE_SOURCES))
        return 0;
#pragma clang loop unroll(disable)
    for (int i = 0; i < 4; i++) {
        key.source = w->sources[i & 3];
        rule = key.source ? rules.lookup(&key) : 0;
        if (rule)
            weigh_rule(w, 0, rule);
    }
    return 0;
}

static __always_inline void ask_for(struct asked *w, u64 id, u32 kind, u32 shape, u32 weight)
{
    w->lookup.id = id;
    w->lookup.kind = kind;
    w->lookup.rank = RANK(shape, weight);
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

/* ---- patterns: all of a table are one machine over bytes; its cost is the path's ---- */
#define MACHINE_HEAD 66 /* cells before the states: how many cells there are, the stride, the class of each byte (four in a cell) */
#define PATTERN_ROUNDS (TEXT_MAX / 8)

static __always_inline u32 cell(u32 index)
{
    u32 *found = patterns.lookup(&index);
    return found ? *found : 0;
}

int cb_pattern(u64 index)
{
    struct asked *w = CONTEXT();
    u32 at = w->machine.at, state = w->machine.state, base = w->machine.base, stride = w->machine.stride;
    if (at >= TEXT_MAX)
        return 1;
    u64 word = word_at(w, at);
    u32 left = TEXT_MAX - at;
#pragma clang loop unroll(disable)
    for (u32 i = 0; i < 8; i++) {
        if (i >= left)
            break;
        u32 byte = word & 255, class = cell(base + 2 + (byte >> 2)) >> (byte & 3) * 8 & 255;
        state = cell(base + MACHINE_HEAD + state * stride + 1 + class);
        word >>= 8;
    }
    w->machine.state = state;
    w->machine.at = at + 8;
    return state == 0; /* nothing can match any more */
}

/* The set that the machine whose first cell is `base` accepts the text in; 0: nothing covers it. State 0 is dead, 1 the first; a state's
 * first cell is its set. */
static __always_inline u32 accepted_by(struct asked *w, u32 base)
{
    u64 frame = (u64)w;
    w->machine.base = base;
    w->machine.stride = cell(base + 1);
    w->machine.state = 1;
    w->machine.at = w->at;
    bpf_loop_(PATTERN_ROUNDS, CALLBACK_PATTERN, &frame, 0);
    return w->machine.at >= TEXT_MAX ? cell(w->machine.base + MACHINE_HEAD + w->machine.state * w->machine.stride) : 0;
}

/* The rules of the patterns that cover the text. */
int sub_patterns(u64 argument)
{
    struct asked *w = ASKED(argument);
    u32 set = accepted_by(w, w->header.index);
    if (set)
        ask_for(w, set, RULE_PATTERN, 3, 1);
    return 0;
}

/* ---- presets that are about the text ---- */
#define TEXT8(a, b, c, d, e, f, g, h) \
    ((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 | (u64)(f) << 40 | (u64)(g) << 48 | (u64)(h) << 56)
#define BYTES(n) ((1ULL << 8 * (n)) - 1)

/* A memfd, or a file of /dev/shm or /run/shm. */
static __always_inline int in_memory(struct asked *w)
{
    u64 first = word_at(w, w->at), second = w->at + 8 < TEXT_MAX ? word_at(w, w->at + 8) : 0;
    return (first & BYTES(6)) == TEXT8('m', 'e', 'm', 'f', 'd', ':', 0, 0) || (first & BYTES(7)) == TEXT8('/', 'm', 'e', 'm', 'f', 'd', ':', 0) ||
           ((first == TEXT8('/', 'd', 'e', 'v', '/', 's', 'h', 'm') || first == TEXT8('/', 'r', 'u', 'n', '/', 's', 'h', 'm')) && (second & 255) == '/');
}

/* Whether the process that asks is called `number` in the procfs that the file lies in. */
static __always_inline int is_own(struct asked *w, u32 number)
{
    struct {
        u32 number;
        u32 pad;
        u64 ns;
    } inner = {};
    u64 super = READ64(w->inode, K_inode__i_sb);
    if (READ64(super, K_super_block__s_magic) != 0x9fa0 /* PROC_SUPER_MAGIC */)
        return 0;
    u64 pid = READ64(READ64(TASK(), K_task_struct__group_leader), K_task_struct__thread_pid);
    u32 level = READ32(pid, K_pid__level);
    bpf_probe_read_kernel(&inner, sizeof(inner), (void *)pid + K_pid__numbers + (level & 31) * sizeof(inner));
#ifdef K_proc_fs_info__pid_ns
    if (READ64(READ64(super, K_super_block__s_fs_info), K_proc_fs_info__pid_ns) != inner.ns)
        return 0;
#endif
    return inner.number == number;
}

/* Below /proc/NUMBER/ of another process. */
static __always_inline int of_another(struct asked *w)
{
    u32 at = w->at, number = 0;
    if (at >= TEXT_MAX || (word_at(w, at) & BYTES(6)) != TEXT8('/', 'p', 'r', 'o', 'c', '/', 0, 0))
        return 0;
    at += 6;
#pragma clang loop unroll(disable)
    for (int i = 0; i < 12; i++) { /* bytes past the text are zero */
        KEEP(at);
        u32 digit = w->text[at & (2 * TEXT_MAX - 1)] - '0';
        if (digit > 9)
            return i && digit == (u32)('/' - '0') && !is_own(w, number);
        number = number * 10 + digit;
        at++;
    }
    return 0;
}

/* Whether a preset stops what is asked about the text. */
int sub_preset(u64 argument)
{
    struct asked *w = ASKED(argument);
    u32 flags = w->header.flags;
    if (w->class_ == CLASS_PROCESS)
        return flags & TABLE_FILELESS && !w->exact && in_memory(w);
    if (!(flags & (TABLE_PROC | TABLE_ENVIRON)) || w->b.operation != OP_OPEN || !of_another(w))
        return 0;
    return flags & TABLE_PROC || word_at(w, TEXT_MAX - 8) == TEXT8('/', 'e', 'n', 'v', 'i', 'r', 'o', 'n');
}

#define PRESETS_ (TABLE_FILELESS | TABLE_PROC | TABLE_ENVIRON)

/* The rule of those that were weighed which decides, else what the class has for the rest. */
static __always_inline int decided(struct asked *w, u32 whitelist)
{
    w->index = ~0U;
    if (w->best[0].rank) {
        w->index = w->best[0].index;
        return w->best[0].stop;
    }
    if (w->best[1].rank) {
        w->index = w->best[1].index;
        return w->best[1].stop;
    }
    return w->header.flags & whitelist && !w->exact;
}

/* What the rules say of the text in the scratch: 1 to stop. */
int sub_verdict(u64 argument)
{
    struct asked *w = ASKED(argument);
    u32 flags = w->header.flags;
    w->best[0].rank = w->best[1].rank = 0;
    w->best[0].stop = w->best[1].stop = 0;
    scan_text(w, w->exact ? 0 : w->header.action);
    w->path = whole(w);
    u32 length = TEXT_MAX - w->at, slash = w->scan.slash;
    u64 object = w->header.action ? as_directory(w) : 0, name = flags & TABLE_NAMES && w->class_ == CLASS_PROCESS ? last_name(w) : 0;
    ask_for(w, w->path, RULE_EXACT, 5, 1);
    if (name)
        ask_for(w, name, RULE_EXECNAME, 4, 1);
    if (flags & TABLE_PATTERNS && !w->exact)
        sub_patterns_(w);
    if (object && !w->exact) {
        ask_for(w, w->scan.parent, RULE_DIRECTORY, 2, 2 * slash + 1);
        ask_for(w, object, RULE_DIRECTORY, 2, 2 * (length + 1) + 1);
        ask_for(w, object, RULE_RECURSIVE, 2, 2 * (length + 1));
    }
    int stop = decided(w, w->class_ == CLASS_PROCESS ? TABLE_WHITELIST_PROCESS : TABLE_WHITELIST_FILE);
    if (!stop && flags & PRESETS_)
        stop = sub_preset_(w);
    return stop;
}

/* What they say of the capability with this number. */
static __always_inline int of_capability(struct asked *w, u32 number)
{
    w->best[0].rank = w->best[1].rank = 0;
    w->best[0].stop = w->best[1].stop = 0;
    ask_for(w, number + 1, RULE_EXACT, 1, 1);
    return decided(w, TABLE_WHITELIST_CAPABILITIES);
}
