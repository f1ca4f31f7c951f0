/* SPDX-License-Identifier: MIT */
/*
 * late.c - the library as plugins and other languages get it: loaded by a running program, unloaded
 * again while a thread that used it lives on.
 *
 * Usage: late LIBRARY
 */
#include <shmalloc/shmalloc.h>

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Thread-local memory that glibc keeps for libraries loaded late, bytes; all of them share it. The
 * tunable glibc.rtld.optional_static_tls, 512 by default. Taking no more than a quarter leaves room
 * for others. */
#define MOST_TLS 128

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "late: %s: %s\n", what, why);
    exit(1);
}

static void *find(void *library, const char *name)
{
    void *symbol = dlsym(library, name);
    if (!symbol)
        fail(name, dlerror());
    return symbol;
}

/* Thread-local bytes of the library, which must not grow unnoticed. */
static int look_at_tls(struct dl_phdr_info *info, size_t size, void *arg)
{
    (void)size;
    if (!strstr(info->dlpi_name, "libshmalloc"))
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++)
        if (info->dlpi_phdr[i].p_type == PT_TLS)
            *(size_t *)arg = info->dlpi_phdr[i].p_memsz;
    return 1;
}

struct calls {
    int (*open)(const char *, const shmalloc_options *, shmalloc_heap **);
    int (*close)(shmalloc_heap *);
    int (*alloc)(shmalloc_heap *, size_t, shmalloc_ref *);
    int (*free)(shmalloc_heap *, shmalloc_ref *);
    const char *(*errmsg)(void);
    const char *path;
    sem_t used, unloaded;
};

/* Uses the heap, fails once, and ends after the library was unloaded. */
static void *use(void *arg)
{
    struct calls *calls = arg;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    shmalloc_ref ref = 0, wrong = 12345;
    options.flags = SHMALLOC_CREATE;
    if (calls->errmsg()[0] != '\0')
        fail("a thread without a failure has a message", calls->errmsg());
    if (calls->open(calls->path, &options, &heap) < 0 || calls->alloc(heap, 100, &ref) < 0 ||
        ref == 0)
        fail("a heap", calls->errmsg());
    if (calls->free(heap, &wrong) != SHMALLOC_EBADREF || !strstr(calls->errmsg(), calls->path))
        fail("a wrong ref", calls->errmsg());
    if (calls->free(heap, &ref) < 0 || calls->close(heap) < 0)
        fail("the end", calls->errmsg());
    sem_post(&calls->used);
    sem_wait(&calls->unloaded);
    return NULL;
}

int main(int argc, char **argv)
{
    char path[] = "late.XXXXXX.heap";
    struct calls calls = {.path = path};
    size_t tls = 0;
    pthread_t thread;
    if (argc != 2)
        fail("usage", "late LIBRARY");
    int fd = mkstemps(path, 5); /* for a name that nobody else has */
    if (fd < 0 || close(fd) < 0 || unlink(path) < 0)
        fail(path, "cannot make it");
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (!library)
        fail("dlopen", dlerror());
    dl_iterate_phdr(look_at_tls, &tls);
    printf("%zu bytes of thread-local memory\n", tls);
    if (tls == 0 || tls > MOST_TLS)
        fail("thread-local memory", "more than libraries should have that are loaded late");
    *(void **)&calls.open = find(library, "shmalloc_open");
    *(void **)&calls.close = find(library, "shmalloc_close");
    *(void **)&calls.alloc = find(library, "shmalloc_ref_alloc");
    *(void **)&calls.free = find(library, "shmalloc_ref_free");
    *(void **)&calls.errmsg = find(library, "shmalloc_errmsg");
    sem_init(&calls.used, 0, 0);
    sem_init(&calls.unloaded, 0, 0);
    if (pthread_create(&thread, NULL, use, &calls) != 0)
        fail("pthread_create", "no thread");
    sem_wait(&calls.used);
    if (dlclose(library) != 0)
        fail("dlclose", dlerror());
    sem_post(&calls.unloaded);
    pthread_join(thread, NULL);
    pid_t pid = fork(); /* whose handlers are the library's too */
    if (pid == 0)
        _exit(0);
    unlink(path);
    return pid < 0;
}
