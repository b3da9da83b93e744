/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a hook says: the answer to the kernel, and the denial to whoever reads the rings, told by the hook that denied.
 *
 * A note keeps the end of a denied system call from telling the same once more (call.c). A call that a shadow lets pass is told, and
 * stopped by the signal backend, at its end. Denials are announced in a tier of their own (budget.c), so that noise of the same
 * container does not silence them.
 */
static __always_inline void announce_object(struct asked *w, u64 id)
{
    if (!id || strings.lookup(&id))
        return;
    u32 at = w->at & (TEXT_MAX - 1), length = TEXT_MAX - at;
    struct definition *head = (struct definition *)((u8 *)&w->text_room + at);
    head->id = id;
    head->kind = DEFINE_STRING;
    head->size = length;
    KEEP(length);
    if (length > TEXT_MAX || definitions.ringbuf_output(head, sizeof(*head) + length, 1)) {
        lose(LOSS_DEFINITIONS_FULL);
        return;
    }
    u64 one = 1;
    strings.update(&id, &one);
}

/* A helper that kernels with these hooks have, and compilers for older ones do not know. */
static u64 (*registers_of_)(void *task) = (void *)BPF_FUNC_task_pt_regs;

/* Number of the call under way, as `call_of` says it: a hook need not have learned where registers lie. */
static __always_inline u32 call_under_way(void)
{
    u32 number;
    if (is_foreign_call(TASK(), &number))
        return number;
    return READ32(registers_of_(TASK()), K_REG_NUMBER) & ~X32_BIT_;
}

int sub_tell(u64 argument)
{
    struct asked *w = ASKED(argument);
    struct behaviour *b = &w->b;
    struct occurrence *o = &w->o;
    void *task = (void *)TASK();
    u64 key = bpf_get_current_pid_tgid();
    u32 tgid = key >> 32, number = call_under_way(), lost = 0;
    u32 shadow = w->header.flags & TABLE_SHADOW;
    struct note note = {.kind = NOTE_TOLD, .number = number};
    if (!shadow)
        notes.update(&key, &note);
    struct image *image = processes.lookup(&tgid);
    o->time = bpf_ktime_get_boot_ns();
    b->cgroup = w->cgroup;
    b->enforcer = shadow ? 0 : BACKEND_BPF_LSM;
    b->mnt_ns = READ32(READ64(READ64(task, K_task_struct__nsproxy), K_nsproxy__mnt_ns), K_mnt_namespace__ns__inum);
    b->uid = w->uid;
    b->owner = w->inode_owner;
    b->tty = w->tty;
    b->syscall = number;
    b->result = o->ret = shadow ? 0 : EPERM_HOOK;
    o->pid = tgid;
    o->aux = 0;
    o->process = 0;
    o->ns_pid = o->ppid = o->ns_ppid = 0;
    if (image) {
        b->executable = image->executable;
        b->parent = image->parent;
        b->script = image->script;
        b->pid_ns = image->pid_ns;
        o->process = image->process;
        o->ns_pid = image->ns_pid;
        o->ppid = image->ppid;
        o->ns_ppid = image->ns_ppid;
    }
    if (w->state == UNRESOLVED)
        b->access |= ACCESS_PARTIAL;
    if (observed(o->time)) {
        int affords = affordable(b, w->payer, 0);
        b->resource = w->path;
        if (affords && w->path)
            announce_object(w, w->path);
        if (!image) { /* older than the programs, and not met yet */
            b->executable = executable_of(w, task);
            if (affords)
                announce_object(w, b->executable);
        }
#pragma clang loop unroll(disable)
        for (int i = 0; i < 2; i++) {
            u32 known;
            o->id = id_of(b, &known);
            if (known || ((i || affords) && !announce_behaviour(&w->behaviour_head, o->id)))
                break;
            strip(b);
        }
        /* Who may be preempted cannot count: the time is as good, and a bit of its own keeps it apart from what the tracepoints
         * count. */
        o->sequence = (0x4000ULL | bpf_get_smp_processor_id()) << 48 | (o->time & 0xffffffffffffULL);
        if (occurrences.ringbuf_output(o, sizeof(*o), 1 /* BPF_RB_NO_WAKEUP */))
            lost = LOSS_OCCURRENCES_FULL + 1;
        hasten();
    } else if (setting(CONFIG_OBSERVED_UNTIL)) {
        lost = LOSS_UNREAD + 1;
    }
    if (lost)
        lose_of(w->payer, lost - 1);
    return 0;
}

/* What a verdict to stop comes to, counted: nothing in a shadow. */
static __always_inline int stopped(struct asked *w)
{
    u32 shadow = w->header.flags & TABLE_SHADOW;
    tally(shadow ? COUNT_SHADOWED : COUNT_DENIED);
    return !shadow;
}

/* Whether the end of the call under way tells what it did to the object of the hook, with all else that the call names. A ring
 * makes its calls without one; of what is sent by a stream, the first bytes alone are told there; an exec, by whatever entry, is told when
 * it has happened. */
static __always_inline int told_at_its_end(struct asked *w)
{
    if (w->b.operation == OP_EXEC)
        return w->visibility >> CLASS_PROCESS & 1;
    u32 number = call_under_way(), class_ = w->class_;
    struct call *call = calls.lookup(&number);
    if (!call || !call->hop || !(w->visibility >> (call->class_ & 31) & 1))
        return 0;
    if (call->hop == HOP_SEND && w->b.socket_type != 2 && w->b.socket_type != 3)
        return 0;
    if (call->operation == w->b.operation)
        return 1;
    /* An openat that makes its file asks as mknod does, one that empties it as truncate; an open in /proc asks as ptrace, and is told as an open. */
    return call->class_ == class_ && (class_ == CLASS_FILE || class_ == CLASS_NETWORK) && w->b.operation != OP_PTRACE;
}

/* The answer, told and counted. */
static __always_inline int answer(struct asked *w, int stop)
{
    if (!stop)
        return 0;
    if (!(w->header.flags & TABLE_SHADOW) || !told_at_its_end(w))
        sub_tell_(w);
    return stopped(w);
}

/* Whether the object at `dentry` in `mount` is denied to whoever asks. */
int sub_object(u64 argument)
{
    struct asked *w = ASKED(argument);
    u32 closed = w->header.flags & TABLE_CLOSED;
    int stop = 0;
    w->inode_owner = w->inode ? READ32(w->inode, K_inode__i_uid) : 0xffffffff;
    sub_climb_(w);
    if (w->state == UNRESOLVED) {
        tally(COUNT_UNRESOLVED);
        stop = closed != 0;
    } else if (w->state == NOWHERE && (w->class_ == CLASS_FILE || w->at >= TEXT_MAX)) {
        return 0; /* a pipe, a socket, a memfd: no place that a rule on files could name */
    } else {
        stop = sub_verdict_(w) | w->forced;
        if (w->elsewhere && w->class_ == CLASS_FILE) {
            tally(COUNT_ELSEWHERE);
            stop |= closed != 0;
        }
        /* Renamed, it would give what a rule protects below it another path. */
        if (!stop && w->header.flags & TABLE_GUARDS && w->access & ACCESS_DIRECTORY && w->access & ACCESS_DELETE)
            stop = rule_of(w->table, as_directory(w), 0, CLASS_FILE, RULE_GUARD) != 0;
    }
    return answer(w, stop);
}

static __always_inline int on_object(struct asked *w, u64 dentry, u64 vfsmount, u64 inode)
{
    w->dentry = dentry;
    w->mount = vfsmount - K_mount__mnt;
    w->inode = inode;
    return sub_object_(w);
}
