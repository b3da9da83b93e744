/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who acts: the `processes` map and the records that describe an executable image.
 *
 *     fork: child gets its parent's entry     exec: entry replaced, PROCESS announced     last exit: entry removed
 *
 * adopt.c has the tasks that have no entry yet, script.c the scripts that an exec ran.
 */
static __always_inline u64 image_id(u64 boot_ns, u32 tgid)
{
    return boot_ns >> 10 << 22 | (tgid & 0x3fffff);
}

struct upid_part {
    u32 nr;
    u32 hole;
    u64 ns;
};

/* struct pid of the task's process, and what it is called at `level`; at its own level when that is -1. Any task: plain reads. */
static __always_inline void *process_pid(void *task, u32 level, struct upid_part *out)
{
    void *leader = (void *)READ64(task, K_task_struct__group_leader);
    void *pid = (void *)READ64(leader, K_task_struct__thread_pid);
    u32 own = READ32(pid, K_pid__level);
    out->nr = 0;
    out->ns = 0;
    if (level == -1)
        level = own;
    if (level <= own && level <= 32)
        bpf_probe_read_kernel(out, sizeof(*out), pid + K_pid__numbers + level * sizeof(*out));
    return pid;
}

/* tgid as the task's own pid namespace counts it, and that namespace. */
static __always_inline u32 inner_pid(void *task, u32 *pid_ns)
{
    struct upid_part upid;
    process_pid(task, -1, &upid);
    *pid_ns = READ32(upid.ns, K_pid_namespace__ns__inum);
    return upid.nr;
}

/* tgid of `parent` as the pid namespace of `task` counts it, 0 when it is not in there: pid 1, what nsenter(1) or runc started. */
static __always_inline u32 inner_ppid(void *task, void *parent)
{
    struct upid_part mine, its;
    void *pid = process_pid(task, -1, &mine);
    process_pid(parent, READ32(pid, K_pid__level), &its);
    return its.ns == mine.ns ? its.nr : 0;
}

static __always_inline u32 mnt_ns(void *task)
{
    void *proxy = (void *)LOAD64(task, K_task_struct__nsproxy);
    void *ns = (void *)LOAD64(proxy, K_nsproxy__mnt_ns);
    return LOAD32(ns, K_mnt_namespace__ns__inum);
}

/* The members of behaviour and occurrence that say who acts. `image` is the task's entry. */
static __always_inline void actor(struct work *w, void *task, struct image *image, u64 cgroup)
{
    __builtin_memset(&w->b, 0, sizeof(w->b));
    w->b.cgroup = cgroup;
    w->b.executable = image->executable;
    w->b.script = image->script;
    w->b.parent = image->parent;
    w->b.pid_ns = image->pid_ns;
    w->b.mnt_ns = mnt_ns(task);
    w->b.uid = uid_of(task);
    w->b.owner = 0xffffffff;
    void *signal = (void *)LOAD64(task, K_task_struct__signal);
    w->b.tty = LOAD64(signal, K_signal_struct__tty) != 0;
    w->o.process = image->process;
    w->o.pid = image->pid;
    w->o.ns_pid = image->ns_pid;
    w->o.ppid = image->ppid; /* who forked it, as `parent`; whoever adopted an orphan since has started nothing */
    w->o.ns_ppid = image->ns_ppid;
    w->o.aux = 0;
    w->sids[SID_RESOURCE] = 0;
    w->sids[SID_RESOURCE2] = 0;
    start_jobs(w, task);
}

static __always_inline void terminal(struct process *p, void *task)
{
    void *signal = (void *)LOAD64(task, K_task_struct__signal);
    void *tty = (void *)LOAD64(signal, K_signal_struct__tty);
    __builtin_memset(p->tty, 0, sizeof(p->tty));
    if (tty)
        bpf_probe_read_kernel_str(p->tty, sizeof(p->tty), tty + K_tty_struct__name);
}

static __always_inline void announce_process(struct work *w)
{
    w->process_head.id = w->process.process;
    w->process_head.kind = DEFINE_PROCESS;
    w->process_head.size = sizeof(w->process);
    if (!observed(bpf_ktime_get_boot_ns()))
        return;
    if (definitions.ringbuf_output(&w->process_head, sizeof(w->process_head) + sizeof(w->process), 1))
        lose(LOSS_DEFINITIONS_FULL);
}

/* Jobs of an image: path, working directory, arguments. All from the current task's mm. `share`: steps for the working directory,
 * which no rule asks for. */
static __always_inline void image_jobs(struct work *w, void *task, u8 share)
{
    void *mm = (void *)LOAD64(task, K_task_struct__mm);
    void *file = (void *)LOAD64(mm, K_mm_struct__exe_file);
    w->sids[SID_EXECUTABLE] = w->sids[SID_CWD] = w->sids[SID_ARGUMENTS] = 0;
    w->flags = 0;
    w->steer.afford = AFFORD_YES; /* an image is named once, and everything it does refers to it */
    if (!mm)
        return;
    add_short_job(w, JOB_FD, SID_CWD, AT_FDCWD_, 0, 0, share);
    u64 start = LOAD64(mm, K_mm_struct__arg_start), end = LOAD64(mm, K_mm_struct__arg_end);
    u64 length = end - start;
    if (length)
        length--; /* the NUL of the last argument */
    if (length > TEXT_MAX)
        length = TEXT_MAX;
    add_job(w, JOB_ARGUMENTS, SID_ARGUMENTS, (s32)length, start, 0);
    /* Strictly last: enforcement looks at the text that was stored last. */
    add_job(w, JOB_DENTRY, SID_EXECUTABLE, 0, LOAD64(file, K_file__f_path__dentry), LOAD64(file, K_file__f_path__mnt));
}

static __always_inline void fill_process(struct work *w, void *task, struct image *image)
{
    struct process *p = &w->process;
    p->process = image->process;
    p->executable = image->executable;
    p->parent_process = image->parent_process;
    p->arguments = w->sids[SID_ARGUMENTS];
    p->cwd = w->sids[SID_CWD];
    p->start = image->start;
    p->pid = image->pid;
    p->ppid = image->ppid;
    p->ns_pid = image->ns_pid;
    p->session = LOAD32(task, K_task_struct__sessionid);
    p->loginuid = LOAD32(task, K_task_struct__loginuid);
    p->flags = w->flags;
    terminal(p, task);
}

/* The parent task's image, where the map does not know it. */
static __always_inline void parent_job(struct work *w, void *task)
{
    void *parent = (void *)LOAD64(task, K_task_struct__real_parent);
    void *mm = (void *)LOAD64(parent, K_task_struct__mm);
    void *file = (void *)LOAD64(mm, K_mm_struct__exe_file);
    u64 dentry = LOAD64(file, K_file__f_path__dentry);
    if (dentry)
        add_short_job(w, JOB_DENTRY, SID_PARENT, 0, dentry, LOAD64(file, K_file__f_path__mnt), 2);
}

/* sched_process_fork(parent, child), in the parent's context. */
int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
    void *child = (void *)ctx->args[1];
    u32 tgid = bpf_get_current_pid_tgid() >> 32, child_tgid = READ32(child, K_task_struct__tgid);
    if (child_tgid == tgid) /* a thread */
        return 0;
    struct image *image = processes.lookup(&tgid);
    struct work *w = enter();
    if (!w)
        return 0;
    if (!image) {
        w->steer.resume = HOP_FORK;
        go(ctx, w, HOP_ADOPT);
        return 0;
    }
    go(ctx, w, HOP_FORK);
    return 0;
}

int hop_fork(struct bpf_raw_tracepoint_args *ctx)
{
    void *child = (void *)ctx->args[1];
    u32 tgid = bpf_get_current_pid_tgid() >> 32, pid_ns = 0;
    struct work *w = work();
    struct image *image = processes.lookup(&tgid);
    if (!image && w && w->steer.resume == HOP_FORK)
        image = &w->image;
    if (!image) {
        lose(LOSS_PROCESS_UNKNOWN);
        return 0;
    }
    struct image copy = *image;
    copy.pid = READ32(child, K_task_struct__tgid);
    /* Not its real_parent: with CLONE_PARENT that is somebody who has nothing to do with it. */
    copy.ppid = tgid;
    copy.ns_ppid = inner_ppid(child, TASK());
    copy.ns_pid = inner_pid(child, &pid_ns);
    copy.pid_ns = pid_ns;
    copy.parent = image->executable;
    copy.parent_process = image->process;
    copy.flags = 0;
    copy.call = 0;
    copy.works = 0;
    if (processes.update(&copy.pid, &copy))
        lose(LOSS_MAP_FULL);
    return 0;
}

/* Whether what exec was given names an interpreter: a `#!` file, or one that binfmt_misc(5) knows. */
static __always_inline int is_script(struct work *w)
{
    return READ64(w->bprm, K_linux_binprm__interp) != READ64(w->bprm, K_linux_binprm__filename);
}

/* sched_prepare_exec(task, bprm), since 6.10: the exec can no longer fail, and the registers are still what the call was made
 * with; on x86 the kernel then makes every exec of a 64-bit image look like execve(2). */
int on_prepare_exec(struct bpf_raw_tracepoint_args *ctx)
{
#ifdef AT_SCHED_PREPARE_EXEC
    void *task = TASK();
    u32 tgid = tgid_of(task);
    struct image *image = processes.lookup(&tgid);
    if (!image)
        return 0;
    u64 works = LOAD64(task, K_task_struct__task_works);
    image->works = works ? works : 1;
#ifdef K_task_struct__io_uring
    if (LOAD64(task, K_task_struct__io_uring)) /* a ring that ends with the old image runs the task's work */
        image->works = 1;
#endif
#ifdef K_task_struct__compat
    if (LOAD32(task, K_task_struct__compat) & TS_COMPAT_) { /* another table of numbers */
        image->call = 0;
        return 0;
    }
#endif
    image->call = LOAD32(task_pt_regs_(task), K_REG_NUMBER);
#endif
    return 0;
}

/* The call that made this exec. Where nobody looked in time, execveat(2) is known by a path that begins at a descriptor. */
static __always_inline u32 exec_call(u64 bprm, struct image *image)
{
    u32 call = image->call;
    image->call = 0;
    if (call == NR_EXECVE || call == NR_EXECVEAT)
        return call;
    return READ64(bprm, K_linux_binprm__fdpath) ? NR_EXECVEAT : NR_EXECVE;
}

/* sched_process_exec(task, old_pid, bprm): the new image is in place, its first instruction has not run. */
int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = enter();
    if (!w)
        return 0;
    void *task = TASK();
    u32 tgid = tgid_of(task), ppid = LOAD32((void *)LOAD64(task, K_task_struct__real_parent), K_task_struct__tgid);
    start_jobs(w, task);
    w->sids[SID_PARENT] = 0;
    if (!processes.lookup(&tgid) && !processes.lookup(&ppid))
        parent_job(w, task); /* rules may ask who calls: of what is gone, its parent says most */
    w->bprm = ctx->args[2];
    image_jobs(w, task, is_script(w) ? 2 : 8);
    w->steer.after = HOP_EXEC;
    next_job(ctx, w);
    return 0;
}

int hop_exec(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *task = TASK();
    u32 tgid = bpf_get_current_pid_tgid() >> 32, pid_ns = 0;
    struct image *image = &w->image, *before = processes.lookup(&tgid);
    u64 executable = w->sids[SID_EXECUTABLE], now = bpf_ktime_get_boot_ns();
    if (before) {
        *image = *before;
    } else { /* forked before the programs were loaded, and silent since: its old image is gone */
        lose(LOSS_PROCESS_UNKNOWN);
        __builtin_memset(image, 0, sizeof(*image));
        void *parent = (void *)LOAD64(task, K_task_struct__real_parent);
        image->pid = tgid;
        image->ppid = LOAD32(parent, K_task_struct__tgid);
        image->ns_ppid = inner_ppid(task, parent);
        image->ns_pid = inner_pid(task, &pid_ns);
        image->pid_ns = pid_ns;
        u32 ppid = image->ppid;
        struct image *known = processes.lookup(&ppid);
        image->executable = image->parent = known ? known->executable : w->sids[SID_PARENT];
        image->parent_process = known ? known->process : 0;
    }
    u64 caller = image->executable;
    u64 cgroup = cgroup_of(task);
    actor(w, task, image, cgroup);
    w->steer.flaws = FLAWS(SID_RESOURCE, w->steer.flaws / FLAWS(SID_EXECUTABLE, 1) & 3);
    w->sids[SID_RESOURCE] = executable;
    w->b.syscall = exec_call(w->bprm, image);
    u64 works = image->works;
    image->works = 0;
    image->script = 0; /* that was the caller's; hop_script knows the new image's */
    image->process = image_id(now, tgid);
    image->executable = executable;
    image->start = now;
    fill_process(w, task, image);
    w->process.parent = caller;
    announce_process(w);
    if (processes.update(&tgid, image))
        lose(LOSS_MAP_FULL);
    w->o.process = image->process;
    w->o.ret = 0;
    w->b.operation = OP_EXEC;
    w->b.access = ACCESS_EXEC;
    struct scope scope;
    w->payer = scope_of(cgroup, &scope);
    w->scope = scope;
    w->steer.visible = attended(scope.visibility >> CLASS_PROCESS & 1, w->payer);
    if (w->steer.visible && is_excluded(tgid))
        w->steer.visible = 0;
    void *mm = (void *)LOAD64(task, K_task_struct__mm);
    void *file = (void *)LOAD64(mm, K_mm_struct__exe_file);
    void *inode = (void *)LOAD64(file, K_file__f_inode);
    w->b.owner = LOAD32(inode, K_inode__i_uid);
    w->call.class_ = CLASS_PROCESS;
    if (is_script(w)) {
        w->steer.stage = works ? STAGE_FIND : STAGE_LAST;
        w->works = works ? works : LOAD64(task, K_task_struct__task_works);
        w->names = 0;
    }
    if (scope.flags & SCOPE_ENFORCE_SIGNAL)
        go(ctx, w, HOP_ENFORCE);
    else if (w->steer.stage) /* told or not: what it does later is what the script does */
        go(ctx, w, HOP_SCRIPT);
    else if (w->steer.visible)
        go(ctx, w, HOP_FINISH);
    return 0;
}

/* sched_process_exit(task): reported once, by the last thread. */
int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
    void *task = TASK();
    void *signal = (void *)LOAD64(task, K_task_struct__signal);
    if (LOAD32(signal, K_signal_struct__live))
        return 0;
    u32 tgid = bpf_get_current_pid_tgid() >> 32;
    if (is_excluded(tgid)) { /* an agent that was killed cannot say so: its pid is somebody else's soon */
        excluded.delete(&tgid);
        processes.delete(&tgid);
        return 0;
    }
    struct image *image = processes.lookup(&tgid);
    struct work *w = enter();
    if (!image || !w)
        return 0;
    u64 cgroup = cgroup_of(task);
    struct scope scope;
    w->payer = scope_of(cgroup, &scope);
    if (attended(scope.visibility >> CLASS_PROCESS & 1, w->payer)) {
        actor(w, task, image, cgroup);
        u32 code = LOAD32(task, K_task_struct__exit_code);
        w->b.operation = OP_EXIT;
        w->b.syscall = NR_EXIT_GROUP;
        w->o.ret = code & 0x7f ? 128 + (code & 0x7f) : code >> 8 & 0xff;
        processes.delete(&tgid);
        go(ctx, w, HOP_FINISH);
        return 0;
    }
    processes.delete(&tgid);
    return 0;
}
