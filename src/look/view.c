/* SPDX-License-Identifier: MIT */
/*
 * view.c - read-only sight of a heap; see view.h.
 *
 * Nothing that was read is believed before it was compared with a bound: a view must survive any
 * file. The bounds it relies on itself are few: `file_size`, the areas (smi_layout_validate
 * compared them with their rule) and `chunks`, the part of the directory in which each entry
 * continues the one before and ends inside the file.
 */
#include "look/view.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "platform/error.h"
#include "platform/os.h"
#include "format/sizeclass.h"

#define BLOCK SMI_VIEW_BLOCK
#define BLOCK_SHIFT __builtin_ctzll(BLOCK)

/* ---- bytes ---------------------------------------------------------------------------------- */

/* Bytes from the source, past the private copies; the number read, or a negated errno. */
static int64_t read_source(struct smi_view *view, uint64_t ref, uint64_t len, void *out)
{
    if (!view->mapping)
        return smi_os_read(view->fd, out, len, ref);
    memcpy(out, view->mapping + ref, len);
    return (int64_t)len;
}

static int in_file(const struct smi_view *view, uint64_t ref, uint64_t len)
{
    return len > 0 && ref < view->file_size && len <= view->file_size - ref;
}

int smi_view_read_now(struct smi_view *view, uint64_t ref, uint64_t len, void *out)
{
    return in_file(view, ref, len) && read_source(view, ref, len, out) == (int64_t)len ? 0 : -1;
}

/* Address space for copies of the whole file; memory is only charged for what is read. */
static int reserve_copies(struct smi_view *view)
{
    uint64_t blocks = (view->file_size + BLOCK - 1) >> BLOCK_SHIFT;
    view->reserved = blocks << BLOCK_SHIFT;
    view->memory = smi_os_private(view->reserved, 0);
    view->loaded = calloc(blocks / 8 + 1, 1);
    if (view->memory && view->loaded)
        return 0;
    view->read_error = ENOMEM;
    return -1;
}

static int load_block(struct smi_view *view, uint64_t block)
{
    uint64_t ref = block << BLOCK_SHIFT, left = view->file_size - ref;
    /* the rest of memory is zero */
    uint64_t stored = left > view->missing ? left - view->missing : 0;
    uint64_t len = stored < BLOCK ? stored : BLOCK;
    int64_t n = len > 0 ? read_source(view, ref, len, view->memory + ref) : 0;
    if (n < 0 && !view->read_error)
        view->read_error = (int)-n;
    if (n != (int64_t)len) /* or the file was shortened just now */
        return -1;
    view->loaded[block / 8] |= (uint8_t)(1u << block % 8);
    view->bytes_read += len;
    if (view->progress)
        view->progress(view);
    return 0;
}

const void *smi_view_at(struct smi_view *view, uint64_t ref, uint64_t len)
{
    if (!in_file(view, ref, len) || (!view->memory && reserve_copies(view) < 0))
        return NULL;
    for (uint64_t block = ref >> BLOCK_SHIFT; block <= (ref + len - 1) >> BLOCK_SHIFT; block++)
        if (!(view->loaded[block / 8] >> block % 8 & 1) && load_block(view, block) < 0)
            return NULL;
    return view->memory + ref;
}

const void *smi_view_record(struct smi_view *view, uint64_t ref, uint64_t len)
{
    return ref % 8 == 0 ? smi_view_at(view, ref, len) : NULL;
}

int smi_view_store(struct smi_view *view, uint64_t ref, uint64_t value)
{
    if (!smi_view_record(view, ref, 8))
        return -1;
    memcpy(view->memory + ref, &value, sizeof(value));
    return 0;
}

/* A word, 0 when there is none. */
static uint64_t word_at(struct smi_view *view, uint64_t ref)
{
    const void *at = smi_view_record(view, ref, 8);
    uint64_t value = 0;
    if (at)
        memcpy(&value, at, sizeof(value));
    return value;
}

static void forget_copies(struct smi_view *view)
{
    smi_os_unmap(view->memory, view->reserved);
    free(view->loaded);
    free(view->chunks);
    view->memory = NULL;
    view->loaded = NULL;
    view->chunks = NULL;
    view->chunk_count = 0;
    view->in_flight = 0;
    view->read_error = 0;
}

void smi_view_of_mapping(struct smi_view *view, const void *base, uint64_t file_size,
                         const char *path)
{
    memset(view, 0, sizeof(*view));
    view->path = path;
    view->fd = -1;
    view->mapping = base;
    view->file_size = file_size;
    memcpy(&view->header, base, sizeof(view->header));
    memcpy(&view->state, (const uint8_t *)base + SMF_STATE_OFFSET, sizeof(view->state));
    smi_layout_settle(&view->header, &view->state);
}

/* The state and the length of the file as of one moment: a growing heap lengthens the file first, a
 * shrinking one shortens it last, so the pair is true if the state's size is the same before and
 * after the length was read. */
static int read_state(struct smi_view *view)
{
    for (int tries = 0;; tries++) {
        struct smi_file_info info;
        struct smf_state after;
        int64_t n = smi_os_read(view->fd, &view->state, sizeof(view->state), SMF_STATE_OFFSET);
        int rc = smi_os_stat(view->fd, &info);
        if (n < 0 || rc < 0)
            return n < 0 ? (int)n : rc;
        n = smi_os_read(view->fd, &after, sizeof(after), SMF_STATE_OFFSET);
        if (n < 0)
            return (int)n;
        view->file_size = info.size;
        if (after.size == view->state.size || tries == 100)
            return 0;
    }
}

static int cannot_read(const struct smi_view *view, int code)
{
    return smi_refused(code, "%s: cannot read", view->path);
}

static int read_view_identity(struct smi_view *view)
{
    struct smi_file_info info;
    int rc = smi_os_stat(view->fd, &info);
    if (rc < 0)
        return smi_refused(rc, "%s: cannot look at the file", view->path);
    if (S_ISDIR(info.mode))
        return smi_error(-EISDIR, "%s: is a directory, expected a heap file", view->path);
    if (!S_ISREG(info.mode))
        return smi_error(SHMALLOC_ENOTHEAP, "%s: is not a regular file, expected a heap file",
                         view->path);
    int64_t n = smi_os_read(view->fd, &view->header, sizeof(view->header), 0);
    rc = n < 0 ? (int)n : read_state(view);
    if (rc < 0)
        return cannot_read(view, rc);
    smi_layout_settle(&view->header, &view->state);
    return smi_layout_validate(&view->header, &view->state, view->file_size, 1, view->path);
}

int smi_view_of_descriptor(struct smi_view *view, int fd, const char *path)
{
    memset(view, 0, sizeof(*view));
    view->path = path;
    view->fd = fd;
    return read_view_identity(view);
}

int smi_view_open(struct smi_view *view, const char *path)
{
    int fd = smi_os_open(path, 1);
    if (fd < 0) {
        memset(view, 0, sizeof(*view));
        view->path = path;
        view->fd = -1;
        return smi_refused(fd, "%s: cannot open", path);
    }
    int rc = smi_view_of_descriptor(view, fd, path);
    view->owns_fd = 1;
    return rc;
}

int smi_view_reload(struct smi_view *view)
{
    forget_copies(view);
    if (!view->mapping)
        return read_view_identity(view);
    memcpy(&view->state, view->mapping + SMF_STATE_OFFSET, sizeof(view->state));
    return 0;
}

void smi_view_finish(struct smi_view *view)
{
    forget_copies(view);
    if (view->owns_fd)
        smi_os_close(view->fd);
    view->owns_fd = 0;
    view->fd = -1;
    view->mapping = NULL;
    view->file_size = 0;
}

/* ---- settling ------------------------------------------------------------------------------- */

struct settling {
    struct smi_view *view;
    smi_report_fn *report;
    void *arg;
};

static void complain(struct settling *s, const char *invariant, uint64_t ref, const char *text)
{
    if (s->report)
        s->report(invariant, ref, text, s->arg);
}

/* Undo what a log holds: its count at `ref`, its entries behind the count. */
static void undo_log(struct settling *s, uint64_t ref, uint32_t capacity)
{
    struct smi_view *view = s->view;
    const struct smf_areas *areas = &view->header.areas;
    uint64_t count = word_at(view, ref);
    if (count == 0)
        return;
    view->in_flight++;
    if (count > capacity) {
        complain(s, "L1", ref, "undo log has more entries than fit");
        return;
    }
    const struct smf_undo *log = smi_view_record(view, ref + 8, count * sizeof(*log));
    uint64_t fault = log ? smi_log_fault(areas, view->file_size, log, count) : 0;
    if (fault < count) {
        complain(s, "L2", ref + 8 + fault * sizeof(*log), "undo log names a word that cannot be");
        return;
    }
    for (uint64_t i = count; i-- > 0;)
        if (smi_view_store(view, log[i].ref, log[i].old) < 0) /* it cannot be read */
            complain(s, "L2", ref + 8 + i * sizeof(*log), "undo log names a word that cannot be");
    smi_view_store(view, ref, 0);
}

static void undo_logs(struct settling *s)
{
    const struct smf_areas *areas = &s->view->header.areas;
    uint32_t centrals = (s->view->header.arena_count + 1) * SMF_CLASSES;
    undo_log(s, areas->page_heap, SMF_PAGE_LOG);
    for (uint32_t i = 0; i < centrals; i++)
        undo_log(s, areas->central + i * sizeof(struct smf_central), SMF_CLASS_LOG);
    undo_log(s, areas->roots, SMF_ROOT_LOG);
}

/* The entries of the directory that can be believed. */
static int read_directory(struct smi_view *view)
{
    const struct smf_chunk *entry =
        smi_view_record(view, view->header.areas.directory, SMF_CHUNKS * sizeof(struct smf_chunk));
    uint64_t wanted = view->state.chunk_count <= SMF_CHUNKS ? view->state.chunk_count : SMF_CHUNKS;
    view->chunks = calloc(SMF_CHUNKS, sizeof(*view->chunks));
    if (!view->chunks)
        return -ENOMEM;
    uint64_t page = 0, pages_in_file = view->file_size >> SMF_PAGE_SHIFT;
    for (uint64_t i = 0; entry && i < wanted; i++) {
        if (!smi_chunk_follows(&entry[i], page, pages_in_file, &view->header.areas))
            break;
        view->chunks[view->chunk_count++] = entry[i];
        page += entry[i].page_count;
    }
    return 0;
}

/* ---- link records ---- */

static const void *see_copy(void *source, uint64_t ref, uint64_t len)
{
    return smi_view_at(source, ref, len);
}

const char *smi_view_link_outcome(struct smi_view *view, uint64_t thread_ref,
                                  const struct smf_thread *thread, struct smi_outcome *out)
{
    uint64_t size = word_at(view, SMF_STATE_OFFSET + offsetof(struct smf_state, size));
    const struct smi_sight sight = {see_copy, view, &view->header.areas,
                                    size < view->file_size ? size : view->file_size,
                                    smi_format_is_older(&view->header)};
    return smi_outcome_of_link(&sight, thread_ref, thread, &thread->link, out);
}

static void settle_link(struct settling *s, uint64_t thread_ref, const struct smf_thread *thread)
{
    struct smi_view *view = s->view;
    struct smi_outcome outcome;
    uint64_t at = thread_ref + offsetof(struct smf_thread, link);
    if (thread->link.op == SMF_LINK_NONE)
        return;
    view->in_flight++;
    if (smi_view_link_outcome(view, thread_ref, thread, &outcome)) {
        complain(s, "L3", at, "armed link names something that cannot be");
        return;
    }
    for (uint32_t i = 0; i < outcome.count; i++) /* an old large block is left for the real recovery
                                                    to give back */
        smi_view_store(view, outcome.change[i].ref, outcome.change[i].value);
    smi_view_store(view, at, SMF_LINK_NONE);
}

/* The large block that a dead owner of the page lock claimed has its mark again; see layout.h. */
static void settle_claim(struct smi_view *view)
{
    const uint64_t at = SMF_STATE_OFFSET + offsetof(struct smf_state, claimed);
    uint64_t page = word_at(view, at), d = page ? smi_view_descriptor_ref(view, page) : 0;
    uint64_t side = d + offsetof(struct smf_page, side);
    if (page == 0)
        return;
    view->in_flight++;
    if (d && smi_view_page(view, page) && smi_view_page(view, page)->kind == SMF_PAGE_LARGE &&
        word_at(view, side) == SMF_MARK_CLAIMED)
        smi_view_store(view, side,
                       word_at(view, SMF_STATE_OFFSET + offsetof(struct smf_state, claimed_mark)));
    smi_view_store(view, at, 0);
}

int smi_view_settle(struct smi_view *view, smi_report_fn *report, void *arg)
{
    struct settling s = {view, report, arg};
    if (view->chunks)
        return 0;
    undo_logs(&s);
    const struct smf_state *state = smi_view_at(view, SMF_STATE_OFFSET, sizeof(*state));
    if (state)
        view->state = *state;
    int rc = read_directory(view);
    if (rc == 0)
        settle_claim(view);
    for (uint32_t i = 0; rc == 0 && i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(view, i, &ref);
        if (thread && thread->owner)
            settle_link(&s, ref, thread);
    }
    return rc;
}

int smi_view_settle_again(struct smi_view *view, smi_report_fn *report, void *arg)
{
    free(view->chunks);
    view->chunks = NULL;
    view->chunk_count = 0;
    return smi_view_settle(view, report, arg);
}

/* ---- pages ---------------------------------------------------------------------------------- */

/* Index of the chunk that has `page`, or -1. */
static int chunk_of(const struct smi_view *view, uint64_t page)
{
    uint32_t low = 0, high = view->chunk_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        const struct smf_chunk *chunk = &view->chunks[middle];
        if (page < chunk->first_page)
            high = middle;
        else if (page >= (uint64_t)chunk->first_page + chunk->page_count)
            low = middle + 1;
        else
            return (int)middle;
    }
    return -1;
}

uint16_t smi_view_word(struct smi_view *view, uint64_t page)
{
    int i = chunk_of(view, page);
    if (i < 0)
        return 0;
    const struct smf_chunk *chunk = &view->chunks[i];
    uint64_t ref =
        smi_chunk_words_offset(chunk, &view->header.areas) + (page - chunk->first_page) * 2;
    const uint16_t *word = smi_view_at(view, ref, sizeof(*word));
    return word ? *word : 0;
}

uint64_t smi_view_descriptor_ref(const struct smi_view *view, uint64_t page)
{
    int i = chunk_of(view, page);
    if (i < 0)
        return 0;
    const struct smf_chunk *chunk = &view->chunks[i];
    return smi_chunk_words_offset(chunk, &view->header.areas) +
           chunk->page_count * sizeof(uint16_t) +
           (page - chunk->first_page) * sizeof(struct smf_page);
}

const struct smf_page *smi_view_descriptor(struct smi_view *view, uint64_t page)
{
    uint64_t ref = smi_view_descriptor_ref(view, page);
    return ref ? smi_view_at(view, ref, sizeof(struct smf_page)) : NULL;
}

const struct smf_page *smi_view_page(struct smi_view *view, uint64_t page)
{
    int i = chunk_of(view, page);
    if (i < 0 || page < smi_chunk_data_page(&view->chunks[i], &view->header.areas))
        return NULL;
    return smi_view_descriptor(view, page);
}

int smi_view_next_span(struct smi_view *view, struct smi_span *span)
{
    uint64_t page = (uint64_t)span->first_page + span->page_count;
    if (span->first_page == 0)
        span->chunk = 0;
    for (; span->chunk < view->chunk_count; span->chunk++) {
        const struct smf_chunk *chunk = &view->chunks[span->chunk];
        uint64_t data = smi_chunk_data_page(chunk, &view->header.areas);
        uint64_t end = (uint64_t)chunk->first_page + chunk->page_count;
        if (page < data)
            page = data;
        const struct smf_page *d = page < end ? smi_view_page(view, page) : NULL;
        if (!d)
            continue;
        int claims = d->kind == SMF_PAGE_FREE || d->kind == SMF_PAGE_SLAB ||
                     d->kind == SMF_PAGE_LARGE || d->kind == SMF_PAGE_META;
        span->first_page = (uint32_t)page;
        span->page_count =
            claims && d->page_count > 0 && d->page_count <= end - page ? d->page_count : 1;
        span->page = d;
        return 1;
    }
    return 0;
}

uint64_t smi_view_metadata_bytes(const struct smi_view *view)
{
    uint64_t bytes = view->header.areas.end;
    for (uint32_t i = 0; i < view->chunk_count; i++)
        bytes += smi_chunk_metadata_bytes(view->chunks[i].page_count);
    return bytes;
}

/* ---- slabs ---------------------------------------------------------------------------------- */

int smi_view_is_slab(const struct smi_view *view, const struct smf_page *page)
{
    return page && page->kind == SMF_PAGE_SLAB && page->size_class < SMF_CLASSES &&
           page->arena <= view->header.arena_count &&
           page->page_count == smi_class_span_pages(page->size_class);
}

uint64_t smi_view_slab_bits(struct smi_view *view, uint32_t first_page, unsigned size_class,
                            uint32_t w)
{
    if (smi_classes[size_class].bitmap_pages)
        return word_at(view, ((uint64_t)first_page << SMF_PAGE_SHIFT) + 8ull * w);
    const struct smf_page *page = smi_view_page(view, first_page + w / 4ull);
    return page ? page->bits[w % 4] : 0;
}

static uint64_t first_slot(uint32_t slab, unsigned size_class)
{
    return ((uint64_t)slab + smi_classes[size_class].bitmap_pages) << SMF_PAGE_SHIFT;
}

int smi_view_slot(struct smi_view *view, uint64_t ref, uint32_t *slab, uint32_t *index)
{
    uint64_t page = ref >> SMF_PAGE_SHIFT;
    uint16_t word = smi_view_word(view, page);
    unsigned kind = word & SMF_WORD_KIND, place = (word & SMF_WORD_INDEX) >> SMF_WORD_INDEX_SHIFT;
    if (kind == 0 || kind > SMF_CLASSES || place >= page)
        return -1;
    const struct smi_class *class = &smi_classes[kind - 1];
    const struct smf_page *first = smi_view_page(view, page - place);
    uint64_t start = first_slot((uint32_t)(page - place), kind - 1);
    if (!smi_view_is_slab(view, first) || first->size_class != kind - 1 || ref < start ||
        (ref - start) % class->size != 0 || (ref - start) / class->size >= class->slots)
        return -1;
    *slab = (uint32_t)(page - place);
    *index = (uint32_t)((ref - start) / class->size);
    return 0;
}

uint16_t smi_view_slot_tag(struct smi_view *view, const struct smf_page *slab, uint32_t index)
{
    const uint16_t *tag = NULL;
    if (slab->side && slab->side % 8 == 0)
        tag = smi_view_at(view, slab->side + 2ull * index, sizeof(*tag));
    return tag ? *tag : 0;
}

/* ---- thread slots --------------------------------------------------------------------------- */

const struct smf_thread *smi_view_thread(struct smi_view *view, uint32_t i, uint64_t *ref)
{
    *ref = word_at(view, view->header.areas.threads + 8ull * i);
    if (*ref == 0 || *ref % SMF_PAGE != 0)
        return NULL;
    return smi_view_at(view, *ref, SMF_THREAD_PAGES * SMF_PAGE);
}

uint64_t smi_view_inside_array(const struct smi_view *view, uint64_t thread_ref,
                               unsigned size_class)
{
    return thread_ref + (smi_format_is_older(&view->header) ? smi_older_inline_offset(size_class)
                                                            : smi_inline_offset(size_class));
}

int smi_view_stack_is_possible(const struct smi_view *view, uint64_t thread_ref, uint64_t stack,
                               unsigned size_class)
{
    return smi_stack_is_possible(smi_view_inside_array(view, thread_ref, size_class), stack,
                                 size_class);
}

const char *smi_view_read_stack(struct smi_view *view, uint64_t thread_ref,
                              const struct smf_thread *thread, unsigned size_class,
                              struct smi_view_stack *out)
{
    uint64_t stack = thread->stacks[size_class];
    memset(out, 0, sizeof(*out));
    out->array = stack & ~(uint64_t)SMF_STACK_PAGES;
    out->pages = stack & SMF_STACK_PAGES;
    if (stack == 0)
        return NULL;
    if (!smi_view_stack_is_possible(view, thread_ref, stack, size_class))
        return "stack's array cannot begin there or be so long";
    uint32_t words = smi_stack_words(stack, size_class);
    const uint64_t *array = smi_view_at(view, out->array, 8ull * words);
    if (!array)
        return "stack's array lies outside the file";
    uint64_t count = smi_stack_count(array, words);
    if (count >= words)
        return "stack's count is more than its array holds";
    out->count = (uint32_t)count;
    out->slots = array + 1;
    for (uint64_t i = count + 1; array[0] == SMF_OPEN && i < words && !out->has_gap; i++)
        out->has_gap = array[i] != 0;
    return NULL;
}

int smi_view_keeps_any(const struct smi_view *view, const struct smf_thread *thread)
{
    return !smi_format_is_older(&view->header) && smi_keeps_any(thread);
}

static int is_chunk(struct smi_view *view, uint64_t ref, uint64_t *bytes)
{
    const struct smf_page *d =
        ref % SMF_PAGE == 0 ? smi_view_page(view, ref >> SMF_PAGE_SHIFT) : NULL;
    *bytes = d ? (uint64_t)d->page_count << SMF_PAGE_SHIFT : 0;
    return d && d->kind == SMF_PAGE_META && d->tag == SMF_PURPOSE_LOG && *bytes > 0;
}

const struct smf_log *smi_view_log(struct smi_view *view, const struct smf_thread *thread)
{
    uint64_t bytes;
    if (smi_format_is_older(&view->header) || !is_chunk(view, thread->tx_log, &bytes))
        return NULL;
    return smi_view_at(view, thread->tx_log, sizeof(struct smf_log));
}

uint64_t smi_view_tx_phase(const struct smi_view *view, const struct smf_thread *thread)
{
    return smi_format_is_older(&view->header) ? SMF_TX_IDLE : thread->tx_state & SMF_TX_PHASE;
}

/* Those of chunk `i` up to `end`. */
static const char *each_in_chunk(struct smi_view *view, uint64_t i, uint64_t ref, uint64_t end,
                                 void (*visit)(const struct smi_logged *logged, uint64_t at,
                                               void *arg),
                                 void *arg, uint64_t *where)
{
    uint64_t bytes, first = smi_log_first(i);
    *where = ref;
    if (!is_chunk(view, ref, &bytes))
        return "names a chunk that is none";
    if (end > bytes || end < first)
        return "has a chunk that is fuller than it can be";
    const uint8_t *chunk = end > 0 ? smi_view_at(view, ref, end) : NULL;
    struct smi_logged logged;
    for (uint64_t at = first; chunk && at < end; at += logged.bytes) {
        const char *wrong = smi_entry_read(chunk, at, end, &logged);
        *where = ref + at;
        if (wrong)
            return wrong;
        visit(&logged, ref + at, arg);
    }
    return NULL;
}

const char *smi_view_each_logged(struct smi_view *view, const struct smf_thread *thread,
                                 void (*visit)(const struct smi_logged *logged, uint64_t at,
                                               void *arg),
                                 void *arg, uint64_t *at)
{
    const struct smf_log *view_log = smi_view_log(view, thread);
    const uint64_t mask = (1ull << SMF_LOG_CHUNK) - 1;
    *at = thread->tx_log;
    if (!view_log || view_log->used == 0)
        return NULL;
    struct smf_log log = *view_log;
    uint64_t last = log.used >> SMF_LOG_CHUNK;
    if (last >= SMF_LOG_CHUNKS)
        return "has more chunks than it can have";
    for (uint64_t i = 0; i <= last; i++) {
        const char *wrong =
            each_in_chunk(view, i, i == 0 ? thread->tx_log : log.chunk[i],
                          i == last ? log.used & mask : log.filled[i], visit, arg, at);
        if (wrong)
            return wrong;
    }
    return NULL;
}

int smi_view_is_kept(struct smi_view *view, uint64_t ref, uint64_t pages, uint64_t mark)
{
    uint64_t slot, slot_index = (mark & ~(SMF_MARK_KEPT | SMF_MARK_HELD)) >> 8, i = mark & 0xff;
    const struct smf_thread *thread = (mark & SMF_MARK_KEPT) && slot_index < SMF_THREADS
                                          ? smi_view_thread(view, (uint32_t)slot_index, &slot)
                                          : NULL;
    return thread && thread->owner && i < SMF_SPANS && thread->spans[i] == (ref | pages);
}

struct smi_view_kept smi_view_kept(struct smi_view *view, uint32_t i,
                                   const struct smf_thread *thread)
{
    struct smi_view_kept kept = {0, 0};
    for (uint32_t k = 0; k < SMF_SPANS; k++) {
        uint64_t pages = thread->spans[k] & (SMF_PAGE - 1), ref = thread->spans[k] - pages;
        const struct smf_page *d = pages > 0 ? smi_view_page(view, ref >> SMF_PAGE_SHIFT) : NULL;
        if (!d || d->kind != SMF_PAGE_LARGE || d->page_count != pages ||
            (d->side & ~SMF_MARK_HELD) != smi_mark_kept(i, k))
            continue;
        kept.blocks++;
        kept.bytes += pages << SMF_PAGE_SHIFT;
    }
    return kept;
}

const struct smf_bag *smi_view_limbo(struct smi_view *view, const struct smf_thread *thread)
{
    const struct smf_page *d =
        !smi_format_is_older(&view->header) && thread->limbo != 0 && thread->limbo % SMF_PAGE == 0
            ? smi_view_page(view, thread->limbo >> SMF_PAGE_SHIFT)
            : NULL;
    return d && d->kind == SMF_PAGE_META && d->page_count == SMF_LIMBO_PAGES &&
                   d->tag == SMF_PURPOSE_LIMBO
               ? smi_view_at(view, thread->limbo, SMF_LIMBO_PAGES * SMF_PAGE)
               : NULL;
}

static int by_slot_ref(const void *a, const void *b)
{
    const struct smi_cached *x = a, *y = b;
    return x->ref < y->ref ? -1 : x->ref > y->ref;
}

/* Room for `more` cached slots; the file cannot hold more words than it is long, whatever arrays
 * that overlap in a damaged one add up to. */
static int make_room(const struct smi_view *view, struct smi_cached **list, size_t count,
                     size_t *room, size_t more)
{
    if (count + more > view->file_size / 8)
        return 0;
    if (count + more <= *room)
        return 1;
    size_t wanted = 2 * *room + more + 1024;
    struct smi_cached *larger = realloc(*list, wanted * sizeof(**list));
    if (!larger)
        return -ENOMEM;
    *list = larger;
    *room = wanted;
    return 1;
}

static int add_retired(struct smi_view *view, const struct smf_thread *thread, uint32_t t,
                       struct smi_cached **list, size_t *used, size_t *room)
{
    const struct smf_bag *bags = smi_view_limbo(view, thread);
    for (uint32_t b = 0; bags && b < SMF_LIMBO_PAGES; b++) {
        uint64_t count = smi_bag_count(&bags[b]);
        int rc = make_room(view, list, *used, room, count);
        for (uint64_t i = 0; rc == 1 && i < count; i++)
            (*list)[(*used)++] =
                (struct smi_cached){bags[b].refs[i], (uint16_t)t, 0, i + 1 == count, 1};
        if (rc < 0)
            return rc;
    }
    return 0;
}

int smi_view_cached(struct smi_view *view, struct smi_cached **out, size_t *count)
{
    size_t used = 0, room = 0;
    struct smi_cached *list = NULL;
    for (uint32_t t = 0; t < SMF_THREADS; t++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(view, t, &ref);
        if (thread && thread->owner && add_retired(view, thread, t, &list, &used, &room) < 0) {
            free(list);
            return -ENOMEM;
        }
        for (unsigned k = 0; thread && thread->owner && k < SMF_CLASSES; k++) {
            struct smi_view_stack stack;
            if (smi_view_read_stack(view, ref, thread, k, &stack))
                continue;
            int rc = make_room(view, &list, used, &room, stack.count);
            if (rc < 0) {
                free(list);
                return rc;
            }
            for (uint32_t i = 0; rc == 1 && i < stack.count; i++)
                list[used++] = (struct smi_cached){stack.slots[i], (uint16_t)t, (uint8_t)k,
                                                   i + 1 == stack.count, 0};
        }
    }
    if (used)
        qsort(list, used, sizeof(*list), by_slot_ref);
    *out = list;
    *count = used;
    return 0;
}

/* ---- blocks --------------------------------------------------------------------------------- */

int smi_view_find_block(struct smi_view *view, const struct smi_cached *cached, size_t count,
                        uint64_t ref, shmalloc_block *out)
{
    uint32_t slab, index;
    struct smi_cached key = {.ref = ref};
    const struct smf_page *page = smi_view_page(view, ref >> SMF_PAGE_SHIFT);
    if (page && page->kind == SMF_PAGE_LARGE && ref % SMF_PAGE == 0) {
        *out = (shmalloc_block){ref, (uint64_t)page->page_count << SMF_PAGE_SHIFT, page->tag};
        return !smi_view_is_kept(view, ref, page->page_count, page->side);
    }
    if (smi_view_slot(view, ref, &slab, &index) < 0)
        return 0;
    page = smi_view_page(view, slab);
    unsigned k = page->size_class;
    if (page->arena >= view->header.arena_count ||
        (smi_view_slab_bits(view, slab, k, index / 64) >> index % 64 & 1) ||
        (count > 0 && bsearch(&key, cached, count, sizeof(key), by_slot_ref)))
        return 0;
    *out = (shmalloc_block){ref, smi_classes[k].size, smi_view_slot_tag(view, page, index)};
    return 1;
}

struct block_walk {
    struct smi_view *view;
    int (*visit)(const shmalloc_block *block, void *arg);
    void *arg;
    struct smi_cached *cached;
    size_t cached_count, next; /* spans ascend, so the cached slots are passed once */
};

static int is_cached(struct block_walk *walk, uint64_t ref)
{
    while (walk->next < walk->cached_count && walk->cached[walk->next].ref < ref)
        walk->next++;
    return walk->next < walk->cached_count && walk->cached[walk->next].ref == ref;
}

static int visit_slab(struct block_walk *walk, const struct smi_span *span)
{
    unsigned k = span->page->size_class;
    const struct smi_class *class = &smi_classes[k];
    uint64_t start = first_slot(span->first_page, k), bits = 0;
    for (uint32_t i = 0; i < class->slots; i++) {
        if (i % 64 == 0)
            bits = smi_view_slab_bits(walk->view, span->first_page, k, i / 64);
        uint64_t ref = start + (uint64_t)i * class->size;
        if ((bits >> i % 64 & 1) || is_cached(walk, ref))
            continue;
        shmalloc_block block = {ref, class->size, smi_view_slot_tag(walk->view, span->page, i)};
        int rc = walk->visit(&block, walk->arg);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int visit_spans(struct block_walk *walk)
{
    struct smi_span span = {0};
    int rc = 0;
    while (rc == 0 && smi_view_next_span(walk->view, &span)) {
        if (smi_view_is_slab(walk->view, span.page)) {
            if (span.page->arena < walk->view->header.arena_count)
                rc = visit_slab(walk, &span);
        } else if (span.page->kind == SMF_PAGE_LARGE && !(span.page->side & SMF_MARK_KEPT) &&
                   !is_cached(walk, (uint64_t)span.first_page << SMF_PAGE_SHIFT)) {
            shmalloc_block block = {(uint64_t)span.first_page << SMF_PAGE_SHIFT,
                                    (uint64_t)span.page_count << SMF_PAGE_SHIFT, span.page->tag};
            rc = walk->visit(&block, walk->arg);
        }
    }
    return rc;
}

int smi_view_each_block(struct smi_view *view, int (*visit)(const shmalloc_block *block, void *arg),
                        void *arg)
{
    struct block_walk walk = {view, visit, arg, NULL, 0, 0};
    int rc = smi_view_settle(view, NULL, NULL);
    if (rc == 0)
        rc = smi_view_cached(view, &walk.cached, &walk.cached_count);
    if (rc < 0)
        return cannot_read(view, rc);
    rc = visit_spans(&walk);
    free(walk.cached);
    return rc;
}

/* ---- statistics ----------------------------------------------------------------------------- */

static void count_slab(struct smi_view *view, const struct smi_span *span, shmalloc_stats *out)
{
    unsigned k = span->page->size_class;
    const struct smi_class *class = &smi_classes[k];
    if (span->page->arena == view->header.arena_count) {
        out->metadata += (uint64_t)span->page_count << SMF_PAGE_SHIFT;
        return;
    }
    uint64_t free_slots = 0;
    for (uint32_t w = 0; w < (class->slots + 63u) / 64; w++)
        free_slots +=
            (uint64_t)__builtin_popcountll(smi_view_slab_bits(view, span->first_page, k, w));
    if (free_slots > class->slots)
        free_slots = class->slots;
    out->metadata += (uint64_t)class->bitmap_pages << SMF_PAGE_SHIFT;
    out->central_free += free_slots * class->size;
    out->allocated += (class->slots - free_slots) * class->size;
    out->allocated_blocks += class->slots - free_slots;
}

static void count_free(struct smi_view *view, const struct smi_span *span, shmalloc_stats *out)
{
    uint64_t bytes = (uint64_t)span->page_count << SMF_PAGE_SHIFT;
    out->free_pages += bytes;
    if (bytes > out->largest_free_run)
        out->largest_free_run = bytes;
    for (uint32_t i = 0; i < span->page_count; i++)
        if (smi_view_word(view, (uint64_t)span->first_page + i) & SMF_WORD_RESERVED)
            out->free_reserved += SMF_PAGE;
}

static void count_spans(struct smi_view *view, shmalloc_stats *out)
{
    struct smi_span span = {0};
    while (smi_view_next_span(view, &span)) {
        if (smi_view_is_slab(view, span.page)) {
            count_slab(view, &span, out);
        } else if (span.page->kind == SMF_PAGE_FREE) {
            count_free(view, &span, out);
        } else if (span.page->kind == SMF_PAGE_LARGE && (span.page->side & SMF_MARK_KEPT)) {
            out->cached += (uint64_t)span.page_count << SMF_PAGE_SHIFT;
        } else if (span.page->kind == SMF_PAGE_LARGE) {
            out->allocated += (uint64_t)span.page_count << SMF_PAGE_SHIFT;
            out->allocated_blocks++;
        } else if (span.page->kind == SMF_PAGE_META) {
            out->metadata += (uint64_t)span.page_count << SMF_PAGE_SHIFT;
        }
    }
}

/* Bytes of the block at `ref`, as it is allocated; 0: there is none. */
static uint64_t block_bytes(struct smi_view *view, uint64_t ref)
{
    uint32_t slab, index;
    if (smi_view_slot(view, ref, &slab, &index) == 0)
        return smi_classes[smi_view_page(view, slab)->size_class].size;
    const struct smf_page *d =
        ref % SMF_PAGE == 0 ? smi_view_page(view, ref >> SMF_PAGE_SHIFT) : NULL;
    return d && d->kind == SMF_PAGE_LARGE ? (uint64_t)d->page_count << SMF_PAGE_SHIFT : 0;
}

struct smi_view_retired smi_view_retired(struct smi_view *view, const struct smf_thread *thread)
{
    struct smi_view_retired retired = {0, 0};
    const struct smf_bag *bags = smi_view_limbo(view, thread);
    for (uint32_t b = 0; bags && b < SMF_LIMBO_PAGES; b++)
        for (uint64_t i = 0, count = smi_bag_count(&bags[b]); i < count; i++) {
            retired.bytes += block_bytes(view, bags[b].refs[i]);
            retired.blocks++;
        }
    return retired;
}

static uint64_t less(uint64_t from, uint64_t what)
{
    return what < from ? from - what : 0;
}

/* So do retired blocks, which nobody has any more. */
static void count_retired(struct smi_view *view, const struct smf_thread *thread,
                          shmalloc_stats *out)
{
    struct smi_view_retired retired = smi_view_retired(view, thread);
    out->retired += retired.bytes;
    out->retired_blocks += retired.blocks;
    out->allocated = less(out->allocated, retired.bytes);
    out->allocated_blocks = less(out->allocated_blocks, retired.blocks);
}

/* Cached slots look allocated in their slabs' bitmaps: count them out. In a moving heap the two may
 * disagree; no figure becomes negative. */
static void count_caches(struct smi_view *view, shmalloc_stats *out)
{
    uint64_t slots = 0, bytes = 0;
    for (uint32_t t = 0; t < SMF_THREADS; t++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(view, t, &ref);
        if (!thread || !thread->owner)
            continue;
        out->threads++;
        count_retired(view, thread, out);
        for (unsigned k = 0; k < SMF_CLASSES; k++) {
            struct smi_view_stack stack;
            smi_view_read_stack(view, ref, thread, k, &stack);
            slots += stack.count;
            bytes += (uint64_t)stack.count * smi_classes[k].size;
        }
    }
    out->cached += bytes;
    out->allocated -= bytes < out->allocated ? bytes : out->allocated;
    out->allocated_blocks -= slots < out->allocated_blocks ? slots : out->allocated_blocks;
}

static void count_records(struct smi_view *view, shmalloc_stats *out)
{
    const struct smf_areas *areas = &view->header.areas;
    uint32_t centrals = (view->header.arena_count + 1) * SMF_CLASSES;
    for (uint32_t i = 0; i < SMF_PROCESSES; i++) {
        const struct smf_process *p =
            smi_view_at(view, areas->processes + i * sizeof(*p), sizeof(*p));
        out->processes += p && p->state == 1;
    }
    for (uint32_t i = 0; i < view->header.lock_count; i++) {
        const struct smf_lock *l = smi_view_at(view, areas->locks + i * sizeof(*l), sizeof(*l));
        out->repairs += l ? l->repairs : 0;
        out->lock_waits += l ? l->waits : 0;
    }
    for (uint32_t i = 0; i < centrals; i++) {
        const struct smf_central *c =
            smi_view_at(view, areas->central + i * sizeof(*c), sizeof(*c));
        out->double_frees += c ? c->double_frees : 0;
    }
    const struct smf_roots *roots = smi_view_at(view, areas->roots, sizeof(*roots));
    out->roots = roots ? roots->count : 0;
}

int smi_view_stats(struct smi_view *view, shmalloc_stats *out)
{
    int rc = smi_view_settle(view, NULL, NULL);
    if (rc < 0)
        return cannot_read(view, rc);
    *out = (shmalloc_stats){.struct_size = sizeof(*out)};
    out->file_size = view->file_size;
    out->max_size = view->state.max_size;
    out->chunks = view->state.chunk_count;
    out->generation = view->state.generation;
    out->metadata = smi_view_metadata_bytes(view);
    count_spans(view, out);
    count_caches(view, out);
    count_records(view, out);
    return view->read_error ? cannot_read(view, -view->read_error) : 0;
}

/* ---- roots ---------------------------------------------------------------------------------- */

const struct smf_root *smi_view_root(struct smi_view *view, uint64_t ref)
{
    const struct smf_root *root = ref % 8 == 0 ? smi_view_at(view, ref, sizeof(*root)) : NULL;
    if (!root || root->name_len < 1 || root->name_len > SMF_ROOT_NAME_MAX ||
        !smi_view_at(view, ref, sizeof(*root) + root->name_len + 1))
        return NULL;
    const char *name = (const char *)(root + 1);
    return strnlen(name, root->name_len + 1) == root->name_len ? root : NULL;
}

static int walk_bucket(struct smi_view *view, uint64_t ref,
                       int (*visit)(const shmalloc_root *root, void *arg), void *arg, int *damaged)
{
    /* `mark` is put down anew after 1, 2, 4, ... steps: a ring leads back to it. */
    uint64_t mark = 0, steps = 0, limit = 1;
    while (ref) {
        const struct smf_root *root = smi_view_root(view, ref);
        if (!root || ref == mark) {
            *damaged = 1;
            return 0;
        }
        shmalloc_root seen = {(const char *)(root + 1), root->type, root->ref};
        int rc = visit(&seen, arg);
        if (rc != 0)
            return rc;
        if (++steps == limit) {
            mark = ref;
            steps = 0;
            limit *= 2;
        }
        ref = root->next;
    }
    return 0;
}

int smi_view_each_root(struct smi_view *view, int (*visit)(const shmalloc_root *root, void *arg),
                       void *arg)
{
    int rc = smi_view_settle(view, NULL, NULL), damaged = 0;
    if (rc < 0)
        return cannot_read(view, rc);
    const struct smf_roots *roots = smi_view_record(view, view->header.areas.roots, sizeof(*roots));
    for (uint32_t i = 0; roots && rc == 0 && i < SMF_ROOT_BUCKETS; i++)
        rc = walk_bucket(view, roots->bucket[i], visit, arg, &damaged);
    if (rc == 0 && (damaged || !roots))
        rc = smi_error(SHMALLOC_ECORRUPT, "%s: the list of roots is damaged", view->path);
    return rc;
}
