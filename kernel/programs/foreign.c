/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls by the 32-bit entries of x86-64: int 0x80 and compat tasks (numbers and registers of i386), and x32.
 *
 * on_sys_exit sends them here before it believes their number. Their rows of `calls` name the same handlers as the native
 * ones, so a path or an address is read, told and held alike; structures with 32-bit members are marked MARK_NARROW.
 */
#ifdef K_REG_NARROW0
static __always_inline void read_narrow(struct work *w, void *regs)
{
    w->args[0] = (u32)GET32(regs, K_REG_NARROW0);
    w->args[1] = (u32)GET32(regs, K_REG_NARROW1);
    w->args[2] = (u32)GET32(regs, K_REG_NARROW2);
    w->args[3] = (u32)GET32(regs, K_REG_NARROW3);
    w->args[4] = (u32)GET32(regs, K_REG_NARROW4);
    w->args[5] = (u32)GET32(regs, K_REG_NARROW5);
}

/* socketcall(call, arguments): which row it is. The arguments lie in user memory: six at most, three near the end of a page. */
static __always_inline u32 socketcall(struct work *w)
{
    u32 words[6] = {}, call = w->args[0];
    if (bpf_probe_read_user(words, sizeof(words), (void *)w->args[1]))
        bpf_probe_read_user(words, sizeof(words) / 2, (void *)w->args[1]);
#pragma unroll
    for (int i = 0; i < 6; i++)
        w->args[i] = words[i];
    return call < 32 ? SOCKETCALL_FIRST + call : ROWS;
}

int hop_foreign(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = enter();
    if (!w)
        return 0;
    w->steer.steps = 1; /* the one that led here */
    void *regs = CAST(ctx->args[0], pt_regs), *task = TASK();
    u32 number = GET32(regs, K_REG_NUMBER), row;
    if (number & X32_BIT_) {
        row = X32_FIRST + (number & ~X32_BIT_);
        if (row < X32_FIRST)
            return 0;
        read_arguments(w, regs);
    } else {
        row = I386_FIRST + number;
        read_narrow(w, regs);
        if (number == SOCKETCALL)
            row = socketcall(w);
    }
    struct call *call = calls.lookup(&row);
    s64 ret = ctx->args[1];
    if (!call || !call->hop || comes_again(call, ret))
        return 0;
    u64 cgroup = cgroup_of(task);
    struct scope scope;
    u64 payer = scope_of(cgroup, &scope);
    if (call->hop == HOP_PATHS && call->operation == OP_EXEC && ret >= 0)
        return 0; /* on_exec has told it */
    u32 visible = attended(scope.visibility >> (call->class_ & 31) & 1, payer);
    if (!visible && !(scope.flags & SCOPE_ENFORCE_SIGNAL))
        return 0;
    u32 tgid = tgid_of(task);
    if (is_excluded(tgid))
        return 0;
    struct image *image = processes.lookup(&tgid);
    w->steer.visible = visible;
    w->scope = scope;
    w->call = *call;
    w->ret = ret;
    w->number = call->number;
    w->row = row;
    w->cgroup = cgroup;
    w->payer = payer;
    if (image)
        begin(w, task, image);
    if (!image || w->o.pid != tgid) { /* see on_sys_exit */
        w->steer.resume = HOP_CALL;
        go(ctx, w, HOP_ADOPT);
        return 0;
    }
    go(ctx, w, w->call.hop);
    return 0;
}
#else
int hop_foreign(struct bpf_raw_tracepoint_args *ctx)
{
    lose(LOSS_FOREIGN_CALL);
    return 0;
}
#endif
