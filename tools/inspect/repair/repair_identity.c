/* SPDX-License-Identifier: MIT */
/*
 * repair_identity.c - header, state and directory of a heap under repair.
 *
 * The header has a checksum. What follows from the number of arenas or from this machine is
 * computed; one byte that is wrong anywhere is searched for. Only a header whose checksum is right
 * in the end is believed.
 *
 * Chunks follow each other without a gap, so each tells where the next begins. How long one is, is
 * said by its entry and by the begin of the next, or by the end of the heap; where they disagree,
 * the chunk's own descriptors decide: only in the right place do they tile it with spans.
 */
#include "repair_plan.h"

#include <string.h>

#include "platform/error.h"
#include "platform/os.h"

#define GRANULE_PAGES (SMF_GRANULE >> SMF_PAGE_SHIFT)
#define USUAL_MAX_SIZE (1ull << 40)

/* ---- header ---- */

#define HASHED offsetof(struct smf_header, checksum)

static int is_intact(const struct smf_header *h)
{
    return smi_hash(h, HASHED) == h->checksum;
}

/* Everything that follows from the number of arenas, as this library here would write it. */
static void derive(struct smf_header *h, uint32_t arenas)
{
    struct smi_platform here;
    h->magic = SMF_MAGIC;
    h->format_version = smi_format_is_older(h) ? h->format_version : SMF_FORMAT_VERSION;
    h->endian = SMF_ENDIAN;
    h->word_bits = 64;
    h->page_bytes = SMF_PAGE;
    h->class_count = SMF_CLASSES;
    h->arena_count = arenas;
    smi_areas(arenas, &h->areas, &h->lock_count);
    if (smi_os_platform(&here) < 0)
        return;
    h->os_page_bytes = here.os_page_bytes;
    h->machine = here.machine;
    h->mutex_bytes = here.mutex_bytes;
    h->mutex_fingerprint = here.mutex_fingerprint;
}

/* One wrong byte: FNV-1a goes on from the byte before it, so each try costs the bytes behind
 * only. */
static int find_wrong_byte(struct smf_header *h)
{
    uint8_t *bytes = (uint8_t *)h;
    for (size_t i = 0; i < HASHED; i++) {
        uint8_t was = bytes[i];
        for (unsigned value = 0; value < 256; value++) {
            bytes[i] = (uint8_t)value;
            if (is_intact(h))
                return 1;
        }
        bytes[i] = was;
    }
    return 0;
}

/* The checksum itself has one wrong byte. */
static int mend_checksum(struct smf_header *h)
{
    uint64_t right = smi_hash(h, HASHED), wrong = right ^ h->checksum;
    for (unsigned i = 0; i < 8; i++)
        if ((wrong & ~(0xffull << 8 * i)) == 0) {
            h->checksum = right;
            return 1;
        }
    return 0;
}

static int find_header(const struct smf_header *found, struct smf_header *out)
{
    for (uint32_t arenas = 0; arenas <= SMF_ARENAS_MAX; arenas++) {
        *out = *found;
        derive(out, arenas                                 ? arenas
                    : found->arena_count <= SMF_ARENAS_MAX ? found->arena_count
                                                           : 1);
        if (is_intact(out))
            return 1;
    }
    *out = *found;
    return mend_checksum(out) || find_wrong_byte(out);
}

/* Is this the identity of a heap that could be used here, whatever its state? Codes of
 * smi_layout_validate. */
static int validate_alone(const struct smi_repair *r, const struct smf_header *header)
{
    const struct smf_state possible = {
        .size = SMF_MAX_SIZE, .chunk_count = 1, .max_size = SMF_MAX_SIZE, .mark = SMF_CLEAN};
    return smi_layout_validate(header, &possible, SMF_MAX_SIZE, 0, r->view.path);
}

int smi_mend_header(struct smi_repair *r)
{
    struct smf_header found = r->view.header, right;
    uint64_t size = r->file_size;
    if (size < SMF_STATE_OFFSET + sizeof(struct smf_state) || is_intact(&found) ||
        !find_header(&found, &right)) {
        int rc = smi_layout_validate(&found, &r->view.state, size, 0, r->view.path);
        /* 0: the state is wrong */
        return is_intact(&found) && rc == SHMALLOC_ECORRUPT ? validate_alone(r, &found) : rc;
    }
    r->view.header = right;
    for (size_t at = 0; at < sizeof(right); at += 8) {
        uint64_t word;
        memcpy(&word, (const uint8_t *)&right + at, 8);
        smi_repair_put(r, SMI_TRUTHS, at, word);
    }
    smi_repair_say(r, "H1", 0, "the header gets the bytes that its checksum is of");
    return validate_alone(r, &right);
}

/* ---- state ---- */

static uint64_t state_ref(size_t offset)
{
    return SMF_STATE_OFFSET + offset;
}

void smi_mend_state(struct smi_repair *r)
{
    const struct smf_state *s = &r->view.state;
    if (s->mark < SMF_CLEAN || s->mark > SMF_UNCHECKED)
        smi_repair_say(
            r, "H1", state_ref(offsetof(struct smf_state, mark)),
            "the state mark, which is %llu, says from now on that the heap was not closed in order",
            (unsigned long long)s->mark);
}

/* ---- directory ---- */

/* The chunks found so far, what the file says about them, and where the heap may end. */
struct directory {
    struct smi_repair *r;
    const struct smf_chunk *entry;
    uint64_t size_pages; /* as the state says; 0 when it cannot be */
    uint64_t file_pages; /* whole granules of the file */
    uint64_t said_count;
};

/* Pages of the last chunk found that no span accounts for. */
static uint64_t misfit(struct smi_repair *r)
{
    const struct smf_chunk *chunk = &r->view.chunks[r->view.chunk_count - 1];
    uint64_t end = (uint64_t)chunk->first_page + chunk->page_count, misses = 0;
    for (uint64_t page = smi_chunk_data_page(chunk, &r->view.header.areas); page < end;) {
        uint32_t length = smi_repair_stands(r, page, end);
        misses += length == 0;
        page += length ? length : 1;
    }
    return misses;
}

/* Take [page, page + count) for chunk i, if that can be. */
static int suppose(struct directory *d, uint32_t i, uint64_t page, uint64_t count)
{
    struct smi_view *view = &d->r->view;
    struct smf_chunk chunk = {(uint32_t)page, (uint32_t)count};
    uint64_t limit = d->size_pages > d->file_pages ? d->size_pages : d->file_pages;
    if (!smi_chunk_follows(&chunk, page, limit, &view->header.areas) ||
        smi_chunk_words_offset(&chunk, &view->header.areas) + smi_chunk_metadata_bytes(count) >
            d->r->file_size)
        return 0;
    view->chunks[i] = chunk;
    view->chunk_count = i + 1;
    return 1;
}

/* The length of chunk i, which begins at `page`: of those that something speaks for, the one that
 * fits its descriptors best. 0 when there is none. */
static uint64_t find_length(struct directory *d, uint32_t i, uint64_t page)
{
    const uint64_t next = i + 1 < SMF_CHUNKS ? d->entry[i + 1].first_page : 0,
                   said = d->entry[i].page_count;
    const uint64_t lengths[] = {said, next > page ? next - page : 0,
                                d->size_pages > page ? d->size_pages - page : 0,
                                d->file_pages > page ? d->file_pages - page : 0};
    uint64_t best = 0, least = UINT64_MAX;
    if (suppose(d, i, page, said) && (next == page + said || d->size_pages == page + said))
        return said; /* two agree */
    for (unsigned n = 0; n < sizeof(lengths) / sizeof(lengths[0]); n++) {
        uint64_t misses = suppose(d, i, page, lengths[n]) ? misfit(d->r) : UINT64_MAX;
        if (misses < least) {
            least = misses;
            best = lengths[n];
        }
    }
    return least <= best / 64 ? best : 0; /* elsewhere than in the right place hardly anything
                                             fits */
}

static int is_consistent(struct directory *d)
{
    uint64_t page = 0;
    if (d->size_pages == 0 || d->said_count < 1 || d->said_count > SMF_CHUNKS)
        return 0;
    for (uint32_t i = 0; i < d->said_count; i++) {
        if (d->entry[i].first_page != page || !suppose(d, i, page, d->entry[i].page_count))
            return 0;
        page += d->entry[i].page_count;
    }
    return page == d->size_pages;
}

/* Number of chunks: where the state's size or count says, with the later one if they disagree; what
 * was taken off the heap is not in the file any more. */
static uint32_t find_chunks(struct directory *d)
{
    uint64_t page = 0;
    uint32_t by_size = 0, by_count = 0, i = 0;
    for (; i < SMF_CHUNKS; i++) {
        uint64_t count = find_length(d, i, page);
        if (count == 0)
            break;
        suppose(d, i, page, count);
        page += count;
        if (page == d->size_pages)
            by_size = i + 1;
        if (i + 1 == d->said_count && page <= d->file_pages)
            by_count = i + 1;
        if (i + 1 >= d->said_count && page >= d->size_pages)
            break;
    }
    return by_size > by_count ? by_size : by_count;
}

static void store_directory(struct directory *d)
{
    struct smi_repair *r = d->r;
    const struct smi_view *view = &r->view;
    uint64_t at = view->header.areas.directory, end = 0;
    for (uint32_t i = 0; i < view->chunk_count; i++) {
        const struct smf_chunk *chunk = &view->chunks[i];
        if (memcmp(chunk, &d->entry[i], sizeof(*chunk)) != 0)
            smi_repair_say(r, "D1", at + i * sizeof(*chunk),
                           "chunk %u has %u pages from page %u (its entry says %u from page %u)", i,
                           chunk->page_count, chunk->first_page, d->entry[i].page_count,
                           d->entry[i].first_page);
        smi_repair_put(r, SMI_TRUTHS, at + i * sizeof(*chunk),
                       (uint64_t)chunk->page_count << 32 | chunk->first_page);
        end += chunk->page_count;
    }
    if (view->state.size != smi_repair_ref(end) || view->state.chunk_count != view->chunk_count)
        smi_repair_say(r, "D1", SMF_STATE_OFFSET,
                       "the heap has %llu bytes in %u chunks (it says %llu in %llu)",
                       (unsigned long long)smi_repair_ref(end), view->chunk_count,
                       (unsigned long long)view->state.size,
                       (unsigned long long)view->state.chunk_count);
    smi_repair_put(r, SMI_TRUTHS, state_ref(offsetof(struct smf_state, size)), smi_repair_ref(end));
    smi_repair_put(r, SMI_TRUTHS, state_ref(offsetof(struct smf_state, chunk_count)),
                   view->chunk_count);
}

/* Entries behind the last chunk are of chunks that were cut off, each beginning where the one
 * before ends; another one is forgotten, so that growth makes a new one. */
static void mend_entries_behind(struct directory *d)
{
    struct smi_repair *r = d->r;
    const struct smi_view *view = &r->view;
    const struct smf_chunk *last = &view->chunks[view->chunk_count - 1];
    uint64_t page = (uint64_t)last->first_page + last->page_count;
    for (uint32_t i = view->chunk_count; i < SMF_CHUNKS; i++) {
        const struct smf_chunk entry = d->entry[i];
        if (entry.first_page == 0 && entry.page_count == 0)
            continue;
        if (entry.first_page == page && entry.page_count != 0 &&
            entry.page_count % GRANULE_PAGES == 0) {
            page += entry.page_count;
            continue;
        }
        uint64_t at = view->header.areas.directory + i * sizeof(entry);
        smi_repair_say(r, "D1", at,
                       "the entry of chunk %u, which the heap has not got, is forgotten (it said "
                       "%u pages from page %u)",
                       i, entry.page_count, entry.first_page);
        smi_repair_put(r, SMI_TRUTHS, at, 0);
    }
}

/* The end of the heap is known. Of a file that was cut, what is missing reads as zeros and has no
 * storage; smi_mend_spans sees whose it was. */
static void end_at(struct smi_repair *r, uint64_t end)
{
    struct smi_view *view = &r->view;
    const uint64_t max_size = view->state.max_size;
    uint64_t most = max_size & ~(SMF_GRANULE - 1);
    if (most > SMF_MAX_SIZE || most < end)
        most = end > USUAL_MAX_SIZE ? SMF_MAX_SIZE : USUAL_MAX_SIZE;
    if (max_size != most) {
        smi_repair_say(r, "H1", state_ref(offsetof(struct smf_state, max_size)),
                       "the maximum size, which is %llu, becomes %llu",
                       (unsigned long long)max_size, (unsigned long long)most);
        smi_repair_put(r, SMI_TRUTHS, state_ref(offsetof(struct smf_state, max_size)), most);
    }
    view->file_size = end > r->file_size ? end : r->file_size;
    view->missing = view->file_size - r->file_size;
    if (view->missing)
        smi_repair_say(r, "H1", r->file_size,
                       "the file, which was cut at %llu bytes, gets its length of %llu again",
                       (unsigned long long)r->file_size, (unsigned long long)end);
}

static void refuse_directory(struct directory *d)
{
    if (d->size_pages > d->file_pages)
        smi_repair_refuse(d->r, "H1", d->r->file_size,
                          "the file was cut at %llu bytes, the heap had %llu; what lay beyond is "
                          "lost, descriptors of "
                          "pages among it: restore the file from a copy",
                          (unsigned long long)d->r->file_size,
                          (unsigned long long)smi_repair_ref(d->size_pages));
    else
        smi_repair_refuse(d->r, "D1", d->r->view.header.areas.directory,
                          "nothing that the directory, the size of the heap and the length of the "
                          "file say fits what is in "
                          "the file");
}

int smi_mend_directory(struct smi_repair *r)
{
    struct smi_view *view = &r->view;
    uint64_t size = view->state.size, at = view->header.areas.directory;
    struct directory d = {r, smi_view_at(view, at, SMF_CHUNKS * sizeof(struct smf_chunk)), 0,
                          r->file_size >> SMF_GRANULE_SHIFT << (SMF_GRANULE_SHIFT - SMF_PAGE_SHIFT),
                          view->state.chunk_count};
    if (!d.entry)
        return smi_error(SHMALLOC_ECORRUPT, "%s: ends before its directory", view->path);
    if (size >= SMF_GRANULE && size % SMF_GRANULE == 0 && size <= SMF_MAX_SIZE)
        d.size_pages = size >> SMF_PAGE_SHIFT;
    if (!is_consistent(&d)) {
        view->chunk_count = find_chunks(&d);
        if (view->chunk_count == 0) {
            refuse_directory(&d);
            return 0;
        }
        store_directory(&d);
    }
    mend_entries_behind(&d);
    end_at(r, smi_repair_word(r, state_ref(offsetof(struct smf_state, size))));
    return smi_view_settle_again(view, NULL, NULL);
}
