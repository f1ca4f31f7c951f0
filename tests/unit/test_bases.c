/* SPDX-License-Identifier: MIT */
/*
 * test_bases.c - one structure seen by processes that map the heap at different addresses.
 *
 * Would fail if any pointer were stored in the heap or in a structure of the library's own.
 */
#include <sys/mman.h>

#include <criterion/criterion.h>

#include "support.h"

static struct fixture f;

enum { PROCESSES = 3, NODES = 1000000 };

struct node {
    shmalloc_ref next;
    uint64_t value;
};

struct shared {
    uintptr_t base[PROCESSES];
    uint64_t sum[PROCESSES], count[PROCESSES];
    uint32_t next;
};

/* Occupy addresses, so that the heap goes elsewhere than in the neighbour. */
static void shift_addresses(uint32_t me)
{
    size_t len = (size_t)me << 40;
    if (len)
        must(mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) !=
                 MAP_FAILED,
             "no address space to waste");
}

static int follow(void *arg)
{
    struct shared *s = arg;
    uint32_t me = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED);
    shift_addresses(me);
    shmalloc_heap *heap = heap_open(f.path);
    s->base[me] = (uintptr_t)shmalloc_ptr(heap, 8192);
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "list", 0, &ref));
    while (ref) {
        const struct node *node = shmalloc_ptr(heap, ref);
        must(node, "%#llx is outside", (unsigned long long)ref);
        s->sum[me] += node->value;
        s->count[me]++;
        ref = node->next;
    }
    return shmalloc_close(heap) < 0;
}

/* Frees the list from its head, at yet another address. */
static int take_down(void *arg)
{
    (void)arg;
    shift_addresses(PROCESSES);
    shmalloc_heap *heap = heap_open(f.path);
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "list", 0, &ref));
    while (ref) {
        shmalloc_ref next = ((struct node *)shmalloc_ptr(heap, ref))->next;
        must_work(shmalloc_ref_free(heap, &ref));
        ref = next;
    }
    must_work(shmalloc_root_remove(heap, "list"));
    return shmalloc_close(heap) < 0;
}

Test(bases, a_list_of_a_million_nodes_is_followed_at_three_addresses, .timeout = 60)
{
    fixture_begin_heap(&f, 0);
    struct usage empty = usage_now(f.heap);
    struct shared *s = shared_memory(sizeof(*s));
    shmalloc_ref head = 0;
    for (uint64_t i = 1; i <= NODES; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, sizeof(struct node), &ref));
        *(struct node *)shmalloc_ptr(f.heap, ref) = (struct node){head, i};
        head = ref;
    }
    must_work(shmalloc_root_set(f.heap, "list", 0, head));
    must_work(shmalloc_close(f.heap));
    f.heap = NULL; /* children that inherit the mapping would see it where it is */
    pid_t pids[PROCESSES];
    for (int i = 0; i < PROCESSES; i++)
        pids[i] = start_child(follow, s);
    for (int i = 0; i < PROCESSES; i++)
        cr_assert_eq(wait_child(pids[i]), 0);
    for (int i = 0; i < PROCESSES; i++) {
        cr_assert_eq(s->count[i], NODES);
        cr_assert_eq(s->sum[i], (uint64_t)NODES * (NODES + 1) / 2);
        for (int k = 0; k < i; k++)
            cr_assert_neq(s->base[i], s->base[k], "the addresses were to differ");
    }
    cr_assert_eq(run_child(take_down, NULL), 0);
    f.heap = heap_open(f.path);
    must_be_as_before(f.heap, &empty);
    fixture_end(&f);
}
