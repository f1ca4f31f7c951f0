/* SPDX-License-Identifier: MIT */
/*
 * sized.h - a struct of the caller's that begins with its own size, so that both sides can be older
 * than the other.
 *
 * What a caller's struct lacks, because it is an older program's, counts as 0. What it has beyond
 * the library's, because it is a newer program's, must be 0: the library would not do what was
 * asked for.
 */
#ifndef SMI_SIZED_H
#define SMI_SIZED_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A size above this is no struct's: memory that is not the caller's would be read. */
#define SMI_SIZED_MOST 1024u

/* How the caller's struct fits one of `known` bytes, of which the first `least` were there from the
 * beginning: the bytes that both have, or -EINVAL. */
static inline int smi_sized(const void *given, size_t least, size_t known)
{
    size_t size;
    memcpy(&size, given, sizeof(size));
    if (size < least || size > SMI_SIZED_MOST || size % sizeof(uint64_t) != 0)
        return -EINVAL;
    for (size_t i = known; i < size; i++)
        if (((const uint8_t *)given)[i] != 0)
            return -EINVAL;
    return (int)(size < known ? size : known);
}

/* The caller's struct as one of the library's. 0 or -EINVAL. */
static inline int smi_sized_copy(void *own, const void *given, size_t least, size_t known)
{
    int both = smi_sized(given, least, known);
    if (both < 0)
        return both;
    memset(own, 0, known);
    memcpy(own, given, (size_t)both);
    memcpy(own, &known, sizeof(known));
    return 0;
}

#endif
