/* SPDX-License-Identifier: Apache-2.0 */
/*
 * System calls, seen when they end: one program for all of them, driven by the `calls` map (kernel/syscalls.py).
 *
 * Why the end alone: registers still hold the arguments then (a successful exec excepted, which has a tracepoint of its own),
 * the result is known, and the entry tracepoint would cost every call of the machine a second time.
 */
static __always_inline void begin(struct work *w, void *task, struct image *image)
{
    struct call *call = &w->call;
    actor(w, task, image, w->cgroup);
    w->b.operation = call->operation;
    w->b.access = call->access;
    w->b.syscall = w->row;
    w->b.flags = argument(w, call->flags, 0);
    w->b.args[0] = argument(w, call->arg0, 0);
    w->b.args[1] = argument(w, call->arg1, 0);
    w->b.result = w->ret < 0 ? w->ret : 0;
    w->o.ret = w->ret;
    w->steer.after = HOP_FINISH;
}

static __always_inline void read_arguments(struct work *w, void *regs)
{
#ifdef K_CAST
    w->args[0] = GET64(regs, K_REG_ARG0);
    w->args[1] = GET64(regs, K_REG_ARG1);
    w->args[2] = GET64(regs, K_REG_ARG2);
    w->args[3] = GET64(regs, K_REG_ARG3);
    w->args[4] = GET64(regs, K_REG_ARG4);
    w->args[5] = GET64(regs, K_REG_ARG5);
#else
    bpf_probe_read_kernel(w->raw, K_REG_SPAN, regs);
    w->args[0] = *(u64 *)&w->raw[K_REG_ARG0];
    w->args[1] = *(u64 *)&w->raw[K_REG_ARG1];
    w->args[2] = *(u64 *)&w->raw[K_REG_ARG2];
    w->args[3] = *(u64 *)&w->raw[K_REG_ARG3];
    w->args[4] = *(u64 *)&w->raw[K_REG_ARG4];
    w->args[5] = *(u64 *)&w->raw[K_REG_ARG5];
#endif
}

/* ERESTART*: the call is about to be made again. Only of a connection part of it has happened already. */
static __always_inline int comes_again(struct call *call, s64 ret)
{
    return ret <= -512 && ret > -4096 && call->hop != HOP_ADDRESS && call->hop != HOP_SEND;
}

#define EPERM_RETURNED (-1)

/* Whether an LSM hook has stopped this call and told so. What it says of a call that went on all the same ends here too: it must not
 * silence the next one of this number. */
static __always_inline int told_by_hook(u32 number, s64 ret)
{
    u64 key = bpf_get_current_pid_tgid();
    struct note *note = notes.lookup(&key);
    if (!note || note->kind != NOTE_TOLD || (note->number && note->number != number))
        return 0;
    notes.delete(&key);
    return ret == EPERM_RETURNED;
}

int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
    /* What every call of the machine pays: no helper, but for those whose number is a watched call of another entry. */
    void *regs = CAST(ctx->args[0], pt_regs);
    u32 number = GET32(regs, K_REG_NUMBER);
    if (number >= I386_FIRST) {
#ifdef K_REG_NARROW0
        if (number & X32_BIT_)
            start_at(ctx, HOP_FOREIGN);
#endif
        return 0;
    }
    struct call *call = calls.lookup(&number);
    if (!call || !(call->hop | call->marks))
        return 0;
    s64 ret = ctx->args[1];
    if (comes_again(call, ret))
        return 0;
    void *task = TASK();
    /* Strictly before the row is believed: the number of a 32-bit call means another call. */
#if defined(K_REG_NARROW0) && defined(K_task_struct__compat)
    if (LOAD32(task, K_task_struct__compat) & TS_COMPAT_) {
        if (call->marks & MARK_FOREIGN)
            start_at(ctx, HOP_FOREIGN);
        return 0;
    }
#endif
#ifdef K_TIF_32BIT
    if (LOAD64(task, K_task_struct__thread_flags) >> K_TIF_32BIT & 1) { /* no table of arm's: misread is worse than unread */
        lose(LOSS_FOREIGN_CALL);
        return 0;
    }
#endif
    if (!call->hop)
        return 0;
    u64 cgroup = cgroup_of(task);
    struct scope scope;
    u64 payer = scope_of(cgroup, &scope);
    if (scope.flags & SCOPE_ENFORCE_LSM && told_by_hook(number, ret))
        return 0;
    if (call->hop == HOP_PATHS && call->operation == OP_EXEC && ret >= 0)
        return 0; /* on_exec has told it */
    u32 visible = attended(scope.visibility >> (call->class_ & 31) & 1, payer);
    if (!visible && !(scope.flags & SCOPE_ENFORCE_SIGNAL))
        return 0;
    u32 tgid = tgid_of(task);
    u32 generation = setting(CONFIG_GENERATION); /* strictly before the lookup, as in finish() */
    struct image *image = processes.lookup(&tgid);
    if (!image || image->flags != generation || !generation) {
        if (is_excluded(tgid))
            return 0;
        if (image)
            image->flags = generation;
    }
    struct work *w = enter();
    if (!w)
        return 0;
    w->steer.visible = visible;
    w->scope = scope;
    w->call = *call;
    read_arguments(w, regs);
    w->ret = ret;
    w->number = w->row = number;
    w->cgroup = cgroup;
    w->payer = payer;
    if (image)
        begin(w, task, image);
    if (!image || w->o.pid != tgid) { /* another process's: the map gave the entry away while it was read */
        w->steer.resume = HOP_CALL;
        go(ctx, w, HOP_ADOPT);
        return 0;
    }
    if (call->hop == HOP_OPEN)
        open_file(ctx, w, task); /* the call that is watched most takes no further step */
    else if (call->hop == HOP_PATHS)
        go(ctx, w, HOP_PATHS);
    else if (call->hop == HOP_ADDRESS)
        go(ctx, w, HOP_ADDRESS);
    else if (call->hop == HOP_SEND)
        go(ctx, w, HOP_SEND);
    else
        go(ctx, w, w->call.hop);
    return 0;
}

/* The same for a task that had to be adopted first. */
int hop_call(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *task = TASK();
    u32 tgid = tgid_of(task);
    struct image *image = processes.lookup(&tgid);
    begin(w, task, image ? image : &w->image);
    go(ctx, w, w->call.hop);
    return 0;
}
