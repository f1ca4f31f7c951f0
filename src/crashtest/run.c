/* SPDX-License-Identifier: MIT */
/*
 * run.c - the processes of a test: the one that is killed, and those that open what is left.
 *
 * All of them are forks of the caller and leave by _exit.
 */
#include "crashtest/run.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

#include "crashtest/place.h"

/* ---- the process that is killed ---- */

static const char *calling; /* name of the callback that runs */

int shmalloc_crashtest_fail(const char *format, ...)
{
    char text[900];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    smi_note_wrong("%s(): %s", calling, text);
    return -1;
}

void shmalloc_crashtest_print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    smi_say_list(format, args);
    va_end(args);
}

void smi_run_call(struct smi_run *run, shmalloc_heap *heap, shmalloc_crashtest_fn *fn,
                  const char *name)
{
    calling = name;
    int rc = fn ? fn(heap, run->test.arg) : 0;
    if (rc != 0 && shmalloc_errmsg()[0])
        smi_note_wrong("%s() returned %d; the heap's last message: %s", name, rc,
                       shmalloc_errmsg());
    else if (rc != 0)
        smi_note_wrong("%s() returned %d", name, rc);
}

static void call_or_end(struct smi_run *run, shmalloc_heap *heap, shmalloc_crashtest_fn *fn,
                        const char *name, struct smi_findings *said)
{
    smi_run_call(run, heap, fn, name);
    if (said->why[0])
        smi_judge_leave(1);
}

static void body(void *arg)
{
    struct smi_run *run = arg;
    shmalloc_heap *heap;
    const struct itimerval every_second = {{1, 0}, {1, 0}};
    smi_findings_use(run->said);
    setitimer(ITIMER_REAL, &every_second, NULL); /* the tracer counts them */
    if (shmalloc_open(run->heap, run->test.options, &heap) < 0)
        smi_wrong("%s", shmalloc_errmsg());
    call_or_end(run, heap, run->test.setup, "setup", run->said);
    fflush(NULL);
    smi_stepper_mark(run->phase, SMI_BEGUN);
    call_or_end(run, heap, run->test.operation, "operation", run->said);
    smi_stepper_mark(run->phase, SMI_ENDED);
}

int smi_run_start(struct smi_run *run)
{
    unlink(run->heap);
    smi_image_forget(run->image);
    smi_findings_clear(run->said);
    run->stepper.phase = run->phase;
    run->stepper.limit = run->test.timeout;
    run->programs_at = 0;
    int rc = smi_stepper_start(&run->stepper, body, run);
    if (rc == 0)
        return 0;
    if (run->stepper.failure[0]) {
        rc = smi_cannot(run, -ECANCELED, "before the operation: %s",
                        run->said->why[0] ? run->said->why : run->stepper.failure);
        smi_run_stop(run);
        return rc;
    }
    if (rc != -EPERM)
        return smi_cannot(run, rc, "%s", strerror(-rc));
    return smi_cannot(
        run, rc,
        "ptrace is refused here. A container needs the capability SYS_PTRACE or a seccomp "
        "profile that allows it, /proc/sys/kernel/yama/ptrace_scope must be below 3, and no "
        "debugger may follow this process. The mode --random works without ptrace");
}

void smi_run_stop(struct smi_run *run)
{
    smi_stepper_kill(&run->stepper);
}

void smi_run_note_place(struct smi_run *run)
{
    if (smi_place_is_programs(run->stepper.at))
        run->programs_at = run->stepper.at;
}

/* ---- blocks ---- */

struct refs {
    shmalloc_ref *at;
    size_t count, room;
};

static struct refs reached, blocks; /* of the judging process */

static void add_ref(struct refs *refs, shmalloc_ref ref)
{
    if (refs->count == refs->room) {
        refs->room = 2 * refs->room + 256;
        shmalloc_ref *larger = realloc(refs->at, refs->room * sizeof(*larger));
        if (!larger)
            smi_wrong("no memory for the refs of %zu blocks", refs->room);
        refs->at = larger;
    }
    refs->at[refs->count++] = ref;
}

void shmalloc_crashtest_reached(shmalloc_ref ref)
{
    if (ref != 0)
        add_ref(&reached, ref);
}

static int add_block(const shmalloc_block *block, void *arg)
{
    (void)arg;
    add_ref(&blocks, block->ref);
    return 0;
}

static int add_root(const shmalloc_root *root, void *arg)
{
    (void)arg;
    shmalloc_crashtest_reached(root->ref);
    return 0;
}

static int compare_refs(const void *a, const void *b)
{
    shmalloc_ref x = *(const shmalloc_ref *)a, y = *(const shmalloc_ref *)b;
    return x < y ? -1 : x > y;
}

static int has(const struct refs *refs, shmalloc_ref ref)
{
    return refs->count > 0 &&
           bsearch(&ref, refs->at, refs->count, sizeof(ref), compare_refs) != NULL;
}

static void sort(struct refs *refs)
{
    if (refs->count > 0)
        qsort(refs->at, refs->count, sizeof(*refs->at), compare_refs);
}

static void look_for_leaks(struct smi_run *run, shmalloc_heap *heap)
{
    uint64_t leaks = 0;
    shmalloc_ref first = 0;
    for (size_t i = 0; i < blocks.count; i++)
        if (!has(&reached, blocks.at[i]) && leaks++ == 0)
            first = blocks.at[i];
    if (leaks > run->test.leaks)
        smi_wrong("%llu of %zu blocks are leaked, reached neither by describe() nor by a root; the "
                  "first one is %#llx, "
                  "%zu bytes",
                  (unsigned long long)leaks, blocks.count, (unsigned long long)first,
                  shmalloc_usable_size(heap, shmalloc_ptr(heap, first)));
}

void smi_run_check_reached(struct smi_run *run, shmalloc_heap *heap)
{
    blocks.count = 0;
    if (shmalloc_root_each(heap, add_root, NULL) < 0 ||
        shmalloc_each_block(heap, add_block, NULL) < 0)
        smi_wrong("its blocks cannot be listed: %s", shmalloc_errmsg());
    sort(&reached);
    sort(&blocks);
    for (size_t i = 0; i < reached.count; i++)
        if (!has(&blocks, reached.at[i]))
            smi_wrong("a ref dangles: describe() reached %#llx, or a root names it, and it is no "
                      "allocated block",
                      (unsigned long long)reached.at[i]);
    if (run->check_leaks || run->found->reached > 0)
        look_for_leaks(run, heap);
}

/* ---- those who open what is left ---- */

static void check_heap(shmalloc_heap *heap)
{
    if (shmalloc_check(heap) < 0)
        smi_wrong("shmalloc_check(): %s", shmalloc_errmsg());
}

static void describe(struct smi_run *run, shmalloc_heap *heap)
{
    reached.count = 0;
    call_or_end(run, heap, run->test.describe, "describe", run->found);
    run->found->reached = reached.count;
    if (run->found->used > 0 && run->found->text[run->found->used - 1] != '\n')
        smi_say("\n");
}

void smi_run_look(struct smi_run *run, shmalloc_heap *heap)
{
    call_or_end(run, heap, run->test.recover, "recover", run->found);
    check_heap(heap);
    call_or_end(run, heap, run->test.verify, "verify", run->found);
    describe(run, heap);
}

void smi_run_proceed(struct smi_run *run, shmalloc_heap *heap)
{
    call_or_end(run, heap, run->test.proceed, "proceed", run->found);
    check_heap(heap);
    call_or_end(run, heap, run->test.verify, "verify, after proceed", run->found);
}

struct examined {
    struct smi_run *run;
    const char *path;
};

static void examine(void *arg)
{
    const struct examined *examined = arg;
    shmalloc_heap *heap;
    if (shmalloc_open(examined->path, NULL, &heap) < 0)
        smi_wrong("it cannot be opened: %s", shmalloc_errmsg());
    smi_run_look(examined->run, heap);
    smi_run_check_reached(examined->run, heap);
    smi_run_proceed(examined->run, heap);
    if (shmalloc_close(heap) < 0)
        smi_wrong("it cannot be closed: %s", shmalloc_errmsg());
}

void smi_run_examine(struct smi_run *run, const char *path, struct smi_findings *out)
{
    struct examined examined = {run, path};
    struct smi_findings *found = run->found;
    run->found = out;
    smi_judge(examine, &examined, run->test.timeout, out);
    run->found = found;
}
