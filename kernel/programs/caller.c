/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which system call the current task makes, for programs that stop a call on its way: they are not told.
 */
#define X32_BIT_ 0x40000000 /* arch/x86/include/uapi/asm/unistd.h */
#define NR_IO_URING_ENTER 426 /* on every architecture */
#define PF_KTHREAD_ 0x00200000
#define PF_IO_WORKER_ 0x00000010

/* Whether a task makes a call whose registers say nothing here, and its `number` then: a worker of io_uring is in no call of its own, those
 * of i386 are 0, where many calls may be one. */
static __always_inline int is_foreign_call(void *task, u32 *number)
{
    *number = NR_IO_URING_ENTER;
    if (READ32(task, K_task_struct__flags) & (PF_KTHREAD_ | PF_IO_WORKER_))
        return 1;
    *number = 0;
#if defined(K_REG_NARROW0) && defined(K_task_struct__compat)
    if (READ32(task, K_task_struct__compat) & TS_COMPAT_)
        return 1;
#endif
    return 0;
}

/* Number of the system call that is being stopped, and where its registers lie: 0 and 0 when they are not known, or are those of
 * i386, where many calls may be one. A worker of io_uring is in no call of its own. */
static __always_inline u32 call_of(void *task, u64 *registers)
{
    u64 distance = setting(CONFIG_REGISTERS);
    *registers = 0;
    u32 number;
    if (is_foreign_call(task, &number))
        return number;
    if (!distance)
        return 0;
    *registers = READ64(task, K_task_struct__stack) + distance;
    return READ32(*registers, K_REG_NUMBER) & ~X32_BIT_;
}
