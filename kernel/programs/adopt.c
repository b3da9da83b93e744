/* SPDX-License-Identifier: Apache-2.0 */
/* A task older than the programs has no entry in `processes`: its first event waits (w->steer.resume) while the image is read from
 * mm->exe_file, and goes on afterwards. */

int hop_adopt(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *task = TASK();
    u32 ppid = LOAD32((void *)LOAD64(task, K_task_struct__real_parent), K_task_struct__tgid);
    struct image *parent = processes.lookup(&ppid);
    start_jobs(w, task);
    w->bprm = 0;
    image_jobs(w, task, 2);
    w->sids[SID_PARENT] = 0;
    w->image.parent_process = 0;
    if (parent) {
        w->sids[SID_PARENT] = parent->executable;
        w->image.parent_process = parent->process;
    } else {
        parent_job(w, task);
    }
    w->steer.after = HOP_ADOPTED;
    next_job(ctx, w);
    return 0;
}

int hop_adopted(struct bpf_raw_tracepoint_args *ctx)
{
    struct work *w = work();
    if (!w)
        return 0;
    void *task = TASK();
    void *leader = (void *)LOAD64(task, K_task_struct__group_leader);
    void *parent = (void *)LOAD64(task, K_task_struct__real_parent);
    struct image *image = &w->image;
    u32 tgid = tgid_of(task), pid_ns = 0;
    image->start = LOAD64(leader, K_task_struct__start_boottime);
    image->process = image_id(image->start, tgid);
    image->executable = w->sids[SID_EXECUTABLE];
    image->parent = w->sids[SID_PARENT];
    image->pid = tgid;
    image->ppid = LOAD32(parent, K_task_struct__tgid);
    image->ns_pid = inner_pid(task, &pid_ns);
    image->pid_ns = pid_ns;
    image->ns_ppid = inner_ppid(task, parent);
    image->flags = 0;
    image->call = 0;
    image->reserved = 0;
    image->works = 0;
    image->script = 0;
    fill_process(w, task, image);
    w->process.parent = image->parent;
    announce_process(w);
    if (processes.update(&tgid, image))
        lose(LOSS_MAP_FULL); /* what follows takes w->image */
    if (w->steer.resume == HOP_FORK)
        go(ctx, w, HOP_FORK);
    else
        go(ctx, w, HOP_CALL);
    return 0;
}
