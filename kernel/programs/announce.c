/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is new is announced in the ring of definitions, once.
 *
 * Strictly in this order: text, behaviour, mark of the behaviour. Who finds the mark need not ask for the text, which
 * is one lookup less for each event; so an agent that has lost a text deletes the behaviours that name it too.
 */
static __always_inline void unresolved(struct work *w, u32 loss)
{
    w->steer.flaw |= FLAW_UNKNOWN;
    lose(loss);
}

/* New data calls a reader that sleeps (`call_reader`); one that is awake and late is called when a ring is half full. */
static __always_inline u64 wakeup(u64 filled, u64 size)
{
    return filled > size / 2 ? 2 /* BPF_RB_FORCE_WAKEUP */ : 1 /* BPF_RB_NO_WAKEUP */;
}

/* `length` bytes of the scratch from `at` on, whose id is `id`. 0 when somebody can read them in the ring. */
static __always_inline long put_text(struct work *w, u64 id, u32 at, u32 length)
{
    struct definition *head = (struct definition *)((u8 *)&w->text_room + at);
    head->id = id;
    head->kind = DEFINE_STRING;
    head->size = length;
    u64 filled = DEFINITIONS_FILLED();
    /* Strictly announced before it is marked as announced: another CPU may use the mark at once. */
    if (definitions.ringbuf_output(head, sizeof(*head) + length, wakeup(filled, DEFINITION_BYTES))) {
        lose(LOSS_DEFINITIONS_FULL);
        w->steer.afford = AFFORD_NO;
        return -1;
    }
    u64 one = 1;
    strings.update(&id, &one);
    return 0;
}

/* The text that begins at `at`, unless it was told. 0 when somebody can read it in the ring. */
static __always_inline long announce_text(struct work *w, u64 id, u32 at)
{
    if (strings.lookup(&id))
        return 0;
    if (!observed(bpf_ktime_get_boot_ns()) || !afford(w))
        return -1;
    at &= TEXT_MAX - 1;
    return put_text(w, id, at, TEXT_MAX - at);
}

/* The behaviour that lies behind `head`. 0 when somebody can read it in the ring. */
static __always_inline long announce_behaviour(struct definition *head, u64 id)
{
    head->id = id;
    head->kind = DEFINE_BEHAVIOUR;
    head->size = sizeof(struct behaviour);
    if (definitions.ringbuf_output(head, sizeof(*head) + sizeof(struct behaviour), 1)) {
        lose(LOSS_DEFINITIONS_FULL);
        return -1;
    }
    u64 one = 1;
    behaviours.update(&id, &one);
    return 0;
}
