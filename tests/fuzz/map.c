/* SPDX-License-Identifier: MIT */
/*
 * map.c - fuzz target: bytes that change words of a map, which is then used, checked and freed.
 *
 * Bit 0 of the first byte: with pending entries. Then 4 bytes for each change: which word (2
 * bytes), how (1), what with (1).
 */
#include <string.h>

#include "fuzz.h"
#include "map_damage.h"
#include "support.h"

enum {
    MOST_CHANGES = 16
};

static uint64_t changed(const struct map_damage *d, const uint64_t *word, uint8_t how, uint8_t what)
{
    switch (how % 6) {
    case 0:
        return *word ^ 1ull << what % 64;
    case 1:
        return *word + (int8_t)what;
    case 2:
        return what;
    case 3:
        return *d->word[what * 31u % d->words]; /* that of another word */
    case 4: /* the ref of another part */
        return (uint64_t)((const uint8_t *)d->word[what * 31u % d->words] -
                          (const uint8_t *)shmalloc_ptr(d->heap, 8)) +
               8;
    default:
        return UINT64_MAX >> what % 64;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct map_damage d;
    if (size < 5)
        return 0;
    map_damage_begin(&d, data[0] & 1);
    for (size_t at = 1, changes = 0; at + 4 <= size && changes < MOST_CHANGES; at += 4, changes++) {
        uint64_t *word = d.word[(data[at] | data[at + 1] << 8) % d.words];
        *word = changed(&d, word, data[at + 2], data[at + 3]);
    }
    map_damage_use(&d);
    map_damage_end(&d);
    return 0;
}
