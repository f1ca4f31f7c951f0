/* SPDX-License-Identifier: MIT */
/*
 * test_view.c - a view reads what is in a file and nothing beside it, knows what is no heap, and
 * settles what threads left half done as repair would.
 */
#include <criterion/criterion.h>

#include <errno.h>
#include <sys/stat.h>

#include "image.h"

static struct fixture f;

static void begin(void)
{
    fixture_begin(&f);
}

static void end(void)
{
    fixture_end(&f);
}

TestSuite(view, .init = begin, .fini = end, .timeout = 60);

static void write_file(const char *path, const void *bytes, size_t len)
{
    struct image m = {(uint8_t *)(uintptr_t)bytes, len};
    image_write(&m, path);
}

/* ---- bytes ---------------------------------------------------------------------------------- */

static void make_closed_heap(void)
{
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref;
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    must_work(shmalloc_close(f.heap));
    f.heap = NULL;
}

Test(view, gives_ranges_inside_the_file_only)
{
    struct smi_view view;
    make_closed_heap();
    must_work(smi_view_open(&view, f.path));
    uint64_t size = view.file_size;
    cr_expect_not_null(smi_view_at(&view, 0, 1));
    cr_expect_not_null(smi_view_at(&view, 0, size));
    cr_expect_not_null(smi_view_at(&view, size - 1, 1));
    cr_expect_null(smi_view_at(&view, size - 1, 2));
    cr_expect_null(smi_view_at(&view, size, 1));
    cr_expect_null(smi_view_at(&view, 8, size));
    cr_expect_null(smi_view_at(&view, UINT64_MAX, 1));
    cr_expect_null(smi_view_at(&view, UINT64_MAX - 7, 16));
    cr_expect_null(smi_view_at(&view, 16, UINT64_MAX));
    cr_expect_null(smi_view_at(&view, 100, 0));
    smi_view_finish(&view);
}

Test(view, shows_the_bytes_of_the_file_across_blocks)
{
    struct smi_view view;
    make_closed_heap();
    struct image m = image_read(f.path);
    struct rng rng = rng_from(test_seed());
    for (uint64_t i = 200000; i < m.size; i++)
        m.bytes[i] = (uint8_t)rng_next(&rng);
    image_write(&m, f.path);
    must_work(smi_view_open(&view, f.path));
    for (int i = 0; i < 2000; i++) {
        uint64_t ref = rng_below(&rng, m.size), len = 1 + rng_below(&rng, 200000);
        if (len > m.size - ref)
            len = m.size - ref;
        must(memcmp(smi_view_at(&view, ref, len), m.bytes + ref, len) == 0,
             "%llu bytes at %llu differ", (unsigned long long)len, (unsigned long long)ref);
    }
    must(view.bytes_read <= m.size, "blocks were read more than once");
    smi_view_finish(&view);
    free(m.bytes);
}

Test(view, reads_little_of_a_large_file)
{
    struct smi_view view;
    make_closed_heap();
    must(truncate(f.path, (off_t)1 << 40) == 0, "truncate"); /* longer than the heap is allowed */
    must_work(smi_view_open(&view, f.path));
    cr_expect_not_null(smi_view_at(&view, ((uint64_t)1 << 40) - 8, 8));
    shmalloc_stats stats;
    must_work(smi_view_stats(&view, &stats));
    cr_expect_lt(view.bytes_read, 2u << 20);
    smi_view_finish(&view);
}

Test(view, keeps_what_it_saw_until_it_is_reloaded)
{
    struct smi_view view;
    make_closed_heap();
    must_work(smi_view_open(&view, f.path));
    uint64_t at = view.header.areas.page_heap + offsetof(struct smf_page_heap, takes), now;
    uint64_t before = *(const uint64_t *)smi_view_at(&view, at, 8), after = before + 1;
    int fd = open(f.path, O_RDWR);
    must(pwrite(fd, &after, 8, (off_t)at) == 8, "pwrite");
    close(fd);
    cr_expect_eq(*(const uint64_t *)smi_view_at(&view, at, 8), before);
    must_work(smi_view_read_now(&view, at, 8, &now));
    cr_expect_eq(now, after);
    must_work(smi_view_reload(&view));
    cr_expect_eq(*(const uint64_t *)smi_view_at(&view, at, 8), after);
    smi_view_finish(&view);
    smi_view_finish(&view);
    cr_expect_null(smi_view_at(&view, 0, 1), "a finished view shows nothing");
}

Test(view, of_a_file_that_was_shortened_shows_nothing_there)
{
    struct smi_view view;
    make_closed_heap();
    must_work(smi_view_open(&view, f.path));
    must(truncate(f.path, 300000) == 0, "truncate");
    cr_expect_not_null(smi_view_at(&view, 100000, 8));
    cr_expect_null(smi_view_at(&view, 500000, 8));
    smi_view_finish(&view);
}

Test(view, never_writes_to_the_file)
{
    struct smi_view view;
    shmalloc_stats stats;
    struct image m = image_make(&f, 0, IMAGE_KILLED), again;
    chmod(f.path, 0400);
    must_work(smi_view_open(&view, f.path));
    must_work(smi_view_stats(&view, &stats));
    smi_view_finish(&view);
    again = image_read(f.path);
    cr_assert_eq(memcmp(m.bytes, again.bytes, m.size), 0);
    free(m.bytes);
    free(again.bytes);
}

/* ---- what is no heap ------------------------------------------------------------------------ */

static void must_refuse(const char *path, int code, const char *part_of_message)
{
    struct smi_view view;
    must_code(smi_view_open(&view, path), code);
    must(strstr(shmalloc_errmsg(), path), "message without the path: %s", shmalloc_errmsg());
    must(strstr(shmalloc_errmsg(), part_of_message), "message without \"%s\": %s", part_of_message,
         shmalloc_errmsg());
    smi_view_finish(&view);
}

Test(view, refuses_what_is_no_heap)
{
    const char text[] = "This is a text.\n";
    uint8_t zeros[20000] = {0};
    must_refuse(fixture_path(&f, "missing"), -ENOENT, "No such file");
    must_refuse(f.dir, -EISDIR, "directory");
    write_file(f.path, "", 0);
    must_refuse(f.path, SHMALLOC_ENOTHEAP, "0 bytes");
    write_file(f.path, text, sizeof(text));
    must_refuse(f.path, SHMALLOC_ENOTHEAP, "17 bytes");
    write_file(f.path, zeros, sizeof(zeros));
    must_refuse(f.path, SHMALLOC_ENOTHEAP, "expected");
    unlink(f.path);
    must(mkfifo(f.path, 0600) == 0, "mkfifo");
    must_refuse(f.path, SHMALLOC_ENOTHEAP, "regular");
    must_refuse("/dev/null", SHMALLOC_ENOTHEAP, "regular");
}

static void reseal(struct image *m)
{
    struct smf_header *h = image_header(m);
    h->checksum = smi_hash(h, offsetof(struct smf_header, checksum));
}

Test(view, tells_foreign_from_damaged_from_newer)
{
    make_closed_heap();
    struct image m = image_read(f.path);
    struct smf_header *h = image_header(&m), good = *h;
    h->machine++;
    reseal(&m);
    image_write(&m, f.path);
    must_refuse(f.path, SHMALLOC_EFOREIGN, "machine");
    *h = good;
    h->mutex_fingerprint++;
    reseal(&m);
    image_write(&m, f.path);
    must_refuse(f.path, SHMALLOC_EFOREIGN, "C library");
    *h = good;
    h->features_must = 1;
    reseal(&m);
    image_write(&m, f.path);
    must_refuse(f.path, SHMALLOC_EVERSION, "features");
    *h = good;
    h->features_read_only = h->features_ignore = 1; /* may be read all the same */
    reseal(&m);
    image_write(&m, f.path);
    struct smi_view view;
    must_work(smi_view_open(&view, f.path));
    smi_view_finish(&view);
    *h = good;
    h->uuid[0] ^= 1;
    image_write(&m, f.path);
    must_refuse(f.path, SHMALLOC_ECORRUPT, "checksum");
    *h = good;
    image_write(&m, f.path);
    must(truncate(f.path, (off_t)m.size - 1) == 0, "truncate");
    must_refuse(f.path, SHMALLOC_ECORRUPT, "cut short");
    free(m.bytes);
}

/* ---- settling ------------------------------------------------------------------------------- */

struct settled {
    struct image m;
    struct smi_view view;
};

static struct settled begin_settling(void)
{
    struct settled s = {.m = image_make(&f, 0, IMAGE_KILLED)};
    return s;
}

static void settle(struct settled *s)
{
    smi_view_of_mapping(&s->view, s->m.bytes, s->m.size, "image");
    must_work(smi_view_settle(&s->view, NULL, NULL));
}

static uint64_t settled_word(struct settled *s, const void *in_image)
{
    return *(const uint64_t *)smi_view_at(&s->view, image_ref(&s->m, in_image), 8);
}

static void end_settling(struct settled *s)
{
    smi_view_finish(&s->view);
    free(s->m.bytes);
}

Test(view, undoes_logs_from_the_last_entry)
{
    struct settled s = begin_settling();
    struct smf_page_heap *heap = image_page_heap(&s.m);
    struct smf_central *central = image_central(&s.m, 2, 7);
    struct smf_roots *roots = image_roots(&s.m);
    heap->log[0] = (struct smf_undo){image_ref(&s.m, &heap->takes), 11}; /* the oldest value wins */
    heap->log[1] = (struct smf_undo){image_ref(&s.m, &heap->takes), 12};
    heap->log[2] = (struct smf_undo){image_ref(&s.m, &image_state(&s.m)->max_size), 1ull << 33};
    heap->log_count = 3;
    central->log[0] = (struct smf_undo){image_ref(&s.m, &central->refills), 5};
    central->log_count = 1;
    roots->log[0] = (struct smf_undo){image_ref(&s.m, &roots->count), 6};
    roots->log_count = 1;
    settle(&s);
    cr_expect_eq(settled_word(&s, &heap->takes), 11);
    cr_expect_eq(s.view.state.max_size, 1ull << 33);
    cr_expect_eq(settled_word(&s, &central->refills), 5);
    cr_expect_eq(settled_word(&s, &roots->count), 6);
    cr_expect_eq(settled_word(&s, &heap->log_count), 0);
    cr_expect_eq(s.view.in_flight, 3);
    cr_expect_eq(heap->log_count, 3, "the heap itself is not touched");
    end_settling(&s);
}

/* The stack of class `k` of the killed thread, as it was, but closed. */
static uint64_t *cache(struct settled *s, uint32_t k)
{
    return image_array(&s->m, image_thread_slot(&s->m, 0), k);
}

static uint64_t a_user_word(struct settled *s)
{
    for (uint32_t page = 1;; page++)
        if (image_page(&s->m, page)->kind == SMF_PAGE_LARGE)
            return image_page_ref(page) + 8;
}

Test(view, finishes_a_take_whose_word_was_stored)
{
    struct settled s = begin_settling();
    uint32_t k = smi_class_of(64), other = smi_class_of(8);
    uint64_t *fresh = cache(&s, k), *old = cache(&s, other), dest = a_user_word(&s);
    uint64_t count = fresh[0], old_count = old[0];
    *(uint64_t *)image_at(&s.m, dest) = fresh[count];
    image_thread_slot(&s.m, 0)->link = (struct smf_link){.op = SMF_LINK_TAKE,
                                                         .dest = dest,
                                                         .fresh = fresh[count],
                                                         .fresh_array = image_ref(&s.m, fresh),
                                                         .fresh_count = count,
                                                         .old = 0x123450,
                                                         .old_array = image_ref(&s.m, old),
                                                         .old_count = old_count};
    settle(&s);
    cr_expect_eq(settled_word(&s, &fresh[0]), count - 1);
    cr_expect_eq(settled_word(&s, &old[0]), old_count + 1);
    cr_expect_eq(settled_word(&s, &old[old_count + 1]), 0x123450);
    cr_expect_eq(settled_word(&s, &image_thread_slot(&s.m, 0)->link.op), SMF_LINK_NONE);
    end_settling(&s);
}

Test(view, undoes_a_take_whose_word_was_not_stored)
{
    struct settled s = begin_settling();
    uint64_t *fresh = cache(&s, smi_class_of(64)), dest = a_user_word(&s), count = fresh[0];
    *(uint64_t *)image_at(&s.m, dest) = 0;
    image_thread_slot(&s.m, 0)->link =
        (struct smf_link){.op = SMF_LINK_TAKE, .dest = dest, .fresh = fresh[count],
                          .fresh_array = image_ref(&s.m, fresh), .fresh_count = count};
    settle(&s);
    cr_expect_eq(settled_word(&s, &fresh[0]), count);
    end_settling(&s);
}

Test(view, finishes_a_give_from_every_point)
{
    struct settled s = begin_settling();
    uint64_t *old = cache(&s, smi_class_of(64)), count = old[0], dest = a_user_word(&s),
             ref = old[count];
    struct smf_link link = {.op = SMF_LINK_GIVE, .dest = dest, .old = ref,
                            .old_array = image_ref(&s.m, old), .old_count = count - 1};
    for (int stored = 0; stored < 3; stored++) {
        *(uint64_t *)image_at(&s.m, dest) = stored > 0 ? 0 : ref;
        old[count] = stored > 1 ? ref : 0;
        old[0] = count - 1;
        image_thread_slot(&s.m, 0)->link = link;
        settle(&s);
        cr_expect_eq(settled_word(&s, &old[0]), count);
        cr_expect_eq(settled_word(&s, &old[count]), ref);
        smi_view_finish(&s.view);
    }
    end_settling(&s);
}

/* The same, open: *count slots lie in it. */
static uint64_t *open_cache(struct settled *s, uint32_t k, uint64_t *count)
{
    uint64_t *array = cache(s, k);
    *count = array[0];
    must(*count > 0, "a stack with slots");
    memset(&array[*count + 1], 0,
           8 * (smi_stack_words(image_thread_slot(&s->m, 0)->stacks[k], k) - *count - 1));
    array[0] = SMF_OPEN;
    return array;
}

Test(view, settles_a_short_take_from_every_point)
{
    struct settled s = begin_settling();
    uint64_t count, dest = a_user_word(&s), *array = open_cache(&s, smi_class_of(64), &count),
                    ref = array[count];
    for (int stored = 0; stored < 3; stored++) { /* armed; the user's word; the word of the stack */
        *(uint64_t *)image_at(&s.m, dest) = stored > 0 ? ref : 0;
        array[count] = stored > 1 ? 0 : ref;
        image_thread_slot(&s.m, 0)->link = (struct smf_link){
            .op = dest | SMF_LINK_SHORT_TAKE, .dest = image_ref(&s.m, &array[count])};
        settle(&s);
        cr_expect_eq(settled_word(&s, image_at(&s.m, dest)), stored > 0 ? ref : 0, "point %d",
                     stored);
        cr_expect_eq(settled_word(&s, &array[count]), stored > 0 ? 0 : ref, "point %d", stored);
        cr_expect_eq(settled_word(&s, &image_thread_slot(&s.m, 0)->link.op), SMF_LINK_NONE);
        smi_view_finish(&s.view);
    }
    end_settling(&s);
}

Test(view, settles_a_short_give_from_every_point)
{
    struct settled s = begin_settling();
    uint64_t count, dest = a_user_word(&s), *array = open_cache(&s, smi_class_of(64), &count),
                    ref = array[count];
    for (int stored = 0; stored < 3; stored++) { /* armed; the word of the stack; the user's word */
        array[count] = stored > 0 ? ref : 0;
        *(uint64_t *)image_at(&s.m, dest) = stored > 1 ? 0 : ref;
        image_thread_slot(&s.m, 0)->link = (struct smf_link){
            .op = dest | SMF_LINK_SHORT_GIVE, .dest = image_ref(&s.m, &array[count])};
        settle(&s);
        cr_expect_eq(settled_word(&s, image_at(&s.m, dest)), stored > 0 ? 0 : ref, "point %d",
                     stored);
        cr_expect_eq(settled_word(&s, &array[count]), stored > 0 ? ref : 0, "point %d", stored);
        smi_view_finish(&s.view);
    }
    end_settling(&s);
}

Test(view, settles_a_short_exchange_from_every_point)
{
    struct settled s = begin_settling();
    uint64_t count, old_count, dest = a_user_word(&s);
    uint64_t *array = open_cache(&s, smi_class_of(64), &count),
             *old = open_cache(&s, smi_class_of(8), &old_count);
    uint64_t ref = array[count], given = old[old_count];
    for (int stored = 0; stored < 4; stored++) { /* armed; pushed; the user's word; popped */
        old[old_count] = stored > 0 ? given : 0;
        *(uint64_t *)image_at(&s.m, dest) = stored > 1 ? ref : given;
        array[count] = stored > 2 ? 0 : ref;
        image_thread_slot(&s.m, 0)->link =
            (struct smf_link){.op = dest | SMF_LINK_SHORT_EXCHANGE,
                              .dest = image_ref(&s.m, &array[count]),
                              .fresh = image_ref(&s.m, &old[old_count])};
        settle(&s);
        cr_expect_eq(settled_word(&s, image_at(&s.m, dest)), stored > 1 ? ref : given, "point %d",
                     stored);
        cr_expect_eq(settled_word(&s, &array[count]), stored > 1 ? 0 : ref, "point %d", stored);
        cr_expect_eq(settled_word(&s, &old[old_count]), stored > 1 ? given : 0, "point %d", stored);
        smi_view_finish(&s.view);
    }
    end_settling(&s);
}

Test(view, gives_a_claimed_block_its_mark_back)
{
    struct settled s = begin_settling();
    uint32_t page = 1;
    while (image_page(&s.m, page)->kind != SMF_PAGE_LARGE)
        page++;
    image_page(&s.m, page)->side = SMF_MARK_CLAIMED;
    image_state(&s.m)->claimed = page;
    image_state(&s.m)->claimed_mark = smi_mark_kept(3, 2);
    settle(&s);
    cr_expect_eq(settled_word(&s, &image_page(&s.m, page)->side), smi_mark_kept(3, 2));
    cr_expect_eq(settled_word(&s, &image_state(&s.m)->claimed), 0);
    end_settling(&s);
}

/* ---- figures -------------------------------------------------------------------------------- */

struct listing {
    shmalloc_block at[100];
    size_t count;
};

static int list(const shmalloc_block *block, void *arg)
{
    struct listing *listing = arg;
    must(listing->count < 100, "too many blocks");
    must(listing->count == 0 || listing->at[listing->count - 1].ref < block->ref,
         "refs do not ascend");
    listing->at[listing->count++] = *block;
    return 0;
}

static int stop_at_third(const shmalloc_block *block, void *arg)
{
    (void)block;
    return ++*(int *)arg == 3 ? 77 : 0;
}

static size_t position(const struct listing *listing, uint64_t ref)
{
    size_t i = 0;
    while (i < listing->count && listing->at[i].ref != ref)
        i++;
    return i;
}

Test(view, lists_the_blocks_that_users_have)
{
    struct smi_view view;
    shmalloc_ref refs[4], large, tagged, freed;
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < 4; i++)
        must_work(shmalloc_ref_alloc(f.heap, 8u << i, &refs[i]));
    must_work(shmalloc_ref_alloc(f.heap, 100000, &large));
    must_work(shmalloc_ref_alloc_tagged(f.heap, 50, 4711, &tagged));
    must_work(shmalloc_ref_alloc(f.heap, 50, &freed));
    must_work(shmalloc_ref_free(f.heap, &freed)); /* cached now */
    must_work(shmalloc_root_set(f.heap, "root", 0, 0)); /* a block of the library's own */
    struct listing listing = {.count = 0};
    must_work(smi_view_open(&view, f.path));
    must_work(smi_view_each_block(&view, list, &listing));
    cr_assert_eq(listing.count, 6);
    for (int i = 0; i < 4; i++)
        cr_expect_eq(listing.at[position(&listing, refs[i])].size, 8u << i);
    cr_expect_eq(listing.at[position(&listing, large)].size, 13 * SMF_PAGE);
    cr_expect_eq(listing.at[position(&listing, tagged)].tag, 4711);
    cr_expect_eq(listing.at[position(&listing, tagged)].size, 64);
    int seen = 0;
    cr_expect_eq(smi_view_each_block(&view, stop_at_third, &seen), 77);
    shmalloc_stats stats;
    must_work(smi_view_stats(&view, &stats));
    cr_expect_eq(stats.allocated_blocks, 6);
    cr_expect_eq(stats.allocated, 8 + 16 + 32 + 64 + 13 * SMF_PAGE + 64);
    cr_expect_eq(stats.roots, 1);
    cr_expect_eq(stats.threads, 1);
    cr_expect_eq(stats.processes, 1);
    cr_expect_gt(stats.cached, 0);
    smi_view_finish(&view);
}

Test(view, accounts_for_every_byte_of_the_file)
{
    struct smi_view view;
    shmalloc_stats stats;
    struct image m = image_make(&f, 0, IMAGE_KILLED);
    must_work(smi_view_open(&view, f.path));
    must_work(smi_view_stats(&view, &stats));
    uint64_t counted =
        stats.metadata + stats.allocated + stats.cached + stats.central_free + stats.free_pages;
    cr_expect_leq(counted, m.size);
    cr_expect_gt(counted, m.size - m.size / 16,
                 "only what slots leave over of their pages is not counted");
    cr_expect_geq(stats.free_pages, stats.largest_free_run);
    cr_expect_geq(stats.free_pages, stats.free_reserved);
    cr_expect_eq(stats.largest_free_run % SMF_PAGE, 0);
    smi_view_finish(&view);
    free(m.bytes);
}

static int collect_root(const shmalloc_root *root, void *arg)
{
    uint8_t *seen = arg;
    int i = -1;
    must(sscanf(root->name, "root %d", &i) == 1 && i >= 0 && i < IMAGE_ROOTS, "root \"%s\"",
         root->name);
    seen[i]++;
    return 0;
}

Test(view, walks_every_root_once)
{
    struct smi_view view;
    uint8_t seen[IMAGE_ROOTS] = {0};
    struct image m = image_make(&f, 0, IMAGE_KILLED);
    smi_view_of_mapping(&view, m.bytes, m.size, "image");
    must_work(smi_view_each_root(&view, collect_root, seen));
    for (int i = 0; i < IMAGE_ROOTS; i++)
        must(seen[i] == 1, "root %d was seen %u times", i, seen[i]);
    smi_view_finish(&view);
    free(m.bytes);
}

Test(view, ends_in_a_ring_of_roots)
{
    struct smi_view view;
    uint8_t seen[IMAGE_ROOTS] = {0};
    struct image m = image_make(&f, 0, IMAGE_KILLED);
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS; i++)
        if (image_roots(&m)->bucket[i])
            ((struct smf_root *)image_at(&m, image_roots(&m)->bucket[i]))->next =
                image_roots(&m)->bucket[i];
    smi_view_of_mapping(&view, m.bytes, m.size, "image");
    must_code(smi_view_each_root(&view, collect_root, seen), SHMALLOC_ECORRUPT);
    smi_view_finish(&view);
    free(m.bytes);
}

Test(view, visits_every_page_once_whatever_the_descriptors_say)
{
    struct image m = image_make(&f, 0, IMAGE_KILLED);
    struct rng rng = rng_from(test_seed());
    for (int round = 0; round < 50; round++) {
        struct smi_view view;
        smi_view_of_mapping(&view, m.bytes, m.size, "image");
        must_work(smi_view_settle(&view, NULL, NULL));
        uint64_t last = 0, pages = 0, data = 0;
        struct smi_span span = {0};
        while (smi_view_next_span(&view, &span)) {
            must(span.first_page > last, "span %u follows page %llu", span.first_page,
                 (unsigned long long)last);
            last = span.first_page + span.page_count - 1ull;
            pages += span.page_count;
        }
        for (uint32_t i = 0; i < view.chunk_count; i++)
            data += view.chunks[i].first_page + view.chunks[i].page_count -
                    smi_chunk_data_page(&view.chunks[i], &view.header.areas);
        cr_assert_eq(pages, data);
        smi_view_finish(&view);
        for (int i = 0; i < 20; i++) { /* next time, with more nonsense in them */
            struct smf_page *d =
                image_page(&m, (uint32_t)rng_below(&rng, m.size >> SMF_PAGE_SHIFT));
            d->kind = (uint8_t)rng_below(&rng, 8);
            d->page_count = (uint32_t)rng_next(&rng) >> rng_below(&rng, 32);
        }
    }
    free(m.bytes);
}
