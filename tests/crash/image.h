/* SPDX-License-Identifier: MIT */
/*
 * image.h - the heap file as a tracer sees it between two instructions, and copies of it.
 */
#ifndef TEST_CRASH_IMAGE_H
#define TEST_CRASH_IMAGE_H

#include <stdint.h>

#include "crashtest/image.h"

/* ---- the file of a stopped process ---- */

/* As smi_image_look() and smi_image_write(); a failure ends the test. */
int image_look(struct smi_image *image);
void image_write(struct smi_image *image, const char *path);
void image_copy(const char *from, const char *to);

/* The image at `path` becomes one that is found after a reboot, or else a copy as a backup makes
 * it. 1: it was in use, so whoever opens it has to be told. */
int image_move(const char *path, int reboot);

/* What is in flight in the image: a bit for each kind of log and record. */
uint64_t image_in_flight(const struct smi_image *image);

/* Damage that a mistake in the library would do to the image: 1 when there was something to
 * damage. */
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
    PLANT_LEFTOVER,
    PLANT_MARK,
    PLANT_CLAIM,
    PLANT_SWAPPED, /* made by image_write_swapped() */
    PLANT_UNMARKED, /* the last: it takes survivors to notice */
    PLANTS
};
extern const char *const planted_names[PLANTS];
int image_plant(const char *path, enum planted what);
/* To be called for each new image: what would be there if the last two stores had changed places.
 * 0: no two images come before this one. */
int image_write_swapped(struct smi_image *image, const char *path);
/* No image was there yet. */
void image_swap_begin(void);

#endif
