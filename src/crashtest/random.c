/* SPDX-License-Identifier: MIT */
/*
 * random.c - several processes repeat the operation; one is killed at a random time, another takes
 * its place.
 *
 * A victim is killed some time after it was chosen: at once, which meets it while it opens the
 * heap, or after it has worked for a while; by spinning, which hits to the nanosecond, or by
 * sleeping, which leaves it a processor.
 */
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "crashtest/run.h"

enum { WORKERS_MAX = 64 };

/* Shared with the worker of one place. */
struct place {
    uint64_t began_at; /* of the call that it is in; 0 none */
    uint64_t longest;  /* call of its workers */
    uint64_t operations;
    struct smi_findings findings;
};

struct crowd {
    struct smi_run *run;
    uint32_t *stop;
    struct place *place;
    pid_t pid[WORKERS_MAX];
    unsigned starting; /* the place of the worker that is being forked */
    uint64_t random, kills;
    int failed; /* a worker ended or stalled */
};

/* The finalizer of splitmix64. */
static uint64_t draw(struct crowd *c)
{
    uint64_t x = c->random += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* ---- workers ---- */

static void timed(struct smi_run *run, struct place *place, shmalloc_heap *heap,
                  shmalloc_crashtest_fn *fn, const char *name)
{
    uint64_t begin = smi_now_ns();
    __atomic_store_n(&place->began_at, begin, __ATOMIC_RELEASE);
    smi_run_call(run, heap, fn, name);
    __atomic_store_n(&place->began_at, 0, __ATOMIC_RELEASE);
    uint64_t took = smi_now_ns() - begin;
    if (took > place->longest)
        place->longest = took;
    if (place->findings.why[0])
        smi_judge_leave(1);
}

static void work(void *arg)
{
    struct crowd *c = arg;
    struct smi_run *run = c->run;
    struct place *place = &c->place[c->starting];
    shmalloc_heap *heap;
    if (shmalloc_open(run->heap, NULL, &heap) < 0)
        smi_wrong("it cannot be opened: %s", shmalloc_errmsg());
    timed(run, place, heap, run->test.recover, "recover");
    timed(run, place, heap, run->test.verify, "verify");
    while (!__atomic_load_n(c->stop, __ATOMIC_ACQUIRE)) {
        timed(run, place, heap, run->test.operation, "operation");
        timed(run, place, heap, run->test.proceed, "proceed");
        __atomic_store_n(&place->operations, place->operations + 1, __ATOMIC_RELEASE);
    }
    if (shmalloc_close(heap) < 0)
        smi_wrong("it cannot be closed: %s", shmalloc_errmsg());
}

static int start_worker(struct crowd *c, unsigned i)
{
    struct smi_run *run = c->run;
    c->starting = i;
    c->place[i].began_at = 0;
    smi_findings_clear(&c->place[i].findings);
    c->pid[i] =
        smi_judge_start(work, c, run->test.seconds + 2 * run->test.timeout, &c->place[i].findings);
    return c->pid[i] < 0 ? smi_cannot(run, -EAGAIN, "no process for a worker: %s", strerror(errno))
                         : 0;
}

static void make_heap(void *arg)
{
    struct smi_run *run = arg;
    shmalloc_heap *heap;
    if (shmalloc_open(run->heap, run->test.options, &heap) < 0)
        smi_wrong("%s", shmalloc_errmsg());
    smi_run_call(run, heap, run->test.setup, "setup");
    if (shmalloc_close(heap) < 0)
        smi_wrong("%s", shmalloc_errmsg());
}

/* ---- watching ---- */

static void end_worker(struct crowd *c, unsigned i)
{
    if (c->pid[i] <= 0)
        return;
    kill(c->pid[i], SIGKILL);
    while (waitpid(c->pid[i], NULL, 0) < 0 && errno == EINTR)
        ;
    c->pid[i] = 0;
}

/* Everybody is killed, so that what is left can be kept as it is. */
static void fail(struct crowd *c, const char *what, const char *why)
{
    char text[1200];
    snprintf(text, sizeof(text), "%s%s", what, why);
    for (unsigned i = 0; i < c->run->test.workers; i++)
        end_worker(c, i);
    if (c->run->image->fd < 0)
        smi_image_look(c->run->image);
    c->failed = 1;
    smi_fault(c->run, text, NULL);
}

/* A worker that ended by itself, or that does not come on. */
static void look_at_workers(struct crowd *c)
{
    uint64_t limit = c->run->test.timeout * 1000000000ull;
    for (unsigned i = 0; i < c->run->test.workers && !c->failed; i++) {
        siginfo_t info = {0};
        if (waitid(P_PID, (id_t)c->pid[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
            info.si_pid == c->pid[i]) {
            smi_judge_wait(c->pid[i], &c->place[i].findings);
            c->pid[i] = 0;
            fail(c, "a worker: ",
                 c->place[i].findings.why[0] ? c->place[i].findings.why : "it ended by itself");
            return;
        }
        uint64_t began = __atomic_load_n(&c->place[i].began_at, __ATOMIC_ACQUIRE),
                 now = smi_now_ns();
        if (began != 0 && now > began && now - began > limit)
            fail(c, "a worker that nobody killed hangs: one call takes more than the timeout", "");
    }
}

static void nap(long ns)
{
    nanosleep(&(struct timespec){0, ns}, NULL);
}

static void wait_for_moment(struct crowd *c, unsigned victim)
{
    uint64_t enough = c->place[victim].operations + draw(c) % 20,
             deadline = smi_now_ns() + 100000000;
    if (draw(c) % 4 != 0)
        while (__atomic_load_n(&c->place[victim].operations, __ATOMIC_ACQUIRE) < enough &&
               smi_now_ns() < deadline)
            nap(50000);
    uint64_t delay = draw(c) >> (42 + draw(c) % 20); /* every magnitude below 4 ms alike */
    if (draw(c) % 2)
        nap((long)delay);
    else
        for (uint64_t until = smi_now_ns() + delay; smi_now_ns() < until;)
            ;
}

static int kill_and_replace(struct crowd *c)
{
    unsigned victim = (unsigned)(draw(c) % c->run->test.workers);
    wait_for_moment(c, victim);
    look_at_workers(c);
    if (c->failed)
        return 0;
    end_worker(c, victim);
    c->kills++;
    return start_worker(c, victim);
}

static uint64_t operations(const struct crowd *c)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < c->run->test.workers; i++)
        sum += __atomic_load_n(&c->place[i].operations, __ATOMIC_RELAXED);
    return sum;
}

static double longest(const struct crowd *c)
{
    uint64_t most = 0;
    for (unsigned i = 0; i < c->run->test.workers; i++)
        if (c->place[i].longest > most)
            most = c->place[i].longest;
    return (double)most / 1e6;
}

static int kill_until(struct crowd *c, uint64_t deadline)
{
    struct smi_run *run = c->run;
    int rc = 0;
    for (unsigned i = 0; i < run->test.workers && rc == 0; i++)
        rc = start_worker(c, i);
    while (rc == 0 && !c->failed && c->kills < run->test.kills && smi_now_ns() < deadline) {
        rc = kill_and_replace(c);
        smi_progress(run, "%llu kills, %llu operations", (unsigned long long)c->kills,
                     (unsigned long long)operations(c));
    }
    return rc;
}

/* The survivors leave in order. */
static void end_all(struct crowd *c)
{
    struct smi_run *run = c->run;
    uint64_t deadline = smi_now_ns() + 2 * run->test.timeout * 1000000000ull;
    __atomic_store_n(c->stop, 1, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < run->test.workers && !c->failed; i++) {
        int status = 0;
        pid_t got;
        while ((got = waitpid(c->pid[i], &status, WNOHANG)) == 0 && smi_now_ns() < deadline)
            nap(1000000);
        if (got == 0) {
            fail(c, "a worker that nobody killed did not come to its end", "");
            return;
        }
        c->pid[i] = 0;
        if (status != 0)
            fail(c, "a worker: ",
                 c->place[i].findings.why[0] ? c->place[i].findings.why : "it ended early");
    }
}

/* ---- the whole ---- */

static int kill_at_random(struct crowd *c)
{
    struct smi_run *run = c->run;
    smi_judge(make_heap, run, run->test.timeout, run->found);
    if (run->found->why[0])
        return smi_cannot(run, -ECANCELED, "before the operation: %s", run->found->why);
    int rc = kill_until(c, smi_now_ns() + run->test.seconds * 1000000000ull);
    for (unsigned i = 0; i < run->test.workers && rc < 0; i++)
        end_worker(c, i);
    if (rc == 0 && !c->failed)
        end_all(c);
    if (rc == 0 && smi_image_look(run->image) < 0)
        return smi_cannot(run, -ECANCELED, "%s", run->image->failure);
    return rc;
}

/* What is left: every operation happened wholly or not at all, so it is sound, and no more is lost
 * than deaths may lose. */
static void judge_crowd(struct crowd *c)
{
    struct smi_run *run = c->run;
    uint64_t leaks = run->test.leaks;
    if (leaks <= UINT32_MAX)
        run->test.leaks *= c->kills;
    run->found->silent = 1; /* there is nothing that it could be compared with */
    smi_run_examine(run, run->heap, run->found);
    run->found->silent = 0;
    run->test.leaks = leaks;
    if (run->found->why[0])
        fail(c, "what is left in the end: ", run->found->why);
}

int smi_random(struct smi_run *run)
{
    struct crowd c = {.run = run};
    uint64_t start = smi_now_ns();
    size_t bytes = sizeof(*c.stop) + 60 + run->test.workers * sizeof(*c.place);
    run->mode = "random";
    run->faults = 0;
    run->stepper = (struct smi_stepper){0};
    run->programs_at = 0;
    if (run->test.seed == 0 && getrandom(&run->test.seed, sizeof(run->test.seed), 0) < 0)
        run->test.seed = start;
    c.random = run->test.seed;
    unlink(run->heap);
    smi_image_forget(run->image);
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return smi_cannot(run, -errno, "mmap: %s", strerror(errno));
    c.stop = (uint32_t *)(void *)memory;
    c.place = (struct place *)(void *)(memory + 64);
    int rc = kill_at_random(&c);
    if (rc == 0 && !c.failed)
        judge_crowd(&c);
    if (rc == 0)
        smi_tell(run,
                 "random: %llu kills of one of %u processes, %s, %llu operations, the longest call "
                 "of a survivor "
                 "took %.1f ms, seed %llu, %.1f s\n",
                 (unsigned long long)c.kills, run->test.workers, smi_count_faults(run->faults),
                 (unsigned long long)operations(&c), longest(&c),
                 (unsigned long long)run->test.seed, (double)(smi_now_ns() - start) / 1e9);
    munmap(memory, bytes);
    return rc;
}
