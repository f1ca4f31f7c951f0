/* SPDX-License-Identifier: MIT */
/*
 * map_hash.h - the hash of a map's keys.
 *
 * A 64 x 64 -> 128 bit product whose halves are xored mixes two words into one: each bit of the
 * result depends on all bits of both. The key is read 16 bytes at a time, each half xored with a
 * secret word or with what came before; its length takes part last. Keys of up to 16 bytes cost two
 * products.
 *
 * The secret is the map's: two random words, made with the map. So who chooses keys cannot choose
 * them to meet in one bucket without knowing the file. It is no cipher: who can time many calls
 * precisely may learn of it.
 */
#ifndef SMI_MAP_HASH_H
#define SMI_MAP_HASH_H

#include <stdint.h>
#include <string.h>

static inline uint64_t smi_map_mix(uint64_t a, uint64_t b)
{
    unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t smi_map_word(const uint8_t *from)
{
    uint64_t word;
    memcpy(&word, from, sizeof(word));
    return word;
}

static inline uint64_t smi_map_half(const uint8_t *from)
{
    uint32_t half;
    memcpy(&half, from, sizeof(half));
    return half;
}

static inline uint64_t smi_map_hash(const uint64_t seed[2], const void *key, size_t length)
{
    const uint8_t *at = key;
    uint64_t hash = seed[0], a, b;
    size_t left = length;
    for (; left > 16; at += 16, left -= 16)
        hash = smi_map_mix(smi_map_word(at) ^ seed[1], smi_map_word(at + 8) ^ hash);
    if (left >= 8) { /* the two words may overlap */
        a = smi_map_word(at);
        b = smi_map_word(at + left - 8);
    } else if (left >= 4) {
        a = smi_map_half(at);
        b = smi_map_half(at + left - 4);
    } else {
        a = left > 0 ? (uint64_t)at[0] << 16 | (uint64_t)at[left / 2] << 8 | at[left - 1] : 0;
        b = 0;
    }
    hash = smi_map_mix(a ^ seed[1], b ^ hash);
    return smi_map_mix(hash ^ 0x9e3779b97f4a7c15ull, seed[1] ^ length);
}

#endif
