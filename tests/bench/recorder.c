/* SPDX-License-Identifier: MIT */
/*
 * recorder.c - loaded with LD_PRELOAD, it writes down what a program asks malloc for. glibc only.
 *
 * The file that BENCH_RECORD names becomes a mapping of BENCH_RECORD_LIMIT records, filled in
 * order; what a killed program did is there too. Programs that the recorded one starts are not
 * recorded: the constructor takes LD_PRELOAD out of the environment. A forked child goes on without
 * recording. record.py makes a trace of it.
 *
 * A free is written down before it happens and an allocation after, so that with several threads an
 * address is never seen twice without its free in between. (A realloc that moves is seen after it
 * freed.)
 */
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct record {
    uint64_t old;   /* address freed or resized; 0 none */
    uint64_t fresh; /* address allocated; 0 none */
    uint64_t size;  /* bytes requested */
};

/* glibc's own names of its functions: they need no looking up, which would itself allocate. */
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *block, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *block);

static struct record *records; /* NULL: not recording */
static uint64_t limit;
static _Atomic uint64_t next;

static void note(const void *old, const void *fresh, size_t size)
{
    if (!records || (!old && !fresh))
        return;
    uint64_t index = atomic_fetch_add_explicit(&next, 1, memory_order_relaxed);
    if (index < limit)
        records[index] = (struct record){(uintptr_t)old, (uintptr_t)fresh, size};
}

__attribute__((constructor)) static void start(void)
{
    const char *path = getenv("BENCH_RECORD"), *count = getenv("BENCH_RECORD_LIMIT");
    unsetenv("LD_PRELOAD");
    limit = count ? strtoull(count, NULL, 10) : 0;
    int fd = path ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
    if (fd < 0 || limit == 0 || ftruncate(fd, (off_t)(limit * sizeof(*records))))
        return;
    void *mapped = mmap(NULL, limit * sizeof(*records), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped != MAP_FAILED && !madvise(mapped, limit * sizeof(*records), MADV_DONTFORK))
        records = mapped;
}

/* The mapping is not in a child. */
static void stop(void)
{
    records = NULL;
}

__attribute__((constructor)) static void stop_in_children(void)
{
    pthread_atfork(NULL, NULL, stop);
}

void *malloc(size_t size)
{
    void *block = __libc_malloc(size);
    note(NULL, block, size);
    return block;
}

void *calloc(size_t count, size_t size)
{
    void *block = __libc_calloc(count, size);
    note(NULL, block, count * size);
    return block;
}

void *realloc(void *block, size_t size)
{
    void *moved = __libc_realloc(block, size);
    if (moved || size == 0)
        note(block, moved, size);
    return moved;
}

void *memalign(size_t alignment, size_t size)
{
    void *block = __libc_memalign(alignment, size);
    note(NULL, block, size);
    return block;
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    void *block = memalign(alignment, size);
    if (!block)
        return ENOMEM;
    *out = block;
    return 0;
}

void free(void *block)
{
    note(block, NULL, 0);
    __libc_free(block);
}
