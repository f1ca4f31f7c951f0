/* SPDX-License-Identifier: MIT */
/*
 * image.c - seeing changes of a heap file, copying it, and judging a copy; see image.h.
 *
 * Changes are found page by page against a copy. Holes are read as zeros through the mapping, which on tmpfs
 * gives them storage; that changes nothing that a heap relies on.
 */
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

static const uint8_t zeros[4096];

/* ---- looking ---- */

static int open_image(struct image *image)
{
    image->fd = open(image->path, O_RDONLY | O_CLOEXEC);
    if (image->fd < 0)
        return 0;
    struct smf_header header;
    must(pread(image->fd, &header, sizeof(header), 0) == sizeof(header), "short header");
    image->locks = header.areas.locks;
    image->locks_end = header.areas.locks + header.lock_count * sizeof(struct smf_lock);
    image->file = mmap(NULL, IMAGE_MAX, PROT_READ, MAP_SHARED, image->fd, 0);
    if (!image->copy)
        image->copy = mmap(NULL, IMAGE_MAX, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    must(image->file != MAP_FAILED && image->copy != MAP_FAILED, "mmap: %s", strerror(errno));
    return 1;
}

void image_forget(struct image *image)
{
    if (image->fd >= 0) {
        munmap(image->file, IMAGE_MAX);
        munmap(image->copy, IMAGE_MAX);
        close(image->fd);
    }
    const char *path = image->path;
    memset(image, 0, sizeof(*image));
    image->path = path;
    image->fd = -1;
}

static uint64_t hash_words(const uint8_t *bytes, size_t len, uint64_t hash)
{
    for (size_t i = 0; i < len; i += 8) {
        uint64_t word;
        memcpy(&word, bytes + i, 8);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
        hash ^= hash >> 29;
    }
    return hash;
}

static uint64_t hash_page(const struct image *image, uint64_t page)
{
    const uint8_t *at = image->copy + page * 4096;
    uint64_t start = page * 4096, end = start + 4096, hash = page + 1;
    uint64_t from = image->locks > start ? image->locks : start, to = image->locks_end < end ? image->locks_end : end;
    if (from >= to)
        return memcmp(at, zeros, 4096) == 0 ? 0 : hash_words(at, 4096, hash);
    hash = hash_words(at, from - start, hash);
    return hash_words(at + (to - start), end - to, hash);
}

/* Is the 4 KiB page part of a large block or of a free span? What is stored there makes no other image; but that
 * something was stored there does, once after each change of anything else. */
static int holds_no_metadata(const struct image *image, uint64_t os_page)
{
    uint64_t page = os_page * 4096 >> SMF_PAGE_SHIFT;
    const struct smf_header *header = (const void *)image->copy;
    const struct smf_state *state = (const void *)(image->copy + SMF_STATE_OFFSET);
    const struct smf_chunk *chunks = (const void *)(image->copy + header->areas.directory);
    for (uint64_t i = 0; i < state->chunk_count && i < SMF_CHUNKS; i++) {
        const struct smf_chunk *chunk = &chunks[i];
        if (page < chunk->first_page || page >= (uint64_t)chunk->first_page + chunk->page_count)
            continue;
        const struct smf_page *pages =
            (const void *)(image->copy + smi_chunk_words_offset(chunk, &header->areas) + chunk->page_count * 2ull);
        uint64_t data = smi_chunk_data_page(chunk, &header->areas), at = page;
        while (at > data && pages[at - chunk->first_page].kind == SMF_PAGE_NONE)
            at--;
        unsigned kind = at < data ? SMF_PAGE_META : pages[at - chunk->first_page].kind;
        return kind == SMF_PAGE_LARGE || kind == SMF_PAGE_FREE || kind == SMF_PAGE_FREE_TAIL;
    }
    return 0;
}

static void rehash(struct image *image, uint64_t page)
{
    uint64_t hash = hash_page(image, page);
    image->sum += hash - image->hashes[page];
    image->hashes[page] = hash;
}

/* The pages that hold metadata, as ranges. */
static void find_watched(struct image *image)
{
    image->ranges = 0;
    for (uint64_t page = 0; page < image->size / 4096; page++) {
        if (holds_no_metadata(image, page) ||
            (page * 4096 >= image->locks && (page + 1) * 4096 <= image->locks_end))
            continue;
        struct image_range *last = &image->range[image->ranges];
        if (image->ranges > 0 && last[-1].end == page * 4096)
            last[-1].end += 4096;
        else if (image->ranges < IMAGE_RANGES)
            image->range[image->ranges++] = (struct image_range){page * 4096, (page + 1) * 4096};
        else
            last[-1].end = (page + 1) * 4096;
    }
}

static int watched_changed(const struct image *image)
{
    for (unsigned i = 0; i < image->ranges; i++) {
        struct image_range r = image->range[i];
        if (memcmp(image->file + r.start, image->copy + r.start, r.end - r.start) != 0)
            return 1;
    }
    return 0;
}

/* Bring the copy up to date: 1 when a page without metadata changed. */
static int update_copy(struct image *image)
{
    int touched = 0;
    for (uint64_t at = 0; at < image->size; at += 4096) {
        if (memcmp(image->file + at, image->copy + at, 4096) == 0)
            continue;
        memcpy(image->copy + at, image->file + at, 4096);
        if (holds_no_metadata(image, at / 4096))
            touched = 1;
        else
            rehash(image, at / 4096);
    }
    return touched;
}

static void resize(struct image *image, uint64_t size)
{
    for (uint64_t page = size / 4096; page < image->size / 4096; page++) {
        memset(image->copy + page * 4096, 0, 4096);
        rehash(image, page);
    }
    image->sum += (size - image->size) * 0x9e3779b97f4a7c15ull;
    image->size = size;
}

int image_look(struct image *image)
{
    struct stat st;
    uint64_t before = image->sum, was_touched = image->touched;
    if (image->fd < 0 && !open_image(image))
        return 0;
    must(fstat(image->fd, &st) == 0 && st.st_size <= IMAGE_MAX, "the heap has %lld bytes", (long long)st.st_size);
    /* Bytes without metadata are looked at with every change of others, and now and then. */
    if ((uint64_t)st.st_size == image->size && ++image->looks % 64 != 0 && !watched_changed(image))
        return 0;
    image->device = st.st_dev;
    image->inode = st.st_ino;
    resize(image, (uint64_t)st.st_size);
    uint64_t touched = update_copy(image) | was_touched;
    if (image->sum != before) {
        touched = 0;
        find_watched(image);
    }
    image->sum += touched - was_touched;
    image->touched = touched;
    return image->sum != before;
}

void image_write(const struct image *image, const char *path)
{
    unlink(path);
    struct smf_runtime runtime;
    struct stat copy;
    memcpy(&runtime, image->copy + SMF_RUNTIME_OFFSET, sizeof(runtime));
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, (off_t)image->size) == 0, "%s: %s", path, strerror(errno));
    for (uint64_t at = 0, end; at < image->size; at = end) {
        end = at + 4096;
        if (memcmp(image->copy + at, zeros, 4096) == 0)
            continue;
        while (end < image->size && memcmp(image->copy + end, zeros, 4096) != 0)
            end += 4096;
        must(pwrite(fd, image->copy + at, end - at, (off_t)at) == (ssize_t)(end - at), "%s: %s", path,
             strerror(errno));
    }
    if (fstat(fd, &copy) == 0 && runtime.inode == image->inode && runtime.device == image->device) {
        runtime.inode = copy.st_ino; /* who opens it shall take it for the file itself, not for a copy */
        runtime.device = copy.st_dev;
        must(pwrite(fd, &runtime, sizeof(runtime), SMF_RUNTIME_OFFSET) == sizeof(runtime), "%s: %s", path,
             strerror(errno));
    }
    close(fd);
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

uint64_t image_in_flight(const struct image *image)
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

static struct findings *out;

static __attribute__((format(printf, 1, 2))) void line(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    out->used += (size_t)vsnprintf(out->text + out->used, sizeof(out->text) - out->used, format, args);
    va_end(args);
    must(out->used < sizeof(out->text), "too many blocks");
}

static _Noreturn __attribute__((format(printf, 1, 2))) void wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(out->why, sizeof(out->why), format, args);
    va_end(args);
    _exit(1);
}

#define right(condition, ...) ((condition) ? (void)0 : wrong(__VA_ARGS__))
#define works(call) right((call) >= 0, "%s: %s", #call, shmalloc_errmsg())

static void seen_by_view(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    wrong("%s: %s at %#llx: %s", (const char *)arg, invariant, (unsigned long long)ref, text);
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
    line("block %#llx size %llu tag %u\n", (unsigned long long)block->ref, (unsigned long long)block->size,
         block->tag);
    return 0;
}

static int describe_root(const shmalloc_root *root, void *arg)
{
    (void)arg;
    line("root \"%s\" type %llu ref %#llx\n", root->name, (unsigned long long)root->type,
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
        line("word %u is %#llx, its %llu bytes have hash %llx\n", i, (unsigned long long)ref,
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
    line("maximum %llu\n", (unsigned long long)stats.max_size);
    if (op->traits & OP_MUTEX) {
        int rc = shmalloc_mutex_trylock(heap, &world->mutex);
        line("mutex answers %d\n", rc);
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
    line(rc == 0 ? "poisoned\n" : "refused as unclean\n");
    _exit(0);
}

static _Noreturn void judge_here(const char *path, const struct op *op)
{
    shmalloc_heap *heap;
    char untouched[] = "before recovery", recovered[] = "recovered", emptied[] = "emptied and closed";
    die_with_parent(getppid());
    alarm(20); /* no image may hang who opens it */
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

void judge(const char *path, const struct op *op, struct findings *findings)
{
    out = findings;
    out->used = 0;
    out->text[0] = out->why[0] = 0;
    pid_t pid = fork();
    must(pid >= 0, "fork: %s", strerror(errno));
    if (pid == 0)
        judge_here(path, op);
    int status;
    while (waitpid(pid, &status, 0) < 0)
        must(errno == EINTR, "waitpid: %s", strerror(errno));
    if (WIFSIGNALED(status))
        snprintf(out->why, sizeof(out->why), "who opened it was ended by signal %d (%s)", WTERMSIG(status),
                 WTERMSIG(status) == SIGALRM ? "it hung" : strsignal(WTERMSIG(status)));
}

/* ---- comparing ---- */

static int has_line(const char *text, const char *wanted, size_t len)
{
    for (const char *at = text; *at; at = strchr(at, '\n') + 1)
        if (strncmp(at, wanted, len) == 0)
            return 1;
    return 0;
}

/* All lines of `text` are in one of the two. */
static int covered(const char *text, const char *a, const char *b)
{
    for (const char *at = text, *end; *at; at = end) {
        end = strchr(at, '\n') + 1;
        if (!has_line(a, at, (size_t)(end - at)) && !has_line(b, at, (size_t)(end - at)))
            return 0;
    }
    return 1;
}

int is_between(const char *text, const char *before, const char *after)
{
    if (!covered(text, before, after))
        return 0;
    for (const char *at = before, *end; *at; at = end) {
        end = strchr(at, '\n') + 1;
        size_t len = (size_t)(end - at);
        if (has_line(after, at, len) && !has_line(text, at, len))
            return 0;
    }
    return 1;
}

static void print_missing(const char *mark, const char *lines, const char *in)
{
    for (const char *at = lines, *end; *at; at = end) {
        end = strchr(at, '\n') + 1;
        if (!has_line(in, at, (size_t)(end - at)))
            printf("    %s %.*s", mark, (int)(end - at), at);
    }
}

void print_difference(const char *was, const char *is)
{
    print_missing("-", was, is);
    print_missing("+", is, was);
}
