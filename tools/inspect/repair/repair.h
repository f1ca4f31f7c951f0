/* SPDX-License-Identifier: MIT */
/*
 * repair.h - bring a damaged heap that nobody uses back to a state that passes the check.
 *
 * A repair is planned on a private copy of the metadata (a view): what is in flight is settled,
 * truths that contradict each other are resolved where a safe rule exists, everything derived is
 * built anew, and the full check looks at the result. Only a plan without obstacles can be carried
 * out. So a repair that does not lead to a sound heap writes nothing.
 *
 * Safe means: as far as anything in the file tells, no block of a user is handed out twice or lost.
 * Where it cannot be known whether somebody has a slot or page, it stays allocated. The rules stand
 * in src/README.md.
 */
#ifndef SMI_REPAIR_H
#define SMI_REPAIR_H

#include "look/view.h"

/* The order in which words reach the file. A repair that is killed between two of them can be
 * planned and carried out again: what a later stage was derived from is still there. */
enum smi_repair_stage {
    SMI_SETTLED, /* logs undone, links resolved, and only then disarmed */
    SMI_VOIDED,  /* counts that vouch for something which the next stage changes step by step */
    SMI_TRUTHS,
    SMI_DERIVED,
    SMI_LAST, /* final values of words that changed twice */
    SMI_REPAIR_STAGES
};

struct smi_repair_word {
    uint64_t ref, value;
};

/* One thing that is done, or, among the obstacles, that cannot be: which invariant, where, what. */
struct smi_repair_step {
    char invariant[4];
    uint64_t ref;
    char *text;
};

struct smi_repair_steps {
    struct smi_repair_step *at;
    size_t count, room;
};

struct smi_repair_words {
    struct smi_repair_word *at;
    size_t count, room;
};

/* Pages with one purpose, as the repair has decided. */
struct smi_piece {
    uint32_t page, count;
    uint8_t kind; /* enum smf_page_kind */
    uint8_t size_class, arena;
    uint8_t was_free; /* the file says so too */
    uint8_t guessed;  /* hardly anything said so */
    uint8_t torn;     /* slab: a word of its bitmap had bits for slots and others that stand for
                         none */
};

struct smi_pieces {
    struct smi_piece *at;
    size_t count, room;
};

struct smi_repair {
    struct smi_view view;     /* the heap as it will be; `progress` may be set before planning goes
                                 on */
    uint64_t file_size;       /* as found; view.file_size if the file has to be lengthened */
    struct smi_repair_steps steps, obstacles;
    struct smi_repair_words words[SMI_REPAIR_STAGES];
    struct smi_repair_words unstored; /* pages (ref, bytes) that are in use and said to have no
                                         storage */
    struct smi_pieces pieces;         /* ascending, every page of every chunk's data once */
    int was_clean;                    /* the heap's mark and thread slots say that nothing is in
                                         flight */
    int failed;                       /* out of memory */
};

/* Called now and then while something long goes on. */
typedef void smi_repair_progress_fn(const char *doing, uint64_t done, uint64_t all,
                                    const char *what);

/* Keep everybody else out of the heap in `fd` until that is closed: 0, or SHMALLOC_EBUSY when
 * somebody uses it, or an errno, with a message. */
int smi_repair_claim(int fd, const char *path);

/* Look at the heap in `fd` and plan its repair. Nobody else may be changing it. Returns 0: steps
 * and obstacles are known, and a plan without steps and obstacles says that the heap is sound.
 * Otherwise a code of smi_layout_validate when the file is no heap that could be used here,
 * -ENOMEM, an errno of reading. Finish it in any case. */
int smi_repair_plan(struct smi_repair *repair, int fd, const char *path,
                    void (*progress)(const struct smi_view *view));

/* Carry out a plan without obstacles. The heap is claimed through `fd`. It stays poisoned until all
 * is written, synced, read again and found sound; then it is as after a machine that stopped: to be
 * taken into use by shmalloc_recover. Returns 0, or a negative code with a message. */
int smi_repair_apply(struct smi_repair *repair, int fd, smi_repair_progress_fn *progress);

void smi_repair_finish(struct smi_repair *repair);

/* Copy the file in `fd`, whose repair is planned, to the new file `to`, and sync it. Holes stay
 * holes; what has storage according to the plan has it in the copy, written or not, where the file
 * system can do that. -EEXIST, -ENOSPC and other errnos, with a message; then there is no such
 * file. */
int smi_repair_save(struct smi_repair *repair, int fd, const char *to,
                    smi_repair_progress_fn *progress);

#endif
