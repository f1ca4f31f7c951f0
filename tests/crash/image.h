/* SPDX-License-Identifier: MIT */
/*
 * image.h - the heap file as a tracer sees it between two instructions, and the judgement on a copy of it.
 */
#ifndef TEST_CRASH_IMAGE_H
#define TEST_CRASH_IMAGE_H

#include <stdint.h>

#include "crashtest/image.h"
#include "crashtest/judge.h"
#include "ops.h"

/* ---- the file of a stopped process ---- */

/* As smi_image_look() and smi_image_write(); a failure ends the test. */
int image_look(struct smi_image *image);
void image_write(struct smi_image *image, const char *path);

/* What is in flight in the image: a bit for each kind of log and record. */
uint64_t image_in_flight(const struct smi_image *image);

/* Damage that a missing log entry, link record or `pending` would do: 1 when there was something to damage. */
enum planted { PLANT_NOTHING, PLANT_LOG, PLANT_LINK, PLANT_PENDING, PLANT_SPARE, PLANTS };
extern const char *const planted_names[PLANTS];
int image_plant(const char *path, enum planted what);

/* ---- judgement ---- */

/* In a process of its own: open the image as the first to attach, check, describe (its blocks, the world's words,
 * roots), use, empty, close. */
void judge(const char *path, const struct op *op, struct smi_findings *out);

#endif
