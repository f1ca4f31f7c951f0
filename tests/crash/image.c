/* SPDX-License-Identifier: MIT */
/* image.c - a heap file while it is changed: what is in flight in it, copies of it, faults; see
 * image.h. */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/sizeclass.h"
#include "support.h"

/* ---- the file of a stopped process ---- */

int image_look(struct smi_image *image)
{
    int rc = smi_image_look(image);
    must(rc >= 0, "%s", image->failure);
    return rc;
}

void image_write(struct smi_image *image, const char *path)
{
    must(smi_image_write(image, path) == 0, "%s", image->failure);
}

void image_copy(const char *from, const char *to)
{
    struct smi_image *image = calloc(1, sizeof(*image));
    must(image, "out of memory");
    image->path = from;
    image->fd = -1;
    image_look(image);
    image_write(image, to);
    smi_image_forget(image);
    free(image);
}

int image_move(const char *path, int reboot)
{
    struct smf_runtime runtime;
    struct smf_state state;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    must(fd >= 0 && pread(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime) &&
             pread(fd, &state, sizeof(state), SMF_STATE_OFFSET) == sizeof(state),
         "%s: %s", path, strerror(errno));
    if (reboot)
        runtime.boot_id[0] ^= 1;
    else
        runtime.inode ^= 1;
    must(pwrite(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime), "%s: %s",
         path, strerror(errno));
    close(fd);
    return state.mark != SMF_CLEAN;
}

/* The images before, the latest first. */
static struct {
    uint8_t *bytes;
    uint64_t size;
} past[2];

/* With a store between each two images, the oldest with what changed between the newer two lacks
 * the middle store. */
static void write_without_middle(struct smi_image *image, const char *path)
{
    uint8_t *now = image->copy, *mixed = past[1].bytes;
    for (uint64_t at = 0; at < image->size; at++)
        if (now[at] != past[0].bytes[at])
            mixed[at] = now[at];
    image->copy = mixed;
    image_write(image, path);
    image->copy = now;
}

int image_write_swapped(struct smi_image *image, const char *path)
{
    int possible = past[0].size == image->size && past[1].size == image->size;
    if (possible)
        write_without_middle(image, path);
    uint8_t *oldest = realloc(past[1].bytes, image->size);
    must(oldest, "out of memory");
    memcpy(oldest, image->copy, image->size);
    past[1] = past[0];
    past[0].bytes = oldest;
    past[0].size = image->size;
    return possible;
}

void image_swap_begin(void)
{
    past[0].size = past[1].size = 0;
}

/* ---- what is in flight ---- */

struct parts {
    uint8_t *bytes;
    uint64_t size;
    struct smf_state *state;
    struct smf_page_heap *page_heap;
    struct smf_roots *roots;
    struct smf_central *central;
    uint32_t central_count, arenas;
    struct smf_process *entries;
    struct smf_lock *locks;
    uint32_t lock_count;
    struct smf_thread *thread[8]; /* the first is the stepped process's */
    unsigned threads;
};

static struct parts parts_of(uint8_t *bytes, uint64_t size)
{
    struct parts parts = {0};
    const struct smf_header *header = (void *)bytes;
    const struct smf_areas *areas = &header->areas;
    const uint64_t *threads = (void *)(bytes + areas->threads);
    parts.bytes = bytes;
    parts.size = size;
    parts.state = (void *)(bytes + SMF_STATE_OFFSET);
    parts.page_heap = (void *)(bytes + areas->page_heap);
    parts.roots = (void *)(bytes + areas->roots);
    parts.central = (void *)(bytes + areas->central);
    parts.arenas = header->arena_count;
    parts.entries = (void *)(bytes + areas->processes);
    parts.locks = (void *)(bytes + areas->locks);
    parts.lock_count = header->lock_count;
    parts.central_count = (header->arena_count + 1) * SMF_CLASSES;
    for (unsigned i = 0; i < 8; i++)
        if (threads[i] != 0 && threads[i] + sizeof(struct smf_thread) <= size)
            parts.thread[parts.threads++] = (void *)(bytes + threads[i]);
    return parts;
}

/* Locks that are held, or whose owner died before: a bit for each of their kinds. */
static uint64_t kinds_of_locks(const struct smi_image *image)
{
    const struct smf_header *header = (const void *)image->copy;
    const struct smf_lock *locks = (const void *)(image->copy + image->areas.locks);
    uint64_t bits = 0;
    for (uint32_t i = 0; i < header->lock_count; i++) {
        if (!(locks[i].mutex[0] & (FUTEX_TID_MASK | FUTEX_OWNER_DIED)))
            continue;
        bits |= i < SMF_LOCK_CLASS_FIRST ? 1ull << (13 + i)
                : i == header->lock_count - 1 ? 1ull << 29
                : 1ull << (30 + (i - SMF_LOCK_CLASS_FIRST) / SMF_CLASSES / header->arena_count);
    }
    return bits;
}

uint64_t image_in_flight(const struct smi_image *image)
{
    if (image->fd < 0)
        return 0;
    struct parts p = parts_of(image->copy, image->size);
    uint64_t bits = (uint64_t)(p.state->claimed != 0) << 58 | (p.page_heap->log_count != 0) |
                    (p.roots->log_count != 0) << 1 | (p.roots->scratch != 0) << 2;
    for (uint32_t i = 0; i < p.central_count; i++) {
        unsigned own = i / SMF_CLASSES == p.arenas;
        bits |= (uint64_t)(p.central[i].log_count != 0) << (3 + own);
        bits |= (uint64_t)(p.central[i].pending != 0) << (5 + own);
    }
    for (unsigned i = 0; i < p.threads; i++) {
        const struct smf_thread *t = p.thread[i];
        unsigned op = t->link.op & SMF_LINK_OP;
        bits |= (uint64_t)(op == SMF_LINK_TAKE) << 7 | (uint64_t)(op == SMF_LINK_GIVE) << 8 |
                (uint64_t)(op >= SMF_LINK_SHORT_TAKE) << (55 + op) |
                (uint64_t)(t->scratch != 0) << 9 | (uint64_t)(t->building != 0) << 10 |
                (uint64_t)(t->spare[0] != 0) << 11 | (uint64_t)(t->spare[1] != 0) << 12;
    }
    return image->watch_locks ? bits | kinds_of_locks(image) : bits;
}

const char *const planted_names[PLANTS] = {"nothing",
                                           "a log's last entry missing",
                                           "no link record",
                                           "no `pending`",
                                           "no `spare`",
                                           "no `scratch`",
                                           "no `building`",
                                           "adoption frees the thread slot first",
                                           "adoption frees the process entry first",
                                           "a stack is opened with leftovers",
                                           "the mark of a kept block is cleared too late",
                                           "a claim is not noted",
                                           "two stores in the wrong order",
                                           "a lock that does not tell of its owner's death"};

/* A stored log count goes down by one. */
static int drop_entry(uint64_t *count)
{
    if (*count == 0)
        return 0;
    --*count;
    return 1;
}

static int forget_word(uint64_t *word)
{
    int was = *word != 0;
    *word = 0;
    return was;
}

/* A slot beside the lowest of an open stack, above the stack. */
static int add_leftover(const struct parts *p, struct smf_thread *thread)
{
    for (uint32_t k = 0; k < SMF_CLASSES; k++) {
        uint64_t ref = thread->stacks[k] & ~(uint64_t)SMF_STACK_PAGES;
        uint32_t words = smi_stack_words(thread->stacks[k], k);
        uint64_t *array =
            ref % 8 == 0 && ref + 8ull * words <= p->size ? (void *)(p->bytes + ref) : NULL;
        uint64_t count =
            ref != 0 && array && array[0] == SMF_OPEN ? smi_stack_count(array, words) : 0;
        if (count == 0 || count + 1 >= words)
            continue;
        array[count + 1] = array[1] + smi_classes[k].size;
        return 1;
    }
    return 0;
}

/* A large block that the program has looks as if the thread kept it. */
static int mark_as_kept(const struct parts *p, struct smf_thread *thread)
{
    const struct smf_header *header = (void *)p->bytes;
    const struct smf_chunk chunk =
        *(struct smf_chunk *)(void *)(p->bytes + header->areas.directory);
    struct smf_page *page =
        (void *)(p->bytes + header->areas.end + chunk.page_count * sizeof(uint16_t));
    for (uint32_t i = 1; i < chunk.page_count; i++)
        if (page[i].kind == SMF_PAGE_LARGE && page[i].side == 0 &&
            page[i].page_count < SMF_SPAN_MOST_PAGES) {
            page[i].side = smi_mark_kept(0, 0);
            thread->spans[0] = (uint64_t)i << SMF_PAGE_SHIFT | page[i].page_count;
            return 1;
        }
    return 0;
}

int image_plant(const char *path, enum planted what)
{
    int fd = open(path, O_RDWR | O_CLOEXEC), done = 0;
    struct stat st;
    must(fd >= 0 && fstat(fd, &st) == 0, "%s: %s", path, strerror(errno));
    uint8_t *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    must(bytes != MAP_FAILED, "mmap: %s", strerror(errno));
    struct parts p = parts_of(bytes, (uint64_t)st.st_size);
    if (what == PLANT_LOG)
        done = drop_entry(&p.page_heap->log_count) | drop_entry(&p.roots->log_count);
    for (uint32_t i = 0; i < p.central_count; i++) {
        if (what == PLANT_LOG)
            done |= drop_entry(&p.central[i].log_count);
        if (what == PLANT_PENDING)
            done |= forget_word(&p.central[i].pending);
    }
    if (what == PLANT_LINK)
        done |= forget_word(&p.thread[0]->link.op);
    if (what == PLANT_SPARE)
        done |= forget_word(&p.thread[0]->spare[0]) | forget_word(&p.thread[0]->spare[1]);
    if (what == PLANT_SCRATCH)
        done |= forget_word(&p.thread[0]->scratch);
    if (what == PLANT_BUILDING)
        done |= forget_word(&p.thread[0]->building);
    if (what == PLANT_SLOT)
        done |= forget_word(&p.thread[0]->owner);
    if (what == PLANT_LEFTOVER)
        done |= add_leftover(&p, p.thread[0]);
    if (what == PLANT_MARK && p.thread[0]->owner != 0)
        done |= mark_as_kept(&p, p.thread[0]);
    if (what == PLANT_CLAIM)
        done |= forget_word(&p.state->claimed);
    if (what == PLANT_ENTRY)
        done |= forget_word((uint64_t *)(void *)p.entries);
    for (uint32_t i = 0; what == PLANT_UNMARKED && i < p.lock_count; i++)
        done |= forget_word(p.locks[i].mutex);
    munmap(bytes, (size_t)st.st_size);
    close(fd);
    return done;
}
