/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of every event: the behaviour gets its id, what is new is announced (announce.c), and the occurrence leaves.
 */
/* What `recent` holds for a behaviour that was found announced: one word, so that no reader sees half of two. */
static __always_inline u64 recent_word(u64 id, u64 generation)
{
    return id + generation * 0x9e3779b97f4a7c15ULL;
}

#define TOLD 1 /* or TOLD_CALLS: values of `behaviours` */

/* The id of a behaviour; `told`: 0 or how it was announced before. */
static __always_inline u64 id_of(struct behaviour *b, u32 *told)
{
    u64 id = hash_behaviour(b);
    /* The generation strictly before the lookup: what is deleted in between is remembered for the old one only. */
    u64 generation = setting(CONFIG_GENERATION);
    u32 slot = id & (RECENT - 1);
    u64 *known = recent.lookup(&slot);
    *told = TOLD;
    if (known && *known == recent_word(id, generation))
        return id;
    u64 *how = behaviours.lookup(&id);
    if (!how)
        *told = 0;
    else if (*how == TOLD_CALLS)
        *told = TOLD_CALLS; /* and not remembered as usual */
    else if (known)
        *known = recent_word(id, generation);
    return id;
}

/* The same of the behaviour of the scratch. */
static __always_inline u64 identify(struct work *w, u32 *told)
{
    struct behaviour *b = &w->b;
    b->resource = w->sids[SID_RESOURCE];
    b->resource2 = w->sids[SID_RESOURCE2];
    b->access &= ~ACCESS_PARTIAL; /* of the message before this one */
    if (w->steer.flaws & (FLAWS(SID_RESOURCE, 3) | FLAWS(SID_RESOURCE2, 3)))
        b->access |= ACCESS_PARTIAL;
    return id_of(b, told);
}

/* Whether this event is to be reported now; its time. */
static __always_inline int reported(struct work *w)
{
    w->o.time = bpf_ktime_get_boot_ns();
    if (observed(w->o.time))
        return 1;
    u32 index = CONFIG_OBSERVED_UNTIL;
    u64 *until = config.lookup(&index);
    if (until && *until) { /* else nobody has asked for events yet */
        *until = 1;
        lose_of(w->payer, LOSS_UNREAD);
    }
    return 0;
}

/* `told`: as `id_of` says; what is new or calls cannot wait. */
static __always_inline void occur(struct work *w, u64 id, u32 told)
{
    u32 zero = 0;
    u64 *sequence = sequences.lookup(&zero);
    if (!sequence)
        return;
    u64 number = ++*sequence, flags = 1 /* BPF_RB_NO_WAKEUP */;
    w->o.id = id;
    w->o.sequence = (u64)bpf_get_smp_processor_id() << 48 | number;
    if (!(number & 1023))
        flags = wakeup(OCCURRENCES_FILLED(), OCCURRENCE_BYTES);
    if (occurrences.ringbuf_output(&w->o, sizeof(w->o), flags))
        lose_of(w->payer, LOSS_OCCURRENCES_FULL);
    if (told == TOLD)
        call_reader(SLEEP_ASLEEP);
    else
        hasten();
}

/* `text`: id of the text that lies in the scratch from `text_at` on and was not announced yet; 0 when there is none. */
static __always_inline void finish(struct work *w, u64 text)
{
    u32 told;
    if (!reported(w))
        return;
    u64 id = identify(w, &told);
    if (!told && text)
        id = name_or_directory(w, text, id, &told);
    if (!told) {
        /* Also without room in the ring: the behaviour it then counts for was announced long ago. */
        if (!afford(w) || (text && announce_text(w, text, w->steer.text_at)) || announce_behaviour(&w->behaviour_head, id)) {
            id = shed(&w->b, w->payer);
            told = TOLD;
            if (!behaviours.lookup(&id))
                announce_behaviour(&w->behaviour_head, id);
            if (OCCURRENCES_FILLED() > OCCURRENCE_BYTES / 2) { /* the other half is for what has a name */
                w->steer.afford = AFFORD_UNASKED;
                lose_of(w->payer, LOSS_OCCURRENCES_FULL);
                return;
            }
        }
    }
    w->steer.afford = AFFORD_UNASKED;
    occur(w, id, told);
}

/* The same where a path ends: what is new goes on in hop_finish, so that the usual call carries none of its code. */
static __always_inline void finish_or_go(void *ctx, struct work *w, u64 text)
{
    u32 told;
    if (!reported(w))
        return;
    u64 id = identify(w, &told);
    if (told) {
        occur(w, id, told);
        return;
    }
    w->steer.text_id = text;
    w->steer.text_at = w->at;
    go(ctx, w, HOP_FINISH);
}
