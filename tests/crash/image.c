/* SPDX-License-Identifier: MIT */
/* image.c - a heap file while it is changed: what is in flight in it, and judging a copy; see image.h. */
#include "image.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"
#include "support.h"
#include "view.h"

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

/* ---- what is in flight ---- */

struct parts {
    struct smf_page_heap *page_heap;
    struct smf_roots *roots;
    struct smf_central *central;
    uint32_t central_count, arenas;
    struct smf_thread *thread[8];
    unsigned threads;
};

static struct parts parts_of(uint8_t *bytes, uint64_t size)
{
    struct parts parts = {0};
    const struct smf_header *header = (void *)bytes;
    const struct smf_areas *areas = &header->areas;
    const uint64_t *threads = (void *)(bytes + areas->threads);
    parts.page_heap = (void *)(bytes + areas->page_heap);
    parts.roots = (void *)(bytes + areas->roots);
    parts.central = (void *)(bytes + areas->central);
    parts.arenas = header->arena_count;
    parts.central_count = (header->arena_count + 1) * SMF_CLASSES;
    for (unsigned i = 0; i < 8; i++)
        if (threads[i] != 0 && threads[i] + sizeof(struct smf_thread) <= size)
            parts.thread[parts.threads++] = (void *)(bytes + threads[i]);
    return parts;
}

uint64_t image_in_flight(const struct smi_image *image)
{
    if (image->fd < 0)
        return 0;
    struct parts p = parts_of(image->copy, image->size);
    uint64_t bits = (p.page_heap->log_count != 0) | (p.roots->log_count != 0) << 1 | (p.roots->scratch != 0) << 2;
    for (uint32_t i = 0; i < p.central_count; i++) {
        unsigned own = i / SMF_CLASSES == p.arenas;
        bits |= (uint64_t)(p.central[i].log_count != 0) << (3 + own);
        bits |= (uint64_t)(p.central[i].pending != 0) << (5 + own);
    }
    for (unsigned i = 0; i < p.threads; i++) {
        const struct smf_thread *t = p.thread[i];
        bits |= (uint64_t)(t->link.op == SMF_LINK_TAKE) << 7 | (uint64_t)(t->link.op == SMF_LINK_GIVE) << 8 |
                (uint64_t)(t->scratch != 0) << 9 | (uint64_t)(t->building != 0) << 10 |
                (uint64_t)(t->spare[0] != 0) << 11 | (uint64_t)(t->spare[1] != 0) << 12;
    }
    return bits;
}

const char *const planted_names[PLANTS] = {"nothing", "a log's last entry missing", "no link record",
                                           "no `pending`", "no `spare`"};

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
    for (unsigned i = 0; i < p.threads; i++) {
        if (what == PLANT_LINK)
            done |= forget_word(&p.thread[i]->link.op);
        if (what == PLANT_SPARE)
            done |= forget_word(&p.thread[i]->spare[0]) | forget_word(&p.thread[i]->spare[1]);
    }
    munmap(bytes, (size_t)st.st_size);
    close(fd);
    return done;
}

/* ---- judging ---- */

#define right(condition, ...) ((condition) ? (void)0 : smi_wrong(__VA_ARGS__))
#define works(call) right((call) >= 0, "%s: %s", #call, shmalloc_errmsg())

static void seen_by_view(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    smi_wrong("%s: %s at %#llx: %s", (const char *)arg, invariant, (unsigned long long)ref, text);
}

/* As shmalloc-inspect does it: the file settles in private memory, nobody opens it. */
static void check_closed(const char *path, char *when)
{
    struct smi_view view;
    struct smi_check_result result = {0};
    works(smi_view_open(&view, path));
    works(smi_check(&view, 0, seen_by_view, when, &result));
    smi_view_finish(&view);
}

static int describe_block(const shmalloc_block *block, void *arg)
{
    (void)arg;
    smi_say("block %#llx size %llu tag %u\n", (unsigned long long)block->ref, (unsigned long long)block->size,
         block->tag);
    return 0;
}

static int describe_root(const shmalloc_root *root, void *arg)
{
    (void)arg;
    smi_say("root \"%s\" type %llu ref %#llx\n", root->name, (unsigned long long)root->type,
         (unsigned long long)root->ref);
    return 0;
}

static void describe_words(shmalloc_heap *heap, const struct world *world)
{
    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t ref = world->word[i], len = world->valid[i];
        if (ref == 0)
            continue;
        right(shmalloc_usable_size(heap, shmalloc_ptr(heap, ref)) >= len, "word %u: %#llx is no block of %llu bytes",
              i, (unsigned long long)ref, (unsigned long long)len);
        smi_say("word %u is %#llx, its %llu bytes have hash %llx\n", i, (unsigned long long)ref,
             (unsigned long long)len, (unsigned long long)smi_hash(shmalloc_ptr(heap, ref), len));
    }
}

static void describe(shmalloc_heap *heap, struct world *world, const struct op *op)
{
    works(shmalloc_each_block(heap, describe_block, NULL));
    works(shmalloc_root_each(heap, describe_root, NULL));
    if (world)
        describe_words(heap, world);
    shmalloc_stats stats = {.struct_size = sizeof(stats)};
    works(shmalloc_get_stats(heap, &stats));
    smi_say("maximum %llu\n", (unsigned long long)stats.max_size);
    if (op->traits & OP_MUTEX) {
        int rc = shmalloc_mutex_trylock(heap, &world->mutex);
        smi_say("mutex answers %d\n", rc);
        works(rc);
        works(shmalloc_mutex_unlock(heap, &world->mutex));
        works(shmalloc_mutex_lock(heap, &world->mutex));
        works(shmalloc_mutex_unlock(heap, &world->mutex));
    }
}

static int collect(const shmalloc_block *block, void *arg)
{
    shmalloc_ref **next = arg;
    *(*next)++ = block->ref;
    return 0;
}

/* The heap still does what it is for, and all of it can be freed. */
static void use_and_empty(shmalloc_heap *heap)
{
    static shmalloc_ref refs[16384];
    static const size_t sizes[] = {8, 16, 100, 100, 100, 100, 100, 600, 4096, 4096, 20000};
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        works(shmalloc_alloc(heap, sizes[i], &refs[0]));
        memset(shmalloc_ptr(heap, refs[0]), 0x55, sizes[i]);
    }
    for (size_t size = 68 << 10; size < 600 << 10; size *= 2) {
        works(shmalloc_alloc_zeroed(heap, size, &refs[0]));
        right(all_zero(shmalloc_ptr(heap, refs[0]), size), "a zeroed block has other bytes");
    }
    shmalloc_ref *next = refs;
    works(shmalloc_root_remove(heap, "world"));
    int rc = shmalloc_root_remove(heap, "a root");
    right(rc == 0 || rc == SHMALLOC_ENOROOT, "root_remove: %s", shmalloc_errmsg());
    works(shmalloc_each_block(heap, collect, &next));
    for (shmalloc_ref *ref = refs; ref < next; ref++)
        works(shmalloc_free(heap, ref));
    works(shmalloc_trim(heap));
    shmalloc_stats stats = {.struct_size = sizeof(stats)};
    works(shmalloc_get_stats(heap, &stats));
    right(stats.allocated_blocks == 0 && stats.cached == 0 && stats.central_free == 0 && stats.double_frees == 0,
          "emptied: %llu blocks, %llu bytes cached, %llu free in slabs, %llu double frees",
          (unsigned long long)stats.allocated_blocks, (unsigned long long)stats.cached,
          (unsigned long long)stats.central_free, (unsigned long long)stats.double_frees);
}

/* A heap that is damaged and was in use when the machine stopped: until it has been checked nobody may use it as
 * if nothing had happened, and afterwards neither. */
static _Noreturn void judge_torn(const char *path)
{
    shmalloc_heap *heap;
    int rc = shmalloc_open(path, NULL, &heap);
    right(rc == 0 || rc == SHMALLOC_EUNCLEAN, "open: %s", shmalloc_errmsg());
    if (rc == 0)
        right(!shmalloc_malloc(heap, 8) && shmalloc_check(heap) < 0,
              "a damaged heap that nobody has checked is opened, without a complaint, for use");
    smi_say(rc == 0 ? "poisoned\n" : "refused as unclean\n");
    _exit(0);
}

static _Noreturn void judge_here(const char *path, const struct op *op)
{
    shmalloc_heap *heap;
    char untouched[] = "before recovery", recovered[] = "recovered", emptied[] = "emptied and closed";
    if (op->traits & OP_TORN)
        judge_torn(path);
    check_closed(path, untouched);
    works(shmalloc_open(path, NULL, &heap));
    check_closed(path, recovered);
    works(shmalloc_check(heap));
    struct world *world = NULL;
    shmalloc_ref ref;
    if (!(op->traits & OP_NO_FILE)) {
        works(shmalloc_root_get(heap, "world", 0, &ref));
        world = shmalloc_ptr(heap, ref);
    } else {
        works(shmalloc_root_set(heap, "world", 0, 0));
    }
    describe(heap, world, op);
    use_and_empty(heap);
    works(shmalloc_check(heap));
    works(shmalloc_close(heap));
    check_closed(path, emptied);
    works(shmalloc_open(path, NULL, &heap));
    works(shmalloc_close(heap));
    _exit(0);
}

struct judged {
    const char *path;
    const struct op *op;
};

static void judge_it(void *arg)
{
    const struct judged *judged = arg;
    judge_here(judged->path, judged->op);
}

void judge(const char *path, const struct op *op, struct smi_findings *out)
{
    struct judged judged = {path, op};
    smi_judge(judge_it, &judged, 20, out);
}
