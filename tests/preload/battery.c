/* SPDX-License-Identifier: MIT */
/*
 * battery.c - what malloc and its family promise, asked of whichever malloc this program runs on.
 *
 * `battery NAME...` runs the named parts, `battery` all; `battery --served-by LIBRARY` asks whose
 * malloc it is. With the C library's own malloc all parts pass too, but `foreign`: so they say what
 * a program may rely on.
 */
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define must(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "battery.c:%d: %s does not hold (errno %d)\n", __LINE__, #condition,   \
                    errno);                                                                        \
            _exit(1);                                                                              \
        }                                                                                          \
    } while (0)

/* The compiler knows what malloc does, and would leave out what the tests are about. */
static void *(*volatile do_malloc)(size_t) = malloc;
static void *(*volatile do_calloc)(size_t, size_t) = calloc;
static void *(*volatile do_realloc)(void *, size_t) = realloc;
static void *(*volatile do_reallocarray)(void *, size_t, size_t) = reallocarray;
static void *(*volatile do_memalign)(size_t, size_t) = memalign;
static void (*volatile do_free)(void *) = free;

static void *early_block; /* allocated by a constructor */

/* More than the C library's list of handlers has room for at first: it calls malloc while it holds
 * that list's lock, which must not be the first call that wants a handler of its own. */
enum { FORK_HANDLERS = 60 };
static int handled_forks;

static void count_fork(void)
{
    handled_forks++;
}

__attribute__((constructor)) static void constructed(void)
{
    for (int i = 0; i < FORK_HANDLERS; i++)
        pthread_atfork(NULL, NULL, count_fork);
    early_block = do_malloc(1000);
    memset(early_block, 1, 1000);
}

/* ---- parts ---- */

static void sizes(void)
{
    void *blocks[3000];
    for (size_t i = 0; i < 3000; i++) {
        size_t size = i < 1500 ? i : i * i / 8;
        unsigned char *block = blocks[i] = do_malloc(size);
        must(block && (uintptr_t)block % (size > 8 ? 16 : 8) == 0);
        must(malloc_usable_size(block) >= size);
        memset(block, (int)i, malloc_usable_size(block));
    }
    for (size_t i = 0; i < 3000; i++) {
        size_t size = i < 1500 ? i : i * i / 8;
        const unsigned char *block = blocks[i];
        for (size_t at = 0; at < size; at += at < 64 ? 1 : 509)
            must(block[at] == (unsigned char)i);
        do_free(blocks[i]);
    }
}

static void zero_size(void)
{
    void *a = do_malloc(0), *b = do_malloc(0), *c = do_calloc(0, 10), *d = do_realloc(NULL, 0);
    must(a && b && c && d && a != b && b != c && c != d);
    do_free(a);
    do_free(b);
    do_free(c);
    must(do_realloc(d, 0) == NULL); /* and d is free */
    do_free(NULL);
    must(malloc_usable_size(NULL) == 0);
}

static void too_much(void)
{
    static const size_t huge[] = {PTRDIFF_MAX, SIZE_MAX, SIZE_MAX - 8192, SIZE_MAX / 2 + 1,
                                  1ull << 62};
    char *block = do_malloc(50);
    memset(block, 7, 50);
    for (size_t i = 0; i < sizeof(huge) / sizeof(huge[0]); i++) {
        void *out = block;
        errno = 0;
        must(!do_malloc(huge[i]) && errno == ENOMEM);
        errno = 0;
        must(!do_realloc(block, huge[i]) && errno == ENOMEM && block[49] == 7);
        errno = 0;
        must(!do_calloc(huge[i], 1) && errno == ENOMEM);
        errno = 0;
        must(!do_calloc(2, huge[i]) && errno == ENOMEM);
        errno = 0;
        must(!do_memalign(64, huge[i]) && errno == ENOMEM);
        must(posix_memalign(&out, 64, huge[i]) == ENOMEM && out == block);
        errno = 0;
        must(!pvalloc(huge[i] | (SIZE_MAX / 2)) && errno == ENOMEM);
    }
    errno = 0;
    must(!do_calloc(SIZE_MAX / 2, 3) && errno == ENOMEM);
    errno = 0;
    must(!do_calloc(1ull << 33, 1ull << 33) && errno == ENOMEM);
    errno = 0;
    must(!do_reallocarray(block, SIZE_MAX / 4, 5) && errno == ENOMEM && block[0] == 7);
    do_free(block);
}

static void zeroed(void)
{
    for (size_t size = 1; size < 30 << 20; size = size * 3 + 1)
        for (int times = 0; times < 3; times++) {
            unsigned char *block = do_calloc(size, 1);
            must(block);
            for (size_t i = 0; i < size; i++)
                must(block[i] == 0);
            memset(block, 255, size);
            do_free(block);
        }
}

static void resized(void)
{
    unsigned char *block = NULL;
    size_t old = 0;
    for (size_t size = 1; size < 40 << 20; size = size * 5 / 4 + 1) {
        block = do_realloc(block, size);
        must(block);
        for (size_t i = 0; i < old; i += i < 100 ? 1 : 997)
            must(block[i] == (unsigned char)i);
        for (size_t i = 0; i < size; i++)
            block[i] = (unsigned char)i;
        old = size;
    }
    for (size_t size = old; size > 0; size = size * 2 / 3) {
        block = do_realloc(block, size);
        must(block && malloc_usable_size(block) >= size);
        for (size_t i = 0; i < size; i += i < 100 ? 1 : 997)
            must(block[i] == (unsigned char)i);
    }
    block = do_reallocarray(block, 10, 10);
    must(block && malloc_usable_size(block) >= 100);
    do_free(block);
}

static void aligned(void)
{
    void *out = NULL;
    for (size_t alignment = 1; alignment <= 64 << 20; alignment *= 2)
        for (size_t size = 0; size < 100000; size = size * 7 + 1) {
            char *block = do_memalign(alignment, size);
            must(block && (uintptr_t)block % alignment == 0 && malloc_usable_size(block) >= size);
            memset(block, 1, size);
            char *again = alignment <= 4096 ? do_realloc(block, size + 5000) : block;
            must(again && (size == 0 || again[size - 1] == 1));
            do_free(again);
            if (alignment < sizeof(void *)) {
                must(posix_memalign(&out, alignment, size) == EINVAL && out == NULL);
                continue;
            }
            errno = 77;
            must(posix_memalign(&out, alignment, size) == 0 && (uintptr_t)out % alignment == 0 &&
                 errno == 77);
            do_free(out);
            out = NULL;
            block = aligned_alloc(alignment, size);
            must(block && (uintptr_t)block % alignment == 0);
            do_free(block);
        }
    must(posix_memalign(&out, 0, 8) == EINVAL && posix_memalign(&out, 24, 8) == EINVAL);
    char *block = do_memalign(24, 10);
    must(block && (uintptr_t)block % 32 == 0);
    do_free(block);
    block = valloc(5);
    must(block && (uintptr_t)block % 4096 == 0);
    do_free(block);
    block = pvalloc(4097);
    must(block && (uintptr_t)block % 4096 == 0 && malloc_usable_size(block) >= 8192);
    do_free(block);
}

static void errno_kept(void)
{
    static const size_t of[] = {1, 100, 5000, 100000, 10 << 20};
    for (size_t i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
        void *block = do_malloc(of[i]);
        errno = EXDEV;
        do_free(block);
        must(errno == EXDEV);
    }
    do_free(NULL);
    must(errno == EXDEV);
}

static void looked_at(void)
{
    struct mallinfo2 before = mallinfo2();
    void *block = do_malloc(5 << 20);
    memset(block, 1, 5 << 20);
    struct mallinfo2 after = mallinfo2();
    must(after.uordblks + after.hblkhd >= before.uordblks + before.hblkhd + (5 << 20));
    do_free(block);
    must(malloc_trim(0) == 0 || malloc_trim(0) <= 1);
    must(mallopt(M_MMAP_THRESHOLD, 1 << 20) == 1);
}

/* Pointers of nobody's heap: a library's own, or of a malloc that was here before. */
static void foreign(void)
{
    static char nobodys[256] __attribute__((aligned(64)));
    char here[64];
    char *mapped = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void *(*own)(size_t) = (void *(*)(size_t))dlsym(RTLD_DEFAULT, "__libc_malloc");
    char *volatile them[] = {
        nobodys,       nobodys + 64,         here,         mapped,
        mapped + 4096, own ? own(40) : NULL, (char *)4096, (char *)(UINTPTR_MAX - 15)};
    for (size_t i = 0; i < sizeof(them) / sizeof(them[0]); i++) {
        must(malloc_usable_size(them[i]) == 0);
        do_free(them[i]);
        errno = 0;
        must(!them[i] || (!do_realloc(them[i], 10) && errno == ENOMEM));
    }
    char *block = do_malloc(100);
    do_free(block + 16); /* inside a block */
    memset(block, 1, 100);
    do_free(block);
    do_free(do_malloc(100));
}

static void *short_thread(void *arg)
{
    void **slot = arg;
    do_free(*slot); /* of another thread */
    *slot = do_malloc(120);
    memset(*slot, 1, 120);
    return do_malloc(30);
}

static void short_threads(void)
{
    void *slots[4] = {0}, *block;
    for (int i = 0; i < 1000; i++) {
        pthread_t threads[4];
        for (int j = 0; j < 4; j++)
            must(pthread_create(&threads[j], NULL, short_thread, &slots[j]) == 0);
        for (int j = 0; j < 4; j++) {
            must(pthread_join(threads[j], &block) == 0);
            do_free(block);
        }
    }
    for (int j = 0; j < 4; j++)
        do_free(slots[j]);
}

static pthread_key_t keys[12];
static _Thread_local char large_tls[3000];

static void free_twice_as_much(void *block)
{
    do_free(block);
    do_free(do_malloc(300));
}

static void *with_keys(void *arg)
{
    for (int i = 0; i < 12; i++)
        pthread_setspecific(keys[i], do_malloc((size_t)i * 50 + 1));
    large_tls[5] = 1;
    char *text = strerror(12345); /* kept by the C library until the thread ends */
    must(text && *text);
    return arg;
}

static void destructors(void)
{
    for (int i = 0; i < 12; i++)
        must(pthread_key_create(&keys[i], free_twice_as_much) == 0);
    for (int i = 0; i < 300; i++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, with_keys, NULL) == 0);
        pthread_join(thread, NULL);
    }
}

static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
static int waiting;

static void *parked(void *arg)
{
    void *block = do_malloc(200);
    __atomic_fetch_add(&waiting, 1, __ATOMIC_RELAXED);
    pthread_mutex_lock(&gate);
    pthread_mutex_unlock(&gate);
    do_free(do_malloc(700));
    do_free(block);
    return arg;
}

/* More at once than the heap has thread slots. */
static void many_threads(void)
{
    enum { MANY = 1200 };
    static pthread_t threads[MANY];
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 64 << 10);
    pthread_mutex_lock(&gate);
    for (int i = 0; i < MANY; i++)
        must(pthread_create(&threads[i], &attr, parked, NULL) == 0);
    while (__atomic_load_n(&waiting, __ATOMIC_RELAXED) < MANY)
        usleep(1000);
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < MANY; i++)
        pthread_join(threads[i], NULL);
}

static int stop;

static void *busy(void *arg)
{
    void *held[50] = {0};
    for (unsigned i = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); i++) {
        do_free(held[i % 50]);
        held[i % 50] = do_malloc(i * 7919 % 40000);
        if (i % 100 == 0) { /* the C library's streams allocate under locks of their own */
            FILE *stream = fopen("/dev/null", "w");
            fprintf(stream, "%u", i);
            fclose(stream);
        }
    }
    for (int i = 0; i < 50; i++)
        do_free(held[i]);
    return arg;
}

static void work_a_little(void)
{
    void *held[200];
    for (size_t i = 0; i < 200; i++)
        must((held[i] = do_malloc(i * i)));
    for (size_t i = 0; i < 200; i++)
        do_free(held[i]);
}

static void ended_well(pid_t pid)
{
    int status;
    must(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

static void fork_handlers(void)
{
    pid_t pid = fork();
    if (pid == 0)
        _exit(handled_forks != FORK_HANDLERS);
    ended_well(pid);
}

static void forks(void)
{
    pthread_t threads[2];
    for (int i = 0; i < 2; i++)
        must(pthread_create(&threads[i], NULL, busy, NULL) == 0);
    for (int i = 0; i < 60; i++) {
        void *before = do_malloc(100);
        pid_t pid = i % 3 == 2 ? vfork() : fork();
        if (pid == 0 && i % 3 == 2)
            _exit(0);
        if (pid == 0) {
            do_free(before);
            work_a_little();
            pid_t grandchild = fork();
            if (grandchild == 0) {
                work_a_little();
                exit(0); /* exit handlers too */
            }
            ended_well(grandchild);
            pthread_t thread;
            must(pthread_create(&thread, NULL, short_thread, &before) == 0);
            pthread_join(thread, NULL);
            _exit(0);
        }
        ended_well(pid);
        do_free(before);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

static void executes(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "battery", "sizes", (char *)NULL);
        _exit(9);
    }
    ended_well(pid);
}

static void *thread_with_library(void *arg)
{
    void *handle = dlopen(arg, RTLD_NOW);
    must(handle);
    return handle;
}

/* The dynamic linker allocates: link maps, and each thread's table of its variables. */
static void loads_libraries(void)
{
    static const char *const names[] = {"libm.so.6", "libdl.so.2", "librt.so.1", "libutil.so.1",
                                        "libresolv.so.2"};
    for (int round = 0; round < 20; round++)
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
            pthread_t thread;
            void *handle;
            must(pthread_create(&thread, NULL, thread_with_library, (void *)(uintptr_t)names[i]) ==
                 0);
            pthread_join(thread, &handle);
            must(dlclose(handle) == 0);
            must(!dlopen("no such library", RTLD_NOW) && dlerror());
        }
}

/* A jump out of a handler would be wrong with any malloc; to allocate elsewhere meanwhile is
 * not. */
static volatile sig_atomic_t alarms;

static void count_alarm(int signal)
{
    (void)signal;
    alarms++;
    errno = EINTR;
}

static void signals(void)
{
    struct sigaction action = {.sa_handler = count_alarm};
    sigaction(SIGALRM, &action, NULL);
    ualarm(500, 500);
    while (alarms < 50)
        work_a_little();
    ualarm(0, 0);
}

static void constructor_block(void)
{
    must(((char *)early_block)[999] == 1);
    early_block = do_realloc(early_block, 5000);
    must(((char *)early_block)[999] == 1);
    do_free(early_block);
}

static void at_exit(void)
{
    work_a_little();
}

static const struct part {
    const char *name;
    void (*run)(void);
} parts[] = {
    {"sizes", sizes},
    {"zero_size", zero_size},
    {"too_much", too_much},
    {"zeroed", zeroed},
    {"resized", resized},
    {"aligned", aligned},
    {"errno_kept", errno_kept},
    {"looked_at", looked_at},
    {"short_threads", short_threads},
    {"destructors", destructors},
    {"many_threads", many_threads},
    {"fork_handlers", fork_handlers},
    {"forks", forks},
    {"executes", executes},
    {"loads_libraries", loads_libraries},
    {"signals", signals},
    {"constructor_block", constructor_block},
    {"foreign", foreign},
};
#define PARTS (sizeof(parts) / sizeof(parts[0]))

static int served_by(const char *library)
{
    Dl_info info;
    must(dladdr((void *)(uintptr_t)do_malloc, &info) && info.dli_fname);
    printf("malloc is served by %s\n", info.dli_fname);
    return strstr(info.dli_fname, library) ? 0 : 1;
}

int main(int argc, char **argv)
{
    int found = 0;
    must(atexit(at_exit) == 0);
    if (argc == 3 && strcmp(argv[1], "--served-by") == 0)
        return served_by(argv[2]);
    for (size_t i = 0; i < PARTS; i++) {
        int wanted = argc == 1;
        for (int j = 1; j < argc; j++)
            wanted |= strcmp(argv[j], parts[i].name) == 0;
        if (!wanted)
            continue;
        found++;
        parts[i].run();
        printf("%s: passes\n", parts[i].name);
        fflush(stdout);
    }
    return found > 0 ? 0 : 2;
}
