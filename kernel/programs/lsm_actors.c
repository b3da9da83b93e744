/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who acts, as rules with a source ask it: the ids of the executable and of the script that it runs, and the sets of sources that their
 * paths belong to (directories and patterns, one machine for each table).
 *
 *     exec -> sub_keep (path by id)      call -> sub_sources (ids), sub_actors: lsm_actors {table, id} -> the text by its id -> machine
 *
 * A set belongs to a table, which is named by what is in it: another table asks anew, whoever runs and since when. A path is known as it was
 * when it was executed, so that parents that have ended or run something else are still known; without it the running executable is
 * asked, if its id is the same. Whose path is not known at all is in the set ACTOR_UNKNOWN, or in none where the table does not close.
 */
#define KEPT_TEXT 248 /* of longer paths only the running executable is known */
#define KEPT_TEXTS 4096
#define KEPT_SETS 8192

struct kept_text {
    u64 length;
    u8 text[KEPT_TEXT]; /* its last byte is the last of these */
};
struct actor_key {
    u64 table;
    u64 id;
};
BPF_TABLE("lru_hash", u64, struct kept_text, lsm_texts, KEPT_TEXTS);
BPF_TABLE("lru_hash", struct actor_key, u64, lsm_actors, KEPT_SETS);

/* The text in the scratch is kept under its id. */
static __always_inline void keep_text(struct asked *w)
{
    u32 length = TEXT_MAX - w->at;
    if (w->state == UNRESOLVED || !length || length > KEPT_TEXT)
        return;
    scan_text(w, 0);
    u64 id = whole(w);
    if (lsm_texts.lookup(&id))
        return;
    struct kept_text *text = (struct kept_text *)&w->text[TEXT_MAX - sizeof(*text)];
    text->length = length; /* in front of the text: there is room */
    lsm_texts.update(&id, text);
}

/* The path of a file that is being executed is kept, whoever executes it: a table that asks for it may come later. */
int sub_keep(u64 file)
{
    u64 me = bpf_get_current_pid_tgid();
    struct asked *w = claim(me);
    if (!w) {
        tally(COUNT_NO_SCRATCH);
        return 0;
    }
    w->class_ = CLASS_PROCESS;
    climb(w, READ64(file, K_file__f_path__dentry), READ64(file, K_file__f_path__mnt));
    keep_text(w);
    unclaim(w, me);
    return 0;
}

/* The path of the executable of `task` in place of the text. Its id, 0 when it has none. */
static __always_inline u64 executable_of(struct asked *w, void *task)
{
    u64 mm = READ64(task, K_task_struct__mm), file = mm ? READ64(mm, K_mm_struct__exe_file) : 0;
    if (!file)
        return 0;
    climb(w, READ64(file, K_file__f_path__dentry), READ64(file, K_file__f_path__mnt));
    if (w->state == UNRESOLVED || w->at >= TEXT_MAX)
        return 0;
    scan_text(w, 0);
    return whole(w);
}

/* Whether the path with this id is in place of the text: the one that was kept, else what `task` runs, where there is one. */
static __always_inline int recall(struct asked *w, u64 id, void *task)
{
    struct kept_text *kept = lsm_texts.lookup(&id);
    u32 length = kept ? kept->length : 0;
    if (kept && length && length <= KEPT_TEXT) {
        bpf_probe_read_kernel(&w->text[TEXT_MAX - KEPT_TEXT], KEPT_TEXT, kept->text);
        w->at = TEXT_MAX - length;
        w->state = WHOLE;
        scan_text(w, 0);
        if (whole(w) == id) /* an element may become another's while it is read */
            return 1;
    }
    return task && executable_of(w, task) == id;
}

/* The set of sources that the executable `id` is in; `task` runs it, if anybody does. */
static __always_inline u64 set_of(struct asked *w, u64 id, void *task)
{
    struct actor_key key = {.table = w->table, .id = id};
    u64 *known = lsm_actors.lookup(&key);
    if (known)
        return *known;
    if (!recall(w, id, task)) {
        tally(COUNT_NO_ACTOR);
        return closes(w->header.flags) ? ACTOR_UNKNOWN : 0;
    }
    u64 set = accepted_by(w, w->header.index + w->header.rank);
    if (still_claimed(w))
        lsm_actors.update(&key, &set);
    return set;
}

/* The sets of both sources in the scratch. No loop: clang entered it in its middle, which the verifier of Linux 6.1 refuses. */
int sub_actors(u64 argument)
{
    struct asked *w = ASKED(argument);
    void *task = (void *)TASK();
    if (w->class_ == CLASS_PROCESS)
        task = (void *)LOAD64(task, K_task_struct__real_parent);
    if (w->sources[0])
        w->sources[2] = set_of(w, w->sources[0], task);
    else if (w->state == UNRESOLVED && closes(w->header.flags))
        w->sources[2] = ACTOR_UNKNOWN;
    if (w->sources[1])
        w->sources[3] = set_of(w, w->sources[1], 0);
    w->at = TEXT_MAX;
    w->state = CLIMBING;
    return 0;
}

/* Whose rules are asked first. An exec is its parent's, as for the judge. Strictly before the object's path: it takes its place. */
int sub_sources(u64 argument)
{
    struct asked *w = ASKED(argument);
    void *task = (void *)TASK();
    u32 tgid = tgid_of(task);
    struct image *image = processes.lookup(&tgid);
    if (image && image->executable) {
        w->sources[0] = w->class_ == CLASS_PROCESS && image->parent ? image->parent : image->executable;
        w->sources[1] = image->script;
    } else {
        if (w->class_ == CLASS_PROCESS)
            task = (void *)LOAD64(task, K_task_struct__real_parent);
        w->sources[0] = executable_of(w, task);
    }
    return 0;
}
