/* SPDX-License-Identifier: MIT */
/*
 * heap_suite.h - a suite whose every test gets a fresh heap and must leave it as it found it.
 *
 * HEAP_SUITE(name, flags, seconds) defines the suite; `f.heap` is the heap. After each test the
 * heap must be sound, live and as a file at rest, and as much must be free as before it, so a leak
 * in any tested path fails that test. Rest comes first, because it brings back what killed children
 * had cached. HEAP_SUITE_AFTER does something else first: what that leaves is not counted.
 */
#ifndef TEST_HEAP_SUITE_H
#define TEST_HEAP_SUITE_H

#include <criterion/criterion.h>

#include "support.h"
#include "view_check.h"

static struct fixture f;
static struct usage before;

static inline void heap_suite_end(void)
{
    must_be_sound(f.heap);
    must_work(shmalloc_close(f.heap));
    must_be_sound_on_disk(f.path);
    f.heap = heap_open(f.path);
    must_be_as_before(f.heap, &before);
    fixture_end(&f);
}

#define HEAP_SUITE_AFTER(name, flags, seconds, prepare)                                            \
    static void suite_begin(void)                                                                  \
    {                                                                                              \
        fixture_begin_heap(&f, (flags));                                                           \
        prepare;                                                                                   \
        before = usage_now(f.heap);                                                                \
    }                                                                                              \
    TestSuite(name, .init = suite_begin, .fini = heap_suite_end, .timeout = (seconds))

#define HEAP_SUITE(name, flags, seconds) HEAP_SUITE_AFTER(name, flags, seconds, (void)0)

#endif
