/* SPDX-License-Identifier: MIT */
/*
 * test_layout.c - places of the areas, and what the header's validation says to each damaged field.
 *
 * A header and state are made here from nothing but layout.h and the platform, so that a field that
 * the validation forgets to look at shows as an accepted header.
 */
#include <criterion/criterion.h>

#include <string.h>

#include <shmalloc/shmalloc.h>

#include "format/layout.h"
#include "platform/os.h"

TestSuite(layout, .timeout = 20);

static struct smf_header header;
static struct smf_state state;
static uint64_t file_size;

static void seal(void)
{
    header.checksum = smi_hash(&header, offsetof(struct smf_header, checksum));
}

static void make_sound(void)
{
    struct smi_platform here;
    cr_assert_eq(smi_os_platform(&here), 0);
    memset(&header, 0, sizeof(header));
    header.magic = SMF_MAGIC;
    header.format_version = SMF_FORMAT_VERSION;
    header.endian = SMF_ENDIAN;
    header.word_bits = 64;
    header.page_bytes = SMF_PAGE;
    header.os_page_bytes = here.os_page_bytes;
    header.machine = here.machine;
    header.mutex_fingerprint = here.mutex_fingerprint;
    header.mutex_bytes = here.mutex_bytes;
    header.class_count = SMF_CLASSES;
    header.arena_count = 4;
    smi_areas(4, &header.areas, &header.lock_count);
    seal();
    memset(&state, 0, sizeof(state));
    state.size = file_size = SMF_GRANULE;
    state.chunk_count = 1;
    state.max_size = 64 * SMF_GRANULE;
    state.mark = SMF_CLEAN;
    state.generation = 1;
}

static int validate(int read_only)
{
    return smi_layout_validate(&header, &state, file_size, read_only, "a heap");
}

static void cr_expect_code(int code, int line)
{
    cr_expect_eq(validate(0), code, "line %d: %d (%s)", line, validate(0), shmalloc_errmsg());
    make_sound();
}

/* Damage one thing, with a checksum that agrees, and see the code. */
#define damaged(damage, code)                                                                      \
    do {                                                                                           \
        damage;                                                                                    \
        seal();                                                                                    \
        cr_expect_code(code, __LINE__);                                                            \
    } while (0)

Test(layout, areas_are_in_order_aligned_and_large_enough)
{
    for (uint32_t arenas = 1; arenas <= SMF_ARENAS_MAX; arenas++) {
        struct smf_areas a;
        uint32_t locks;
        smi_areas(arenas, &a, &locks);
        cr_assert_eq(locks, SMF_LOCK_CLASS_FIRST + (arenas + 1) * SMF_CLASSES + 1);
        cr_assert_eq(a.runtime, SMF_RUNTIME_OFFSET);
        const uint64_t ends[][3] = {
            {a.runtime, sizeof(struct smf_runtime), a.processes},
            {a.processes, SMF_PROCESSES * sizeof(struct smf_process), a.locks},
            {a.locks, locks * sizeof(struct smf_lock), a.directory},
            {a.directory, SMF_CHUNKS * sizeof(struct smf_chunk), a.page_heap},
            {a.page_heap, sizeof(struct smf_page_heap), a.roots},
            {a.roots, sizeof(struct smf_roots), a.threads},
            {a.threads, SMF_THREADS * sizeof(uint64_t), a.central},
            {a.central, (arenas + 1) * SMF_CLASSES * sizeof(struct smf_central), a.end},
        };
        for (unsigned i = 0; i < sizeof(ends) / sizeof(ends[0]); i++) {
            cr_assert_leq(ends[i][0] + ends[i][1], ends[i][2], "%u arenas, area %u", arenas, i);
            cr_assert_eq(ends[i][0] % 64, 0, "%u arenas, area %u", arenas, i);
        }
        cr_assert_eq(a.end % SMF_PAGE, 0);
    }
}

Test(layout, header_and_state_do_not_meet)
{
    cr_assert_leq(sizeof(struct smf_header), SMF_STATE_OFFSET);
    cr_assert_leq(SMF_STATE_OFFSET + sizeof(struct smf_state), SMF_RUNTIME_OFFSET);
}

Test(layout, a_fresh_heap_of_default_arenas_fits_in_1_MiB)
{
    struct smf_areas a;
    uint32_t locks;
    smi_areas(4, &a, &locks);
    struct smf_chunk chunk = {0, (uint32_t)(SMF_GRANULE / SMF_PAGE)};
    cr_assert_lt(smi_chunk_data_page(&chunk, &a), chunk.page_count - 8,
                 "and leaves room for blocks");
}

Test(layout, chunk_metadata_lies_before_its_pages)
{
    struct smf_areas a;
    uint32_t locks;
    smi_areas(4, &a, &locks);
    for (uint32_t pages = 128; pages < 1u << 20; pages *= 2) {
        struct smf_chunk chunk = {1024, pages};
        uint64_t end = smi_chunk_words_offset(&chunk, &a) + smi_chunk_metadata_bytes(pages);
        uint64_t data = (uint64_t)smi_chunk_data_page(&chunk, &a) << SMF_PAGE_SHIFT;
        cr_assert(data >= end && data < end + SMF_PAGE);
    }
}

Test(layout, a_sound_header_is_accepted)
{
    make_sound();
    cr_assert_eq(validate(0), 0, "%s", shmalloc_errmsg());
    cr_assert_eq(validate(1), 0, "%s", shmalloc_errmsg());
}

Test(layout, each_damaged_field_gives_its_code)
{
    make_sound();
    damaged(header.magic ^= 1, SHMALLOC_ENOTHEAP);
    damaged(header.magic = 0, SHMALLOC_ENOTHEAP);
    damaged(header.format_version++, SHMALLOC_EVERSION);
    damaged(header.endian = __builtin_bswap32(SMF_ENDIAN), SHMALLOC_EFOREIGN);
    damaged(header.endian = UINT32_MAX, SHMALLOC_ECORRUPT);
    damaged(header.features_must = 1ull << 63, SHMALLOC_EVERSION);
    damaged(header.features_read_only = 1ull << 63, SHMALLOC_EVERSION);
    damaged(header.features_ignore = 1ull << 63, 0);
    damaged(header.word_bits = 32, SHMALLOC_EFOREIGN);
    damaged(header.page_bytes = 4096, SHMALLOC_ECORRUPT);
    damaged(header.os_page_bytes *= 4, SHMALLOC_EFOREIGN);
    damaged(header.machine++, SHMALLOC_EFOREIGN);
    damaged(header.mutex_fingerprint++, SHMALLOC_EFOREIGN);
    damaged(header.mutex_bytes += 8, SHMALLOC_EFOREIGN);
    damaged(header.class_count++, SHMALLOC_ECORRUPT);
    damaged(header.arena_count = 0, SHMALLOC_ECORRUPT);
    damaged(header.arena_count = SMF_ARENAS_MAX + 1, SHMALLOC_ECORRUPT);
    damaged(header.arena_count++, SHMALLOC_ECORRUPT);
    damaged(header.lock_count--, SHMALLOC_ECORRUPT);
    damaged(header.areas.central += 64, SHMALLOC_ECORRUPT);
    damaged(header.areas.end += SMF_PAGE, SHMALLOC_ECORRUPT);
    damaged(memset(header.layout_name, 'a', sizeof(header.layout_name)), SHMALLOC_ECORRUPT);
    damaged(memset(header.commit_dir, 'a', sizeof(header.commit_dir)), SHMALLOC_ECORRUPT);
    damaged(file_size = SMF_STATE_OFFSET, SHMALLOC_ENOTHEAP);
}

Test(layout, each_damaged_state_word_is_found)
{
    make_sound();
    damaged(state.size = 0, SHMALLOC_ECORRUPT);
    damaged(state.size++, SHMALLOC_ECORRUPT);
    damaged(state.size = SMF_MAX_SIZE + SMF_GRANULE, SHMALLOC_ECORRUPT);
    damaged(state.size = 2 * SMF_GRANULE, SHMALLOC_ECORRUPT); /* the file has only one */
    damaged(state.max_size = SMF_GRANULE / 2, SHMALLOC_ECORRUPT);
    damaged(state.max_size = SMF_MAX_SIZE + SMF_GRANULE, SHMALLOC_ECORRUPT);
    damaged(state.chunk_count = 0, SHMALLOC_ECORRUPT);
    damaged(state.chunk_count = SMF_CHUNKS + 1, SHMALLOC_ECORRUPT);
    damaged(state.mark = 0, SHMALLOC_ECORRUPT);
    damaged(state.mark = 4, SHMALLOC_ECORRUPT);
    damaged(state.features = 1ull << 63, SHMALLOC_EVERSION);
    damaged(file_size--, SHMALLOC_ECORRUPT);
}

Test(layout, newer_read_only_features_allow_reading)
{
    make_sound();
    header.features_read_only = 1ull << 63;
    seal();
    cr_assert_eq(validate(0), SHMALLOC_EVERSION);
    cr_assert_eq(validate(1), 0, "%s", shmalloc_errmsg());
    state.features = 1ull << 62; /* these forbid both */
    cr_assert_eq(validate(1), SHMALLOC_EVERSION);
}

Test(layout, every_byte_of_the_header_is_covered)
{
    for (size_t i = 0; i < sizeof(header); i++) {
        make_sound();
        ((uint8_t *)&header)[i] ^= 0x40;
        cr_assert_lt(validate(0), 0, "byte %zu changed unnoticed", i);
        cr_assert_str_not_empty(shmalloc_errmsg());
    }
}
