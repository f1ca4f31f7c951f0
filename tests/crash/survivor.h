/* SPDX-License-Identifier: MIT */
/*
 * survivor.h - processes that have the heap open while another one dies in it, and carry on.
 *
 * A survivor has an entry in the process table, a thread slot with cached slots, blocks, and what
 * it remembers in private memory of the heap as it was when it came. To judge thousands of images,
 * each must be met by a survivor in exactly that state, and it must not be a newcomer, who looks at
 * everything with fresh eyes.
 *
 * So the survivors of an operation really come to the heap, one after the other, before the
 * operation is prepared; each first keeps a copy of the file, its base. To meet an image, a process
 * takes a survivor's part: it opens a copy of the base, where the bytes of all who were there are
 * held as if they lived, and does what the survivor did. What it does is the same in every run, so
 * now it has the survivor's private state. Then the file's bytes become the image's, just as if the
 * stepped process had stored them, and the dead lose what the kernel takes from the dead: each
 * mutex with an owner says FUTEX_OWNER_DIED instead, and their bytes are let go. Nothing else of
 * the library's view of the world tells this from a death at that instruction; --real shows that
 * with real SIGKILLs.
 *
 * Survivors may die as well: part n is played when the stepped process and the parts before n are
 * dead, those after n live but do nothing.
 */
#ifndef TEST_CRASH_SURVIVOR_H
#define TEST_CRASH_SURVIVOR_H

#include "judge.h"
#include "ops.h"
#include "support.h"

enum { SURVIVORS = 3 };

/* What a survivor happens to do first. Any of them may be how it notices the death. */
enum first {
    FIRST_LOCKS, /* takes the dead locks one by one, in an order of them */
    FIRST_MUTEX, /* locks world.mutex, and frees what the dead process was linking */
    FIRST_LOOK,  /* looks for dead processes, as the long paths do once a second */
    FIRST_SMALL, /* allocates in the classes whose locks are dead */
    FIRST_LARGE,
    FIRST_ROOT,
    FIRST_THREAD, /* another thread of it makes its first call */
    FIRST_CLAIM, /* looks; at once another thread claims the thread slot; then locks world.mutex */
    FIRSTS
};
struct order {
    enum first first;
    unsigned permutation; /* of FIRST_LOCKS */
};

/* The real ones, children of the caller; `f` is where the heap will be. They come, and wait. */
void survivors_start(const struct fixture *f);
void survivors_end(void);
/* All carry on at once, each in another order, and end: 0 when they do so with success. */
int survivors_carry_on(void);
/* Remember the bases that they left. */
void survivors_remember(const struct op *op);

/* Orders in which the image has to be met: each of its dead locks (of more than five, some, evenly
 * spread), and another one as it is somebody's `turn`; a thread's first call, too, when the lock of
 * the thread slots is among them. Returns their number. */
enum { ORDERS_MAX = 128 };
unsigned survivor_orders(const char *image, uint64_t turn, struct order out[ORDERS_MAX]);

/* Judge an image in the part of survivor `part`. */
struct survival {
    const char *image;
    const char *path; /* of the file that they share; made anew */
    const struct op *op;
    unsigned part;
    struct order order;
};
void survivor_judge(const struct survival *survival, struct smi_findings *out);

/* Parts 0 and 1 carry on at the same time, and somebody new comes meanwhile; part 1 judges. */
void survivor_judge_two(const struct survival *survival, struct smi_findings *out);

/* The repair as an operation that is stepped through: `survival` is what the next stepped process
 * plays. */
extern const struct op repairing;
void survivor_will_repair(const struct survival *survival);

#endif
