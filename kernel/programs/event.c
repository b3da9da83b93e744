/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The end of every event: the behaviour gets its id, what is new is announced, and the occurrence leaves.
 *
 * Strictly in this order: text, behaviour, mark of the behaviour. Who finds the mark need not ask for the text, which
 * is one lookup less for each event; so an agent that has lost a text deletes the behaviours that name it too.
 */
static __always_inline void unresolved(struct work *w, u32 loss)
{
    w->steer.flaw |= FLAW_UNKNOWN;
    lose(loss);
}

/* The text of the scratch, unless it was told. 0 when somebody can read it in the ring. */
static __always_inline long announce_text(struct work *w, u64 id)
{
    if (strings.lookup(&id))
        return 0;
    u32 at = w->at & (TEXT_MAX - 1), length = TEXT_MAX - at;
    struct definition *head = (struct definition *)((u8 *)&w->text_room + at);
    head->id = id;
    head->kind = DEFINE_STRING;
    head->size = length;
    /* Strictly announced before it is marked as announced: another CPU may use the mark at once. */
    if (definitions.ringbuf_output(head, sizeof(*head) + length, 1 /* BPF_RB_NO_WAKEUP */)) {
        lose(LOSS_DEFINITIONS_FULL);
        return -1;
    }
    u64 one = 1;
    strings.update(&id, &one);
    return 0;
}

/* What `recent` holds for a behaviour that was found announced: one word, so that no reader sees half of two. */
static __always_inline u64 recent_word(u64 id, u64 generation)
{
    return id + generation * 0x9e3779b97f4a7c15ULL;
}

/* `text`: id of the text that lies in the scratch and was not announced yet; 0 when there is none. */
static __always_inline void finish(struct work *w, u64 text)
{
    struct behaviour *b = &w->b;
    b->resource = w->sids[SID_RESOURCE];
    b->resource2 = w->sids[SID_RESOURCE2];
    b->access &= ~ACCESS_PARTIAL; /* of the message before this one */
    if (w->steer.flaws & (FLAWS(SID_RESOURCE, 3) | FLAWS(SID_RESOURCE2, 3)))
        b->access |= ACCESS_PARTIAL;
    u64 id = hash_behaviour(b);
    /* The generation strictly before the lookup: what is deleted in between is remembered for the old one only. */
    u64 generation = setting(CONFIG_GENERATION);
    u32 slot = id & (RECENT - 1);
    u64 *known = recent.lookup(&slot);
    if (known && *known == recent_word(id, generation))
        goto announced;
    if (behaviours.lookup(&id)) {
        if (known)
            *known = recent_word(id, generation);
    } else {
        long untold = text ? announce_text(w, text) : 0;
        w->behaviour_head.id = id;
        w->behaviour_head.kind = DEFINE_BEHAVIOUR;
        w->behaviour_head.size = sizeof(*b);
        if (definitions.ringbuf_output(&w->behaviour_head, sizeof(w->behaviour_head) + sizeof(*b), 1)) {
            lose(LOSS_DEFINITIONS_FULL);
        } else if (!untold) {
            u64 one = 1;
            behaviours.update(&id, &one);
        }
    }
announced:;
    u32 zero = 0;
    u64 *sequence = sequences.lookup(&zero);
    if (!sequence)
        return;
    w->o.id = id;
    w->o.time = bpf_ktime_get_boot_ns();
    w->o.sequence = (u64)bpf_get_smp_processor_id() << 48 | ++*sequence;
    if (occurrences.ringbuf_output(&w->o, sizeof(w->o), 1 /* BPF_RB_NO_WAKEUP */))
        lose(LOSS_OCCURRENCES_FULL);
}
