/* SPDX-License-Identifier: MIT */
/*
 * survivor.c - one process is killed for good, another one, attached before, goes on.
 *
 * A process that is dead cannot be stepped further, so for each instant the operation begins anew.
 * The instants are those that changed the heap in the first run; when a budget does not allow all,
 * those that are tried are spread over all of them.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "crashtest/run.h"

struct survivor {
    struct smi_run *run;
    int ready[2], go[2]; /* pipes: it is attached; the other is dead */
    uint64_t kills, longest;
};

/* ---- the survivor ---- */

static void survive(void *arg)
{
    struct survivor *s = arg;
    struct smi_run *run = s->run;
    shmalloc_heap *heap;
    char byte = 0;
    if (shmalloc_open(run->heap, NULL, &heap) < 0)
        smi_wrong("it cannot be opened by a second process: %s", shmalloc_errmsg());
    alarm(0); /* until the other is dead; a parent that dies takes this process along */
    if (write(s->ready[1], &byte, 1) != 1 || read(s->go[0], &byte, 1) != 1)
        smi_wrong("the pipes to its parent are broken");
    alarm(run->test.timeout);
    smi_run_look(run, heap);
    smi_run_proceed(run, heap);
    if (shmalloc_close(heap) < 0)
        smi_wrong("it cannot be closed: %s", shmalloc_errmsg());
}

static pid_t start(struct survivor *s)
{
    char byte;
    smi_findings_clear(s->run->found);
    if (pipe(s->ready) < 0)
        return -1;
    if (pipe(s->go) < 0) {
        close(s->ready[0]);
        close(s->ready[1]);
        return -1;
    }
    pid_t pid = smi_judge_start(survive, s, s->run->test.timeout, s->run->found);
    close(s->ready[1]);
    ssize_t got = pid < 0 ? 0 : read(s->ready[0], &byte, 1); /* nothing, when it ended: its findings
                                                                say why */
    (void)got;
    close(s->ready[0]);
    if (pid < 0) {
        close(s->go[0]);
        close(s->go[1]);
    }
    return pid;
}

/* Its findings, once the other is dead. */
static void let_go(struct survivor *s, pid_t pid)
{
    char byte = 0;
    uint64_t begin = smi_now_ns();
    ssize_t told = write(s->go[1], &byte, 1); /* one byte always fits */
    (void)told;
    smi_judge_wait(pid, s->run->found);
    uint64_t took = smi_now_ns() - begin;
    if (took > s->longest)
        s->longest = took;
    close(s->go[0]);
    close(s->go[1]);
}

/* ---- one kill ---- */

/* To the instant, then SIGKILL: 0; 1 the operation came to its end before. */
static int kill_at(struct smi_run *run, uint64_t step)
{
    int rc = 1;
    while (run->stepper.steps < step && (rc = smi_stepper_step(&run->stepper)) > 0)
        smi_run_note_place(run);
    if (rc == 0)
        run->stepper.steps--; /* the last one is the end's */
    if (rc < 0)
        rc = smi_cannot(run, -ECANCELED,
                        "the operation did not do the same when it was run once more: %s",
                        run->stepper.failure);
    smi_stepper_kill(&run->stepper);
    if (rc >= 0 && (smi_image_look(run->image) < 0 || smi_image_write(run->image, run->copy) < 0))
        return smi_cannot(run, -ECANCELED, "%s", run->image->failure);
    return rc < 0 ? rc : 0;
}

/* If whoever opens the heap as it was at the death finds the operation done, so must the
 * survivor. */
static int was_done(struct smi_run *run)
{
    struct smi_comparison comparison = {run->before->text, run->after->text, run->test.between, 0};
    smi_run_examine(run, run->copy, run->expected);
    smi_compare(&comparison, run->expected->text);
    return comparison.happened;
}

static void judge(struct smi_run *run)
{
    struct smi_comparison comparison = {run->before->text, run->after->text, run->test.between,
                                        was_done(run)};
    const char *was = comparison.happened ? run->after->text : run->before->text;
    enum smi_verdict verdict = smi_compare(&comparison, run->found->text);
    char why[1200];
    if (run->found->why[0]) {
        snprintf(why, sizeof(why), "the survivor: %s", run->found->why);
        smi_fault(run, why, NULL);
        return;
    }
    if (verdict != SMI_RIGHT) {
        smi_fault(run,
                  verdict == SMI_UNDONE
                      ? "the operation was done, and the survivor finds it undone"
                      : "the survivor finds neither the state before nor the one after",
                  was);
        return;
    }
    smi_run_examine(run, run->heap, run->found);
    if (run->found->why[0]) {
        snprintf(why, sizeof(why), "after the survivor had closed the heap: %s", run->found->why);
        smi_fault(run, why, NULL);
    }
}

static int kill_once(struct survivor *s, uint64_t step)
{
    struct smi_run *run = s->run;
    int rc = smi_run_start(run);
    if (rc < 0)
        return rc;
    pid_t pid = start(s);
    if (pid < 0) {
        smi_run_stop(run);
        return smi_cannot(run, -ECANCELED, "no second process: %s", strerror(errno));
    }
    rc = kill_at(run, step);
    s->kills++;
    let_go(s, pid);
    if (rc == 0)
        judge(run);
    return rc;
}

/* ---- all of them ---- */

/* The n-th of `count` in an order that is spread evenly wherever it is broken off: steps of the
 * golden section. */
static uint64_t spread(uint64_t n, uint64_t count)
{
    uint64_t stride = (uint64_t)((double)count * 0.6180339887) | 1, a = count, b;
    for (;; stride++) {
        for (a = count, b = stride; b != 0;) {
            uint64_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a == 1)
            return n * stride % count;
    }
}

static int kill_all(struct survivor *s, uint64_t start_ns)
{
    struct smi_run *run = s->run;
    uint64_t budget = (uint64_t)run->test.seconds * 1000000000;
    int rc = 0;
    while (rc == 0 && s->kills < run->changes && s->kills < run->test.kills &&
           smi_now_ns() - start_ns < budget) {
        rc = kill_once(s, run->change[spread(s->kills, run->changes)]);
        smi_progress(run, "%llu of %llu instants, %s", (unsigned long long)s->kills,
                     (unsigned long long)run->changes, smi_count_faults(run->faults));
    }
    return rc;
}

int smi_survivor(struct smi_run *run)
{
    struct survivor s = {.run = run};
    uint64_t start_ns = smi_now_ns();
    run->mode = "survivor";
    run->faults = 0;
    int rc = run->test.step ? kill_once(&s, run->test.step) : kill_all(&s, start_ns);
    if (rc < 0)
        return rc;
    smi_tell(run,
             "survivor: one of two processes was killed at %llu of %llu instants, %s, the other "
             "took %.1f ms at "
             "most, %.1f s\n",
             (unsigned long long)s.kills, (unsigned long long)(run->test.step ? 1 : run->changes),
             smi_count_faults(run->faults), (double)s.longest / 1e6,
             (double)(smi_now_ns() - start_ns) / 1e9);
    if (run->test.step == 0 && s.kills < run->changes)
        smi_tell(
            run,
            "  the budget of %u kills or %u s was used up; they are spread over all instants\n",
            run->test.kills, run->test.seconds);
    return 0;
}
