/* SPDX-License-Identifier: MIT */
/*
 * damages.h - for each invariant of check.c, at least one damage that trips it.
 *
 * A damage is a function that changes an image and returns the place at which the check has to
 * report it. It may trip other invariants as well.
 */
#ifndef TEST_DAMAGES_H
#define TEST_DAMAGES_H

#include "image.h"

/* ---- what can be damaged -------------------------------------------------------------------- */

static int is_free_span(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)m;
    (void)page;
    return d->kind == SMF_PAGE_FREE && d->page_count >= 4;
}

static int is_lone_free_span(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_free_span(m, page, d) && d->page_count <= SMF_EXACT_SETS &&
           image_page_heap(m)->set[d->page_count - 1] == page && !d->left && !d->right;
}

static int is_user_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)page;
    return d->kind == SMF_PAGE_SLAB && d->arena < image_header(m)->arena_count;
}

static int is_slab_in_set(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_user_slab(m, page, d) && d->free_slots > 0;
}

static int is_lone_slab_in_set(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_slab_in_set(m, page, d) && !d->left && !d->right &&
           image_central(m, d->arena, d->size_class)->set == page;
}

static int is_slab_with_spare_bits(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_user_slab(m, page, d) && !smi_classes[d->size_class].bitmap_pages &&
           smi_classes[d->size_class].slots % 256 != 0;
}

static int is_tagged_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_user_slab(m, page, d) && d->side != 0;
}

static int is_own_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)page;
    return d->kind == SMF_PAGE_SLAB && d->arena == image_header(m)->arena_count;
}

static int is_large(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)m;
    (void)page;
    return d->kind == SMF_PAGE_LARGE;
}

/* A node whose only child can be hung on the wrong side. */
static int has_one_child(const struct smf_page *d)
{
    return (d->left != 0) != (d->right != 0);
}

static int is_free_span_with_child(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_free_span(m, page, d) && has_one_child(d);
}

static int is_slab_with_child(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_slab_in_set(m, page, d) && has_one_child(d);
}

static uint64_t swap_children(struct image *m, uint32_t page)
{
    struct smf_page *d = image_page(m, page);
    uint32_t child = d->left | d->right;
    d->left ^= child;
    d->right ^= child;
    return image_page_ref(child);
}

static uint64_t child_of(struct image *m, uint32_t page)
{
    const struct smf_page *d = image_page(m, page);
    return image_page_ref(d->left | d->right);
}

/* The class of the first thread's cache that has an array of its own. */
static uint32_t deep_class(const struct image *m)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        if (image_thread_slot(m, 0)->stacks[k] & SMF_STACK_PAGES)
            return k;
    must(0, "no cache has an array of its own");
    return 0;
}

/* An inside array of the first thread with slots in it. */
static uint32_t shallow_class(const struct image *m)
{
    const struct smf_thread *thread = image_thread_slot(m, 0);
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        if (!(thread->stacks[k] & SMF_STACK_PAGES) && *image_array(m, thread, k) > 1)
            return k;
    must(0, "no cache inside the thread slot holds slots");
    return 0;
}

static uint64_t stack_ref(const struct image *m, uint32_t k)
{
    return image_ref(m, &image_thread_slot(m, 0)->stacks[k]);
}

/* Bit of a slot in its slab. */
static uint64_t *bit_word(const struct image *m, uint64_t ref, uint64_t *bit)
{
    uint16_t word = *image_word(m, (uint32_t)(ref >> SMF_PAGE_SHIFT));
    uint32_t k = (word & SMF_WORD_KIND) - 1u;
    uint32_t page =
        (uint32_t)(ref >> SMF_PAGE_SHIFT) - ((word & SMF_WORD_INDEX) >> SMF_WORD_INDEX_SHIFT);
    uint64_t start = image_page_ref(page + smi_classes[k].bitmap_pages);
    uint32_t index = (uint32_t)((ref - start) / smi_classes[k].size);
    *bit = 1ull << index % 64;
    if (smi_classes[k].bitmap_pages)
        return (uint64_t *)image_at(m, image_page_ref(page)) + index / 64;
    return &image_page(m, page + index / 256)->bits[index / 64 % 4];
}

static uint32_t used_bucket(const struct image *m)
{
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS; i++)
        if (image_roots(m)->bucket[i])
            return i;
    must(0, "no roots");
    return 0;
}

static struct smf_root *some_root(const struct image *m)
{
    return image_at(m, image_roots(m)->bucket[used_bucket(m)]);
}

/* ---- damages: each returns the place at which it must be reported --------------------------- */

static uint64_t header_byte(struct image *m)
{
    image_header(m)->uuid[3] ^= 1;
    return 0;
}

static uint64_t mark_of_no_kind(struct image *m)
{
    image_state(m)->mark = 4;
    return 0;
}

static uint64_t truncated(struct image *m)
{
    m->size -= SMF_GRANULE;
    return 0;
}

static uint64_t poisoned(struct image *m)
{
    image_state(m)->poison = (uint64_t)-SHMALLOC_ECORRUPT;
    return image_ref(m, &image_state(m)->poison);
}

static uint64_t owner_in_clean_heap(struct image *m)
{
    image_state(m)->mark = SMF_CLEAN;
    return image_threads(m)[0];
}

static uint64_t failed_sync_in_clean_heap(struct image *m)
{
    image_state(m)->sync_failed = 5;
    return image_ref(m, &image_state(m)->sync_failed);
}

static uint64_t log_in_clean_heap(struct image *m)
{
    struct smf_page_heap *heap = image_page_heap(m);
    image_state(m)->mark = SMF_CLEAN;
    heap->log[0] = (struct smf_undo){image_ref(m, &heap->takes), heap->takes};
    heap->log_count = 1;
    return image_ref(m, &image_state(m)->mark);
}

static uint64_t chunk_moved(struct image *m)
{
    image_directory(m)[1].first_page += 128;
    return image_ref(m, &image_directory(m)[1]);
}

static uint64_t chunk_too_long(struct image *m)
{
    uint64_t last = image_state(m)->chunk_count - 1;
    image_directory(m)[last].page_count += 1 << 20;
    return image_ref(m, &image_directory(m)[last]);
}

static uint64_t size_beyond_chunks(struct image *m)
{
    image_state(m)->size -= SMF_GRANULE;
    return SMF_STATE_OFFSET;
}

static uint64_t log_too_long(struct image *m)
{
    image_page_heap(m)->log_count = SMF_PAGE_LOG + 1;
    return image_ref(m, &image_page_heap(m)->log_count);
}

static uint64_t log_of_odd_word(struct image *m)
{
    struct smf_central *central = image_central(m, 0, 5);
    central->log[0] = (struct smf_undo){image_ref(m, central) + 1, 0};
    central->log_count = 1;
    return image_ref(m, &central->log[0]);
}

static uint64_t log_of_word_outside(struct image *m)
{
    struct smf_roots *roots = image_roots(m);
    roots->log[0] = (struct smf_undo){m->size, 0};
    roots->log_count = 1;
    return image_ref(m, &roots->log[0]);
}

static uint64_t link_of_no_kind(struct image *m)
{
    image_thread_slot(m, 0)->link.op = 9;
    return image_ref(m, &image_thread_slot(m, 0)->link);
}

static uint64_t link_into_nowhere(struct image *m)
{
    image_thread_slot(m, 0)->link = (struct smf_link){
        .op = SMF_LINK_GIVE, .dest = m->size - 8, .old = 64, .old_array = m->size};
    return image_ref(m, &image_thread_slot(m, 0)->link);
}

static uint64_t span_without_kind(struct image *m)
{
    uint32_t page = image_find(m, 1, is_large);
    image_page(m, page)->kind = SMF_PAGE_NONE;
    return image_page_ref(page);
}

static uint64_t span_too_long(struct image *m)
{
    uint32_t page = image_find(m, 1, is_large);
    image_page(m, page)->page_count = 1u << 30;
    return image_page_ref(page);
}

static uint64_t kind_inside_span(struct image *m)
{
    uint32_t page = image_find(m, 1, is_large) + 2;
    image_page(m, page)->kind = SMF_PAGE_FREE_TAIL;
    return image_page_ref(page);
}

static uint64_t tail_of_wrong_length(struct image *m)
{
    uint32_t page = image_find(m, 1, is_free_span);
    page += image_page(m, page)->page_count - 1;
    image_page(m, page)->page_count--;
    return image_page_ref(page);
}

static uint64_t kind_in_metadata(struct image *m)
{
    image_page(m, 1)->kind = SMF_PAGE_FREE;
    return image_page_ref(1);
}

static uint64_t free_spans_touch(struct image *m)
{
    uint32_t page = image_find(m, 1, is_free_span), count = image_page(m, page)->page_count;
    image_page(m, page)->page_count = 2;
    *image_page(m, page + 1) = (struct smf_page){.kind = SMF_PAGE_FREE_TAIL, .page_count = 2};
    *image_page(m, page + 2) = (struct smf_page){.kind = SMF_PAGE_FREE, .page_count = count - 2};
    image_page(m, page + count - 1)->page_count = count - 2;
    return image_page_ref(page + 2);
}

static uint64_t free_span_in_no_set(struct image *m)
{
    uint32_t page = image_find(m, 1, is_lone_free_span),
             stack = image_page(m, page)->page_count - 1;
    image_page_heap(m)->set[stack] = 0;
    image_page_heap(m)->set_bits[stack / 64] &= ~(1ull << stack % 64);
    return image_page_ref(page);
}

static uint64_t used_span_in_set(struct image *m)
{
    uint32_t page = image_find(m, 1, is_large);
    image_page_heap(m)->set[0] = page;
    return image_page_ref(page);
}

static uint64_t set_in_ring(struct image *m)
{
    uint32_t page = image_find(m, 1, is_free_span);
    image_page(m, page)->right = page;
    return image_page_ref(page);
}

static uint64_t root_of_set_outside(struct image *m)
{
    image_page_heap(m)->set[7] = 1ull << 40;
    return image_ref(m, &image_page_heap(m)->set[7]);
}

static uint64_t wrong_kind_in_word(struct image *m)
{
    uint32_t page = image_find(m, 1, is_user_slab);
    *image_word(m, page) ^= 3;
    return image_page_ref(page);
}

static uint64_t wrong_index_in_word(struct image *m)
{
    uint32_t page = image_find(m, 1, is_user_slab);
    *image_word(m, page) ^= 1 << SMF_WORD_INDEX_SHIFT;
    return image_page_ref(page);
}

static uint64_t word_of_free_page(struct image *m)
{
    uint32_t page = image_find(m, 1, is_free_span) + 1;
    *image_word(m, page) |= SMF_WORD_LARGE;
    return image_page_ref(page);
}

static uint64_t word_of_metadata(struct image *m)
{
    *image_word(m, 2) = SMF_WORD_RESERVED;
    return image_page_ref(2);
}

static uint64_t used_page_without_storage(struct image *m)
{
    uint32_t page = image_find(m, 1, is_large) + 1;
    *image_word(m, page) &= (uint16_t)~SMF_WORD_RESERVED;
    return image_page_ref(page);
}

static uint64_t used_page_of_zeros(struct image *m)
{
    uint32_t page = image_find(m, 1, is_user_slab);
    *image_word(m, page) |= SMF_WORD_ZERO;
    return image_page_ref(page);
}

static uint64_t free_set_out_of_order(struct image *m)
{
    return swap_children(m, image_find(m, 1, is_free_span_with_child));
}

static uint64_t set_bit_cleared(struct image *m)
{
    uint32_t stack = image_page(m, image_find(m, 1, is_lone_free_span))->page_count - 1;
    image_page_heap(m)->set_bits[stack / 64] ^= 1ull << stack % 64;
    return image_ref(m, &image_page_heap(m)->set_bits[stack / 64]);
}

static uint64_t set_bit_set(struct image *m)
{
    struct smf_page_heap *heap = image_page_heap(m);
    uint32_t stack = 100;
    while (heap->set[stack])
        stack++;
    heap->set_bits[stack / 64] |= 1ull << stack % 64;
    return image_ref(m, &heap->set_bits[stack / 64]);
}

static uint64_t wrong_free_pages(struct image *m)
{
    image_page_heap(m)->free_pages++;
    return image_ref(m, &image_page_heap(m)->free_pages);
}

static uint64_t slab_count_of_bits(struct image *m)
{
    uint32_t page = image_find(m, 1, is_slab_in_set);
    image_page(m, page)->free_slots++;
    return image_page_ref(page);
}

static uint64_t bit_beyond_slots(struct image *m)
{
    uint32_t page = image_find(m, 1, is_slab_with_spare_bits);
    uint32_t k = image_page(m, page)->size_class, last = smi_class_span_pages(k) * 256 - 1;
    image_page(m, page + last / 256)->bits[3] |= 1ull << 63;
    return image_page_ref(page);
}

static uint64_t wrong_in_set(struct image *m)
{
    uint32_t page = image_find(m, 1, is_slab_in_set);
    image_page(m, page)->in_set = 0;
    return image_page_ref(page);
}

static uint64_t slab_in_no_set(struct image *m)
{
    uint32_t page = image_find(m, 1, is_lone_slab_in_set);
    const struct smf_page *d = image_page(m, page);
    image_central(m, d->arena, d->size_class)->set = 0;
    return image_page_ref(page);
}

static uint64_t slab_in_wrong_set(struct image *m)
{
    uint32_t page = image_find(m, 1, is_lone_slab_in_set);
    const struct smf_page *d = image_page(m, page);
    image_central(m, d->arena, d->size_class)->set = 0;
    image_central(m, d->arena, d->size_class + 1)->set = page;
    return image_page_ref(page);
}

static uint64_t wrong_slab_count(struct image *m)
{
    const struct smf_page *d = image_page(m, image_find(m, 1, is_user_slab));
    struct smf_central *central = image_central(m, d->arena, d->size_class);
    central->slab_count++;
    return image_ref(m, &central->slab_count);
}

static uint64_t wrong_free_slots(struct image *m)
{
    const struct smf_page *d = image_page(m, image_find(m, 1, is_user_slab));
    struct smf_central *central = image_central(m, d->arena, d->size_class);
    central->free_slots--;
    return image_ref(m, &central->free_slots);
}

static uint64_t cached_and_free(struct image *m)
{
    uint64_t ref = image_array(m, image_thread_slot(m, 0), shallow_class(m))[1], bit;
    *bit_word(m, ref, &bit) |= bit;
    return ref;
}

static uint64_t cached_twice(struct image *m)
{
    uint64_t *array = image_array(m, image_thread_slot(m, 0), shallow_class(m));
    array[2] = array[1];
    return array[1];
}

static uint64_t cached_by_two_threads(struct image *m)
{
    uint32_t k = smi_class_of(128);
    uint64_t ref = image_array(m, image_thread_slot(m, 1), k)[1];
    uint64_t *array = image_array(m, image_thread_slot(m, 0), k);
    array[0] = 1;
    array[1] = ref;
    return ref;
}

static uint64_t slab_of_no_class(struct image *m)
{
    uint32_t page = image_find(m, 1, is_user_slab);
    image_page(m, page)->size_class = 200;
    return image_page_ref(page);
}

static uint64_t slab_of_no_arena(struct image *m)
{
    uint32_t page = image_find(m, 1, is_user_slab);
    image_page(m, page)->arena = 77;
    return image_page_ref(page);
}

static uint64_t hint_too_far(struct image *m)
{
    uint32_t page = image_find(m, 1, is_slab_in_set);
    image_page(m, page)->hint = 5000;
    return image_page_ref(page);
}

static uint64_t pending_large_block(struct image *m)
{
    struct smf_central *central = image_central(m, 1, 20);
    central->pending = image_find(m, 1, is_large);
    return image_ref(m, &central->pending);
}

static uint64_t pending_outside(struct image *m)
{
    struct smf_central *central = image_central(m, 1, 20);
    central->pending = 1ull << 33;
    return image_ref(m, &central->pending);
}

static uint64_t slab_set_out_of_order(struct image *m)
{
    return swap_children(m, image_find(m, 1, is_slab_with_child));
}

static uint64_t slab_set_in_ring(struct image *m)
{
    uint32_t page = image_find(m, 1, is_slab_with_child);
    uint64_t child = child_of(m, page);
    image_page(m, (uint32_t)(child >> SMF_PAGE_SHIFT))->left = page;
    return image_page_ref(page);
}

static uint64_t side_lost(struct image *m)
{
    uint32_t page = image_find(m, 1, is_tagged_slab);
    image_page(m, page)->side = 0;
    return image_page_ref(page);
}

static uint64_t side_in_user_memory(struct image *m)
{
    uint32_t page = image_find(m, 1, is_tagged_slab);
    image_page(m, page)->side = image_page_ref(image_find(m, 1, is_large));
    return image_page_ref(page);
}

static uint64_t side_too_short(struct image *m)
{
    uint32_t page = image_find(m, 1, is_tagged_slab);
    uint32_t k = image_page(m, page)->size_class;
    must(smi_classes[k].slots * 2u <= 48, "a class with a short side array");
    image_page(m, page)->side = image_roots(m)->bucket[used_bucket(m)];
    image_page(m, page)->size_class = 2; /* 256 slots: 512 bytes */
    return image_page_ref(page);
}

static uint64_t side_of_own_slab(struct image *m)
{
    uint32_t page = image_find(m, 1, is_own_slab);
    image_page(m, page)->side = 4096;
    return image_page_ref(page);
}

static uint64_t hardened_without_side(struct image *m)
{
    return side_lost(m);
}

/* Used slots lose their user's bit, one more than there are threads. */
static uint64_t user_bits_cleared(struct image *m)
{
    uint32_t page = image_find(m, 1, is_tagged_slab), k = image_page(m, page)->size_class;
    uint64_t tags = (smi_classes[k].slots * sizeof(uint16_t) + 7) & ~7ull;
    uint64_t *users = image_at(m, image_page(m, page)->side + tags);
    int threads = 2;
    for (uint32_t i = 0; i < smi_classes[k].slots; i++) {
        if (!(users[i / 64] >> i % 64 & 1))
            continue;
        users[i / 64] ^= 1ull << i % 64;
        if (threads-- == 0)
            return image_page_ref(page + smi_classes[k].bitmap_pages) +
                   i * (uint64_t)smi_classes[k].size;
    }
    must(0, "the slab has too few users");
    return 0;
}

/* A slot deep in a cache gets a user's bit. */
static uint64_t user_bit_set(struct image *m)
{
    uint64_t ref = image_array(m, image_thread_slot(m, 0), shallow_class(m))[1];
    uint16_t word = *image_word(m, (uint32_t)(ref >> SMF_PAGE_SHIFT));
    uint32_t k = (word & SMF_WORD_KIND) - 1u;
    uint32_t page =
        (uint32_t)(ref >> SMF_PAGE_SHIFT) - ((word & SMF_WORD_INDEX) >> SMF_WORD_INDEX_SHIFT);
    uint64_t index =
        (ref - image_page_ref(page + smi_classes[k].bitmap_pages)) / smi_classes[k].size;
    uint64_t tags = (smi_classes[k].slots * sizeof(uint16_t) + 7) & ~7ull;
    uint64_t *users = image_at(m, image_page(m, page)->side + tags);
    users[index / 64] |= 1ull << index % 64;
    return ref;
}

static uint64_t count_over_capacity(struct image *m)
{
    uint32_t k = shallow_class(m);
    *image_array(m, image_thread_slot(m, 0), k) = SMF_INLINE_SMALL;
    return stack_ref(m, k);
}

static uint64_t array_elsewhere(struct image *m)
{
    uint32_t k = shallow_class(m);
    image_thread_slot(m, 0)->stacks[k] += 64;
    return stack_ref(m, k);
}

static uint64_t array_outside(struct image *m)
{
    uint32_t k = deep_class(m);
    image_thread_slot(m, 0)->stacks[k] = m->size | 1;
    return stack_ref(m, k);
}

static uint64_t cached_inside_slot(struct image *m)
{
    uint64_t *array = image_array(m, image_thread_slot(m, 0), shallow_class(m));
    array[1] += 4;
    return array[1];
}

static uint64_t cached_of_other_class(struct image *m)
{
    uint64_t *array = image_array(m, image_thread_slot(m, 0), shallow_class(m));
    uint64_t *other = image_array(m, image_thread_slot(m, 0), deep_class(m));
    must(other[0] > 0, "the deep stack is empty");
    array[1] = other[other[0]--];
    return array[1];
}

/* A class with an open stack of two or more slots. */
static uint32_t open_class(const struct image *m)
{
    const struct smf_thread *thread = image_thread_slot(m, 0);
    for (uint32_t k = 0; k < SMF_CLASSES; k++)
        if (image_open_array(m, thread, k)[0] == SMF_OPEN && image_open_array(m, thread, k)[2] != 0)
            return k;
    must(0, "no stack is open");
    return 0;
}

static uint64_t gap_in_open_stack(struct image *m)
{
    uint32_t k = open_class(m);
    image_open_array(m, image_thread_slot(m, 0), k)[1] = 0;
    return stack_ref(m, k);
}

static uint64_t leftover_in_open_stack(struct image *m)
{
    uint32_t k = open_class(m);
    uint64_t *array = image_open_array(m, image_thread_slot(m, 0), k);
    uint32_t words = smi_stack_words(image_thread_slot(m, 0)->stacks[k], k);
    array[words - 1] = array[1];
    return stack_ref(m, k);
}

static int is_kept(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)m;
    (void)page;
    return d->kind == SMF_PAGE_LARGE && (d->side & SMF_MARK_KEPT);
}

static uint64_t mark_without_entry(struct image *m)
{
    uint32_t page = image_find(m, 1, is_kept);
    memset(image_thread_slot(m, 0)->spans, 0, sizeof(image_thread_slot(m, 0)->spans));
    return image_page_ref(page);
}

static uint64_t mark_of_another_entry(struct image *m)
{
    uint32_t page = image_find(m, 1, is_kept);
    image_page(m, page)->side += SMF_SPANS;
    return image_page_ref(page);
}

static uint64_t mark_that_is_none(struct image *m)
{
    uint32_t page = image_find(m, 1, is_large);
    image_page(m, page)->side = SMF_MARK_CLAIMED;
    return image_page_ref(page);
}

static uint64_t kept_without_owner(struct image *m)
{
    image_thread_slot(m, 0)->owner = 0;
    return image_threads(m)[0];
}

static uint64_t slot_for_another_purpose(struct image *m)
{
    uint64_t ref = image_threads(m)[0];
    image_page(m, (uint32_t)(ref >> SMF_PAGE_SHIFT))->tag = SMF_PURPOSE_LOG;
    return image_ref(m, image_threads(m));
}

static struct smf_log *open_log(struct image *m)
{
    return image_at(m, image_thread_slot(m, 0)->tx_log);
}

static uint64_t log_in_user_memory(struct image *m)
{
    image_thread_slot(m, 0)->tx_log = image_page_ref(image_find(m, 1, is_large));
    return image_ref(m, &image_thread_slot(m, 0)->tx_log);
}

static uint64_t log_is_an_array(struct image *m)
{
    open_log(m)->chunk[7] = image_thread_slot(m, 0)->stacks[deep_class(m)] & ~(SMF_PAGE - 1);
    return image_ref(m, &open_log(m)->chunk[7]);
}

static uint64_t chunk_twice(struct image *m)
{
    open_log(m)->chunk[7] = open_log(m)->chunk[1];
    return image_ref(m, &open_log(m)->chunk[7]);
}

static uint64_t chunk_forgotten(struct image *m)
{
    open_log(m)->chunk[1] = 0;
    return 0;
}

static uint64_t entry_of_no_type(struct image *m)
{
    struct smf_entry *entry = (struct smf_entry *)(void *)(open_log(m) + 1);
    entry->head |= 99ull << SMF_ENTRY_TYPE;
    return image_ref(m, entry);
}

static uint64_t entry_for_nothing(struct image *m)
{
    struct smf_entry *entry = (struct smf_entry *)(void *)(open_log(m) + 1);
    entry->ref = m->size;
    return image_ref(m, entry);
}

static uint64_t entry_for_the_library(struct image *m)
{
    struct smf_entry *entry = (struct smf_entry *)(void *)(open_log(m) + 1);
    entry->ref = image_areas(m)->roots;
    return image_ref(m, entry);
}

static uint64_t log_too_full(struct image *m)
{
    open_log(m)->filled[0] = 1 << 20;
    return image_thread_slot(m, 0)->tx_log;
}

static uint64_t log_of_too_many_chunks(struct image *m)
{
    open_log(m)->used = UINT64_MAX << SMF_LOG_CHUNK;
    return image_thread_slot(m, 0)->tx_log;
}

static uint64_t idle_with_entries(struct image *m)
{
    image_thread_slot(m, 0)->tx_state &= ~SMF_TX_PHASE;
    return image_ref(m, &image_thread_slot(m, 0)->tx_state);
}

static uint64_t phase_impossible(struct image *m)
{
    image_thread_slot(m, 0)->tx_state |= SMF_TX_PHASE;
    return image_ref(m, &image_thread_slot(m, 0)->tx_state);
}

static uint64_t open_without_log(struct image *m)
{
    image_thread_slot(m, 0)->tx_log = 0;
    return image_ref(m, &image_thread_slot(m, 0)->tx_state);
}

static uint64_t log_without_owner(struct image *m)
{
    image_thread_slot(m, 0)->owner = 0;
    return image_ref(m, &image_thread_slot(m, 0)->tx_state);
}

static uint64_t cached_root_record(struct image *m)
{
    uint64_t *array = image_array(m, image_thread_slot(m, 0), smi_class_of(48));
    array[0] = 1;
    array[1] = image_roots(m)->bucket[used_bucket(m)];
    return array[1];
}

static uint64_t array_forgotten(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    uint32_t k = deep_class(m);
    uint64_t span = (thread->stacks[k] & ~(uint64_t)SMF_STACK_PAGES) - smi_span_offset(k);
    thread->stacks[k] = 0;
    return span;
}

static uint64_t array_of_two_stacks(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    uint32_t k = deep_class(m), other = k + 32; /* whose arrays begin at the same place of a span */
    must(smi_span_offset(other) == smi_span_offset(k), "classes %u and %u", k, other);
    thread->stacks[other] = thread->stacks[k];
    return stack_ref(m, other);
}

static uint64_t array_in_user_memory(struct image *m)
{
    uint32_t k = SMF_CLASSES - 1;
    uint64_t array = image_page_ref(image_find(m, 1, is_large)) + smi_span_offset(k);
    image_thread_slot(m, 0)->stacks[k] = array | 1;
    *(uint64_t *)image_at(m, array) = 0;
    return stack_ref(m, k);
}

static uint64_t spare_in_user_memory(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    thread->spare[1] = image_page_ref(image_find(m, 1, is_large));
    return image_ref(m, &thread->spare[1]);
}

static struct smf_bag *bags_of(struct image *m)
{
    return (void *)(m->bytes + image_thread_slot(m, 0)->limbo);
}

static uint64_t limbo_in_user_memory(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    thread->limbo = image_page_ref(image_find(m, 1, is_large));
    return image_ref(m, &thread->limbo);
}

static uint64_t limbo_with_a_gap(struct image *m)
{
    bags_of(m)->refs[1] = 0;
    return image_ref(m, &image_thread_slot(m, 0)->limbo);
}

static uint64_t stamp_of_the_future(struct image *m)
{
    bags_of(m)[1].stamp = image_state(m)->epoch + 1;
    return image_ref(m, &image_thread_slot(m, 0)->limbo);
}

static uint64_t section_of_the_future(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    thread->section_epoch = image_state(m)->epoch + 1;
    return image_ref(m, &thread->section_epoch);
}

static uint64_t ousted_for_ever(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    thread->ousted = image_state(m)->epoch;
    return image_ref(m, &thread->section_epoch);
}

static uint64_t epoch_of_no_section(struct image *m)
{
    image_state(m)->epoch = 0;
    return image_ref(m, &image_state(m)->epoch);
}

static uint64_t retired_free_slot(struct image *m)
{
    return bags_of(m)->refs[0] = image_page_ref(image_find(m, 1, is_free_span));
}

static uint64_t retired_inside_block(struct image *m)
{
    return bags_of(m)->refs[0] += 16;
}

static uint64_t thread_slot_twice(struct image *m)
{
    image_threads(m)[5] = image_threads(m)[0];
    return image_ref(m, &image_threads(m)[5]);
}

static uint64_t thread_slot_outside(struct image *m)
{
    image_threads(m)[6] = m->size + SMF_PAGE;
    return image_ref(m, &image_threads(m)[6]);
}

static uint64_t owner_impossible(struct image *m)
{
    image_thread_slot(m, 0)->owner = SMF_PROCESSES + 1;
    return image_threads(m)[0];
}

static uint64_t stack_without_owner(struct image *m)
{
    image_thread_slot(m, 0)->owner = 0;
    return stack_ref(m, deep_class(m));
}

static uint64_t link_without_owner(struct image *m)
{
    image_thread_slot(m, 0)->owner = 0;
    image_thread_slot(m, 0)->link.op = SMF_LINK_GIVE;
    return image_threads(m)[0];
}

static uint64_t scratch_of_free_span(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    thread->scratch = image_page_ref(image_find(m, 1, is_free_span));
    return image_ref(m, &thread->scratch);
}

static uint64_t building_inside_block(struct image *m)
{
    struct smf_thread *thread = image_thread_slot(m, 0);
    thread->building = image_page_ref(image_find(m, 1, is_large)) + 16;
    return image_ref(m, &thread->building);
}

static uint64_t bucket_into_nowhere(struct image *m)
{
    uint64_t *bucket = &image_roots(m)->bucket[used_bucket(m)];
    *bucket = m->size + 64;
    return image_ref(m, bucket);
}

static uint64_t chain_in_ring(struct image *m)
{
    struct smf_root *root = some_root(m);
    root->next = image_ref(m, root);
    return image_ref(m, root);
}

static uint64_t root_in_wrong_bucket(struct image *m)
{
    struct smf_roots *roots = image_roots(m);
    uint32_t from = used_bucket(m), to = from + 1;
    uint64_t ref = roots->bucket[from];
    while (roots->bucket[to])
        to++;
    roots->bucket[to] = ref;
    roots->bucket[from] = 0;
    return ref;
}

static uint64_t root_in_user_memory(struct image *m)
{
    struct smf_root *root = some_root(m);
    uint64_t copy = image_page_ref(image_find(m, 1, is_large));
    memcpy(image_at(m, copy), root, sizeof(*root) + root->name_len + 1);
    image_roots(m)->bucket[used_bucket(m)] = copy;
    return image_ref(m, &image_roots(m)->bucket[used_bucket(m)]);
}

static uint64_t root_longer_than_its_block(struct image *m)
{
    struct smf_root *root = some_root(m);
    memset(root + 1, 'x', 20);
    ((char *)(root + 1))[20] = 0;
    root->name_len = 20;
    return image_ref(m, root);
}

static uint64_t name_without_end(struct image *m)
{
    some_root(m)->name_len = 3;
    return image_ref(m, &image_roots(m)->bucket[used_bucket(m)]);
}

static uint64_t wrong_root_count(struct image *m)
{
    image_roots(m)->count--;
    return image_ref(m, &image_roots(m)->count);
}

static uint64_t one_name_twice(struct image *m)
{
    struct smf_roots *roots = image_roots(m);
    uint32_t i = 0;
    struct smf_root *root;
    do { /* a chain of two, of which the second gets the first one's name */
        while (!roots->bucket[i])
            i++;
        root = image_at(m, roots->bucket[i++]);
    } while (!root->next);
    struct smf_root *second = image_at(m, root->next);
    memcpy(second + 1, root + 1, root->name_len + 1);
    second->hash = root->hash;
    second->name_len = root->name_len;
    return image_ref(m, root) > image_ref(m, second) ? image_ref(m, root) : image_ref(m, second);
}

static uint64_t wrong_hash(struct image *m)
{
    struct smf_root *root = some_root(m);
    root->hash ^= 1u << 20;
    return image_ref(m, root);
}

static uint64_t root_forgotten(struct image *m)
{
    uint64_t *bucket = &image_roots(m)->bucket[used_bucket(m)], ref = *bucket;
    *bucket = some_root(m)->next;
    return ref;
}

static uint64_t root_named_by_scratch_too(struct image *m)
{
    struct smf_roots *roots = image_roots(m);
    roots->scratch = roots->bucket[used_bucket(m)];
    return roots->scratch;
}

static uint64_t odd_maximum(struct image *m)
{
    image_state(m)->max_size += 4096;
    return 0;
}

static uint64_t entry_behind_last_chunk(struct image *m)
{
    struct smf_chunk *entry = &image_directory(m)[image_state(m)->chunk_count];
    *entry = (struct smf_chunk){entry[-1].first_page, 1u << 20};
    return image_ref(m, entry);
}

static uint64_t link_into_header(struct image *m)
{
    struct smf_link *link = &image_thread_slot(m, 0)->link;
    *link = (struct smf_link){.op = SMF_LINK_GIVE, .dest = 8};
    return image_ref(m, link);
}

static uint64_t log_of_lock(struct image *m)
{
    struct smf_page_heap *heap = image_page_heap(m);
    heap->log_count = 1;
    heap->log[0] = (struct smf_undo){image_areas(m)->locks, 0};
    return image_ref(m, &heap->log[0]);
}

static uint64_t stack_without_array(struct image *m)
{
    uint32_t k = shallow_class(m);
    image_thread_slot(m, 0)->stacks[k] = 0;
    return stack_ref(m, k);
}

static uint64_t owner_not_in_table(struct image *m)
{
    image_thread_slot(m, 0)->owner = SMF_PROCESSES;
    return image_threads(m)[0];
}

enum base { KILLED, CLOSED, HARDENED, BASES };

static void make_bases(struct fixture *f, struct image bases[BASES])
{
    fixture_begin(f);
    bases[KILLED] = image_make(f, 0, IMAGE_KILLED);
    bases[CLOSED] = image_make(f, 0, IMAGE_CLOSED);
    bases[HARDENED] = image_make(f, SHMALLOC_HARDENED, IMAGE_KILLED);
}

static void drop_bases(struct fixture *f, struct image bases[BASES])
{
    for (int i = 0; i < BASES; i++)
        free(bases[i].bytes);
    fixture_end(f);
}

static const struct damage {
    const char *invariant;
    enum base base;
    uint64_t (*apply)(struct image *m);
    const char *name;
} damages[] = {
#define DAMAGE(invariant, base, apply) {invariant, base, apply, #apply}
    DAMAGE("H1", KILLED, header_byte),
    DAMAGE("H1", KILLED, mark_of_no_kind),
    DAMAGE("H1", KILLED, truncated),
    DAMAGE("H1", KILLED, odd_maximum),
    DAMAGE("H2", KILLED, poisoned),
    DAMAGE("H3", KILLED, owner_in_clean_heap),
    DAMAGE("H3", CLOSED, log_in_clean_heap),
    DAMAGE("H3", CLOSED, failed_sync_in_clean_heap),
    DAMAGE("D1", KILLED, chunk_moved),
    DAMAGE("D1", KILLED, chunk_too_long),
    DAMAGE("D1", KILLED, size_beyond_chunks),
    DAMAGE("D1", KILLED, entry_behind_last_chunk),
    DAMAGE("L1", KILLED, log_too_long),
    DAMAGE("L2", KILLED, log_of_odd_word),
    DAMAGE("L2", KILLED, log_of_word_outside),
    DAMAGE("L2", KILLED, log_of_lock),
    DAMAGE("L3", KILLED, link_of_no_kind),
    DAMAGE("L3", KILLED, link_into_nowhere),
    DAMAGE("L3", KILLED, link_into_header),
    DAMAGE("P1", KILLED, span_without_kind),
    DAMAGE("P1", KILLED, span_too_long),
    DAMAGE("P1", KILLED, kind_inside_span),
    DAMAGE("P1", KILLED, tail_of_wrong_length),
    DAMAGE("P1", KILLED, kind_in_metadata),
    DAMAGE("P2", KILLED, free_spans_touch),
    DAMAGE("P3", KILLED, free_span_in_no_set),
    DAMAGE("P3", KILLED, used_span_in_set),
    DAMAGE("P3", KILLED, set_in_ring),
    DAMAGE("P3", KILLED, root_of_set_outside),
    DAMAGE("P4", KILLED, wrong_kind_in_word),
    DAMAGE("P4", KILLED, wrong_index_in_word),
    DAMAGE("P4", KILLED, word_of_free_page),
    DAMAGE("P4", KILLED, word_of_metadata),
    DAMAGE("P5", KILLED, used_page_without_storage),
    DAMAGE("P5", KILLED, used_page_of_zeros),
    DAMAGE("P6", KILLED, free_set_out_of_order),
    DAMAGE("P7", KILLED, set_bit_cleared),
    DAMAGE("P7", KILLED, set_bit_set),
    DAMAGE("P8", KILLED, wrong_free_pages),
    DAMAGE("C1", KILLED, slab_count_of_bits),
    DAMAGE("C1", KILLED, bit_beyond_slots),
    DAMAGE("C2", KILLED, wrong_in_set),
    DAMAGE("C2", KILLED, slab_in_no_set),
    DAMAGE("C2", KILLED, slab_in_wrong_set),
    DAMAGE("C2", KILLED, slab_set_in_ring),
    DAMAGE("C3", KILLED, wrong_slab_count),
    DAMAGE("C3", KILLED, wrong_free_slots),
    DAMAGE("C4", KILLED, cached_and_free),
    DAMAGE("C4", KILLED, cached_twice),
    DAMAGE("C4", KILLED, cached_by_two_threads),
    DAMAGE("C5", KILLED, slab_of_no_class),
    DAMAGE("C5", KILLED, slab_of_no_arena),
    DAMAGE("C6", KILLED, hint_too_far),
    DAMAGE("C7", KILLED, pending_large_block),
    DAMAGE("C7", KILLED, pending_outside),
    DAMAGE("C8", KILLED, slab_set_out_of_order),
    DAMAGE("S1", KILLED, side_lost),
    DAMAGE("S1", KILLED, side_in_user_memory),
    DAMAGE("S1", KILLED, side_too_short),
    DAMAGE("S1", KILLED, side_of_own_slab),
    DAMAGE("S1", HARDENED, hardened_without_side),
    DAMAGE("S2", HARDENED, user_bits_cleared),
    DAMAGE("S2", HARDENED, user_bit_set),
    DAMAGE("T1", KILLED, count_over_capacity),
    DAMAGE("T1", KILLED, array_elsewhere),
    DAMAGE("T1", KILLED, array_outside),
    DAMAGE("T1", KILLED, stack_without_array),
    DAMAGE("T1", KILLED, gap_in_open_stack),
    DAMAGE("T1", KILLED, leftover_in_open_stack),
    DAMAGE("T2", KILLED, cached_inside_slot),
    DAMAGE("T2", KILLED, cached_of_other_class),
    DAMAGE("T2", KILLED, cached_root_record),
    DAMAGE("T3", KILLED, array_forgotten),
    DAMAGE("T3", KILLED, array_of_two_stacks),
    DAMAGE("T3", KILLED, array_in_user_memory),
    DAMAGE("T3", KILLED, spare_in_user_memory),
    DAMAGE("T3", KILLED, slot_for_another_purpose),
    DAMAGE("T4", KILLED, thread_slot_twice),
    DAMAGE("T4", KILLED, thread_slot_outside),
    DAMAGE("T4", KILLED, owner_impossible),
    DAMAGE("T4", KILLED, owner_not_in_table),
    DAMAGE("T5", KILLED, stack_without_owner),
    DAMAGE("T5", KILLED, link_without_owner),
    DAMAGE("T6", KILLED, scratch_of_free_span),
    DAMAGE("T5", KILLED, kept_without_owner),
    DAMAGE("T6", KILLED, building_inside_block),
    DAMAGE("X1", KILLED, log_in_user_memory),
    DAMAGE("X1", KILLED, log_is_an_array),
    DAMAGE("X1", KILLED, chunk_twice),
    DAMAGE("X2", KILLED, chunk_forgotten),
    DAMAGE("X2", KILLED, entry_of_no_type),
    DAMAGE("X2", KILLED, entry_for_nothing),
    DAMAGE("X2", KILLED, entry_for_the_library),
    DAMAGE("X2", KILLED, log_too_full),
    DAMAGE("X2", KILLED, log_of_too_many_chunks),
    DAMAGE("X3", KILLED, idle_with_entries),
    DAMAGE("X3", KILLED, phase_impossible),
    DAMAGE("X3", KILLED, open_without_log),
    DAMAGE("X3", KILLED, log_without_owner),
    DAMAGE("K1", KILLED, mark_without_entry),
    DAMAGE("K1", KILLED, mark_of_another_entry),
    DAMAGE("K1", KILLED, mark_that_is_none),
    DAMAGE("B1", KILLED, limbo_in_user_memory),
    DAMAGE("B1", KILLED, limbo_with_a_gap),
    DAMAGE("B1", KILLED, stamp_of_the_future),
    DAMAGE("B2", KILLED, retired_free_slot),
    DAMAGE("B2", KILLED, retired_inside_block),
    DAMAGE("B3", KILLED, section_of_the_future),
    DAMAGE("B3", KILLED, ousted_for_ever),
    DAMAGE("B3", KILLED, epoch_of_no_section),
    DAMAGE("R1", KILLED, bucket_into_nowhere),
    DAMAGE("R1", KILLED, chain_in_ring),
    DAMAGE("R1", KILLED, root_in_wrong_bucket),
    DAMAGE("R1", KILLED, root_in_user_memory),
    DAMAGE("R1", KILLED, root_longer_than_its_block),
    DAMAGE("R1", KILLED, name_without_end),
    DAMAGE("R2", KILLED, wrong_root_count),
    DAMAGE("R3", KILLED, one_name_twice),
    DAMAGE("R4", KILLED, wrong_hash),
    DAMAGE("O1", KILLED, root_forgotten),
    DAMAGE("O1", KILLED, root_named_by_scratch_too),
};
#define DAMAGES (sizeof(damages) / sizeof(damages[0]))

#endif
