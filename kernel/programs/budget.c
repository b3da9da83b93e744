/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who may announce new names. What was announced before costs nothing here; a new behaviour and its text take room in a ring
 * that all share and time of its reader, and a workload can make new ones as fast as it calls. So they are counted, for the
 * node and for each container, by tier, in windows of about a second (2^30 ns):
 *
 *     calm     ring below half, node below its free part   everybody announces
 *     pressed  otherwise                                   a container announces its share; less as the ring fills
 *
 * While those who judge what is told are behind, their reader halves the budget (`config[SPARED]`).
 *
 * The tiers do not take from each other: calls that failed are shed first, what was denied and what is executed last. What is
 * shed stays an event of its container, executable and operation, with exact counts; only paths, addresses and arguments go.
 */
#define WINDOW_SHIFT 30
#define NODE_BUDGET (~0ULL) /* no cgroup has this id */

enum { TIER_FAILED, TIER_PASSED, TIER_DENIED, TIER_SHED };

static __always_inline struct budget *budget_of(u64 key)
{
    struct budget *found = budgets.lookup(&key);
    if (!found) {
        struct budget fresh = {};
        budgets.update(&key, &fresh);
        found = budgets.lookup(&key);
    }
    return found;
}

/* How much was asked for before in this window; processors that race lose a few counts at its start, no more. */
static __always_inline u32 charge(u64 key, u64 window, u32 tier)
{
    struct budget *budget = budget_of(key);
    if (!budget)
        return ~0U;
    if (budget->window != window) {
        budget->window = window;
        budget->asked[0] = budget->asked[1] = budget->asked[2] = budget->asked[3] = 0;
    }
    u32 *asked = &budget->asked[tier & 3], before = *asked;
    __sync_fetch_and_add(asked, 1);
    return before;
}

/* `payer`: see scope_of; `verdict`: it may yet be denied. */
static __always_inline int affordable(struct behaviour *b, u64 payer, int verdict)
{
    u64 filled = DEFINITIONS_FILLED(), window = bpf_ktime_get_boot_ns() >> WINDOW_SHIFT;
    u32 spared = setting(CONFIG_SPARED) & 7;
    /* First of what anybody may take, so that who makes few names notices nothing. */
    u32 names = NEW_PER_SECOND >> spared, shared = NEW_PER_SECOND >> (spared > 3 ? spared - 3 : 0);
    u32 tier = TIER_PASSED, most = names / 2, share = shared / 16;
    /* Of several texts of a call that may be denied the first cannot wait for the verdict. */
    if (b->enforcer || b->operation == OP_EXEC || verdict) {
        tier = TIER_DENIED;
        most = names;
        share = shared / 4;
    } else if (b->result < 0 && b->result != -1 && b->result != -13) { /* but EPERM, EACCES */
        tier = TIER_FAILED;
        most = names / 16;
        share = shared / 64;
    }
    u32 node = charge(NODE_BUDGET, window, tier), own = charge(payer, window, tier);
    if (filled < DEFINITION_BYTES / 2 && node < most)
        return 1;
    if (filled >= DEFINITION_BYTES / 4 * 3)
        share /= 8;
    if (filled >= DEFINITION_BYTES / 8 * 7 && tier != TIER_DENIED)
        return 0;
    return own < share;
}

/* Whether what this event names for the first time may be announced: asked once for all of it. */
static __always_inline int afford(struct work *w)
{
    if (w->steer.afford == AFFORD_UNASKED || w->steer.afford == AFFORD_VERDICT)
        w->steer.afford = affordable(&w->b, w->payer, w->steer.afford == AFFORD_VERDICT) ? AFFORD_YES : AFFORD_NO;
    return w->steer.afford == AFFORD_YES;
}

/* Leaves of a behaviour what its container, executable and operation are. */
static __always_inline void strip(struct behaviour *b)
{
    b->resource = b->resource2 = 0;
    b->flags = 0;
    b->owner = 0xffffffff;
    b->args[0] = b->args[1] = 0;
    b->port = 0;
    __builtin_memset(b->address, 0, sizeof(b->address));
    b->access |= ACCESS_UNTOLD;
}

/* Makes the behaviour the one that stands for all its container cannot afford to name, and says its id. */
static __always_inline u64 shed(struct behaviour *b, u64 payer)
{
    strip(b);
    u64 id = hash_behaviour(b);
    if (behaviours.lookup(&id))
        return id;
    if (charge(payer, bpf_ktime_get_boot_ns() >> WINDOW_SHIFT, TIER_SHED) < NEW_PER_SECOND / 64)
        return id;
    /* Even of these it makes too many: users, namespaces and executables without end. */
    b->executable = b->parent = b->script = 0;
    b->pid_ns = b->mnt_ns = 0;
    b->uid = 0xffffffff;
    b->tty = 0;
    b->access = ACCESS_UNTOLD;
    return hash_behaviour(b);
}

/* A loss of an event or an answer, for the node and for the container that pays. */
static __always_inline void lose_of(u64 payer, u32 what)
{
    lose(what);
    struct budget *budget = budget_of(payer);
    if (budget)
        __sync_fetch_and_add(&budget->lost[what == LOSS_ANSWERS ? 2 : what == LOSS_UNREAD], 1); /* OWN_LOSSES */
}

/* Whether an event that is to be reported has a reader, as far as is known without asking for the time: `reported` asks, and
 * notes that the time is over. Nothing is read of a call that nobody will hear of; it is counted. */
static __always_inline u32 attended(u32 visible, u64 payer)
{
    if (!visible)
        return 0;
    u64 until = setting(CONFIG_OBSERVED_UNTIL);
    if (until > 1)
        return 1;
    if (until)
        lose_of(payer, LOSS_UNREAD);
    return 0;
}
