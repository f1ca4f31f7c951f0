/* SPDX-License-Identifier: MIT */
/*
 * bank.c - transactions of several processes, which are killed at random.
 *
 * Usage: bank [-k KILLS] [-s SECONDS] [-w WORKERS] [-h]
 *
 * Accounts have money, whose sum never changes, and a list of blocks, of which they say how many
 * there are. Each transaction locks two accounts, in any order, moves money, puts a block into a
 * list or takes one out, and commits or aborts. Workers are killed; the others find out by the
 * mutexes, or the parent by adopting. Now and then all are killed: then the sum is right, each list
 * has as many blocks as it should, and the heap has these blocks and no others. -h: in a hardened
 * heap.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

#include "support.h"

enum { ACCOUNTS = 8, PURSES = 8, MOST_NODES = 50, START = 1000, MOST_WORKERS = 16 };

struct account {
    shmalloc_mutex mutex;
    int64_t purse[PURSES];
    shmalloc_ref first;
    uint64_t nodes;
    uint64_t done; /* stored by commits: the transactions that committed */
    uint8_t text[300];
};
struct node {
    shmalloc_ref next;
    uint64_t fill;
};

static struct fixture f;
static struct account *accounts;
static uint64_t *counts; /* by worker */

struct change {
    struct rng *rng;
    struct account *from, *to;
    int give_up;
};

static int take_node(shmalloc_heap *heap, struct account *a)
{
    struct node *node = shmalloc_ptr(heap, a->first);
    shmalloc_ref ref = a->first;
    a->first = node->next;
    a->nodes--;
    return shmalloc_tx_free(heap, &ref);
}

static int put_node(shmalloc_heap *heap, struct account *a, struct rng *rng)
{
    shmalloc_ref ref;
    int rc =
        shmalloc_tx_alloc(heap, rng_below(rng, 50) == 0 ? 70000 : 16 + rng_below(rng, 500), &ref);
    if (rc < 0)
        return rc;
    ((struct node *)shmalloc_ptr(heap, ref))->next = a->first;
    a->first = ref;
    a->nodes++;
    return 0;
}

static int move_money(shmalloc_heap *heap, void *arg)
{
    struct change *c = arg;
    int rc = shmalloc_tx_lock(heap, &c->from->mutex);
    if (rc == 0)
        rc = shmalloc_tx_lock(heap, &c->to->mutex);
    if (rc == 0)
        rc = shmalloc_tx_add(heap, c->from->purse, sizeof(c->from->purse));
    if (rc == 0)
        /* its mutex, too */
        rc = rng_below(c->rng, 4) == 0
                 ? shmalloc_tx_add(heap, c->to, sizeof(*c->to))
                 : shmalloc_tx_add(heap, c->to->purse, sizeof(c->to->purse) + 16 + 8 + 300);
    if (rc != 0)
        return rc;
    int64_t amount = (int64_t)rng_below(c->rng, 100);
    c->from->purse[rng_below(c->rng, PURSES)] -= amount;
    c->to->purse[rng_below(c->rng, PURSES)] += amount;
    memset(c->to->text, (int)rng_below(c->rng, 256), sizeof(c->to->text));
    uint64_t what = rng_below(c->rng, 3);
    if (what == 0 && c->to->nodes < MOST_NODES)
        rc = put_node(heap, c->to, c->rng);
    else if (what == 1 && c->to->first != 0)
        rc = take_node(heap, c->to);
    if (rc == 0)
        rc = shmalloc_tx_store(heap, &c->from->done, c->from->done + 1);
    return rc == 0 && c->give_up ? -1 : rc;
}

static int work(void *arg)
{
    uintptr_t worker = (uintptr_t)arg;
    struct rng rng = rng_from(test_seed() + counts[MOST_WORKERS] * 131 + worker);
    for (;;) {
        uint64_t i = rng_below(&rng, ACCOUNTS), j = rng_below(&rng, ACCOUNTS - 1);
        struct change c = {&rng, &accounts[i], &accounts[j + (j >= i)], rng_below(&rng, 4) == 0};
        int rc = shmalloc_tx_run(f.heap, move_money, &c);
        must(rc == 0 || (rc == -1 && c.give_up), "transaction: %d: %s", rc, shmalloc_errmsg());
        __atomic_fetch_add(&counts[worker], 1, __ATOMIC_RELAXED);
    }
}

/* Nobody is at work. */
static void judge(void)
{
    int64_t sum = 0;
    uint64_t nodes = 0;
    shmalloc_block *blocks;
    for (int i = 0; i < ACCOUNTS; i++) {
        uint64_t n = 0;
        for (shmalloc_ref ref = accounts[i].first; ref != 0; n++) {
            must(n < MOST_NODES + 1, "the list of account %d has no end", i);
            const struct node *node = shmalloc_ptr(f.heap, ref);
            must(node && shmalloc_usable_size(f.heap, node) > 0,
                 "account %d has %#llx, which is no block", i, (unsigned long long)ref);
            ref = node->next;
        }
        must(n == accounts[i].nodes, "account %d says %llu blocks, and has %llu", i,
             (unsigned long long)accounts[i].nodes, (unsigned long long)n);
        for (int j = 0; j < PURSES; j++)
            sum += accounts[i].purse[j];
        for (size_t j = 1; j < sizeof(accounts[i].text); j++)
            must(accounts[i].text[j] == accounts[i].text[0],
                 "the text of account %d is half another's", i);
        nodes += n;
    }
    must(sum == ACCOUNTS * PURSES * START, "the sum is %lld", (long long)sum);
    size_t count = all_blocks(f.heap, &blocks);
    free(blocks);
    must(count == nodes + 1, "the heap has %zu blocks, expected %llu", count,
         (unsigned long long)nodes + 1);
    must(shmalloc_trim(f.heap) >= 0, "trim: %s", shmalloc_errmsg());
    must_be_sound(f.heap);
}

int main(int argc, char **argv)
{
    uint64_t kills = 500, seconds = 60, workers = 3, done = 0, total = 0;
    unsigned flags = 0;
    for (int o; (o = getopt(argc, argv, "k:s:w:h")) != -1;) {
        if (o == 'k')
            kills = strtoull(optarg, NULL, 0);
        else if (o == 's')
            seconds = strtoull(optarg, NULL, 0);
        else if (o == 'w')
            workers = strtoull(optarg, NULL, 0);
        else if (o == 'h')
            flags = SHMALLOC_HARDENED;
        else
            return 2;
    }
    must(workers > 0 && workers <= MOST_WORKERS, "1 to %d workers", MOST_WORKERS);
    fixture_begin_heap(&f, flags);
    counts = shared_memory((MOST_WORKERS + 1) * sizeof(uint64_t));
    shmalloc_ref ref;
    must(shmalloc_root_get_or_create(f.heap, "bank", 0, sizeof(struct account) * ACCOUNTS, NULL,
                                     NULL, &ref) == SHMALLOC_CREATED,
         "%s", shmalloc_errmsg());
    accounts = shmalloc_ptr(f.heap, ref);
    for (int i = 0; i < ACCOUNTS; i++)
        for (int j = 0; j < PURSES; j++)
            accounts[i].purse[j] = START;
    struct rng rng = rng_from(test_seed());
    uint64_t deadline = now_ns() + seconds * 1000000000ull;
    pid_t pids[MOST_WORKERS] = {0};
    while (done < kills && now_ns() < deadline) {
        for (uintptr_t w = 0; w < workers; w++)
            if (pids[w] == 0) {
                counts[MOST_WORKERS]++;
                pids[w] = start_child(work, (void *)w);
            }
        usleep((useconds_t)rng_below(&rng, 3000));
        int all = rng_below(&rng, 20) == 0;
        uint64_t victim = rng_below(&rng, workers);
        for (uint64_t w = 0; w < workers; w++)
            if (all || w == victim) {
                must(waitpid(pids[w], NULL, WNOHANG) == 0, "a worker ended by itself");
                kill_child(pids[w]);
                pids[w] = 0;
                done++;
            }
        if (all && rng_below(&rng, 2)) {
            fixture_reopen(&f); /* adoption at an orderly close */
            accounts = shmalloc_ptr(f.heap, ref);
        }
        for (int i = 0; all && i < ACCOUNTS; i++) { /* or the next owner of each mutex, who has
                                                       nothing to judge */
            must_work(shmalloc_mutex_lock(f.heap, &accounts[i].mutex));
            must_work(shmalloc_mutex_unlock(f.heap, &accounts[i].mutex));
        }
        if (all)
            judge();
        else if (rng_below(&rng, 2)) /* else the other workers find out */
            must(shmalloc_trim(f.heap) >= 0, "trim: %s", shmalloc_errmsg());
    }
    for (uint64_t w = 0; w < workers; w++) {
        if (pids[w] > 0)
            kill_child(pids[w]);
        total += counts[w];
    }
    fixture_reopen(&f);
    accounts = shmalloc_ptr(f.heap, ref);
    judge();
    printf("%llu kills, %llu transactions\n", (unsigned long long)done, (unsigned long long)total);
    must(shmalloc_root_remove(f.heap, "bank") == 0, "%s", shmalloc_errmsg());
    fixture_end(&f);
    return 0;
}
