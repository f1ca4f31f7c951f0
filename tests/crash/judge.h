/* SPDX-License-Identifier: MIT */
/*
 * judge.h - what a heap file that somebody died in holds, and whether it is sound.
 *
 * A judge is a process of its own, because what it opens may hang or end it. It finds out by using
 * the heap and emptying it. judge() comes as the first to attach; survivor.h has judges who were
 * there before the death.
 */
#ifndef TEST_CRASH_JUDGE_H
#define TEST_CRASH_JUDGE_H

#include <shmalloc/shmalloc.h>

#include "crashtest/judge.h"
#include "ops.h"

/* Open the image as the first to attach, check, describe, use, empty, close. */
void judge(const char *path, const struct op *op, struct smi_findings *out);

/* The same for an image that was moved: the open is refused until the heap has been recovered. */
void judge_moved(const char *path, const struct op *op, struct smi_findings *out);

/* ---- for judges ---- */

/* Run `fn` in a child that may write to `out`; however it ends, out->why tells. */
void judge_in_child(struct smi_findings *out, void (*fn)(const void *arg), const void *arg);

#define right(condition, ...) ((condition) ? (void)0 : smi_wrong(__VA_ARGS__))
#define works(call) right((call) >= 0, "%s: %s", #call, shmalloc_errmsg())

/* As shmalloc-inspect does it: the file settles in private memory, nobody opens it. */
void judge_closed(const char *path, const char *when);

/* A block that was in the heap when the judge came, and that it has freed since. */
struct loot {
    shmalloc_block block[64];
    unsigned count;
    char words[8192]; /* the lines of the words that named them */
};
/* All lines about the heap; `loot` may be NULL. */
void judge_describe(shmalloc_heap *heap, const struct world *world, const struct loot *loot);
/* The line of one word, or "". */
void judge_word_line(shmalloc_heap *heap, const struct world *world, unsigned i, char *text,
                     size_t size);

/* Lock world.cond_mutex, wait for a moment, signal: all of it works whatever a death left. */
void judge_use_cond(shmalloc_heap *heap, struct world *world);

/* The heap still does what it is for, and all of it can be freed. */
void judge_use_and_empty(shmalloc_heap *heap);

#endif
