/* SPDX-License-Identifier: MIT */
/* top.h - the parts of `top`: looks at a heap, and the terminal they are shown on. */
#ifndef INSPECT_TOP_H
#define INSPECT_TOP_H

#include "inspect.h"

/* ---- top_look.c ----------------------------------------------------------------------------- */

struct class_look {
    uint64_t slabs, free, cached; /* slots */
    uint64_t in_use;
    uint64_t refilled, flushed, waits; /* since the beginning */
};

struct thread_look {
    uint32_t process, tid, pid;
    int alive;
    char name[17];
    uint64_t slots, bytes; /* cached, without */
    struct smi_view_kept kept;
    uint32_t slot;
    uint64_t serial;                   /* of the claim of the slot */
    uint64_t refilled, flushed, large; /* since the claim */
    double motion;                     /* slots and large blocks each second, for the order */
};

/* What one look at the heap has seen. */
struct look {
    uint64_t at; /* nanoseconds; 0: none */
    uint8_t uuid[16];
    uint64_t inode, device;
    uint64_t size, max_size, file_size;
    uint64_t allocated, cached, central_free, free;
    uint64_t kept; /* of what is cached, in large blocks */
    uint64_t takes, gives, grows, waits, page_waits, repairs;
    uint32_t processes;
    uint64_t poison;
    struct class_look classes[SMF_CLASSES];
    struct thread_look threads[SMF_THREADS];
    uint32_t thread_count;
};

/* Open in->path anew and look. 0, or a code whose message is in shmalloc_errmsg(). */
int inspect_take_look(struct inspect *in, struct look *look);

/* ---- top_terminal.c ------------------------------------------------------------------------- */

/* Show pictures on the terminal, if standard output is one that can: 1, else 0. Every exit gives it
 * back, inspect_restore_terminal at once. */
int inspect_take_terminal(void);
void inspect_restore_terminal(void);

/* Lines of the terminal; 0 while it is not taken. */
unsigned inspect_terminal_rows(void);

/* Let signals that would end the process end the next inspect_wait. */
void inspect_catch_signals(void);

/* Wait until a time of smi_os_clock, a key or a signal. 1: to end; 0: to look again. */
int inspect_wait(uint64_t until);

#endif
