/* SPDX-License-Identifier: MIT */
/*
 * cmd_top.c - a heap in motion, again and again: sizes, rates by class, what threads have cached.
 *
 * Rates are differences between two looks (top_look.c) at the same heap.
 */
#include "top.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/os.h"
#include "format/sizeclass.h"

static const char help[] =
    "The heap in motion, refreshed like top(1). On a terminal: q quits, space refreshes.\n"
    "Otherwise one block of text after the other. Goes on when the heap grows, shrinks, is\n"
    "replaced or removed; ends by q, by a signal, or after COUNT looks.\n"
    "\n"
    "Rates are of the work that threads do in common; what a thread allocates from and\n"
    "frees to its own cache is counted nowhere, which is why it is fast. A class is listed\n"
    "the higher the more slots went through it, a thread the more it took and brought.\n"
    "\n"
    "Options\n"
    "  -d, --delay SECONDS  between two looks: 0.1 to 3600, otherwise 1\n"
    "  -n, --count COUNT    end after so many looks; not with --json, which compares two\n"
    "\n"
    "Columns\n"
    "  IN USE, CACHED, FREE     slots that the program has, that threads have cached, that\n"
    "                           slabs hold; of a thread, bytes: in slots that it has cached\n"
    "                           and in large blocks that it freed and keeps\n"
    "  REFILL/s, FLUSH/s        slots taken to and brought from caches each second\n"
    "  WAIT/s                   times a second that a thread waited for a lock of the class\n"
    "  LARGE/s                  large blocks that a thread allocated each second\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"top\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  seconds                 between the two looks that rates are of\n"
    "  size                    bytes: heap, maximum, file\n"
    "  memory                  bytes: allocated, cached, central_free, free\n"
    "  rates                   each second: growth (bytes), refilled_slots, flushed_slots,\n"
    "                          page_takes, page_gives, grows, lock_waits, page_lock_waits,\n"
    "                          repairs\n"
    "  classes                 list of: slot_size, slabs, in_use, cached, free (slots),\n"
    "                          refilled_slots, flushed_slots, lock_waits (each second)\n"
    "  threads                 list of: process (entry), pid, name, alive, tid, cached_slots,\n"
    "                          cached_bytes (of slots), kept_blocks, kept_bytes (large\n"
    "                          blocks that it freed and keeps; in memory.cached, too),\n"
    "                          refilled_slots, flushed_slots, large_blocks (each second)\n";

/* ---- rates ---------------------------------------------------------------------------------- */

static int is_same_heap(const struct look *a, const struct look *b)
{
    return a->at && b->at && a->inode == b->inode && a->device == b->device &&
           memcmp(a->uuid, b->uuid, sizeof(a->uuid)) == 0;
}

struct pair {
    const struct look *now, *before;
    double seconds; /* 0: there is nothing to compare with */
};

static struct pair pair_of(const struct look *now, const struct look *before)
{
    struct pair pair = {now, before, 0};
    if (is_same_heap(now, before))
        pair.seconds = (double)(now->at - before->at) / 1e9;
    return pair;
}

/* Rounded; what a damaged heap makes of it may be beyond all bounds. */
static uint64_t whole(double value)
{
    return value < 1e18 ? (uint64_t)(value + 0.5) : (uint64_t)1e18;
}

/* A counter that went back was begun anew. */
static double rate(const struct pair *pair, uint64_t now, uint64_t before)
{
    return pair->seconds > 0 && now > before ? (double)(now - before) / pair->seconds : 0;
}

static double growth(const struct pair *pair)
{
    if (pair->seconds <= 0)
        return 0;
    return ((double)pair->now->size - (double)pair->before->size) / pair->seconds;
}

static uint64_t moved_slots(const struct pair *pair, unsigned k)
{
    const struct class_look *now = &pair->now->classes[k], *before = &pair->before->classes[k];
    return whole(rate(pair, now->refilled, before->refilled) +
                 rate(pair, now->flushed, before->flushed));
}

static const struct pair *sorted_pair; /* for by_motion */

static int by_motion(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a, y = *(const unsigned *)b;
    uint64_t mx = moved_slots(sorted_pair, x), my = moved_slots(sorted_pair, y);
    if (mx == my) { /* the one with more in use, then the smaller class */
        mx = sorted_pair->now->classes[x].in_use * smi_classes[x].size;
        my = sorted_pair->now->classes[y].in_use * smi_classes[y].size;
    }
    return mx != my ? (mx < my) - (mx > my) : (x > y) - (x < y);
}

/* The same thread in the look before; NULL when it has come since. */
static const struct thread_look *before_of(const struct pair *pair,
                                           const struct thread_look *thread)
{
    for (uint32_t i = 0; i < pair->before->thread_count; i++) {
        const struct thread_look *was = &pair->before->threads[i];
        if (was->slot == thread->slot && was->serial == thread->serial)
            return was;
    }
    return NULL;
}

struct thread_rates {
    double refilled, flushed, large;
};

static struct thread_rates rates_of(const struct pair *pair, const struct thread_look *thread)
{
    static const struct thread_look nothing;
    const struct thread_look *before = before_of(pair, thread);
    before = before ? before : &nothing;
    return (struct thread_rates){rate(pair, thread->refilled, before->refilled),
                                 rate(pair, thread->flushed, before->flushed),
                                 rate(pair, thread->large, before->large)};
}

static uint64_t cached_by(const struct thread_look *thread)
{
    return thread->bytes + thread->kept.bytes;
}

/* Busiest first, then who has most cached. */
static int by_work(const void *a, const void *b)
{
    const struct thread_look *x = a, *y = b;
    if (x->motion != y->motion)
        return (x->motion < y->motion) - (x->motion > y->motion);
    if (cached_by(x) != cached_by(y))
        return (cached_by(x) < cached_by(y)) - (cached_by(x) > cached_by(y));
    return (x->tid > y->tid) - (x->tid < y->tid);
}

/* Classes that have slabs, busiest first; returns their number. */
static unsigned busiest(const struct pair *pair, unsigned order[SMF_CLASSES])
{
    unsigned count = 0;
    for (unsigned k = 0; k < SMF_CLASSES; k++)
        if (pair->now->classes[k].slabs || moved_slots(pair, k))
            order[count++] = k;
    sorted_pair = pair;
    qsort(order, count, sizeof(*order), by_motion);
    return count;
}

/* ---- text ----------------------------------------------------------------------------------- */

static int on_terminal;

static const char *end_of_line(void)
{
    return on_terminal ? "\033[K\n" : "\n";
}

/* "-" where there is nothing to compare with. */
static const char *format_rate(const struct pair *pair, double value, char buf[32])
{
    if (pair->seconds <= 0)
        snprintf(buf, 32, "-");
    else if (value > 0 && value < 9.95)
        snprintf(buf, 32, "%.1f", value);
    else
        inspect_number(whole(value), buf);
    return buf;
}

static const char *format_growth(const struct pair *pair, char buf[40])
{
    double value = growth(pair);
    char bytes[32];
    if (value == 0)
        snprintf(buf, 40, pair->seconds > 0 ? "steady" : "");
    else
        snprintf(buf, 40, "%c%s/s", value > 0 ? '+' : '-',
                 inspect_bytes(whole(value > 0 ? value : -value), bytes));
    return buf;
}

static void print_title(struct inspect *in, const struct look *look)
{
    char n[2][64], when[32];
    printf("%s", inspect_color(in, BOLD));
    inspect_print_text(in->path);
    printf("%s  %s", inspect_color(in, PLAIN), inspect_time(smi_os_now() / 1000000000u, when));
    if (look && look->processes)
        printf("  used by %s, %s", inspect_count(look->processes, "process", "processes", n[0]),
               inspect_count(look->thread_count, "thread", "threads", n[1]));
    else if (look)
        printf("  not in use");
    if (look && look->poison)
        printf("  %spoisoned%s", inspect_color(in, RED), inspect_color(in, PLAIN));
    printf("%s", end_of_line());
}

/* Where the bytes of the heap are: BAR characters for all of it. */
#define BAR 36

static void print_bar(struct inspect *in, const struct look *look)
{
    const struct {
        uint64_t bytes;
        enum color color;
        char sign;
    } parts[] = {{look->allocated, GREEN, '#'},
                 {look->cached, YELLOW, '+'},
                 {look->central_free, BLUE, '-'},
                 {look->free, DIM, '.'}};
    uint64_t sum = 0;
    int at = 0;
    printf("  [");
    for (size_t i = 0; i < 4; i++) {
        sum += parts[i].bytes;
        double part = look->size ? (double)sum / (double)look->size : 0;
        int end = part < 1 ? (int)(part * BAR) : BAR; /* more than all: the heap is damaged */
        printf("%s", inspect_color(in, parts[i].color));
        for (; at < end; at++)
            putchar(parts[i].sign);
        printf("%s", inspect_color(in, PLAIN));
    }
    printf("%*s]%s", BAR - at, "", end_of_line());
}

static void print_summary(struct inspect *in, const struct pair *pair)
{
    const struct look *now = pair->now, *before = pair->before;
    char a[32], b[32], c[32], change[40];
    uint64_t refilled[2] = {0}, flushed[2] = {0};
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        refilled[0] += now->classes[k].refilled, refilled[1] += before->classes[k].refilled;
        flushed[0] += now->classes[k].flushed, flushed[1] += before->classes[k].flushed;
    }
    printf("  size       %s of at most %s  %s%s", inspect_bytes(now->size, a),
           inspect_bytes(now->max_size, b), format_growth(pair, change), end_of_line());
    printf("  in use     # %s allocated, + %s cached%s", inspect_bytes(now->allocated, a),
           inspect_bytes(now->cached, b), end_of_line());
    printf("  free       - %s in slabs, . %s in runs%s", inspect_bytes(now->central_free, c),
           inspect_bytes(now->free, b), end_of_line());
    print_bar(in, now);
    printf("  caches     %s slots/s refilled, %s slots/s flushed%s",
           format_rate(pair, rate(pair, refilled[0], refilled[1]), a),
           format_rate(pair, rate(pair, flushed[0], flushed[1]), b), end_of_line());
    printf("  spans      %s/s taken, %s/s given, %s/s chunks%s",
           format_rate(pair, rate(pair, now->takes, before->takes), a),
           format_rate(pair, rate(pair, now->gives, before->gives), b),
           format_rate(pair, rate(pair, now->grows, before->grows), c), end_of_line());
    printf("  locks      %s waits/s (%s for pages), %s from the dead%s",
           format_rate(pair, rate(pair, now->waits, before->waits), a),
           format_rate(pair, rate(pair, now->page_waits, before->page_waits), b),
           inspect_number(now->repairs, c), end_of_line());
}

/* Widths of the columns of the table of classes, slot to wait. */
static const int *class_widths(const struct inspect *in)
{
    static const int wide[] = {8, 12, 10, 10, 11, 11, 8};
    static const int narrow[] = {6, 8, 8, 8, 9, 8, 6};
    return inspect_width(in) < 80 ? narrow : wide;
}

static void print_class(struct inspect *in, const struct pair *pair, unsigned k)
{
    const int *w = class_widths(in);
    const struct class_look *now = &pair->now->classes[k], *before = &pair->before->classes[k];
    char used[32], cached[32], idle[32], refill[32], flush[32], waits[32];
    printf("%*u %*s %*s %*s %*s %*s %*s%s", w[0], smi_classes[k].size, w[1],
           inspect_number(now->in_use, used), w[2], inspect_number(now->cached, cached), w[3],
           inspect_number(now->free, idle), w[4],
           format_rate(pair, rate(pair, now->refilled, before->refilled), refill), w[5],
           format_rate(pair, rate(pair, now->flushed, before->flushed), flush), w[6],
           format_rate(pair, rate(pair, now->waits, before->waits), waits), end_of_line());
}

static void print_more(unsigned all, unsigned shown, const char *what)
{
    if (all > shown)
        printf("         and %u more %s%s", all - shown, what, end_of_line());
}

static void print_classes(struct inspect *in, const struct pair *pair, unsigned rows)
{
    unsigned order[SMF_CLASSES], count = busiest(pair, order);
    unsigned shown = count > rows ? rows - 1 : count;
    const int *w = class_widths(in);
    printf("%s%*s %*s %*s %*s %*s %*s %*s%s%s", inspect_color(in, BOLD), w[0], "SLOT", w[1],
           "IN USE", w[2], "CACHED", w[3], "FREE", w[4], "REFILL/s", w[5], "FLUSH/s", w[6],
           "WAIT/s", inspect_color(in, PLAIN), end_of_line());
    for (unsigned i = 0; i < shown; i++)
        print_class(in, pair, order[i]);
    print_more(count, shown, "classes");
}

/* A narrow terminal goes without the PID, which is the main thread's id. */
static void print_threads(struct inspect *in, const struct pair *pair, unsigned rows)
{
    const struct look *look = pair->now;
    int wide = inspect_width(in) >= 80;
    unsigned shown = look->thread_count > rows ? rows - 1 : look->thread_count;
    printf("%s", inspect_color(in, BOLD));
    if (wide)
        printf("%8s ", "PID");
    printf("%8s %10s %9s %8s %8s %s%s%s", "THREAD", "CACHED", "REFILL/s", "FLUSH/s", "LARGE/s",
           "NAME", inspect_color(in, PLAIN), end_of_line());
    for (unsigned i = 0; i < shown; i++) {
        const struct thread_look *thread = &look->threads[i];
        struct thread_rates rates = rates_of(pair, thread);
        char bytes[32], refill[32], flush[32], large[32];
        if (wide)
            printf("%8u ", thread->pid);
        printf("%8u %10s %9s %8s %8s ", thread->tid, inspect_bytes(cached_by(thread), bytes),
               format_rate(pair, rates.refilled, refill), format_rate(pair, rates.flushed, flush),
               format_rate(pair, rates.large, large));
        inspect_print_text(thread->name);
        printf("%s%s%s%s", inspect_color(in, RED), thread->alive ? "" : " (dead)",
               inspect_color(in, PLAIN), end_of_line());
    }
    print_more(look->thread_count, shown, "threads");
}

/* Threads get a third of the rows that are left, or what the classes leave. A low screen has the
 * summary only. */
static void print_look(struct inspect *in, const struct pair *pair, unsigned rows)
{
    unsigned order[SMF_CLASSES], classes = busiest(pair, order);
    unsigned threads = pair->now->thread_count, least = rows / 3 < 2 ? 2 : rows / 3;
    unsigned for_threads = rows > classes + least ? rows - classes : least;
    if (threads < for_threads)
        for_threads = threads;
    print_title(in, pair->now);
    print_summary(in, pair);
    if (rows == 0)
        return;
    printf("%s", end_of_line());
    print_classes(in, pair, rows - for_threads < 2 ? 2 : rows - for_threads);
    printf("%s", end_of_line());
    print_threads(in, pair, for_threads ? for_threads : 1);
}

/* Lines of the screen for the two tables; without a terminal, enough for both; 0: not enough for
 * any. */
static unsigned rows_for_tables(void)
{
    enum {
        OTHER_LINES = 13
    };
    unsigned rows = inspect_terminal_rows();
    return rows == 0 ? 30 : rows >= OTHER_LINES + 4 ? rows - OTHER_LINES : 0;
}

static void print_failure(struct inspect *in)
{
    print_title(in, NULL);
    printf("  %s", inspect_color(in, YELLOW));
    inspect_print_text(shmalloc_errmsg());
    printf("%s%s  It is looked for again.%s", inspect_color(in, PLAIN), end_of_line(),
           end_of_line());
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void add_rate(struct json_object *object, const char *key, double value)
{
    inspect_add(object, key, json_object_new_double(value));
}

static struct json_object *rates_object(const struct pair *pair)
{
    const struct look *now = pair->now, *before = pair->before;
    struct json_object *rates = json_object_new_object();
    double refilled = 0, flushed = 0;
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        refilled += rate(pair, now->classes[k].refilled, before->classes[k].refilled);
        flushed += rate(pair, now->classes[k].flushed, before->classes[k].flushed);
    }
    add_rate(rates, "growth", growth(pair));
    add_rate(rates, "refilled_slots", refilled);
    add_rate(rates, "flushed_slots", flushed);
    add_rate(rates, "page_takes", rate(pair, now->takes, before->takes));
    add_rate(rates, "page_gives", rate(pair, now->gives, before->gives));
    add_rate(rates, "grows", rate(pair, now->grows, before->grows));
    add_rate(rates, "lock_waits", rate(pair, now->waits, before->waits));
    add_rate(rates, "page_lock_waits", rate(pair, now->page_waits, before->page_waits));
    add_rate(rates, "repairs", rate(pair, now->repairs, before->repairs));
    return rates;
}

static struct json_object *class_object(const struct pair *pair, unsigned k)
{
    const struct class_look *now = &pair->now->classes[k], *before = &pair->before->classes[k];
    struct json_object *class = json_object_new_object();
    inspect_add_number(class, "slot_size", smi_classes[k].size);
    inspect_add_number(class, "slabs", now->slabs);
    inspect_add_number(class, "in_use", now->in_use);
    inspect_add_number(class, "cached", now->cached);
    inspect_add_number(class, "free", now->free);
    add_rate(class, "refilled_slots", rate(pair, now->refilled, before->refilled));
    add_rate(class, "flushed_slots", rate(pair, now->flushed, before->flushed));
    add_rate(class, "lock_waits", rate(pair, now->waits, before->waits));
    return class;
}

static struct json_object *thread_object(const struct pair *pair,
                                         const struct thread_look *thread)
{
    struct thread_rates rates = rates_of(pair, thread);
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, "process", thread->process);
    inspect_add_number(object, "pid", thread->pid);
    inspect_add_text(object, "name", thread->name);
    inspect_add_flag(object, "alive", thread->alive);
    inspect_add_number(object, "tid", thread->tid);
    inspect_add_number(object, "cached_slots", thread->slots);
    inspect_add_number(object, "cached_bytes", thread->bytes);
    inspect_add_number(object, "kept_blocks", thread->kept.blocks);
    inspect_add_number(object, "kept_bytes", thread->kept.bytes);
    add_rate(object, "refilled_slots", rates.refilled);
    add_rate(object, "flushed_slots", rates.flushed);
    add_rate(object, "large_blocks", rates.large);
    return object;
}

static void add_look(struct inspect *in, const struct pair *pair)
{
    const struct look *now = pair->now;
    struct json_object *size = json_object_new_object(), *memory = json_object_new_object();
    struct json_object *classes = json_object_new_array(), *threads = json_object_new_array();
    unsigned order[SMF_CLASSES], count = busiest(pair, order);
    inspect_add_flag(in->out, "moving", inspect_is_live(in));
    add_rate(in->out, "seconds", pair->seconds);
    inspect_add_number(size, "heap", now->size);
    inspect_add_number(size, "maximum", now->max_size);
    inspect_add_number(size, "file", now->file_size);
    inspect_add(in->out, "size", size);
    inspect_add_number(memory, "allocated", now->allocated);
    inspect_add_number(memory, "cached", now->cached);
    inspect_add_number(memory, "central_free", now->central_free);
    inspect_add_number(memory, "free", now->free);
    inspect_add(in->out, "memory", memory);
    inspect_add(in->out, "rates", rates_object(pair));
    for (unsigned i = 0; i < count; i++)
        json_object_array_add(classes, class_object(pair, order[i]));
    for (uint32_t i = 0; i < now->thread_count; i++)
        json_object_array_add(threads, thread_object(pair, &now->threads[i]));
    inspect_add(in->out, "classes", classes);
    inspect_add(in->out, "threads", threads);
}

/* ---- again and again ------------------------------------------------------------------------ */

static struct look looks[2];

static void sort_threads(struct look *look, const struct look *before)
{
    struct pair pair = pair_of(look, before);
    for (uint32_t i = 0; i < look->thread_count; i++) {
        struct thread_rates rates = rates_of(&pair, &look->threads[i]);
        look->threads[i].motion = rates.refilled + rates.flushed + rates.large;
    }
    qsort(look->threads, look->thread_count, sizeof(look->threads[0]), by_work);
}

static enum verdict verdict_of(const struct look *look, int rc)
{
    return rc < 0 ? inspect_verdict(rc) : look->poison ? DAMAGED : SOUND;
}

static enum verdict run_json(struct inspect *in, uint64_t delay)
{
    int rc = inspect_take_look(in, &looks[0]);
    if (rc == 0) {
        inspect_wait(smi_os_clock() + delay);
        rc = inspect_take_look(in, &looks[1]);
    }
    if (rc < 0)
        return inspect_report_error(in, rc);
    sort_threads(&looks[1], &looks[0]);
    struct pair pair = pair_of(&looks[1], &looks[0]);
    add_look(in, &pair);
    return verdict_of(&looks[1], 0);
}

/* One look, compared with the one before. Returns its code. */
static int show_once(struct inspect *in, uint64_t turn)
{
    struct look *now = &looks[turn % 2], *before = &looks[(turn + 1) % 2];
    int rc = inspect_take_look(in, now);
    if (on_terminal)
        fputs("\033[H", stdout);
    if (rc < 0) {
        print_failure(in);
    } else {
        sort_threads(now, before);
        struct pair pair = pair_of(now, before);
        print_look(in, &pair, rows_for_tables());
    }
    if (on_terminal)
        fputs("\033[J", stdout);
    else
        printf("\n");
    return rc;
}

static enum verdict run_text(struct inspect *in, uint64_t delay, uint64_t count)
{
    int rc =
        inspect_take_look(in, &looks[0]); /* what is no heap at first is an error, not waited for */
    if (rc < 0)
        return inspect_report_error(in, rc);
    looks[0].at = 0;
    inspect_catch_signals();
    on_terminal = inspect_take_terminal();
    uint64_t turn = 0, next = smi_os_clock();
    do {
        rc = show_once(in, turn);
        if (fflush(stdout) != 0)
            break;
        turn++;
        next = smi_os_clock() + delay;
    } while (turn != count && !inspect_wait(next));
    inspect_restore_terminal();
    return verdict_of(&looks[(turn + 1) % 2], rc);
}

/* Seconds as given with -d, in nanoseconds; 0 when that is not what it is. */
static uint64_t read_delay(const char *text)
{
    char *end;
    double seconds = strtod(text, &end);
    if (end == text || *end || !(seconds >= 0.1 && seconds <= 3600))
        return 0;
    return (uint64_t)(seconds * 1e9);
}

static enum verdict run(struct inspect *in)
{
    uint64_t count = 0, delay = read_delay(in->given['d'] ? in->given['d'] : "1");
    if (!delay) {
        fprintf(stderr, "shmalloc-inspect: --delay takes seconds, 0.1 to 3600, not \"%s\"\n",
                in->given['d']);
        return CANNOT_TELL;
    }
    if (inspect_option_number(in, 'n', "count", 1, UINT64_MAX, &count) < 0)
        return CANNOT_TELL;
    return in->out ? run_json(in, delay) : run_text(in, delay, count);
}

static const struct option options[] = {{"delay", required_argument, NULL, 'd'},
                                        {"count", required_argument, NULL, 'n'},
                                        {NULL, 0, NULL, 0}};

const struct subcommand inspect_top = {
    "top", "the heap in motion: rates by class and by thread, lock waits", help, run, NULL};
const struct command_line inspect_top_line = {"[--json] [-d SECONDS] [-n COUNT] FILE",
                                              "d:n:", options, 0};
