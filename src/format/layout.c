/* SPDX-License-Identifier: MIT */
/* layout.c - places of the areas, and the decision whether a file is a heap we can use. */
#include "format/layout.h"

#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "platform/os.h"

_Static_assert(SMF_MUTEX_WORDS == SMI_MUTEX_WORDS,
               "what the file has room for is what a mutex takes");

#define REMEDY "see what `shmalloc-inspect check --repair` can do, or restore the file from a copy"

static uint64_t take_area(uint64_t *at, uint64_t bytes, uint64_t alignment)
{
    uint64_t start = (*at + alignment - 1) & ~(alignment - 1);
    *at = start + bytes;
    return start;
}

void smi_areas(uint32_t arena_count, struct smf_areas *out, uint32_t *lock_count)
{
    uint32_t central_count = (arena_count + 1) * SMF_CLASSES;
    uint32_t locks = SMF_LOCK_CLASS_FIRST + central_count + 1;
    uint64_t at = SMF_RUNTIME_OFFSET;
    memset(out, 0, sizeof(*out));
    out->runtime = take_area(&at, sizeof(struct smf_runtime), 64);
    out->processes = take_area(&at, SMF_PROCESSES * sizeof(struct smf_process), 64);
    out->locks = take_area(&at, locks * sizeof(struct smf_lock), 64);
    out->directory = take_area(&at, SMF_CHUNKS * sizeof(struct smf_chunk), 4096);
    out->page_heap = take_area(&at, sizeof(struct smf_page_heap), 64);
    out->roots = take_area(&at, sizeof(struct smf_roots), 64);
    out->threads = take_area(&at, SMF_THREADS * sizeof(uint64_t), 64);
    out->central = take_area(&at, central_count * sizeof(struct smf_central), 64);
    out->end = take_area(&at, 0, SMF_PAGE);
    *lock_count = locks;
}

static int validate_platform(const struct smf_header *h, const char *path)
{
    struct smi_platform here;
    int rc = smi_os_platform(&here);
    if (rc < 0)
        return rc;
    if (h->word_bits != 64 || h->machine != here.machine)
        return smi_error(
            SHMALLOC_EFOREIGN,
            "%s: made on machine type %u with %u-bit words, this is machine type %u with "
            "64-bit words; use the heap where it was made",
            path, h->machine, h->word_bits, here.machine);
    if (h->os_page_bytes != here.os_page_bytes)
        return smi_error(
            SHMALLOC_EFOREIGN,
            "%s: made for kernel pages of %u bytes, this kernel has %u; use a kernel with "
            "the same page size",
            path, h->os_page_bytes, here.os_page_bytes);
    if (h->mutex_bytes != here.mutex_bytes || h->mutex_fingerprint != here.mutex_fingerprint)
        return smi_error(
            SHMALLOC_EFOREIGN,
            "%s: made with a C library whose mutexes (%u bytes, fingerprint %016llx) differ "
            "from this one's (%u bytes, %016llx); link all programs on one heap with the "
            "same C library",
            path, h->mutex_bytes, (unsigned long long)h->mutex_fingerprint, here.mutex_bytes,
            (unsigned long long)here.mutex_fingerprint);
    return 0;
}

static int validate_features(const struct smf_header *h, int read_only, const char *path)
{
    if (h->format_version != SMF_FORMAT_VERSION && !smi_format_is_older(h))
        return smi_error(SHMALLOC_EVERSION,
                         "%s: file format version %u, this library reads version %u and converts "
                         "from %u on; use the "
                         "library that wrote it, or a newer one",
                         path, h->format_version, SMF_FORMAT_VERSION, SMF_FORMAT_OLDEST);
    if (h->features_must & ~SMF_KNOWN_MUST)
        return smi_error(SHMALLOC_EVERSION,
                         "%s: needs features %#llx that this library lacks; use a newer library",
                         path, (unsigned long long)(h->features_must & ~SMF_KNOWN_MUST));
    if (!read_only && (h->features_read_only & ~SMF_KNOWN_READ_ONLY))
        return smi_error(
            SHMALLOC_EVERSION,
            "%s: has features %#llx that this library can only read; open it read-only or "
            "use a newer library",
            path, (unsigned long long)(h->features_read_only & ~SMF_KNOWN_READ_ONLY));
    return 0;
}

int smi_layout_awaits_checksum(const struct smf_header *header)
{
    struct smf_header before = *header;
    before.format_version = SMF_FORMAT_OLDEST;
    return header->format_version == SMF_FORMAT_VERSION &&
           header->checksum == smi_hash(&before, offsetof(struct smf_header, checksum));
}

int smi_layout_settle(struct smf_header *header, const struct smf_state *state)
{
    struct smf_header next = *header;
    next.layout_version = state->next_layout_version;
    memcpy(next.layout_name, state->next_layout_name, sizeof(next.layout_name));
    next.checksum = state->next_checksum;
    if (state->next_checksum == 0 ||
        smi_hash(&next, offsetof(struct smf_header, checksum)) != next.checksum)
        return 0;
    *header = next;
    return 1;
}

static int validate_identity(const struct smf_header *h, const char *path)
{
    if (h->checksum != smi_hash(h, offsetof(struct smf_header, checksum)) &&
        !smi_layout_awaits_checksum(h))
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: header checksum is %016llx, its bytes give %016llx; " REMEDY,
                         path, (unsigned long long)h->checksum,
                         (unsigned long long)smi_hash(h, offsetof(struct smf_header, checksum)));
    struct smf_areas areas;
    uint32_t lock_count;
    if (h->arena_count < 1 || h->arena_count > SMF_ARENAS_MAX)
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: header says %u arenas, expected 1..%u; " REMEDY,
                         path, h->arena_count, SMF_ARENAS_MAX);
    smi_areas(h->arena_count, &areas, &lock_count);
    if (memcmp(&areas, &h->areas, sizeof(areas)) != 0 || h->lock_count != lock_count ||
        h->class_count != SMF_CLASSES || h->page_bytes != SMF_PAGE)
        return smi_error(
            SHMALLOC_ECORRUPT,
            "%s: header's areas, classes or page size are not those of format version %u; " REMEDY,
            path, SMF_FORMAT_VERSION);
    if (!memchr(h->layout_name, 0, sizeof(h->layout_name)) ||
        !memchr(h->commit_dir, 0, sizeof(h->commit_dir)))
        return smi_error(SHMALLOC_ECORRUPT, "%s: a name in the header has no end; " REMEDY, path);
    return 0;
}

static int validate_state(const struct smf_header *h, const struct smf_state *s, uint64_t file_size,
                          const char *path)
{
    if (s->features & ~SMF_KNOWN_STATE)
        return smi_error(
            SHMALLOC_EVERSION,
            "%s: is used with features %#llx that this library lacks; use a newer library", path,
            (unsigned long long)(s->features & ~SMF_KNOWN_STATE));
    if (s->size < h->areas.end || s->size % SMF_GRANULE != 0 || s->size > SMF_MAX_SIZE ||
        s->chunk_count < 1 || s->chunk_count > SMF_CHUNKS || s->max_size > SMF_MAX_SIZE ||
        s->max_size < s->size || s->max_size % SMF_GRANULE != 0)
        return smi_error(
            SHMALLOC_ECORRUPT,
            "%s: state says size %llu, maximum %llu, %llu chunks, which cannot be; " REMEDY, path,
            (unsigned long long)s->size, (unsigned long long)s->max_size,
            (unsigned long long)s->chunk_count);
    if (file_size < s->size)
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: file has %llu bytes, the heap in it %llu: it was cut short; " REMEDY,
                         path, (unsigned long long)file_size, (unsigned long long)s->size);
    if (s->mark < SMF_CLEAN || s->mark > SMF_UNCHECKED)
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: state mark is %llu, expected 1 to 3; " REMEDY,
                         path, (unsigned long long)s->mark);
    return 0;
}

int smi_layout_validate(const struct smf_header *header, const struct smf_state *state,
                        uint64_t file_size, int read_only, const char *path)
{
    if (header->magic == SMF_MAGIC && file_size < SMF_STATE_OFFSET + sizeof(struct smf_state))
        return smi_error(SHMALLOC_ENOTHEAP,
                         "%s: not a shmalloc heap any more: it begins as one, but has %llu bytes, "
                         "expected at least "
                         "%llu; restore it from a copy",
                         path, (unsigned long long)file_size,
                         (unsigned long long)(SMF_STATE_OFFSET + sizeof(struct smf_state)));
    if (header->magic != SMF_MAGIC)
        return smi_error(SHMALLOC_ENOTHEAP,
                         "%s: not a shmalloc heap (%llu bytes, first word %016llx, expected "
                         "%016llx); give the name of "
                         "one, or create one (SHMALLOC_CREATE) under another name",
                         path, (unsigned long long)file_size, (unsigned long long)header->magic,
                         (unsigned long long)SMF_MAGIC);
    if (header->endian != SMF_ENDIAN && header->endian != __builtin_bswap32(SMF_ENDIAN))
        return smi_error(SHMALLOC_ECORRUPT,
                         "%s: header's mark of the byte order is %08x, expected %08x; " REMEDY,
                         path, header->endian, SMF_ENDIAN);
    if (header->endian != SMF_ENDIAN)
        return smi_error(SHMALLOC_EFOREIGN,
                         "%s: made on a machine of the other byte order (mark %08x, expected "
                         "%08x); use the heap "
                         "where it was made",
                         path, header->endian, SMF_ENDIAN);
    int rc = validate_features(header, read_only, path);
    if (rc == 0)
        rc = validate_platform(header, path);
    if (rc == 0)
        rc = validate_identity(header, path);
    if (rc == 0)
        rc = validate_state(header, state, file_size, path);
    return rc;
}
