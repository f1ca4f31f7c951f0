/* SPDX-License-Identifier: MIT */
/*
 * test_link.c - allocation and freeing through a destination word, inside the heap and outside.
 *
 * A word inside the heap takes the armed path of the link record, a word outside the plain one;
 * both must do the same. What a kill in the middle leaves is tested in tests/proc.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "heap_suite.h"

HEAP_SUITE(link, 0, 30);

enum { SLOTS = 200 };
static uint64_t outside[SLOTS];
static shmalloc_ref table_ref;

/* A table of destination words in the heap. */
static uint64_t *make_table(void)
{
    must_work(shmalloc_ref_alloc_zeroed(f.heap, SLOTS * sizeof(uint64_t), &table_ref));
    return shmalloc_ptr(f.heap, table_ref);
}

static void drop_table(uint64_t *table)
{
    for (int i = 0; i < SLOTS; i++)
        must(table[i] == 0, "word %d still refers to %#llx", i, (unsigned long long)table[i]);
    must_work(shmalloc_ref_free(f.heap, &table_ref));
}

static size_t size_of_word(int i)
{
    static const size_t sizes[] = {1,    8,    24,    100,   512,   600,
                                   4000, 9000, 40000, 65536, 65537, 200000};
    return sizes[(size_t)i % (sizeof(sizes) / sizeof(sizes[0]))];
}

static void must_hold(shmalloc_ref ref, size_t size, uint64_t stamp)
{
    must(pattern_check(shmalloc_ptr(f.heap, ref), size, stamp) == size, "block %llu changed",
         (unsigned long long)stamp);
}

/* All four calls on every word, with all words in use at once. */
static void exercise(uint64_t *words)
{
    uint64_t blocks = heap_stats(f.heap).allocated_blocks;
    for (int i = 0; i < SLOTS; i++) {
        if (i % 4 == 0)
            must_work(shmalloc_ref_alloc_zeroed(f.heap, size_of_word(i), &words[i]));
        else if (i % 4 == 1)
            must_work(shmalloc_ref_alloc_aligned(f.heap, 256, size_of_word(i), &words[i]));
        else if (i % 4 == 2)
            must_work(shmalloc_ref_alloc_tagged(f.heap, size_of_word(i), 3, &words[i]));
        else
            must_work(shmalloc_ref_alloc(f.heap, size_of_word(i), &words[i]));
        must(words[i] % (i % 4 == 1 ? 256 : 8) == 0, "word %d", i);
        pattern_fill(shmalloc_ptr(f.heap, words[i]), 0, size_of_word(i), (uint64_t)i);
    }
    must(heap_stats(f.heap).allocated_blocks == blocks + SLOTS, "as many blocks as words");
    must_be_sound(f.heap);
    for (int i = 0; i < SLOTS; i++) {
        size_t old = size_of_word(i), new = size_of_word(i + 5), kept = old < new ? old : new;
        must_work(shmalloc_ref_realloc(f.heap, &words[i], new));
        must_hold(words[i], kept, (uint64_t)i);
    }
    must(heap_stats(f.heap).allocated_blocks == blocks + SLOTS, "as many blocks as words");
    must_be_sound(f.heap);
    for (int i = 0; i < SLOTS; i++)
        must_work(shmalloc_ref_free(f.heap, &words[(i * 7) % SLOTS]));
    for (int i = 0; i < SLOTS; i++)
        must(words[i] == 0, "word %d was not cleared", i);
}

Test(link, words_outside_the_heap)
{
    exercise(outside);
}

Test(link, words_inside_the_heap)
{
    uint64_t *table = make_table();
    exercise(table);
    drop_table(table);
}

Test(link, unaligned_words_inside_the_heap_are_refused)
{
    uint64_t *table = make_table();
    uint64_t *odd = (uint64_t *)(void *)((char *)table + 4);
    must_code(shmalloc_ref_alloc(f.heap, 64, odd), -EINVAL);
    must_code(shmalloc_ref_alloc_zeroed(f.heap, 64, odd), -EINVAL);
    must_code(shmalloc_ref_alloc_tagged(f.heap, 64, 1, odd), -EINVAL);
    must_code(shmalloc_ref_alloc_aligned(f.heap, 64, 64, odd), -EINVAL);
    must_code(shmalloc_ref_free(f.heap, odd), -EINVAL);
    must_code(shmalloc_ref_realloc(f.heap, odd, 64), -EINVAL);
    drop_table(table);
}

Test(link, a_full_heap_leaves_the_word)
{
    uint64_t *table = make_table();
    table[3] = 0;
    must_code(shmalloc_ref_alloc(f.heap, 1ull << 50, &table[3]), SHMALLOC_EFULL);
    must_work(shmalloc_ref_alloc(f.heap, 64, &table[3]));
    uint64_t was = table[3];
    must_code(shmalloc_ref_realloc(f.heap, &table[3], 1ull << 50), SHMALLOC_EFULL);
    cr_assert_eq(table[3], was);
    must_work(shmalloc_ref_free(f.heap, &table[3]));
    drop_table(table);
}

Test(link, bad_refs_in_the_heap_are_refused_and_stay)
{
    uint64_t *table = make_table();
    const uint64_t bad[] = {table_ref + 8, table_ref + 1, 8, 1ull << 44, UINT64_MAX};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        table[0] = bad[i];
        must_code(shmalloc_ref_free(f.heap, &table[0]), SHMALLOC_EBADREF);
        must_code(shmalloc_ref_realloc(f.heap, &table[0], 99), SHMALLOC_EBADREF);
        cr_assert_eq(table[0], bad[i]);
    }
    table[0] = 0;
    drop_table(table);
}

Test(link, double_free_through_two_words_is_found_and_leaves_the_second)
{
    uint64_t *table = make_table();
    const size_t sizes[] = {16, 1000, 65536};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        must_work(shmalloc_ref_alloc(f.heap, sizes[i], &table[0]));
        uint64_t was = table[1] = table[0];
        must_work(shmalloc_ref_free(f.heap, &table[0]));
        must_code(shmalloc_ref_free(f.heap, &table[1]), SHMALLOC_EDOUBLEFREE);
        cr_assert_eq(table[1], was);
        table[1] = 0;
    }
    drop_table(table);
}

/* A node that holds the only word that refers to it: the word lies in the very block that goes
 * away. */
Test(link, a_block_may_hold_the_word_that_frees_it)
{
    const size_t sizes[] = {8, 16, 700, 65536, 65537, 1 << 20};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, sizes[i], &ref));
        uint64_t *self = shmalloc_ptr(f.heap, ref);
        *self = ref;
        must_work(shmalloc_ref_free(f.heap, self));
        must_be_sound(f.heap);
    }
}

Test(link, a_chain_is_built_and_taken_down_from_its_head)
{
    struct node {
        uint64_t next, payload;
    };
    uint64_t *table = make_table(), *link = &table[0];
    for (uint64_t i = 0; i < 10000; i++) {
        must_work(shmalloc_ref_alloc_zeroed(f.heap, sizeof(struct node), link));
        struct node *node = shmalloc_ptr(f.heap, *link);
        node->payload = i;
        link = &node->next;
    }
    uint64_t count = 0;
    while (table[0]) {
        struct node *head = shmalloc_ptr(f.heap, table[0]);
        must(head->payload == count++, "node %llu", (unsigned long long)count);
        uint64_t rest = head->next;
        must_work(shmalloc_ref_free(f.heap, &table[0]));
        table[0] = rest;
    }
    cr_assert_eq(count, 10000);
    drop_table(table);
}

/* Other memory may lie by then where a closed heap was mapped: what this thread remembers of that
 * heap must not be asked about it. */
Test(link, a_word_where_a_closed_heap_was)
{
    enum { AWAY = 1 << 20 }; /* so that nothing lies where the heap's fixed areas were */
    char path[300];
    snprintf(path, sizeof(path), "%s", fixture_path(&f, "other"));
    for (int call = 0; call < 3; call++) {
        shmalloc_heap *other = heap_create(path, 0);
        char *base = (char *)shmalloc_ptr(other, 8) - 8;
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(other, 8, &ref));
        must_work(shmalloc_ref_free(other, &ref));
        must_work(shmalloc_close(other));
        uint64_t *word = mmap(base + AWAY, 4096, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        must(word == (void *)(base + AWAY), "the place is taken");
        must_work(call == 0   ? shmalloc_ref_alloc(f.heap, 100, word)
                  : call == 1 ? shmalloc_ref_realloc(f.heap, word, 100)
                              : shmalloc_ref_free(f.heap, word));
        must(*word != 0 || call == 2, "nothing was allocated");
        must_work(shmalloc_ref_free(f.heap, word));
        munmap(word, 4096);
        must_work(shmalloc_destroy(path));
    }
}
