/* SPDX-License-Identifier: MIT */
/*
 * cmd_procs.c - processes and threads that use a heap, and which of the heap's locks they hold.
 *
 * Alive means: the process holds the lock on its byte of the file. PID, name and start time are
 * what the process wrote when it attached, in its own PID namespace; /proc is asked about the
 * process only where that namespace is ours and the start time agrees.
 */
#include "inspect.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "platform/os.h"
#include "format/sizeclass.h"

static const char help[] =
    "Processes that have the heap open, their threads with what they have cached and keep,\n"
    "their open transactions and read sections, what they retired, and the locks of the\n"
    "heap that they hold at this moment. A process that died without\n"
    "closing the heap is shown as dead until another one has brought back what it had\n"
    "cached.\n"
    "\n"
    "PIDs are those of the PID namespace that the heap is used in.\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"procs\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  attaching               true while a process opens or closes the heap\n"
    "  pid_namespace           \"same\" as this tool's, or \"other\"\n"
    "  processes               list of: index, pid, name, uid, alive, activity (\"running\",\n"
    "                          \"stopped\", \"zombie\", \"gone\", \"unknown\"), attached_at\n"
    "                          (nanoseconds since 1970), start_time (clock ticks since boot),\n"
    "                          minor_faults and major_faults (page faults of the whole\n"
    "                          program so far; where /proc tells),\n"
    "                          threads: list of: slot, tid, cached_slots, cached_bytes,\n"
    "                          kept_blocks, kept_bytes, step, transaction, section,\n"
    "                          section_over, retired_blocks, retired_bytes, locks (names)\n"
    "    kept_blocks           large blocks that the thread freed and keeps for its next\n"
    "                          requests; kept_bytes are not in cached_bytes\n"
    "    step                  an alloc, free or realloc with a ref word in the heap under\n"
    "                          way: \"take\", \"give\", \"short-take\", \"short-give\" or\n"
    "                          \"short-exchange\", by the record that the thread has of it (a\n"
    "                          short one is of the fast way; a realloc of the other is\n"
    "                          \"take\"); \"none\"; \"unknown\": no record says that\n"
    "    transaction           state: \"none\"; \"open\": rolled back if its thread dies;\n"
    "                          \"committed\": finished by others then; \"unknown\": damaged;\n"
    "                          entries and log_bytes of its log, or as many as can be read;\n"
    "                          log_error, in words, only if something is wrong with that\n"
    "    section               epoch that the thread's read section began at; 0: in none;\n"
    "                          section_over is true when it no longer keeps others from\n"
    "                          freeing what it reads\n"
    "    retired_blocks        blocks that the thread retired and are not yet freed, and\n"
    "                          retired_bytes\n"
    "  locks_of_others         list of: lock, tid, for holders that no thread slot names\n";

struct transaction {
    uint64_t phase, entries, bytes;
    const char *wrong; /* about its log; NULL nothing */
};

struct thread {
    uint32_t slot, process;
    uint32_t tid;
    uint64_t cached_slots, cached_bytes;
    uint64_t section; /* epoch at which its read section began; 0: it is in none */
    int section_is_over;
    struct smi_view_kept kept;
    struct smi_view_retired retired;
    struct transaction tx;
    const struct step *step;
};

/* What a link record is about. */
struct step {
    const char *key, *doing;
};

struct held_lock {
    uint32_t index, tid;
    int shown;
};

struct census {
    struct thread threads[SMF_THREADS];
    uint32_t thread_count;
    struct held_lock locks[256];
    uint32_t lock_count;
    int same_namespace;
    int valid; /* the process table is about this file on this machine */
};

/* ---- reading -------------------------------------------------------------------------------- */

/* Only the short records have more than the operation in `op`. */
static const struct step *step_of(const struct smf_link *link)
{
    static const struct step steps[] = {
        [SMF_LINK_NONE] = {"none", ""},
        [SMF_LINK_TAKE] = {"take", ", allocating"},
        [SMF_LINK_GIVE] = {"give", ", freeing"},
        [SMF_LINK_MOVE] = {"move", ", sending or receiving a ref"},
        [SMF_LINK_SHORT_TAKE] = {"short-take", ", allocating"},
        [SMF_LINK_SHORT_GIVE] = {"short-give", ", freeing"},
        [SMF_LINK_SHORT_EXCHANGE] = {"short-exchange", ", reallocating"},
    };
    static const struct step exchange = {"take", ", reallocating"},
                             unknown = {"unknown", ", in an unknown step"};
    uint64_t op = smi_link_is_short(link) ? link->op & SMF_LINK_OP : link->op;
    if (op == SMF_LINK_TAKE && link->old != 0)
        return &exchange;
    return op < sizeof(steps) / sizeof(steps[0]) && steps[op].key ? &steps[op] : &unknown;
}

/* The thread id in a held mutex, 0 when it is free: the futex word's low 30 bits. */
static uint32_t holder_of(const struct smf_lock *lock)
{
#if defined(__GLIBC__)
    return (uint32_t)lock->mutex[0] & 0x3fffffffu; /* the first of its ints */
#else
    return (uint32_t)(lock->mutex[0] >> 32) & 0x3fffffffu; /* musl: the second, after the type */
#endif
}

/* Of a view that is not settled: then no step would be under way. */
static void read_threads(struct inspect *in, struct census *census)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *t = smi_view_thread(&in->view, i, &ref);
        if (!t || !t->owner || t->owner > SMF_PROCESSES)
            continue;
        struct thread thread = {.slot = i,
                                .process = (uint32_t)t->owner - 1,
                                .tid = (uint32_t)t->tid,
                                .step = step_of(&t->link)};
        if (!smi_format_is_older(&in->view.header)) {
            thread.section = t->section_epoch;
            thread.section_is_over = thread.section != 0 && t->ousted >= thread.section;
        }
        for (unsigned k = 0; k < SMF_CLASSES; k++) {
            struct smi_view_stack stack;
            smi_view_read_stack(&in->view, ref, t, k, &stack);
            thread.cached_slots += stack.count;
            thread.cached_bytes += (uint64_t)stack.count * smi_classes[k].size;
        }
        census->threads[census->thread_count++] = thread;
    }
}

static void count_logged(const struct smi_logged *logged, uint64_t at, void *arg)
{
    struct transaction *tx = arg;
    (void)at;
    tx->entries++;
    tx->bytes += logged->bytes;
}

static struct transaction transaction_of(struct inspect *in, const struct smf_thread *t)
{
    struct transaction tx = {.phase = smi_view_tx_phase(&in->view, t)};
    uint64_t at;
    if (tx.phase == SMF_TX_IDLE)
        return tx;
    if (!smi_view_log(&in->view, t))
        tx.wrong = "is not there";
    else
        tx.wrong = smi_view_each_logged(&in->view, t, count_logged, &tx, &at);
    return tx;
}

/* Of a view that is settled: the descriptors of blocks and of spans are looked at. */
static void read_spans(struct inspect *in, struct census *census)
{
    for (uint32_t i = 0; i < census->thread_count; i++) {
        uint64_t ref;
        struct thread *thread = &census->threads[i];
        const struct smf_thread *t = smi_view_thread(&in->view, thread->slot, &ref);
        if (!t)
            continue;
        thread->kept = smi_view_kept(&in->view, thread->slot, t);
        thread->retired = smi_view_retired(&in->view, t);
        thread->tx = transaction_of(in, t);
    }
}

static void read_locks(struct inspect *in, struct census *census)
{
    for (uint32_t i = 0; i < in->view.header.lock_count; i++) {
        const struct smf_lock *lock = smi_view_record(
            &in->view, in->view.header.areas.locks + i * sizeof(*lock), sizeof(*lock));
        uint32_t tid = lock ? holder_of(lock) : 0;
        if (tid && census->lock_count < 256)
            census->locks[census->lock_count++] = (struct held_lock){i, tid, 0};
    }
}

static const char *lock_name(const struct inspect *in, uint32_t index, char buf[48])
{
    static const char *const first[] = {"commit", "transactions", "roots", "recover"};
    uint32_t k = (index - SMF_LOCK_CLASS_FIRST) % SMF_CLASSES;
    if (index < 4)
        snprintf(buf, 48, "%s", first[index]);
    else if (index + 1 == in->view.header.lock_count)
        snprintf(buf, 48, "pages");
    else if (index < SMF_LOCK_CLASS_FIRST)
        snprintf(buf, 48, "lock %u", index);
    else
        snprintf(buf, 48, "class %u of arena %u", smi_classes[k].size,
                 (index - SMF_LOCK_CLASS_FIRST) / SMF_CLASSES);
    return buf;
}

/* What a process does, from /proc/PID/stat. */
static const char *activity(const struct census *census, const struct smf_process *process)
{
    char path[64], text[512] = "";
    if (!census->same_namespace)
        return "unknown";
    uint64_t started = smi_os_start_time((pid_t)process->pid, (pid_t)process->pid);
    if (started == 0 && (kill((pid_t)process->pid, 0) == 0 || errno == EPERM))
        return "unknown"; /* /proc hides it, or is another namespace's */
    if (started != process->start_time)
        return "gone";
    snprintf(path, sizeof(path), "/proc/%u/stat", process->pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return "gone";
    size_t len = fread(text, 1, sizeof(text) - 1, file);
    fclose(file);
    text[len] = 0;
    const char *end = strrchr(text, ')'); /* the name may hold anything; the state follows it */
    char state = end && end[1] ? end[2] : '?';
    return state == 'T' || state == 't'   ? "stopped"
           : state == 'Z' || state == 'X' ? "zombie"
                                          : "running";
}

static const char *name_of(const struct smf_process *process, char buf[17])
{
    memcpy(buf, process->name, 16);
    buf[16] = 0;
    return buf;
}

/* An entry to show: of a process that is alive, or died and was not adopted. After a reboot, and in
 * a copy, the table says nothing. */
static const struct smf_process *process_at(struct inspect *in, const struct census *census,
                                            uint32_t i)
{
    const struct smf_process *process = smi_view_record(
        &in->view, in->view.header.areas.processes + i * sizeof(*process), sizeof(*process));
    return process && (in->users.alive[i] || (census->valid && process->state == 1)) ? process
                                                                                     : NULL;
}

/* ---- text ----------------------------------------------------------------------------------- */

static const char *state_of(const struct transaction *tx)
{
    static const char *const states[] = {[SMF_TX_IDLE] = "none",
                                         [SMF_TX_ACTIVE] = "open",
                                         [SMF_TX_COMMITTED] = "committed",
                                         [SMF_TX_COMMITTED + 1] = "unknown"};
    return states[tx->phase & SMF_TX_PHASE];
}

static void print_transaction(const struct transaction *tx)
{
    char entries[64], bytes[32];
    if (tx->phase == SMF_TX_IDLE)
        return;
    if (tx->phase > SMF_TX_COMMITTED)
        printf(", in a transaction in an unknown state");
    else
        printf(", in %s transaction", tx->phase == SMF_TX_ACTIVE ? "an open" : "a committed");
    printf(" of %s, %s of log", inspect_count(tx->entries, "entry", "entries", entries),
           inspect_bytes(tx->bytes, bytes));
    if (tx->wrong)
        printf(" (%s)", tx->wrong);
}

static void print_reading(const struct thread *thread)
{
    char blocks[64], bytes[32];
    if (thread->section)
        printf(", in a read section%s", thread->section_is_over ? " that is over" : "");
    if (thread->retired.blocks)
        printf(", retired %s, %s",
               inspect_count(thread->retired.blocks, "block", "blocks", blocks),
               inspect_bytes(thread->retired.bytes, bytes));
}

static void print_thread(struct inspect *in, struct census *census, const struct thread *thread)
{
    char slots[32], bytes[32], name[48], blocks[64];
    printf("      thread %-8u %s cached slots, %s", thread->tid,
           inspect_number(thread->cached_slots, slots), inspect_bytes(thread->cached_bytes, bytes));
    if (thread->kept.blocks)
        printf(", keeps %s, %s",
               inspect_count(thread->kept.blocks, "large block", "large blocks", blocks),
               inspect_bytes(thread->kept.bytes, bytes));
    printf("%s", thread->step->doing);
    print_transaction(&thread->tx);
    print_reading(thread);
    const char *before = ", holds ";
    for (uint32_t i = 0; i < census->lock_count; i++) {
        if (census->locks[i].tid != thread->tid)
            continue;
        census->locks[i].shown = 1;
        printf("%s%s%s%s", before, inspect_color(in, YELLOW),
               lock_name(in, census->locks[i].index, name), inspect_color(in, PLAIN));
        before = ", ";
    }
    printf("\n");
}

static void print_process(struct inspect *in, struct census *census, uint32_t i,
                          const struct smf_process *process)
{
    char name[17], when[32];
    const char *doing = in->users.alive[i] ? activity(census, process) : "dead";
    enum color color = !in->users.alive[i] ? RED : strcmp(doing, "stopped") == 0 ? YELLOW : GREEN;
    printf("%-5u %-8u %-6u %s%-8s%s %-24s ", i, process->pid, process->uid,
           inspect_color(in, color), doing, inspect_color(in, PLAIN),
           inspect_time(process->attached_at / 1000000000u, when));
    inspect_print_text(name_of(process, name));
    printf("\n");
    for (uint32_t t = 0; t < census->thread_count; t++)
        if (census->threads[t].process == i)
            print_thread(in, census, &census->threads[t]);
}

static void print_all(struct inspect *in, struct census *census)
{
    char name[48];
    int any = 0;
    for (uint32_t i = 0; i < SMF_PROCESSES; i++) {
        const struct smf_process *process = process_at(in, census, i);
        if (process && !any++)
            printf("%s%-5s %-8s %-6s %-8s %-24s %s%s\n", inspect_color(in, BOLD), "ENTRY", "PID",
                   "UID", "STATE", "ATTACHED", "NAME", inspect_color(in, PLAIN));
        if (process)
            print_process(in, census, i, process);
    }
    if (!any)
        printf("no process has the heap open\n");
    if (inspect_cannot_tell(in))
        printf("which ones died cannot be told: the machine's boot id, in /proc, cannot be read\n");
    for (uint32_t i = 0; i < census->lock_count; i++)
        if (!census->locks[i].shown)
            printf("thread %u, which has no cache here, holds %s\n", census->locks[i].tid,
                   lock_name(in, census->locks[i].index, name));
    if (in->users.attaching)
        printf("a process is opening or closing the heap\n");
    if (any && !census->same_namespace)
        printf("The PIDs are those of another PID namespace.\n");
    if (inspect_is_live(in))
        printf("%sThe heap is in use: this is a moving picture.%s\n", inspect_color(in, DIM),
               inspect_color(in, PLAIN));
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static struct json_object *transaction_object(const struct transaction *tx)
{
    struct json_object *object = json_object_new_object();
    inspect_add_text(object, "state", state_of(tx));
    inspect_add_number(object, "entries", tx->entries);
    inspect_add_number(object, "log_bytes", tx->bytes);
    if (tx->wrong)
        inspect_add_text(object, "log_error", tx->wrong);
    return object;
}

static struct json_object *thread_object(struct inspect *in, struct census *census,
                                         const struct thread *thread)
{
    struct json_object *object = json_object_new_object(), *locks = json_object_new_array();
    char name[48];
    inspect_add_number(object, "slot", thread->slot);
    inspect_add_number(object, "tid", thread->tid);
    inspect_add_number(object, "cached_slots", thread->cached_slots);
    inspect_add_number(object, "cached_bytes", thread->cached_bytes);
    inspect_add_number(object, "kept_blocks", thread->kept.blocks);
    inspect_add_number(object, "kept_bytes", thread->kept.bytes);
    inspect_add_text(object, "step", thread->step->key);
    inspect_add(object, "transaction", transaction_object(&thread->tx));
    inspect_add_number(object, "section", thread->section);
    inspect_add_flag(object, "section_over", thread->section_is_over);
    inspect_add_number(object, "retired_blocks", thread->retired.blocks);
    inspect_add_number(object, "retired_bytes", thread->retired.bytes);
    for (uint32_t i = 0; i < census->lock_count; i++) {
        if (census->locks[i].tid != thread->tid)
            continue;
        census->locks[i].shown = 1;
        json_object_array_add(locks,
                              inspect_json_text(lock_name(in, census->locks[i].index, name)));
    }
    inspect_add(object, "locks", locks);
    return object;
}

static struct json_object *process_object(struct inspect *in, struct census *census, uint32_t i,
                                          const struct smf_process *process)
{
    struct json_object *object = json_object_new_object(), *threads = json_object_new_array();
    char name[17];
    inspect_add_number(object, "index", i);
    inspect_add_number(object, "pid", process->pid);
    inspect_add_text(object, "name", name_of(process, name));
    inspect_add_number(object, "uid", process->uid);
    inspect_add_flag(object, "alive", in->users.alive[i]);
    inspect_add_text(object, "activity", activity(census, process));
    inspect_add_number(object, "attached_at", process->attached_at);
    inspect_add_number(object, "start_time", process->start_time);
    uint64_t minor, major;
    if (in->users.alive[i] && census->same_namespace &&
        inspect_faults(process, &minor, &major) == 0) {
        inspect_add_number(object, "minor_faults", minor);
        inspect_add_number(object, "major_faults", major);
    }
    for (uint32_t t = 0; t < census->thread_count; t++)
        if (census->threads[t].process == i)
            json_object_array_add(threads, thread_object(in, census, &census->threads[t]));
    inspect_add(object, "threads", threads);
    return object;
}

static void add_all(struct inspect *in, struct census *census)
{
    struct json_object *processes = json_object_new_array(), *others = json_object_new_array();
    char name[48];
    for (uint32_t i = 0; i < SMF_PROCESSES; i++) {
        const struct smf_process *process = process_at(in, census, i);
        if (process)
            json_object_array_add(processes, process_object(in, census, i, process));
    }
    for (uint32_t i = 0; i < census->lock_count; i++) {
        if (census->locks[i].shown)
            continue;
        struct json_object *lock = json_object_new_object();
        inspect_add_text(lock, "lock", lock_name(in, census->locks[i].index, name));
        inspect_add_number(lock, "tid", census->locks[i].tid);
        json_object_array_add(others, lock);
    }
    inspect_add_flag(in->out, "moving", inspect_is_live(in));
    inspect_add_flag(in->out, "attaching", in->users.attaching);
    inspect_add_text(in->out, "pid_namespace", census->same_namespace ? "same" : "other");
    inspect_add(in->out, "processes", processes);
    inspect_add(in->out, "locks_of_others", others);
}

static enum verdict run(struct inspect *in)
{
    static struct census census;
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict != SOUND)
        return verdict;
    memset(&census, 0, sizeof(census));
    census.valid = inspect_runtime_is_valid(in);
    census.same_namespace = inspect_same_namespace(in);
    if (census.valid || inspect_is_live(in))
        read_threads(in, &census);
    if (inspect_is_live(in))
        read_locks(in, &census);
    int rc = smi_view_settle(&in->view, NULL, NULL);
    if (rc < 0)
        return inspect_report_error(in, smi_error(rc, "%s: %s", in->path, shmalloc_strerror(rc)));
    read_spans(in, &census);
    if (in->out)
        add_all(in, &census);
    else
        print_all(in, &census);
    return SOUND;
}

const struct subcommand inspect_procs = {
    "procs", "processes and threads that use the heap, locks they hold", help, run, NULL};
