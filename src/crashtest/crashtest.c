/* SPDX-License-Identifier: MIT */
/*
 * crashtest.c - a run from its first to its last line: defaults, places, modes one after the other.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "crashtest/main.h"
#include "crashtest/run.h"
#include "platform/sized.h"

enum {
    WORKERS_MOST = 64,
    MODES_ALL = SHMALLOC_CRASHTEST_DEAD | SHMALLOC_CRASHTEST_SURVIVOR | SHMALLOC_CRASHTEST_RANDOM,
    MODES_STEPPED = SHMALLOC_CRASHTEST_DEAD | SHMALLOC_CRASHTEST_SURVIVOR };

/* ---- before ---- */

static int validate(struct smi_run *run)
{
    const shmalloc_crashtest *t = &run->test;
    if (!t->operation)
        return smi_cannot(run, -EINVAL, "no operation is given");
    if (t->modes & ~(unsigned)MODES_ALL)
        return smi_cannot(run, -EINVAL, "modes is %#x; at most %#x has a meaning", t->modes,
                          MODES_ALL);
    if (t->workers > WORKERS_MOST)
        return smi_cannot(run, -EINVAL, "%u workers; at most %d", t->workers, WORKERS_MOST);
    if (t->max_steps > UINT32_MAX)
        return smi_cannot(run, -EINVAL, "max_steps is %llu; at most %u",
                          (unsigned long long)t->max_steps, UINT32_MAX);
    if (t->seconds > 1000000 || t->timeout > 1000000)
        return smi_cannot(run, -EINVAL, "seconds %u, timeout %u; at most 1,000,000", t->seconds,
                          t->timeout);
    if (t->step != 0 && (t->modes & SHMALLOC_CRASHTEST_RANDOM))
        return smi_cannot(run, -EINVAL, "random mode has no step %llu to be examined",
                          (unsigned long long)t->step);
#if !defined(__x86_64__) && !defined(__aarch64__)
    if (t->modes & MODES_STEPPED)
        return smi_cannot(run, -ENOTSUP,
                          "only x86-64 and aarch64 are stepped; the mode --random works here");
#endif
    return 0;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static const char *writable_folder(void)
{
    const char *tmp = getenv("TMPDIR");
    if (access("/dev/shm", W_OK) == 0)
        return "/dev/shm";
    return tmp ? tmp : "/tmp";
}

static int fill_in_options(const shmalloc_options *given, shmalloc_options *options)
{
    *options = (shmalloc_options)SHMALLOC_OPTIONS_INIT;
    options->arenas = 1; /* the image is small then */
    options->max_size = 64 << 20;
    return given ? smi_sized_copy(options, given, offsetof(shmalloc_options, initial_size),
                                  sizeof(*options))
                 : 0;
}

static void fill_in(shmalloc_crashtest *t, shmalloc_options *options)
{
    options->flags |= SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE;
    t->options = options;
    t->name = t->name ? t->name : base_name(program_invocation_name);
    t->modes = t->modes ? t->modes : MODES_STEPPED;
    t->dir = t->dir ? t->dir : writable_folder();
    t->keep = t->keep ? t->keep : ".";
    t->max_steps = t->max_steps ? t->max_steps : SMI_USUAL_STEPS;
    t->timeout = t->timeout ? t->timeout : 10;
    t->seconds = t->seconds ? t->seconds : 10;
    t->kills = t->kills ? t->kills : 200;
    t->workers = t->workers ? t->workers : 4;
}

/* Memory that all processes of a run share. */
struct shared {
    uint32_t phase;
    struct smi_findings before, after, found, expected, said;
};

static int make_places(struct smi_run *run, struct shared **shared)
{
    int len = snprintf(run->dir, sizeof(run->dir), "%s/shmalloc-crashtest-XXXXXX", run->test.dir);
    if (len >= (int)sizeof(run->dir))
        return smi_cannot(run, -ENAMETOOLONG, "the name of the folder %s is too long",
                          run->test.dir);
    if (!mkdtemp(run->dir)) {
        int error = errno;
        run->dir[0] = 0;
        return smi_cannot(run, -error, "no folder can be made in %s: %s", run->test.dir,
                          strerror(error));
    }
    snprintf(run->heap, sizeof(run->heap), "%s/heap", run->dir);
    snprintf(run->copy, sizeof(run->copy), "%s/copy", run->dir);
    *shared =
        mmap(NULL, sizeof(**shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                   -1, 0);
    run->change = malloc(SMI_CHANGES_MAX * sizeof(*run->change));
    run->image = calloc(1, sizeof(*run->image));
    if (*shared == MAP_FAILED || !run->change || !run->image)
        return smi_cannot(run, -ENOMEM, "there is no memory");
    run->phase = &(*shared)->phase;
    run->before = &(*shared)->before;
    run->after = &(*shared)->after;
    run->found = &(*shared)->found;
    run->expected = &(*shared)->expected;
    run->said = &(*shared)->said;
    *run->image = (struct smi_image){.path = run->heap, .fd = -1, .large = 1};
    return 0;
}

static void remove_places(struct smi_run *run, struct shared *shared)
{
    if (run->image)
        smi_image_forget(run->image);
    free(run->image);
    free(run->change);
    if (shared != MAP_FAILED)
        munmap(shared, sizeof(*shared));
    if (run->dir[0]) {
        unlink(run->heap);
        unlink(run->copy);
        rmdir(run->dir);
    }
}

/* ---- the modes ---- */

static int run_stepped(struct smi_run *run)
{
    int rc = smi_scan(run);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    smi_tell(run, "%s: %llu instructions, of which %llu change the heap\n", run->test.name,
             /* the first is the beginning */
             (unsigned long long)run->steps, (unsigned long long)run->changes - 1);
    if (strcmp(run->before->text, run->after->text) == 0 && run->test.describe)
        smi_tell(run, "  note: describe() says the same before and after the operation\n");
    if (run->test.modes & SHMALLOC_CRASHTEST_DEAD)
        rc = smi_dead(run);
    if (rc == 0 && (run->test.modes & SHMALLOC_CRASHTEST_SURVIVOR))
        rc = smi_survivor(run);
    return rc;
}

static int run_modes(struct smi_run *run)
{
    int rc = 0;
    if (run->test.modes & MODES_STEPPED)
        rc = run_stepped(run);
    if (rc == 0 && (run->test.modes & SHMALLOC_CRASHTEST_RANDOM))
        rc = smi_random(run);
    if (rc < 0)
        return rc;
    if (run->all_faults)
        smi_tell(run, "%s: FAILED, %s\n", run->test.name, smi_count_faults(run->all_faults));
    else
        smi_tell(run, "%s: no fault found\n", run->test.name);
    return run->all_faults != 0;
}

int smi_crashtest_take(shmalloc_crashtest *own, const shmalloc_crashtest *given)
{
    return given ? smi_sized_copy(own, given, offsetof(shmalloc_crashtest, recover), sizeof(*own))
                 : -EINVAL;
}

int smi_crashtest_run(const shmalloc_crashtest *test, const char *again)
{
    static struct smi_run run; /* the processes are forks of this one, so one at a time */
    shmalloc_options options;
    struct shared *shared = MAP_FAILED;
    run = (struct smi_run){.again = again, .mode = ""};
    int rc = smi_crashtest_take(&run.test, test);
    if (rc < 0)
        return rc;
    run.out = run.test.report ? run.test.report : stdout;
    run.terminal = isatty(fileno(run.out));
    rc = fill_in_options(run.test.options, &options);
    fill_in(&run.test, &options);
    rc = rc < 0 ? smi_cannot(&run, rc, "options.struct_size is no size of a shmalloc_options")
                : validate(&run);
    if (rc == 0)
        rc = make_places(&run, &shared);
    if (rc == 0)
        rc = run_modes(&run);
    remove_places(&run, shared);
    return rc;
}

int shmalloc_crashtest_run(const shmalloc_crashtest *test)
{
    return smi_crashtest_run(test, program_invocation_name);
}
