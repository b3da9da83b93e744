/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DNS: the name that a datagram to port 53 asks for (RFC 1035, sections 4.1.1 and 4.1.2), told after the datagram itself.
 *
 * The type that is asked for is left out: a resolver asks for A and AAAA in one breath, and that is one behaviour.
 */
#define DNS_HEADER 12
#define DNS_LABEL 63
#define DNS_LABELS 128 /* a name has 255 bytes at most, a label at least two */

/* Turns the question at `payload` into the text raw[0..n) and returns n; 0 when it is no question with a whole name. */
static __always_inline u32 question(struct work *w, u64 payload, u32 size)
{
    u8 head[DNS_HEADER + 1];
    if (size < DNS_HEADER + 2 || bpf_probe_read_user(head, sizeof(head), (void *)payload))
        return 0;
    u32 at = head[DNS_HEADER];
    /* a query (QR 0, opcode 0) of one question, whose first label is one */
    if (head[2] & 0xf8 || head[4] || head[5] != 1 || at == 0 || at > DNS_LABEL)
        return 0;
    size -= DNS_HEADER + 1;
    if (size > 255)
        size = 255;
    KEEP(size);
    if (bpf_probe_read_user(w->raw, size & 255, (void *)payload + DNS_HEADER + 1))
        return 0;
    for (int i = 0; i < DNS_LABELS; i++) {
        if (at >= size)
            return 0;
        u8 *length = &w->raw[at & 255];
        if (*length == 0)
            return at;
        if (*length > DNS_LABEL) /* a pointer has nothing to point back at in a question */
            return 0;
        at += *length + 1;
        *length = '.';
    }
    return 0;
}

int hop_query(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    u64 payload = w->query;
    w->query = 0;
    u32 length = question(w, payload, w->query_size);
    if (!length) {
        next_message(ctx, w);
        return 0;
    }
    w->b.operation = OP_DNS;
    w->b.flags = 0;
    w->cursor = length;
    w->steer.count = w->steer.job = 0;
    add_job(w, JOB_TEXT, SID_RESOURCE, 0, 0, 0);
    next_job(ctx, w);
    return 0;
}
