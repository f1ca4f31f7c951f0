/* SPDX-License-Identifier: MIT */
/*
 * queue_look.c - queues in a view: checked, described, shown. A queue that is used meanwhile is
 * seen at several instants; what seems wrong counts only if the cell and the positions that it
 * depends on are still what they were.
 */
#include <stdio.h>
#include <string.h>

#include "structures/queue.h"

struct seen {
    struct smi_view *view;
    const struct smf_queue *queue;
    const struct smf_cell *cells;
    struct smi_ring ring;
    uint64_t free_cells, writing, full, reading, acked, unknown;
};

/* 0, or what is wrong. */
static const char *see_queue(struct smi_view *view, uint64_t ref, struct seen *s)
{
    memset(s, 0, sizeof(*s));
    s->view = view;
    s->queue = smi_view_at(view, ref, sizeof(struct smf_queue));
    uint64_t capacity = s->queue ? s->queue->capacity : 0;
    if (!smi_ring_is_possible(capacity))
        return "a queue's capacity is not possible";
    s->ring = smi_ring_of(capacity);
    if (s->queue->cells % 64 != 0 ||
        !(s->cells = smi_view_at(view, s->queue->cells, capacity * sizeof(struct smf_cell))))
        return "a queue's cells are not in the heap";
    for (uint64_t i = 0; i < capacity; i++) {
        enum smf_cell_state state = smi_cell_state(s->cells[i].state);
        uint64_t *const counts[] = {&s->free_cells, &s->writing, &s->full, &s->reading, &s->acked};
        ++*(state < 5 ? counts[state] : &s->unknown);
    }
    return NULL;
}

struct checking {
    struct seen *s;
    uint64_t ref; /* of the header */
    smi_report_fn *report;
    void *arg;
};

/* Are the words of the file what the view has of them? */
static int stands_still(struct smi_view *view, uint64_t ref, uint64_t seen)
{
    uint64_t now;
    return smi_view_read_now(view, ref, sizeof(now), &now) == 0 && now == seen;
}

static void say_still(struct checking *c, const char *invariant, const struct smf_cell *cell,
                      const char *text)
{
    struct smi_view *view = c->s->view;
    uint64_t at =
        cell ? c->s->queue->cells + (uint64_t)(cell - c->s->cells) * sizeof(*cell) : c->ref;
    if (stands_still(view, c->ref + offsetof(struct smf_queue, tail), c->s->queue->tail) &&
        stands_still(view, c->ref + offsetof(struct smf_queue, first), c->s->queue->first) &&
        (!cell || stands_still(view, at, cell->state)))
        c->report(invariant, at, text, c->arg);
}

static void check_block(struct checking *c, const struct smf_cell *cell)
{
    uint32_t has = cell->flags & (SMF_CELL_BLOCK | SMF_CELL_REF);
    if (has == (SMF_CELL_BLOCK | SMF_CELL_REF) || (!has && cell->length > SMF_CELL_INLINE))
        say_still(c, "Q4", cell, "a message of a queue is longer than its cell");
    else if (has && !smi_structure_has_block(c->s->view, cell->ref,
                                             has & SMF_CELL_BLOCK ? cell->length : 1))
        say_still(c, "Q4", cell,
                  has & SMF_CELL_BLOCK
                      ? "a message of a queue is in a block that is none, or too short"
                      : "a ref that was sent leads to no block");
}

static void check_cell(struct checking *c, const struct smf_cell *cell)
{
    const struct seen *s = c->s;
    enum smf_cell_state state = smi_cell_state(cell->state);
    uint64_t base = (s->queue->first & ~s->ring.mask) | (uint64_t)(cell - s->cells);
    int64_t laps = smi_cell_ahead(s->ring, cell->state, base);
    if (state > SMF_CELL_ACKED || laps < -1 || laps > 1)
        say_still(c, "Q3", cell, "a cell of a queue is in no possible state or lap");
    else if (state != SMF_CELL_FREE && state != SMF_CELL_FULL &&
             smi_cell_who(cell->state) >> 24 > SMF_THREADS)
        say_still(c, "Q3", cell, "a cell of a queue is claimed by a thread slot that cannot be");
    else if (state == SMF_CELL_FREE && (cell->flags & (SMF_CELL_BLOCK | SMF_CELL_REF)))
        say_still(c, "Q4", cell, "a free cell of a queue has a block");
    else if (state == SMF_CELL_FULL || state == SMF_CELL_READING)
        check_block(c, cell);
}

void smi_queue_check(struct smi_view *view, uint64_t ref, smi_report_fn *report, void *arg)
{
    struct seen s;
    struct checking c = {&s, ref, report, arg};
    const char *fault = see_queue(view, ref, &s);
    if (fault) {
        report("Q2", ref, fault, arg);
        return;
    }
    uint64_t first = s.queue->first, tail = s.queue->tail, capacity = s.queue->capacity;
    if (!smi_structure_has_block(view, s.queue->cells, capacity * sizeof(struct smf_cell)))
        report("Q2", ref, "a queue's cells are not a block of their length", arg);
    if (tail - first > capacity && first - tail > capacity)
        say_still(&c, "Q5", NULL, "a queue's positions are further apart than it has cells");
    for (uint64_t i = 0; i < capacity; i++)
        check_cell(&c, &s.cells[i]);
}

void smi_queue_describe(struct smi_view *view, uint64_t ref, char *text, size_t room)
{
    struct seen s;
    const char *fault = see_queue(view, ref, &s);
    if (fault)
        snprintf(text, room, "%s", fault);
    else
        snprintf(text, room, "%llu cells, %llu messages, %llu taken",
                 (unsigned long long)s.queue->capacity, (unsigned long long)s.full,
                 (unsigned long long)s.reading);
}

int smi_queue_each_ref(struct smi_view *view, uint64_t ref, int (*visit)(uint64_t part, void *arg),
                       void *arg)
{
    struct seen s;
    if (see_queue(view, ref, &s))
        return 0;
    int rc = visit(s.queue->cells, arg);
    for (uint64_t i = 0; rc == 0 && i <= s.ring.mask; i++) {
        const struct smf_cell *cell = &s.cells[i];
        enum smf_cell_state state = smi_cell_state(cell->state);
        int lent =
            (cell->flags & SMF_CELL_REF) && (state == SMF_CELL_FULL || state == SMF_CELL_READING);
        if (((cell->flags & SMF_CELL_BLOCK) || lent) && cell->ref != 0)
            rc = visit(cell->ref, arg);
    }
    return rc;
}

static int visit_message(struct seen *s, uint64_t i, smi_item_fn *visit, void *arg)
{
    const struct smf_cell *cell = &s->cells[i];
    uint64_t near = s->queue->first, has = cell->flags & (SMF_CELL_BLOCK | SMF_CELL_REF);
    enum smf_cell_state state = smi_cell_state(cell->state);
    if (state != SMF_CELL_FULL && state != SMF_CELL_READING)
        return 0;
    struct smi_item item = {.index = smi_cell_position(s->ring, i, cell->state, near),
                            .length = cell->length};
    item.note = state == SMF_CELL_READING ? smi_cell_who(cell->state) ? "taken" : "returned" : NULL;
    item.ref = has ? cell->ref : 0;
    if (has & SMF_CELL_BLOCK)
        item.bytes = smi_view_at(s->view, cell->ref, cell->length);
    else if (!has && cell->length <= SMF_CELL_INLINE)
        item.bytes = cell->data;
    return visit(&item, arg);
}

/* From the oldest on. */
int smi_queue_each_item(struct smi_view *view, uint64_t ref, smi_item_fn *visit, void *arg)
{
    struct seen s;
    int rc = 0;
    if (see_queue(view, ref, &s))
        return SHMALLOC_ECORRUPT;
    for (uint64_t i = 0; rc == 0 && i <= s.ring.mask; i++)
        rc = visit_message(&s, (s.queue->tail + i) & s.ring.mask, visit, arg);
    return rc;
}

