/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The matcher of the LSM hooks as a program that the kernel runs on request (BPF_PROG_TEST_RUN of a raw tracepoint's), so that its
 * answers can be compared with the judge's on any kernel. Compiled behind the files of the hooks: the same text, the same functions.
 */
struct matcher_question {
    u64 table;
    u64 sources[2]; /* of these two `actor` and `script` are the texts */
    u32 class_;
    u32 access;
    u32 inode_owner;
    u32 uid;
    u32 at;
    u32 direction;
    u32 operation;
    u32 capability;
    u32 tty;
    u32 acting_length;
    u32 actor_length;
    u32 script_length;
    u16 family;
    u16 socket_type;
    u16 protocol;
    u16 port;
    u8 address[16];
    u8 acting[128]; /* the executable of who asks; its last byte is the last of these */
    u8 actor[128];
    u8 script[128];
    u8 text[TEXT_MAX];
};

BPF_F_TABLE("array", u32, struct matcher_question, matcher_questions, 1, 1024 /* BPF_F_MMAPABLE */);

/* As if it had been executed. */
static __always_inline void executed(struct asked *w, u8 *text, u32 length)
{
    if (!length)
        return;
    bpf_probe_read_kernel(&w->text[TEXT_MAX - 128], 128, text);
    w->at = TEXT_MAX - (length & 127);
    w->state = WHOLE;
    keep_text(w);
}

int match(struct bpf_raw_tracepoint_args *ctx)
{
    u32 zero = 0;
    struct matcher_question *q = matcher_questions.lookup(&zero);
    struct asked *w = lsm_scratch.lookup(&zero);
    if (!q || !w)
        return 16;
    struct rule *header = rule_of(q->table, 0, 0, 0, RULE_HEADER);
    if (!header)
        return 17;
    u32 has = q->operation == OP_MMAP           ? TABLE_ANONYMOUS
              : q->operation == OP_PTRACE       ? TABLE_PROC | TABLE_ENVIRON
              : q->operation == OP_MOUNT        ? TABLE_MOUNTS
              : q->class_ == CLASS_PROCESS      ? TABLE_HAS_PROCESS | TABLE_FILELESS | TABLE_SESSION
              : q->class_ == CLASS_FILE         ? TABLE_HAS_FILE | (q->operation == OP_OPEN ? TABLE_PROC | TABLE_ENVIRON : 0)
              : q->class_ == CLASS_CAPABILITIES ? TABLE_HAS_CAPABILITIES
                                                : TABLE_HAS_NETWORK;
    if (!(header->flags & has))
        return 0; /* as sub_enter */
    /* What asks no rule but its preset: `access` has the first argument of the call. */
    if (q->operation == OP_MMAP)
        return q->access & PROT_EXEC_ ? 1 : 0;
    if (q->operation == OP_PTRACE)
        return q->access == PTRACE_ATTACH_ || q->access == 0x4206 /* PTRACE_SEIZE */;
    if (q->operation == OP_MOUNT)
        return 1;
    w->header = *header;
    w->table = q->table;
    w->class_ = q->class_;
    w->access = q->access;
    w->sources[0] = q->sources[0];
    w->sources[1] = q->sources[1];
    w->sources[2] = w->sources[3] = 0;
    w->inode_owner = q->inode_owner;
    w->uid = q->uid;
    w->at = q->at;
    w->tty = q->tty;
    w->inode = 0;
    w->exact = w->forced = 0;
    __builtin_memset(&w->b, 0, sizeof(w->b));
    w->b.operation = q->operation;
    if (w->header.flags & TABLE_ACTORS) {
        executed(w, q->actor, q->actor_length);
        executed(w, q->script, q->script_length);
        w->state = CLIMBING;
        sub_actors_(w);
        w->at = q->at;
    }
    if (q->class_ == CLASS_CAPABILITIES)
        return of_capability(w, q->capability) != 0;
    if (q->class_ == CLASS_NETWORK) {
        socket_of(w, q->family, q->socket_type, q->protocol);
        w->b.port = q->port;
        __builtin_memcpy(w->b.address, q->address, 16);
        w->direction = q->direction;
        __builtin_memset(w->bound, 0, 16);
        return sub_sockets_(w) != 0;
    }
    if (q->class_ == CLASS_PROCESS && w->header.flags & TABLE_SESSION && w->tty) {
        bpf_probe_read_kernel(&w->text[TEXT_MAX - sizeof(q->acting)], sizeof(q->acting), q->acting);
        w->at = TEXT_MAX - (q->acting_length & 127);
        scan_text(w, 0);
        w->forced = names_runtime(w);
        w->at = q->at;
    }
    bpf_probe_read_kernel(w->text, TEXT_MAX, q->text);
    return (sub_verdict_(w) | w->forced) != 0;
}
