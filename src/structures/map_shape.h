/* SPDX-License-Identifier: MIT */
/*
 * map_shape.h - where a key belongs in a stripe of a map, and where the stripe's buckets lie.
 *
 * A stripe of n buckets, 2^l <= n < 2^(l+1): a key whose hash without the 8 bits that chose the
 * stripe is h belongs to bucket h mod 2^(l+1), or if there is none yet, to that without its highest
 * bit. So one bucket more takes keys from one other bucket only (linear hashing).
 *
 * All that comes from the file is compared with the heap's bounds before it is followed; what does
 * not fit is NULL.
 */
#ifndef SMI_MAP_SHAPE_H
#define SMI_MAP_SHAPE_H

#include <string.h>

#include "handle/handle.h"

#if defined(__SSE2__) && !defined(__SANITIZE_THREAD__)
#include <emmintrin.h>
#define SMI_MAP_SSE2 1
#endif

#define SMI_MAP_FULL 4u /* entries a bucket, above which a put splits */

static inline uint64_t smi_map_pad(uint64_t length)
{
    return (length + 7) & ~7ull;
}

/* ---- hashes ---- */

static inline uint64_t smi_map_rest(uint64_t hash)
{
    return hash >> 8;
}

static inline uint64_t smi_map_tag(uint64_t hash)
{
    return (smi_map_rest(hash) >> 8 & 0x7ffff) | 0x80000;
}

static inline unsigned smi_map_log2(uint64_t n)
{
    return 63u - (unsigned)__builtin_clzll(n);
}

/* The bucket of a hash among n, at least 1. */
static inline uint64_t smi_map_bucket_of(uint64_t hash, uint64_t n)
{
    unsigned level = smi_map_log2(n);
    uint64_t bucket = smi_map_rest(hash) & ((2ull << level) - 1);
    return bucket < n ? bucket : bucket & ((1ull << level) - 1);
}

/* ---- words ---- */

static inline uint64_t smi_map_word_for(uint64_t ref, uint64_t hash)
{
    return ref | smi_map_tag(hash) << SMF_MAP_TAG_SHIFT;
}

/* Which words of the bucket have that tag (0: which are 0). A hint: whoever uses a word loads it
 * again. */
static inline unsigned smi_map_matches(const struct smf_bucket *bucket, uint64_t tag)
{
#ifdef SMI_MAP_SSE2
    const __m128i *from = (const __m128i *)(const void *)bucket;
    __m128 a = _mm_castsi128_ps(_mm_load_si128(from)),
           b = _mm_castsi128_ps(_mm_load_si128(from + 1));
    __m128 c = _mm_castsi128_ps(_mm_load_si128(from + 2)),
           d = _mm_castsi128_ps(_mm_load_si128(from + 3));
    __m128i want = _mm_set1_epi32((int)tag); /* in bits 12..31 of the upper half of each word */
    __m128i low = _mm_srli_epi32(_mm_castps_si128(_mm_shuffle_ps(a, b, 0xdd)), 12);
    __m128i high = _mm_srli_epi32(_mm_castps_si128(_mm_shuffle_ps(c, d, 0xdd)), 12);
    unsigned first = (unsigned)_mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(low, want)));
    unsigned rest = (unsigned)_mm_movemask_ps(_mm_castsi128_ps(_mm_cmpeq_epi32(high, want)));
    return (first | rest << 4) & 0x7f;
#else
    unsigned mask = 0;
    for (unsigned i = 0; i < SMF_MAP_SLOTS; i++)
        mask |= (unsigned)(SMI_LOAD(&bucket->word[i]) >> SMF_MAP_TAG_SHIFT == tag) << i;
    return mask;
#endif
}

/* ---- segments ---- */

static inline uint32_t smi_map_segment_of(uint64_t bucket, uint64_t *offset)
{
    if (bucket >= 1024) {
        *offset = bucket % 1024;
        return (uint32_t)(7 + bucket / 1024);
    }
    if (bucket < 8) {
        *offset = bucket;
        return 0;
    }
    unsigned level = smi_map_log2(bucket);
    *offset = bucket - (1ull << level);
    return level - 2;
}

static inline uint32_t smi_map_segment_buckets(uint32_t segment)
{
    return segment == 0 ? 8 : segment <= 7 ? 4u << segment : 1024;
}

/* Buckets that so many segments have. */
static inline uint64_t smi_map_buckets_in(uint64_t segments)
{
    return segments == 0 ? 0 : segments <= 8 ? 4ull << segments : 1024 * (segments - 7);
}

/* ---- bounds ---- */

static inline uint64_t smi_ref_in(const shmalloc_heap *heap, const void *address)
{
    return (uint64_t)((uintptr_t)address - (uintptr_t)heap->base);
}

/* `length` bytes at `ref` for who reads without a lock: inside the heap as it is now, no matter
 * what lies there. */
static inline const void *smi_map_see(const shmalloc_heap *heap, uint64_t ref, uint64_t length)
{
    uint64_t size = smi_size(heap);
    return SMI_LIKELY(ref != 0 && ref % 8 == 0 && ref < size && length <= size - ref)
               ? smi_at(heap, ref)
               : NULL;
}

/* The same for who may store there: not in the fixed areas. */
static inline void *smi_map_at(const shmalloc_heap *heap, uint64_t ref, uint64_t length)
{
    return SMI_LIKELY(ref % 8 == 0 && smi_in_heap(heap, ref, length)) ? smi_at(heap, ref) : NULL;
}

static inline struct smf_bucket *smi_map_chained(const shmalloc_heap *heap, uint64_t ref)
{
    return SMI_LIKELY(ref % 64 == 0) ? smi_map_at(heap, ref, sizeof(struct smf_bucket)) : NULL;
}

/* Bucket `number` of the segments that `dir` names. */
static inline struct smf_bucket *smi_map_bucket_at(const shmalloc_heap *heap, uint64_t dir,
                                                   uint64_t number)
{
    uint64_t offset;
    uint32_t segment = smi_map_segment_of(number, &offset);
    const uint64_t *ref = smi_map_see(heap, dir + 8ull * segment, 8);
    uint64_t at = ref ? SMI_LOAD(ref) : 0;
    return SMI_LIKELY(at != 0) ? smi_map_chained(heap, at + offset * sizeof(struct smf_bucket))
                               : NULL;
}

/* ---- entries ---- */

static inline uint64_t smi_map_klen(uint64_t meta)
{
    return meta >> 32 & 0xffff;
}

static inline uint64_t smi_map_vlen(uint64_t meta)
{
    return meta & 0xffffffff;
}

static inline uint64_t smi_map_meta(uint64_t klen, uint64_t vlen)
{
    return klen << 32 | vlen;
}

static inline uint8_t *smi_map_key(const struct smf_map_entry *entry)
{
    return (uint8_t *)(uintptr_t)(entry + 1);
}

static inline uint8_t *smi_map_value(const struct smf_map_entry *entry, uint64_t meta)
{
    return smi_map_key(entry) + smi_map_pad(smi_map_klen(meta));
}

static inline struct smf_map_pending *smi_map_pending(const struct smf_map_entry *entry,
                                                      uint64_t meta)
{
    return (struct smf_map_pending *)(void *)(smi_map_value(entry, meta) +
                                              smi_map_pad(smi_map_vlen(meta)));
}

/* Bytes of an entry with that in `meta`. */
static inline uint64_t smi_map_entry_bytes(uint64_t meta)
{
    return sizeof(struct smf_map_entry) + smi_map_pad(smi_map_klen(meta)) +
           smi_map_pad(smi_map_vlen(meta)) +
           (meta & SMF_MAP_PENDING ? sizeof(struct smf_map_pending) : 0);
}

/* The entry that a word names; `*meta` is its word of that name, loaded once, and all of the entry
 * lies in the heap. */
static inline struct smf_map_entry *smi_map_entry_at(const shmalloc_heap *heap, uint64_t word,
                                                     uint64_t *meta)
{
    uint64_t ref = word & SMF_MAP_REF;
    struct smf_map_entry *entry = smi_map_at(heap, ref, sizeof(*entry));
    *meta = 0;
    if (!entry)
        return NULL;
    *meta = __atomic_load_n(&entry->meta,
                            __ATOMIC_ACQUIRE); /* pairs with the release that clears the flags */
    return smi_in_heap(heap, ref, smi_map_entry_bytes(*meta)) ? entry : NULL;
}

/* ---- bytes that others may write to meanwhile ---- */

/* What a reader without a lock copies or compares counts only if its section was not ousted, so a
 * race is harmless. The thread sanitizer is told so by atomic loads and stores. */
#ifdef __SANITIZE_THREAD__
static inline void smi_map_copy(void *to, const void *from, size_t length)
{
    for (size_t i = 0; i < length; i++)
        __atomic_store_n((uint8_t *)to + i,
                         __atomic_load_n((const uint8_t *)from + i, __ATOMIC_RELAXED),
                         __ATOMIC_RELAXED);
}

static inline int smi_map_equal(const void *shared, const void *own, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (__atomic_load_n((const uint8_t *)shared + i, __ATOMIC_RELAXED) !=
            ((const uint8_t *)own)[i])
            return 0;
    return 1;
}
#else
static inline void smi_map_copy(void *to, const void *from, size_t length)
{
    if (length > 0) /* one of them may be NULL else */
        memcpy(to, from, length);
}

static inline int smi_map_equal(const void *shared, const void *own, size_t length)
{
    return memcmp(shared, own, length) == 0;
}
#endif

#endif
