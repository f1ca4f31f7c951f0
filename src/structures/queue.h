/* SPDX-License-Identifier: MIT */
/* queue.h - the state words of a queue's cells: for who uses a queue, and for who looks at one in a
 * file. */
#ifndef SMI_QUEUE_H
#define SMI_QUEUE_H

#include "structures/structures.h"

/* How many cells: a power of two. */
struct smi_ring {
    uint64_t mask;  /* capacity - 1 */
    uint64_t shift; /* its bits */
};

static inline struct smi_ring smi_ring_of(uint64_t capacity)
{
    return (struct smi_ring){capacity - 1, (uint64_t)__builtin_ctzll(capacity)};
}

static inline int smi_ring_is_possible(uint64_t capacity)
{
    return capacity >= 2 && capacity <= SMF_QUEUE_MOST_CELLS && (capacity & (capacity - 1)) == 0;
}

static inline uint64_t smi_cell_word(struct smi_ring ring, uint64_t position,
                                     enum smf_cell_state state, uint64_t who)
{
    return position >> ring.shift << SMF_CELL_LAP_SHIFT | (uint64_t)state << SMF_CELL_STATE_SHIFT |
           who;
}

static inline enum smf_cell_state smi_cell_state(uint64_t word)
{
    return (enum smf_cell_state)(word >> SMF_CELL_STATE_SHIFT & 7);
}

static inline uint64_t smi_cell_who(uint64_t word)
{
    return word & SMF_CELL_WHO;
}

/* Laps that the word is ahead of the position; laps are counted modulo 2^26. */
static inline int64_t smi_cell_ahead(struct smi_ring ring, uint64_t word, uint64_t position)
{
    uint64_t difference = (word >> SMF_CELL_LAP_SHIFT) - (position >> ring.shift);
    return (int64_t)(difference << SMF_CELL_LAP_SHIFT) >> SMF_CELL_LAP_SHIFT;
}

/* The position that the cell of that index has by its word, near to `near`. */
static inline uint64_t smi_cell_position(struct smi_ring ring, uint64_t index, uint64_t word,
                                         uint64_t near)
{
    uint64_t base = (near & ~ring.mask) | index;
    return base + ((uint64_t)smi_cell_ahead(ring, word, base) << ring.shift);
}

/* How a queue is checked, described and shown. */
void smi_queue_check(struct smi_view *view, uint64_t ref, smi_report_fn *report, void *arg);
void smi_queue_describe(struct smi_view *view, uint64_t ref, char *text, size_t room);
int smi_queue_each_ref(struct smi_view *view, uint64_t ref, int (*visit)(uint64_t part, void *arg),
                       void *arg);
int smi_queue_each_item(struct smi_view *view, uint64_t ref, smi_item_fn *visit, void *arg);

#endif
