/* SPDX-License-Identifier: MIT */
/*
 * step.c - every instruction, everybody dead.
 *
 *   step [--op NAME] [--list] [--planted] [--recoveries N] [-v]
 *
 * Each operation of ops.c is run twice. The first run, at full speed, tells what the heap is before and after.
 * The second goes instruction by instruction; whenever the file has changed to something not seen before, a copy
 * of it is what would be left if all processes died there. Somebody opens the copy as the first to attach: it must
 * be sound, in use and emptied, and it must hold exactly what was there before, or exactly what is there after.
 * Once the operation has happened, it must not be undone by a later death.
 *
 * Then recovery itself: of the images with something in flight one for each kind is kept, and N of those (16;
 * some 5 s each), evenly spread, are opened under the same eyes; whatever is left of a recovery that was killed must
 * recover to the same heap.
 *
 * --planted shows that this finds faults: a log entry, link record, `pending` or `spare` is taken out of each
 * image that has one, and the run fails unless somebody complains.
 */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "crashtest/place.h"
#include "crashtest/walk.h"
#include "image.h"
#include "support.h"
#include "trace.h"

/* A full check or a walk over the whole heap takes millions of instructions and stores nothing: an operation that
 * changes nothing for this many runs on at full speed, and its line says so. */
enum { PATIENCE = 200000 };
enum { KEPT_MAX = 64 };

static struct fixture f;
static struct smi_image image;
static enum planted planted;
static int verbose, reported;
static struct smi_findings *before, *after, *found;

static struct {
    uint64_t steps, images, checks, failures;
    int free_run; /* the rest of the operation was not stepped through */
} sums, now;

/* Images with something in flight, one for each combination. */
static struct kept {
    uint64_t in_flight;
    char path[256];
    const struct op *op;
} kept[KEPT_MAX];
static unsigned kept_count;

/* ---- one image ---- */

static void report(const struct op *op, const struct smi_stepper *traced, const char *why)
{
    now.failures++;
    if (planted || reported++ >= 3)
        return;
    printf("FAILED %s, step %llu: %s\n", op->name, (unsigned long long)traced->steps, why);
    smi_place_print(stdout, "after", traced->at);
    fflush(stdout);
}

static void report_difference(const struct op *op, const struct smi_stepper *traced, const char *was)
{
    int first = reported < 3 && !planted;
    report(op, traced, "what is left is neither the heap before nor the one after");
    if (first) {
        smi_print_difference(stdout, was, found->text);
        fflush(stdout);
    }
}

/* What would be left if all died now. */
static void judge_image(const struct op *op, const struct smi_stepper *traced, struct smi_comparison *comparison)
{
    const char *path = fixture_path(&f, "image");
    image_write(&image, path);
    if (planted && !image_plant(path, planted))
        return;
    now.checks++;
    judge(path, op, found);
    const char *was = comparison->happened ? after->text : before->text;
    enum smi_verdict verdict = smi_compare(comparison, found->text);
    if (found->why[0])
        report(op, traced, found->why);
    else if (verdict == SMI_UNDONE)
        report(op, traced, "the operation was done, and is undone");
    else if (verdict == SMI_NEITHER)
        report_difference(op, traced, was);
}

static void keep_image(const struct op *op)
{
    uint64_t bits = image_in_flight(&image);
    for (unsigned i = 0; i < kept_count; i++)
        if (kept[i].in_flight == bits)
            return;
    if (bits == 0 || kept_count == KEPT_MAX || (op->traits & OP_STALE))
        return;
    char name[32];
    snprintf(name, sizeof(name), "kept-%u", kept_count);
    struct kept *k = &kept[kept_count++];
    snprintf(k->path, sizeof(k->path), "%s", fixture_path(&f, name));
    k->in_flight = bits;
    k->op = op;
    image_write(&image, k->path);
}

/* ---- one operation ---- */

static void describe_now(const struct op *op, struct smi_findings *findings)
{
    const char *path = fixture_path(&f, "image");
    findings->text[0] = findings->why[0] = 0;
    image_look(&image);
    if (image.fd < 0)
        return;
    image_write(&image, path);
    judge(path, op, findings);
    must(!findings->why[0], "%s, not stepped: %s", op->name, findings->why);
}

static void start(const struct op *op, struct smi_stepper *traced, const struct kept *stale)
{
    smi_image_forget(&image);
    unlink(f.path);
    if (stale) {
        struct smi_image old = {.path = stale->path, .fd = -1};
        image_look(&old);
        image_write(&old, f.path);
        smi_image_forget(&old);
    }
    must(traced_start(traced, op, f.path) == 0, "%s: %s", op->name, traced->failure);
}

/* The first run: the heap before and after. */
static void look_ahead(const struct op *op, const struct kept *stale)
{
    struct smi_stepper traced;
    start(op, &traced, stale);
    describe_now(op, before);
    must(smi_stepper_finish(&traced) == 0, "%s: %s", op->name, traced.failure);
    describe_now(op, after);
    smi_stepper_kill(&traced);
}

struct run {
    const struct op *op;
    struct smi_comparison comparison;
};

static int visit(struct smi_walk *walk)
{
    struct run *run = walk->arg;
    judge_image(run->op, walk->stepper, &run->comparison);
    keep_image(run->op);
    return 0;
}

/* The second run. */
static void step_through(const struct op *op, const struct kept *stale)
{
    struct smi_stepper traced;
    struct run run = {op, {before->text, after->text, (op->traits & OP_LOOSE) != 0, 0}};
    struct smi_walk walk = {.stepper = &traced, .image = &image, .visit = visit, .arg = &run, .patience = PATIENCE};
    start(op, &traced, stale);
    if (smi_walk(&walk) < 0)
        report(op, &traced, traced.failure[0] ? traced.failure : image.failure);
    image_look(&image);
    if (strcmp(before->text, after->text) != 0 && !run.comparison.happened && !planted)
        judge_image(op, &traced, &run.comparison);
    smi_stepper_kill(&traced);
    now.steps = traced.steps;
    now.images = walk.images;
    now.free_run = walk.free_run;
}

static void print_now(const char *name, uint64_t start_ns)
{
    printf("%-40s %8llu steps %6llu images %6llu checks %6.2f s", name, (unsigned long long)now.steps,
           (unsigned long long)now.images, (unsigned long long)now.checks, (double)(now_ns() - start_ns) / 1e9);
    if (now.free_run)
        printf(" (its end not stepped)");
    if (now.failures)
        printf(" %s %llu", planted ? "found" : "FAILED", (unsigned long long)now.failures);
    printf("\n");
    fflush(stdout);
}

static void run(const struct op *op, const struct kept *stale, const char *name)
{
    uint64_t start_ns = now_ns();
    memset(&now, 0, sizeof(now));
    reported = 0;
    look_ahead(op, stale);
    if (verbose)
        smi_print_difference(stdout, before->text, after->text);
    step_through(op, stale);
    print_now(name, start_ns);
    sums.steps += now.steps;
    sums.images += now.images;
    sums.checks += now.checks;
    sums.failures += now.failures;
}

static void run_recoveries(unsigned most)
{
    unsigned count = kept_count < most ? kept_count : most;
    printf("%u of %u kinds of images in flight are recovered step by step\n", count, kept_count);
    for (unsigned n = 0; n < count; n++) {
        unsigned i = n * kept_count / count;
        struct op op = reopening;
        char name[128];
        op.traits |= kept[i].op->traits & (OP_HARDENED | OP_NO_FILE | OP_MUTEX);
        snprintf(name, sizeof(name), "recovery %#llx of %s", (unsigned long long)kept[i].in_flight, kept[i].op->name);
        op.name = name;
        run(&op, &kept[i], name);
    }
}

/* ---- the whole ---- */

static int matches(const struct op *op, const char *wanted)
{
    return !wanted || strstr(op->name, wanted) != NULL;
}

static int run_planted(const char *wanted)
{
    int missed = 0;
    static const char *const few[] = {"alloc, refill", "free to the cache", "free, longer stack", "free, merge both",
                                      "hardened: alloc, new slab", "root set, new"};
    for (planted = PLANT_NOTHING + 1; planted < PLANTS; planted++) {
        printf("planted: %s\n", planted_names[planted]);
        uint64_t failures = sums.failures;
        for (unsigned i = 0; i < op_count; i++)
            for (unsigned n = 0; n < sizeof(few) / sizeof(few[0]); n++)
                if (strcmp(ops[i].name, few[n]) == 0 && matches(&ops[i], wanted))
                    run(&ops[i], NULL, ops[i].name);
        if (sums.failures == failures) {
            printf("MISSED: nobody noticed %s\n", planted_names[planted]);
            missed = 1;
        }
    }
    return missed;
}

static int run_all(const char *wanted, unsigned recoveries)
{
    uint64_t start_ns = now_ns();
    for (unsigned i = 0; i < op_count; i++)
        if (matches(&ops[i], wanted))
            run(&ops[i], NULL, ops[i].name);
    if (recoveries > 0)
        run_recoveries(recoveries);
    printf("%llu steps, %llu images, %llu checks, %llu failures in %.1f s\n", (unsigned long long)sums.steps,
           (unsigned long long)sums.images, (unsigned long long)sums.checks, (unsigned long long)sums.failures,
           (double)(now_ns() - start_ns) / 1e9);
    return sums.failures != 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"op", required_argument, NULL, 'o'}, {"list", no_argument, NULL, 'l'},
                                            {"planted", no_argument, NULL, 'p'},
                                            {"recoveries", required_argument, NULL, 'n'}, {NULL, 0, NULL, 0}};
    const char *wanted = NULL;
    unsigned recoveries = 16;
    int planted_run = 0;
    for (int c; (c = getopt_long(argc, argv, "v", options, NULL)) != -1;) {
        if (c == 'o')
            wanted = optarg;
        else if (c == 'p')
            planted_run = 1;
        else if (c == 'n')
            recoveries = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 'v')
            verbose = 1;
        else if (c == 'l')
            for (unsigned i = 0; i < op_count; i++)
                printf("%s\n", ops[i].name);
        if (c == 'l' || c == '?')
            return c == '?' ? 2 : 0;
    }
    fixture_begin(&f);
    image = (struct smi_image){.path = f.path, .fd = -1};
    control = shared_memory(sizeof(*control));
    before = shared_memory(sizeof(*before));
    after = shared_memory(sizeof(*after));
    found = shared_memory(sizeof(*found));
    int rc = planted_run ? run_planted(wanted) : run_all(wanted, recoveries);
    fixture_end(&f);
    return rc;
}
