/* SPDX-License-Identifier: MIT */
/*
 * preload.c - malloc(3) and its family, for programs that know nothing of shmalloc.
 *
 * The library libshmalloc-preload.so is this file and the whole of shmalloc, of which it shows only
 * the malloc family. The fast paths stand in malloc() and free() themselves; everything else goes
 * through the public calls.
 *
 * Two heaps: `early`, a private one, is made by the first call, which may come from the dynamic
 * linker, before any constructor has run and before there is an environment. When our own
 * constructor finds SHMALLOC_HEAP there, a heap in that file takes over, and what the early heap
 * handed out is still freed to it. At the very end of a process the file's heap is left in order,
 * and the early one serves again.
 *
 * Nothing below may call malloc while it serves a call: shmalloc calls it nowhere on these ways but
 * in shmalloc_get_stats(), which holds no lock then, and when it opens a file, while the early heap
 * serves.
 *
 * Blocks are aligned to 16 bytes, those of up to 8 bytes to 8: no object that needs more fits in
 * them.
 *
 * A pointer that is of neither heap is left alone: some library had its own allocator, or it was
 * allocated before the dynamic linker knew us.
 */
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "slots/block.h"
#include "platform/direct_mutex.h"
#include "slots/fast.h"
#include "platform/os.h"
#include "life/open.h"
#include "life/context.h"

#define EXPORT __attribute__((visibility("default")))
#define LONG_WAY __attribute__((noinline, cold))

static shmalloc_heap unborn; /* epoch 0: no thread has a context of it */
static shmalloc_heap *heap = &unborn;
static shmalloc_heap *early; /* NULL: not made yet */
static shmalloc_heap *left;  /* the file's heap, when this process has left it; NULL before */
static int strict;           /* SHMALLOC_STRICT: a wrong free ends the program */

/* ---- saying something ---- */

static int speak_to = STDERR_FILENO;
static struct smi_file_info spoken_to; /* what it was when it was kept */

/* A program that closed the kept descriptor may have opened a file of its own on the number. */
static int is_spoken_to(void)
{
    struct smi_file_info now;
    return speak_to == STDERR_FILENO ||
           (smi_os_stat(speak_to, &now) == 0 && now.device == spoken_to.device &&
            now.inode == spoken_to.inode && now.mode == spoken_to.mode);
}

static void say(const char *what, const char *why)
{
    char text[700];
    if (!is_spoken_to())
        return;
    int len =
        snprintf(text, sizeof(text), "shmalloc: %s[%d]: %s%s%s\n", program_invocation_short_name,
                 (int)smi_os_process_id(), what, why ? ": " : "", why ? why : "");
    smi_os_say(speak_to, text, len < (int)sizeof(text) ? (size_t)len : sizeof(text) - 1);
}

/* ---- the heaps ---- */

/* The first call of all. */
static int be_born(void)
{
    static pthread_mutex_t birth = PTHREAD_MUTEX_INITIALIZER;
    static _Thread_local int is_bearing; /* what it calls may be replaced by a function that
                                            allocates: that fails */
    if (is_bearing)
        return -ENOMEM;
    is_bearing = 1;
    pthread_mutex_lock(&birth);
    int rc = early ? 0 : shmalloc_open_private(NULL, &early);
    if (rc == 0 && heap == &unborn)
        __atomic_store_n(&heap, early, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&birth);
    is_bearing = 0;
    return rc;
}

/* A child that goes on would store into its parent's blocks, for a file's heap is shared by both.
 * Its malloc is where that is noticed, since children that exec at once rarely call it. */
static int is_child_on_file(void)
{
    return !heap->is_private && heap != &unborn && SMI_LOAD(&heap->epoch) == 0;
}

static void end_child(void)
{
    say("a forked child went on to allocate in its parent's heap file; with a heap in a file, "
        "children may only exec. "
        "Run it without --heap",
        NULL);
    _exit(125);
}

/* The heap that a block may be in; NULL: none. */
static shmalloc_heap *owner_of(const void *block)
{
    uint64_t ref;
    if (heap != &unborn && smi_ref_of(heap, block, &ref))
        return heap;
    if (early && early != heap && smi_ref_of(early, block, &ref))
        return early;
    return left && smi_ref_of(left, block, &ref) ? left : NULL;
}

/* A heap to allocate in; NULL when there can be none. */
static shmalloc_heap *ready(void)
{
    if (SMI_UNLIKELY(heap == &unborn) && be_born() < 0)
        return NULL;
    if (SMI_UNLIKELY(is_child_on_file()))
        end_child();
    return heap;
}

/* ---- the long way ---- */

static LONG_WAY void *enomem(void)
{
    errno = ENOMEM;
    return NULL;
}

/* `size` bytes at a multiple of `alignment`; 0: the usual one. */
static LONG_WAY void *take_any(size_t alignment, size_t size, int zero)
{
    shmalloc_heap *from = ready();
    void *block = NULL;
    for (int tries = 0; from && !block && tries < 2; tries++, from = early == heap ? NULL : early)
        block = alignment ? shmalloc_aligned_alloc(from, alignment, size)
                : zero    ? shmalloc_calloc(from, 1, size)
                          : shmalloc_malloc(from, size);
    return block ? block : enomem();
}

static LONG_WAY void free_any(void *block)
{
    int before = errno;
    shmalloc_heap *from = block ? owner_of(block) : NULL;
    if (from && from != left && !(from == heap && is_child_on_file()) &&
        shmalloc_free(from, block) < 0 && strict) {
        say("free", shmalloc_errmsg());
        abort();
    }
    errno = before;
}

static LONG_WAY void *resize_long(void *block, size_t size)
{
    shmalloc_heap *from = owner_of(block);
    if (from && from == ready())
        return shmalloc_realloc(from, block, size);
    size_t old = from ? shmalloc_usable_size(from, block) : 0;
    void *fresh = old ? take_any(0, size, 0) : enomem();
    if (fresh) {
        memcpy(fresh, block, old < size ? old : size);
        free_any(block);
    }
    return fresh;
}

/* ---- malloc and free ---- */

EXPORT void *malloc(size_t size)
{
    struct smi_thread *t = smi_current;
    struct smi_top *top = smi_top_for(heap, t, size);
    return SMI_LIKELY(top) ? t->base + smi_pop_word(top) : take_any(0, size, 0);
}

EXPORT void free(void *block)
{
    struct smi_thread *t = smi_current;
    uint64_t ref = (uint64_t)((uintptr_t)block - (uintptr_t)t->base);
    struct smi_top *top = smi_serves(t, heap) ? smi_top_of(t, ref) : NULL;
    if (SMI_LIKELY(top))
        smi_push_word(top, ref);
    else
        free_any(block);
}

EXPORT void *calloc(size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        return enomem();
    struct smi_thread *t = smi_current;
    struct smi_top *top = smi_top_to_fill(heap, t, bytes);
    return SMI_LIKELY(top) ? memset(t->base + smi_pop_word(top), 0, bytes) : take_any(0, bytes, 1);
}

EXPORT void *realloc(void *block, size_t size)
{
    if (!block)
        return malloc(size);
    if (size == 0) {
        free(block);
        return NULL;
    }
    struct smi_thread *t = smi_current;
    uint64_t ref = (uint64_t)((uintptr_t)block - (uintptr_t)t->base);
    uint64_t moved = smi_serves(t, heap) ? smi_resize(heap, t, ref, size, NULL) : 0;
    return SMI_LIKELY(moved) ? t->base + moved : resize_long(block, size);
}

EXPORT void *reallocarray(void *block, size_t count, size_t size)
{
    size_t bytes;
    return __builtin_mul_overflow(count, size, &bytes) ? enomem() : realloc(block, bytes);
}

/* ---- alignment ---- */

static void *aligned(size_t alignment, size_t size)
{
    if (alignment <= 16)
        return malloc(size < alignment ? alignment : size);
    unsigned k = smi_class_of_aligned(size ? size : 1, alignment);
    return k < SMF_CLASSES ? malloc(smi_classes[k].size) : take_any(alignment, size, 0);
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t size)
{
    if (alignment == 0 || (alignment & (alignment - 1)) != 0 || alignment % sizeof(void *) != 0)
        return EINVAL;
    int before = errno;
    void *block = aligned(alignment, size);
    errno = before;
    if (!block)
        return ENOMEM;
    *out = block;
    return 0;
}

/* As the C library's does, this rounds an alignment up that is no power of two. */
EXPORT void *memalign(size_t alignment, size_t size)
{
    size_t power = sizeof(void *);
    while (power < alignment && power <= SIZE_MAX / 2)
        power *= 2;
    if (power < alignment) {
        errno = EINVAL;
        return NULL;
    }
    return aligned(power, size);
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}

EXPORT void *valloc(size_t size)
{
    return aligned(smi_os_page_bytes(), size);
}

EXPORT void *pvalloc(size_t size)
{
    size_t page = smi_os_page_bytes(), rest = size % page, whole;
    if (__builtin_add_overflow(size, rest ? page - rest : 0, &whole))
        return enomem();
    return aligned(page, whole ? whole : page);
}

/* ---- looking and tuning ---- */

EXPORT size_t malloc_usable_size(void *block)
{
    shmalloc_heap *from = block ? owner_of(block) : NULL;
    return from ? shmalloc_usable_size(from, block) : 0;
}

EXPORT int malloc_trim(size_t pad)
{
    (void)pad;
    shmalloc_heap *which = ready();
    return which && shmalloc_trim(which) > 0;
}

static shmalloc_stats figures(void)
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    shmalloc_heap *which = ready();
    if (!which || shmalloc_get_stats(which, &stats) < 0)
        stats = (shmalloc_stats)SHMALLOC_STATS_INIT;
    return stats;
}

EXPORT struct mallinfo2 mallinfo2(void)
{
    shmalloc_stats stats = figures();
    return (struct mallinfo2){
        .arena = stats.allocated + stats.cached + stats.central_free + stats.free_reserved,
        .ordblks = stats.chunks,
        .smblks = stats.allocated_blocks,
        .fsmblks = stats.cached,
        .uordblks = stats.allocated,
        .fordblks = stats.cached + stats.central_free + stats.free_reserved,
        .keepcost = stats.free_reserved,
    };
}

EXPORT struct mallinfo mallinfo(void)
{
    struct mallinfo2 wide = mallinfo2();
    return (struct mallinfo){
        .arena = (int)wide.arena,
        .ordblks = (int)wide.ordblks,
        .smblks = (int)wide.smblks,
        .fsmblks = (int)wide.fsmblks,
        .uordblks = (int)wide.uordblks,
        .fordblks = (int)wide.fordblks,
        .keepcost = (int)wide.keepcost,
    };
}

/* All that can be tuned is of another allocator; to accept it changes nothing that a program could
 * rely on. */
EXPORT int mallopt(int parameter, int value)
{
    (void)parameter;
    (void)value;
    return 1;
}

EXPORT void malloc_stats(void)
{
    char text[300];
    shmalloc_stats stats = figures();
    snprintf(text, sizeof(text),
             "%llu bytes in %llu blocks allocated, %llu cached, %llu free; heap of %llu bytes in "
             "%llu chunk%s; at most "
             "%llu KiB resident",
             (unsigned long long)stats.allocated, (unsigned long long)stats.allocated_blocks,
             (unsigned long long)stats.cached,
             (unsigned long long)(stats.central_free + stats.free_pages),
             (unsigned long long)stats.file_size, (unsigned long long)stats.chunks,
             stats.chunks == 1 ? "" : "s", (unsigned long long)smi_os_peak() >> 10);
    say(text, NULL);
}

/* ---- begin and end ---- */

static int print_at_end; /* SHMALLOC_STATS */

/* Where the environment has the variable; NULL: nowhere. Shells have a getenv() and an unsetenv()
 * of their own, for their variables, which are not there yet. */
static char **find_variable(const char *name)
{
    size_t len = strlen(name);
    for (char **at = environ; at && *at; at++)
        if (strncmp(*at, name, len) == 0 && (*at)[len] == '=')
            return at;
    return NULL;
}

static const char *variable(const char *name)
{
    char **at = find_variable(name);
    return at ? *at + strlen(name) + 1 : NULL;
}

static void remove_variable(const char *name)
{
    for (char **at; (at = find_variable(name));)
        do
            at[0] = at[1];
        while (*at++);
}

static int is_set(const char *name)
{
    const char *value = variable(name);
    return value && *value && strcmp(value, "0") != 0;
}

/* The last that runs in a process that ends by exit(): what comes after it, if anything, is served
 * by the early heap, and blocks of the file can only be read. */
static void leave_file(void *named)
{
    if (heap != named || !smi_heap_may_leave(named))
        return;
    left = named;
    __atomic_store_n(&heap, early, __ATOMIC_RELEASE);
    smi_heap_leave(named);
}

/* What atexit() calls, which would have it done before other libraries' destructors: they allocate,
 * too. Handlers that belong to no library and are there before the dynamic linker's own run after
 * that has run all destructors. */
extern int __cxa_atexit(void (*handler)(void *), void *argument, void *library);

/* From here on blocks lie in the file. Programs that this one starts have private heaps. */
static void move_to_file(const char *path)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *named;
    options.flags = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE;
    options.layout = "shmalloc-run"; /* by which shmalloc-run knows what it may replace */
    int rc = shmalloc_open(path, &options, &named);
    if (rc < 0) {
        say("cannot make the heap file", rc == -EEXIST
                                             ? "it exists; remove it, or name it to shmalloc-run "
                                               "--heap, which replaces heaps of earlier runs"
                                             : shmalloc_errmsg());
        _exit(125);
    }
    named->stays = 1;
    remove_variable("SHMALLOC_HEAP");
    __atomic_store_n(&heap, named, __ATOMIC_RELEASE);
    __cxa_atexit(leave_file, named, NULL);
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = variable("SHMALLOC_HEAP");
    strict = is_set("SHMALLOC_STRICT");
    print_at_end = is_set("SHMALLOC_STATS");
    int kept = print_at_end ? smi_os_keep(speak_to) : -1; /* many programs close theirs before they
                                                             end */
    smi_context_set_up(); /* not by a malloc of the C library's, which comes under the lock of its
                             list of handlers */
    if (is_set("SHMALLOC_HUGE_PAGES") && ready())
        smi_os_want_huge(early->base, early->reserved);
    if (path && *path && ready()) /* if not, every call will fail, and say so to who called */
        move_to_file(path);
    if (kept >= 0 && smi_os_stat(kept, &spoken_to) == 0)
        speak_to = kept;
}

__attribute__((destructor)) static void end(void)
{
    if (print_at_end && !is_child_on_file())
        malloc_stats();
}
