/* SPDX-License-Identifier: Apache-2.0 */
/*
 * DNS: the name that a datagram to port 53 asks for (RFC 1035, sections 4.1.1 and 4.1.2), told after the datagram itself.
 *
 * The type that is asked for is left out: a resolver asks for A and AAAA in one breath, and that is one behaviour.
 */
#define DNS_HEADER 12
#define DNS_LABEL 63
#define DNS_LABELS 128 /* a name has 255 bytes at most, a label at least two */
#define DNS_MESSAGE (DNS_HEADER + 255)
#define DNS_MASK 511
#define DNS_PARTS 64

/* Head and question of the message, from however many parts it was given in, into raw[0..n). Returns n. */
static __always_inline u32 gather(struct work *w, u64 query, u32 size)
{
    if (!w->parts) {
        if (size > DNS_MESSAGE)
            size = DNS_MESSAGE;
        KEEP(size);
        return bpf_probe_read_user(w->raw, size & DNS_MASK, (void *)query) ? 0 : size;
    }
    u32 at = 0;
    for (int i = 0; i < DNS_PARTS; i++) {
        u64 part[2]; /* struct iovec, of a 32-bit task half as wide */
        u32 half[2];
        if (i >= w->parts || at >= DNS_MESSAGE)
            break;
        if (w->call.marks & MARK_NARROW) {
            if (bpf_probe_read_user(half, sizeof(half), (void *)query + i * sizeof(half)))
                break;
            part[0] = half[0];
            part[1] = half[1];
        } else if (bpf_probe_read_user(part, sizeof(part), (void *)query + i * sizeof(part))) {
            break;
        }
        u32 more = part[1] > DNS_MESSAGE - at ? DNS_MESSAGE - at : part[1];
        KEEP(more);
        KEEP(at);
        if (more && bpf_probe_read_user(&w->raw[at & DNS_MASK], more & DNS_MASK, (void *)part[0]))
            return 0;
        at += more;
    }
    return at;
}

/* Turns the question in raw[0..size) into the text raw[12..12+n) and returns n; 0 when it is none with a whole name. */
static __always_inline u32 question(struct work *w, u32 size)
{
    u8 *head = w->raw;
    u32 at = head[DNS_HEADER];
    /* a query (QR 0, opcode 0) with a question, whose first label is one; what lies behind the first is not told */
    if (size < DNS_HEADER + 2 || head[2] & 0xf8 || !(head[4] | head[5]) || at == 0 || at > DNS_LABEL)
        return 0;
    at += DNS_HEADER + 1;
    for (int i = 0; i < DNS_LABELS; i++) {
        if (at >= size)
            return 0;
        u8 *length = &w->raw[at & DNS_MASK];
        if (*length == 0)
            return at - DNS_HEADER - 1;
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
    u64 query = w->query;
    w->query = 0;
    u32 length = question(w, hidden(gather(w, query, w->query_size)));
    if (!length) {
        next_message(ctx, w);
        return 0;
    }
    bpf_probe_read_kernel(w->raw, length & 255, &w->raw[DNS_HEADER + 1]); /* forwards, so the overlap is harmless */
    w->b.operation = OP_DNS;
    w->b.flags = 0;
    w->cursor = length;
    w->steer.count = w->steer.job = 0;
    add_job(w, JOB_TEXT, SID_RESOURCE, 0, 0, 0);
    next_job(ctx, w);
    return 0;
}
