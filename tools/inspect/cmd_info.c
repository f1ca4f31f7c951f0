/* SPDX-License-Identifier: MIT */
/*
 * cmd_info.c - what a heap is, its state, and where its bytes are.
 *
 * The identity is shown for every file that has one, also when this library could not use the heap:
 * to see for which machine it was made is the point of looking.
 */
#include "inspect.h"

#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/os.h"

static const char help[] =
    "Identity, state and use of space. Sizes are exact for a heap at rest; in a heap\n"
    "in use they are as of the moment each part was read.\n"
    "\n"
    "The state is one of\n"
    "  clean    the last process closed it in order; everything is on disk\n"
    "  in use   processes have it open now\n"
    "  died     every process ended without closing it; the machine has stayed up since,\n"
    "           so the next open finds the heap as it was\n"
    "  unclean  the machine stopped, or the file was copied, while it was in use:\n"
    "           shmalloc_recover() checks it and decides\n"
    "  unknown  one of these two: the machine's boot id, in /proc, cannot be read\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"info\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  identity                uuid, format_version, created_at (seconds since 1970), machine\n"
    "                          (ELF number), word_bits, os_page_bytes, arenas, hardened,\n"
    "                          fixed_base, layout, layout_version\n"
    "  state                   \"clean\", \"in-use\", \"died\", \"unclean\", \"unknown\"; missing "
    "on\n"
    "                          failure\n"
    "  moving                  true when processes use the heap\n"
    "  poisoned, sync_failed   0, or the code of the damage, the errno\n"
    "  generation              number of times the heap was attached from rest\n"
    "  processes, threads      number alive; number of threads with a cache\n"
    "  in_flight               steps of dead, stopped or running threads\n"
    "  transactions            number that is open, or committed and not yet finished\n"
    "  size                    bytes: file, heap, maximum, on_disk; number of chunks\n"
    "  memory                  bytes: allocated, cached, central_free, free, free_reserved,\n"
    "                          largest_free_run, metadata; number of allocated_blocks;\n"
    "                          cached: free slots in caches of threads, and large blocks that\n"
    "                          they freed and keep; retired, retired_blocks: no longer in\n"
    "                          use, not yet freed, because somebody may still read them\n"
    "  roots, repairs, lock_waits, double_frees   counts\n"
    "  faults                  page faults of the processes alive, whole programs: minor (from\n"
    "                          memory), major (from disk); number of processes that /proc tells\n"
    "                          of\n";

static const char *format_uuid(const uint8_t uuid[16], char buf[40])
{
    int at = 0;
    for (int i = 0; i < 16; i++) {
        const char *dash = i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "";
        at += snprintf(buf + at, 40 - (size_t)at, "%s%02x", dash, uuid[i]);
    }
    return buf;
}

static const char *machine_name(uint32_t machine)
{
    static const struct {
        uint32_t machine;
        const char *name;
    } names[] = {{62, "x86-64"}, {183, "aarch64"}, {243, "riscv"}, {21, "ppc64"}, {22, "s390x"}};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (names[i].machine == machine)
            return names[i].name;
    return "unknown machine";
}

/* The application's name; the field may lack its end. */
static const char *layout_name(const struct smf_header *header, char buf[65])
{
    memcpy(buf, header->layout_name, 64);
    buf[64] = 0;
    return buf;
}

/* ---- identity ------------------------------------------------------------------------------- */

static void print_identity(const struct smf_header *h)
{
    char uuid[40], when[32], layout[65], n[64];
    printf("  identity    %s\n", format_uuid(h->uuid, uuid));
    printf("  made        %s, format version %u\n", inspect_time(h->created_at, when),
           h->format_version);
    printf("  machine     %s, %u-bit words, kernel pages of %u bytes\n", machine_name(h->machine),
           h->word_bits, h->os_page_bytes);
    printf("  layout      ");
    if (h->layout_name[0]) {
        printf("\"");
        inspect_print_text(layout_name(h, layout));
        printf("\" version %llu\n", (unsigned long long)h->layout_version);
    } else {
        printf("none given\n");
    }
    printf("  options     %s%s, ", inspect_count(h->arena_count, "arena", "arenas", n),
           h->mode & SMF_HEAP_HARDENED ? ", hardened" : "");
    if (h->fixed_base)
        printf("mapped at %#llx\n", (unsigned long long)h->fixed_base);
    else
        printf("mapped anywhere\n");
}

static void add_identity(struct json_object *out, const struct smf_header *h)
{
    struct json_object *identity = json_object_new_object();
    char uuid[40], layout[65];
    inspect_add_text(identity, "uuid", format_uuid(h->uuid, uuid));
    inspect_add_number(identity, "format_version", h->format_version);
    inspect_add_number(identity, "created_at", h->created_at);
    inspect_add_number(identity, "machine", h->machine);
    inspect_add_number(identity, "word_bits", h->word_bits);
    inspect_add_number(identity, "os_page_bytes", h->os_page_bytes);
    inspect_add_number(identity, "arenas", h->arena_count);
    inspect_add_flag(identity, "hardened", (h->mode & SMF_HEAP_HARDENED) != 0);
    inspect_add_number(identity, "fixed_base", h->fixed_base);
    inspect_add_text(identity, "layout", layout_name(h, layout));
    inspect_add_number(identity, "layout_version", h->layout_version);
    inspect_add(out, "identity", identity);
}

static void show_identity(struct inspect *in)
{
    if (in->view.header.magic != SMF_MAGIC)
        return;
    if (in->out)
        add_identity(in->out, &in->view.header);
    else
        print_identity(&in->view.header);
}

/* ---- state ---------------------------------------------------------------------------------- */

struct state {
    const char *key;  /* in JSON */
    const char *text; /* for people */
    enum color color;
};

static struct state state_of(struct inspect *in)
{
    if (inspect_is_live(in))
        return (struct state){"in-use", "in use", GREEN};
    if (in->view.state.mark == SMF_CLEAN)
        return (struct state){"clean", "clean: closed in order", GREEN};
    if (inspect_cannot_tell(in))
        return (struct state){"unknown",
                              "unknown: every process ended without closing it, or the machine "
                              "stopped, which without the machine's "
                              "boot id (in /proc) cannot be told",
                              YELLOW};
    if (!inspect_is_unclean(in))
        return (struct state){
            "died", "every process ended without closing it; the next open finds it as it was",
            YELLOW};
    return (struct state){"unclean",
                          "unclean: in use when the machine stopped or the file was copied", RED};
}

/* Transactions that are open, or committed and not yet finished; of a settled view. */
static uint32_t count_transactions(struct inspect *in)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(&in->view, i, &ref);
        count += thread && thread->owner && smi_view_tx_phase(&in->view, thread) != SMF_TX_IDLE;
    }
    return count;
}

static void print_state(struct inspect *in, const shmalloc_stats *stats)
{
    struct state state = state_of(in);
    const struct smf_state *s = &in->view.state;
    char n[2][64];
    printf("  state       %s%s%s", inspect_color(in, state.color), state.text,
           inspect_color(in, PLAIN));
    if (in->users.processes)
        printf(" by %s with %s", inspect_count(in->users.processes, "process", "processes", n[0]),
               inspect_count(stats->threads, "thread", "threads", n[1]));
    printf("; generation %llu\n", (unsigned long long)s->generation);
    uint32_t transactions = count_transactions(in);
    if (transactions)
        printf("  in flight   %s\n",
               inspect_count(transactions, "transaction", "transactions", n[0]));
    if (s->poison)
        printf("  poisoned    %s%s; the heap can only be read%s\n", inspect_color(in, RED),
               shmalloc_strerror((int)(0 - s->poison)), inspect_color(in, PLAIN));
    if (s->sync_failed)
        printf("  sync        %sfailed: %s; later changes may not be on disk%s\n",
               inspect_color(in, RED), shmalloc_strerror((int)(0 - s->sync_failed)),
               inspect_color(in, PLAIN));
}

static void add_state(struct inspect *in, const shmalloc_stats *stats)
{
    const struct smf_state *s = &in->view.state;
    inspect_add_text(in->out, "state", state_of(in).key);
    inspect_add_flag(in->out, "moving", inspect_is_live(in));
    inspect_add(in->out, "poisoned", json_object_new_int(s->poison ? (int)(0 - s->poison) : 0));
    inspect_add_number(in->out, "sync_failed", s->sync_failed);
    inspect_add_number(in->out, "generation", s->generation);
    inspect_add_number(in->out, "processes", in->users.processes);
    inspect_add_number(in->out, "threads", stats->threads);
    inspect_add_number(in->out, "in_flight", in->view.in_flight);
    inspect_add_number(in->out, "transactions", count_transactions(in));
}

/* ---- space ---------------------------------------------------------------------------------- */

static uint64_t bytes_on_disk(const struct inspect *in)
{
    struct smi_file_info info;
    return smi_os_stat(in->view.fd, &info) < 0 ? 0 : info.blocks;
}

/* Page faults of the processes alive; returns the number of those that /proc tells of. */
static uint32_t count_faults(struct inspect *in, uint64_t *minor, uint64_t *major)
{
    uint32_t told = 0;
    *minor = *major = 0;
    for (uint32_t i = 0; i < SMF_PROCESSES && inspect_same_namespace(in); i++) {
        const struct smf_process *process = smi_view_record(
            &in->view, in->view.header.areas.processes + i * sizeof(*process), sizeof(*process));
        uint64_t a, b;
        if (!in->users.alive[i] || !process || inspect_faults(process, &a, &b) < 0)
            continue;
        *minor += a;
        *major += b;
        told++;
    }
    return told;
}

static void print_faults(struct inspect *in)
{
    uint64_t minor, major;
    char a[32], b[32];
    if (count_faults(in, &minor, &major) > 0)
        printf("  faults      %s from memory, %s from disk, of the programs that have it open\n",
               inspect_number(minor, a), inspect_number(major, b));
}

static void add_faults(struct inspect *in)
{
    struct json_object *faults = json_object_new_object();
    uint64_t minor, major;
    inspect_add_number(faults, "processes", count_faults(in, &minor, &major));
    inspect_add_number(faults, "minor", minor);
    inspect_add_number(faults, "major", major);
    inspect_add(in->out, "faults", faults);
}

static void print_space(struct inspect *in, const shmalloc_stats *s)
{
    char a[32], b[32], c[32], n[64];
    printf("  size        %s in %s, at most %s; %s on disk\n",
           inspect_bytes(in->view.state.size, a), inspect_count(s->chunks, "chunk", "chunks", n),
           inspect_bytes(s->max_size, b), inspect_bytes(bytes_on_disk(in), c));
    printf("  allocated   %s in %s\n", inspect_bytes(s->allocated, a),
           inspect_count(s->allocated_blocks, "block", "blocks", n));
    printf("  cached      %s in free slots and large blocks that threads keep\n",
           inspect_bytes(s->cached, a));
    if (s->retired_blocks)
        printf("  retired     %s in %s, not yet freed: they may still be read\n",
               inspect_bytes(s->retired, a),
               inspect_count(s->retired_blocks, "block", "blocks", n));
    printf("  free slots  %s in slabs\n", inspect_bytes(s->central_free, a));
    printf("  free runs   %s, the largest %s; %s of it with storage\n",
           inspect_bytes(s->free_pages, a), inspect_bytes(s->largest_free_run, b),
           inspect_bytes(s->free_reserved, c));
    printf("  metadata    %s\n", inspect_bytes(s->metadata, a));
    printf("  roots       %s\n", inspect_number(s->roots, a));
    printf("  locks       %s, %s taken over from the dead\n",
           inspect_count(s->lock_waits, "wait", "waits", n), inspect_number(s->repairs, b));
    print_faults(in);
    if (s->double_frees)
        printf("  errors      %s%s%s\n", inspect_color(in, YELLOW),
               inspect_count(s->double_frees, "double free", "double frees", n),
               inspect_color(in, PLAIN));
    if (inspect_is_live(in))
        printf("%sThe heap is in use: this is a moving picture.%s\n", inspect_color(in, DIM),
               inspect_color(in, PLAIN));
}

static void add_space(struct inspect *in, const shmalloc_stats *s)
{
    struct json_object *size = json_object_new_object(), *memory = json_object_new_object();
    inspect_add_number(size, "file", s->file_size);
    inspect_add_number(size, "heap", in->view.state.size);
    inspect_add_number(size, "maximum", s->max_size);
    inspect_add_number(size, "on_disk", bytes_on_disk(in));
    inspect_add_number(size, "chunks", s->chunks);
    inspect_add(in->out, "size", size);
    inspect_add_number(memory, "allocated", s->allocated);
    inspect_add_number(memory, "allocated_blocks", s->allocated_blocks);
    inspect_add_number(memory, "cached", s->cached);
    inspect_add_number(memory, "retired", s->retired);
    inspect_add_number(memory, "retired_blocks", s->retired_blocks);
    inspect_add_number(memory, "central_free", s->central_free);
    inspect_add_number(memory, "free", s->free_pages);
    inspect_add_number(memory, "free_reserved", s->free_reserved);
    inspect_add_number(memory, "largest_free_run", s->largest_free_run);
    inspect_add_number(memory, "metadata", s->metadata);
    inspect_add(in->out, "memory", memory);
    inspect_add_number(in->out, "roots", s->roots);
    inspect_add_number(in->out, "repairs", s->repairs);
    inspect_add_number(in->out, "lock_waits", s->lock_waits);
    inspect_add_number(in->out, "double_frees", s->double_frees);
    add_faults(in);
}

static enum verdict run(struct inspect *in)
{
    shmalloc_stats stats;
    int rc = inspect_open(in);
    if (!in->out) {
        printf("%s", inspect_color(in, BOLD));
        inspect_print_text(in->path);
        printf("%s\n", inspect_color(in, PLAIN));
    }
    show_identity(in);
    if (rc == 0)
        rc = smi_view_stats(&in->view, &stats);
    if (rc < 0) {
        fflush(stdout);
        return inspect_report_error(in, rc);
    }
    if (in->out) {
        add_state(in, &stats);
        add_space(in, &stats);
    } else {
        print_state(in, &stats);
        print_space(in, &stats);
    }
    return in->view.state.poison ? DAMAGED : SOUND;
}

const struct subcommand inspect_info = {
    "info", "what the heap is, its state, and where its bytes are", help, run, NULL};
