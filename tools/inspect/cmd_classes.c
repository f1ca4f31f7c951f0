/* SPDX-License-Identifier: MIT */
/*
 * cmd_classes.c - the use of space by size class, and how fragmented the heap is.
 *
 * One pass over the spans counts slots by class and arena; what is used is what neither a bitmap
 * nor a cache has. The counters of work come from the class records and from their locks.
 */
#include "inspect.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "format/sizeclass.h"

static const char help[] =
    "A line for each size of slots that the heap has slabs of. A request gets a slot of\n"
    "the next size up; a slab is a few pages cut into slots of one size.\n"
    "\n"
    "  SLOT     bytes of a slot\n"
    "  SLABS    slabs of that size, and SLOTS in them, which are\n"
    "  USED     in the hands of programs,\n"
    "  CACHED   free, in the cache of a thread, or\n"
    "  FREE     free, in the slab\n"
    "  USED %   USED of SLOTS\n"
    "  BYTES    of the slabs, and how much of that is in no used slot: WASTE\n"
    "\n"
    "The second table shows what threads had to do under the lock of the size: REFILLS\n"
    "and FLUSHES of their caches and the slots each moved on average, times that they\n"
    "had to WAIT for the lock, slabs MADE and RETIRED. Counts of waits begin with the\n"
    "first attach, the others with the heap.\n"
    "\n"
    "Large blocks lie in pages of their own. One that a thread freed it may keep for its\n"
    "next requests: such a block is cached, as in `info`.\n"
    "\n"
    "Internal fragmentation is the part of the slabs that is in no used slot. External\n"
    "fragmentation is the part of the free runs that is not in the largest one.\n"
    "\n"
    "Options\n"
    "      --arenas   a line for each size and arena; \"lib\" is the library's own\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"classes\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  classes                 list of: slot_size, arena (with --arenas; the last one is the\n"
    "                          library's), slabs, slots, used, cached, free, bytes, waste,\n"
    "                          used_percent, refills, refilled_slots, flushes,\n"
    "                          flushed_slots, waits, repairs, slabs_made, slabs_retired,\n"
    "                          double_frees\n"
    "  total, library          the same keys: of the users' arenas, of the library's\n"
    "  large                   blocks, bytes: in the hands of programs; kept_blocks,\n"
    "                          kept_bytes: freed, and kept by a thread\n"
    "  free_runs               runs, bytes, reserved (with storage), largest\n"
    "  fragmentation           percent: internal, external\n"
    "  page_lock               waits, repairs\n";

static const struct option options[] = {{"arenas", no_argument, NULL, 'a'}, {NULL, 0, NULL, 0}};
const struct command_line inspect_classes_line = {"[--json] [--arenas] FILE", "", options, 0};

/* Of one class and arena, or a sum of such. */
struct figures {
    uint64_t slabs, slots, used, cached, free, bytes, used_bytes;
    uint64_t refills, refilled_slots, flushes, flushed_slots, made, retired, double_frees;
    uint64_t waits, repairs;
};

struct tally {
    struct inspect *in;
    struct figures of[SMF_ARENAS_MAX + 1][SMF_CLASSES];
    uint64_t large_blocks, large_bytes, kept_blocks, kept_bytes;
    uint64_t free_runs, free_bytes, free_reserved, free_largest;
    struct smf_lock page_lock;
};

/* ---- counting ------------------------------------------------------------------------------- */

static void count_slab(struct tally *tally, const struct smi_span *span)
{
    unsigned k = span->page->size_class;
    const struct smi_class *class = &smi_classes[k];
    struct figures *f = &tally->of[span->page->arena][k];
    uint64_t freed = 0;
    for (uint32_t w = 0; w < (class->slots + 63u) / 64; w++)
        freed += (uint64_t)__builtin_popcountll(
            smi_view_slab_bits(&tally->in->view, span->first_page, k, w));
    if (freed > class->slots)
        freed = class->slots;
    f->slabs++;
    f->slots += class->slots;
    f->free += freed;
    f->used += class->slots - freed; /* the cached ones are subtracted later */
    f->bytes += (uint64_t)span->page_count << SMF_PAGE_SHIFT;
}

static void count_free(struct tally *tally, const struct smi_span *span)
{
    uint64_t bytes = (uint64_t)span->page_count << SMF_PAGE_SHIFT;
    tally->free_runs++;
    tally->free_bytes += bytes;
    if (bytes > tally->free_largest)
        tally->free_largest = bytes;
    for (uint32_t i = 0; i < span->page_count; i++)
        if (smi_view_word(&tally->in->view, (uint64_t)span->first_page + i) & SMF_WORD_RESERVED)
            tally->free_reserved += SMF_PAGE;
}

static void count_spans(struct tally *tally)
{
    struct smi_span span = {0};
    while (smi_view_next_span(&tally->in->view, &span)) {
        if (smi_view_is_slab(&tally->in->view, span.page)) {
            count_slab(tally, &span);
        } else if (span.page->kind == SMF_PAGE_FREE) {
            count_free(tally, &span);
        } else if (span.page->kind == SMF_PAGE_LARGE && (span.page->side & SMF_MARK_KEPT)) {
            tally->kept_blocks++;
            tally->kept_bytes += (uint64_t)span.page_count << SMF_PAGE_SHIFT;
        } else if (span.page->kind == SMF_PAGE_LARGE) {
            tally->large_blocks++;
            tally->large_bytes += (uint64_t)span.page_count << SMF_PAGE_SHIFT;
        }
    }
}

/* Move the cached slots out of the used ones. In a heap that moves they may disagree; no figure
 * becomes negative. */
static void count_cached(struct tally *tally, const struct smi_cached *cached, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint32_t slab, index;
        if (smi_view_slot(&tally->in->view, cached[i].ref, &slab, &index) < 0)
            continue;
        const struct smf_page *page = smi_view_page(&tally->in->view, slab);
        struct figures *f = &tally->of[page->arena][page->size_class];
        if (f->used > 0) {
            f->used--;
            f->cached++;
        }
    }
}

static void read_record(struct tally *tally, uint32_t arena, unsigned k)
{
    struct smi_view *view = &tally->in->view;
    struct figures *f = &tally->of[arena][k];
    uint64_t index = (uint64_t)arena * SMF_CLASSES + k;
    const struct smf_central *central = smi_view_record(
        view, view->header.areas.central + index * sizeof(*central), sizeof(*central));
    const struct smf_lock *lock = smi_view_record(
        view, view->header.areas.locks + (SMF_LOCK_CLASS_FIRST + index) * sizeof(*lock),
        sizeof(*lock));
    f->used_bytes = f->used * smi_classes[k].size;
    if (central) {
        f->refills = central->refills;
        f->refilled_slots = central->refilled_slots;
        f->flushes = central->flushes;
        f->flushed_slots = central->flushed_slots;
        f->made = central->slabs_made;
        f->retired = central->slabs_retired;
        f->double_frees = central->double_frees;
    }
    if (lock) {
        f->waits = lock->waits;
        f->repairs = lock->repairs;
    }
}

static void read_records(struct tally *tally)
{
    struct smi_view *view = &tally->in->view;
    for (uint32_t arena = 0; arena <= view->header.arena_count; arena++)
        for (unsigned k = 0; k < SMF_CLASSES; k++)
            read_record(tally, arena, k);
    const struct smf_lock *lock = smi_view_record(
        view, view->header.areas.locks + (view->header.lock_count - 1ull) * sizeof(*lock),
        sizeof(*lock));
    if (lock)
        tally->page_lock = *lock;
}

static void add(struct figures *sum, const struct figures *more)
{
    sum->slabs += more->slabs;
    sum->slots += more->slots;
    sum->used += more->used;
    sum->cached += more->cached;
    sum->free += more->free;
    sum->bytes += more->bytes;
    sum->used_bytes += more->used_bytes;
    sum->refills += more->refills;
    sum->refilled_slots += more->refilled_slots;
    sum->flushes += more->flushes;
    sum->flushed_slots += more->flushed_slots;
    sum->made += more->made;
    sum->retired += more->retired;
    sum->double_frees += more->double_frees;
    sum->waits += more->waits;
    sum->repairs += more->repairs;
}

static struct figures sum_of_class(const struct tally *tally, unsigned k)
{
    struct figures sum = {0};
    for (uint32_t arena = 0; arena < tally->in->view.header.arena_count; arena++)
        add(&sum, &tally->of[arena][k]);
    return sum;
}

static struct figures sum_of_users(const struct tally *tally)
{
    struct figures sum = {0};
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        struct figures class = sum_of_class(tally, k);
        add(&sum, &class);
    }
    return sum;
}

static struct figures sum_of_library(const struct tally *tally)
{
    struct figures sum = {0};
    for (unsigned k = 0; k < SMF_CLASSES; k++)
        add(&sum, &tally->of[tally->in->view.header.arena_count][k]);
    return sum;
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static int is_shown(const struct figures *f)
{
    return f->slabs || f->refills || f->flushes || f->made || f->waits;
}

/* Call `show` for each line of the table; `arena` is -1 for all of the users'. */
static void each_line(const struct tally *tally,
                      void (*show)(const struct tally *tally, unsigned k, int arena,
                                   const struct figures *f, void *arg),
                      void *arg)
{
    int last = tally->in->given['a'] ? (int)tally->in->view.header.arena_count : -1;
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        for (int arena = last < 0 ? -1 : 0; arena <= last; arena++) {
            struct figures f = arena < 0 ? sum_of_class(tally, k) : tally->of[arena][k];
            if (is_shown(&f))
                show(tally, k, arena, &f, arg);
        }
    }
}

/* ---- text ----------------------------------------------------------------------------------- */

/* At most 6 characters: "123456", "1234k", "12M". */
static const char *brief(uint64_t n, char buf[32])
{
    static const char units[] = " kMGTPE";
    int unit = 0;
    while (n > (unit ? 99999u : 999999u)) {
        n /= 1000;
        unit++;
    }
    snprintf(buf, 32, unit ? "%llu%c" : "%llu", (unsigned long long)n, units[unit]);
    return buf;
}

/* Likewise, powers of 1024: "65536", "1234K". */
static const char *brief_bytes(uint64_t n, char buf[32])
{
    static const char units[] = " KMGTPE";
    int unit = 0;
    while (n > 99999) {
        n /= 1024;
        unit++;
    }
    snprintf(buf, 32, unit ? "%llu%c" : "%llu", (unsigned long long)n, units[unit]);
    return buf;
}

static void print_name(const struct tally *tally, const char *size, int arena)
{
    printf("%5s", size);
    if (!tally->in->given['a'])
        return;
    if (arena < 0)
        printf(" %5s", "");
    else if (arena == (int)tally->in->view.header.arena_count)
        printf(" %5s", "lib");
    else
        printf(" %5d", arena);
}

/* For the columns that a narrow terminal goes without. */
static int has_room(const struct tally *tally)
{
    return inspect_width(tally->in) >= (tally->in->given['a'] ? 66 : 60);
}

static void print_space(const struct tally *tally, const char *size, int arena,
                        const struct figures *f)
{
    char a[32], b[32], c[32], d[32], e[32], g[32], h[32];
    print_name(tally, size, arena);
    double used = percent(f->used, f->slots);
    enum color color = f->slots == 0 ? PLAIN : used > 75 ? GREEN : used > 25 ? YELLOW : RED;
    printf(" %6s %6s %6s %6s %6s %s%5.1f%s %6s", brief(f->slabs, a), brief(f->slots, b),
           brief(f->used, c), brief(f->cached, d), brief(f->free, e),
           inspect_color(tally->in, color), used, inspect_color(tally->in, PLAIN),
           brief_bytes(f->bytes, g));
    if (has_room(tally))
        printf(" %6s", brief_bytes(f->bytes - f->used_bytes, h));
    printf("\n");
}

static void print_work(const struct tally *tally, const char *size, int arena,
                       const struct figures *f)
{
    char a[32], b[32], c[32], d[32], e[32];
    print_name(tally, size, arena);
    printf(" %7s %6.1f %7s %6.1f %6s", brief(f->refills, a),
           f->refills ? (double)f->refilled_slots / (double)f->refills : 0, brief(f->flushes, b),
           f->flushes ? (double)f->flushed_slots / (double)f->flushes : 0, brief(f->waits, c));
    if (has_room(tally))
        printf(" %6s %7s", brief(f->made, d), brief(f->retired, e));
    printf("\n");
}

typedef void print_fn(const struct tally *tally, const char *size, int arena,
                      const struct figures *f);

static void print_line(const struct tally *tally, unsigned k, int arena, const struct figures *f,
                       void *arg)
{
    char size[32];
    print_fn *const *print = arg;
    snprintf(size, sizeof(size), "%u", smi_classes[k].size);
    (*print)(tally, size, arena, f);
}

static void print_table(const struct tally *tally, const char *heads, print_fn *print)
{
    struct figures total = sum_of_users(tally), library = sum_of_library(tally);
    printf("%s%5s%s%s%s\n", inspect_color(tally->in, BOLD), "SLOT",
           tally->in->given['a'] ? " ARENA" : "", heads, inspect_color(tally->in, PLAIN));
    each_line(tally, print_line, &print);
    printf("%s", inspect_color(tally->in, BOLD));
    print(tally, "total", -1, &total);
    printf("%s", inspect_color(tally->in, PLAIN));
    print(tally, "lib", -1, &library);
}

static void print_rest(const struct tally *tally)
{
    char a[32], b[32], c[32], n[64];
    struct figures total = sum_of_users(tally);
    printf("\nlarge blocks    %s in %s\n", inspect_bytes(tally->large_bytes, a),
           inspect_count(tally->large_blocks, "block", "blocks", n));
    if (tally->kept_blocks)
        printf("                %s in %s that threads freed and keep\n",
               inspect_bytes(tally->kept_bytes, a),
               inspect_count(tally->kept_blocks, "block", "blocks", n));
    printf("free            %s in %s, the largest %s\n", inspect_bytes(tally->free_bytes, a),
           inspect_count(tally->free_runs, "run", "runs", n),
           inspect_bytes(tally->free_largest, b));
    printf("                %s of it with storage\n", inspect_bytes(tally->free_reserved, c));
    printf("fragmentation   internal %.1f %%, external %.1f %%\n",
           percent(total.bytes - total.used_bytes, total.bytes),
           percent(tally->free_bytes - tally->free_largest, tally->free_bytes));
    printf("page lock       %s", inspect_count(tally->page_lock.waits, "wait", "waits", n));
    printf(", %s taken over from the dead\n", inspect_number(tally->page_lock.repairs, a));
    if (total.double_frees)
        printf("errors          %s%s%s\n", inspect_color(tally->in, YELLOW),
               inspect_count(total.double_frees, "double free", "double frees", n),
               inspect_color(tally->in, PLAIN));
}

static void print_all(const struct tally *tally)
{
    static const char *const space[] = {"  SLABS  SLOTS   USED CACHED   FREE USED%  BYTES",
                                        "  SLABS  SLOTS   USED CACHED   FREE USED%  BYTES  WASTE"};
    static const char *const work[] = {" REFILLS  SLOTS FLUSHES  SLOTS  WAITS",
                                       " REFILLS  SLOTS FLUSHES  SLOTS  WAITS   MADE RETIRED"};
    print_table(tally, space[has_room(tally)], print_space);
    printf("\n");
    print_table(tally, work[has_room(tally)], print_work);
    print_rest(tally);
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static struct json_object *figures_object(const struct figures *f)
{
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, "slabs", f->slabs);
    inspect_add_number(object, "slots", f->slots);
    inspect_add_number(object, "used", f->used);
    inspect_add_number(object, "cached", f->cached);
    inspect_add_number(object, "free", f->free);
    inspect_add_number(object, "bytes", f->bytes);
    inspect_add_number(object, "waste", f->bytes - f->used_bytes);
    inspect_add(object, "used_percent", json_object_new_double(percent(f->used, f->slots)));
    inspect_add_number(object, "refills", f->refills);
    inspect_add_number(object, "refilled_slots", f->refilled_slots);
    inspect_add_number(object, "flushes", f->flushes);
    inspect_add_number(object, "flushed_slots", f->flushed_slots);
    inspect_add_number(object, "waits", f->waits);
    inspect_add_number(object, "repairs", f->repairs);
    inspect_add_number(object, "slabs_made", f->made);
    inspect_add_number(object, "slabs_retired", f->retired);
    inspect_add_number(object, "double_frees", f->double_frees);
    return object;
}

static void add_line(const struct tally *tally, unsigned k, int arena, const struct figures *f,
                     void *arg)
{
    (void)tally;
    struct json_object *object = figures_object(f);
    inspect_add_number(object, "slot_size", smi_classes[k].size);
    if (arena >= 0)
        inspect_add_number(object, "arena", (uint64_t)arena);
    json_object_array_add(arg, object);
}

static void add_rest(const struct tally *tally, const struct figures *total)
{
    struct json_object *large = json_object_new_object(), *runs = json_object_new_object();
    struct json_object *fragmentation = json_object_new_object(), *lock = json_object_new_object();
    inspect_add_number(large, "blocks", tally->large_blocks);
    inspect_add_number(large, "bytes", tally->large_bytes);
    inspect_add_number(large, "kept_blocks", tally->kept_blocks);
    inspect_add_number(large, "kept_bytes", tally->kept_bytes);
    inspect_add(tally->in->out, "large", large);
    inspect_add_number(runs, "runs", tally->free_runs);
    inspect_add_number(runs, "bytes", tally->free_bytes);
    inspect_add_number(runs, "reserved", tally->free_reserved);
    inspect_add_number(runs, "largest", tally->free_largest);
    inspect_add(tally->in->out, "free_runs", runs);
    inspect_add(fragmentation, "internal",
                json_object_new_double(percent(total->bytes - total->used_bytes, total->bytes)));
    inspect_add(fragmentation, "external",
                json_object_new_double(
                    percent(tally->free_bytes - tally->free_largest, tally->free_bytes)));
    inspect_add(tally->in->out, "fragmentation", fragmentation);
    inspect_add_number(lock, "waits", tally->page_lock.waits);
    inspect_add_number(lock, "repairs", tally->page_lock.repairs);
    inspect_add(tally->in->out, "page_lock", lock);
}

static void add_all(const struct tally *tally)
{
    struct figures total = sum_of_users(tally), library = sum_of_library(tally);
    struct json_object *list = json_object_new_array();
    each_line(tally, add_line, list);
    inspect_add(tally->in->out, "classes", list);
    inspect_add(tally->in->out, "total", figures_object(&total));
    inspect_add(tally->in->out, "library", figures_object(&library));
    add_rest(tally, &total);
}

static enum verdict run(struct inspect *in)
{
    static struct tally tally;
    struct smi_cached *cached = NULL;
    size_t count = 0;
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict != SOUND)
        return verdict;
    int rc = inspect_settle(in, &cached, &count);
    if (rc < 0)
        return inspect_report_error(in, rc);
    memset(&tally, 0, sizeof(tally));
    tally.in = in;
    count_spans(&tally);
    count_cached(&tally, cached, count);
    free(cached);
    read_records(&tally);
    if (in->out)
        add_all(&tally);
    else
        print_all(&tally);
    return inspect_conclude(in);
}

const struct subcommand inspect_classes = {
    "classes", "use of space by size class, fragmentation, work under the locks", help, run, NULL};
