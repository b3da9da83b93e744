/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls, seen when they end: one program for all of them, driven by the `calls` map (kernel/syscalls.py).
 *
 * Why the end alone: registers still hold the arguments then (a successful exec excepted, which has a tracepoint of its own),
 * the result is known, and the entry tracepoint would cost every call of the machine a second time.
 */
int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
    void *task = TASK();
    void *regs = REGS(ctx, task);
    u32 number = LOAD32(regs, K_REG_NUMBER);
    if (number >= 512)
        return 0;
    struct call *call = calls.lookup(&number);
    if (!call || !call->hop)
        return 0;
    s64 ret = ctx->args[1];
    if (ret <= -512 && ret > -4096) /* ERESTART*: the call is about to be made again */
        return 0;
    u64 cgroup = bpf_get_current_cgroup_id();
    struct scope scope;
    scope_of(cgroup, &scope);
    u32 visible = scope.visibility >> (call->class_ & 31) & 1;
    if (!visible && !(scope.flags & SCOPE_ENFORCE_SIGNAL))
        return 0;
    if (call->hop == HOP_PATHS && call->operation == OP_EXEC && ret >= 0)
        return 0; /* on_exec has told it */
    u32 tgid = bpf_get_current_pid_tgid() >> 32;
    if (is_excluded(tgid))
        return 0;
    struct work *w = work();
    if (!w)
        return 0;
    w->visible = visible;
    w->scope = scope;
    w->call = *call;
    w->args[0] = LOAD64(regs, K_REG_ARG0);
    w->args[1] = LOAD64(regs, K_REG_ARG1);
    w->args[2] = LOAD64(regs, K_REG_ARG2);
    w->args[3] = LOAD64(regs, K_REG_ARG3);
    w->args[4] = LOAD64(regs, K_REG_ARG4);
    w->args[5] = LOAD64(regs, K_REG_ARG5);
    w->ret = ret;
    w->number = number;
    w->cgroup = cgroup;
    if (!processes.lookup(&tgid)) {
        w->resume = HOP_CALL;
        go(ctx, HOP_ADOPT);
        return 0;
    }
    go(ctx, HOP_CALL);
    return 0;
}

/* The argument a column of the table names; `none` where the call has no such argument. */
static __always_inline u64 argument(struct work *w, u8 index, u64 none)
{
    return index < 6 ? w->args[index & 7] : none;
}

int hop_call(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *task = TASK();
    u32 tgid = bpf_get_current_pid_tgid() >> 32;
    struct image *image = processes.lookup(&tgid);
    if (!image)
        return 0;
    struct call *call = &w->call;
    actor(w, task, image, w->cgroup);
    w->b.operation = call->operation;
    w->b.access = call->access;
    w->b.syscall = w->number;
    w->b.flags = argument(w, call->flags, 0);
    w->b.args[0] = argument(w, call->arg0, 0);
    w->b.args[1] = argument(w, call->arg1, 0);
    w->b.result = w->ret < 0 ? w->ret : 0;
    w->o.ret = w->ret;
    w->after = HOP_FINISH;
    go(ctx, call->hop);
    return 0;
}

int hop_finish(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    struct behaviour *b = &w->b;
    b->resource = w->sids[SID_RESOURCE];
    b->resource2 = w->sids[SID_RESOURCE2];
    if (w->partial)
        b->access |= ACCESS_PARTIAL;
    u64 id = hash_behaviour(b);
    if (!behaviours.lookup(&id)) {
        w->behaviour_head.id = id;
        w->behaviour_head.kind = DEFINE_BEHAVIOUR;
        w->behaviour_head.size = sizeof(*b);
        if (definitions.ringbuf_output(&w->behaviour_head, sizeof(w->behaviour_head) + sizeof(*b), 1)) {
            lose(LOSS_DEFINITIONS_FULL);
        } else {
            u64 one = 1;
            behaviours.update(&id, &one);
        }
    }
    u32 zero = 0;
    u64 *sequence = sequences.lookup(&zero);
    if (!sequence)
        return 0;
    w->o.id = id;
    w->o.time = bpf_ktime_get_boot_ns();
    w->o.sequence = (u64)bpf_get_smp_processor_id() << 48 | ++*sequence;
    if (occurrences.ringbuf_output(&w->o, sizeof(w->o), 1 /* BPF_RB_NO_WAKEUP */))
        lose(LOSS_OCCURRENCES_FULL);
    return 0;
}
