/* SPDX-License-Identifier: MIT */
/*
 * kills.c - real SIGKILL at random times against processes at work on one heap.
 *
 *   kills [-k kills] [-s seconds] [-w workers] [-t threads] [-b milliseconds] [-u] [-h] [-n]
 *         until so many are killed, within so many seconds; -b: bound of a stall; -u: unlinked
 *         blocks; -h: a hardened heap; -n: the same without a kill, for comparison: how long calls
 *         take because of the machine and of each other. The benchmark "kills, soak" is -k 100000.
 *
 * Rounds of kills: one worker dies, another takes its place and lane, the rest go on. After a round
 * the heap is audited in one of three states: all workers paused where they are, all closed in
 * order, or all killed at once (then also processes that only open the heap, to be killed while
 * they repair it).
 *
 * Fails when: an audit finds a difference (lane.c says which there are), a call of a survivor
 * stalls for longer than the bound (1 s; lane.h says what a stall is), a worker ends by itself, the
 * unlinked mode lost more blocks than threads were killed, or the seconds end first.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "lane.h"

#define LOOK_MOST_NS 10000000ull /* looks are no rarer unless the machine is busy */
enum { MAX_WORKERS = 8, MAX_THREADS = 8, SHARED_LANES = 2, ROUND = 20, AHEAD = 10 };

/* Outside the heap, shared by all. */
struct control {
    uint32_t stop;  /* workers close the heap and leave */
    uint32_t pause; /* odd: stay where you are */
    struct {
        uint32_t paused_at; /* the value of `pause` that the thread has seen */
        struct lane_watch watch;
    } thread[MAX_WORKERS * MAX_THREADS];
    struct audit audit;
    struct lane_machine machine;
};

static struct control *control;
static struct fixture f;
static unsigned workers = 3, threads = 2;
static int unlinked;
static int nobody_dies;
static unsigned heap_flags;
static uint64_t stall_bound = 1000000000;
static pid_t pids[MAX_WORKERS];

static struct {
    uint64_t kills, killed_threads, rounds, paused, closed, all_killed, openers_killed,
        unreferenced, deaths_seen, longest, stalled, blocks, operations;
} total;

static unsigned lane_count(void)
{
    return workers * threads + SHARED_LANES;
}

/* ---- workers ---- */

struct thread_arg {
    shmalloc_heap *heap;
    struct lane *lanes;
    unsigned number;
    uint64_t seed;
};

static void wait_while_paused(unsigned number)
{
    uint32_t pause = __atomic_load_n(&control->pause, __ATOMIC_ACQUIRE);
    if (pause % 2 == 0)
        return;
    __atomic_store_n(&control->thread[number].paused_at, pause, __ATOMIC_RELEASE);
    await_word(&control->pause, pause + 1);
}

static void *work(void *arg)
{
    const struct thread_arg *a = arg;
    struct rng rng = rng_from(a->seed);
    unsigned shared = workers * threads;
    control->thread[a->number].watch.tid = (uint32_t)gettid();
    while (!__atomic_load_n(&control->stop, __ATOMIC_ACQUIRE)) {
        wait_while_paused(a->number);
        unsigned lane =
            rng_below(&rng, 4) ? a->number : shared + (unsigned)rng_below(&rng, SHARED_LANES);
        struct lane_work w = {
            a->heap, &a->lanes[lane], lane, unlinked, &rng, &control->thread[a->number].watch};
        lane_burst(&w);
    }
    return NULL;
}

static int worker(void *arg)
{
    unsigned first = *(unsigned *)arg * threads;
    struct thread_arg args[MAX_THREADS];
    pthread_t ids[MAX_THREADS];
    struct lane_watch *watch = &control->thread[first].watch;
    uint64_t seed = now_ns() ^ (uint64_t)getpid() << 32; /* when it is killed is chance anyhow */
    watch->tid = (uint32_t)gettid();
    lane_call_begins(watch);
    shmalloc_heap *heap = heap_open(f.path);
    lane_call_ends(watch);
    struct lane *lanes = lane_all(heap, lane_count());
    for (unsigned i = 0; i < threads; i++) {
        args[i] = (struct thread_arg){heap, lanes, first + i, seed + i};
        must(pthread_create(&ids[i], NULL, work, &args[i]) == 0, "pthread_create");
    }
    for (unsigned i = 0; i < threads; i++)
        pthread_join(ids[i], NULL);
    watch->tid = (uint32_t)gettid();
    lane_call_begins(watch);
    int rc = shmalloc_close(heap);
    lane_call_ends(watch);
    must(rc == 0, "close: %s", shmalloc_errmsg());
    return 0;
}

/* Who looks at the machine must not be starved together with those who are looked at; where that is
 * not allowed, looks are rarer on a busy machine, and the clock leaves out less. */
static void be_ahead(int by)
{
    setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, 0) - by);
}

static int worker_behind(void *arg)
{
    be_ahead(-AHEAD);
    return worker(arg);
}

static void start_worker(unsigned i)
{
    memset(&control->thread[i * threads], 0, threads * sizeof(control->thread[0]));
    for (unsigned k = i * threads; k < (i + 1) * threads; k++)
        control->thread[k].watch.machine = &control->machine;
    pids[i] = start_child(worker_behind, &i);
}

/* ---- watching ---- */

static void must_be_within_bound(uint64_t stalled, unsigned i)
{
    must(stalled < stall_bound, "a call of thread %u of worker %u (pid %d) has stalled for %.3f s",
         i % threads, i / threads, (int)pids[i / threads], (double)stalled / 1e9);
}

/* How long was the thread kept waiting for a processor since the last look, `passed` ago? */
static uint64_t kept_waiting(unsigned i, uint64_t passed)
{
    static struct {
        uint32_t tid;
        struct lane_times times;
    } seen[MAX_WORKERS * MAX_THREADS];
    pid_t pid = pids[i / threads];
    uint32_t tid = __atomic_load_n(&control->thread[i].watch.tid, __ATOMIC_RELAXED);
    struct lane_times none = {0, 0}, now = tid && pid ? lane_times(pid, tid) : none,
                      before = seen[i].tid == tid ? seen[i].times : none;
    seen[i].tid = tid;
    seen[i].times = now;
    uint64_t ran = now.ran > before.ran ? now.ran - before.ran : 0;
    if (now.ran != 0 && lane_can_run(pid, tid)) /* a wait that goes on is not counted yet */
        return passed > ran ? passed - ran : 0;
    return now.waited > before.waited ? now.waited - before.waited : 0;
}

/* One look at the machine (lane.h), no more often than it is of use. */
static void look_at_machine(void)
{
    struct lane_machine *machine = &control->machine;
    uint64_t now = now_ns(), passed = now - machine->looked_at;
    if (passed < 2000000)
        return;
    /* who looks had no processor either */
    uint64_t most = passed > LOOK_MOST_NS ? passed - LOOK_MOST_NS : 0;
    for (unsigned i = 0; i < workers * threads; i++) {
        uint64_t waited = kept_waiting(i, passed);
        most = waited > most ? waited : most;
    }
    most = most > passed ? passed : most;
    __atomic_store_n(&machine->left_out, machine->left_out + most, __ATOMIC_RELEASE);
    __atomic_store_n(&machine->looked_at, now, __ATOMIC_RELEASE);
}

static void look_for_stalls(void)
{
    look_at_machine();
    for (unsigned i = 0; i < workers * threads; i++)
        if (pids[i / threads] != 0)
            must_be_within_bound(lane_stalled(&control->thread[i].watch), i);
}

/* Exit status of a worker, as wait_child(), and meanwhile the machine is looked at. */
static int wait_for_end(unsigned i, unsigned seconds)
{
    uint64_t deadline = now_ns() + seconds * 1000000000ull;
    siginfo_t info = {0};
    while (waitid(P_PID, (id_t)pids[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0) {
        must(now_ns() < deadline, "worker %u does not end", i);
        look_at_machine();
        nanosleep(&(struct timespec){0, 100000}, NULL);
    }
    return wait_child(pids[i]);
}

static void raise_to(uint64_t *most, uint64_t value)
{
    if (value > *most)
        *most = value;
}

static void collect(unsigned worker_index)
{
    for (unsigned i = worker_index * threads; i < (worker_index + 1) * threads; i++) {
        struct lane_watch *watch = &control->thread[i].watch;
        watch->began_at = 0; /* a call that it was killed in is not a survivor's */
        must_be_within_bound(lane_stalled(watch), i);
        raise_to(&total.longest, watch->longest);
        raise_to(&total.stalled, watch->stalled);
        raise_to(&total.stalled, watch->longest < LANE_LONG_NS ? watch->longest : LANE_LONG_NS);
        total.operations += watch->operations;
    }
}

static void look_for_exits(void)
{
    int status;
    pid_t pid = waitpid(-1, &status, WNOHANG);
    must(pid <= 0, "worker %d ended by itself with status %#x", (int)pid, status);
}

/* ---- killing ---- */

static uint64_t operations_of(unsigned i)
{
    uint64_t sum = 0;
    for (unsigned k = 0; k < threads; k++)
        sum +=
            __atomic_load_n(&control->thread[i * threads + k].watch.operations, __ATOMIC_RELAXED);
    return sum;
}

/* Any moment from the first instruction on, or any moment after some work: by spinning, which hits
 * to the nanosecond, or by sleeping, which leaves the victim a processor. */
static void wait_for_moment(struct rng *rng, unsigned victim)
{
    if (rng_below(rng, 4) != 0)
        while (operations_of(victim) < 20) {
            look_for_stalls();
            look_for_exits();
            nanosleep(&(struct timespec){0, 50000}, NULL);
        }
    uint64_t delay = rng_log_uniform(rng, 22);
    if (rng_below(rng, 2)) {
        nanosleep(&(struct timespec){0, (long)delay}, NULL);
        return;
    }
    for (uint64_t until = now_ns() + delay; now_ns() < until;)
        ;
}

static void kill_worker(unsigned i)
{
    kill(pids[i], SIGKILL);
    wait_for_end(i, 60);
    pids[i] = 0;
    collect(i);
    total.kills++;
    total.killed_threads += threads;
}

static void kill_round(struct rng *rng)
{
    for (int n = 0; n < ROUND; n++) {
        unsigned victim = (unsigned)rng_below(rng, workers);
        wait_for_moment(rng, victim);
        look_for_stalls();
        if (nobody_dies) {
            total.kills++;
            continue;
        }
        kill_worker(victim);
        start_worker(victim);
    }
    total.rounds++;
}

/* ---- auditing ---- */

static int audit(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = heap_open(f.path);
    lane_audit(heap, lane_count(), &control->audit);
    return shmalloc_close(heap) < 0;
}

static void must_pass_audit(uint64_t *killed_before)
{
    int status = wait_child_within(start_child(audit, NULL), 30000);
    must(status == 0, "audit: status %d", status);
    const struct audit *a = &control->audit;
    uint64_t killed = total.killed_threads - *killed_before;
    *killed_before = total.killed_threads;
    must(a->unreferenced <= (unlinked ? killed : 0),
         "%llu blocks are allocated and named by nobody, after %llu threads were killed",
         (unsigned long long)a->unreferenced, (unsigned long long)killed);
    total.unreferenced += a->unreferenced;
    total.deaths_seen += a->deaths_seen;
    total.blocks += a->blocks;
}

static void pause_all(void)
{
    uint32_t pause = control->pause + 1;
    signal_word(&control->pause);
    for (unsigned i = 0; i < workers * threads; i++)
        while (__atomic_load_n(&control->thread[i].paused_at, __ATOMIC_ACQUIRE) != pause) {
            look_for_stalls();
            look_for_exits();
            nanosleep(&(struct timespec){0, 100000}, NULL);
        }
}

static void stop_all(void)
{
    __atomic_store_n(&control->stop, 1, __ATOMIC_RELEASE);
    for (unsigned i = 0; i < workers; i++) {
        int status = wait_for_end(i, 60);
        must(status == 0, "worker %u closed with status %d", i, status);
        pids[i] = 0;
        collect(i);
    }
    __atomic_store_n(&control->stop, 0, __ATOMIC_RELEASE);
}

static int open_and_close(void *arg)
{
    (void)arg;
    return shmalloc_close(heap_open(f.path)) < 0;
}

/* Everybody at once; then some who come to repair, killed at it. */
static void kill_all(struct rng *rng)
{
    for (unsigned i = 0; i < workers; i++)
        kill(pids[i], SIGKILL);
    for (unsigned i = 0; i < workers; i++)
        kill_worker(i);
    for (uint64_t n = rng_below(rng, 4); n > 0; n--) {
        pid_t pid = start_child(open_and_close, NULL);
        uint64_t until = now_ns() + rng_log_uniform(rng, 22);
        while (now_ns() < until)
            ;
        kill(pid, SIGKILL);
        int status = wait_child(pid);
        must(status == -SIGKILL || status == 0, "opener: status %d", status);
        total.openers_killed += status != 0;
    }
}

static void audit_somehow(struct rng *rng, uint64_t *killed_before)
{
    uint64_t way = rng_below(rng, nobody_dies ? 2 : 3);
    if (way == 0) {
        pause_all();
        must_pass_audit(killed_before);
        signal_word(&control->pause);
        total.paused++;
        return;
    }
    if (way == 1) {
        stop_all();
        total.closed++;
    } else {
        kill_all(rng);
        total.all_killed++;
    }
    must_pass_audit(killed_before);
    for (unsigned i = 0; i < workers; i++)
        start_worker(i);
}

/* ---- the whole ---- */

static int make_heap(void *arg)
{
    struct usage *empty = arg;
    shmalloc_heap *heap = heap_create(f.path, heap_flags);
    *empty = usage_now(heap);
    lane_all(heap, lane_count());
    return shmalloc_close(heap) < 0;
}

static int empty_heap(void *arg)
{
    shmalloc_heap *heap = heap_open(f.path);
    lane_drop(heap, lane_count());
    must_be_as_before(heap, arg);
    return shmalloc_close(heap) < 0;
}

static void report(uint64_t start)
{
    printf("%llu %s in %.1f s (%u workers of %u threads, %s%s): %llu audits (%llu paused, %llu "
           "closed, %llu "
           "all killed, %llu openers killed), %llu operations, %llu blocks compared, %llu deaths "
           "told by "
           "mutexes, %llu unreferenced blocks, longest call %.1f ms, longest stall %.1f ms\n",
           (unsigned long long)total.kills, nobody_dies ? "moments without a kill" : "kills",
           (double)(now_ns() - start) / 1e9, workers, threads, unlinked ? "unlinked" : "linked",
           heap_flags ? ", hardened" : "", (unsigned long long)total.rounds,
           (unsigned long long)total.paused, (unsigned long long)total.closed,
           (unsigned long long)total.all_killed, (unsigned long long)total.openers_killed,
           (unsigned long long)total.operations, (unsigned long long)total.blocks,
           (unsigned long long)total.deaths_seen, (unsigned long long)total.unreferenced,
           (double)total.longest / 1e6, (double)total.stalled / 1e6);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uint64_t kills = 3000, seconds = 60, killed_before = 0;
    for (int c; (c = getopt(argc, argv, "k:s:w:t:b:uhn")) != -1;) {
        if (c == 'k')
            kills = strtoull(optarg, NULL, 0);
        else if (c == 's')
            seconds = strtoull(optarg, NULL, 0);
        else if (c == 'w')
            workers = (unsigned)atoi(optarg);
        else if (c == 't')
            threads = (unsigned)atoi(optarg);
        else if (c == 'b')
            stall_bound = strtoull(optarg, NULL, 0) * 1000000;
        else if (c == 'u')
            unlinked = 1;
        else if (c == 'h')
            heap_flags = SHMALLOC_HARDENED;
        else if (c == 'n')
            nobody_dies = 1;
        else
            return fprintf(stderr,
                           "usage: %s [-k kills] [-s seconds] [-w workers] [-t threads] [-b "
                           "milliseconds] "
                           "[-u] [-h] [-n]\n",
                           argv[0]),
                   2;
    }
    must(workers >= 1 && workers <= MAX_WORKERS && threads >= 1 && threads <= MAX_THREADS,
         "1 to 8 of each");
    struct rng rng = rng_from(test_seed());
    struct usage *empty = shared_memory(sizeof(*empty));
    control = shared_memory(sizeof(*control));
    fixture_begin(&f);
    must(run_child(make_heap, empty) == 0, "cannot make the heap");
    uint64_t start = now_ns();
    be_ahead(AHEAD);
    for (unsigned i = 0; i < workers; i++)
        start_worker(i);
    while (total.kills < kills) {
        must(now_ns() - start < seconds * 1000000000ull, "%llu kills in %llu s, %llu were wanted",
             (unsigned long long)total.kills, (unsigned long long)seconds,
             (unsigned long long)kills);
        kill_round(&rng);
        audit_somehow(&rng, &killed_before);
        if (total.kills / 10000 != (total.kills - ROUND) / 10000) /* a long run shows that it goes
                                                                     on */
            report(start);
    }
    stop_all();
    must_pass_audit(&killed_before);
    report(start);
    must(run_child(empty_heap, empty) == 0, "the heap is not as it was in the beginning");
    fixture_end(&f);
    return 0;
}
