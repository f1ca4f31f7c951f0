/* SPDX-License-Identifier: MIT */
/*
 * check.h - the invariants, as code: walks a view, never writes, never takes a lock.
 */
#ifndef SMI_CHECK_H
#define SMI_CHECK_H

#include "look/view.h"

/* What must hold, by number; the last entry's id is NULL. */
struct smi_invariant {
    const char *id;
    const char *text;
};
extern const struct smi_invariant smi_invariants[];

/* What is reported that is no damage: the number that stands for the invariant when a root names no
 * block. The program freed it, or bound the root before refs were verified; the heap's own data are
 * sound all the same. */
#define SMI_DANGLING "U1"
#define SMI_DANGLING_TEXT                                                                          \
    "a root names the first byte of a block that a program has, or nothing (this is no damage)"

struct smi_check_result {
    uint64_t violations; /* number reported */
    uint64_t dangling;   /* number of roots that name no block, reported as SMI_DANGLING */
    uint64_t pages, slabs, blocks, free_runs, cached_slots, roots; /* number of things looked at */
    uint64_t in_flight; /* steps of stopped, dead or running threads, resolved in the view */
    uint64_t left_out;  /* live: disagreements that a further look did not confirm */
    uint32_t walks;     /* number of looks */
    int moving;         /* the heap changed while it was read */
};

/*
 * Check everything. `live` says that other threads may be changing the heap: then a heap in which
 * something disagrees is looked at again, up to three times and more often if a look was torn, and
 * a disagreement is reported only if every look shows it and what it is about stood still in two.
 *
 * Returns 0 when the walk could be completed, also with violations; -ENOMEM; another negated errno
 * when the file cannot be read; SHMALLOC_ECORRUPT when the damage forbids to walk on (reported as a
 * violation, too); other codes of smi_layout_validate.
 */
int smi_check(struct smi_view *view, int live, smi_report_fn *report, void *arg,
              struct smi_check_result *result);

/* The first violation that a check reports, in words; the others are counted. Zeros to begin
 * with. */
struct smi_finding {
    uint64_t count;
    char text[320];
};

/* A smi_report_fn that fills the struct smi_finding at `arg`, and leaves out what is no damage. */
void smi_note_finding(const char *invariant, uint64_t ref, const char *text, void *arg);

/* What is checked besides, at the end of a look, on the settled view: structures.c has set it.
 * -ENOMEM, or 0. */
typedef int smi_check_more_fn(struct smi_view *view, smi_report_fn *report, void *arg);
extern smi_check_more_fn *smi_check_structures;

/* SHMALLOC_ECORRUPT, with the first violation as message, unless there is none. */
int smi_check_or_error(struct smi_view *view);

#endif
