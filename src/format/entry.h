/* SPDX-License-Identifier: MIT */
/*
 * entry.h - an entry of a transaction's log: one rule for those who undo it, look at it and repair
 * it.
 *
 * Each value is loaded once and compared with its bounds.
 */
#ifndef SMI_ENTRY_H
#define SMI_ENTRY_H

#include "format/layout.h"

/* An entry, as it was read. */
struct smi_logged {
    uint64_t at;    /* bytes from the chunk's start to its head */
    uint64_t bytes; /* that it takes */
    uint32_t type;  /* enum smf_entry_type */
    uint32_t len;   /* of its data */
    uint64_t ref;
};

/* What is wrong with the entry that begins `at` bytes into a chunk whose entries end at `end`, in
 * words; NULL: nothing, and *out has it. The second finds the one that ends at `end`, in a chunk
 * whose entries begin at `first`. */
const char *smi_entry_read(const void *chunk, uint64_t at, uint64_t end, struct smi_logged *out);
const char *smi_entry_before(const void *chunk, uint64_t first, uint64_t end,
                             struct smi_logged *out);

/* Where entries begin in chunk `i`, bytes from its start. */
static inline uint64_t smi_log_first(uint64_t i)
{
    return i == 0 ? sizeof(struct smf_log) : 0;
}

#endif
