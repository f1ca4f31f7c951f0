/* SPDX-License-Identifier: MIT */
/*
 * crashtest.c - a list whose push is killed at every instruction, correct and with bugs.
 *
 *     crashtest correct|early|uncounted|lost [OPTION...]    --help lists the options
 *
 * What a death leaves is resolved by who locks next: a node on its way in or out is held by
 * `fresh`, and the count is taken anew. The bugs are those that everybody plants by and by:
 *
 *     early      the node is linked before its value is stored
 *     uncounted  the count and the link are two stores, and nobody looks at them after a death
 *     lost       the node is held by a variable of the program only, until it is linked
 */
#include <shmalloc/crashtest.h>

#include <string.h>

struct node {
    shmalloc_ref next;
    uint64_t value;
};

struct list {
    shmalloc_mutex mutex; /* zeroed bytes are an unlocked one */
    shmalloc_ref first;
    uint64_t count;
    shmalloc_ref fresh; /* 0 but for moments: linked, or to be freed */
};

static int early, uncounted, lost; /* the bugs */

/* ---- the list ---- */

static struct list *find_list(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    if (shmalloc_root_get_or_create(heap, "list", 0, sizeof(struct list), NULL, NULL, &ref) < 0)
        return NULL;
    return shmalloc_ptr(heap, ref);
}

static int resolve(shmalloc_heap *heap, struct list *list)
{
    uint64_t count = 0;
    if (list->first == list->fresh)
        shmalloc_store(&list->fresh, 0);
    if (shmalloc_ref_free(heap, &list->fresh) < 0) /* nothing to do for 0 */
        return -1;
    for (struct node *node = shmalloc_ptr(heap, list->first); node;
         node = shmalloc_ptr(heap, node->next))
        count++;
    if (!uncounted)
        shmalloc_store(&list->count, count);
    return 0;
}

static int lock(shmalloc_heap *heap, struct list *list)
{
    int rc = shmalloc_mutex_lock(heap, &list->mutex);
    if (rc == SHMALLOC_OWNER_DIED && (rc = resolve(heap, list)) == 0)
        rc = shmalloc_mutex_consistent(heap, &list->mutex);
    return rc;
}

static int push(shmalloc_heap *heap, uint64_t value)
{
    struct list *list = find_list(heap);
    shmalloc_ref mine = 0, *held = lost ? &mine : &list->fresh;
    if (!list || lock(heap, list) < 0 || shmalloc_ref_alloc(heap, sizeof(struct node), held) < 0)
        return -1;
    struct node *node = shmalloc_ptr(heap, *held);
    node->next = list->first;
    if (early)
        shmalloc_store(&list->first, *held);
    shmalloc_store(&node->value, value);
    shmalloc_store(&list->first, *held);
    shmalloc_store(held, 0);
    shmalloc_store(&list->count, list->count + 1);
    return shmalloc_mutex_unlock(heap, &list->mutex);
}

static int pop(shmalloc_heap *heap)
{
    struct list *list = find_list(heap);
    if (!list || lock(heap, list) < 0)
        return -1;
    struct node *node = shmalloc_ptr(heap, list->first);
    if (node) {
        shmalloc_store(&list->fresh, list->first);
        shmalloc_store(&list->first, node->next);
        shmalloc_store(&list->count, list->count - 1);
        if (shmalloc_ref_free(heap, &list->fresh) < 0)
            return -1;
    }
    return shmalloc_mutex_unlock(heap, &list->mutex);
}

/* ---- its test ---- */

static int setup(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return push(heap, 1) < 0 || push(heap, 2) < 0;
}

static int operation(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return push(heap, 3);
}

/* What every program of the list does first: lock, and so resolve. */
static int recover(shmalloc_heap *heap, void *arg)
{
    struct list *list = find_list(heap);
    (void)arg;
    return !list || lock(heap, list) < 0 || shmalloc_mutex_unlock(heap, &list->mutex) < 0;
}

static int describe(shmalloc_heap *heap, void *arg)
{
    const struct list *list = find_list(heap);
    (void)arg;
    shmalloc_crashtest_print("%llu nodes:", (unsigned long long)list->count);
    for (shmalloc_ref at = list->first; at;) {
        const struct node *node = shmalloc_ptr(heap, at);
        shmalloc_crashtest_reached(at);
        shmalloc_crashtest_print(" %llu", (unsigned long long)node->value);
        at = node->next;
    }
    shmalloc_crashtest_print("\n");
    return 0;
}

static int proceed(shmalloc_heap *heap, void *arg)
{
    (void)arg;
    return pop(heap);
}

int main(int argc, char **argv)
{
    const char *bug = argc > 1 ? argv[1] : "";
    early = strcmp(bug, "early") == 0;
    uncounted = strcmp(bug, "uncounted") == 0;
    lost = strcmp(bug, "lost") == 0;
    if (*bug != '-' && *bug && !early && !uncounted && !lost && strcmp(bug, "correct") != 0)
        return fputs("usage: crashtest [correct|early|uncounted|lost] [OPTION...]; --help lists "
                     "the options\n",
                     stderr),
               2;
    shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
    test.setup = setup;
    test.operation = operation;
    test.recover = recover;
    test.describe = describe;
    test.proceed = proceed;
    return shmalloc_crashtest_main(argc, argv, &test);
}
