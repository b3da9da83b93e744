/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bpf-lsm backend: hooks that the kernel asks before something happens; -EPERM is the answer to what the rules forbid.
 *
 *     hook -> enter (scope of the cgroup -> header of its table -> scratch) -> sources -> object (climb, verdict) -> tell
 *
 * One program per hook and no tail calls: since Linux 6.12 (and its stable backports) a program array holds LSM programs of one
 * prototype only. What hooks share are subprograms (sub_*), what is long runs in a bpf_loop (cb_*): functions of their own here,
 * which kernel/linker.py puts behind each hook, because BCC knows neither subprograms nor callbacks.
 *
 * Unlike a tracepoint's program a hook may be preempted by a task that asks too. Where the kernel can, preemption is off from
 * enter() to LEAVE(); elsewhere one of several scratches is claimed, and a claim that was lost makes an answer that is not known.
 */
#define CLIMB_STEPS 2112 /* components and mounts of the longest path: 2048 names of one byte, and 64 mounts */
#define EPERM_HOOK (-1)
#define SCRATCHES 4
#define FMODE_NOACCOUNT_ 0x20000000 /* a file of a layer that overlayfs opens for one that was asked about already */
#define MNT_NS_INTERNAL_ ((u64)-22) /* fs/mount.h: the kernel's own mounts; nobody gets there by a path */

/* What is known of the path in `text`. NOWHERE: a memfd, a pipe, a socket; its name is no place. */
enum { CLIMBING, WHOLE, NOWHERE, UNRESOLVED };
enum { ELSEWHERE_DETACHED = 1, ELSEWHERE_INTERNAL };

struct asked {
    u64 owner;    /* who has claimed this scratch: 0 nobody */
    u64 table;
    struct rule header;
    u64 cgroup;
    u64 payer; /* who pays for what is told (budget.c) */
    u64 sources[4]; /* string ids: the acting executable (exec: the parent's), and the script that it runs; then the sets of both; 0: none */
    u64 path;       /* id of the text, once it was scanned */
    u64 dentry;
    u64 mount;
    struct {
        u64 parent;
        u64 mountpoint;
        u64 root;
    } m; /* of `mount`, as they lie in it */
    u32 at; /* first byte of the text, which ends at TEXT_MAX */
    u32 state;
    u32 elsewhere; /* ELSEWHERE_*: its mount hangs in no mount namespace, or in another than the task's */
    u32 class_;
    u32 access;
    u32 inode_owner;
    u32 uid;
    u32 tty;
    u32 direction; /* sockets: DIRECTION_* of the question about the address, 0: none */
    u32 number;    /* sockets: the protocol as rules name it */
    u32 bound[4];  /* sockets: the address that it is bound to, where a peer is asked about */
    u32 exact;     /* a mapping of who is no loader: rules on the very file count alone */
    u32 forced;    /* to be stopped whatever the rules say of the object */
    u32 visibility; /* of the scope */
    struct {
        u32 base;
        u32 stride;
        u32 state;
        u32 at;
    } machine; /* of the table's patterns, on its way through the text */
    u32 index; /* of the rule that decided; ~0: the posture did */
    u64 inode;
    struct {
        struct sip sip;
        u64 seen;   /* marks of the slashes of the word under the cursor that were looked at */
        u64 parent; /* id of the directory that it lies in */
        u32 at;
        u32 slash; /* length of the path up to and with its last slash */
        u32 depth;
        u32 depths;
    } scan;
    struct {
        u64 rank;
        u32 stop;
        u32 index;
    } best[2]; /* of the rules that match: [0] limited to a source, [1] for anybody; rank 0: none */
    struct {
        u64 id;
        u64 rank;
        u32 kind;
        u32 hole;
    } lookup;
    struct definition behaviour_head; /* strictly before `b`: both leave in one ring record */
    struct behaviour b;
    struct occurrence o;
    struct definition text_room; /* the header of a text that starts at text[0] */
    u8 text[TEXT_MAX + TEXT_MAX + 64]; /* bytes from TEXT_MAX on stay zero */
};

BPF_TABLE("percpu_array", u32, struct asked, lsm_scratch, SCRATCHES);
BPF_TABLE("percpu_array", u32, u64, lsm_counts, 16);
BPF_TABLE("array", u32, u32, patterns, PATTERN_CELLS);

/* Marks that kernel/linker.py turns into what BCC cannot say: addresses of callbacks, calls of kernel functions. */
#define CALLBACK_CLIMB 0x4841554200000001ULL
#define CALLBACK_SCAN 0x4841554200000002ULL
#define CALLBACK_PATTERN 0x4841554200000003ULL
static struct asked *(*sub_enter_)(void *frame) = (void *)0x7ffffe01;
static long (*sub_sources_)(struct asked *w) = (void *)0x7ffffe02;
static long (*sub_object_)(struct asked *w) = (void *)0x7ffffe03;
static long (*sub_tell_)(struct asked *w) = (void *)0x7ffffe04;
static long (*sub_climb_)(struct asked *w) = (void *)0x7ffffe05;
static long (*sub_verdict_)(struct asked *w) = (void *)0x7ffffe06;
static long (*sub_lookup_)(struct asked *w) = (void *)0x7ffffe07;
static long (*sub_sockets_)(struct asked *w) = (void *)0x7ffffe08;
static long (*sub_patterns_)(struct asked *w) = (void *)0x7ffffe09;
static long (*sub_preset_)(struct asked *w) = (void *)0x7ffffe0a;
static long (*sub_actors_)(struct asked *w) = (void *)0x7ffffe0b;
static long (*sub_keep_)(u64 file) = (void *)0x7ffffe0c;
static long (*bpf_loop_)(u32 count, u64 callback, void *context, u64 flags) = (void *)181;
#ifdef K_PREEMPT
static void (*preempt_disable_)(void) = (void *)0x7fffff02;
static void (*preempt_enable_)(void) = (void *)0x7fffff03;
#endif
/* Second argument of a callback: BCC takes every argument after the first for one of a probed kernel function. */
#define CONTEXT() ({ u64 c_; asm volatile("%0 = r2" : "=r"(c_)); u64 w_; asm volatile("%0 = *(u64 *)(%1 + 0)" : "=r"(w_) : "r"(c_)); (struct asked *)w_; })

static __always_inline void tally(u32 what)
{
    u64 *n = lsm_counts.lookup(&what);
    if (n)
        *n += 1;
}

static __always_inline u64 word_at(struct asked *w, u32 at)
{
    KEEP(at);
    return LOAD_WORD(&w->text[at & (TEXT_MAX - 1)]);
}

static __always_inline struct rule *rule_of(u64 table, u64 path, u64 source, u32 class_, u32 kind)
{
    struct rule_key key = {.table = table, .path = path, .source = source, .class_ = class_, .kind = kind};
    return rules.lookup(&key);
}

/* ---- climb: dentries from the leaf to the top of the mount namespace, written from right to left ---- */
static __always_inline void mount_at(struct asked *w)
{
    if (bpf_probe_read_kernel(&w->m, sizeof(w->m), (void *)w->mount + K_mount__mnt_parent))
        w->m.parent = w->m.root = 0;
}

/* The root of `mount`, which is mounted nowhere: of the task's mount namespace, then the path is whole; or of another's, or of a
 * clone that was never mounted (open_tree), which is named by its place in its filesystem as the sensor does. */
static __always_inline int at_the_top(struct asked *w)
{
    u64 ns = READ64(w->mount, K_mount__mnt_ns);
    u64 mine = READ64(READ64(bpf_get_current_task(), K_task_struct__nsproxy), K_nsproxy__mnt_ns);
    w->elsewhere = ns == MNT_NS_INTERNAL_ ? ELSEWHERE_INTERNAL : ELSEWHERE_DETACHED;
    if (ns != mine)
        return 0;
    w->elsewhere = 0;
    return 1;
}

/* A dentry without a parent, called `name`. */
static __always_inline void at_the_end(struct asked *w, u64 name, u32 length)
{
    u32 at = w->at;
    if (at != TEXT_MAX) { /* of a layer, which overlayfs opens for itself to copy a file up; or not known where: by a file handle */
        w->state = w->elsewhere == ELSEWHERE_DETACHED ? WHOLE : w->elsewhere && w->class_ == CLASS_FILE ? NOWHERE : UNRESOLVED;
        return;
    }
    w->state = NOWHERE;
    length &= 255;
    at -= length;
    w->at = at;
    KEEP(length);
    bpf_probe_read_kernel(&w->text[at & (TEXT_MAX - 1)], length & 255, (void *)name);
}

int cb_climb(u64 index)
{
    struct asked *w = CONTEXT();
    u64 dentry = w->dentry;
    struct {
        u64 parent;
        u32 hash;
        u32 length;
        u64 name;
    } d = {};
    if (dentry == w->m.root) {
        if (w->m.parent != w->mount && w->m.parent) {
            w->dentry = w->m.mountpoint;
            w->mount = w->m.parent;
            mount_at(w);
            return 0;
        }
        if (at_the_top(w)) {
            if (w->at == TEXT_MAX) {
                w->at = TEXT_MAX - 1;
                w->text[TEXT_MAX - 1] = '/';
            }
            w->state = WHOLE;
            return 1;
        }
    }
    if (bpf_probe_read_kernel(&d, sizeof(d), (void *)dentry + K_dentry__d_parent)) {
        w->state = UNRESOLVED;
        return 1;
    }
    if (d.parent == dentry) {
        at_the_end(w, d.name, d.length);
        return 1;
    }
    u32 at = w->at, length = d.length & 255;
    if (length + 1 > at) { /* longer than any path that can be named: rules for it there are none */
        w->state = UNRESOLVED;
        return 1;
    }
    at -= length + 1;
    w->at = at;
    at &= TEXT_MAX - 1;
    w->text[at] = '/';
    KEEP(length);
    bpf_probe_read_kernel(&w->text[at + 1], length & 255, (void *)d.name);
    w->dentry = d.parent;
    return 0;
}

/* First argument of a subprogram, as it is. */
#define ASKED(argument) ({ u64 w_ = (argument); (struct asked *)w_; })

/* The text becomes the path of `dentry` in `mount`. */
int sub_climb(u64 argument)
{
    struct asked *w = ASKED(argument);
    u64 frame = (u64)w;
    w->at = TEXT_MAX;
    w->state = CLIMBING;
    w->elsewhere = 0;
    w->path = 0;
    mount_at(w);
    bpf_loop_(CLIMB_STEPS, CALLBACK_CLIMB, &frame, 0);
    if (w->state == CLIMBING)
        w->state = UNRESOLVED;
    return 0;
}

static __always_inline void climb(struct asked *w, u64 dentry, u64 vfsmount)
{
    w->dentry = dentry;
    w->mount = vfsmount - K_mount__mnt;
    sub_climb_(w);
}

/* ---- who asks ---- */
static __always_inline struct asked *claim(u64 me)
{
#ifdef K_PREEMPT
    u32 zero = 0;
    preempt_disable_();
    struct asked *w = lsm_scratch.lookup(&zero);
    if (!w)
        preempt_enable_();
    return w;
#else
    for (int i = 0; i < SCRATCHES; i++) {
        u32 slot = i;
        struct asked *w = lsm_scratch.lookup(&slot);
        if (!w || *(volatile u64 *)&w->owner)
            continue;
        *(volatile u64 *)&w->owner = me;
        if (*(volatile u64 *)&w->owner == me)
            return w;
    }
    return 0;
#endif
}

/* Whether the scratch was this task's all the time; it is nobody's from here on. */
static __always_inline int unclaim(struct asked *w, u64 me)
{
#ifdef K_PREEMPT
    preempt_enable_();
    return 1;
#else
    int mine = *(volatile u64 *)&w->owner == me;
    if (mine)
        *(volatile u64 *)&w->owner = 0;
    return mine;
#endif
}

/* The same before it ends. */
static __always_inline int still_claimed(struct asked *w)
{
#ifdef K_PREEMPT
    return 1;
#else
    return *(volatile u64 *)&w->owner == bpf_get_current_pid_tgid();
#endif
}

/* What the kernel is told. In assembly, or the compiler would compute it, and the verifier (6.12) not see that it is 0 or an errno. */
static __always_inline int told(int stop)
{
    if (stop) {
        int answer;
        asm volatile("%0 = -1" : "=r"(answer)); /* -EPERM */
        return answer;
    }
    return 0;
}

/* Whether what could not be asked is denied under a table with these flags. */
static __always_inline int closes(u32 flags)
{
    return (flags & (TABLE_CLOSED | TABLE_SHADOW)) == TABLE_CLOSED;
}

/* The answer of a hook, and the end of it. */
static __always_inline int leave(struct asked *w, int stop)
{
    int closed = closes(w->header.flags);
    if (!unclaim(w, bpf_get_current_pid_tgid())) {
        tally(COUNT_CLAIM_LOST);
        stop |= closed;
    }
    return told(stop);
}

/* What a hook hands to sub_enter: `has` is TABLE_HAS_* of the class, `stop` the answer where there is no scratch. */
struct entering {
    u64 class_;
    u64 has;
    u64 operation;
    u64 access;
    u64 stop;
};

/* The scratch of an operation that somebody's rules are about; 0: nobody's. */
u64 sub_enter(struct bpf_raw_tracepoint_args *ctx)
{
    struct entering *e = (struct entering *)ctx;
    void *task = TASK();
    u64 cgroup = cgroup_of(task), payer = 0;
    struct scope scope;
    struct rule *header = 0;
    e->stop = 0;
#pragma clang loop unroll(disable)
    for (int i = 0; i < 2; i++) { /* it may go between two lookups: then the scope names another one by now */
        payer = scope_of(cgroup, &scope);
        if (!(scope.flags & SCOPE_ENFORCE_LSM))
            return 0;
        header = rule_of(scope.table, 0, 0, 0, RULE_HEADER);
        if (header)
            break;
    }
    if (!header) {
        tally(COUNT_NO_HEADER);
        e->stop = 1;
        return 0;
    }
    u32 flags = header->flags;
    if (!(flags & e->has) || is_excluded(tgid_of(task)))
        return 0;
    struct asked *w = claim(bpf_get_current_pid_tgid());
    if (!w) {
        tally(COUNT_NO_SCRATCH);
        e->stop = closes(flags);
        return 0;
    }
    w->header = *header;
    w->table = scope.table;
    w->cgroup = cgroup;
    w->payer = payer;
    w->visibility = scope.visibility;
    w->class_ = e->class_;
    w->access = e->access;
    w->sources[0] = w->sources[1] = w->sources[2] = w->sources[3] = 0;
    w->path = 0;
    w->at = TEXT_MAX;
    w->state = CLIMBING;
    w->elsewhere = 0;
    w->exact = w->forced = 0;
    w->inode = 0;
    w->inode_owner = 0xffffffff;
    w->uid = uid_of(task);
    w->tty = LOAD64((void *)LOAD64(task, K_task_struct__signal), K_signal_struct__tty) != 0;
    __builtin_memset(&w->b, 0, sizeof(w->b));
    w->b.operation = e->operation;
    w->b.access = e->access;
    return (u64)w;
}

#define ENTER(class__, has_, operation_, access_)                                                               \
    struct entering e = {.class_ = class__, .has = has_, .operation = operation_, .access = access_};            \
    struct asked *w = sub_enter_(&e);                                                                            \
    if (!w)                                                                                                      \
        return told(e.stop != 0);                                                                          \
    if (w->header.flags & TABLE_SOURCES)                                                                         \
        sub_sources_(w);                                                                                         \
    if (w->header.flags & TABLE_ACTORS)                                                                          \
        sub_actors_(w)
