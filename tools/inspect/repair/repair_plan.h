/* SPDX-License-Identifier: MIT */
/*
 * repair_plan.h - what the parts of a plan share: changing the private copy, and saying so.
 *
 * Each mends one kind of thing and relies on those before it, in the order in which they stand
 * here.
 */
#ifndef SMI_REPAIR_PLAN_H
#define SMI_REPAIR_PLAN_H

#include "repair.h"

/* ---- repair.c ---- */

/* A word of the copy, and of the file when the plan is carried out, gets a value. */
void smi_repair_put(struct smi_repair *r, enum smi_repair_stage stage, uint64_t ref,
                    uint64_t value);

/* The same for 1, 2 or 4 bytes inside a word. */
void smi_repair_put_part(struct smi_repair *r, enum smi_repair_stage stage, uint64_t ref,
                         unsigned bytes, uint64_t value);

/* Say what is done for which invariant, or what stands against the repair. */
void smi_repair_say(struct smi_repair *r, const char *invariant, uint64_t ref, const char *format,
                    ...) __attribute__((format(printf, 4, 5)));
void smi_repair_refuse(struct smi_repair *r, const char *invariant, uint64_t ref,
                       const char *format, ...) __attribute__((format(printf, 4, 5)));

/* A word of the copy; 0 when there is none. */
uint64_t smi_repair_word(struct smi_repair *r, uint64_t ref);

/* Append to a list; a lack of memory is remembered. */
void smi_repair_note(struct smi_repair *r, struct smi_repair_words *list, uint64_t ref,
                     uint64_t value);

/* Is `ref` in a list? */
int smi_repair_noted(const struct smi_repair_words *list, uint64_t ref);

/* Set or clear the bit of a slot that smi_view_slot found. */
void smi_repair_put_bit(struct smi_repair *r, enum smi_repair_stage stage, uint32_t slab,
                        uint32_t index, int value);
int smi_repair_bit(struct smi_repair *r, uint32_t slab, uint32_t index);

static inline uint64_t smi_repair_ref(uint64_t page)
{
    return page << SMF_PAGE_SHIFT;
}

/* Ref of the record of a class in an arena, and of one of its words. */
static inline uint64_t smi_repair_central(const struct smi_repair *r, uint32_t index, size_t offset)
{
    return r->view.header.areas.central + (uint64_t)index * sizeof(struct smf_central) + offset;
}

static inline uint32_t smi_repair_centrals(const struct smi_repair *r)
{
    return (r->view.header.arena_count + 1) * SMF_CLASSES;
}

/* ---- repair_identity.c: header, state, directory ---- */

/* 0, or the code that says why this is no heap at all. */
int smi_mend_header(struct smi_repair *r);
void smi_mend_state(struct smi_repair *r);
int smi_mend_directory(struct smi_repair *r);

/* ---- repair_flight.c: logs and link records ---- */

/* Discard what cannot be resolved, resolve the rest in the copy. 0 or -ENOMEM. */
int smi_mend_flight(struct smi_repair *r);
/* The link record of a thread slot that came back to the table later is discarded. */
void smi_mend_link(struct smi_repair *r, uint32_t i);

/* ---- repair_pages.c: spans ---- */

/* Decide what each page is for. */
void smi_mend_spans(struct smi_repair *r);
/* Make words and descriptors say so. */
void smi_mend_pages(struct smi_repair *r);
/* The span that `page` lies in, NULL when none does. */
struct smi_piece *smi_repair_piece(struct smi_repair *r, uint64_t page);
/* What the used span that `page` is said to begin with is, from its descriptor or words alone: does
 * a span of the page heap stand on its own there? Its length, 0 when not. */
uint32_t smi_repair_stands(struct smi_repair *r, uint64_t page, uint64_t end);

/* ---- repair_threads.c: thread slots and stacks ---- */

/* The table, arrays and spares; spans of the library that nothing names become free. */
void smi_mend_thread_table(struct smi_repair *r);
void smi_mend_stacks(struct smi_repair *r);

/* Take a slot out of the stack that smi_view_cached found it in. */
void smi_repair_drop_cached(struct smi_repair *r, const struct smi_cached *cached);

/* ---- repair_own.c: roots, side arrays, the library's own blocks ---- */

void smi_mend_own(struct smi_repair *r);

/* ---- repair_slabs.c: bitmaps and user bits ---- */

void smi_mend_bitmaps(struct smi_repair *r);
void smi_mend_users(struct smi_repair *r);
/* Is this slab on its way between the page heap and its class? */
int smi_repair_is_pending(struct smi_repair *r, const struct smi_piece *piece);
/* Slots of a slab whose bit is set; *first is the first word of the bitmap that has one. */
uint32_t smi_repair_free_slots(struct smi_repair *r, const struct smi_piece *piece,
                               uint32_t *first);

/* ---- repair_sets.c: everything derived ---- */

void smi_mend_counts(struct smi_repair *r);
void smi_mend_sets(struct smi_repair *r);

#endif
