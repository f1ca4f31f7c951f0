/* SPDX-License-Identifier: MIT */
/*
 * step.c - every instruction, everybody dead or others alive.
 *
 *   step [--alive] [--op NAME] [--list] [--planted] [--recoveries N] [--real N] [-v]
 *
 * Each operation of ops.c is run twice. The first run, at full speed, tells what the heap is before
 * and after. The second goes instruction by instruction; whenever the file has changed to something
 * not seen before, a copy of it is what would be left if all processes died there. Somebody opens
 * the copy as the first to attach: it must be sound, in use and emptied, and it must hold exactly
 * what was there before, or exactly what is there after. Once the operation has happened, it must
 * not be undone by a later death.
 *
 * With --alive the stepped process alone dies, and somebody who had the heap open carries on with
 * the copy (survivor.h): once for each order in which the dead process's locks can be taken over,
 * and once in another way of coming across the death, these taking turns. The stepped process holds
 * world.mutex all the while. The same must hold; besides, afterwards no table and no lock may show
 * the dead.
 *
 * Then recovery itself: of the images with something in flight one for each kind is kept, and N of
 * those (16; some 5 s each), evenly spread, are opened under the same eyes; whatever is left of a
 * recovery that was killed must recover to the same heap. With --alive a survivor is stepped
 * through its repair, and another one carries on when it is killed; of the images that a death in a
 * repair left, N/4 are repaired under the same eyes once more, and a third one carries on. All kept
 * images are also met by two survivors at the same time.
 *
 * Those kept images are also recovered as if the machine had been started anew, and as copies that
 * a backup made.
 *
 * --real N: with real survivors and a real SIGKILL, at N instructions of each operation.
 *
 * --planted shows that this finds faults: what a mistake in the library would do is done to each
 * image, and the run fails unless somebody complains of it.
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
#include "judge.h"
#include "support.h"
#include "survivor.h"
#include "trace.h"

/* A full check or a walk over the whole heap takes millions of instructions and stores nothing: an
 * operation that changes nothing for this many runs on at full speed, and its line says so. */
enum { PATIENCE = 200000 };
enum { KEPT_MAX = 512 };

static struct fixture f;
static char left_path[256], met_path[256]; /* a copy of what a death leaves; the file that a
                                              survivor meets it in */
static struct smi_image image;
static enum planted planted;
static int verbose, reported, alive, real;
static const struct survival *repaired; /* what is stepped through is this repair */
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
    unsigned part; /* of the survivor who meets it */
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

static void report_difference(const struct op *op, const struct smi_stepper *traced,
                              const char *was)
{
    int first = reported < 3 && !planted;
    report(op, traced, "what is left is neither the heap before nor the one after");
    if (first) {
        smi_print_difference(stdout, was, found->text);
        fflush(stdout);
    }
}

/* The part of the survivor who meets what is left now. */
static unsigned next_part(void)
{
    return repaired ? repaired->part + 1 : 0;
}

static void judge_left(const struct op *op, const char *path, struct order order)
{
    now.checks++;
    struct op first = *op;
    if (!alive || real) {
        first.traits &= real ? ~(unsigned)OP_MUTEX : ~0u; /* survivors have been told by then */
        judge(path, &first, found);
        return;
    }
    survivor_judge(
        &(struct survival){path, met_path, repaired ? repaired->op : op, next_part(), order},
        found);
}

static void compare(const struct op *op, const struct smi_stepper *traced,
                    struct smi_comparison *comparison)
{
    const char *was = comparison->happened ? after->text : before->text;
    enum smi_verdict verdict = smi_compare(comparison, found->text);
    if (found->why[0])
        report(op, traced, found->why);
    else if (verdict == SMI_UNDONE)
        report(op, traced, "the operation was done, and is undone");
    else if (verdict == SMI_NEITHER)
        report_difference(op, traced, was);
}

static struct smi_comparison comparison_for(const struct op *op)
{
    return (struct smi_comparison){before->text, after->text, (op->traits & OP_LOOSE) != 0, 0};
}

/* What would be left by a death now. */
static void judge_image(const struct op *op, const struct smi_stepper *traced,
                        struct smi_comparison *comparison)
{
    if (planted == PLANT_SWAPPED) {
        if (!image_write_swapped(&image, left_path))
            return;
    } else {
        image_write(&image, left_path);
        if (planted && planted < PLANTS && !image_plant(left_path, planted))
            return;
    }
    struct order orders[ORDERS_MAX];
    unsigned count = alive ? survivor_orders(left_path, now.images, orders) : 1;
    for (unsigned n = 0; n < count; n++) {
        judge_left(op, left_path, orders[n]);
        compare(op, traced, comparison);
    }
}

/* 1: there was none of this kind yet. */
static int keep_image(const struct op *op)
{
    uint64_t bits = image_in_flight(&image);
    unsigned part = next_part();
    for (unsigned i = 0; i < kept_count; i++)
        if (kept[i].in_flight == bits && kept[i].part == part)
            return 0;
    if (bits == 0 || kept_count == KEPT_MAX || part == SURVIVORS - 1 ||
        ((op->traits & OP_STALE) && !repaired))
        return 0;
    char name[32];
    snprintf(name, sizeof(name), "kept-%u", kept_count);
    struct kept *k = &kept[kept_count++];
    snprintf(k->path, sizeof(k->path), "%s", fixture_path(&f, name));
    k->in_flight = bits;
    k->op = repaired ? repaired->op : op;
    k->part = part;
    image_write(&image, k->path);
    return 1;
}

/* The image as it would be found after a reboot, or in a backup. */
static void judge_elsewhere(const struct op *op, const struct smi_stepper *traced,
                            struct smi_comparison *comparison)
{
    for (int reboot = 0; reboot < 2 && !(op->traits & (OP_NO_FILE | OP_TORN)); reboot++) {
        image_write(&image, left_path);
        if (!image_move(left_path, reboot))
            continue;
        now.checks++;
        judge_moved(left_path, op, found);
        compare(op, traced, comparison);
    }
}

/* ---- one operation ---- */

static void describe_now(const struct op *op, struct smi_findings *findings)
{
    findings->text[0] = 0;
    image_look(&image);
    if (image.fd < 0)
        return;
    image_write(&image, left_path);
    judge_left(op, left_path, (struct order){FIRST_MUTEX, 0});
    must(!found->why[0], "%s, not stepped: %s", op->name, found->why);
    memcpy(findings->text, found->text, sizeof(found->text));
}

static void start(const struct op *op, struct smi_stepper *traced, const struct kept *stale)
{
    smi_image_forget(&image);
    unlink(f.path);
    if (alive && !repaired)
        survivors_start(&f);
    else if (stale && !repaired)
        image_copy(stale->path, f.path);
    must(traced_start(traced, op, f.path) == 0, "%s: %s", op->name, traced->failure);
    if (alive && !repaired)
        survivors_remember(op);
}

static void end(struct smi_stepper *traced)
{
    smi_stepper_kill(traced);
    if (alive && !repaired)
        survivors_end();
}

/* The first run: the heap before and after. */
static void look_ahead(const struct op *op, const struct kept *stale)
{
    struct smi_stepper traced;
    start(op, &traced, stale);
    describe_now(op, before);
    must(smi_stepper_finish(&traced) == 0, "%s: %s", op->name, traced.failure);
    describe_now(op, after);
    end(&traced);
}

struct run {
    const struct op *op;
    struct smi_comparison comparison;
};

enum { ENOUGH = -100001 };

static int visit(struct smi_walk *walk)
{
    struct run *run = walk->arg;
    now.images = walk->images;
    judge_image(run->op, walk->stepper, &run->comparison);
    if (keep_image(run->op) && !alive)
        judge_elsewhere(run->op, walk->stepper, &run->comparison);
    return planted && now.failures ? ENOUGH : 0;
}

/* The second run. */
static void step_through(const struct op *op, const struct kept *stale)
{
    struct smi_stepper traced;
    struct run run = {op, comparison_for(op)};
    struct smi_walk walk = {
        .stepper = &traced, .image = &image, .visit = visit, .arg = &run, .patience = PATIENCE};
    start(op, &traced, stale);
    image_swap_begin();
    int rc = smi_walk(&walk);
    if (rc < 0 && rc != ENOUGH)
        report(op, &traced, traced.failure[0] ? traced.failure : image.failure);
    image_look(&image);
    if (strcmp(before->text, after->text) != 0 && !run.comparison.happened && !planted)
        judge_image(op, &traced, &run.comparison);
    end(&traced);
    now.steps = traced.steps;
    now.images = walk.images;
    now.free_run = walk.free_run;
}

static void print_now(const char *name, uint64_t start_ns)
{
    printf("%-40s %8llu steps %6llu images %6llu checks %6.2f s", name,
           (unsigned long long)now.steps, (unsigned long long)now.images,
           (unsigned long long)now.checks, (double)(now_ns() - start_ns) / 1e9);
    if (now.free_run)
        printf(" (its end not stepped)");
    if (now.failures)
        printf(" %s %llu", planted ? "found" : "FAILED", (unsigned long long)now.failures);
    printf("\n");
    fflush(stdout);
}

static void add_up(void)
{
    sums.steps += now.steps;
    sums.images += now.images;
    sums.checks += now.checks;
    sums.failures += now.failures;
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
    add_up();
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
        snprintf(name, sizeof(name), "recovery %#llx of %s", (unsigned long long)kept[i].in_flight,
                 kept[i].op->name);
        op.name = name;
        run(&op, &kept[i], name);
    }
}

/* ---- survivors ---- */

static void repair(const struct kept *k, unsigned n)
{
    static const enum first ways[] = {FIRST_MUTEX, FIRST_LOOK};
    struct order orders[ORDERS_MAX], order = {ways[n / 3 % 2], 0};
    unsigned count = survivor_orders(k->path, 0, orders);
    if (n % 3 && orders[n % count].first == FIRST_LOCKS)
        order = orders[n % count];
    struct survival survival = {k->path, f.path, k->op, k->part, order};
    struct op op = repairing;
    char name[128];
    snprintf(name, sizeof(name), "repair %u of %#llx of %s", k->part + 1,
             (unsigned long long)k->in_flight, k->op->name);
    op.name = name;
    repaired = &survival;
    survivor_will_repair(&survival);
    run(&op, k, name);
    repaired = NULL;
}

/* Up to `most` of the kept images that a survivor of that part meets. */
static void run_repairs(unsigned part, unsigned most)
{
    unsigned all = 0, done = 0, seen_of_part = 0;
    for (unsigned i = 0; i < kept_count; i++)
        all += kept[i].part == part;
    most = most < all ? most : all;
    printf("%u of %u kinds of images left by death %u are repaired step by step\n", most, all,
           part + 1);
    for (unsigned i = 0, end_of_kept = kept_count; i < end_of_kept; i++)
        if (kept[i].part == part && seen_of_part++ * most / all == done && done < most)
            repair(&kept[i], done++);
}

static void run_two_at_once(unsigned times)
{
    static const struct smi_stepper nobody;
    uint64_t start_ns = now_ns();
    memset(&now, 0, sizeof(now));
    reported = 0;
    for (unsigned i = 0; i < kept_count; i++)
        for (unsigned n = 0; n < times && kept[i].part == 0; n++) {
            enum first first = (enum first)((i + n) % FIRSTS);
            struct survival survival = {kept[i].path, met_path, kept[i].op, 0, {first, n}};
            now.checks++;
            survivor_judge_two(&survival, found);
            if (found->why[0])
                report(kept[i].op, &nobody, found->why);
        }
    print_now("two survivors and a newcomer at once", start_ns);
    add_up();
}

/* ---- real deaths ---- */

static uint64_t steps_of(const struct op *op)
{
    struct smi_stepper traced;
    start(op, &traced, NULL);
    while (smi_stepper_step(&traced) > 0 && traced.steps < PATIENCE)
        ;
    end(&traced);
    return traced.steps;
}

static void kill_at(const struct op *op, uint64_t step)
{
    struct smi_stepper traced;
    struct smi_comparison comparison = comparison_for(op);
    int rc = 1;
    start(op, &traced, NULL);
    while (rc > 0 && traced.steps < step)
        rc = smi_stepper_step(&traced);
    smi_stepper_kill(&traced);
    if (survivors_carry_on() != 0)
        report(op, &traced, "a survivor failed");
    judge_left(op, f.path, (struct order){FIRST_MUTEX, 0});
    compare(op, &traced, &comparison);
    now.steps += traced.steps;
}

/* At so many instructions of the operation, the process is killed, and three survivors carry on at
 * once. */
static void run_real(const struct op *op, unsigned times)
{
    static struct rng rng;
    uint64_t start_ns = now_ns();
    if (rng.state == 0)
        rng = rng_from(test_seed());
    memset(&now, 0, sizeof(now));
    reported = 0;
    look_ahead(op, NULL);
    now.checks = 0;
    uint64_t steps = steps_of(op);
    for (unsigned n = 0; n < times; n++)
        kill_at(op, rng_below(&rng, steps));
    print_now(op->name, start_ns);
    add_up();
}

/* ---- the whole ---- */

static int matches(const struct op *op, const char *wanted)
{
    return !wanted || strstr(op->name, wanted) != NULL;
}

/* Survivors need a heap to have come to. */
static int is_wanted(const struct op *op, const char *wanted)
{
    return matches(op, wanted) && !(alive && (op->traits & OP_NO_FILE));
}

/* Does any of these operations show it? */
static int is_noticed(const char *wanted)
{
    static const char *const few[] = {"alloc, refill",
                                      "free to the cache",
                                      "free, longer stack",
                                      "free, merge both",
                                      "hardened: alloc, new slab",
                                      "root set, new",
                                      "realloc, small to large",
                                      "root get_or_create, large",
                                      "free, large",
                                      "realloc, small to large that was kept"};
    for (unsigned n = 0; n < sizeof(few) / sizeof(few[0]); n++)
        for (unsigned i = 0; i < op_count; i++)
            if (strcmp(ops[i].name, few[n]) == 0 && matches(&ops[i], wanted)) {
                run(&ops[i], NULL, ops[i].name);
                if (now.failures)
                    return 1;
            }
    return 0;
}

static int run_planted(const char *wanted)
{
    int missed = 0;
    for (planted = PLANT_NOTHING + 1; planted < (alive ? PLANTS : PLANT_UNMARKED); planted++) {
        printf("planted: %s\n", planted_names[planted]);
        if (!is_noticed(wanted)) {
            printf("MISSED: nobody noticed %s\n", planted_names[planted]);
            missed = 1;
        }
    }
    planted = PLANTS; /* nothing in the image: the operation itself is wrong */
    run(&early_dup, NULL, early_dup.name);
    if (!now.failures) {
        printf("MISSED: nobody noticed a block that is linked before it is filled\n");
        missed = 1;
    }
    return missed;
}

static int print_sums(uint64_t start_ns)
{
    printf("%llu steps, %llu images, %llu checks, %llu failures in %.1f s\n",
           (unsigned long long)sums.steps, (unsigned long long)sums.images,
           (unsigned long long)sums.checks, (unsigned long long)sums.failures,
           (double)(now_ns() - start_ns) / 1e9);
    return sums.failures != 0;
}

static int run_all(const char *wanted, unsigned recoveries)
{
    uint64_t start_ns = now_ns();
    for (unsigned i = 0; i < op_count; i++)
        if (is_wanted(&ops[i], wanted))
            run(&ops[i], NULL, ops[i].name);
    if (alive) {
        run_two_at_once(4);
        run_repairs(0, recoveries);
        run_repairs(1, recoveries / 4);
    } else if (recoveries > 0) {
        run_recoveries(recoveries);
    }
    return print_sums(start_ns);
}

static int run_all_real(const char *wanted, unsigned times)
{
    uint64_t start_ns = now_ns();
    alive = real = 1;
    for (unsigned i = 0; i < op_count; i++)
        if (is_wanted(&ops[i], wanted))
            run_real(&ops[i], times);
    return print_sums(start_ns);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"op", required_argument, NULL, 'o'},
                                            {"list", no_argument, NULL, 'l'},
                                            {"planted", no_argument, NULL, 'p'},
                                            {"alive", no_argument, NULL, 'a'},
                                            {"real", required_argument, NULL, 'r'},
                                            {"recoveries", required_argument, NULL, 'n'},
                                            {NULL, 0, NULL, 0}};
    const char *wanted = NULL;
    unsigned recoveries = 16, times = 0;
    int planted_run = 0;
    for (int c; (c = getopt_long(argc, argv, "v", options, NULL)) != -1;) {
        if (c == 'o')
            wanted = optarg;
        else if (c == 'p')
            planted_run = 1;
        else if (c == 'n')
            recoveries = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 'a')
            alive = 1;
        else if (c == 'r')
            times = (unsigned)strtoul(optarg, NULL, 0);
        else if (c == 'v')
            verbose = 1;
        else if (c == 'l')
            for (unsigned i = 0; i < op_count; i++)
                printf("%s\n", ops[i].name);
        if (c == 'l' || c == '?')
            return c == '?' ? 2 : 0;
    }
    fixture_begin(&f);
    snprintf(left_path, sizeof(left_path), "%s", fixture_path(&f, "left"));
    snprintf(met_path, sizeof(met_path), "%s", fixture_path(&f, "met"));
    image = (struct smi_image){.path = f.path, .watch_locks = alive, .fd = -1};
    control = shared_memory(sizeof(*control));
    before = shared_memory(sizeof(*before));
    after = shared_memory(sizeof(*after));
    found = shared_memory(sizeof(*found));
    int rc = times > 0     ? run_all_real(wanted, times)
             : planted_run ? run_planted(wanted)
                           : run_all(wanted, recoveries);
    fixture_end(&f);
    return rc;
}
