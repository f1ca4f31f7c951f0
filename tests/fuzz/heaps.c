/* SPDX-License-Identifier: MIT */
/*
 * heaps.c - the heaps that inputs change, and the changes; see heaps.h.
 *
 * The file is a memfd that is filled anew for each input. Nothing here trusts the heap it has just
 * damaged: records are found in the image, which stays as it was.
 */
#include "heaps.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "../unit/image.h"
#include "fuzz.h"
#include "platform/os.h"

/* ---- the heaps ------------------------------------------------------------------------------ */

enum end { CLOSED, KILLED };

/* What is done to a new heap before it becomes an image. */
static const struct recipe {
    unsigned flags, arenas;
    int filled; /* with some of everything */
    int grown;  /* to several chunks */
    enum end end;
} recipes[] = {
    {0, 1, 0, 0, CLOSED},
    {0, 1, 1, 0, CLOSED},
    {0, 2, 1, 0, KILLED},
    {SHMALLOC_HARDENED, 1, 1, 0, KILLED},
    {0, 1, 1, 1, CLOSED},
    {0, 1, 1, 1, KILLED},
};
#define HEAPS (sizeof(recipes) / sizeof(recipes[0]))

enum { MOST = 64, SIDE_BYTES = 4096, FILE_LIMIT = 96 << 20 };

/* A run of the image that is not zero. */
struct run {
    uint64_t at, len;
};

static struct heap {
    struct image image;
    uint64_t pages;
    uint64_t threads[MOST], roots[MOST], sides[MOST]; /* refs */
    uint32_t thread_count, root_count, side_count;
    struct run *runs;
    size_t run_count;
} heaps[HEAPS];

static int file = -1, alive = -1;
static char file_path[64];

static void fill_heap(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    image_fill(heap, 400, 64); /* a cache with a span of its own */
    image_fill(heap, 300, 8);  /* a slab with a bitmap page */
    image_fill(heap, 60, 200);
    image_fill(heap, 6, 2000);
    image_fill(heap, 4, 9 * SMF_PAGE);
    for (uint16_t i = 1; i < 5; i++)
        must_work(shmalloc_ref_alloc_tagged(heap, 500, i, &ref));
    for (int i = 0; i < 12; i++) {
        char name[16];
        snprintf(name, sizeof(name), "root %d", i);
        must(shmalloc_root_get_or_create(heap, name, (uint64_t)i % 3, 100, NULL, NULL, &ref) ==
                 SHMALLOC_CREATED,
             "%s exists", name);
    }
    must_work(shmalloc_root_set(heap, "table", 0, ref));
}

static int make_heap(void *arg)
{
    const struct image_order *order = arg;
    const struct recipe *recipe = &recipes[order->flags];
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = SHMALLOC_CREATE | recipe->flags;
    options.arenas = recipe->arenas;
    must_work(shmalloc_open(order->path, &options, &heap));
    if (recipe->filled)
        fill_heap(heap);
    if (recipe->grown) {
        image_fill(heap, 4, 300 * SMF_PAGE); /* free spans of the set of long ones */
        image_fill(heap, 10, 200 * SMF_PAGE);
    }
    if (recipe->end == KILLED) {
        uint32_t ready = 0;
        void *args[] = {heap, &ready};
        pthread_t thread;
        pthread_create(&thread, NULL, image_thread_that_stays, args);
        await_word(&ready, 1);
        raise(SIGKILL);
    }
    must_work(shmalloc_close(heap));
    return 0;
}

static void find_runs(struct heap *h)
{
    enum { UNIT = 512 };
    h->runs = calloc(h->image.size / UNIT + 1, sizeof(*h->runs));
    must(h->runs, "out of memory");
    for (uint64_t at = 0; at < h->image.size; at += UNIT) {
        struct run *last = h->run_count ? &h->runs[h->run_count - 1] : NULL;
        if (all_zero(h->image.bytes + at, UNIT))
            continue;
        if (last && at - (last->at + last->len) <= 4096) /* a short gap costs less than another
                                                            call */
            last->len = at + UNIT - last->at;
        else
            h->runs[h->run_count++] = (struct run){at, UNIT};
    }
}

static void note(uint64_t *refs, uint32_t *count, uint64_t ref)
{
    if (ref && *count < MOST)
        refs[(*count)++] = ref;
}

static void find_records(struct heap *h)
{
    const struct image *m = &h->image;
    for (uint32_t i = 0; i < SMF_THREADS; i++)
        note(h->threads, &h->thread_count, image_threads(m)[i]);
    for (uint32_t i = 0; i < SMF_ROOT_BUCKETS; i++)
        for (uint64_t ref = image_roots(m)->bucket[i]; ref; ref = *(uint64_t *)image_at(m, ref))
            note(h->roots, &h->root_count, ref);
    for (uint32_t page = 1; page < h->pages; page++)
        if (image_page(m, page)->kind == SMF_PAGE_SLAB)
            note(h->sides, &h->side_count, image_page(m, page)->side);
}

/* What differs from run to run and means nothing is made alike, so that an input means the same
 * each time. */
static void make_alike(const struct image *m)
{
    struct smf_header *header = image_header(m);
    struct smf_process *processes = image_at(m, header->areas.processes);
    memset(header->uuid, 'u', sizeof(header->uuid));
    header->created_at = 1700000000;
    for (int i = 0; i < SMF_PROCESSES; i++) {
        processes[i].pid = processes[i].pid ? 1 : 0;
        processes[i].start_time = processes[i].attached_at = 0;
    }
    header->checksum = smi_hash(header, offsetof(struct smf_header, checksum));
}

static void make_heaps(void)
{
    struct fixture f;
    fixture_begin(&f);
    for (unsigned i = 0; i < HEAPS; i++) {
        struct image_order order = {f.path, i,
                                    recipes[i].end == KILLED ? IMAGE_KILLED : IMAGE_CLOSED};
        struct heap *h = &heaps[i];
        unlink(f.path);
        int status = run_child(make_heap, &order);
        must(status == (recipes[i].end == KILLED ? -SIGKILL : 0), "heap %u: status %d", i, status);
        h->image = image_read(f.path);
        h->pages = image_state(&h->image)->size >> SMF_PAGE_SHIFT;
        make_alike(&h->image);
        find_runs(h);
        find_records(h);
    }
    fixture_end(&f);
    /* A damaged heap may ask for any length of its file, and storage for it. */
    struct rlimit limit = {FILE_LIMIT, FILE_LIMIT};
    setrlimit(RLIMIT_FSIZE, &limit);
    file = memfd_create("heap", MFD_CLOEXEC);
    must(file >= 0, "memfd_create");
    snprintf(file_path, sizeof(file_path), "/proc/self/fd/%d", file);
}

/* ---- changes -------------------------------------------------------------------------------- */

static uint64_t little(const uint8_t *bytes, unsigned count)
{
    uint64_t value = 0;
    for (unsigned i = count; i-- > 0;)
        value = value << 8 | bytes[i];
    return value;
}

/* `which` of `count` records of `size` bytes each that begin at `start`. */
static uint64_t nth(uint64_t start, uint64_t which, uint64_t count, uint64_t size, uint64_t offset)
{
    return start + which % count * size + offset % size;
}

static uint64_t of_list(const uint64_t *refs, uint32_t count, uint64_t which, uint64_t size,
                        uint64_t offset)
{
    return count ? refs[which % count] + offset % size : 0;
}

/* The byte of the file that a record, its number and an offset in it name; 0 when there is none. */
static uint64_t place(const struct heap *h, unsigned record, uint64_t which, uint64_t offset)
{
    const struct image *m = &h->image;
    const struct smf_areas *areas = image_areas(m);
    uint32_t page = (uint32_t)(which % h->pages);
    switch (record % RECORDS) {
    case HEADER:
        return offset % sizeof(struct smf_header);
    case STATE:
        return nth(SMF_STATE_OFFSET, 0, 1, sizeof(struct smf_state), offset);
    case RUNTIME:
        return nth(areas->runtime, 0, 1, sizeof(struct smf_runtime), offset);
    case PROCESS:
        return nth(areas->processes, which, SMF_PROCESSES, sizeof(struct smf_process), offset);
    case LOCK:
        return nth(areas->locks, which, image_header(m)->lock_count, sizeof(struct smf_lock),
                   offset);
    case CHUNK:
        return nth(areas->directory, which, image_state(m)->chunk_count + 2,
                   sizeof(struct smf_chunk), offset);
    case PAGE_HEAP:
        return nth(areas->page_heap, 0, 1, sizeof(struct smf_page_heap), offset);
    case ROOTS:
        return nth(areas->roots, 0, 1, sizeof(struct smf_roots), offset);
    case THREAD_TABLE:
        return nth(areas->threads, which, h->thread_count + 2, sizeof(uint64_t), offset);
    case CENTRAL:
        return nth(areas->central, which, (image_header(m)->arena_count + 1) * SMF_CLASSES,
                   sizeof(struct smf_central), offset);
    case WORD:
        return image_ref(m, image_word(m, page)) + offset % sizeof(uint16_t);
    case PAGE:
        return image_ref(m, image_page(m, page)) + offset % sizeof(struct smf_page);
    case THREAD:
        return of_list(h->threads, h->thread_count, which, SMF_THREAD_PAGES * SMF_PAGE, offset);
    case ROOT:
        return of_list(h->roots, h->root_count, which, sizeof(struct smf_root) + 16, offset);
    case SIDE:
        return of_list(h->sides, h->side_count, which, SIDE_BYTES, offset);
    default:
        return ((which << 16) + offset) % m->size;
    }
}

/* Words longer than what is left of the file are cut. */
static void apply(const struct heap *h, const struct heaps_change *c)
{
    unsigned record = c->record % RECORDS, width = 1u << (c->how >> 2 & 3);
    uint64_t at = place(h, record, little(c->which, 2), little(c->offset, 2)),
             value = little(c->value, 8), old = 0;
    if (record == FILE_SIZE) {
        must(ftruncate(file, (off_t)(value % FILE_LIMIT)) == 0, "ftruncate");
        return;
    }
    must(pread(file, &old, width, (off_t)at) >= 0, "pread");
    if ((c->how & 3) == XOR)
        value ^= old;
    else if ((c->how & 3) == ADD)
        value += old;
    else if ((c->how & 3) == COPY)
        must(pread(file, &value, width,
                   (off_t)place(h, c->value[0], little(c->value + 1, 2),
                                little(c->value + 3, 2))) >= 0,
             "pread");
    must(pwrite(file, &value, width, (off_t)at) == (ssize_t)width, "pwrite");
}

static void write_runs(const struct heap *h)
{
    must(ftruncate(file, 0) == 0 && ftruncate(file, (off_t)h->image.size) == 0, "ftruncate");
    for (size_t i = 0; i < h->run_count; i++) {
        const struct run *run = &h->runs[i];
        must(pwrite(file, h->image.bytes + run->at, run->len, (off_t)run->at) == (ssize_t)run->len,
             "pwrite");
    }
}

static void write_raw(const uint8_t *data, size_t size, uint64_t units)
{
    must(ftruncate(file, 0) == 0 && pwrite(file, data, size, 0) == (ssize_t)size, "pwrite");
    if (units << 16 > size)
        must(ftruncate(file, (off_t)(units << 16)) == 0, "ftruncate");
}

static void make_checksum_right(void)
{
    struct smf_header header;
    if (pread(file, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
        return;
    header.checksum = smi_hash(&header, offsetof(struct smf_header, checksum));
    must(pwrite(file, &header, sizeof(header), 0) == (ssize_t)sizeof(header), "pwrite");
}

/* The runtime area is about this file now, as if its users had just died or were still there. */
static void make_same(const struct heap *h)
{
    struct stat st;
    struct smf_runtime runtime;
    must(fstat(file, &st) == 0, "fstat");
    memcpy(&runtime, image_at(&h->image, image_areas(&h->image)->runtime), sizeof(runtime));
    smi_os_boot_id(runtime.boot_id);
    runtime.device = st.st_dev;
    runtime.inode = st.st_ino;
    must(smi_os_pid_namespace(&runtime.pid_namespace) == 0, "PID namespace");
    must(pwrite(file, &runtime, sizeof(runtime), (off_t)image_areas(&h->image)->runtime) ==
             sizeof(runtime),
         "pwrite");
}

/* Mutexes as nobody holds them, as a lock is beyond repair whose word names a thread that lives. */
static void make_locks_free(const struct heap *h)
{
    struct smf_lock fresh = {{0}, 0, 0};
    static struct smf_lock locks[SMF_LOCK_CLASS_FIRST + (SMF_ARENAS_MAX + 1) * SMF_CLASSES + 1];
    uint32_t count = image_header(&h->image)->lock_count;
    must(smi_os_mutex_init(fresh.mutex) == 0, "mutex");
    for (uint32_t i = 0; i < count; i++)
        locks[i] = fresh;
    must(pwrite(file, locks, count * sizeof(fresh), (off_t)image_areas(&h->image)->locks) > 0,
         "pwrite");
}

/* Hold the byte of an entry of the process table that no image uses. */
static void seem_alive(void)
{
    alive = smi_os_reopen(file, 0);
    must(alive >= 0 && smi_os_lock_byte(alive, SMF_LOCK_BYTES + SMF_PROCESSES - 1) == 0, "lock");
}

unsigned heaps_make(const uint8_t *data, size_t size, const uint8_t **rest, size_t *rest_size)
{
    struct heaps_change change;
    if (file < 0)
        make_heaps();
    unsigned which = size > 0 ? data[0] % (HEAPS + 1) : 0, flags = size > 1 ? data[1] : 0;
    unsigned count = size > 2 ? data[2] : 0;
    size_t at = size < 3 ? size : 3;
    if (which == HEAPS) {
        write_raw(data + at, size - at, count);
        at = size;
    } else {
        const struct heap *h = &heaps[which];
        write_runs(h);
        if (flags & HEAPS_SAME)
            make_same(h);
        for (; count > 0 && size - at >= sizeof(change); count--, at += sizeof(change)) {
            memcpy(&change, data + at, sizeof(change));
            apply(h, &change);
        }
        if (flags & HEAPS_ALIVE)
            make_locks_free(h);
    }
    if (!(flags & HEAPS_BAD_CHECKSUM))
        make_checksum_right();
    if (flags & HEAPS_ALIVE)
        seem_alive();
    *rest = data + at;
    *rest_size = size - at;
    return flags;
}

const char *heaps_path(void)
{
    return file_path;
}

void heaps_end(void)
{
    smi_os_close(alive);
    alive = -1;
}

/* ---- mutation ------------------------------------------------------------------------------- */

/* Fields in which heaps differ from each other are worth more than the zeros around them. */
static uint64_t likely_value(struct rng *rng, const struct heap *h)
{
    uint64_t page = rng_below(rng, h->pages + 2);
    switch (rng_below(rng, 8)) {
    case 0:
        return page;
    case 1:
        return page << SMF_PAGE_SHIFT;
    case 2:
        return (page << SMF_PAGE_SHIFT) + rng_below(rng, SMF_PAGE / 8) * 8;
    case 3:
        return rng_below(rng, 9);
    case 4:
        return 1ull << rng_below(rng, 64);
    case 5:
        return UINT64_MAX - rng_below(rng, 3);
    case 6:
        return rng_log_uniform(rng, 64);
    default:
        return h->thread_count
                   ? h->threads[rng_below(rng, h->thread_count)] + rng_below(rng, 4096) * 8
                   : page;
    }
}

/* Page descriptors, words, threads and classes have most of the metadata's meaning. */
static unsigned likely_record(struct rng *rng)
{
    static const uint8_t often[] = {PAGE, PAGE,      PAGE, THREAD, THREAD, CENTRAL,
                                    WORD, PAGE_HEAP, ROOT, ROOTS,  STATE};
    return rng_below(rng, 2) ? often[rng_below(rng, sizeof(often))]
                             : (unsigned)rng_below(rng, RECORDS);
}

static void put(uint8_t *out, uint64_t value, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> 8 * i);
}

static void likely_change(struct rng *rng, const struct heap *h, struct heaps_change *c)
{
    c->record = (uint8_t)likely_record(rng);
    unsigned width = (unsigned)rng_below(rng, 4), op = (unsigned)rng_below(rng, 4);
    c->how = (uint8_t)(op | width << 2);
    put(c->which, rng_below(rng, 2) ? rng_log_uniform(rng, 10) : rng_below(rng, h->pages), 2);
    put(c->offset, rng_below(rng, rng_below(rng, 4) ? 64 : 4096) << width, 2);
    put(c->value, likely_value(rng, h), 8);
    if (op == COPY) {
        c->value[0] = (uint8_t)likely_record(rng);
        put(c->value + 1, rng_log_uniform(rng, 10), 2);
        put(c->value + 3, rng_below(rng, 64) * 8, 2);
    }
}

size_t heaps_mutate(uint8_t *data, size_t size, size_t max_size, unsigned seed)
{
    struct rng rng = rng_from(seed);
    const size_t unit = sizeof(struct heaps_change);
    if (file < 0)
        make_heaps();
    if (size < 3 || size > max_size)
        return size;
    const struct heap *h = &heaps[data[0] % HEAPS];
    size_t room = (size - 3) / unit, count = data[2] < room ? data[2] : room;
    uint8_t *change = data + 3 + (count ? rng_below(&rng, count) : 0) * unit;
    struct heaps_change fresh;
    switch (rng_below(&rng, 6)) {
    case 0: /* one more */
    case 1:
        if (size + unit > max_size || count == 255)
            return size;
        likely_change(&rng, h, &fresh);
        memmove(change + unit, change, (size_t)(data + size - change));
        memcpy(change, &fresh, unit);
        data[2] = (uint8_t)(count + 1);
        return size + unit;
    case 2: /* one less */
        if (count == 0)
            return size;
        memmove(change, change + unit, (size_t)(data + size - change) - unit);
        data[2] = (uint8_t)(count - 1);
        return size - unit;
    case 3: /* another value in the same place */
        if (count > 0)
            put(change + offsetof(struct heaps_change, value), likely_value(&rng, h), 8);
        return size;
    case 4: /* the same value in another place */
        if (count > 0) {
            likely_change(&rng, h, &fresh);
            memcpy(change, &fresh, offsetof(struct heaps_change, value));
        }
        return size;
    default:
        data[rng_below(&rng, 2)] = (uint8_t)rng_next(&rng);
        return size;
    }
}
