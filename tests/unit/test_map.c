/* SPDX-License-Identifier: MIT */
/*
 * test_map.c - shmalloc_map in one process: what calls answer, growth, bad input, damage.
 *
 * Would fail if a value were another key's or another put's, a key lost or doubled by a split, a
 * counter wrong, the number of entries not theirs, a block lost, an error unanswered, or if damage
 * led to a fault, a loop or a wrong answer without end.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <shmalloc/map.h>

#include "heap_suite.h"
#include "map_damage.h"
#include "map_walk.h"
#include "structures/map.h"

static shmalloc_map map;

/* As HEAP_SUITE, but headers of structures stay, so those that the tests need are there before. */
static void use_headers(void)
{
    shmalloc_ref refs[24] = {0};
    for (int i = 0; i < 24; i++)
        must_work(shmalloc_map_create(f.heap, NULL, &refs[i]));
    for (int i = 0; i < 24; i++)
        must_work(shmalloc_map_free(f.heap, &refs[i]));
}
HEAP_SUITE_AFTER(map, 0, 120, use_headers());

static void make(unsigned stripes)
{
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    options.stripes = stripes;
    must_code(shmalloc_map_open_root(f.heap, "map", &options, &map), 1);
}

static void drop(void)
{
    must_work(shmalloc_map_free_root(f.heap, "map"));
}

static int put(const char *key, const char *value)
{
    return shmalloc_map_put(&map, key, strlen(key), value, strlen(value) + 1);
}

/* The value of a key, NULL if there is none. */
static const char *get(const char *key)
{
    static char value[256];
    int rc = shmalloc_map_get(&map, key, strlen(key), value, sizeof(value), NULL);
    cr_assert(rc >= 0, "%s", shmalloc_errmsg());
    return rc ? value : NULL;
}

static size_t number_key(char *key, unsigned i)
{
    return (size_t)sprintf(key, "%u%.*s", i, (int)(i % 13), "abcdefghijklm");
}

static void put_numbers(unsigned from, unsigned to)
{
    char key[32];
    for (unsigned i = from; i < to; i++)
        must_code(shmalloc_map_put(&map, key, number_key(key, i), &i, sizeof(i)), 1);
}

static void check_numbers(unsigned from, unsigned to)
{
    char key[32];
    for (unsigned i = from; i < to; i++) {
        unsigned value = 0;
        must_code(shmalloc_map_get(&map, key, number_key(key, i), &value, sizeof(value), NULL), 1);
        cr_assert_eq(value, i);
    }
}

/* ---- one key ---- */

Test(map, a_key_has_the_value_that_was_put_last)
{
    make(0);
    cr_assert_null(get("a"));
    cr_assert_eq(put("a", "one"), 1);
    cr_assert_str_eq(get("a"), "one");
    cr_assert_eq(put("a", "two and more"), 0);
    cr_assert_str_eq(get("a"), "two and more");
    cr_assert_null(get("b"));
    cr_assert_eq(shmalloc_map_count(&map), 1);
    cr_assert_eq(shmalloc_map_remove(&map, "a", 1), 1);
    cr_assert_eq(shmalloc_map_remove(&map, "a", 1), 0);
    cr_assert_null(get("a"));
    cr_assert_eq(shmalloc_map_count(&map), 0);
    drop();
}

Test(map, put_new_leaves_what_is_there)
{
    make(1);
    cr_assert_eq(shmalloc_map_put_new(&map, "a", 1, "x", 2), 1);
    cr_assert_eq(shmalloc_map_put_new(&map, "a", 1, "y", 2), 0);
    cr_assert_str_eq(get("a"), "x");
    drop();
}

Test(map, put_if_compares_first)
{
    make(1);
    cr_assert_eq(shmalloc_map_put_if(&map, "a", 1, "x", 2, "y", 2), 0, "there is no key");
    cr_assert_eq(shmalloc_map_put_if(&map, "a", 1, NULL, 0, "x", 2), 1);
    cr_assert_eq(shmalloc_map_put_if(&map, "a", 1, NULL, 0, "z", 2), 0, "there is one");
    cr_assert_eq(shmalloc_map_put_if(&map, "a", 1, "q", 2, "z", 2), 0, "it differs");
    cr_assert_eq(shmalloc_map_put_if(&map, "a", 1, "x", 1, "z", 2), 0, "it is longer");
    cr_assert_str_eq(get("a"), "x");
    cr_assert_eq(shmalloc_map_put_if(&map, "a", 1, "x", 2, "y", 2), 1);
    cr_assert_str_eq(get("a"), "y");
    drop();
}

Test(map, add_counts)
{
    int64_t now = 0;
    make(1);
    cr_assert_eq(shmalloc_map_add(&map, "n", 1, 5, &now), 1);
    cr_assert_eq(now, 5);
    cr_assert_eq(shmalloc_map_add(&map, "n", 1, -7, &now), 0);
    cr_assert_eq(now, -2);
    cr_assert_eq(shmalloc_map_add(&map, "n", 1, 0, NULL), 0);
    now = 0;
    cr_assert_eq(shmalloc_map_get(&map, "n", 1, &now, sizeof(now), NULL), 1);
    cr_assert_eq(now, -2);
    must_code(shmalloc_map_add(&map, "n", 1, INT64_MIN, &now), -ERANGE);
    cr_assert_eq(shmalloc_map_put(&map, "s", 1, "text", 4), 1);
    must_code(shmalloc_map_add(&map, "s", 1, 1, &now), -EINVAL);
    drop();
}

Test(map, values_of_all_lengths)
{
    static char value[200000], back[200000];
    size_t lengths[] = {0, 1, 7, 8, 9, 100, 4000, 65000, 65536, 70000, sizeof(value)}, length;
    make(1);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        pattern_fill(value, 0, lengths[i], i);
        cr_assert(shmalloc_map_put(&map, "k", 1, value, lengths[i]) == (i == 0), "%s",
                  shmalloc_errmsg());
        must_code(shmalloc_map_get(&map, "k", 1, back, sizeof(back), &length), 1);
        cr_assert_eq(length, lengths[i]);
        cr_assert_eq(pattern_check(back, length, i), length);
    }
    memset(back, 'x', 100);
    must_code(shmalloc_map_get(&map, "k", 1, back, 10, &length), 1);
    cr_assert_eq(length, sizeof(value), "the whole length");
    cr_assert_eq(back[10], 'x', "no more than there is room for");
    must_code(shmalloc_map_get(&map, "k", 1, NULL, 0, &length), 1);
    drop();
}

Test(map, keys_of_all_lengths)
{
    static char key[SHMALLOC_MAP_KEY_MAX];
    make(0);
    for (size_t i = 1; i <= 300; i++) {
        pattern_fill(key, 0, i, 1);
        must_code(shmalloc_map_put(&map, key, i, &i, sizeof(i)), 1);
    }
    pattern_fill(key, 0, sizeof(key), 1);
    must_code(shmalloc_map_put(&map, key, sizeof(key), key, 20), 1);
    for (size_t i = 1; i <= 300; i++) {
        size_t value = 0;
        must_code(shmalloc_map_get(&map, key, i, &value, sizeof(value), NULL), 1);
        cr_assert_eq(value, i);
    }
    must_code(shmalloc_map_get(&map, key, sizeof(key), NULL, 0, NULL), 1);
    drop();
}

/* ---- many ---- */

Test(map, grows_and_keeps_every_key)
{
    struct map_walk walk;
    for (unsigned stripes = 1; stripes <= 256; stripes *= 16) {
        make(stripes);
        put_numbers(0, 30000);
        check_numbers(0, 30000);
        map_walk(&map, 1, &walk);
        cr_assert_eq(walk.entries, 30000);
        cr_assert(stripes > 16 || walk.buckets >= 30000 / 5, "%llu buckets",
                  (unsigned long long)walk.buckets);
        cr_assert_eq(shmalloc_map_count(&map), 30000);
        drop();
    }
}

Test(map, every_block_is_the_maps_and_goes_with_it)
{
    struct map_walk walk;
    char key[32];
    uint64_t blocks = map_blocks_in_use(f.heap);
    make(4);
    put_numbers(0, 5000);
    for (unsigned i = 0; i < 5000; i++)
        if (i % 3 == 0)
            must_code(shmalloc_map_remove(&map, key, number_key(key, i)), 1);
        else if (i % 3 == 1)
            must_code(shmalloc_map_put(&map, key, number_key(key, i), key, sizeof(key)), 0);
    map_walk(&map, 1, &walk);
    cr_assert_eq(map_blocks_in_use(f.heap) - blocks, walk.blocks - 1,
                 "the header was there before");
    drop();
    cr_assert_eq(map_blocks_in_use(f.heap), blocks);
}

Test(map, get_many_answers_as_get)
{
    enum {
        COUNT = 100
    };
    char keys[COUNT][32];
    unsigned values[COUNT];
    shmalloc_map_item items[COUNT];
    make(4);
    put_numbers(0, 50);
    for (unsigned i = 0; i < COUNT; i++)
        items[i] = (shmalloc_map_item){.key = keys[i],
                                       .klen = number_key(keys[i], i),
                                       .buf = &values[i],
                                       .cap = sizeof(unsigned)};
    cr_assert_eq(shmalloc_map_get_many(&map, items, COUNT), 50);
    for (unsigned i = 0; i < COUNT; i++) {
        cr_assert_eq(items[i].found, i < 50);
        cr_assert(i >= 50 || (values[i] == i && items[i].len == sizeof(unsigned)));
    }
    cr_assert_eq(shmalloc_map_get_many(&map, NULL, 0), 0);
    drop();
}

struct visits {
    unsigned count[2000], others, stop_at, total;
};

static int visit(const void *key, size_t klen, const void *value, size_t vlen, void *arg)
{
    struct visits *visits = arg;
    unsigned i = 0;
    char want[32];
    cr_assert(vlen == sizeof(i) || vlen == 8);
    memcpy(&i, value, sizeof(i));
    if (i < 2000) {
        cr_assert(klen == number_key(want, i) && memcmp(want, key, klen) == 0);
        visits->count[i]++;
    } else {
        visits->others++;
    }
    return ++visits->total == visits->stop_at ? 77 : 0;
}

Test(map, each_visits_every_entry_once)
{
    struct visits visits = {.stop_at = 0}, few = {.stop_at = 10};
    make(8);
    put_numbers(0, 2000);
    must_work(shmalloc_map_each(&map, visit, &visits));
    for (unsigned i = 0; i < 2000; i++)
        cr_assert_eq(visits.count[i], 1);
    cr_assert_eq(shmalloc_map_each(&map, visit, &few), 77);
    cr_assert_eq(few.total, 10);
    drop();
}

static uint32_t stop;

static void *write_on(void *arg)
{
    shmalloc_map *mine = arg;
    char key[32];
    for (unsigned i = 2000; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
        must(shmalloc_map_put(mine, key, number_key(key, i), &i, sizeof(i)) >= 0, "%s",
             shmalloc_errmsg());
        unsigned old = i % 2000;
        must(shmalloc_map_put(mine, key, number_key(key, old), &old, sizeof(old)) == 0, "replace");
        if (i % 3 == 0 && i >= 4000)
            must(shmalloc_map_remove(mine, key, number_key(key, i - 2000)) >= 0, "%s",
                 shmalloc_errmsg());
    }
    return NULL;
}

Test(map, each_beside_a_writer_misses_nothing_and_doubles_nothing)
{
    pthread_t writer;
    make(4);
    put_numbers(0, 2000);
    cr_assert_eq(pthread_create(&writer, NULL, write_on, &map), 0);
    for (unsigned round = 0; round < 30; round++) {
        struct visits visits = {.stop_at = 0};
        must_work(shmalloc_map_each(&map, visit, &visits));
        for (unsigned i = 0; i < 2000; i++)
            cr_assert_eq(visits.count[i], 1, "entry %u was visited %u times in round %u", i,
                         visits.count[i], round);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(writer, NULL);
    drop();
}

static void *add_on(void *arg)
{
    for (unsigned i = 0; i < 20000; i++)
        must(shmalloc_map_add(arg, "n", 1, 1, NULL) >= 0, "%s", shmalloc_errmsg());
    return NULL;
}

Test(map, counters_lose_nothing_between_threads)
{
    pthread_t threads[4];
    int64_t now = 0;
    make(0);
    for (unsigned i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, add_on, &map), 0);
    for (unsigned i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    must_code(shmalloc_map_get(&map, "n", 1, &now, sizeof(now), NULL), 1);
    cr_assert_eq(now, 80000);
    drop();
}

/* ---- making, opening, freeing ---- */

Test(map, a_word_in_the_heap_names_it)
{
    shmalloc_ref word_ref, *word, mine = 0;
    shmalloc_map other;
    must_work(shmalloc_ref_alloc_zeroed(f.heap, 8, &word_ref));
    word = shmalloc_ptr(f.heap, word_ref);
    must_work(shmalloc_map_create(f.heap, NULL, word));
    must_work(shmalloc_map_open(f.heap, *word, &map));
    put_numbers(0, 100);
    must_work(shmalloc_map_open(f.heap, *word, &other));
    cr_assert_eq(shmalloc_map_count(&other), 100);
    must_work(shmalloc_map_free(f.heap, word));
    cr_assert_eq(*word, 0);
    must_work(shmalloc_map_free(f.heap, word));
    must_work(shmalloc_map_create(f.heap, NULL, &mine));
    must_work(shmalloc_map_free(f.heap, &mine));
    cr_assert_eq(mine, 0);
    must_work(shmalloc_ref_free(f.heap, &word_ref));
}

Test(map, a_freed_map_says_so)
{
    size_t length;
    make(0);
    put_numbers(0, 100);
    drop();
    must_code(shmalloc_map_get(&map, "a", 1, NULL, 0, &length), SHMALLOC_EGONE);
    must_code(shmalloc_map_put(&map, "a", 1, "x", 1), SHMALLOC_EGONE);
    must_code(shmalloc_map_remove(&map, "a", 1), SHMALLOC_EGONE);
    must_code(shmalloc_map_each(&map, visit, NULL), SHMALLOC_EGONE);
    must_code((int)shmalloc_map_count(&map), SHMALLOC_EGONE);
    shmalloc_map old = map;
    make(0); /* in the same header */
    cr_assert_eq(map.ref, old.ref);
    must_code(shmalloc_map_put(&old, "a", 1, "x", 1), SHMALLOC_EGONE);
    drop();
}

Test(map, is_not_freed_in_a_transaction)
{
    shmalloc_ref ref;
    make(0);
    put_numbers(0, 10);
    must_work(shmalloc_root_get(f.heap, "map", 0, &ref));
    must_work(shmalloc_tx_begin(f.heap));
    must_code(put("new", "value"), 1);
    must_code(shmalloc_map_free_root(f.heap, "map"), SHMALLOC_EINTX);
    must_code(shmalloc_map_free(f.heap, &ref), SHMALLOC_EINTX);
    must_work(shmalloc_tx_abort(f.heap));
    cr_assert_eq(shmalloc_map_count(&map), 10);
    must_work(shmalloc_check(f.heap));
    drop();
}

Test(map, nested_maps_go_with_the_outer_one)
{
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    char key[32];
    uint64_t blocks = map_blocks_in_use(f.heap);
    shmalloc_map outer;
    options.flags = SHMALLOC_MAP_NESTED;
    must_code(shmalloc_map_open_root(f.heap, "outer", &options, &outer), 1);
    options.flags = 0;
    options.stripes = 1;
    for (unsigned i = 0; i < 20; i++) {
        shmalloc_ref inner = 0;
        must_work(shmalloc_map_create(f.heap, &options, &inner));
        must_work(shmalloc_map_open(f.heap, inner, &map));
        put_numbers(0, 100);
        must_code(shmalloc_map_put(&outer, key, number_key(key, i), &inner, sizeof(inner)), 1);
    }
    must_work(shmalloc_map_free_root(f.heap, "outer"));
    must_code(shmalloc_map_put(&map, "a", 1, "x", 1), SHMALLOC_EGONE);
    cr_assert_eq(map_blocks_in_use(f.heap), blocks);
}

/* ---- bad input ---- */

Test(map, bad_input_is_refused)
{
    static char key[SHMALLOC_MAP_KEY_MAX + 1];
    shmalloc_map_options options = SHMALLOC_MAP_OPTIONS_INIT;
    shmalloc_map other, none = {0};
    shmalloc_ref ref;
    make(0);
    must_code(shmalloc_map_put(&map, key, sizeof(key), "x", 1), -ENAMETOOLONG);
    must_code(shmalloc_map_put(&map, "", 0, "x", 1), -ENAMETOOLONG);
    must_code(shmalloc_map_get(&map, key, sizeof(key), NULL, 0, NULL), -ENAMETOOLONG);
    must_code(shmalloc_map_put(&map, "k", 1, key, SHMALLOC_MAP_VALUE_MAX + 1ull), -EMSGSIZE);
    must_code(shmalloc_map_put(&map, NULL, 1, "x", 1), -EINVAL);
    must_code(shmalloc_map_put(&map, "k", 1, NULL, 1), -EINVAL);
    must_code(shmalloc_map_get(&map, "k", 1, NULL, 1, NULL), -EINVAL);
    must_code(shmalloc_map_get(&none, "k", 1, NULL, 0, NULL), -EINVAL);
    must_code(shmalloc_map_get(NULL, "k", 1, NULL, 0, NULL), -EINVAL);
    must_code(shmalloc_map_each(&map, NULL, NULL), -EINVAL);
    options.stripes = 3;
    must_code(shmalloc_map_open_root(f.heap, "other", &options, &other), -EINVAL);
    options.stripes = 512;
    must_code(shmalloc_map_create(f.heap, &options, &ref), -EINVAL);
    options.stripes = 0;
    options.flags = 64;
    must_code(shmalloc_map_create(f.heap, &options, &ref), -EINVAL);
    options.flags = 0;
    options.size = 1;
    must_code(shmalloc_map_create(f.heap, &options, &ref), -EINVAL);
    must_code(shmalloc_map_create(f.heap, NULL, NULL), -EINVAL);
    must_code(shmalloc_map_open_root(f.heap, "other", NULL, &other), SHMALLOC_ENOROOT);
    drop();
}

Test(map, what_is_no_map_is_refused)
{
    shmalloc_ref ref;
    shmalloc_map other;
    make(0);
    must_work(shmalloc_ref_alloc_zeroed(f.heap, 600, &ref));
    must_work(shmalloc_root_set(f.heap, "block", 0, ref));
    must_code(shmalloc_map_open_root(f.heap, "block", NULL, &other), SHMALLOC_ETYPE);
    must_code(shmalloc_map_open(f.heap, ref, &other), SHMALLOC_ETYPE);
    must_code(shmalloc_map_open(f.heap, map.ref + 64, &other), SHMALLOC_EBADREF);
    must_code(shmalloc_map_open(f.heap, 0, &other), SHMALLOC_EBADREF);
    must_code(shmalloc_map_open(f.heap, 1ull << 43, &other), SHMALLOC_EBADREF);
    must_work(shmalloc_root_remove(f.heap, "block"));
    must_work(shmalloc_ref_free(f.heap, &ref));
    drop();
}

/* ---- damage ---- */

/* Each word of a map in turn is overwritten with values that mean something elsewhere, and
 * others. */
static void damage_each(int transaction, unsigned from, unsigned step)
{
    static struct map_damage d;
    map_damage_begin(&d, transaction);
    unsigned words = d.words;
    map_damage_end(&d);
    for (unsigned i = from; i < words; i += step)
        for (unsigned k = 0; k < 6; k++) {
            map_damage_begin(&d, transaction);
            uint64_t was = *d.word[i], ref = shmalloc_ref_of(d.heap, d.word[(i * 7 + k) % words]);
            const uint64_t values[] = {0,   was + 64,   was ^ 1ull << i % 64,
                                       ref, UINT64_MAX, (1ull << 44) - 64};
            *d.word[i] = values[k];
            map_damage_use(&d);
            map_damage_end(&d);
        }
}

Test(map, damaged_headers_have_answers)
{
    static struct map_damage d;
    for (unsigned i = 0; i < 16; i++) { /* of the structure's life and the map's fields */
        map_damage_begin(&d, 0);
        *d.word[i] ^= 1ull << (i * 11) % 64;
        map_damage_use(&d);
        map_damage_end(&d);
    }
}

Test(map, damaged_words_have_answers)
{
    damage_each(0, 16, 19);
}

Test(map, damaged_words_beside_pending_entries_have_answers)
{
    damage_each(1, 17, 41);
}

Test(map, an_entry_that_stays_pending_is_an_error)
{
    static struct map_damage d;
    char value[64];
    map_damage_begin(&d, 1);
    must_code(shmalloc_map_get(&d.map, "0", 1, value, sizeof(value), NULL), SHMALLOC_ECORRUPT);
    must_code(shmalloc_map_put(&d.map, "0", 1, value, 8), SHMALLOC_ECORRUPT);
    map_damage_end(&d);
}
