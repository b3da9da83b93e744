/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Names that nobody asks for. The processor of this machine says of a directory and a container that no rule can match what lies
 * in it, and that nobody logs what it opens there one by one (`quiet`). A container that has had its share of new names in this window has the
 * files of such a directory told as the directory, marked UNTOLD: counts stay exact, and a judge would have said nothing of any.
 *
 * Entries are deleted strictly before a policy or an identity that may want the names is in force. Neighbours: budget.c (whose
 * share), processors/quiet.py (who says so).
 */
BPF_TABLE("lru_hash", struct quiet_key, u64, quiet, 4096);
#define NAME_BYTES 256 /* NAME_MAX and a slash */

/* Whether the container has asked for as many new names in this window as it may have in any case. */
static __always_inline int has_its_share(struct work *w)
{
    struct budget *budget = budgets.lookup(&w->payer);
    u32 share = NEW_PER_SECOND / 16 >> (setting(CONFIG_SPARED) & 7);
    return budget && budget->window == w->o.time >> WINDOW_SHIFT && budget->asked[TIER_FAILED] + budget->asked[TIER_PASSED] >= share;
}

/* Bytes of the text at `at` up to and with its last slash; 0 when nothing follows it. */
static __always_inline u32 directory_length(struct work *w, u32 at)
{
    w->at = TEXT_MAX;
    for (int i = 0; i < NAME_BYTES; i++) { /* `at` in the map, as in hop_join */
        if (w->text[(w->at - 1) & (TEXT_MAX - 1)] == '/')
            break;
        w->at--;
    }
    u32 end = hidden(w->at);
    if (end <= at || end >= TEXT_MAX || w->text[(end - 1) & (TEXT_MAX - 1)] != '/')
        return 0;
    return end - at;
}

/* `length` bytes of the text at `at`: the id of that directory, as hash_text makes ids. */
static __always_inline u64 hash_part(struct work *w, u32 at, u32 length)
{
    struct sip s;
    u32 end = at + length;
    sip_start(&s);
    for (int i = 0; i < TEXT_MAX / 8; i++) {
        if (at + 8 > end)
            break;
        sip_word(&s, text_word(w, at));
        at += 8;
    }
    at = hidden(at);
    return sip_end(&s, text_word(w, at) & ((1ULL << 8 * (end - at & 7)) - 1), length);
}

/* The id that a behaviour with a new text is told under: its own, or that of the directory in which its file lies. `told`: set
 * when nothing is to be announced any more. */
static __always_inline u64 name_or_directory(struct work *w, u64 text, u64 id, u32 *told)
{
    struct behaviour *b = &w->b;
    u32 at = w->steer.text_at & (TEXT_MAX - 1);
    if (text != b->resource || b->resource2 || b->enforcer || b->operation < OP_OPEN || b->operation > OP_TRUNCATE)
        return id;
    if (b->access & ACCESS_PARTIAL || !has_its_share(w))
        return id;
    u32 length = directory_length(w, at) & (TEXT_MAX - 1);
    if (!length)
        return id;
    struct quiet_key key = {};
    key.cgroup = b->cgroup;
    key.directory = hash_part(w, at, length);
    if (!quiet.lookup(&key))
        return id;
    strip(b);
    b->resource = key.directory;
    u64 whole = hash_behaviour(b);
    if (!behaviours.lookup(&whole)) {
        /* Users, executables and results without end: then it is shed, as any other. */
        if (charge(w->payer, w->o.time >> WINDOW_SHIFT, TIER_SHED) >= NEW_PER_SECOND / 64 ||
            (!strings.lookup(&key.directory) && put_text(w, key.directory, at, length)) ||
            announce_behaviour(&w->behaviour_head, whole)) {
            w->steer.afford = AFFORD_NO;
            return id;
        }
    }
    *told = 1; /* TOLD */
    return whole;
}
