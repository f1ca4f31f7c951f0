/* SPDX-License-Identifier: MIT */
/*
 * scene.h - what is in a heap before a measurement: objects that live, processes that have it open.
 */
#ifndef BENCH_SCENE_H
#define BENCH_SCENE_H

#include "adapter.h"

/* Start options->attached processes that open the heap, use it once and then wait; they end in
 * order when this process ends, however it ends. Call it before this process opens the heap. */
void scene_attach(const struct bench_options *options);

/* Allocate options->objects blocks that stay; every byte is written. */
void scene_objects(const struct bench_options *options);

#endif
