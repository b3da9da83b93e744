/* SPDX-License-Identifier: Apache-2.0 */
/* The files between what exec was given and the interpreter that runs: `#!` files, and those of binfmt_misc(5). */
#define FMODE_EXEC_ 0x20 /* in f_flags of what exec opened; open(2) does not let a caller set it */
#define SCRIPT_STEPS 128

/* A file that this exec opened to run it and let go for its interpreter: fput() leaves it to the work that the task does on its way
 * to user mode. 0 for any other work. */
static __always_inline u64 script_of(u64 work_item)
{
    u64 file = work_item - K_file__task_work, inode = READ64(file, K_file__f_inode);
    if (!(READ32(file, K_file__f_flags) & FMODE_EXEC_) || !inode)
        return 0;
    return READ64(READ64(file, K_file__f_path__dentry), K_dentry__d_inode) == inode ? file : 0;
}

/*
 * The exec of a script, or of a file that binfmt_misc gives to an interpreter: each file on the way to the interpreter is judged
 * and told as executed, the one that exec was given first. They are named by their dentries, as everything that was opened.
 */
int hop_script(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    u64 file = 0;
    if (w->steer.stage == STAGE_NAME) {
        u32 tgid = bpf_get_current_pid_tgid() >> 32;
        struct image *image = processes.lookup(&tgid);
        if (image && !image->script) /* the first is what exec was given */
            image->script = w->sids[SID_RESOURCE];
        if (w->steer.visible)
            finish(w, 0);
        if (!w->names)
            return 0;
    } else {
        u64 at = w->works;
        for (int i = 0; i < SCRIPT_STEPS; i++) {
            if (at < 2)
                break;
            u64 found = script_of(at);
            if (found) {
                u32 index = w->steer.stage == STAGE_FIND ? w->names : 0;
                w->files[index & (FILES - 1)] = found;
                w->names = index + 1;
            }
            at = READ64(at, 0);
        }
        w->works = at;
        if (at > 1 && w->steer.steps < STEPS - (AFTER_ENFORCE + 4)) {
            go(ctx, w, HOP_SCRIPT);
            return 0;
        }
        if (at > 1) /* more work than can be looked through, and the script's file is the last of it */
            w->names = 0;
#ifdef K_linux_binprm__executable
        file = READ64(w->bprm, K_linux_binprm__executable); /* kept open for the interpreter */
        if (file && w->names < FILES) {
            w->files[w->names & (FILES - 1)] = file;
            w->names++;
        }
#endif
        w->steer.stage = STAGE_NAME;
    }
    u32 enforced = w->scope.flags & SCOPE_ENFORCE_SIGNAL;
    w->steer.job = w->steer.count = 0;
    if (w->sids[SID_RESOURCE2] != w->image.executable) {
        w->sids[SID_RESOURCE2] = w->image.executable;
        w->steer.flaws = FLAWS(SID_RESOURCE2, w->steer.flaws & 3);
    }
    if (w->steer.steps + (enforced ? AFTER_ENFORCE + 1 : AFTER_FINISH) >= STEPS) { /* too many long names before this one */
        w->names = 0;
        w->sids[SID_RESOURCE] = 0;
        w->steer.flaws |= FLAWS(SID_RESOURCE, FLAW_UNKNOWN);
        w->at = TEXT_MAX;
        lose(LOSS_PATH_UNRESOLVED);
        if (enforced)
            go(ctx, w, HOP_DECIDE);
        else
            finish(w, 0);
        return 0;
    }
    if (w->names) {
        w->names--;
        file = w->files[w->names & (FILES - 1)];
        w->b.owner = READ32(READ64(file, K_file__f_inode), K_inode__i_uid);
        add_job(w, JOB_DENTRY, SID_RESOURCE, 0, READ64(file, K_file__f_path__dentry), READ64(file, K_file__f_path__mnt));
    } else { /* its file is gone: the caller's own text, in which symbolic links may stand */
        long size = bpf_probe_read_kernel_str(w->raw, TEXT_MAX, (void *)READ64(w->bprm, K_linux_binprm__filename));
        w->cursor = w->end = size > 0 ? size - 1 : 0;
        w->b.owner = 0xffffffff;
        unresolved(w, LOSS_PATH_UNRESOLVED);
        add_job(w, JOB_RAW, SID_RESOURCE, AT_FDCWD_, 0, 0);
    }
    w->steer.after = enforced ? HOP_ENFORCE : HOP_SCRIPT;
    next_job(ctx, w);
    return 0;
}
