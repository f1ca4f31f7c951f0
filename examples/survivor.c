/* SPDX-License-Identifier: MIT */
/*
 * survivor.c - a process is killed in the middle of its work; the other goes on with the same heap.
 *
 *     survivor HEAP ROUNDS
 *
 * In each round a child allocates, links and frees under a mutex as fast as it can until SIGKILL
 * stops it at some instruction. The parent then takes the mutex over, finds the slots in order,
 * changes them itself and checks the heap.
 */
#include <shmalloc/shmalloc.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 64

struct shared {
    shmalloc_mutex mutex;
    uint64_t steps; /* the child's, to see that it works */
    shmalloc_ref slot[SLOTS];
};

/* Free what a slot holds and put a new block there: neither step leaks, wherever it is cut. */
static int churn(shmalloc_heap *heap, struct shared *shared, unsigned i)
{
    shmalloc_ref *slot = &shared->slot[i % SLOTS];
    int rc = shmalloc_ref_free(heap, slot);
    return rc < 0 ? rc : shmalloc_ref_alloc(heap, 16 + i % 2000, slot);
}

static int work_until_killed(shmalloc_heap *heap, struct shared *shared)
{
    for (unsigned i = 0;; i++) {
        if (shmalloc_mutex_lock(heap, &shared->mutex) < 0 || churn(heap, shared, i) < 0)
            return 1;
        shmalloc_store(&shared->steps, shared->steps + 1);
        if (shmalloc_mutex_unlock(heap, &shared->mutex) < 0)
            return 1;
    }
}

/* Start a child, let it work, kill it. */
static int lose_a_child(shmalloc_heap *heap, struct shared *shared)
{
    uint64_t before = shmalloc_load(&shared->steps);
    pid_t child = fork();
    if (child < 0)
        return -1;
    if (child == 0)
        _exit(work_until_killed(heap, shared));
    while (shmalloc_load(&shared->steps) < before + 1000 &&
           waitpid(child, NULL, WNOHANG) == 0)
        usleep(100);
    int status = 0;
    kill(child, SIGKILL);
    return waitpid(child, &status, 0) == child && WIFSIGNALED(status) ? 0 : -1;
}

/* The survivor: takes the lock, uses every slot, and finds no block but those it knows. */
static int go_on(shmalloc_heap *heap, struct shared *shared, int *inherited)
{
    int rc = shmalloc_mutex_lock(heap, &shared->mutex);
    if (rc < 0)
        return rc;
    *inherited += rc == SHMALLOC_OWNER_DIED;
    rc = 0;
    for (unsigned i = 0; i < SLOTS && rc == 0; i++)
        rc = churn(heap, shared, i);
    if (rc == 0)
        rc = shmalloc_mutex_consistent(heap, &shared->mutex);
    int unlocked = shmalloc_mutex_unlock(heap, &shared->mutex);
    if (rc == 0 && unlocked == 0)
        rc = shmalloc_check(heap);
    return rc < 0 ? rc : unlocked;
}

int main(int argc, char **argv)
{
    int rounds = argc == 3 ? atoi(argv[2]) : 0;
    if (rounds < 1)
        return fputs("usage: survivor HEAP ROUNDS\n", stderr), 2;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    shmalloc_heap *heap;
    shmalloc_ref ref;
    if (shmalloc_open(argv[1], &options, &heap) < 0 ||
        shmalloc_root_get_or_create(heap, "shared", 0, sizeof(struct shared), NULL, NULL, &ref) < 0)
        return fprintf(stderr, "%s\n", shmalloc_errmsg()), 1;
    struct shared *shared = shmalloc_ptr(heap, ref);

    int inherited = 0;
    for (int i = 0; i < rounds; i++) {
        if (lose_a_child(heap, shared) < 0)
            return fputs("the child was not killed\n", stderr), 1;
        if (go_on(heap, shared, &inherited) < 0)
            return fprintf(stderr, "round %d: %s\n", i, shmalloc_errmsg()), 1;
    }
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    if (shmalloc_get_stats(heap, &stats) < 0 || shmalloc_close(heap) < 0)
        return fprintf(stderr, "%s\n", shmalloc_errmsg()), 1;
    printf("%d children killed, the heap is sound\n", rounds);
    printf("%llu blocks: the shared one and %d slots\n", (unsigned long long)stats.allocated_blocks,
           SLOTS);
    fprintf(stderr, "%d of them died holding the mutex\n", inherited);
    return 0;
}
