/* SPDX-License-Identifier: MIT */
/*
 * outcome.h - what a step that was cut off comes to: a record in, words and the values they get
 * out.
 *
 * The rules are written once, for those who recover a heap in use, who only look at one, and who
 * repair a damaged one. Each reads the heap in its own way (struct smi_sight) and stores, copies or
 * notes the words. Storing them twice is harmless, so whoever does it may be killed too.
 *
 * What a record may name:
 *
 *   a log       words of the state, of the areas from the directory on and of pages, up to the end
 *               of the *file*: the log of a growth names words of the new chunk, which lie behind
 *               the heap's end once that is undone. No words of the runtime area: no operation
 *               changes processes or locks.
 *   a link      as the user's word one behind the fixed areas and before the end of the *heap*:
 *               chunks that a link names a word of are not cut off. As words of stacks those of
 *               stacks that its own thread slot has.
 *   a directory chunks that follow each other without a gap, have room for a data page and end
 *   before the limit.
 */
#ifndef SMI_OUTCOME_H
#define SMI_OUTCOME_H

#include "format/layout.h"

struct smi_sight {
    /* `len` bytes at the 8-aligned `ref`, or NULL when they cannot be seen. */
    const void *(*at)(void *source, uint64_t ref, uint64_t len);
    void *source;
    const struct smf_areas *areas;
    uint64_t size; /* of the heap, bytes */
    int is_older;  /* thread slots are of an older format */
};

struct smi_change {
    uint64_t ref, value;
};

/* ---- links ---- */

#define SMI_LINK_CHANGES 4
struct smi_outcome {
    struct smi_change change[SMI_LINK_CHANGES]; /* to be stored in this order, and SMF_LINK_NONE to
                                                   `op` after */
    uint32_t count;
    uint64_t large; /* ref of a large block that the step freed: given back before the record is
                       disarmed; 0: none */
};

/* The outcome of the armed record `link` of the thread slot at `thread_ref`; `thread` is what that
 * holds, and may be the slot itself. NULL, or what cannot be, as the end of a sentence; then
 * nothing is to be stored. */
const char *smi_outcome_of_link(const struct smi_sight *sight, uint64_t thread_ref,
                                const struct smf_thread *thread, const struct smf_link *link,
                                struct smi_outcome *out);

/* ---- logs ---- */

/* May a log name the word at `ref`? */
int smi_log_may_name(const struct smf_areas *areas, uint64_t file_size, uint64_t ref);

/* Which entry of a log of `count` cannot be undone, so that none is; `count`: all can. They are
 * undone from the last to the first, and then 0 is stored to the count. */
uint64_t smi_log_fault(const struct smf_areas *areas, uint64_t file_size,
                       const struct smf_undo *log, uint64_t count);

/* ---- chunks ---- */

/* Is that a chunk that begins at `page` and ends at `limit` at most, a page number? */
int smi_chunk_follows(const struct smf_chunk *chunk, uint64_t page, uint64_t limit,
                      const struct smf_areas *areas);

#endif
