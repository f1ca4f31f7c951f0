/* SPDX-License-Identifier: MIT */
/*
 * test_vector.c - vectors: what is appended and set is read, at every length and element size;
 * truncating; the dead; wrong inputs; readers beside a writer.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <criterion/criterion.h>

#include <shmalloc/queue.h>
#include <shmalloc/vector.h>

#include "slots/context.h"
#include "heap_suite.h"

/* Headers that were used once stay, and what a thread needs to retire blocks; so both are there
 * before the counting begins. */
static void use_headers(void)
{
    shmalloc_ref refs[2];
    for (int i = 0; i < 2; i++)
        must_work(shmalloc_queue_create(f.heap, NULL, &refs[i]));
    for (int i = 0; i < 2; i++)
        must_work(shmalloc_queue_free(f.heap, &refs[i]));
    shmalloc_ref retired;
    must_work(shmalloc_ref_alloc(f.heap, 8, &retired));
    must_work(shmalloc_retire(f.heap, &retired));
    must_work(shmalloc_close(f.heap));
    f.heap = heap_open(f.path);
}
HEAP_SUITE_AFTER(vector, 0, 60, use_headers());

static shmalloc_vector make(size_t element)
{
    shmalloc_vector v;
    must_code(shmalloc_vector_open_root(f.heap, "vector", element, &v), SHMALLOC_CREATED);
    return v;
}

static void drop(void)
{
    must_work(shmalloc_vector_remove(f.heap, "vector"));
}

static void must_hold(const shmalloc_vector *v, uint64_t index, size_t element, uint64_t stamp)
{
    char bytes[5000];
    must_work(shmalloc_vector_get(v, index, bytes));
    must(pattern_check(bytes, element, stamp) == element, "element %llu of %zu bytes is another",
         (unsigned long long)index, element);
}

Test(vector, elements_of_all_sizes)
{
    static const size_t sizes[] = {1, 2, 3, 4, 7, 8, 9, 12, 16, 100, 511, 512, 513, 5000};
    char bytes[5000];
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
        shmalloc_vector v = make(sizes[s]);
        uint64_t index = 0, count = sizes[s] > 500 ? 100 : 3000;
        for (uint64_t i = 0; i < count; i++) {
            pattern_fill(bytes, 0, sizes[s], i);
            must_work(shmalloc_vector_append(&v, bytes, &index));
            cr_assert_eq(index, i);
        }
        for (uint64_t i = 0; i < count; i += 3) {
            pattern_fill(bytes, 0, sizes[s], i + 7);
            must_work(shmalloc_vector_set(&v, i, bytes));
        }
        for (uint64_t i = 0; i < count; i++)
            must_hold(&v, i, sizes[s], i % 3 == 0 ? i + 7 : i);
        cr_assert_eq(shmalloc_vector_count(&v), (int64_t)count);
        must_code(shmalloc_vector_get(&v, count, bytes), -ERANGE);
        must_code(shmalloc_vector_set(&v, count, bytes), -ERANGE);
        must_be_sound(f.heap);
        drop();
    }
}

static int sum_up(uint64_t index, const void *element, void *arg)
{
    uint64_t value;
    memcpy(&value, element, sizeof(value));
    must(value == index * index, "element %llu is %llu", (unsigned long long)index,
         (unsigned long long)value);
    return ++*(uint64_t *)arg == 500 ? 17 : 0;
}

Test(vector, each_visits_all_and_stops)
{
    uint64_t seen = 0;
    shmalloc_vector v = make(8);
    for (uint64_t i = 0; i < 400; i++)
        must_work(shmalloc_vector_append(&v, &(uint64_t){i * i}, NULL));
    must_work(shmalloc_vector_each(&v, sum_up, &seen));
    cr_assert_eq(seen, 400);
    must_code(shmalloc_vector_each(&v, sum_up, &seen), 17);
    cr_assert_eq(seen, 500);
    drop();
}

Test(vector, truncating_gives_memory_back_and_growing_again_works)
{
    shmalloc_vector v = make(24);
    char bytes[24];
    for (unsigned round = 0; round < 5; round++) {
        for (uint64_t i = (uint64_t)shmalloc_vector_count(&v); i < 5000; i++) {
            pattern_fill(bytes, 0, sizeof(bytes), i + round);
            must_work(shmalloc_vector_append(&v, bytes, NULL));
        }
        must_code(shmalloc_vector_truncate(&v, 5001), -ERANGE);
        must_work(shmalloc_vector_truncate(&v, 5000));
        must_work(shmalloc_vector_truncate(&v, 10 * round));
        cr_assert_eq(shmalloc_vector_count(&v), 10 * (int64_t)round);
        must_code(shmalloc_vector_get(&v, 10 * round, bytes), -ERANGE);
        for (uint64_t i = 0; i < 10 * round; i++)
            must_hold(&v, i, sizeof(bytes), i + i / 10 + 1);
        must_be_sound(f.heap);
    }
    drop();
}

/* ---- the dead ---- */

static int die_in_a_change(void *arg)
{
    (void)arg;
    shmalloc_vector v;
    shmalloc_heap *heap = fixture_join(&f);
    must_work(shmalloc_vector_open_root(heap, "vector", 16, &v));
    struct smf_vector *header = shmalloc_ptr(heap, shmalloc_vector_ref(&v));
    must_work(shmalloc_mutex_lock(heap, (shmalloc_mutex *)(void *)header->mutex));
    memset(shmalloc_ptr(heap, header->redo), 'n', 16);
    header->changing = 3;
    header->sequence++;
    memset(shmalloc_ptr(heap, header->segment[0] + 2 * 16), 'n', 8); /* half of it */
    kill(getpid(), SIGKILL);
    return 0;
}

Test(vector, a_change_that_was_cut_off_is_seen_whole_and_finished)
{
    char bytes[16];
    shmalloc_vector v = make(16);
    for (int i = 0; i < 5; i++)
        must_work(shmalloc_vector_append(&v, "oooooooooooooooo", NULL));
    cr_assert_eq(run_child(die_in_a_change, NULL), -SIGKILL);
    for (uint64_t i = 0; i < 5; i++) { /* before anybody finished it */
        must_work(shmalloc_vector_get(&v, i, bytes));
        cr_assert_eq(memcmp(bytes, i == 2 ? "nnnnnnnnnnnnnnnn" : "oooooooooooooooo", 16), 0);
    }
    must_work(shmalloc_vector_append(&v, "pppppppppppppppp", NULL));
    must_work(shmalloc_vector_set(&v, 0, "pppppppppppppppp"));
    must_work(shmalloc_vector_get(&v, 2, bytes));
    cr_assert_eq(memcmp(bytes, "nnnnnnnnnnnnnnnn", 16), 0);
    drop();
}

/* ---- readers beside a writer ---- */

struct race {
    shmalloc_vector v;
    uint32_t stop;
};

/* All words of an element are the same, whenever it is read. */
static void *read_all_the_time(void *arg)
{
    struct race *race = arg;
    uint64_t element[8], seen = 0;
    while (!__atomic_load_n(&race->stop, __ATOMIC_RELAXED)) {
        for (uint64_t i = 0; i < 40; i++) {
            int rc = shmalloc_vector_get(&race->v, i, element);
            must(rc == 0 || rc == -ERANGE, "%s", shmalloc_errmsg());
            for (int k = 1; rc == 0 && k < 8; k++)
                must(element[k] == element[0], "a torn element");
            seen += rc == 0;
        }
    }
    return (void *)(uintptr_t)seen;
}

Test(vector, readers_see_whole_elements)
{
    static struct race race;
    pthread_t threads[2];
    struct rng rng = rng_from(test_seed());
    race.v = make(64);
    for (int i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, read_all_the_time, &race);
    for (unsigned i = 0; i < 30000; i++) {
        uint64_t element[8], count = (uint64_t)shmalloc_vector_count(&race.v);
        for (int k = 0; k < 8; k++)
            element[k] = i;
        if (count < 40 && rng_below(&rng, 3) > 0)
            must_work(shmalloc_vector_append(&race.v, element, NULL));
        else if (count > 0 && rng_below(&rng, 20) > 0)
            must_work(shmalloc_vector_set(&race.v, rng_below(&rng, count), element));
        else
            must_work(shmalloc_vector_truncate(&race.v, rng_below(&rng, count + 1)));
    }
    __atomic_store_n(&race.stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    drop();
}

/* ---- wrong inputs ---- */

Test(vector, wrong_inputs)
{
    shmalloc_vector v, none = {0};
    shmalloc_ref ref, queue;
    char byte = 0;
    must_code(shmalloc_vector_create(f.heap, 0, &ref), -EINVAL);
    must_code(shmalloc_vector_create(f.heap, (1 << 20) + 1, &ref), -EINVAL);
    must_code(shmalloc_vector_create(f.heap, 8, NULL), -EINVAL);
    must_code(shmalloc_vector_open_root(f.heap, "none", 0, &v), SHMALLOC_ENOROOT);
    must_code(shmalloc_vector_append(&none, &byte, NULL), -EINVAL);
    must_code(shmalloc_vector_get(&none, 0, &byte), -EINVAL);
    must_code((int)shmalloc_vector_count(&none), -EINVAL);
    must_work(shmalloc_queue_create(f.heap, NULL, &queue));
    must_code(shmalloc_vector_open(f.heap, queue, &v), SHMALLOC_ETYPE);
    must(strstr(shmalloc_errmsg(), "found a queue"), "the message is: %s", shmalloc_errmsg());
    must_code(shmalloc_vector_free(f.heap, &queue), SHMALLOC_ETYPE);
    must_work(shmalloc_queue_free(f.heap, &queue));
    v = make(1);
    must_code(shmalloc_vector_append(&v, NULL, NULL), -EINVAL);
    must_code(shmalloc_vector_get(&v, 0, NULL), -EINVAL);
    must_code(shmalloc_vector_each(&v, NULL, NULL), -EINVAL);
    must_code(shmalloc_vector_open_root(f.heap, "vector", 2, &none), SHMALLOC_ESIZE);
    must_work(shmalloc_vector_open_root(f.heap, "vector", 0, &none));
    drop();
    must_code(shmalloc_vector_append(&v, &byte, NULL), SHMALLOC_EGONE);
    must_code(shmalloc_vector_get(&v, 0, &byte), SHMALLOC_EGONE);
    must_code((int)shmalloc_vector_count(&v), SHMALLOC_EGONE);
}

Test(vector, read_only_reads)
{
    shmalloc_options o = SHMALLOC_OPTIONS_INIT;
    o.flags = SHMALLOC_READ_ONLY;
    shmalloc_heap *reader;
    uint64_t value = 11;
    shmalloc_vector v = make(8);
    must_work(shmalloc_vector_append(&v, &value, NULL));
    must_work(shmalloc_close(f.heap));
    must_work(shmalloc_open(f.path, &o, &reader));
    must_work(shmalloc_vector_open_root(reader, "vector", 8, &v));
    value = 0;
    must_work(shmalloc_vector_get(&v, 0, &value));
    cr_assert_eq(value, 11);
    must_code(shmalloc_vector_append(&v, &value, NULL), SHMALLOC_EREADONLY);
    must_work(shmalloc_close(reader));
    f.heap = heap_open(f.path);
    drop();
}

static void must_trip(const char *invariant, uint64_t *word, uint64_t value)
{
    uint64_t good = *word;
    *word = value;
    char place[16];
    snprintf(place, sizeof(place), "%s at ", invariant);
    must(shmalloc_check(f.heap) == SHMALLOC_ECORRUPT && strstr(shmalloc_errmsg(), place),
         "%#llx should trip %s; the check says: %s", (unsigned long long)value, invariant,
         shmalloc_errmsg());
    *word = good;
    must_work(shmalloc_check(f.heap));
}

Test(vector, the_check_finds_each_damage)
{
    shmalloc_vector v = make(24);
    char bytes[24] = {0};
    for (int i = 0; i < 100; i++)
        must_work(shmalloc_vector_append(&v, bytes, NULL));
    struct smf_vector *header = shmalloc_ptr(f.heap, shmalloc_vector_ref(&v));
    must_trip("V1", &header->element, 0);
    must_trip("V1", &header->element, 1ull << 40);
    must_trip("V1", &header->first, 3);
    must_trip("V1", &header->redo, 0);
    must_trip("V1", &header->redo, 8192);
    must_trip("V1", &header->sequence, 1);
    must_trip("V2", &header->length, 5000);
    must_trip("V2", &header->length, UINT64_MAX);
    must_trip("V2", &header->segment[1], 0);
    must_trip("V2", &header->segment[2], 64);
    must_trip("V2", &header->segment[29], header->segment[0]);
    drop();
}

Test(vector, damage_ends_in_errors)
{
    struct rng rng = rng_from(test_seed());
    shmalloc_vector v = make(24);
    char bytes[24] = {0};
    for (int i = 0; i < 100; i++)
        must_work(shmalloc_vector_append(&v, bytes, NULL));
    struct smf_vector *header = shmalloc_ptr(f.heap, shmalloc_vector_ref(&v)), good = *header;
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t *word = (uint64_t *)header + 16 + rng_below(&rng, 40);
        *word = rng_below(&rng, 2) ? rng_next(&rng) : *word ^ 1ull << rng_below(&rng, 64);
        shmalloc_vector other;
        int rc = shmalloc_vector_get(&v, rng_below(&rng, 110), bytes);
        must(rc <= 0, "an answer of %d", rc);
        rc = shmalloc_vector_get(&v, rng_next(&rng), bytes);
        must(rc <= 0, "an answer of %d", rc);
        rc = shmalloc_vector_open_root(f.heap, "vector", 0, &other);
        must(rc <= 0 && shmalloc_vector_count(&v) >= 0, "an answer of %d", rc);
        memcpy((uint64_t *)header + 16, (uint64_t *)&good + 16, sizeof(good) - 128);
    }
    drop();
}
