/* SPDX-License-Identifier: MIT */
/*
 * cmd_copy.c - a copy of a heap, in use or not, that is sound for the allocator.
 *
 * A heap in use. The tool attaches, takes all locks of the heap, and reads what is the library's:
 * then nothing moves but thread slots. It lets go, and copies the spans of users, while they
 * work. What is torn in the image is what threads did to their stacks while these were read: a
 * slot may be in two of them, say. The repair of damaged heaps knows what to do with each such
 * thing, and gives no block away that a program had all the time; it is planned and carried out
 * on the copy, which is then recovered as a heap whose users died. So a copy never has a name
 * before it has passed the check.
 *
 * A heap at rest is read without a lock, and once more if somebody came meanwhile.
 */
#include "inspect.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "format/sizeclass.h"
#include "handle/handle.h"
#include "handle/lock.h"
#include "platform/error.h"
#include "platform/os.h"
#include "repair/repair.h"

static const char help[] =
    "Copies a heap to a new file, also while programs use it. The copy is sound for the\n"
    "allocator: it passes the check and opens. What programs keep in their blocks is\n"
    "copied while they work, so a structure of theirs may be torn: its parts may be of\n"
    "different moments, as after a power cut. Only a heap at rest is copied as it is.\n"
    "\n"
    "While the heap is in use, its locks are held for the time it takes to read the\n"
    "library's own data, some milliseconds for each GiB; programs that allocate from what\n"
    "they have cached do not notice. That takes permission to write to the heap.\n"
    "\n"
    "Pages in use have storage in the copy, free ones have none. OUT must not exist; it\n"
    "appears when the copy is complete, and not at all if the tool is killed.\n"
    "\n"
    "Options\n"
    "  -o, --output OUT   where to write it\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"copy\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  output                  the path of the copy\n"
    "  in_use                  it was copied while programs used it\n"
    "  length, storage         of the copy, bytes\n"
    "  locked_us               microseconds for which the locks were held\n";

static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                        {NULL, 0, NULL, 0}};
const struct command_line inspect_copy_line = {"-o OUT [--json] FILE", "o:", options, 0};

#define TRIES 8

struct copy {
    struct inspect *in;
    const char *to;
    shmalloc_heap *heap;
    struct smi_view view; /* of the library's own data, as of when the locks were held */
    int fd; /* of the copy */
    uint64_t locked_ns, done;
    int in_use;
};

/* `rc` with a message, unless it is one of the library's own codes, which has one. */
static int cannot_copy(const struct copy *c, int rc, const char *what)
{
    return rc > -4096 ? smi_error(rc, "%s: cannot %s: %s; there is no copy", c->to, what,
                                  shmalloc_strerror(rc))
                      : rc;
}

/* ---- what is the library's ------------------------------------------------------------------ */

static int is_own(const struct copy *c, const struct smi_span *span)
{
    const struct smf_page *page = span->page;
    return page->kind == SMF_PAGE_META ||
           (page->kind == SMF_PAGE_SLAB && page->arena == c->view.header.arena_count);
}

static uint64_t bytes_of(uint64_t pages)
{
    return pages << SMF_PAGE_SHIFT;
}

/* Bytes at the start of a span that are the library's: all, the bitmap of a slab of the smallest
 * classes, or none. */
static uint64_t own_bytes(struct copy *c, const struct smi_span *span)
{
    if (is_own(c, span))
        return bytes_of(span->page_count);
    return smi_view_is_slab(&c->view, span->page)
               ? bytes_of(smi_classes[span->page->size_class].bitmap_pages)
               : 0;
}

/* All that is the library's comes into the view; the locks are held. */
static int load(struct copy *c)
{
    struct smi_view *view = &c->view;
    struct smi_span span = {0};
    int rc = smi_view_of_descriptor(view, c->heap->fd, c->in->path);
    if (rc == 0)
        rc = smi_view_settle(view, NULL, NULL);
    if (rc < 0)
        return rc;
    int whole = smi_view_at(view, 0, view->header.areas.end) != NULL;
    for (uint32_t i = 0; i < view->chunk_count; i++)
        whole &= smi_view_at(view, smi_chunk_words_offset(&view->chunks[i], &view->header.areas),
                             smi_chunk_metadata_bytes(view->chunks[i].page_count)) != NULL;
    while (smi_view_next_span(view, &span)) {
        uint64_t own = own_bytes(c, &span);
        whole &= own == 0 || smi_view_at(view, bytes_of(span.first_page), own) != NULL;
    }
    return whole ? 0 : smi_error(-EIO, "%s: cannot read all of the heap's own data", c->in->path);
}

/* A block that a realloc fills now may be in a program's word when that is copied: it stays
 * allocated. */
static void keep_scratch(struct copy *c)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(&c->view, i, &ref);
        if (thread && thread->scratch)
            smi_view_store(&c->view, ref + offsetof(struct smf_thread, scratch), 0);
    }
}

/* In the copy free pages are holes. */
static void forget_storage(struct copy *c, const struct smi_span *span)
{
    const struct smf_chunk *chunk = &c->view.chunks[span->chunk];
    uint16_t *words =
        (uint16_t *)(void *)(c->view.memory + smi_chunk_words_offset(chunk, &c->view.header.areas));
    for (uint32_t i = 0; i < span->page_count; i++) {
        uint16_t *word = &words[span->first_page - chunk->first_page + i];
        *word = (uint16_t)((*word & ~SMF_WORD_RESERVED) | SMF_WORD_ZERO);
    }
}

static int look_at_own(struct copy *c)
{
    int rc = smi_lock_acquire_all(c->heap);
    if (rc < 0)
        return rc;
    uint64_t start = smi_os_clock();
    rc = load(c);
    c->locked_ns = smi_os_clock() - start;
    smi_lock_release_all(c->heap);
    if (rc < 0)
        return rc;
    keep_scratch(c);
    struct smi_span span = {0};
    while (smi_view_next_span(&c->view, &span))
        if (span.page->kind == SMF_PAGE_FREE)
            forget_storage(c, &span);
    return 0;
}

/* ---- writing -------------------------------------------------------------------------------- */

static int write_own(struct copy *c, uint64_t ref, uint64_t len)
{
    int rc = len > 0 ? smi_os_reserve(c->fd, ref, len) : 0;
    return rc == 0 && len > 0 ? smi_os_write(c->fd, c->view.memory + ref, len, ref) : rc;
}

/* Bytes that programs may change meanwhile; what was cut off or punched meanwhile reads as
 * zeros. */
static int write_users(struct copy *c, uint64_t ref, uint64_t end)
{
    static uint8_t buffer[1 << 20];
    int rc = ref < end ? smi_os_reserve(c->fd, ref, end - ref) : 0;
    while (rc == 0 && ref < end) {
        uint64_t len = end - ref < sizeof(buffer) ? end - ref : sizeof(buffer);
        int64_t got = smi_os_read(c->heap->fd, buffer, len, ref);
        rc = got < 0 ? (int)got : smi_os_write(c->fd, buffer, len, ref);
        ref += len;
        inspect_progress_count("copying", ref >> 20, c->view.state.size >> 20, "MiB");
    }
    return rc;
}

static int write_image(struct copy *c)
{
    struct smi_view *view = &c->view;
    struct smi_span span = {0};
    int rc = smi_os_truncate(c->fd, view->state.size);
    if (rc == 0)
        rc = write_own(c, 0, view->header.areas.end);
    for (uint32_t i = 0; rc == 0 && i < view->chunk_count; i++)
        rc = write_own(c, smi_chunk_words_offset(&view->chunks[i], &view->header.areas),
                       smi_chunk_metadata_bytes(view->chunks[i].page_count));
    while (rc == 0 && smi_view_next_span(view, &span)) {
        uint64_t ref = bytes_of(span.first_page), own = own_bytes(c, &span);
        if (span.page->kind == SMF_PAGE_FREE)
            continue;
        rc = write_own(c, ref, own);
        if (rc == 0)
            rc = write_users(c, ref + own, ref + bytes_of(span.page_count));
    }
    return rc < 0 ? cannot_copy(c, rc, "write the copy") : 0;
}

/* ---- the copy becomes a heap ---------------------------------------------------------------- */

/* Bring what is torn in the stacks of threads in order. 1: there is no rule for it, which
 * another look may spare. */
static int mend_copy(struct copy *c)
{
    struct smi_repair repair;
    int rc = smi_repair_plan(&repair, c->fd, c->to, NULL);
    if (rc == 0 && repair.obstacles.count > 0)
        rc = 1;
    else if (rc == 0 && repair.steps.count > 0)
        rc = smi_repair_apply(&repair, c->fd, NULL);
    smi_repair_finish(&repair);
    return rc;
}

static int recover_copy(struct copy *c)
{
    char name[32];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", c->fd);
    int rc = mend_copy(c);
    if (rc == 0)
        rc = shmalloc_recover(name);
    return rc == SHMALLOC_ECORRUPT ? 1 : rc;
}

static int fill_copy(struct copy *c)
{
    int rc = 1;
    for (int tries = 0; rc == 1 && tries < TRIES; tries++) {
        rc = smi_os_truncate(c->fd, 0);
        if (rc == 0)
            rc = look_at_own(c);
        if (rc == 0)
            rc = write_image(c);
        if (rc == 0)
            rc = recover_copy(c);
        smi_view_finish(&c->view);
    }
    return rc == 1
               ? smi_error(
                     SHMALLOC_EBUSY,
                     "%s: %d copies were not sound, so fast it changes; copy it when less is done",
                     c->in->path, TRIES)
               : rc;
}

/* Under no name until it is complete. */
static int copy_in_use(struct copy *c)
{
    char temp_name[PATH_MAX];
    struct smi_file_info info;
    int rc = smi_os_stat(c->heap->fd, &info);
    if (rc == 0)
        rc = c->fd = smi_os_create_unnamed(c->to, info.mode & 0777, temp_name);
    if (rc < 0)
        return cannot_copy(c, rc, "create it");
    rc = fill_copy(c);
    if (rc < 0)
        smi_os_discard(temp_name);
    else if ((rc = smi_os_publish(c->fd, c->to, temp_name)) == 0)
        rc = smi_os_sync_directory(c->to);
    smi_os_close(c->fd);
    return rc < 0 ? cannot_copy(c, rc, "create it") : 0;
}

static int attach_and_copy(struct copy *c)
{
    int rc = shmalloc_open(c->in->path, NULL, &c->heap);
    if (rc < 0)
        return rc;
    if (c->heap->state->poison)
        rc = smi_heap_writable(c->heap);
    else if (c->heap->lock_count > SMI_LOCKS_AT_ONCE)
        rc = smi_error(
            -EOPNOTSUPP,
            "%s: has %u arenas, whose locks are too many to hold at once; copy it at rest",
            c->in->path, c->heap->arena_count);
    else
        rc = copy_in_use(c);
    char text[700];
    snprintf(text, sizeof(text), "%s", shmalloc_errmsg());
    int closed = shmalloc_close(c->heap);
    return rc < 0 ? smi_error(rc, "%s", text) : closed;
}

/* ---- at rest -------------------------------------------------------------------------------- */

static int copy_at_rest(struct copy *c)
{
    struct smi_repair repair;
    int rc = smi_repair_plan(&repair, c->in->view.fd, c->in->path, inspect_progress);
    if (rc == 0 && repair.steps.count + repair.obstacles.count > 0)
        rc = smi_error(
            SHMALLOC_ECORRUPT,
            "%s: is damaged; `shmalloc-inspect check` says more, and cp copies it as it is",
            c->in->path);
    if (rc == 0)
        rc = smi_repair_save(&repair, c->in->view.fd, c->to, inspect_progress_count);
    smi_repair_finish(&repair);
    return rc < 0 || c->in->view.state.mark == SMF_CLEAN ? rc : shmalloc_recover(c->to);
}

/* Did somebody come since the heap was opened here? Then the copy is torn. */
static int has_come(struct copy *c)
{
    uint64_t generation = c->in->view.state.generation;
    return inspect_open_again(c->in) < 0 || inspect_is_live(c->in) ||
           c->in->view.state.generation != generation;
}

static int make_copy(struct copy *c)
{
    c->in_use = inspect_is_live(c->in);
    if (c->in_use)
        return attach_and_copy(c);
    int rc = copy_at_rest(c);
    if (rc < 0 || !has_come(c))
        return rc;
    smi_os_unlink(c->to);
    c->in_use = 1;
    return attach_and_copy(c);
}

/* ---- what is said --------------------------------------------------------------------------- */

static void show_copy(struct copy *c, const struct smi_file_info *info)
{
    struct inspect *in = c->in;
    char a[32], b[32];
    if (in->out) {
        inspect_add_text(in->out, "output", c->to);
        inspect_add_flag(in->out, "in_use", c->in_use);
        inspect_add_number(in->out, "length", info->size);
        inspect_add_number(in->out, "storage", info->blocks);
        inspect_add_number(in->out, "locked_us", c->locked_ns / 1000);
        return;
    }
    inspect_print_text(c->to);
    printf(": %s%s%s, %s stored; the allocator's data are sound\n", inspect_color(in, GREEN),
           inspect_bytes(info->size, a), inspect_color(in, PLAIN), inspect_bytes(info->blocks, b));
    if (c->in_use)
        printf("%sThe heap was in use. What programs keep in their blocks was copied while they "
               "worked, so\n"
               "a structure of theirs may be torn: they have to judge it. Locks were held for %s "
               "us.%s\n",
               inspect_color(in, YELLOW), inspect_number(c->locked_ns / 1000, a),
               inspect_color(in, PLAIN));
}

static enum verdict run(struct inspect *in)
{
    struct smi_file_info info;
    struct copy copy = {.in = in, .to = in->given['o'], .fd = -1};
    if (!copy.to) {
        fprintf(stderr, "shmalloc-inspect: copy needs --output\n");
        return CANNOT_TELL;
    }
    int rc = inspect_open(in);
    if (rc == 0 && smi_os_stat_path(copy.to, 0, &info) == 0)
        rc = smi_error(-EEXIST, "%s: exists; nothing was copied: give another name, or remove it",
                       copy.to);
    if (rc == 0)
        rc = make_copy(&copy);
    inspect_progress_end();
    if (rc == 0 && (rc = smi_os_stat_path(copy.to, 1, &info)) < 0)
        cannot_copy(&copy, rc, "look at the copy");
    if (rc < 0)
        return inspect_report_error(in, rc);
    show_copy(&copy, &info);
    return SOUND;
}

const struct subcommand inspect_copy = {"copy", "copy a heap, also one in use", help, run, NULL};
