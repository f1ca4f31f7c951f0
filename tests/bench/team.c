/* SPDX-License-Identifier: MIT */
/*
 * team.c - workers, the barrier between them, and the clock.
 *
 * Owns one anonymous shared mapping, struct team. Workers spin at the barrier, because waking a
 * sleeping one takes as long as thousands of allocations; they yield when the wait is long, so that
 * more workers than CPUs still make progress. A process worker dies with the first one, and the
 * runner bounds the time of the whole program.
 *
 * One worker is timed by the CPU time of its thread, which other programs on the machine disturb
 * less; several by the wall clock, because waiting for each other is part of the cost.
 *
 * Warm-up and length: runs double until one takes at least --sample-ms, and there are more than
 * MIN_WARM_UPS of them; so caches have grown and every page was touched before the first timed run.
 */
#include "team.h"
#include "scene.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

#define MIN_WARM_UPS 5

struct team {
    _Alignas(64) atomic_uint arrived; /* workers at the barrier */
    _Alignas(64) atomic_uint phase;   /* barriers passed */
    _Alignas(64) uint64_t rounds;     /* of the next run; 0 = finish. Written by worker 0 only,
                                         between barriers */
    void *states[TEAM_MAX];           /* by worker; meaningless to other processes */
    uint64_t cpu_ns[TEAM_MAX];        /* by worker: CPU time of the last run, waiting for others not
                                         included */
    const struct workload *workload;
    const struct bench_options *options;
    _Alignas(64) unsigned char shared[TEAM_SHARED];
};

unsigned team_workers(const struct bench_options *options)
{
    return options->threads > 1 ? options->threads : options->processes;
}

void *team_state(const struct worker *worker, unsigned index)
{
    return worker->team->states[index];
}

void *team_shared(const struct worker *worker)
{
    return worker->team->shared;
}

void team_relax(unsigned *spins)
{
    if (++*spins % 1024 == 0)
        sched_yield();
#if defined(__x86_64__)
    else
        __builtin_ia32_pause();
#endif
}

static void barrier(struct team *team)
{
    unsigned phase = atomic_load_explicit(&team->phase, memory_order_acquire);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) + 1 ==
        team_workers(team->options)) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        /* release: pairs with the acquire below, and orders `rounds` and `states` */
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    unsigned spins = 0;
    while (atomic_load_explicit(&team->phase, memory_order_acquire) == phase)
        team_relax(&spins);
}

static void prepare(struct worker *worker, struct team *team, unsigned index)
{
    uint64_t seed = team->options->seed + index;
    *worker = (struct worker){.options = team->options, .team = team, .index = index,
                              .random = seed};
    for (int i = 0; i < 8; i++) /* neighbouring seeds give neighbouring first values */
        bench_random(&worker->random);
    bench_pin(index);
    worker->state = team->states[index] = team->workload->prepare(worker);
}

static uint64_t thread_cpu_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void run(struct worker *worker, uint64_t rounds)
{
    uint64_t start = thread_cpu_ns();
    worker->team->workload->run(worker, rounds);
    worker->team->cpu_ns[worker->index] = thread_cpu_ns() - start;
    worker->runs++;
}

/* Workers above 0: do the rounds that worker 0 announces until it announces none. */
static void follow(struct team *team, unsigned index)
{
    struct worker worker;
    prepare(&worker, team, index);
    barrier(team);
    for (;;) {
        barrier(team);
        if (team->rounds == 0)
            break;
        run(&worker, team->rounds);
        barrier(team);
    }
}

/* Worker 0: one run of all workers, in ns. */
static uint64_t lead(struct worker *worker, uint64_t rounds)
{
    struct team *team = worker->team;
    team->rounds = rounds;
    barrier(team);
    uint64_t start = bench_now_ns();
    run(worker, rounds);
    barrier(team);
    return team_workers(team->options) > 1 ? bench_now_ns() - start : team->cpu_ns[0];
}

/* CPU time of the last run, all workers together. */
static uint64_t cpu_ns(const struct team *team)
{
    uint64_t sum = 0;
    for (unsigned i = 0; i < team_workers(team->options); i++)
        sum += team->cpu_ns[i];
    return sum;
}

static uint64_t calibrate(struct worker *worker)
{
    uint64_t wanted = worker->options->sample_ms * 1000000ull;
    uint64_t rounds = 1;
    for (unsigned warm_ups = 0;; warm_ups++) {
        uint64_t elapsed = lead(worker, rounds);
        if (elapsed < wanted)
            rounds *= 2;
        else if (warm_ups >= MIN_WARM_UPS)
            return rounds;
    }
}

static uint64_t page_faults(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_minflt;
}

static void measure_sample(struct worker *worker, uint64_t rounds, unsigned sample)
{
    const struct workload *workload = worker->team->workload;
    const struct bench_options *options = worker->options;
    double pairs = (double)(rounds * (workload->pairs_per_round ? workload->pairs_per_round
                                                                : options->blocks));
    uint64_t waits = adapter_lock_waits(), faults = page_faults();
    double elapsed = (double)lead(worker, rounds);
    faults = page_faults() - faults;
    waits = adapter_lock_waits() - waits;
    bench_begin(options, adapter_library(), "ns/pair");
    bench_number("sample", sample);
    bench_number("pairs", pairs);
    bench_number("faults", (double)faults);
    bench_number("lock_waits", (double)waits);
    bench_number("cpu", (double)cpu_ns(worker->team) / pairs / team_workers(options));
    bench_number("value", elapsed / pairs);
    bench_end();
}

static void measure(struct team *team)
{
    struct worker worker;
    prepare(&worker, team, 0);
    barrier(team);
    uint64_t rounds = calibrate(&worker);
    for (unsigned sample = 0; sample < team->options->samples; sample++)
        measure_sample(&worker, rounds, sample);
    team->rounds = 0;
    barrier(team);
}

static struct team *create_team(const struct workload *workload,
                                const struct bench_options *options)
{
    if (team_workers(options) > TEAM_MAX)
        bench_die("more than %d workers", TEAM_MAX);
    struct team *team = mmap(NULL, sizeof(*team), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (team == MAP_FAILED)
        bench_die("mmap: %s", strerror(errno));
    team->workload = workload;
    team->options = options;
    return team;
}

struct thread_arguments {
    struct team *team;
    unsigned index;
};

static void *thread_main(void *arg)
{
    struct thread_arguments *arguments = arg;
    follow(arguments->team, arguments->index);
    return NULL;
}

static void measure_threads(struct team *team)
{
    pthread_t threads[TEAM_MAX];
    struct thread_arguments arguments[TEAM_MAX];
    adapter_open(team->options);
    scene_objects(team->options);
    for (unsigned i = 1; i < team->options->threads; i++) {
        arguments[i] = (struct thread_arguments){team, i};
        if (pthread_create(&threads[i], NULL, thread_main, &arguments[i]))
            bench_die("cannot create a thread");
    }
    measure(team);
    for (unsigned i = 1; i < team->options->threads; i++)
        pthread_join(threads[i], NULL);
    adapter_close();
}

static void measure_processes(struct team *team)
{
    pid_t leader = getpid();
    pid_t children[TEAM_MAX];
    for (unsigned i = 1; i < team->options->processes; i++) {
        children[i] = fork();
        if (children[i] < 0)
            bench_die("fork: %s", strerror(errno));
        if (children[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != leader)
                _exit(1);
            adapter_open(team->options);
            follow(team, i);
            adapter_close();
            _exit(0);
        }
    }
    adapter_open(team->options);
    scene_objects(team->options);
    measure(team);
    adapter_close();
    for (unsigned i = 1; i < team->options->processes; i++) {
        int status = bench_wait(children[i]);
        if (status)
            bench_die("a worker process failed, status %d", status);
    }
}

void team_measure(const struct workload *workload, const struct bench_options *options)
{
    struct team *team = create_team(workload, options);
    scene_attach(options);
    if (options->processes > 1)
        measure_processes(team);
    else
        measure_threads(team);
    munmap(team, sizeof(*team));
}
