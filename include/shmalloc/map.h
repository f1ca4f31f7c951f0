/* SPDX-License-Identifier: MIT */
/**
 * @file map.h A hash map in a heap, shared by processes: keys and values are bytes.
 *
 *     shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
 *     shmalloc_map map;
 *     if (shmalloc_map_open_root(heap, "sessions", &options, &map) < 0 ||
 *         shmalloc_map_put(&map, "alice", 5, &session, sizeof(session)) < 0)
 *         return fprintf(stderr, "%s\n", shmalloc_errmsg()), 1;
 *
 * **Kills.** Each call that changes the map is crash-atomic: a process that is killed in the middle
 * leaves the map with the change or without it. Whoever changes that part of the map next mends
 * what was under way; nothing leaks.
 *
 * **Readers** take no lock. A process that is stopped or dead does not hold them up. They see a
 * value as one call put it, never half of it. Only a reader that was overtaken three times by what
 * writers free takes the lock of the key's stripe.
 *
 * **Writers** lock one of the map's stripes, which the key's hash chooses. So two writers wait for
 * each other only in the same stripe; a stopped writer holds that stripe.
 *
 * **Growth** needs no size given and has no long pause: a put that makes a stripe too full splits
 * one of its buckets. A map does not shrink before it is freed.
 *
 * **Safety.** Every call may be made by any thread of any process that has the heap open, at the
 * same time as any other. A shmalloc_map is a plain value without resources: it may be copied, used
 * by several threads and in a forked child, and needs no closing. It is good until its heap is
 * closed or its map freed; of a freed map it answers SHMALLOC_EGONE.
 *
 * **Results.** 0 or more is success, a negative code failure, which shmalloc_errmsg() explains. A
 * failed call changed nothing. Beside what is listed, calls answer the codes of
 * shmalloc_ref_alloc(), and
 *
 *   -EINVAL           a pointer is NULL, or the map was never opened
 *   -ENAMETOOLONG     a key of 0 or more than SHMALLOC_MAP_KEY_MAX bytes
 *   -EMSGSIZE         a value of more than SHMALLOC_MAP_VALUE_MAX bytes
 *   SHMALLOC_EGONE    the map was freed
 *   SHMALLOC_ECORRUPT the map is damaged; shmalloc-inspect check tells more
 */
#ifndef SHMALLOC_MAP_H
#define SHMALLOC_MAP_H

#include <shmalloc/shmalloc.h>

#ifdef __cplusplus
extern "C" {
#endif

/** Longest key and value, bytes. */
#define SHMALLOC_MAP_KEY_MAX 65535u
#define SHMALLOC_MAP_VALUE_MAX 0x7fffffffu

/** Type of the roots that name maps. */
#define SHMALLOC_MAP_TYPE 0xff03u

/** A map, open. Zeros are none. */
typedef struct shmalloc_map {
    shmalloc_heap *heap;
    shmalloc_ref ref; /**< of the map in the heap */
    uint64_t opaque[6]; /**< the library's */
} shmalloc_map;

enum shmalloc_map_flag {
    /** Each value is 8 bytes: the ref of another structure of this library, or 0.
     * shmalloc_map_free() frees those, too.
     *  Replacing or removing a value leaves its structure to the caller. */
    SHMALLOC_MAP_NESTED = 1,
};

typedef struct shmalloc_map_options {
    size_t size; /**< sizeof(shmalloc_map_options) */
    uint32_t stripes; /**< writers that do not wait for each other: a power of two up to 256; 0 =
                           64. Each takes 192 bytes at once, and some 650 from its first entry on.
                           1 is right for many small maps. */
    uint32_t flags; /**< of shmalloc_map_flag */
} shmalloc_map_options;
#define SHMALLOC_MAP_OPTIONS_INIT          \
    {                                      \
        sizeof(shmalloc_map_options), 0, 0 \
    }

/**
 * Make an empty map and store its ref to *ref, in one crash-atomic step if that word lies in the
 * heap. `options` NULL: as SHMALLOC_MAP_OPTIONS_INIT. What *ref held is not looked at.
 * @return 0; -EINVAL for options that are none.
 */
SHMALLOC_API int shmalloc_map_create(shmalloc_heap *heap, const shmalloc_map_options *options,
                                     shmalloc_ref *ref);

/** Open the map at `ref`. @return 0; SHMALLOC_EBADREF: no map of this heap begins there;
 * SHMALLOC_EGONE: it was freed. */
SHMALLOC_API int shmalloc_map_open(shmalloc_heap *heap, shmalloc_ref ref, shmalloc_map *map);

/**
 * Open the map that the root `name` names. If there is no such root, one is made with an empty map
 * of those options, in one crash-atomic step; of several who do that at once, all get the same map.
 * `options` NULL: it must exist. The options of a map that exists stay as they are.
 * @return 0 opened, 1 made; SHMALLOC_ENOROOT; SHMALLOC_ETYPE: the root names something else.
 */
SHMALLOC_API int shmalloc_map_open_root(shmalloc_heap *heap, const char *name,
                                        const shmalloc_map_options *options, shmalloc_map *map);

/**
 * Free the map that *ref names and all that it holds, and store 0 to *ref. 0 at *ref does nothing.
 *
 * If *ref lies in the heap, *ref becomes 0 and the map is freed in one crash-atomic step; what it
 * holds goes back in many steps after that. A process that is killed meanwhile leaves the rest to
 * the next call that makes or frees a map. Calls on the map that are under way in other threads end
 * with SHMALLOC_EGONE or as if they had come before.
 * @return 0; SHMALLOC_EBADREF; SHMALLOC_EGONE: it was freed already; SHMALLOC_EINTX inside a
 *         transaction of the calling thread.
 */
SHMALLOC_API int shmalloc_map_free(shmalloc_heap *heap, shmalloc_ref *ref);

/** Unbind the root `name` and free its map. Codes of shmalloc_map_free(), SHMALLOC_ENOROOT,
 * SHMALLOC_ETYPE. */
SHMALLOC_API int shmalloc_map_free_root(shmalloc_heap *heap, const char *name);

/**
 * Copy the value of `key` to `buf`, at most `cap` bytes of it. *len, if `len` is not NULL, becomes
 * its whole length.
 * @return 1 found, 0 there is none.
 */
SHMALLOC_API int shmalloc_map_get(const shmalloc_map *map, const void *key, size_t klen, void *buf,
                                  size_t cap, size_t *len);

/** One question of shmalloc_map_get_many(). */
typedef struct shmalloc_map_item {
    const void *key;
    size_t klen;
    void *buf;
    size_t cap;
    size_t len; /**< answer: length of the value */
    int found; /**< answer: 1 found, 0 there is none */
} shmalloc_map_item;

/** shmalloc_map_get() of `count` keys, faster than one by one: what one has to wait for memory for,
 * the others use. Each answer
 *  is of an instant of its own. @return how many were found. */
SHMALLOC_API int64_t shmalloc_map_get_many(const shmalloc_map *map, shmalloc_map_item *items,
                                           size_t count);

/** The key gets the value. @return 1 the key is new, 0 its value was replaced. */
SHMALLOC_API int shmalloc_map_put(const shmalloc_map *map, const void *key, size_t klen,
                                  const void *value, size_t vlen);

/** The same if there is no such key. @return 1 it was put, 0 there is one: nothing changed. */
SHMALLOC_API int shmalloc_map_put_new(const shmalloc_map *map, const void *key, size_t klen,
                                      const void *value, size_t vlen);

/**
 * The same if the key's value is `elen` bytes equal to `expected`; `expected` NULL: if there is no
 * such key.
 * @return 1 it was put, 0 the value differs: nothing changed.
 */
SHMALLOC_API int shmalloc_map_put_if(const shmalloc_map *map, const void *key, size_t klen,
                                     const void *expected, size_t elen, const void *value,
                                     size_t vlen);

/**
 * Add `delta` to the counter of that key, a value of 8 bytes (int64_t); a key that is new begins at
 * 0. *now, if `now` is not NULL, becomes the sum.
 * @return 1 the key is new, 0 it was there; -EINVAL: its value has another length; -ERANGE: the sum
 * would not fit.
 */
SHMALLOC_API int shmalloc_map_add(const shmalloc_map *map, const void *key, size_t klen,
                                  int64_t delta, int64_t *now);

/** Remove the key. @return 1 removed, 0 there was none. */
SHMALLOC_API int shmalloc_map_remove(const shmalloc_map *map, const void *key, size_t klen);

/** Called by shmalloc_map_each(): 0 to go on, anything else ends it. Key and value are copies that
 * end with the call. */
typedef int shmalloc_map_visit(const void *key, size_t klen, const void *value, size_t vlen,
                               void *arg);

/**
 * Visit all entries, in no order. No lock is held, so others may change the map meanwhile, as may
 * `visit`: a key that is there all the time is visited once, one that comes or goes meanwhile once
 * or not at all.
 * @return 0, or what `visit` returned; -ENOMEM.
 */
SHMALLOC_API int shmalloc_map_each(const shmalloc_map *map, shmalloc_map_visit *visit, void *arg);

/** The number of entries, as of about now, those of open transactions included. */
SHMALLOC_API int64_t shmalloc_map_count(const shmalloc_map *map);

#ifdef __cplusplus
}
#endif

#endif
