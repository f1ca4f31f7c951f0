/* SPDX-License-Identifier: MIT */
/*
 * image.h - the heap file as a tracer sees it between two instructions, and copies of it.
 */
#ifndef TEST_CRASH_IMAGE_H
#define TEST_CRASH_IMAGE_H

#include <stdint.h>

#include "layout.h"
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
    int watch_locks; /* somebody stays attached: which of them are held makes another image */
    uint64_t held;   /* sum over those that are; in `sum` */
    uint8_t *past[2]; /* for image_write_swapped(): the images before, the latest first */
    uint64_t past_size[2];
};

/* Look at the file anew: 1 when it differs from what was seen before. The process is stopped. */
int image_look(struct image *image);
void image_forget(struct image *image);
void image_write(const struct image *image, const char *path);
void image_copy(const char *from, const char *to);

/* The image at `path` becomes one that is found after a reboot, or else a copy as a backup makes it. 1: it was in
 * use, so whoever opens it has to be told. */
int image_move(const char *path, int reboot);

/* What is in flight in the image: a bit for each kind of log and record. */
uint64_t image_in_flight(const struct image *image);

/* Damage that a mistake in the library would do to the image: 1 when there was something to damage. */
enum planted {
    PLANT_NOTHING,
    PLANT_LOG,
    PLANT_LINK,
    PLANT_PENDING,
    PLANT_SPARE,
    PLANT_SCRATCH,
    PLANT_BUILDING,
    PLANT_SLOT,
    PLANT_ENTRY,
    PLANT_SWAPPED, /* made by image_write_swapped() */
    PLANT_UNMARKED, /* the last: it takes survivors to notice */
    PLANTS
};
extern const char *const planted_names[PLANTS];
int image_plant(const char *path, enum planted what);
/* To be called for each new image: what would be there if the last two stores had changed places. 0: no two
 * images come before this one. */
int image_write_swapped(struct image *image, const char *path);

#endif
