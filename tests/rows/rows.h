/* SPDX-License-Identifier: MIT */
/*
 * rows.h - what the proofs of the feature rows need beside support.h: a look at spans and storage,
 * counts of system calls, page faults and mappings, small file systems.
 *
 * Each program here holds the proofs of some rows of the table of features in src/README.md; the
 * name of a test begins with the number of its row. A proof ends with a sound heap.
 */
#ifndef TEST_ROWS_H
#define TEST_ROWS_H

#include <stdio.h>

#include <criterion/criterion.h>

#include "handle/handle.h"
#include "support.h"
#include "look/view.h"
#include "view_check.h"

enum { NOT_POSSIBLE = 77 }; /* exit status of a child that may not do what it is to show */

/* A suite whose tests get a directory and open f.heap as they need it. */
#define ROWS_SUITE(seconds)                                                                        \
    static struct fixture f;                                                                       \
    static void rows_begin(void)                                                                   \
    {                                                                                              \
        fixture_begin(&f);                                                                         \
    }                                                                                              \
    static void rows_end(void)                                                                     \
    {                                                                                              \
        if (f.heap)                                                                                \
            must_be_sound(f.heap);                                                                 \
        fixture_end(&f);                                                                           \
    }                                                                                              \
    TestSuite(rows, .init = rows_begin, .fini = rows_end, .timeout = (seconds))

/* Leave a test that is not possible here. Criterion would leave out the suite's end. */
#define ROWS_SKIP(...)                                                                             \
    do {                                                                                           \
        rows_end();                                                                                \
        cr_skip_test(__VA_ARGS__);                                                                 \
    } while (0)

/* Move a fixture without a heap to a disk, where page cache and storage differ. */
void rows_on_disk(struct fixture *f);

/* A new heap with these options; 0 means the default of each. */
shmalloc_heap *rows_heap(const char *path, uint64_t initial_size, uint64_t max_size,
                         unsigned arenas);

/* ---- what the file holds ---- */

uint64_t rows_storage(const char *path); /* bytes of the file system behind the file */

/* A settled view of the file, for others than this process to have written. Finish it. */
void rows_view(struct smi_view *view, const char *path);

/* What lies at `ref`: an enum smf_page_kind. */
int rows_kind(const char *path, shmalloc_ref ref);

/* All free spans as text, "first page+pages " each; free() it. */
char *rows_free_spans(const char *path);

/* ---- what the process costs ---- */

/* A field of /proc/self/smaps in bytes ("Rss", "Pss", ..), summed over the mappings in [from, from
 * + len). */
uint64_t rows_mapped(const void *from, uint64_t len, const char *field);
unsigned rows_mappings(void); /* number of mappings of this process */

/* System calls between two marks, by number. */
struct rows_calls {
    uint64_t total;
    uint64_t of[1024];
};
void rows_mark_begin(void);
void rows_mark_end(void);
/* Run `fn` in a traced child and count its calls between the marks. Returns as run_child();
 * NOT_POSSIBLE when tracing is not permitted. */
int rows_count_calls(worker_fn *fn, void *arg, struct rows_calls *out);
/* Calls that change mappings or storage. */
uint64_t rows_storage_calls(const struct rows_calls *calls);

/* ---- small file systems ---- */

/* In a child: mount a file system of `bytes` at `where`, which the child alone sees and which ends
 * with it. `type` is "tmpfs", or one that mkfs.TYPE makes in the file `image`. 0, or NOT_POSSIBLE
 * with a word on stderr. */
int rows_mount(const char *type, uint64_t bytes, const char *image, const char *where);

/* Take all the room of a file system; the file `path` holds it. */
void rows_fill(const char *path);

/* ---- little memory ---- */

/* Make a control group with a memory limit, in either version's tree; its directory, to be removed,
 * goes to `group`. -1: not here. The calling process joins it, for good: 0 or a negated errno. */
int rows_make_group(char group[128], uint64_t limit);
int rows_join_group(const char *group);

#endif
