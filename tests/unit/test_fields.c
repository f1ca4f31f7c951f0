/* SPDX-License-Identifier: MIT */
/*
 * test_fields.c - every field of every record in layout.h is changed to several values, and the
 * check has to notice.
 *
 * What it cannot notice is listed, field by field, with the reason. The list is exact: a field that
 * is in it and is noticed after all fails the test, as does one that is not and is overlooked. So
 * does a field that somebody adds to a record without a line here: the fields of a record must
 * cover all its bytes.
 */
#include <criterion/criterion.h>

#include <fnmatch.h>

#include "look/check.h"
#include "image.h"

/* ---- records -------------------------------------------------------------------------------- */

struct field {
    const char *name;
    uint16_t offset, size, unit; /* unit: bytes of an element */
};

struct record {
    const char *name;
    size_t size;
    const struct field *fields;
    size_t count;
};

#define WHOLE(record, member)                                                                      \
    {#member, offsetof(struct record, member), sizeof(((struct record *)0)->member),               \
     sizeof(((struct record *)0)->member)}
#define ARRAY(record, member, element)                                                  \
    {                                                                                   \
#member, offsetof(struct record, member), sizeof(((struct record *)0)->member), \
            sizeof(element)                                                             \
    }

static const struct field header_fields[] = {
    WHOLE(smf_header, magic),
    WHOLE(smf_header, format_version),
    WHOLE(smf_header, endian),
    WHOLE(smf_header, features_ignore),
    WHOLE(smf_header, features_read_only),
    WHOLE(smf_header, features_must),
    ARRAY(smf_header, uuid, uint8_t),
    WHOLE(smf_header, word_bits),
    WHOLE(smf_header, page_bytes),
    WHOLE(smf_header, os_page_bytes),
    WHOLE(smf_header, machine),
    WHOLE(smf_header, mutex_fingerprint),
    WHOLE(smf_header, mutex_bytes),
    WHOLE(smf_header, class_count),
    WHOLE(smf_header, arena_count),
    WHOLE(smf_header, lock_count),
    WHOLE(smf_header, mode),
    WHOLE(smf_header, fixed_base),
    WHOLE(smf_header, layout_version),
    ARRAY(smf_header, layout_name, char),
    ARRAY(smf_header, areas, uint64_t),
    WHOLE(smf_header, created_at),
    WHOLE(smf_header, commit_space),
    WHOLE(smf_header, commit_segment),
    ARRAY(smf_header, commit_dir, char),
    WHOLE(smf_header, checksum),
};

static const struct field state_fields[] = {
    WHOLE(smf_state, size),
    WHOLE(smf_state, chunk_count),
    WHOLE(smf_state, max_size),
    WHOLE(smf_state, mark),
    WHOLE(smf_state, generation),
    WHOLE(smf_state, poison),
    WHOLE(smf_state, sync_failed),
    WHOLE(smf_state, commit_sequence),
    WHOLE(smf_state, reserved0),
    WHOLE(smf_state, decay_ns),
    WHOLE(smf_state, retain),
    WHOLE(smf_state, reshaped),
    WHOLE(smf_state, claimed),
    WHOLE(smf_state, claimed_mark),
    ARRAY(smf_state, reserved1, uint64_t),
    WHOLE(smf_state, epoch),
    WHOLE(smf_state, adoptions),
    WHOLE(smf_state, claims_gone),
    ARRAY(smf_state, reserved2, uint64_t),
    WHOLE(smf_state, gate),
    WHOLE(smf_state, gate_ticket),
    WHOLE(smf_state, gate_refused),
    WHOLE(smf_state, durable_gate),
    WHOLE(smf_state, hints_valid),
    ARRAY(smf_state, reserved3, uint64_t),
    WHOLE(smf_state, features),
    WHOLE(smf_state, torn),
    WHOLE(smf_state, applying),
    WHOLE(smf_state, structure_headers),
    WHOLE(smf_state, orphans),
    WHOLE(smf_state, next_checksum),
    WHOLE(smf_state, next_layout_version),
    ARRAY(smf_state, next_layout_name, char),
    ARRAY(smf_state, spare, uint64_t),
};

static const struct field runtime_fields[] = {
    ARRAY(smf_runtime, boot_id, uint8_t),
    WHOLE(smf_runtime, device),
    WHOLE(smf_runtime, inode),
    WHOLE(smf_runtime, pid_namespace),
    WHOLE(smf_runtime, generation),
    WHOLE(smf_runtime, stored),
    WHOLE(smf_runtime, reserved),
};

static const struct field process_fields[] = {
    WHOLE(smf_process, state),       WHOLE(smf_process, pid), WHOLE(smf_process, start_time),
    WHOLE(smf_process, attached_at), WHOLE(smf_process, uid), WHOLE(smf_process, serial),
    ARRAY(smf_process, name, char),  WHOLE(smf_process, flags), WHOLE(smf_process, reserved),
};

static const struct field lock_fields[] = {
    ARRAY(smf_lock, mutex, uint64_t),
    WHOLE(smf_lock, waits),
    WHOLE(smf_lock, repairs),
};

static const struct field undo_fields[] = {WHOLE(smf_undo, ref), WHOLE(smf_undo, old)};

static const struct field chunk_fields[] = {WHOLE(smf_chunk, first_page),
                                            WHOLE(smf_chunk, page_count)};

static const struct field word_fields[] = {{"word", 0, 2, 2}};

static const struct field page_fields[] = {
    WHOLE(smf_page, left),           WHOLE(smf_page, right),
    WHOLE(smf_page, page_count),     WHOLE(smf_page, kind),
    WHOLE(smf_page, size_class),     WHOLE(smf_page, arena),
    WHOLE(smf_page, reserved0),      WHOLE(smf_page, free_slots),
    WHOLE(smf_page, hint),           WHOLE(smf_page, tag),
    WHOLE(smf_page, in_set),         WHOLE(smf_page, side),
    ARRAY(smf_page, bits, uint64_t),
};

static const struct field page_heap_fields[] = {
    WHOLE(smf_page_heap, log_count),
    ARRAY(smf_page_heap, log, uint64_t),
    ARRAY(smf_page_heap, set, uint64_t),
    ARRAY(smf_page_heap, set_bits, uint64_t),
    WHOLE(smf_page_heap, free_pages),
    WHOLE(smf_page_heap, takes),
    WHOLE(smf_page_heap, gives),
    WHOLE(smf_page_heap, grows),
    WHOLE(smf_page_heap, punched_pages),
};

static const struct field central_fields[] = {
    WHOLE(smf_central, log_count),
    ARRAY(smf_central, log, uint64_t),
    WHOLE(smf_central, set),
    WHOLE(smf_central, pending),
    WHOLE(smf_central, slab_count),
    WHOLE(smf_central, free_slots),
    WHOLE(smf_central, refills),
    WHOLE(smf_central, flushes),
    WHOLE(smf_central, refilled_slots),
    WHOLE(smf_central, flushed_slots),
    WHOLE(smf_central, slabs_made),
    WHOLE(smf_central, slabs_retired),
    WHOLE(smf_central, double_frees),
    ARRAY(smf_central, reserved, uint64_t),
};

static const struct field link_fields[] = {
    WHOLE(smf_link, op),          WHOLE(smf_link, dest),        WHOLE(smf_link, fresh),
    WHOLE(smf_link, fresh_array), WHOLE(smf_link, fresh_count), WHOLE(smf_link, old),
    WHOLE(smf_link, old_array),   WHOLE(smf_link, old_count),
};

static const struct field thread_fields[] = {
    WHOLE(smf_thread, owner),
    WHOLE(smf_thread, serial),
    WHOLE(smf_thread, tid),
    WHOLE(smf_thread, start_time),
    ARRAY(smf_thread, reserved0, uint64_t),
    WHOLE(smf_thread, scratch),
    WHOLE(smf_thread, building),
    ARRAY(smf_thread, link, uint64_t),
    ARRAY(smf_thread, spare, uint64_t),
    WHOLE(smf_thread, refilled),
    WHOLE(smf_thread, flushed),
    WHOLE(smf_thread, large),
    ARRAY(smf_thread, reserved1, uint64_t),
    ARRAY(smf_thread, stacks, uint64_t),
    ARRAY(smf_thread, reserved2, uint64_t),
    ARRAY(smf_thread, spans, uint64_t),
    ARRAY(smf_thread, reserved3, uint64_t),
    WHOLE(smf_thread, section_epoch),
    WHOLE(smf_thread, ousted),
    WHOLE(smf_thread, limbo),
    ARRAY(smf_thread, reserved4, uint64_t),
    WHOLE(smf_thread, tx_state),
    WHOLE(smf_thread, tx_log),
    ARRAY(smf_thread, reserved5, uint64_t),
    WHOLE(smf_thread, section),
    WHOLE(smf_thread, gate_wait),
    ARRAY(smf_thread, reserved6, uint64_t),
    WHOLE(smf_thread, queue_claims),
    WHOLE(smf_thread, structure),
    WHOLE(smf_thread, nested),
    WHOLE(smf_thread, using_structure),
    ARRAY(smf_thread, reserved7, uint64_t),
    ARRAY(smf_thread, held, uint64_t),
    ARRAY(smf_thread, held_since, uint64_t),
    WHOLE(smf_thread, waits_for),
    WHOLE(smf_thread, waits_since),
    ARRAY(smf_thread, reserved8, uint64_t),
    ARRAY(smf_thread, reserved9, uint64_t),
};

static const struct field log_fields[] = {
    WHOLE(smf_log, used), ARRAY(smf_log, reserved, uint64_t), ARRAY(smf_log, chunk, uint64_t),
    ARRAY(smf_log, filled, uint64_t),
};
static const struct field entry_fields[] = {WHOLE(smf_entry, head), WHOLE(smf_entry, ref)};

/* A cache's array, a bitmap in a page of its own, a side array: words of one meaning. */
static const struct field count_fields[] = {{"count", 0, 8, 8}};
static const struct field slot_fields[] = {{"slot", 0, 8, 8}};
static const struct field bits_fields[] = {{"bits", 0, 32, 8}};
static const struct field tag_fields[] = {{"tag", 0, 8, 2}};
static const struct field ref_fields[] = {{"ref", 0, 8, 8}};

static const struct field root_fields[] = {
    WHOLE(smf_root, next), WHOLE(smf_root, ref),      WHOLE(smf_root, type),
    WHOLE(smf_root, hash), WHOLE(smf_root, name_len), {"name", sizeof(struct smf_root), 9, 1},
};

static const struct field roots_fields[] = {
    WHOLE(smf_roots, log_count),
    ARRAY(smf_roots, log, uint64_t),
    WHOLE(smf_roots, scratch),
    WHOLE(smf_roots, sequence),
    WHOLE(smf_roots, count),
    ARRAY(smf_roots, reserved, uint64_t),
    ARRAY(smf_roots, bucket, uint64_t),
};

static const struct field user_mutex_fields[] = {
    WHOLE(smf_user_mutex, generation),
    WHOLE(smf_user_mutex, owner),
    ARRAY(smf_user_mutex, mutex, uint64_t),
};

#define RECORD(name, size, fields)                                                                 \
    static const struct record name = {#name, size, fields, sizeof(fields) / sizeof(fields[0])}
RECORD(header_record, sizeof(struct smf_header), header_fields);
RECORD(state_record, sizeof(struct smf_state), state_fields);
RECORD(runtime_record, sizeof(struct smf_runtime), runtime_fields);
RECORD(process_record, sizeof(struct smf_process), process_fields);
RECORD(lock_record, sizeof(struct smf_lock), lock_fields);
RECORD(undo_record, sizeof(struct smf_undo), undo_fields);
RECORD(chunk_record, sizeof(struct smf_chunk), chunk_fields);
RECORD(word_record, sizeof(uint16_t), word_fields);
RECORD(page_record, sizeof(struct smf_page), page_fields);
RECORD(page_heap_record, sizeof(struct smf_page_heap), page_heap_fields);
RECORD(central_record, sizeof(struct smf_central), central_fields);
RECORD(link_record, sizeof(struct smf_link), link_fields);
RECORD(thread_record, sizeof(struct smf_thread), thread_fields);
RECORD(log_record, sizeof(struct smf_log), log_fields);
RECORD(entry_record, sizeof(struct smf_entry), entry_fields);
RECORD(thread_ref_record, 8, ref_fields);
RECORD(array_count_record, 8, count_fields);
RECORD(array_slot_record, 8, slot_fields);
RECORD(bitmap_record, 32, bits_fields);
RECORD(side_record, 8, tag_fields);
RECORD(user_bits_record, 8, slot_fields);
RECORD(root_record, sizeof(struct smf_root) + 9, root_fields);
RECORD(roots_record, sizeof(struct smf_roots), roots_fields);
RECORD(user_mutex_record, sizeof(struct smf_user_mutex), user_mutex_fields);

static const struct record *const records[] = {
    &header_record,
    &state_record,
    &runtime_record,
    &process_record,
    &lock_record,
    &undo_record,
    &chunk_record,
    &word_record,
    &page_record,
    &page_heap_record,
    &central_record,
    &link_record,
    &thread_record,
    &log_record,
    &entry_record,
    &thread_ref_record,
    &array_count_record,
    &array_slot_record,
    &bitmap_record,
    &side_record,
    &user_bits_record,
    &root_record,
    &roots_record,
    &user_mutex_record,
};

Test(fields, of_a_record_cover_all_its_bytes)
{
    for (size_t i = 0; i < sizeof(records) / sizeof(records[0]); i++) {
        size_t end = 0;
        for (size_t k = 0; k < records[i]->count; k++) {
            const struct field *f = &records[i]->fields[k];
            cr_assert_eq(f->offset, end, "%s: bytes %zu to %u are in no field", records[i]->name,
                         end, f->offset);
            end = f->offset + f->size;
        }
        cr_assert_eq(end, records[i]->size, "%s: bytes from %zu on are in no field",
                     records[i]->name, end);
    }
}

/* ---- specimens ------------------------------------------------------------------------------ */

enum base { KILLED_IMAGE, CLOSED_IMAGE, HARDENED_IMAGE, BASES };

static uint64_t of_area(const struct image *m, size_t offset)
{
    uint64_t at;
    memcpy(&at, (const uint8_t *)image_areas(m) + offset, sizeof(at));
    return at;
}

#define AREA(name, member, size)                                                                   \
    static uint64_t name(struct image *m)                                                          \
    {                                                                                              \
        return of_area(m, offsetof(struct smf_areas, member)) + (size);                            \
    }

static uint64_t the_header(struct image *m)
{
    return image_ref(m, image_header(m));
}

static uint64_t the_state(struct image *m)
{
    return image_ref(m, image_state(m));
}

AREA(the_runtime, runtime, 0)
AREA(used_process, processes, 0)
AREA(free_process, processes, 5 * sizeof(struct smf_process))
AREA(roots_lock, locks, SMF_LOCK_ROOTS * sizeof(struct smf_lock))
AREA(first_chunk, directory, 0)
AREA(unused_chunk, directory, 100 * sizeof(struct smf_chunk))
AREA(the_page_heap, page_heap, 0)
AREA(the_roots, roots, 0)
AREA(thread_in_table, threads, 0)
AREA(unused_thread_in_table, threads, 900 * sizeof(uint64_t))

static uint64_t last_chunk(struct image *m)
{
    return first_chunk(m) + (image_state(m)->chunk_count - 1) * sizeof(struct smf_chunk);
}

static uint64_t next_chunk(struct image *m)
{
    return first_chunk(m) + image_state(m)->chunk_count * sizeof(struct smf_chunk);
}

/* An entry that says what its word holds: undoing it changes nothing. */
static uint64_t armed_log(struct image *m)
{
    struct smf_page_heap *heap = image_page_heap(m);
    heap->log_count = 1;
    heap->log[0] = (struct smf_undo){image_ref(m, &heap->free_pages), heap->free_pages};
    return image_ref(m, &heap->log[0]);
}

static uint64_t class_with_slabs(struct image *m)
{
    return image_ref(m, image_central(m, 0, smi_class_of(64)));
}

static uint64_t class_without_slabs(struct image *m)
{
    return image_ref(m, image_central(m, 0, SMF_CLASSES - 1));
}

static uint64_t first_thread(struct image *m)
{
    return image_threads(m)[0];
}

static uint64_t the_log(struct image *m)
{
    return image_thread_slot(m, 0)->tx_log;
}

static uint64_t first_entry(struct image *m)
{
    return the_log(m) + sizeof(struct smf_log);
}

static uint64_t idle_link(struct image *m)
{
    return image_ref(m, &image_thread_slot(m, 0)->link);
}

/* The class of the first thread's cache whose array has a span of its own, and one whose has
 * none. */
static uint32_t deep_class(const struct image *m)
{
    uint32_t k = 0;
    while (!(image_thread_slot(m, 0)->stacks[k] & SMF_STACK_PAGES))
        k++;
    return k;
}

static uint32_t shallow_class(const struct image *m)
{
    uint32_t k = 0;
    while ((image_thread_slot(m, 0)->stacks[k] & SMF_STACK_PAGES) ||
           image_array(m, image_thread_slot(m, 0), k)[0] < 2)
        k++;
    return k;
}

/* A slot on its way out of a cache, not stored yet. */
static uint64_t armed_link(struct image *m)
{
    struct smf_thread *slot = image_thread_slot(m, 0);
    uint32_t k = shallow_class(m);
    uint64_t *array = image_array(m, slot, k);
    uint64_t dest = image_roots(m)->bucket[0], ref = array[array[0]];
    for (uint32_t i = 1; !dest; i++)
        dest = image_roots(m)->bucket[i];
    dest = ((struct smf_root *)image_at(m, dest))->ref; /* a user's block */
    memset(image_at(m, dest), 0, 8);
    slot->link = (struct smf_link){.op = SMF_LINK_TAKE, .dest = dest, .fresh = ref,
                                   .fresh_array = image_ref(m, array), .fresh_count = array[0]};
    return image_ref(m, &slot->link);
}

static uint64_t shallow_count(struct image *m)
{
    return image_ref(m, image_array(m, image_thread_slot(m, 0), shallow_class(m)));
}

static uint64_t deep_count(struct image *m)
{
    return image_ref(m, image_array(m, image_thread_slot(m, 0), deep_class(m)));
}

static uint64_t lowest_slot(struct image *m)
{
    return shallow_count(m) + 8;
}

static uint64_t slot_beyond_count(struct image *m)
{
    uint64_t *array = image_array(m, image_thread_slot(m, 0), shallow_class(m));
    return image_ref(m, &array[array[0] + 1]);
}

static int is_free(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)m;
    (void)page;
    return d->kind == SMF_PAGE_FREE && d->page_count >= 4;
}

static int is_large(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)m;
    (void)page;
    return d->kind == SMF_PAGE_LARGE;
}

static int is_meta(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)m;
    (void)page;
    return d->kind == SMF_PAGE_META;
}

static int is_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)page;
    return d->kind == SMF_PAGE_SLAB && d->arena < image_header(m)->arena_count;
}

static int is_part_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_slab(m, page, d) && d->free_slots > 1 && !smi_classes[d->size_class].bitmap_pages;
}

static int is_full_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_slab(m, page, d) && d->free_slots == 0;
}

static int is_tagged_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_slab(m, page, d) && d->side != 0;
}

static int is_bitmap_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    return is_slab(m, page, d) && smi_classes[d->size_class].bitmap_pages;
}

static int is_own_slab(const struct image *m, uint32_t page, const struct smf_page *d)
{
    (void)page;
    return d->kind == SMF_PAGE_SLAB && d->arena == image_header(m)->arena_count;
}

/* Descriptor and word of a page that is `further` pages behind the first of its kind. */
#define PAGE(name, is, further)                                                                    \
    static uint64_t name(struct image *m)                                                          \
    {                                                                                              \
        return image_ref(m, image_page(m, image_find(m, 1, is) + (further)));                      \
    }                                                                                              \
    static uint64_t word_of_##name(struct image *m)                                                \
    {                                                                                              \
        return image_ref(m, image_word(m, image_find(m, 1, is) + (further)));                      \
    }
PAGE(free_span, is_free, 0)
PAGE(inside_free_span, is_free, 1)
PAGE(end_of_free_span, is_free, image_page(m, image_find(m, 1, is_free))->page_count - 1)
PAGE(large_block, is_large, 0)
PAGE(inside_large_block, is_large, 1)
PAGE(meta_span, is_meta, 0)
PAGE(part_slab, is_part_slab, 0)
PAGE(inside_slab, is_bitmap_slab, 1)
PAGE(full_slab, is_full_slab, 0)
PAGE(tagged_slab, is_tagged_slab, 0)
PAGE(bitmap_slab, is_bitmap_slab, 0)
PAGE(own_slab, is_own_slab, 0)

static uint64_t metadata_page(struct image *m)
{
    return image_ref(m, image_page(m, 1));
}

static uint64_t word_of_metadata_page(struct image *m)
{
    return image_ref(m, image_word(m, 1));
}

static uint64_t bitmap_page(struct image *m)
{
    return image_page_ref(image_find(m, 1, is_bitmap_slab));
}

static uint64_t tags(struct image *m)
{
    return image_page(m, image_find(m, 1, is_tagged_slab))->side;
}

/* Of the class that most blocks are of: its slots are neither on their way nor on top of a
 * stack. */
static uint64_t user_bits_word(struct image *m)
{
    uint32_t page = image_find(m, 1, is_slab);
    uint64_t tag_bytes =
        (smi_classes[image_page(m, page)->size_class].slots * sizeof(uint16_t) + 7) & ~7ull;
    return image_page(m, page)->side + tag_bytes;
}

/* Alone in its chain: a root that is lost does not take others with it. */
static uint64_t a_root(struct image *m)
{
    for (uint32_t i = 0;; i++) {
        uint64_t ref = image_roots(m)->bucket[i];
        if (ref && ((struct smf_root *)image_at(m, ref))->next == 0)
            return ref;
    }
}

/* Zeros, which are a mutex. */
static uint64_t users_block(struct image *m)
{
    return ((struct smf_root *)image_at(m, a_root(m)))->ref;
}

static const struct specimen {
    const char *name;
    const struct record *record;
    enum base base;
    uint64_t (*find)(struct image *m); /* ref; may change the image, keeping it sound */
} specimens[] = {
    {"header", &header_record, KILLED_IMAGE, the_header},
    {"state", &state_record, KILLED_IMAGE, the_state},
    {"state of a closed heap", &state_record, CLOSED_IMAGE, the_state},
    {"runtime", &runtime_record, KILLED_IMAGE, the_runtime},
    {"process", &process_record, KILLED_IMAGE, used_process},
    {"process, free entry", &process_record, KILLED_IMAGE, free_process},
    {"lock", &lock_record, KILLED_IMAGE, roots_lock},
    {"undo, armed", &undo_record, KILLED_IMAGE, armed_log},
    {"chunk, first", &chunk_record, KILLED_IMAGE, first_chunk},
    {"chunk, last", &chunk_record, KILLED_IMAGE, last_chunk},
    {"chunk, next", &chunk_record, KILLED_IMAGE, next_chunk},
    {"chunk, unused", &chunk_record, KILLED_IMAGE, unused_chunk},
    {"word of metadata", &word_record, KILLED_IMAGE, word_of_metadata_page},
    {"word, free span", &word_record, KILLED_IMAGE, word_of_free_span},
    {"word, inside free span", &word_record, KILLED_IMAGE, word_of_inside_free_span},
    {"word, end of free span", &word_record, KILLED_IMAGE, word_of_end_of_free_span},
    {"word, large block", &word_record, KILLED_IMAGE, word_of_large_block},
    {"word, inside large block", &word_record, KILLED_IMAGE, word_of_inside_large_block},
    {"word, meta span", &word_record, KILLED_IMAGE, word_of_meta_span},
    {"word, slab", &word_record, KILLED_IMAGE, word_of_part_slab},
    {"word, inside slab", &word_record, KILLED_IMAGE, word_of_inside_slab},
    {"word, full slab", &word_record, KILLED_IMAGE, word_of_full_slab},
    {"word, tagged slab", &word_record, KILLED_IMAGE, word_of_tagged_slab},
    {"word, slab with bitmap page", &word_record, KILLED_IMAGE, word_of_bitmap_slab},
    {"word, own slab", &word_record, KILLED_IMAGE, word_of_own_slab},
    {"page of metadata", &page_record, KILLED_IMAGE, metadata_page},
    {"page, free span", &page_record, KILLED_IMAGE, free_span},
    {"page, inside free span", &page_record, KILLED_IMAGE, inside_free_span},
    {"page, end of free span", &page_record, KILLED_IMAGE, end_of_free_span},
    {"page, large block", &page_record, KILLED_IMAGE, large_block},
    {"page, inside large block", &page_record, KILLED_IMAGE, inside_large_block},
    {"page, meta span", &page_record, KILLED_IMAGE, meta_span},
    {"page, slab", &page_record, KILLED_IMAGE, part_slab},
    {"page, inside slab", &page_record, KILLED_IMAGE, inside_slab},
    {"page, full slab", &page_record, KILLED_IMAGE, full_slab},
    {"page, tagged slab", &page_record, KILLED_IMAGE, tagged_slab},
    {"page, slab with bitmap page", &page_record, KILLED_IMAGE, bitmap_slab},
    {"page, own slab", &page_record, KILLED_IMAGE, own_slab},
    {"page, slab of a hardened heap", &page_record, HARDENED_IMAGE, part_slab},
    {"bitmap page", &bitmap_record, KILLED_IMAGE, bitmap_page},
    {"page heap", &page_heap_record, KILLED_IMAGE, the_page_heap},
    {"class", &central_record, KILLED_IMAGE, class_with_slabs},
    {"class without slabs", &central_record, KILLED_IMAGE, class_without_slabs},
    {"thread", &thread_record, KILLED_IMAGE, first_thread},
    {"thread without owner", &thread_record, CLOSED_IMAGE, first_thread},
    {"thread table", &thread_ref_record, KILLED_IMAGE, thread_in_table},
    {"thread table, unused", &thread_ref_record, KILLED_IMAGE, unused_thread_in_table},
    {"log", &log_record, KILLED_IMAGE, the_log},
    {"entry", &entry_record, KILLED_IMAGE, first_entry},
    {"link, idle", &link_record, KILLED_IMAGE, idle_link},
    {"link, armed", &link_record, KILLED_IMAGE, armed_link},
    {"array, inside", &array_count_record, KILLED_IMAGE, shallow_count},
    {"array of its own", &array_count_record, KILLED_IMAGE, deep_count},
    {"array, cached slot", &array_slot_record, KILLED_IMAGE, lowest_slot},
    {"array, beyond count", &array_slot_record, KILLED_IMAGE, slot_beyond_count},
    {"side array, tags", &side_record, KILLED_IMAGE, tags},
    {"side array, user bits", &user_bits_record, HARDENED_IMAGE, user_bits_word},
    {"root", &root_record, KILLED_IMAGE, a_root},
    {"roots", &roots_record, KILLED_IMAGE, the_roots},
    {"user mutex", &user_mutex_record, KILLED_IMAGE, users_block},
};

/* ---- what cannot be noticed ----------------------------------------------------------------- */

static const struct exception {
    const char *specimen, *field; /* patterns */
    int partly;                   /* some values are noticed */
    const char *reason;
} exceptions[] = {
    {"state*", "mark", 1,
     "who closes says it; a heap that wrongly is in use is refused as unclean"},
    {"state*", "generation", 0, "a counter: mutexes of any other generation are made anew"},
    {"state", "sync_failed", 0, "anything but 0 says that a sync failed: later ones are refused"},
    {"state*", "commit_sequence", 0, "room for what comes, read by nobody"},
    {"state*", "reshaped", 0, "a counter: processes that see another value learn their pages anew"},
    {"state", "claimed", 0,
     "an unfinished change: of a block whose mark does not say so, it means nothing"},
    {"state*", "claimed_mark", 0, "counts only while a block is claimed"},
    {"state*", "features", 1, "what a heap came to use; what is not known of it is refused"},
    {"state*", "epoch", 1, "a counter: a higher one is possible"},
    {"state*", "adoptions", 0, "a counter: who waits looks once more at what it waits for"},
    {"state*", "claims_gone", 0, "a counter: queues that saw another value look at their claims"},
    {"state*", "gate*", 0, "room for what comes, read by nobody"},
    {"state*", "durable_gate", 0, "room for what comes, read by nobody"},
    {"state*", "hints_valid", 0, "room for what comes, read by nobody"},
    {"state*", "features", 1, "a feature that this library knows"},
    {"state*", "torn", 0, "room for what comes, read by nobody"},
    {"state*", "applying", 0, "room for what comes, read by nobody"},
    {"state*", "orphans", 0, "room for what comes, read by nobody"},
    {"state*", "next_*", 0, "counts only when it is the checksum of the header with that layout"},
    {"state*", "spare", 0, "read by nobody"},
    {"state*", "decay_ns", 0, "a setting: any time is possible"},
    {"state*", "retain", 0, "a setting: any number of bytes is possible"},
    {"*", "reserved*", 0, "read by nobody"},
    {"runtime", "*", 0,
     "made anew by the first process; another machine or file than this one: refused as unclean"},
    {"process", "state", 1,
     "a free entry is noticed when a thread has it; any other value is in use, and adopted"},
    {"process, free entry", "state", 0,
     "in use without its lock: adopted and made free by the next process"},
    {"process*", "*", 0, "for display"},
    {"lock", "mutex", 0, "made anew by the first process"},
    {"lock", "*", 0, "statistics"},
    {"word, *free span", "word", 1,
     "whether a free page has storage and is zero, only the file system knows"},
    {"page of metadata", "[!k]*", 0, "the page heap looks at the kind alone, which is noticed"},
    {"page, inside*", "[!k]*", 0, "the page heap looks at the kind alone, which is noticed"},
    {"page, free span", "side", 0, "the time at which it became free: any is possible"},
    {"page, large block", "tag", 0, "the user's"},
    {"page, large block", "side", 1, "0 of one that is kept, or the same owner's entry"},
    {"page, slab*", "tag", 0, "of large blocks only"},
    {"page, *slab", "tag", 0, "of large blocks only"},
    {"page, slab*", "hint", 1, "where to begin looking: an earlier word is only slower"},
    {"page, full slab", "hint", 0, "stored when a slot comes back"},
    {"page, tagged slab", "hint", 0, "stored when a slot comes back"},
    {"page, full slab", "left", 0, "of members of a set only, and stored when it becomes one"},
    {"page, full slab", "right", 0, "of members of a set only, and stored when it becomes one"},
    {"page, tagged slab", "left", 0, "of members of a set only, and stored when it becomes one"},
    {"page, tagged slab", "right", 0, "of members of a set only, and stored when it becomes one"},
    {"page, slab with bitmap page", "bits", 0, "its bits are in the bitmap page"},
    {"page, end of free span", "left", 0,
     "the end of a free span repeats its length, nothing else is read"},
    {"page, end of free span", "right", 0,
     "the end of a free span repeats its length, nothing else is read"},
    {"page, free span", "size_class", 0, "of slabs only"},
    {"page, free span", "arena", 0, "of slabs only"},
    {"page, free span", "free_slots", 0, "of slabs only"},
    {"page, free span", "hint", 0, "of slabs only"},
    {"page, free span", "in_set", 0, "of slabs only"},
    {"page, free span", "bits", 0, "of slabs only"},
    {"page, end of free span", "size_class", 0, "of slabs only"},
    {"page, end of free span", "arena", 0, "of slabs only"},
    {"page, end of free span", "free_slots", 0, "of slabs only"},
    {"page, end of free span", "hint", 0, "of slabs only"},
    {"page, end of free span", "in_set", 0, "of slabs only"},
    {"page, end of free span", "bits", 0, "of slabs only"},
    {"page, large block", "size_class", 0, "of slabs only"},
    {"page, large block", "arena", 0, "of slabs only"},
    {"page, large block", "free_slots", 0, "of slabs only"},
    {"page, large block", "hint", 0, "of slabs only"},
    {"page, large block", "in_set", 0, "of slabs only"},
    {"page, large block", "bits", 0, "of slabs only"},
    {"page, meta span", "size_class", 0, "of slabs only"},
    {"page, meta span", "arena", 0, "of slabs only"},
    {"page, meta span", "free_slots", 0, "of slabs only"},
    {"page, meta span", "hint", 0, "of slabs only"},
    {"page, meta span", "in_set", 0, "of slabs only"},
    {"page, meta span", "bits", 0, "of slabs only"},
    {"page, end of free span", "tag", 0,
     "the end of a free span repeats its length, nothing else is read"},
    {"page, end of free span", "side", 0,
     "the end of a free span repeats its length, nothing else is read"},
    {"page, free span", "tag", 0, "of large blocks only"},
    {"page, large block", "left", 0, "of free spans and slabs only"},
    {"page, large block", "right", 0, "of free spans and slabs only"},
    {"page, meta span", "left", 0, "of free spans and slabs only"},
    {"page, meta span", "right", 0, "of free spans and slabs only"},
    {"page, meta span", "side", 0, "of free spans and slabs only"},
    {"page heap", "set_bits", 1, "the set of all longer spans is looked at without its bit"},
    {"page, *slab*", "bits", 1, "as many bits as before, and no cache has the slots"},
    {"bitmap page", "bits", 1, "as many bits as before, and no cache has the slots"},
    {"page heap", "log", 0, "entries count only while the log is armed"},
    {"page heap", "takes", 0, "statistics"},
    {"page heap", "gives", 0, "statistics"},
    {"page heap", "grows", 0, "statistics"},
    {"page heap", "punched_pages", 0, "statistics"},
    {"class*", "log", 0, "entries count only while the log is armed"},
    {"class*", "refill*", 0, "statistics"},
    {"class*", "flush*", 0, "statistics"},
    {"class*", "slabs_*", 0, "statistics"},
    {"class*", "double_frees", 0, "statistics"},
    {"undo, armed", "*", 1,
     "undoing is a store: what it makes wrong is noticed, unless nothing is wrong about it"},
    {"thread", "owner", 1,
     "another process in the table is possible: who adopts that one gives the cache back"},
    {"thread*", "serial", 0, "a counter"},
    {"thread*", "tid", 0, "for display, and to see that a thread of one's own is gone"},
    {"thread*", "start_time", 0, "for display, and to see that a thread of one's own is gone"},
    {"thread", "spans", 1, "entries count only while the mark of a block names them"},
    {"thread", "section_epoch", 1, "an earlier section is possible"},
    {"thread*", "ousted", 1, "an earlier section may have been ousted"},
    {"thread*", "section", 0, "room for what comes, read by nobody"},
    {"thread*", "tx_state", 1,
     "the serial is a counter, and one phase may be as possible as another"},
    {"log", "used", 1, "fewer entries are possible"},
    {"log", "chunk", 1, "a chunk that is not needed may be there or not, but for one"},
    {"log", "filled", 1, "of chunks before the last one only, and fewer entries are possible"},
    {"entry", "head", 1, "other bytes of the same length"},
    {"entry", "ref", 1, "any place in the heap is possible"},
    {"thread*", "gate_wait", 0, "room for what comes, read by nobody"},
    {"thread*", "queue_claims", 0, "a counter: too high, claims are looked for in vain"},
    {"thread*", "structure", 1, "with its low bits gone it may be none"},
    {"thread*", "nested", 0, "looked at with the structures"},
    {"thread*", "using_structure", 0, "any: who frees that structure leaves its parts to later"},
    {"thread*", "held*", 0, "for display"},
    {"thread*", "waits_*", 0, "for display"},
    {"thread*", "refilled", 0, "statistics"},
    {"thread*", "flushed", 0, "statistics"},
    {"thread*", "large", 0, "statistics"},
    {"thread*", "link", 1, "see link"},
    {"thread*", "stacks", 1, "a slot without owner: stored when it is claimed"},
    {"link, idle", "op", 1, "an operation on words that are all possible, or undone"},
    {"link, idle", "*", 0, "count only while the operation is armed"},
    {"link, armed", "op", 1,
     "disarmed, or another operation on possible words: a slot is lost at worst"},
    {"link, armed", "dest", 1, "another of the user's words"},
    {"link, armed", "fresh", 0, "is compared with the user's word, and not stored"},
    {"link, armed", "fresh_array", 1, "none: the slot came from scratch"},
    {"link, armed", "fresh_count", 1, "fewer: slots above it are lost, as if a user had them"},
    {"link, armed", "old*", 0, "no old block in this operation"},
    {"array*", "count", 1, "fewer: slots above it are lost, as if a user had them"},
    {"array, beyond count", "*", 0, "stored before the count covers it"},
    {"side array, tags", "*", 0, "the user's"},
    {"side array, user bits", "*", 1, "one slot for each thread may be on its way"},
    {"root", "ref", 0, "the user's"},
    {"root", "type", 0, "the user's"},
    {"user mutex", "*", 0, "lies in a block of the user's, which only the user knows to be one"},
    {"roots", "log", 0, "entries count only while the log is armed"},
    {"roots", "sequence", 0, "a counter; odd for ever: readers stop waiting"},
};

static const struct exception *exception_for(const struct specimen *s, const struct field *f)
{
    for (size_t i = 0; i < sizeof(exceptions) / sizeof(exceptions[0]); i++)
        if (fnmatch(exceptions[i].specimen, s->name, 0) == 0 &&
            fnmatch(exceptions[i].field, f->name, 0) == 0)
            return &exceptions[i];
    return NULL;
}

/* ---- the test ------------------------------------------------------------------------------- */

static struct fixture f;

static void begin(void)
{
    fixture_begin(&f);
}

static void end(void)
{
    fixture_end(&f);
}

TestSuite(fields, .init = begin, .fini = end, .timeout = 170);

static int is_noticed(const struct image *m)
{
    struct smi_view view;
    struct smi_check_result result;
    smi_view_of_mapping(&view, m->bytes, m->size, "image");
    int rc = smi_check(&view, 0, NULL, NULL, &result);
    must(rc == 0 || (rc < -20000 && rc > -21000), "the check returned %d", rc);
    smi_view_finish(&view);
    return rc < 0 || result.violations > 0;
}

struct counts {
    unsigned specimens, fields, values, noticed, excepted;
};

struct tried {
    unsigned values, noticed;
};

/* Change an element of `unit` bytes at `at` to several values, one after the other. */
static void try_element(struct image *m, uint64_t at, unsigned unit, struct rng *rng,
                        struct tried *tried)
{
    uint8_t *bytes = image_at(m, at);
    uint64_t old = 0, mask = unit == 8 ? UINT64_MAX : (1ull << 8 * unit) - 1;
    memcpy(&old, bytes, unit);
    const uint64_t values[] = {0, 1, old + 1, old - 1, old ^ 1ull << (8 * unit - 1), rng_next(rng)};
    for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        uint64_t value = values[i] & mask;
        if (value == old)
            continue;
        memcpy(bytes, &value, unit);
        tried->values++;
        tried->noticed += (unsigned)is_noticed(m);
    }
    memcpy(bytes, &old, unit);
}

/* All elements of a field, or the first, the last and some others of a long array. */
static struct tried try_field(struct image *m, uint64_t at, const struct field *field,
                              struct rng *rng)
{
    enum { MOST = 8 };
    struct tried tried = {0, 0};
    unsigned unit = field->unit <= 8 ? field->unit : 8, elements = field->size / unit;
    for (unsigned i = 0; i < elements && i < MOST; i++) {
        unsigned which = elements <= MOST ? i
                         : i == 0         ? 0
                         : i == 1         ? elements - 1
                                          : (unsigned)rng_below(rng, elements);
        try_element(m, at + field->offset + (uint64_t)which * unit, unit, rng, &tried);
    }
    return tried;
}

/* 1 when the field is as the list says. */
static int judge(const struct specimen *s, const struct field *field, const struct tried *tried)
{
    const struct exception *e = exception_for(s, field);
    if (!e && tried->noticed == tried->values)
        return 1;
    if (e && (e->partly ? tried->noticed > 0 : tried->noticed == 0))
        return 1;
    fprintf(stderr, "%s, %s: %u of %u values are noticed%s%s\n", s->name, field->name,
            tried->noticed, tried->values, e ? "; listed: " : "", e ? e->reason : "");
    return 0;
}

Test(fields, of_each_record_are_noticed_when_changed)
{
    struct image bases[BASES] = {image_make(&f, 0, IMAGE_KILLED), image_make(&f, 0, IMAGE_CLOSED),
                                 image_make(&f, SHMALLOC_HARDENED, IMAGE_KILLED)};
    struct rng rng = rng_from(test_seed());
    struct counts n = {0};
    unsigned wrong = 0;
    for (size_t i = 0; i < sizeof(specimens) / sizeof(specimens[0]); i++) {
        const struct specimen *s = &specimens[i];
        struct image m = {malloc(bases[s->base].size), bases[s->base].size};
        memcpy(m.bytes, bases[s->base].bytes, m.size);
        uint64_t at = s->find(&m);
        must(!is_noticed(&m), "%s: the image is not sound to begin with", s->name);
        n.specimens++;
        for (size_t k = 0; k < s->record->count; k++) {
            struct tried tried = try_field(&m, at, &s->record->fields[k], &rng);
            n.fields++;
            n.values += tried.values;
            n.noticed += tried.noticed;
            n.excepted += exception_for(s, &s->record->fields[k]) != NULL;
            wrong += !judge(s, &s->record->fields[k], &tried);
        }
        free(m.bytes);
    }
    fprintf(stderr,
            "%u specimens of %zu records, %u fields, %u of them listed; %u values, %u noticed\n",
            n.specimens, sizeof(records) / sizeof(records[0]), n.fields, n.excepted, n.values,
            n.noticed);
    for (int i = 0; i < BASES; i++)
        free(bases[i].bytes);
    cr_assert_eq(wrong, 0, "%u fields are not as listed", wrong);
}
