/* SPDX-License-Identifier: MIT */
/*
 * vector_steps.c - a process dies at each instruction of each operation on a vector: with everybody
 * else, or while another one goes on. The kit does it (shmalloc/crashtest.h).
 *
 *   vector_steps [NAME]     all operations, or those whose names contain NAME
 */
#include <stdio.h>
#include <string.h>

#include <shmalloc/crashtest.h>
#include <shmalloc/vector.h>

#include "life/adopt.h"
#include "structures/structures.h"
#include "support.h"

#define CALLBACK(name) static int name(shmalloc_heap *heap, void *arg __attribute__((unused)))
#define ELEMENT 48

static char element[ELEMENT];

static shmalloc_vector vector_in(shmalloc_heap *heap)
{
    shmalloc_vector v;
    must_work(shmalloc_vector_open_root(heap, "vector", 0, &v));
    return v;
}

static int make(shmalloc_heap *heap, size_t size, int count)
{
    shmalloc_vector v;
    if (shmalloc_vector_open_root(heap, "vector", size, &v) < 0)
        return 1;
    for (int i = 0; i < count; i++) {
        memset(element, 'a' + i % 26, sizeof(element));
        must_work(shmalloc_vector_append(&v, element, NULL));
    }
    return 0;
}

CALLBACK(nothing)
{
    (void)heap;
    return 0;
}
CALLBACK(a_full_segment)
{
    return make(heap, ELEMENT, 8);
}
CALLBACK(some_elements)
{
    return make(heap, ELEMENT, 5);
}
CALLBACK(small_elements)
{
    return make(heap, 8, 5);
}
CALLBACK(four_segments)
{
    return make(heap, ELEMENT, 50);
}

CALLBACK(create)
{
    shmalloc_vector v;
    return shmalloc_vector_open_root(heap, "vector", ELEMENT, &v) < 0;
}
CALLBACK(append)
{
    shmalloc_vector v = vector_in(heap);
    memset(element, 'X', sizeof(element));
    return shmalloc_vector_append(&v, element, NULL);
}
CALLBACK(set)
{
    shmalloc_vector v = vector_in(heap);
    memset(element, 'X', sizeof(element));
    return shmalloc_vector_set(&v, 2, element);
}
CALLBACK(truncate_to_three)
{
    shmalloc_vector v = vector_in(heap);
    return shmalloc_vector_truncate(&v, 3);
}
CALLBACK(remove_root)
{
    return shmalloc_vector_remove(heap, "vector");
}

/* ---- what is there ---- */

static int reach(uint64_t ref, void *arg)
{
    (void)arg;
    shmalloc_crashtest_reached(ref);
    return 0;
}

static int print_element(uint64_t index, const void *bytes, void *arg)
{
    for (size_t i = 1; i < *(size_t *)arg; i++)
        if (((const char *)bytes)[i] != *(const char *)bytes)
            shmalloc_crashtest_print("torn: ");
    shmalloc_crashtest_print("%llu: %c\n", (unsigned long long)index, *(const char *)bytes);
    return 0;
}

static int reach_structure(const struct smi_structure_seen *seen, void *arg)
{
    reach(seen->ref, NULL);
    return (seen->head->life & SMF_LIFE_STATE) == SMF_LIFE_NONE
               ? 0
               : seen->type->each_ref(arg, seen->ref, reach, NULL);
}

CALLBACK(describe_all)
{
    struct smi_view view;
    shmalloc_vector v;
    if (shmalloc_vector_open_root(heap, "vector", 0, &v) == 0) {
        size_t size = ((struct smf_vector *)shmalloc_ptr(heap, shmalloc_vector_ref(&v)))->element;
        shmalloc_crashtest_print("%lld elements\n", (long long)shmalloc_vector_count(&v));
        if (shmalloc_vector_each(&v, print_element, &size) < 0)
            return 1;
    }
    smi_view_of_mapping(&view, heap->base, heap->state->size, heap->path);
    int rc = smi_structures_each(&view, reach_structure, &view);
    smi_view_finish(&view);
    return rc;
}

CALLBACK(adopt_the_dead)
{
    return smi_adopt(heap, SMI_ADOPT_ALL);
}

CALLBACK(go_on)
{
    shmalloc_vector v;
    char got[ELEMENT];
    uint64_t index;
    if (shmalloc_vector_open_root(heap, "vector", 0, &v) < 0)
        return 0;
    memset(element, 'Z', sizeof(element));
    if (shmalloc_vector_append(&v, element, &index) < 0 ||
        shmalloc_vector_set(&v, 0, element) < 0 || shmalloc_vector_get(&v, index, got) < 0 ||
        *got != 'Z' || shmalloc_vector_get(&v, 0, got) < 0 || *got != 'Z' ||
        shmalloc_vector_truncate(&v, 1) < 0 || shmalloc_vector_count(&v) != 1)
        return shmalloc_crashtest_fail("it cannot be used: %s", shmalloc_errmsg());
    return 0;
}

static const struct {
    const char *name;
    shmalloc_crashtest_fn *setup, *operation;
} cases[] = {
    {"create", nothing, create},
    {"append", some_elements, append},
    {"append, a new segment", a_full_segment, append},
    {"append, 8 bytes", small_elements, append},
    {"set", some_elements, set},
    {"set, 8 bytes", small_elements, set},
    {"truncate", four_segments, truncate_to_three},
    {"remove", four_segments, remove_root},
};

int main(int argc, char **argv)
{
    int faults = 0;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        if (argc > 1 && !strstr(cases[i].name, argv[1]))
            continue;
        shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
        test.name = cases[i].name;
        test.setup = cases[i].setup;
        test.operation = cases[i].operation;
        test.recover = adopt_the_dead;
        test.describe = describe_all;
        test.proceed = go_on;
        test.seconds = 20;
        int rc = shmalloc_crashtest_run(&test);
        printf("%s: %s\n", cases[i].name, rc == 0 ? "no fault" : "FAULTS");
        fflush(stdout);
        faults += rc != 0;
    }
    return faults;
}
