/* SPDX-License-Identifier: MIT */
/*
 * holes.c - storage that another inode had.
 *
 * A page word says RESERVED when the file system has blocks behind the page. That is true of one
 * file. A copy (cp, tar -S, rsync -S, tools for images) has holes where nothing was written yet, or
 * where all bytes are zero; on a full disk the first store there would be a SIGBUS. So before such
 * a file is mapped, what its words say is compared with its holes, by descriptor alone: a mapping
 * of a hole of a tmpfs file takes storage even to be read.
 *
 *   first   the library's areas: storage
 *   then    pages of spans in use: storage
 *   last    free pages: RESERVED cleared, the hole punched, ZERO set, as when storage is given back
 *
 * Crash: the file's identity is stored after all of this, so who opens it next does it again, and
 * each step is true when it is done. A log that is armed holds old words with their facts; then
 * free pages get storage like those in use.
 */
#include "life/holes.h"

#include <errno.h>
#include <stdlib.h>

#include "platform/error.h"
#include "format/layout.h"
#include "platform/os.h"
#include "look/view.h"

#define NOWHERE UINT64_MAX

struct holes {
    int fd;
    const char *path;
    uint64_t size;
    uint64_t from, to; /* the hole found last; `to` is 0 before a walk begins */
    struct range {
        uint64_t from, to;
    } *filled;
    size_t filled_count;
    uint64_t needed; /* bytes of all holes where there has to be storage */
    struct smi_view view;
};

/* What is done with a hole, or the part of it in a range. */
typedef int action(struct holes *h, uint64_t from, uint64_t to);

/* The first hole that ends behind `at`. */
static int find_hole(struct holes *h, uint64_t at)
{
    uint64_t data = at, end;
    int rc = smi_os_next_data(h->fd, h->size, &data, &end);
    if (rc == 0 && data == at && end < h->size) { /* `at` is data */
        at = data = end;
        rc = smi_os_next_data(h->fd, h->size, &data, &end);
    }
    h->from = data > at ? at : NOWHERE;
    h->to = data > at ? data : NOWHERE;
    return rc < 0 ? smi_refused(rc, "%s: cannot look for holes", h->path) : 0;
}

/* Ranges of one walk come in ascending order. */
static int each_hole(struct holes *h, uint64_t from, uint64_t to, action *act)
{
    int rc = 0;
    to = to < h->size ? to : h->size;
    while (rc == 0 && from < to) {
        if (h->to <= from && (rc = find_hole(h, from)) < 0)
            return rc;
        if (h->from >= to)
            break;
        uint64_t begin = h->from > from ? h->from : from, end = h->to < to ? h->to : to;
        rc = act(h, begin, end);
        from = end;
    }
    return rc;
}

/* Remember a hole that gets storage; there is room for a power of two. */
static int remember_hole(struct holes *h, uint64_t from, uint64_t to)
{
    size_t n = h->filled_count;
    if ((n & (n - 1)) == 0) {
        struct range *more = realloc(h->filled, (n ? 2 * n : 1) * sizeof(*more));
        if (!more)
            return -ENOMEM;
        h->filled = more;
    }
    h->filled[h->filled_count++] = (struct range){from, to};
    return 0;
}

static int fill(struct holes *h, uint64_t from, uint64_t to)
{
    int rc = remember_hole(h, from, to);
    if (rc == 0)
        rc = smi_os_reserve(h->fd, from, to - from);
    return rc;
}

static int add_up(struct holes *h, uint64_t from, uint64_t to)
{
    h->needed += to - from;
    return 0;
}

/* Give back what a failed attempt took, of the last hole ext4 leaves a part: who has no room for
 * the heap needs what there is for something else. */
static void give_up(struct holes *h)
{
    for (size_t i = 0; i < h->filled_count; i++)
        smi_os_punch(h->fd, h->filled[i].from, h->filled[i].to - h->filled[i].from);
}

/* ---- pages ---- */

static int is_said_stored(struct holes *h, uint64_t page)
{
    return (smi_view_word(&h->view, page) & SMF_WORD_RESERVED) != 0;
}

/* 1: some page there is said to have storage. */
static int look_for_storage(struct holes *h, uint64_t from, uint64_t to)
{
    for (uint64_t page = from >> SMF_PAGE_SHIFT; page << SMF_PAGE_SHIFT < to; page++)
        if (is_said_stored(h, page))
            return 1;
    return 0;
}

/* Store facts of free pages of one chunk. */
static int set_file_facts(struct holes *h, uint64_t page, uint64_t count, uint16_t clear,
                          uint16_t set)
{
    uint16_t words[256];
    const struct smf_chunk *chunk = h->view.chunks;
    while (page - chunk->first_page >= chunk->page_count)
        chunk++;
    uint64_t words_at = smi_chunk_words_offset(chunk, &h->view.header.areas);
    int rc = 0;
    for (uint64_t done = 0, some; rc == 0 && done < count; done += some) {
        some = count - done < 256 ? count - done : 256;
        for (uint64_t i = 0; i < some; i++)
            words[i] = (uint16_t)((smi_view_word(&h->view, page + done + i) & ~clear) | set);
        rc = smi_os_write(h->fd, words, some * sizeof(words[0]),
                          words_at + (page + done - chunk->first_page) * sizeof(words[0]));
    }
    return rc < 0 ? smi_refused_change(rc, h->fd, NULL, "%s: cannot store which pages are holes",
                                       h->path)
                  : 0;
}

/* A run of free pages, all or a part of which is the hole [from, to). Only what is a hole already
 * is punched: storage that was reserved and not written looks like one. */
static int forget_run(struct holes *h, uint64_t page, uint64_t run, uint64_t from, uint64_t to)
{
    uint64_t begin = page << SMF_PAGE_SHIFT, end = (page + run) << SMF_PAGE_SHIFT;
    int rc = set_file_facts(h, page, run, SMF_WORD_RESERVED, 0);
    begin = begin > from ? begin : from;
    end = end < to ? end : to;
    if (rc < 0 || smi_os_punch(h->fd, begin, end - begin) < 0)
        return rc;
    page = smi_round_up(begin, SMF_PAGE) >> SMF_PAGE_SHIFT;
    end >>= SMF_PAGE_SHIFT;
    return page < end ? set_file_facts(h, page, end - page, SMF_WORD_RESERVED, SMF_WORD_ZERO) : 0;
}

static int forget_storage(struct holes *h, uint64_t from, uint64_t to)
{
    uint64_t page = from >> SMF_PAGE_SHIFT, end = smi_round_up(to, SMF_PAGE) >> SMF_PAGE_SHIFT, run;
    int rc = 0;
    for (; rc == 0 && page < end; page += run + (run == 0)) {
        for (run = 0; page + run < end && is_said_stored(h, page + run); run++)
            ;
        rc = run > 0 ? forget_run(h, page, run, from, to) : 0;
    }
    return rc;
}

/* ---- walks ---- */

static int each_in_areas(struct holes *h, action *act)
{
    const struct smf_areas *areas = &h->view.header.areas;
    int rc = 0;
    h->to = 0;
    for (uint32_t i = 0; rc == 0 && i < h->view.chunk_count; i++) {
        const struct smf_chunk *chunk = &h->view.chunks[i];
        uint64_t words = smi_chunk_words_offset(chunk, areas);
        rc =
            each_hole(h, i == 0 ? 0 : words,
                      smi_round_up(words + smi_chunk_metadata_bytes(chunk->page_count), 4096), act);
    }
    return rc;
}

/* The words of a chunk that a growth was about to add may be named by a log. */
static int each_in_growth(struct holes *h, action *act)
{
    uint64_t heap_end = h->view.state.size;
    h->to = 0;
    return h->view.in_flight > 0 && heap_end < h->size ? each_hole(h, heap_end, h->size, act) : 0;
}

static int has_unstored(struct holes *h, const struct smf_chunk *chunk)
{
    h->to = 0;
    return each_hole(
        h, (uint64_t)smi_chunk_data_page(chunk, &h->view.header.areas) << SMF_PAGE_SHIFT,
        ((uint64_t)chunk->first_page + chunk->page_count) << SMF_PAGE_SHIFT, look_for_storage);
}

/* Free spans, or the others, of chunks that have holes where there should be storage. */
static int each_in_spans(struct holes *h, int are_free, action *act)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < h->view.chunk_count; i++) {
        const struct smf_chunk *chunk = &h->view.chunks[i];
        if ((rc = has_unstored(h, chunk)) <= 0)
            continue;
        struct smi_span span = {.first_page = smi_chunk_data_page(chunk, &h->view.header.areas),
                                .chunk = i};
        h->to = 0;
        rc = 0;
        while (rc == 0 && smi_view_next_span(&h->view, &span) && span.chunk == i) {
            int is_free = span.page->kind == SMF_PAGE_FREE && h->view.in_flight == 0;
            uint64_t from = (uint64_t)span.first_page << SMF_PAGE_SHIFT;
            if (is_free == are_free)
                rc = each_hole(h, from, from + ((uint64_t)span.page_count << SMF_PAGE_SHIFT), act);
        }
    }
    return rc;
}

static int each_needed(struct holes *h, action *act)
{
    int rc = each_in_areas(h, act);
    if (rc == 0)
        rc = each_in_growth(h, act);
    return rc == 0 ? each_in_spans(h, 0, act) : rc;
}

static int fill_needed(struct holes *h)
{
    int rc = each_needed(h, fill);
    if (rc == 0)
        return 0;
    give_up(h);
    each_needed(h, add_up);
    return smi_refused_change(
        rc, h->fd, NULL,
        "%s: is a copy that has holes where pages are in use, and needs %llu bytes of storage for "
        "them",
        h->path, (unsigned long long)h->needed);
}

static int begin_holes(struct holes *h)
{
    int rc = smi_view_of_descriptor(&h->view, h->fd, h->path);
    if (rc == 0 && (rc = smi_view_settle(&h->view, NULL, NULL)) < 0)
        smi_refused(rc, "%s: no private memory to look for holes", h->path);
    h->size = h->view.file_size;
    return rc;
}

/* `rc`, or that something could not be read, and so was not looked at. */
static int looked_at_all(struct holes *h, int rc)
{
    return rc == 0 && h->view.read_error
               ? smi_refused(-h->view.read_error, "%s: cannot read", h->path)
               : rc;
}

int smi_holes_measure(int fd, const char *path, uint64_t *needed)
{
    struct holes h = {.fd = fd, .path = path};
    int rc = begin_holes(&h);
    if (rc == 0)
        rc = looked_at_all(&h, each_needed(&h, add_up));
    smi_view_finish(&h.view);
    *needed = h.needed;
    return rc;
}

int smi_holes_fill(int fd, const char *path)
{
    struct holes h = {.fd = fd, .path = path};
    int rc = begin_holes(&h);
    if (rc == 0) {
        rc = looked_at_all(&h, fill_needed(&h));
        if (rc == 0)
            rc = each_in_spans(&h, 1, forget_storage);
        /* Who read the copy left its holes in the page cache in pieces of many pages, and a store
         * to one of them makes ext4 (Linux 6.18) find room for all of the piece. */
        smi_os_forget(fd);
    }
    smi_view_finish(&h.view);
    free(h.filled);
    return rc;
}
