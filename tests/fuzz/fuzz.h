/* SPDX-License-Identifier: MIT */
/*
 * fuzz.h - what a fuzz target is: a function that takes any bytes and comes back.
 *
 * Each target is one source file with these functions, as libFuzzer and AFL++ call them. replay.c
 * calls them for inputs that were saved. A finding is a signal, a failed must(), a report of a
 * sanitizer, or an input that takes longer than its time.
 */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* libFuzzer only: change data[0 .. size - 1] in place; the new size, at most max_size. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

#endif
