/* SPDX-License-Identifier: MIT */
/*
 * image.h - the heap file as a tracer sees it between two instructions, and the judgement on a copy of it.
 */
#ifndef TEST_CRASH_IMAGE_H
#define TEST_CRASH_IMAGE_H

#include <stdint.h>

#include "layout.h"
#include "ops.h"

/* ---- the file of a stopped process ---- */

enum { IMAGE_MAX = 16 << 20, IMAGE_PAGES = IMAGE_MAX / 4096 };

enum { IMAGE_RANGES = 64 };
struct image_range {
    uint64_t start, end;
};

struct image {
    const char *path;
    int fd;          /* -1: there is no file yet */
    uint64_t size, device, inode;
    uint8_t *file;   /* mapping of the file, longer than it */
    uint8_t *copy;   /* what was seen last */
    uint64_t hashes[IMAGE_PAGES];
    uint64_t sum;    /* of all pages' hashes and the size: says whether an image was seen before */
    uint64_t touched; /* 1: bytes of large blocks or free spans changed since anything else did; in `sum` */
    struct image_range range[IMAGE_RANGES]; /* where the metadata is */
    unsigned ranges;
    uint64_t looks;
    uint64_t locks, locks_end; /* mutexes are made anew by the first attacher, so they are left out */
};

/* Look at the file anew: 1 when it differs from what was seen before. The process is stopped. */
int image_look(struct image *image);
void image_forget(struct image *image);
void image_write(const struct image *image, const char *path);

/* What is in flight in the image: a bit for each kind of log and record. */
uint64_t image_in_flight(const struct image *image);

/* Damage that a missing log entry, link record or `pending` would do: 1 when there was something to damage. */
enum planted { PLANT_NOTHING, PLANT_LOG, PLANT_LINK, PLANT_PENDING, PLANT_SPARE, PLANTS };
extern const char *const planted_names[PLANTS];
int image_plant(const char *path, enum planted what);

/* ---- judgement ---- */

/* A heap in words: its blocks, the world's words, roots. Equal heaps have equal texts. In memory that the
 * judging process shares. */
struct findings {
    char text[256 << 10];
    size_t used;
    char why[1024]; /* not empty: what is wrong with the image */
};

/* In a process of its own: open the image as the first to attach, check, describe, use, empty, close. */
void judge(const char *path, const struct op *op, struct findings *out);

/* Do the lines of `text` lie between `before` and `after`: in both or either, and all that both have? */
int is_between(const char *text, const char *before, const char *after);
/* Print the lines that only one of them has. */
void print_difference(const char *was, const char *is);

#endif
