/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hooks on what runs: programs, memory that becomes executable, capabilities, processes that others attach to.
 *
 * A program is executed by execve, which asks here, or mapped by a loader that was started by hand (ld.so PROGRAM): that is asked
 * as an exec of the program by who started the loader. Everybody else's mappings are libraries; of those only rules that mean the very
 * file count, by path or name, so that a rule on a directory, a pattern or a posture leaves libraries alone.
 */
#define PROT_EXEC_ 4
#define MAP_ANONYMOUS_ 0x20
#define CAP_OPT_NOAUDIT_ 2
#define PTRACE_MODE_ATTACH_ 2
#define PTRACE_MODE_NOAUDIT_ 4
#define PTRACE_ATTACH_ 16

/* Whether the text, which was scanned, is the path of a program that starts containers. */
static __always_inline int names_runtime(struct asked *w)
{
    if (w->at + 16 < TEXT_MAX && word_at(w, w->at) == TEXT8('m', 'e', 'm', 'f', 'd', ':', 'r', 'u') &&
        word_at(w, w->at + 8) == TEXT8('n', 'c', '_', 'c', 'l', 'o', 'n', 'e'))
        return 1;
    return rule_of(w->table, last_name(w), 0, CLASS_PROCESS, RULE_RUNTIME) != 0;
}

/* Whether the executable of the task is one. It takes the place of the text. */
static __always_inline int is_runtime(struct asked *w)
{
    return executable_of(w, (void *)TASK()) && names_runtime(w);
}

int lsm_bprm_check_security(struct bpf_raw_tracepoint_args *ctx) /* bprm: the script first, then its interpreter; each asks */
{
    sub_keep_(LOAD64((void *)ctx->args[0], K_linux_binprm__file));
    ENTER(CLASS_PROCESS, TABLE_HAS_PROCESS | TABLE_FILELESS | TABLE_SESSION, OP_EXEC, ACCESS_EXEC);
    if (w->header.flags & TABLE_SESSION && w->tty)
        w->forced = is_runtime(w);
    u64 file = LOAD64((void *)ctx->args[0], K_linux_binprm__file);
    int stop = on_object(w, READ64(file, K_file__f_path__dentry), READ64(file, K_file__f_path__mnt), READ64(file, K_file__f_inode));
    return leave(w, stop);
}

/* Whether `file` is the program that an exec under way maps: it was asked about as what is executed. By its pointer, which nobody else
 * maps, and the call: prctl (PR_SET_MM_EXE_FILE) makes another file the task's program. */
static __always_inline int is_being_executed(u64 file)
{
    u64 mm = READ64(TASK(), K_task_struct__mm);
    if (!file || !mm || READ64(mm, K_mm_struct__exe_file) != file)
        return 0;
    u32 number = call_under_way();
    return number == NR_EXECVE || number == NR_EXECVEAT;
}

/* Whether the task runs a dynamic loader as its program: ld-linux-x86-64.so.2, ld-musl-aarch64.so.1, ld.so. */
static __always_inline int is_loader(void)
{
    u64 mm = READ64(TASK(), K_task_struct__mm), file = mm ? READ64(mm, K_mm_struct__exe_file) : 0;
    u64 name = file ? READ64(READ64(file, K_file__f_path__dentry), K_dentry__d_name + 8) : 0;
    u32 first = name ? READ32(name, 0) : 0;
    return (first & 0xffffff) == ('l' | 'd' << 8 | '-' << 16) || first == ('l' | 'd' << 8 | '.' << 16 | (u32)'s' << 24);
}

static __always_inline int on_mapping(u64 file, u32 protection, u32 flags)
{
    if (!(protection & PROT_EXEC_))
        return 0;
    if (!file) {
        ENTER(CLASS_PROCESS, TABLE_ANONYMOUS, OP_MMAP, 0);
        w->b.args[0] = protection;
        w->b.args[1] = flags | MAP_ANONYMOUS_;
        int stop = answer(w, 1);
        return leave(w, stop);
    }
    ENTER(CLASS_PROCESS, TABLE_HAS_PROCESS | TABLE_FILELESS, OP_EXEC, ACCESS_EXEC);
    w->exact = !is_loader();
    u64 path = file + K_file__f_path;
#ifdef K_backing_file__user_path /* what overlayfs maps is a file of a layer since Linux 6.5; it remembers the path it was opened by */
    if (READ32(file, K_file__f_mode) & FMODE_NOACCOUNT_)
        path = file + K_backing_file__user_path;
#endif
    int stop = on_object(
        w, READ64(path, K_file__f_path__dentry - K_file__f_path), READ64(path, K_file__f_path__mnt - K_file__f_path),
        READ64(file, K_file__f_inode));
    return leave(w, stop);
}

int lsm_mmap_file(struct bpf_raw_tracepoint_args *ctx) /* file, protection as asked, protection, flags */
{
    /* Hidden: a verifier that was not told that it may be none takes the branch for that out. */
    u64 file = hidden(ctx->args[0]);
    if (ctx->args[2] & PROT_EXEC_ && is_being_executed(file))
        return 0;
    return on_mapping(file, (u32)ctx->args[2], (u32)ctx->args[3]);
}

int lsm_file_mprotect(struct bpf_raw_tracepoint_args *ctx) /* area, protection as asked, protection */
{
    return on_mapping(READ64(ctx->args[0], K_vm_area_struct__vm_file), (u32)ctx->args[2], 0);
}

int lsm_capable(struct bpf_raw_tracepoint_args *ctx) /* credentials, namespace, capability, options */
{
    ENTER(CLASS_CAPABILITIES, TABLE_HAS_CAPABILITIES, OP_CAPABLE, 0);
    int stop = of_capability(w, (u32)ctx->args[2]);
    w->b.args[0] = (u32)ctx->args[2];
    if (stop && ctx->args[3] & CAP_OPT_NOAUDIT_) /* the kernel asks whether it may be used, and what is asked does not fail by it */
        stop = stopped(w);
    else
        stop = answer(w, stop);
    return leave(w, stop);
}

/* Who may attach to a process may read its memory, and its environment in it, whatever its files below /proc say. Threads of one process
 * are no strangers; looking without attaching (ps) is asked at the files. */
int lsm_ptrace_access_check(struct bpf_raw_tracepoint_args *ctx) /* process, mode */
{
    u32 mode = (u32)ctx->args[1], other = READ32(ctx->args[0], K_task_struct__tgid);
    if (!(mode & PTRACE_MODE_ATTACH_) || other == (u32)(bpf_get_current_pid_tgid() >> 32))
        return 0;
    ENTER(CLASS_FILE, TABLE_PROC | TABLE_ENVIRON, OP_PTRACE, 0);
    w->b.args[0] = PTRACE_ATTACH_;
    w->b.args[1] = other;
    int stop = mode & PTRACE_MODE_NOAUDIT_ ? stopped(w) : answer(w, 1);
    return leave(w, stop);
}
