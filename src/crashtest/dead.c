/* SPDX-License-Identifier: MIT */
/*
 * dead.c - everybody dies at once, after each instruction that changed the heap.
 *
 * The operation is stepped through twice. The first time tells the states before and after and the
 * instructions that change the heap; the second time each image is judged. In between it runs at
 * full speed, for one that does not leave the same in every run cannot be judged.
 */
#include <errno.h>
#include <string.h>

#include "crashtest/run.h"

/* Stores that copy into a large block or clear it change the heap by the thousand. Of such a row
 * the first BULK_ALL images are judged, then one for each BULK_ALL-th part of the row's length. */
enum { BULK_ALL = 64 };

enum { STOPPED = -100001 }; /* a walk ended where it was meant to */

struct dead {
    struct smi_run *run;
    struct smi_comparison comparison;
    uint64_t visits, images, left_out;
    uint64_t bulk;    /* length of the row of changes in large blocks */
    int last_left_out;
    uint64_t differs; /* first step at which the file changed in one of the runs only; 0 none */
    int fault;        /* the operation itself failed */
};

/* ---- both ways through ---- */

static int is_left_out(struct dead *d)
{
    d->bulk = d->run->image->bulk ? d->bulk + 1 : 0;
    d->last_left_out = d->bulk > BULK_ALL && d->bulk % (d->bulk / BULK_ALL) != 0;
    d->left_out += (uint64_t)d->last_left_out;
    return d->last_left_out;
}

static int too_many_steps(struct dead *d)
{
    struct smi_run *run = d->run;
    char why[128];
    if (run->stepper.steps < run->test.max_steps)
        return 0;
    snprintf(why, sizeof(why), "the operation did not come to its end within %llu instructions",
             (unsigned long long)run->test.max_steps);
    d->fault = 1;
    smi_fault(run, why, NULL);
    return STOPPED;
}

static int each(struct smi_walk *walk)
{
    struct dead *d = walk->arg;
    smi_run_note_place(d->run);
    int rc = too_many_steps(d);
    unsigned long long step = d->run->stepper.steps;
    if (d->comparison.before == NULL)
        smi_progress(d->run, "first run, step %llu", step);
    else
        smi_progress(d->run, "step %llu of %llu, %llu instants, %s", step,
                     (unsigned long long)d->run->steps, (unsigned long long)d->images,
                     smi_count_faults(d->run->faults));
    return rc;
}

/* What ended a walk, other than its end: 1 a fault, 0 as meant, < 0 the test cannot go on. */
static int ended(struct dead *d, int rc)
{
    struct smi_run *run = d->run;
    if (rc == STOPPED)
        return d->fault;
    if (run->stepper.failure[0] == 0)
        return smi_cannot(run, -ECANCELED, "%s",
                          run->image->failure[0] ? run->image->failure : strerror(-rc));
    char why[1400];
    snprintf(why, sizeof(why), "with nobody killed, the operation failed: %s",
             run->said->why[0] ? run->said->why : run->stepper.failure);
    smi_fault(run, why, NULL);
    return 1;
}

/* Somebody finds something wrong at BEGUN or ENDED: 1 reported. */
static int reported(struct smi_run *run, const char *state, const struct smi_findings *findings)
{
    char why[1200];
    if (findings->why[0] == 0)
        return 0;
    snprintf(why, sizeof(why), "%s: %s", state, findings->why);
    smi_fault(run, why, NULL);
    return 1;
}

static int examine_now(struct smi_run *run, struct smi_findings *out)
{
    if (smi_image_look(run->image) < 0 || smi_image_write(run->image, run->copy) < 0)
        return smi_cannot(run, -ECANCELED, "%s", run->image->failure);
    smi_run_examine(run, run->copy, out);
    return 0;
}

/* ---- the first way ---- */

static int note_change(struct smi_walk *walk)
{
    struct dead *d = walk->arg;
    struct smi_run *run = d->run;
    if (is_left_out(d))
        return 0;
    if (run->changes == SMI_CHANGES_MAX)
        return -EOVERFLOW;
    run->change[run->changes++] = (uint32_t)run->stepper.steps;
    return 0;
}

static int scan_to_end(struct smi_run *run)
{
    struct dead d = {.run = run};
    struct smi_walk walk = {.stepper = &run->stepper,
                            .image = run->image,
                            .every = 1,
                            .visit = note_change,
                            .each = each,
                            .arg = &d};
    int rc = examine_now(run, run->before);
    if (rc == 0)
        rc = reported(run, "in the state before the operation", run->before);
    if (rc != 0)
        return rc;
    rc = smi_walk(&walk);
    run->steps = run->stepper.steps;
    if (rc == -EOVERFLOW)
        return smi_cannot(run, rc,
                          "the operation changes the heap more than %d times; test a shorter one",
                          SMI_CHANGES_MAX);
    if (rc < 0)
        return ended(&d, rc);
    if ((rc = examine_now(run, run->after)) < 0)
        return rc;
    return reported(run, "in the state after the operation", run->after);
}

static int same(struct smi_run *run, const char *when, const struct smi_findings *expected)
{
    int rc = examine_now(run, run->found);
    if (rc < 0 || strcmp(run->found->text, expected->text) == 0)
        return rc;
    smi_cannot(run, -ECANCELED, "it is not the same in two runs; describe() differs %s:", when);
    smi_print_difference(run->out, expected->text, run->found->text);
    return -ECANCELED;
}

/* Once more at full speed, with the same findings before and after. */
static int confirm(struct smi_run *run)
{
    struct dead d = {.run = run};
    int rc = same(run, "before the operation", run->before);
    if (rc < 0)
        return rc;
    if (smi_stepper_finish(&run->stepper) < 0)
        return ended(&d, -1);
    return same(run, "after the operation", run->after);
}

int smi_scan(struct smi_run *run)
{
    run->mode = "dead";
    run->changes = run->faults = 0;
    int rc = smi_run_start(run);
    if (rc < 0)
        return rc;
    rc = scan_to_end(run);
    smi_run_stop(run);
    run->check_leaks = run->before->reached > 0 || run->after->reached > 0;
    if (rc != 0 || (rc = smi_run_start(run)) < 0)
        return rc;
    rc = confirm(run);
    smi_run_stop(run);
    return rc;
}

/* ---- the second way ---- */

static int judge_now(struct dead *d)
{
    struct smi_run *run = d->run;
    const char *was = d->comparison.happened ? run->after->text : run->before->text;
    d->images++;
    int rc = examine_now(run, run->found);
    if (rc < 0)
        return rc;
    enum smi_verdict verdict = smi_compare(&d->comparison, run->found->text);
    if (run->found->why[0])
        smi_fault(run, run->found->why, NULL);
    else if (verdict == SMI_UNDONE)
        smi_fault(run, "the operation was seen to be done, and is undone by a later death", was);
    else if (verdict == SMI_NEITHER)
        smi_fault(run, "what is left is neither the state before nor the one after", was);
    return 0;
}

static int visit(struct smi_walk *walk)
{
    struct dead *d = walk->arg;
    struct smi_run *run = d->run;
    if (is_left_out(d))
        return 0;
    uint64_t n = d->visits++, step = run->stepper.steps;
    if (d->differs == 0 && (n >= run->changes || run->change[n] != step))
        d->differs = step;
    return run->test.step != 0 ? 0 : judge_now(d);
}

static int each_but_one(struct smi_walk *walk)
{
    struct dead *d = walk->arg;
    int rc = each(walk);
    if (rc < 0 || d->run->stepper.steps != d->run->test.step)
        return rc;
    rc = judge_now(d);
    return rc < 0 ? rc : STOPPED;
}

static int kill_everybody(struct dead *d)
{
    struct smi_run *run = d->run;
    struct smi_walk walk = {.stepper = &run->stepper,
                            .image = run->image,
                            .every = 1, /* also one that was there before: that may be the operation
                                           undone */
                            .visit = visit,
                            .each = run->test.step ? each_but_one : each,
                            .arg = d};
    int rc = smi_walk(&walk);
    if (rc < 0)
        return ended(d, rc);
    if (run->test.step != 0)
        return smi_cannot(run, -EINVAL, "the operation has %llu instructions, no step %llu",
                          (unsigned long long)run->stepper.steps,
                          (unsigned long long)run->test.step);
    if (d->last_left_out && (rc = judge_now(d)) < 0)
        return rc;
    if (run->faults == 0 && strcmp(run->before->text, run->after->text) != 0 &&
        !d->comparison.happened)
        return smi_cannot(run, -ECANCELED,
                          "the operation did not do the same when it was run once more");
    return 0;
}

int smi_dead(struct smi_run *run)
{
    struct dead d = {.run = run,
                     .comparison = {run->before->text, run->after->text, run->test.between, 0}};
    uint64_t start = smi_now_ns();
    run->mode = "dead";
    run->faults = 0;
    int rc = smi_run_start(run);
    if (rc < 0)
        return rc;
    rc = kill_everybody(&d);
    smi_run_stop(run);
    if (rc < 0)
        return rc;
    smi_tell(run, "dead: everybody died at %llu instant%s, %s, %.1f s\n",
             (unsigned long long)d.images, d.images == 1 ? "" : "s", smi_count_faults(run->faults),
             (double)(smi_now_ns() - start) / 1e9);
    if (d.left_out)
        smi_tell(run, "  %llu more were left out, in long rows of stores to large blocks\n",
                 (unsigned long long)d.left_out);
    if (d.differs)
        smi_tell(run,
                 "  note: the operation was not the same in two runs: from step %llu on, the heap "
                 "changed at "
                 "other instructions\n",
                 (unsigned long long)d.differs);
    return 0;
}
