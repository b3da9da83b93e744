/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Answers of name servers: what a workload was told that a name stands for, so that an address has a name.
 *
 * Two programs on packets at the root of cgroup v2, which hear every socket of the machine, whatever call reads it (recvfrom, the
 * read(2) of Go's resolver, io_uring). They let everything pass, and leave for all but UDP and TCP with port 53 on the other side.
 * The question leaves a mark of its socket and id; an answer without that mark was not asked for, and is not told: who may send
 * datagrams to a workload must not name its peers. The message itself is read by nobody here (schemas/dns_answer.py).
 *
 * They run in the sender's context or in an interrupt: the scratch is not theirs. What is told lies in the ring from the start.
 */
#define ANSWER_ROOM 1232 /* of a message: what EDNS asks for where nobody knows better (DNS flag day 2020); a longer one is cut */
#define ANSWER_SMALL 240 /* most fit, and need not take the room of the longest */
#define HEARD_SHARE 256  /* answers of a container in a window of budget.c, and four times as many questions */
#define HEARD_MOST 1024  /* answers of the node */
#define QUESTION_NS 30000000000ULL /* a resolver gives up before: 5 s a try (resolv.conf(5)), at most 30 */
#define SIDE_SOURCE 0
#define SIDE_DESTINATION 2

enum { HEARD_QUESTION, HEARD_ANSWER };

/* socket cookie << 16 | id of the message -> boot time ns */
BPF_TABLE("lru_hash", u64, u64, questions, 16384);

/* Where the message lies in a packet whose port on `side` is that of name servers; 0: there is none. */
static __always_inline u32 message_at(struct __sk_buff *skb, u32 side)
{
    u8 *at = (u8 *)(long)skb->data, *end = (u8 *)(long)skb->data_end;
    u32 protocol, after = 40;
    if (at + 28 > end)
        return 0;
    if (at[0] >> 4 == 4) {
        protocol = at[9];
        after = (at[0] & 15) * 4;
    } else {
        protocol = at[6];
    }
    if (protocol != 17 && protocol != 6)
        return 0;
    u8 *ports = at + after;
    if (ports + 8 > end || ports[side + 1] != DNS_PORT || ports[side])
        return 0;
    if (protocol == 17)
        return after + 8;
    if (ports + 20 > end)
        return 0;
    return after + (ports[12] >> 4) * 4 + 2; /* a stream has the message's length before it (RFC 1035, section 4.2.2) */
}

static __always_inline u64 question_of(struct __sk_buff *skb, u8 *message)
{
    return bpf_get_socket_cookie(skb) << 16 | (u64)message[0] << 8 | message[1];
}

/* Whether one more of `what` is within the budget of `payer`. */
static __always_inline int hearable(u64 payer, u32 what, u32 most)
{
    u64 window = bpf_ktime_get_boot_ns() >> WINDOW_SHIFT;
    struct budget *budget = budget_of(payer);
    if (!budget)
        return 0;
    if (budget->heard_window != window) {
        budget->heard_window = window;
        budget->heard[0] = budget->heard[1] = 0;
    }
    u32 *heard = &budget->heard[what & 1], before = *heard;
    __sync_fetch_and_add(heard, 1);
    return before < most;
}

/* The container whose packet this is, if its network is watched; 0: it is not. */
static __always_inline u64 listened_to(struct __sk_buff *skb, u64 cgroup, u64 now)
{
    struct scope scope;
    if (!observed(now))
        return 0;
    u64 payer = scope_for(cgroup, &scope, skb);
    return scope.visibility >> CLASS_NETWORK & 1 ? payer : 0;
}

int hear_question(struct __sk_buff *skb)
{
    u32 at = message_at(skb, SIDE_DESTINATION);
    u8 head[4];
    if (!at || bpf_skb_load_bytes(skb, at, head, sizeof(head)) || head[2] & 0x80)
        return 1;
    u64 now = bpf_ktime_get_boot_ns(), payer = listened_to(skb, bpf_skb_cgroup_id(skb), now);
    if (!payer || !hearable(payer, HEARD_QUESTION, HEARD_SHARE * 4))
        return 1;
    u64 key = question_of(skb, head);
    questions.update(&key, &now);
    return 1;
}

struct heard {
    struct definition head;
    struct answer about;
    u8 message[];
};

/* The message, of which `length` bytes are there, into a record with `room` for it. 0 when it is in the ring. */
static __always_inline long put_answer(struct __sk_buff *skb, u32 at, u32 length, u64 now, u64 cgroup, const u32 room)
{
    struct heard *heard = definitions.ringbuf_reserve(sizeof(struct heard) + room);
    if (!heard)
        return -1;
    u64 kept = length > room ? room : length;
    heard->head.id = cgroup;
    heard->head.kind = DEFINE_ANSWER;
    heard->head.size = sizeof(struct answer) + kept;
    heard->about.time = now;
    heard->about.length = length;
    heard->about.reserved = 0;
    /* Both bounds again, one by one, for the verifier: the compiler would make one comparison of a difference of them. */
    KEEP(kept);
    if (kept > room)
        goto refused;
    KEEP(kept);
    if (kept < DNS_HEADER || bpf_skb_load_bytes(skb, at, heard->message, kept))
        goto refused;
    /* It calls nobody: it is needed when its address is used, and that call does. */
    definitions.ringbuf_submit(heard, wakeup(DEFINITIONS_FILLED(), DEFINITION_BYTES));
    return 0;
refused:
    definitions.ringbuf_discard(heard, 1 /* BPF_RB_NO_WAKEUP */);
    return -1;
}

int hear_answer(struct __sk_buff *skb)
{
    u32 at = message_at(skb, SIDE_SOURCE);
    u8 head[DNS_HEADER];
    if (!at || bpf_skb_load_bytes(skb, at, head, sizeof(head)) || !(head[2] & 0x80))
        return 1;
    u64 key = question_of(skb, head), now = bpf_ktime_get_boot_ns(), *asked = questions.lookup(&key);
    if (!asked || now - *asked > QUESTION_NS)
        return 1;
    questions.delete(&key);
    if (!(head[6] | head[7])) /* it names nothing */
        return 1;
    u64 cgroup = bpf_skb_cgroup_id(skb), payer = listened_to(skb, cgroup, now);
    if (!payer)
        return 1;
    u32 length = skb->len - at, own = hearable(payer, HEARD_ANSWER, HEARD_SHARE);
    if (own && hearable(NODE_BUDGET, HEARD_ANSWER, HEARD_MOST) && DEFINITIONS_FILLED() < DEFINITION_BYTES / 2) {
        if (!(length > ANSWER_SMALL ? put_answer(skb, at, length, now, cgroup, ANSWER_ROOM) : put_answer(skb, at, length, now, cgroup, ANSWER_SMALL)))
            return 1;
    }
    lose_of(payer, LOSS_ANSWERS);
    return 1;
}
