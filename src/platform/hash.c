/* SPDX-License-Identifier: MIT */
/* hash.c - FNV-1a; see hash.h. */
#include "platform/hash.h"

uint64_t smi_hash(const void *bytes, size_t len)
{
    const uint8_t *p = bytes;
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ p[i]) * 0x100000001b3ull;
    return hash;
}
