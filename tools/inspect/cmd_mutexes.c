/* SPDX-License-Identifier: MIT */
/*
 * cmd_mutexes.c - users' mutexes that are held, by whom and since when, and who waits.
 *
 * A mutex may lie anywhere in a block. So they are found by what threads note of themselves: what
 * they hold and what they wait for. A note is believed when the owner's word of the mutex names
 * that thread.
 */
#include "inspect.h"

#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "platform/os.h"

static const char help[] =
    "Mutexes (shmalloc_mutex) that are held or that a dead owner left, with the threads that\n"
    "wait for them, and threads that wait for a condition or for a word. Who holds one that\n"
    "another holder waits for, and so on in a circle, is in a deadlock, which is told.\n"
    "\n"
    "Each thread notes the first 8 mutexes that it holds. Of others only those are seen\n"
    "that somebody waits for.\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"mutexes\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  mutexes                 list of: ref, holder, ns (how long it is held, where that is\n"
    "                          noted), inconsistent, deadlock, waiters (list)\n"
    "    holder                slot, and while that thread slot is in use pid, name, tid,\n"
    "                          alive; a holder that is not alive died holding it\n"
    "    inconsistent          an owner died, and none after it has called\n"
    "                          shmalloc_mutex_consistent()\n"
    "    waiters               as holder, and ns: how long it waits\n"
    "  waits                   list of: ref of the condition or word, and as waiters\n";

struct thread {
    uint64_t serial, owner, tid, waits_for, waits_since;
    int is_waiting; /* for a mutex in the list */
};

struct mutex {
    uint64_t ref, since; /* 0: not noted */
    uint32_t slot;
    int inconsistent, deadlock;
};

static struct {
    struct thread threads[SMF_THREADS];
    struct mutex mutexes[SMF_THREADS * (SMF_HELD + 1)];
    uint32_t thread_count, mutex_count;
    uint64_t now; /* 0: times in the heap are not of this boot */
} seen;

/* ---- reading -------------------------------------------------------------------------------- */

static struct mutex *known_mutex(uint64_t ref)
{
    for (uint32_t i = 0; i < seen.mutex_count; i++)
        if (seen.mutexes[i].ref == ref)
            return &seen.mutexes[i];
    return NULL;
}

/* The mutex at `ref`, if its owner's word names a thread slot; `slot` that very one, or any when it
 * is SMF_THREADS. */
static void add_mutex(struct inspect *in, uint64_t ref, uint32_t slot, uint64_t since)
{
    struct smf_user_mutex m;
    if (ref % 8 != 0 || known_mutex(ref) || smi_view_read_now(&in->view, ref, sizeof(m), &m) < 0)
        return;
    uint64_t named = (m.owner & SMF_OWNER_SLOT) - 1;
    if (named >= SMF_THREADS || seen.threads[named].serial != m.owner >> SMF_OWNER_SERIAL_SHIFT ||
        (slot < SMF_THREADS && slot != named))
        return;
    seen.mutexes[seen.mutex_count++] = (struct mutex){.ref = ref,
                                                      .since = since,
                                                      .slot = (uint32_t)named,
                                                      .inconsistent = (m.owner & SMF_LEFT) != 0};
}

static void read_threads(struct inspect *in)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *t = smi_view_thread(&in->view, i, &ref);
        if (t)
            seen.threads[i] = (struct thread){
                t->serial, t->owner, t->tid, t->owner ? t->waits_for : 0, t->waits_since, 0};
    }
}

static void read_mutexes(struct inspect *in)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *t = smi_view_thread(&in->view, i, &ref);
        for (unsigned k = 0; t && k < SMF_HELD; k++)
            if (t->held[k] != 0)
                add_mutex(in, t->held[k], i, t->held_since[k]);
    }
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        struct thread *t = &seen.threads[i];
        if (t->waits_for != 0)
            add_mutex(in, t->waits_for, SMF_THREADS, 0);
        t->is_waiting = t->waits_for != 0 && known_mutex(t->waits_for) != NULL;
    }
}

/* From holder to what it waits for, and on: back to the same mutex? */
static void find_deadlocks(void)
{
    for (uint32_t i = 0; i < seen.mutex_count; i++) {
        const struct mutex *at = &seen.mutexes[i];
        for (unsigned steps = 0; at && steps < SMF_THREADS && !seen.mutexes[i].deadlock; steps++) {
            const struct thread *holder = &seen.threads[at->slot];
            at = holder->is_waiting ? known_mutex(holder->waits_for) : NULL;
            seen.mutexes[i].deadlock = at == &seen.mutexes[i];
        }
    }
}

/* The process of a thread slot; NULL when nobody has the slot. */
static const struct smf_process *process_of(struct inspect *in, uint32_t slot)
{
    uint64_t owner = seen.threads[slot].owner;
    if (owner == 0 || owner > SMF_PROCESSES)
        return NULL;
    uint64_t at = in->view.header.areas.processes + (owner - 1) * sizeof(struct smf_process);
    return smi_view_record(&in->view, at, sizeof(struct smf_process));
}

static int is_alive(const struct inspect *in, uint32_t slot)
{
    uint64_t owner = seen.threads[slot].owner;
    return owner != 0 && owner <= SMF_PROCESSES && in->users.alive[owner - 1];
}

/* How long ago that was; 0: not to be told. */
static uint64_t time_since(uint64_t since)
{
    return since != 0 && since <= seen.now ? seen.now - since : 0;
}

/* ---- text ----------------------------------------------------------------------------------- */

static void print_thread(struct inspect *in, uint32_t slot, const char *doing, uint64_t since)
{
    const struct smf_process *process = process_of(in, slot);
    if (process) {
        char name[sizeof(process->name) + 1] = "";
        memcpy(name, process->name, sizeof(process->name));
        printf("%sprocess %u (", is_alive(in, slot) ? "" : "dead ", process->pid);
        inspect_print_text(name);
        printf("), thread %u", (uint32_t)seen.threads[slot].tid);
    } else {
        printf("a thread that ended");
    }
    printf("%s", doing);
    if (time_since(since) > 0)
        printf(", for %.3f s", (double)time_since(since) / 1e9);
}

static void print_mutex(struct inspect *in, const struct mutex *m)
{
    printf("%#-14llx held by ", (unsigned long long)m->ref);
    print_thread(in, m->slot, "", m->since);
    printf("%s%s%s%s%s\n", m->inconsistent ? ", inconsistent since an owner's death" : "",
           m->deadlock ? ", " : "", inspect_color(in, m->deadlock ? RED : PLAIN),
           m->deadlock ? "deadlock" : "", inspect_color(in, PLAIN));
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        if (!seen.threads[i].is_waiting || seen.threads[i].waits_for != m->ref)
            continue;
        printf("               ");
        print_thread(in, i, " waits", seen.threads[i].waits_since);
        printf("\n");
    }
}

static void print_all(struct inspect *in)
{
    if (seen.mutex_count == 0)
        printf("no mutex is held\n");
    for (uint32_t i = 0; i < seen.mutex_count; i++)
        print_mutex(in, &seen.mutexes[i]);
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        const struct thread *t = &seen.threads[i];
        if (t->waits_for == 0 || t->is_waiting)
            continue;
        printf("%#-14llx a condition or word: ", (unsigned long long)t->waits_for);
        print_thread(in, i, " waits", t->waits_since);
        printf("\n");
    }
    if (inspect_is_live(in))
        printf("%sThe heap is in use: this is a moving picture.%s\n", inspect_color(in, DIM),
               inspect_color(in, PLAIN));
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static struct json_object *thread_object(struct inspect *in, uint32_t slot)
{
    struct json_object *object = json_object_new_object();
    const struct smf_process *process = process_of(in, slot);
    inspect_add_number(object, "slot", slot);
    if (process) {
        char name[sizeof(process->name) + 1] = "";
        memcpy(name, process->name, sizeof(process->name));
        inspect_add_number(object, "pid", process->pid);
        inspect_add_text(object, "name", name);
        inspect_add_number(object, "tid", seen.threads[slot].tid);
    }
    inspect_add_flag(object, "alive", is_alive(in, slot));
    return object;
}

static struct json_object *waiter_object(struct inspect *in, uint32_t slot)
{
    struct json_object *object = thread_object(in, slot);
    if (time_since(seen.threads[slot].waits_since) > 0)
        inspect_add_number(object, "ns", time_since(seen.threads[slot].waits_since));
    return object;
}

static struct json_object *mutex_object(struct inspect *in, const struct mutex *m)
{
    struct json_object *object = json_object_new_object(), *waiters = json_object_new_array();
    for (uint32_t i = 0; i < SMF_THREADS; i++)
        if (seen.threads[i].is_waiting && seen.threads[i].waits_for == m->ref)
            json_object_array_add(waiters, waiter_object(in, i));
    inspect_add_number(object, "ref", m->ref);
    inspect_add(object, "holder", thread_object(in, m->slot));
    if (time_since(m->since) > 0)
        inspect_add_number(object, "ns", time_since(m->since));
    inspect_add_flag(object, "inconsistent", m->inconsistent);
    inspect_add_flag(object, "deadlock", m->deadlock);
    inspect_add(object, "waiters", waiters);
    return object;
}

static void add_all(struct inspect *in)
{
    struct json_object *mutexes = json_object_new_array(), *waits = json_object_new_array();
    for (uint32_t i = 0; i < seen.mutex_count; i++)
        json_object_array_add(mutexes, mutex_object(in, &seen.mutexes[i]));
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        if (seen.threads[i].waits_for == 0 || seen.threads[i].is_waiting)
            continue;
        struct json_object *waiter = waiter_object(in, i);
        inspect_add_number(waiter, "ref", seen.threads[i].waits_for);
        json_object_array_add(waits, waiter);
    }
    inspect_add_flag(in->out, "moving", inspect_is_live(in));
    inspect_add(in->out, "mutexes", mutexes);
    inspect_add(in->out, "waits", waits);
}

static enum verdict run(struct inspect *in)
{
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict != SOUND)
        return verdict;
    memset(&seen, 0, sizeof(seen));
    seen.now = inspect_runtime_is_valid(in) ? smi_os_tick() : 0;
    if (!smi_format_is_older(&in->view.header)) { /* which notes nothing */
        read_threads(in);
        read_mutexes(in);
        find_deadlocks();
    }
    if (in->out)
        add_all(in);
    else
        print_all(in);
    return SOUND;
}

const struct subcommand inspect_mutexes = {
    "mutexes", "users' mutexes that are held, by whom, who waits", help, run, NULL};
