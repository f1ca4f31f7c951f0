/* SPDX-License-Identifier: MIT */
/* mutate.c - libFuzzer's mutations and, every other time, one that knows what the bytes mean. */
#include "fuzz.h"
#include "heaps.h"

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size); /* libFuzzer's */

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    return seed % 2 ? heaps_mutate(data, size, max_size, seed)
                    : LLVMFuzzerMutate(data, size, max_size);
}
