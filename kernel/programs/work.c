/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Maps, the per-CPU scratch all programs of one event share, and how kernel memory is read.
 *
 * An event runs as a chain of tail calls ("hops"), so that each step has a verifier budget of its own and a path may be
 * as deep as PATH_MAX allows.
 *
 * Invariant: nothing of one event steers another. What steers lies in `struct steer`, and every program that begins an event
 * zeroes it (`enter`); every other member is written by an event before it reads it. So it does not matter how the last event
 * on this processor ended. tests/kernel/test_scratch.py fills the scratch with random bytes between events.
 *
 * One event at a time: the kernel runs raw tracepoint programs with preemption off (cant_sleep() in __bpf_trace_run), and
 * none of these tracepoints fires in an interrupt. Programs that may be preempted, as cgroup programs are, must not touch
 * the scratch.
 *
 * Chains do not break: steps are counted (`go`), each loop asks `may_go_on` before the next tail call and each text leaves
 * enough for what must follow it, the verdict first. A text for which there were too few is unresolved, which the verdict knows.
 */
#define TEXT_MAX 4096 /* STRING_LIMIT as a power of two: offsets into text are masked with TEXT_MAX - 1 */
#define CALLED_MAX 2048 /* of the path given to exec: longer ones leave no room for arguments and are not told */
#define RECENT 4096
#define KIN 1024
#define NONE 0xff     /* "this call has no such argument" in struct call */
#define AT_FDCWD_ (-100)
#define STEPS 32 /* MAX_TAIL_CALL_CNT, include/linux/bpf.h, is 33; the first may lead a call to on_sys_exit (kernel/call_exits.py) */

#define SCAN_STEPS 512 /* words and slashes that one program looks at */
#define SCAN_PROGRAMS 11 /* the worst path of TEXT_MAX bytes: 512 words and 2048 slashes, then twice hop_decide with four of hop_ascend between */
#define DIRECTORIES 2048 /* slashes in a text of TEXT_MAX bytes */

/* What is wrong with a text; each text of an event has its own. */
#define FLAW_CUT 1     /* the path is longer than TEXT_MAX: the text is its beginning, with CUT_MARK for the components left out */
#define FLAW_UNKNOWN 2 /* it could not be resolved: the text is at most its end */
#define CUT_BYTES 4
#define CUT_MARK 0x2e2e2e2f /* "/..." of a little-endian machine, as x86_64 and aarch64 are */
#define FLAWS(sid, flaw) ((u32)(flaw) << 2 * (sid))

enum { SID_RESOURCE, SID_RESOURCE2, SID_EXECUTABLE, SID_CWD, SID_ARGUMENTS, SID_PARENT, SIDS = 8 };
/* Whether an event may announce new names: not asked yet, asked; VERDICT: not asked, and it may be denied yet. */
enum { AFFORD_UNASKED, AFFORD_YES, AFFORD_NO, AFFORD_VERDICT };
enum { JOB_DENTRY = 1, JOB_USER, JOB_FD, JOB_RAW, JOB_TEXT, JOB_STRING, JOB_ARGUMENTS };

/* One text to be turned into a string id: where it comes from and which of `sids` it becomes. */
struct job {
    u64 pointer; /* USER: user address; DENTRY: dentry */
    u64 mount;   /* DENTRY: vfsmount */
    s32 fd;      /* FD: descriptor; USER: dirfd; ARGUMENTS: bytes */
    u16 kind;
    u8 sid;
    u8 share; /* steps it may take at most */
};

struct steer {
    u32 steps;    /* tail calls taken */
    u32 limit;    /* of `steps`, for the text that is being made */
    u32 job;      /* next job */
    u32 count;    /* jobs in all */
    u32 after;    /* hop to take when all jobs are done */
    u32 resume;   /* hop that asked for adoption */
    u32 visible;  /* 1 when this event is to be reported */
    u32 message;  /* sendmmsg: which of its messages this is */
    u32 scanning; /* 1 when the scan of the path has begun */
    u32 ascending; /* 1 when the lookup of its directories has */
    u32 plain;    /* 1 when no rule is limited to the script that acts, and those of its interpreter are asked */
    u32 stage;    /* what is left to be judged or told of an event with several paths */
    u32 afford;   /* AFFORD_* */
    u32 flaw;     /* of the text that is being made */
    u32 flaws;    /* of those that are made, by sid */
    u32 excess;   /* bytes of the path that did not fit into the text */
    u32 beyond;   /* second walk: bytes to leave out at the end of the path */
    u32 dropped;  /* second walk: components left out */
    u32 text_at;  /* first byte of the text that lies in `text` and was not announced */
    u64 text_id;  /* its id; 0: none */
};

/* Stages of an event that has more than one path; 0: it has one. */
#define STAGE_SECOND 1 /* rename, link: the second path is judged, then the first */
#define STAGE_FIND 2   /* exec of a script: its files are looked for, */
#define STAGE_LAST 3   /* or only the first of them, */
#define STAGE_NAME 4   /* and are judged and told one by one */
#define FILES 8        /* of an exec: at most five scripts lead to each other (BINPRM_MAX_RECURSION) */
/* What is known of a thread's system call before it ends. DENIED: a guard stopped it, and its end tells so, with what is here.
 * TOLD: a guard stopped it and has told so. INTERRUPTED: a connect told when a signal interrupted it, and made again after. */
enum { NOTE_DENIED = 1, NOTE_TOLD, NOTE_INTERRUPTED };
struct note {
    u64 inode;  /* of the socket, for INTERRUPTED */
    u32 kind;
    u32 number; /* of the call; 0 if unknown */
    u16 family;
    u16 port;
    u32 hole;
    u8 address[16];
};

struct work {
    struct steer steer;
    struct call call;
    u64 args[6];
    u64 cgroup;
    u64 payer;  /* the cgroup whose scope is in force: new names and losses are charged to it */
    s64 ret;
    u32 number; /* native number of the call, whatever entry it came by */
    u32 row;    /* which row of `calls` it is */
    u64 query;  /* a datagram for a name server: user address of the message, or of its parts; 0: none */
    u32 query_size;
    u32 parts; /* ... how many parts it has; 0: query is the message itself */
    u64 root_dentry;
    u64 root_mount; /* struct mount */
    u64 dentry;
    u64 mount; /* struct mount */
    u64 sids[SIDS];
    struct job jobs[4];
    struct scope scope;
    u64 name;   /* id of the last component of a path that was cut */
    u32 at;     /* first byte of the text in `text`, which ends at TEXT_MAX; above TEXT_MAX while a second walk leaves components out */
    u32 skip;   /* ".." seen on the way from the leaf, each swallows one component */
    u32 cursor; /* join: bytes of `raw` not looked at yet */
    u32 end;    /* join: end of the component under the cursor */
    u32 flags;  /* ProcessFlag of the image that is being described */
    u32 names;  /* of `files`: those that are still to be told */
    u64 works;  /* script: work of the task that was not looked at yet */
    u64 files[FILES];
    u64 bprm;   /* struct linux_binprm of the exec that is being described; 0: none */
    struct scan {
        struct sip sip;
        u64 seen;    /* marks of the slashes of the word under the cursor that were looked at */
        u64 source;  /* whose rules are looked at first */
        u32 start;   /* first byte of the text */
        u32 hole2;
        u32 at;      /* first byte of the word under the cursor */
        u32 slash;   /* length of the path up to and with its last slash */
        u32 class_;
        u32 count;   /* of `directories` */
        u32 next;    /* directories that were not looked up yet: the deepest of them is the next */
        u32 hole;
        struct rule deep[2]; /* deepest directory so far: [0] limited to the source, [1] for anybody; action 0: none */
    } scan;
    struct image image;
    struct occurrence o;
    struct definition process_head;
    struct process process;
    struct definition behaviour_head; /* strictly before `b`: both leave in one ring record */
    struct behaviour b;
    u64 directories[DIRECTORIES]; /* their ids, from the root down */
    u8 raw[TEXT_MAX + 256];
    struct definition text_room; /* the header of a text that starts at text[0] */
    u8 text[TEXT_MAX + TEXT_MAX + 64]; /* bytes from TEXT_MAX on stay zero: the last word of a hash needs no mask */
};

_Static_assert(sizeof(struct work) <= 32 << 10, "PCPU_MIN_UNIT_SIZE: the kernel has no larger per-CPU element");

/* The nearest ancestor of a cgroup that has a scope, 0: none. `check` is made of all three, so that no reader takes half of two. */
struct kin {
    u64 check;
    u64 owner;
};

/* Strictly first and in this order: BCC counts its tables, and has no other name for one in a call that it does not rewrite. */
BPF_RINGBUF_OUTPUT(occurrences, OCCURRENCE_PAGES);
BPF_RINGBUF_OUTPUT(definitions, DEFINITION_PAGES);
#define OCCURRENCE_BYTES (OCCURRENCE_PAGES * 4096ULL)
#define DEFINITION_BYTES (DEFINITION_PAGES * 4096ULL)
#define OCCURRENCES_FILLED() bpf_ringbuf_query((void *)bpf_pseudo_fd(1, -1), 0 /* BPF_RB_AVAIL_DATA */)
#define DEFINITIONS_FILLED() bpf_ringbuf_query((void *)bpf_pseudo_fd(1, -2), 0)
BPF_TABLE("lru_hash", u64, u64, behaviours, BEHAVIOURS);
BPF_TABLE("array", u32, u64, recent, RECENT);
BPF_TABLE("lru_hash", u64, u64, strings, STRINGS);
/* Who fills it costs others a second look at their image, no rule and no event: what was dropped is met again (hop_adopt). */
BPF_TABLE("lru_hash", u32, struct image, processes, PROCESSES);
BPF_TABLE("percpu_array", u32, u64, losses, 16);
BPF_TABLE("lru_hash", u64, struct budget, budgets, 8192);
BPF_TABLE("percpu_array", u32, u64, sequences, 1);
BPF_TABLE("percpu_array", u32, struct work, scratch, 1);
BPF_TABLE("array", u32, u64, config, 16);
BPF_TABLE("array", u32, struct call, calls, ROWS);
BPF_F_TABLE("hash", u32, u32, excluded, 1024, 1);
BPF_F_TABLE("hash", u64, struct scope, scopes, SCOPES, 1 /* BPF_F_NO_PREALLOC */);
BPF_TABLE("array", u32, struct kin, kinship, KIN);
BPF_F_TABLE("hash", struct rule_key, struct rule, rules, RULES, 1);
BPF_TABLE("lru_hash", u64, struct note, notes, 4096);
BPF_TABLE("prog", u32, u32, hops, 64);

/* Members of task_struct and what it points to: typed loads cost nothing where the kernel offers them. */
#ifdef TYPED_LOADS
#define TASK() ((void *)bpf_get_current_task_btf())
#define LOAD64(p, off) ({ u64 v_; asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(v_) : "r"(p), "i"(off)); v_; })
#define LOAD32(p, off) ({ u64 v_; asm volatile("%0 = *(u32 *)(%1 + %2)" : "=r"(v_) : "r"(p), "i"(off)); (u32)v_; })
#else
#define TASK() ((void *)bpf_get_current_task())
#define LOAD64(p, off) ({ u64 v_ = 0; bpf_probe_read_kernel(&v_, 8, (void *)(p) + (off)); v_; })
#define LOAD32(p, off) ({ u32 v_ = 0; bpf_probe_read_kernel(&v_, 4, (void *)(p) + (off)); v_; })
#endif
#ifdef AT_SCHED_PREPARE_EXEC
static void *(*task_pt_regs_)(void *task) = (void *)BPF_FUNC_task_pt_regs;
#endif
#define TS_COMPAT_ 2 /* arch/x86/include/asm/thread_info.h: a 32-bit system call is in progress */
#define READ64(p, off) ({ u64 v_ = 0; bpf_probe_read_kernel(&v_, 8, (void *)(p) + (off)); v_; })
#define READ32(p, off) ({ u32 v_ = 0; bpf_probe_read_kernel(&v_, 4, (void *)(p) + (off)); v_; })
#define READ8(p, off) ({ u8 v_ = 0; bpf_probe_read_kernel(&v_, 1, (void *)(p) + (off)); v_; })
#define READ16(p, off) ({ u16 v_ = 0; bpf_probe_read_kernel(&v_, 2, (void *)(p) + (off)); v_; })
/* The same from any address of the kernel: CAST says what lies there, GET reads it. Through pointers that were read so no
 * further cast is needed. See kernel/casts.py. */
#ifdef K_CAST
static void *(*cast_)(u64 address, u64 type) = (void *)K_CAST;
#define CAST(p, type) cast_((u64)(p), K_TYPE_##type)
#define GET64(p, off) LOAD64(p, off)
#define GET32(p, off) LOAD32(p, off)
#else
#define CAST(p, type) ((void *)(p))
#define GET64(p, off) READ64(p, off)
#define GET32(p, off) READ32(p, off)
#endif

/* Hides from the compiler what it knows of a number, so that the mask the verifier needs to see is not optimised away. */
#define KEEP(number) asm volatile("" : "+r"(number))

/* Hides a number from the verifier: where paths meet that differ in it alone, it then goes on once and not for each. */
static __always_inline u64 hidden(u64 number)
{
    u64 copy;
    bpf_probe_read_kernel(&copy, sizeof(copy), &number);
    return copy;
}

/* Eight bytes of text anywhere: the compiler itself would move them one by one, as nothing tells it that they are aligned. */
#define LOAD_WORD(p) ({ u64 v_; asm volatile("%0 = *(u64 *)(%1 + 0)" : "=r"(v_) : "r"(p) : "memory"); v_; })
#define STORE_WORD(p, v) asm volatile("*(u64 *)(%0 + 0) = %1" : : "r"(p), "r"(v) : "memory")

/* The word of the text at `at`, masked for the verifier whatever the compiler knows of `at`. */
static __always_inline u64 text_word(struct work *w, u32 at)
{
    KEEP(at);
    return LOAD_WORD(&w->text[at & (TEXT_MAX - 1)]);
}

static __always_inline struct work *work(void)
{
    u32 zero = 0;
    return scratch.lookup(&zero);
}

static __always_inline void lose(u32 what)
{
    u64 *count = losses.lookup(&what);
    if (count)
        *count += 1;
}

/* The scratch for a new event. */
static __always_inline struct work *enter(void)
{
    struct work *w = work();
    if (w)
        __builtin_memset(&w->steer, 0, sizeof(w->steer));
    return w;
}

/* On to the next step. It returns only when the kernel refuses, which the limits do not let happen. */
static __always_inline void go(void *ctx, struct work *w, u32 hop)
{
    w->steer.steps++;
    hops.call(ctx, hop);
    lose(LOSS_CHAIN_BROKEN);
}

/* A program that begins an event by itself: it counts this step when it enters the scratch. */
static __always_inline void start_at(void *ctx, u32 hop)
{
    hops.call(ctx, hop);
    lose(LOSS_CHAIN_BROKEN);
}

/* Whether the text that is being made may take another step. */
static __always_inline int may_go_on(struct work *w)
{
    return w->steer.steps < w->steer.limit;
}

/* What bpf_get_current_pid_tgid(), _uid_gid() and _cgroup_id() answer, without their call: with return thunks
 * (Spectre RSB, SRSO) a helper costs 20 ns, a typed load one. */
static __always_inline u32 tgid_of(void *task)
{
    return LOAD32(task, K_task_struct__tgid);
}

static __always_inline u32 uid_of(void *task)
{
    return LOAD32((void *)LOAD64(task, K_task_struct__cred), K_cred__uid);
}

static __always_inline u64 cgroup_of(void *task)
{
    void *set = (void *)LOAD64(task, K_task_struct__cgroups);
    void *cgroup = (void *)LOAD64(set, K_css_set__dfl_cgrp);
    return LOAD64((void *)LOAD64(cgroup, K_cgroup__kn), K_kernfs_node__id);
}

static __always_inline u64 setting(u32 index)
{
    u64 *value = config.lookup(&index);
    return value ? *value : 0;
}

/* Whether somebody drains the rings. Enforcement never asks. */
static __always_inline int observed(u64 now)
{
    return now < setting(CONFIG_OBSERVED_UNTIL);
}

/*
 * Wake the reader up if it sleeps so lightly. Strictly after what it is to find was committed, which is a full barrier: a reader says
 * that it sleeps before it looks at the ring for the last time, so one of the two sees the other. Only a record can call, so an
 * empty one goes into the ring and is taken back.
 */
static __always_inline void call_reader(u32 least)
{
    u32 index = CONFIG_ASLEEP;
    u64 *asleep = config.lookup(&index);
    if (!asleep || *asleep < least)
        return;
    void *nothing = occurrences.ringbuf_reserve(sizeof(struct occurrence));
    if (!nothing)
        return;
    *asleep = SLEEP_AWAKE;
    occurrences.ringbuf_discard(nothing, 2 /* BPF_RB_FORCE_WAKEUP */);
}

/* The same for what cannot wait. A reader that is awake finds it noted when it goes to sleep. */
static __always_inline void hasten(void)
{
    u32 index = CONFIG_HASTE;
    u64 *haste = config.lookup(&index);
    if (haste)
        __sync_fetch_and_add(haste, 1);
    call_reader(SLEEP_DOZING);
}

/* Words that most behaviours leave empty cost a round each, so they are left out; `present` keeps the rest unambiguous. */
static __always_inline u64 hash_behaviour(struct behaviour *b)
{
    struct sip s;
    u64 *words = (u64 *)b, present = 0;
    sip_start(&s);
    sip_word(&s, words[0]); /* cgroup, executable, parent, resource */
    sip_word(&s, words[1]);
    sip_word(&s, words[2]);
    sip_word(&s, words[3]);
    sip_word(&s, words[5]); /* namespaces; operation to tty; flags, result; uid, owner */
    sip_word(&s, words[6]);
    sip_word(&s, words[7]);
    sip_word(&s, words[8]);
    if (words[4]) { /* resource2 */
        sip_word(&s, words[4]);
        present |= 1;
    }
    if (words[9]) { /* args */
        sip_word(&s, words[9]);
        present |= 2;
    }
    if (words[10]) { /* family to protocol, address; without a family there is no address */
        sip_word(&s, words[10]);
        sip_word(&s, words[11]);
        sip_word(&s, words[12]);
        present |= 4;
    }
    if (words[13]) { /* script */
        sip_word(&s, words[13]);
        present |= 8;
    }
    return sip_end(&s, present, sizeof(*b));
}
_Static_assert(sizeof(struct behaviour) == 14 * 8 && __builtin_offsetof(struct behaviour, resource2) == 4 * 8 &&
               __builtin_offsetof(struct behaviour, args) == 9 * 8 && __builtin_offsetof(struct behaviour, family) == 10 * 8 &&
               __builtin_offsetof(struct behaviour, script) == 13 * 8,
               "hash_behaviour knows which words are often empty");

/* The text of the scratch, from `at` to TEXT_MAX. */
static __always_inline u64 hash_text(struct work *w)
{
    struct sip s;
    u32 at = w->at, length = TEXT_MAX - at;
    sip_start(&s);
    for (int i = 0; i < TEXT_MAX / 8; i++) {
        if (at + 8 > TEXT_MAX)
            break;
        sip_word(&s, text_word(w, at));
        at += 8;
    }
    u64 tail = at < TEXT_MAX ? text_word(w, at) : 0;
    return sip_end(&s, tail, length);
}

/* The argument a column of the table names; `none` where the call has no such argument. */
static __always_inline u64 argument(struct work *w, u8 index, u64 none)
{
    return index < 6 ? w->args[index & 7] : none;
}
