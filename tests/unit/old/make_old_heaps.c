/* SPDX-License-Identifier: MIT */
/*
 * make_old_heaps.c - makes the heaps that old_heaps.pack has. It is built with the sources of the
 * library of the older format, which is why the build leaves it alone:
 *
 *   cc -D_GNU_SOURCE -IOLD/include -IOLD/src -o make_old_heaps make_old_heaps.c \
 *      OLD/build/src/libshmalloc_internal.a -pthread
 *   ./make_old_heaps FOLDER old_heaps.pack
 *
 * Those of the killed: a child works, its parent stops it again and again and looks into the file,
 * until it shows what is wanted; then it is killed.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "layout.h"
#include "old_heaps.h"

#define must(condition) ((condition) ? (void)0 : fail(__LINE__, #condition))
static _Noreturn void fail(int line, const char *what)
{
    fprintf(stderr, "line %d: not so: %s (%s)\n", line, what, shmalloc_errmsg());
    _exit(1);
}

/* ---- filling -------------------------------------------------------------------------------- */

static struct old_model *model_of(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    must(shmalloc_root_get(heap, "model", 7, &ref) == 0);
    return shmalloc_ptr(heap, ref);
}

static void fill(shmalloc_heap *heap)
{
    static const uint64_t sizes[] = {8,      16,     24,      48,    100,  200,   500,   520,
                                     1000,   3000,   9000,    30000, 8192, 65536, 65537, 70000,
                                     100000, 200000, 1 << 20, 12345, 4096, 64,    32,    2048};
    shmalloc_ref ref = 0;
    must(shmalloc_alloc_zeroed(heap, sizeof(struct old_model), &ref) == 0);
    must(shmalloc_root_set(heap, "model", 7, ref) == 0);
    struct old_model *m = shmalloc_ptr(heap, ref);
    for (uint64_t i = 0; i < OLD_ITEMS; i++) {
        uint64_t size = m->sizes[i] = sizes[i % (sizeof(sizes) / sizeof(sizes[0]))];
        must((i % 5 == 4 ? shmalloc_alloc_tagged(heap, size, (uint16_t)(i + 1), &m->items[i])
                         : shmalloc_alloc_zeroed(heap, size, &m->items[i])) == 0);
        uint64_t *word = shmalloc_ptr(heap, m->items[i]);
        word[0] = word[old_last_word(size)] = old_stamp(i);
    }
    for (int i = 0; i < 20; i++) { /* holes between them */
        shmalloc_ref some[40] = {0};
        for (int n = 0; n < 40; n++)
            must(shmalloc_alloc(heap, (size_t)(16 << i % 10), &some[n]) == 0);
        for (int n = 0; n < 40; n++)
            must(shmalloc_free(heap, &some[n]) == 0);
    }
    for (int i = 0; i < 10; i++) {
        char name[16];
        snprintf(name, sizeof(name), "root %d", i);
        must(shmalloc_root_set(heap, name, (uint64_t)i, m->items[i]) == 0);
    }
    must(shmalloc_mutex_lock(heap, &m->mutex) == 0);
    must(shmalloc_mutex_unlock(heap, &m->mutex) == 0);
}

/* ---- what is done with them ------------------------------------------------------------------ */

static void nothing(shmalloc_heap *heap)
{
    (void)heap;
}

static void work_linked(shmalloc_heap *heap)
{
    struct old_model *m = model_of(heap);
    for (unsigned i = 0;; i++) {
        shmalloc_ref *busy = &m->busy[i % OLD_BUSY];
        must((*busy ? shmalloc_free(heap, busy) : shmalloc_alloc(heap, 16 + i % 7 * 40, busy)) ==
             0);
    }
}

static void work_realloc(shmalloc_heap *heap)
{
    struct old_model *m = model_of(heap);
    for (unsigned i = 0;; i++)
        must(shmalloc_realloc(heap, &m->busy[i % OLD_BUSY], 16 + i * 37 % 900) == 0);
}

static void work_large(shmalloc_heap *heap)
{
    struct old_model *m = model_of(heap);
    for (unsigned i = 0;; i++)
        must((m->busy[i % 4] ? shmalloc_free(heap, &m->busy[i % 4])
                             : shmalloc_alloc_zeroed(heap, 900000, &m->busy[i % 4])) == 0);
}

static void work_pages(shmalloc_heap *heap)
{
    void *some[8] = {NULL};
    model_of(heap)->has_others = 1;
    for (unsigned i = 0;; i++) {
        must(!some[i % 8] || shmalloc_mfree(heap, some[i % 8]) == 0);
        must((some[i % 8] = shmalloc_malloc(heap, 70000 + i * 8192 % 100000)) != NULL);
    }
}

static void work_batches(shmalloc_heap *heap)
{
    static void *some[2000];
    model_of(heap)->has_others = 1;
    for (;;) {
        for (int i = 0; i < 2000; i++)
            must((some[i] = shmalloc_malloc(heap, 1000)) != NULL);
        for (int i = 0; i < 2000; i++)
            must(shmalloc_mfree(heap, some[i]) == 0);
    }
}

/* Stacks that need arrays of their own, and are full. */
static void fill_stacks(shmalloc_heap *heap)
{
    static void *some[150];
    for (size_t size = 8; size <= 128; size *= 4) {
        for (int i = 0; i < 150; i++)
            must((some[i] = shmalloc_malloc(heap, size)) != NULL);
        for (int i = 0; i < 150; i++)
            must(shmalloc_mfree(heap, some[i]) == 0);
    }
    raise(SIGSTOP);
}

static int stop_in_init(shmalloc_heap *heap, void *block, void *arg)
{
    (void)heap, (void)block, (void)arg;
    raise(SIGSTOP);
    return 0;
}

static void build_root(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    shmalloc_root_get_or_create(heap, "never", 1, 300, stop_in_init, NULL, &ref);
}

static void hold_mutex(shmalloc_heap *heap)
{
    struct old_model *m = model_of(heap);
    m->mutex_is_held = 1;
    must(shmalloc_mutex_lock(heap, &m->mutex) == 0);
    raise(SIGSTOP);
}

struct crew {
    shmalloc_heap *heap;
    pthread_barrier_t all;
    int stays;
};

static void *member(void *arg)
{
    struct crew *crew = arg;
    void *some[60];
    for (size_t size = 8; size < 3000; size *= 3) {
        for (int i = 0; i < 60; i++)
            must((some[i] = shmalloc_malloc(crew->heap, size)) != NULL);
        for (int i = 0; i < 60; i++)
            must(shmalloc_mfree(crew->heap, some[i]) == 0);
    }
    pthread_barrier_wait(&crew->all);
    while (crew->stays)
        pause();
    return NULL;
}

static void threads(shmalloc_heap *heap, int stay)
{
    struct crew crew = {.heap = heap, .stays = stay};
    pthread_t thread[3];
    pthread_barrier_init(&crew.all, NULL, 4);
    for (int i = 0; i < 3; i++)
        must(pthread_create(&thread[i], NULL, member, &crew) == 0);
    pthread_barrier_wait(&crew.all);
    if (stay)
        raise(SIGSTOP);
    for (int i = 0; i < 3; i++)
        must(pthread_join(thread[i], NULL) == 0);
}

static void threads_that_end(shmalloc_heap *heap)
{
    threads(heap, 0);
}

static void threads_that_stay(shmalloc_heap *heap)
{
    threads(heap, 1);
}

/* ---- what the file shows when it is time ----------------------------------------------------- */

static const uint8_t *seen;

static const struct smf_thread *first_slot(void)
{
    const struct smf_header *h = (const void *)seen;
    uint64_t ref = *(const uint64_t *)(seen + h->areas.threads);
    return ref ? (const void *)(seen + ref) : NULL;
}

static int has_link(void)
{
    const struct smf_thread *t = first_slot();
    return t && t->link.op != 0;
}

static int has_taken(void) /* stored, not counted out yet */
{
    const struct smf_thread *t = first_slot();
    return has_link() && t->link.op == SMF_LINK_TAKE && t->link.fresh_array != 0 &&
           t->link.old_array != 0 && *(const uint64_t *)(seen + t->link.dest) == t->link.fresh &&
           *(const uint64_t *)(seen + t->link.fresh_array) == t->link.fresh_count;
}

static int has_scratch(void)
{
    const struct smf_thread *t = first_slot();
    return t && t->scratch != 0;
}

static int has_page_log(void)
{
    const struct smf_header *h = (const void *)seen;
    return ((const struct smf_page_heap *)(const void *)(seen + h->areas.page_heap))->log_count > 3;
}

static int has_class_log(void)
{
    const struct smf_header *h = (const void *)seen;
    const struct smf_central *c = (const void *)(seen + h->areas.central);
    for (uint32_t i = 0; i < (h->arena_count + 1) * SMF_CLASSES; i++)
        if (c[i].log_count > 2)
            return 1;
    return 0;
}

/* ---- the heaps ------------------------------------------------------------------------------- */

static const struct kind {
    const char *name;
    unsigned flags, arenas;
    void *base;
    void (*work)(shmalloc_heap *heap);
    int (*is_time)(void); /* NULL: when it stops by itself; unless `closed` */
    int closed;
} kinds[] = {
    {"closed", 0, 4, NULL, nothing, NULL, 1},
    {"closed by threads", 0, 1, NULL, threads_that_end, NULL, 1},
    {"closed, hardened", SHMALLOC_HARDENED, 1, NULL, nothing, NULL, 1},
    {"closed, at a fixed base", 0, 1, (void *)0x310000000000, nothing, NULL, 1},
    {"killed with threads", 0, 2, NULL, threads_that_stay, NULL, 0},
    {"killed with long stacks", 0, 1, NULL, fill_stacks, NULL, 0},
    {"killed, hardened, with long stacks", SHMALLOC_HARDENED, 1, NULL, fill_stacks, NULL, 0},
    {"killed in an allocation or free", 0, 1, NULL, work_linked, has_link, 0},
    {"killed in a realloc", 0, 1, NULL, work_realloc, has_taken, 0},
    {"killed, hardened, in a realloc", SHMALLOC_HARDENED, 1, NULL, work_realloc, has_link, 0},
    {"killed in a large allocation", 0, 1, NULL, work_large, has_scratch, 0},
    {"killed in the page heap", 0, 1, NULL, work_pages, has_page_log, 0},
    {"killed in the central heap", 0, 1, NULL, work_batches, has_class_log, 0},
    {"killed with half a root", 0, 1, NULL, build_root, NULL, 0},
    {"killed with a mutex", 0, 1, NULL, hold_mutex, NULL, 0},
};

static void child(const char *path, const struct kind *kind)
{
    shmalloc_heap *heap;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    must(shmalloc_open(path, NULL, &heap) == 0);
    kind->work(heap);
    must(shmalloc_close(heap) == 0);
    _exit(0);
}

static void make(const char *path, const struct kind *kind)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    struct stat info;
    int status;
    options.flags = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE | kind->flags;
    options.arenas = kind->arenas;
    options.base = kind->base;
    options.layout = "stored";
    options.layout_version = 3;
    must(shmalloc_open(path, &options, &heap) == 0);
    fill(heap);
    must(shmalloc_close(heap) == 0);
    pid_t pid = fork();
    if (pid == 0)
        child(path, kind);
    if (kind->closed) {
        must(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        return;
    }
    int fd = open(path, O_RDONLY);
    seen = mmap(NULL, 1 << 30, PROT_READ, MAP_SHARED, fd, 0);
    for (;;) {
        if (kind->is_time) {
            usleep((useconds_t)(rand() % 2000));
            kill(pid, SIGSTOP);
        }
        must(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
        if (!kind->is_time || kind->is_time())
            break;
        kill(pid, SIGCONT);
    }
    kill(pid, SIGKILL);
    must(waitpid(pid, &status, 0) == pid && fstat(fd, &info) == 0);
    munmap((void *)(uintptr_t)seen, 1 << 30);
    close(fd);
}

/* ---- the pack -------------------------------------------------------------------------------- */

static void put_number(FILE *out, uint64_t value)
{
    for (; value > 127; value >>= 7)
        fputc((int)(value & 127) | 128, out);
    fputc((int)value, out);
}

#define HASHES 65536u
#define NEAR 64 /* places with the same first bytes that are tried */

static uint32_t hash_of(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, 8);
    return (uint32_t)(word * 0x9e3779b97f4a7c15ull >> 48) % HASHES;
}

/* Copies of what came before, as long as they can be found easily. */
static void compress(const uint8_t *data, size_t size, FILE *out)
{
    static size_t last[HASHES];
    /* one more than the place, 0 none */
    size_t *before = calloc(size, sizeof(*before)), literal = 0, at = 0;
    memset(last, 0, sizeof(last));
    while (at < size) {
        size_t longest = 0, distance = 0, place = at + 8 <= size ? last[hash_of(data + at)] : 0;
        for (int i = 0; place != 0 && i < NEAR; i++, place = before[place - 1]) {
            size_t len = 0;
            while (at + len < size && data[place - 1 + len] == data[at + len])
                len++;
            if (len > longest) {
                longest = len;
                distance = at - (place - 1);
            }
        }
        size_t step = longest >= 8 ? longest : 1;
        if (step > 1) {
            put_number(out, at - literal);
            fwrite(data + literal, at - literal, 1, out);
            put_number(out, longest);
            put_number(out, distance);
        }
        for (size_t i = at; i < at + step && i + 8 <= size && i < at + 256; i++) {
            before[i] = last[hash_of(data + i)];
            last[hash_of(data + i)] = i + 1;
        }
        at += step;
        if (step > 1)
            literal = at;
    }
    put_number(out, size - literal);
    fwrite(data + literal, size - literal, 1, out);
    free(before);
}

static void store(FILE *pack, const char *path, const char *name)
{
    char *text;
    size_t length;
    FILE *out = open_memstream(&text, &length);
    int fd = open(path, O_RDONLY);
    struct stat info;
    must(fstat(fd, &info) == 0);
    uint8_t *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    const struct smf_header *h = (const void *)bytes;
    memset(bytes + h->areas.locks, 0, h->lock_count * sizeof(struct smf_lock));
    fwrite(name, strlen(name) + 1, 1, out);
    put_number(out, (uint64_t)info.st_size);
    compress(bytes, (size_t)info.st_size, out);
    fclose(out);
    for (int i = 0; i < 4; i++)
        fputc((int)(length >> 8 * i & 255), pack);
    fwrite(text, length, 1, pack);
    printf("%-40s %8zu bytes\n", name, length);
    free(text);
    munmap(bytes, (size_t)info.st_size);
    close(fd);
}

int main(int argc, char **argv)
{
    FILE *pack = argc == 3 ? fopen(argv[2], "w") : NULL;
    must(pack);
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        char path[400];
        snprintf(path, sizeof(path), "%s/%zu.heap", argv[1], i);
        make(path, &kinds[i]);
        store(pack, path, kinds[i].name);
    }
    return fclose(pack) != 0;
}
