/* SPDX-License-Identifier: MIT */
/*
 * cmd_selftest.c - does this machine, and the file system of a folder, do what shmalloc relies on?
 *
 * Nothing is believed because of a version or a header: each probe does the thing and looks at what
 * came out, where possible with the library's own calls. Files are unlinked as soon as they are
 * open, children die before their probe returns, and no probe waits for longer than WAIT_NS.
 */
#include "inspect.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

#include "platform/os.h"

static const char help[] =
    "Tries out, in the folder DIR (the current one if none is given), what the library\n"
    "relies on. Each line says what was found and what follows from it:\n"
    "  ok        as the library needs it, or can use it\n"
    "  not here  the library does without; the line says what is lost\n"
    "  FAILED    heaps in this folder, on this machine, would not be safe\n"
    "\n"
    "Test files are removed, or have no name in the first place. Exit status: 0 when\n"
    "nothing failed, 1 when something that is needed failed, 2 when DIR cannot be used.\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"selftest\", the folder\n"
    "  status                  \"sound\", \"failed\" (something needed did) or \"unknown\"\n"
    "  error                   only on failure: code, meaning, message\n"
    "  kernel                  release of the running kernel\n"
    "  checks                  list of: name, needed, result (\"ok\", \"not here\", \"failed\"),\n"
    "                          text, detail (the system's own words, or empty)\n";

#define WAIT_NS 5000000000ull
#define OTHER 1 /* it worked, but not as the library needs it */

struct place {
    const char *dir;
    int fd; /* an unlinked, empty file in it */
    char detail[96]; /* what a probe has to add to its line */
};

struct probe {
    const char *name;
    int needed;
    int (*run)(struct place *place); /* 0; OTHER; or a negated errno */
    const char *good, *bad;
};

/* ---- locks ---------------------------------------------------------------------------------- */

static void *map_file(struct place *place, size_t len)
{
    if (ftruncate(place->fd, (off_t)len) < 0)
        return MAP_FAILED;
    return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, place->fd, 0);
}

static int robust_mutex(struct place *place)
{
    void *mutex = map_file(place, 4096);
    if (mutex == MAP_FAILED)
        return -errno;
    int rc = smi_os_mutex_init(mutex);
    pid_t child = rc < 0 ? -1 : fork();
    if (child == 0) {
        pthread_mutex_lock(mutex);
        raise(SIGKILL);
    }
    if (child > 0) {
        waitpid(child, NULL, 0);
        rc = smi_os_mutex_lock_until(mutex, smi_os_clock() + WAIT_NS);
        if (rc == EOWNERDEAD)
            rc = pthread_mutex_consistent(mutex) | pthread_mutex_unlock(mutex);
        else
            rc = rc == 0 ? OTHER : -rc;
    } else if (rc == 0) {
        rc = -errno;
    }
    munmap(mutex, 4096);
    return rc;
}

/* A child holds the lock of a living process, as an attached process does, and has a child of its
 * own that lives on until `end` is closed. Both say so by a byte each to `ready`. */
_Noreturn static void live(const struct place *place, int ready, const int end[2])
{
    void *pinned;
    char byte = 0;
    close(end[1]);
    int own = smi_os_reopen(place->fd, 0);
    if (own < 0 || smi_os_hold_byte(own, SMF_LOCK_BYTES, &pinned) < 0)
        _exit(1);
    smi_os_close(own);
    if (fork() == 0) {
        if (write(ready, &byte, 1) == 1)
            while (read(end[0], &byte, 1) > 0)
                ;
        _exit(0);
    }
    if (write(ready, &byte, 1) == 1)
        pause();
    _exit(0);
}

static int held_until_killed(struct place *place, pid_t child, int ready)
{
    char byte;
    int count = 0;
    while (count < 2 && read(ready, &byte, 1) == 1)
        count++;
    int before = smi_os_is_locked(place->fd, SMF_LOCK_BYTES, 1);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    int after = smi_os_is_locked(place->fd, SMF_LOCK_BYTES, 1);
    if (before < 0 || after < 0)
        return before < 0 ? before : after;
    if (count < 2)
        return -ENOLCK; /* it could not take the lock */
    snprintf(place->detail, sizeof(place->detail), "%s",
             !before ? "lost when the descriptor was closed"
             : after ? "kept by a forked child"
                     : "");
    return before && !after ? 0 : OTHER;
}

static int liveness(struct place *place)
{
    int ready[2], end[2], rc = ftruncate(place->fd, 4096) < 0 ? -errno : 0;
    if (rc < 0 || pipe2(ready, O_CLOEXEC) < 0)
        return rc < 0 ? rc : -errno;
    if (pipe2(end, O_CLOEXEC) < 0) {
        rc = -errno;
        close(ready[0]), close(ready[1]);
        return rc;
    }
    pid_t child = fork();
    if (child == 0)
        live(place, ready[1], end);
    close(ready[1]);
    rc = child < 0 ? -errno : held_until_killed(place, child, ready[0]);
    close(ready[0]), close(end[0]), close(end[1]);
    return rc;
}

/* ---- memory --------------------------------------------------------------------------------- */

static int wipe_on_fork(struct place *place)
{
    (void)place;
    uint64_t *word = smi_os_private(8192, 4096);
    if (!word)
        return -ENOMEM;
    *word = 1;
    int status = 0;
    pid_t child = fork();
    if (child == 0)
        _exit(*(volatile uint64_t *)word == 0 ? 0 : 1);
    int rc = child < 0 ? -errno : 0;
    if (child > 0)
        waitpid(child, &status, 0);
    smi_os_unmap(word, 8192);
    return rc < 0 ? rc : status == 0 ? 0 : OTHER;
}

static int address_space(struct place *place)
{
    void *base;
    uint64_t len = 1ull << 40;
    int rc = smi_os_map(place->fd, len, 0, NULL, &base);
    if (rc == 0)
        smi_os_unmap(base, len);
    return rc;
}

/* A small mapping that begins at a multiple of 2 MiB and shows the file's growth. */
static int growth(struct place *place)
{
    char *base;
    uint64_t len = 16ull << 20;
    int rc =
        ftruncate(place->fd, 0) < 0 ? -errno : smi_os_map(place->fd, len, 0, NULL, (void **)&base);
    if (rc < 0)
        return rc;
    rc = (uintptr_t)base % (2ull << 20) == 0 ? smi_os_truncate(place->fd, len) : OTHER;
    if (rc == 0) {
        char byte = 'x';
        if (pwrite(place->fd, &byte, 1, (off_t)len - 1) != 1)
            rc = -errno;
        else if (((volatile char *)base)[len - 1] != 'x')
            rc = OTHER;
    }
    smi_os_unmap(base, len);
    return rc;
}

/* ---- files ---------------------------------------------------------------------------------- */

static int file_system(struct place *place)
{
    const char *unfit = smi_os_unfit_file_system(place->fd);
    snprintf(place->detail, sizeof(place->detail), "%s", unfit ? unfit : "");
    return unfit ? OTHER : 0;
}

static int storage(const struct place *place, uint64_t *out)
{
    struct smi_file_info info;
    int rc = smi_os_stat(place->fd, &info);
    *out = info.blocks;
    return rc;
}

static int reserve(struct place *place)
{
    uint64_t before = 0, after = 0;
    int rc = ftruncate(place->fd, 0) < 0 || ftruncate(place->fd, 1 << 20) < 0 ? -errno : 0;
    if (rc == 0)
        rc = storage(place, &before);
    if (rc == 0)
        rc = smi_os_reserve(place->fd, 0, 1 << 20);
    if (rc == 0)
        rc = storage(place, &after);
    return rc < 0 ? rc : after >= before + (1 << 20) ? 0 : OTHER;
}

static int punch(struct place *place)
{
    uint64_t before = 0, after = 0;
    char byte = 'x';
    if (ftruncate(place->fd, 0) < 0 || ftruncate(place->fd, 1 << 20) < 0)
        return -errno;
    int rc = smi_os_reserve(place->fd, 0, 1 << 20);
    if (rc == 0)
        rc = smi_os_write(place->fd, &byte, 1, 500000);
    if (rc == 0)
        rc = storage(place, &before);
    if (rc == 0)
        rc = smi_os_punch(place->fd, 0, 1 << 20);
    if (rc == 0)
        rc = storage(place, &after);
    if (rc == 0 && pread(place->fd, &byte, 1, 500000) != 1)
        rc = -errno;
    return rc < 0 ? rc : after < before && byte == 0 ? 0 : OTHER;
}

static int unnamed_file(struct place *place)
{
    char path[PATH_MAX], temporary[PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s/.shmalloc-selftest-%d", place->dir, (int)getpid());
    if (n >= (int)sizeof(path))
        return -ENAMETOOLONG;
    int fd = smi_os_create_unnamed(path, 0600, temporary), named = temporary[0] != 0;
    if (fd < 0)
        return fd;
    int rc = smi_os_publish(fd, path, temporary);
    if (rc == 0)
        rc = smi_os_unlink(path);
    smi_os_close(fd);
    return rc < 0 ? rc : named ? OTHER : 0;
}

static int boot_id(struct place *place)
{
    static const uint8_t none[16];
    uint8_t id[16];
    (void)place;
    smi_os_boot_id(id);
    return memcmp(id, none, sizeof(id)) == 0 ? OTHER : 0;
}

/* ---- tracking of changes -------------------------------------------------------------------- */

/* From Linux 6.7; older headers lack them. */
#define WP_ASYNC (1ull << 15)
#define WP_UNPOPULATED (1ull << 13)
#define PAGE_WAS_WRITTEN (1ull << 1)
#define SCAN_PROTECTS (1ull << 0)
#define SCAN_MUST_BE_ASYNC (1ull << 1)

struct scan {
    uint64_t size, flags, start, end, walk_end, regions, region_count, max_pages;
    uint64_t inverted, must, any, shown;
};
#define SCAN_PAGES _IOWR('f', 16, struct scan)

struct scan_region {
    uint64_t start, end, categories;
};

#define TRACKED_PAGES 16

static int scan(int pagemap, char *base, size_t page, uint64_t flags, struct scan_region *region)
{
    struct scan scan = {.size = sizeof(scan),
                        .flags = flags,
                        .start = (uintptr_t)base,
                        .end = (uintptr_t)base + TRACKED_PAGES * page,
                        .regions = (uintptr_t)region,
                        .region_count = 2,
                        .must = PAGE_WAS_WRITTEN,
                        .shown = PAGE_WAS_WRITTEN};
    int count = ioctl(pagemap, SCAN_PAGES, &scan);
    return count < 0 ? -errno : count;
}

/* Protect all pages, store to the fourth, ask which were written. */
static int track_store(int uffd, int pagemap, char *base, size_t page)
{
    struct scan_region regions[2];
    struct uffdio_api api = {.api = UFFD_API, .features = WP_ASYNC | WP_UNPOPULATED};
    struct uffdio_register range = {.range = {(uintptr_t)base, TRACKED_PAGES * page},
                                    .mode = UFFDIO_REGISTER_MODE_WP};
    if (ioctl(uffd, UFFDIO_API, &api) < 0 || ioctl(uffd, UFFDIO_REGISTER, &range) < 0)
        return -errno;
    int count = scan(pagemap, base, page, SCAN_PROTECTS | SCAN_MUST_BE_ASYNC, regions);
    if (count < 0)
        return count;
    ((volatile char *)base)[3 * page] = 1;
    count = scan(pagemap, base, page, SCAN_MUST_BE_ASYNC, regions);
    if (count < 0)
        return count;
    return count == 1 && regions[0].start == (uintptr_t)base + 3 * page &&
                   regions[0].end == regions[0].start + page
               ? 0
               : OTHER;
}

static int tracking(struct place *place)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *base = map_file(place, TRACKED_PAGES * page);
    if (base == MAP_FAILED)
        return -errno;
    madvise(base, TRACKED_PAGES * page, MADV_NOHUGEPAGE);
    for (size_t i = 0; i < TRACKED_PAGES; i++)
        ((volatile char *)base)[i * page] = 0;
    int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    int rc = pagemap < 0 || uffd < 0 ? -errno : track_store(uffd, pagemap, base, page);
    if (pagemap >= 0)
        close(pagemap);
    if (uffd >= 0)
        close(uffd);
    munmap(base, TRACKED_PAGES * page);
    return rc;
}

/* What the library does for SHMALLOC_HUGE_PAGES, with 8 MiB. */
static int huge_pages(struct place *place)
{
    const uint64_t len = 8ull << 20;
    char *base, text[32];
    int rc = ftruncate(place->fd, 0) < 0 ? -errno : smi_os_truncate(place->fd, len);
    if (rc == 0)
        rc = smi_os_reserve(place->fd, 0, len);
    if (rc == 0)
        rc = smi_os_map(place->fd, len, 0, NULL, (void **)&base);
    if (rc < 0)
        return rc;
    smi_os_want_huge(base, len);
    smi_os_collapse(base, len);
    for (uint64_t at = 0; at < len; at += 4096)
        ((volatile char *)base)[at] = 1;
    uint64_t huge = smi_os_huge_bytes(base, len);
    smi_os_unmap(base, len);
    snprintf(place->detail, sizeof(place->detail), "%s of 8 MiB", inspect_bytes(huge, text));
    return huge > 0 ? 0 : OTHER;
}

/* ---- all of them ---------------------------------------------------------------------------- */

static const struct probe probes[] = {
    {"file system", 1, file_system, "mappings and locks of several processes agree here",
     "heaps here are refused, unless one process alone uses them and says so"},
    {"robust mutexes", 1, robust_mutex,
     "the lock of a killed process goes to the next, who is told",
     "a killed process would keep its locks for ever"},
    {"liveness", 1, liveness,
     "a process's file lock outlasts its descriptor, ends at SIGKILL, is not inherited by a child",
     "it could not be told who is alive, so what the dead held would be lost"},
    {"wipe on fork", 1, wipe_on_fork, "a forked child notices that it must attach by itself",
     "a forked child could go on in its parent's name"},
    {"growth", 1, growth, "a mapping at a multiple of 2 MiB sees the file grow beneath it",
     "a block of one process could be out of reach for another, or misaligned"},
    {"reserve", 1, reserve,
     "a page has storage before it is handed out: no SIGBUS when the disk is full",
     "a full disk would kill the program at a store"},
    {"punch", 0, punch, "freed memory in the middle of a heap goes back to the file system",
     "a heap keeps its storage until its tail is cut off"},
    {"unnamed files", 0, unnamed_file,
     "nobody ever sees half a heap, a killed creator leaves nothing",
     "a creator that is killed leaves a temporary file"},
    {"boot id", 0, boot_id, "after all processes died, the heap opens as it was",
     "after all processes died, the heap counts as unclean until it was checked"},
    {"1 TiB mapping", 0, address_space, "heaps may grow to the usual maximum of 1 TiB",
     "address space is limited: give heaps a smaller maximum size"},
    {"write tracking", 0, tracking,
     "changed pages are known exactly (asynchronous userfaultfd and PAGEMAP_SCAN)",
     "changed pages have to be found by comparing (needs Linux 6.7 and permission)"},
    {"huge pages", 0, huge_pages, "SHMALLOC_HUGE_PAGES gets pages of 2 MiB for heaps here",
     "SHMALLOC_HUGE_PAGES gets none here: more TLB misses in large heaps, nothing else"},
};
#define PROBES (sizeof(probes) / sizeof(probes[0]))

static void print_result(struct inspect *in, const struct probe *probe, int rc,
                         const struct place *place)
{
    enum color color = rc == 0 ? GREEN : probe->needed ? RED : YELLOW;
    const char *result = rc == 0 ? "ok" : probe->needed ? "FAILED" : "not here";
    char text[256];
    snprintf(text, sizeof(text), place->detail[0] ? "%s (%s)" : "%s",
             rc == 0 ? probe->good : probe->bad, place->detail);
    printf("%s%-9s%s%-15s", inspect_color(in, color), result, inspect_color(in, PLAIN),
           probe->name);
    inspect_print_wrapped(text, 24, 80);
}

static void add_result(struct json_object *list, const struct probe *probe, int rc,
                       const struct place *place)
{
    struct json_object *result = json_object_new_object();
    inspect_add_text(result, "name", probe->name);
    inspect_add_flag(result, "needed", probe->needed);
    inspect_add_text(result, "result", rc == 0 ? "ok" : probe->needed ? "failed" : "not here");
    inspect_add_text(result, "text", rc == 0 ? probe->good : probe->bad);
    inspect_add_text(result, "detail", place->detail);
    json_object_array_add(list, result);
}

static enum verdict run_probes(struct inspect *in, struct place *place)
{
    struct json_object *list = in->out ? json_object_new_array() : NULL;
    int failed = 0;
    for (size_t i = 0; i < PROBES; i++) {
        place->detail[0] = 0;
        int rc = probes[i].run(place);
        if (rc < 0)
            snprintf(place->detail, sizeof(place->detail), "%s", strerror(-rc));
        failed += rc != 0 && probes[i].needed;
        if (list)
            add_result(list, &probes[i], rc, place);
        else
            print_result(in, &probes[i], rc, place);
    }
    if (list)
        inspect_add(in->out, "checks", list);
    else if (failed)
        printf("%s%d needed here failed%s: do not keep heaps in this folder.\n",
               inspect_color(in, RED), failed, inspect_color(in, PLAIN));
    in->finding = "failed";
    return failed ? DAMAGED : SOUND;
}

static enum verdict refuse(struct inspect *in, int error)
{
    if (in->out) {
        struct json_object *object = json_object_new_object();
        inspect_add(object, "code", json_object_new_int(-error));
        inspect_add_text(object, "meaning", strerror(error));
        inspect_add_text(object, "message", "no file can be made there");
        inspect_add(in->out, "error", object);
    } else {
        fprintf(stderr, "shmalloc-inspect: no file can be made in %s: %s\n", in->path,
                strerror(error));
    }
    return CANNOT_TELL;
}

/* An empty file of `dir` that is gone when the descriptor is. */
static int open_file(const char *dir)
{
    char path[PATH_MAX];
    if (snprintf(path, sizeof(path), "%s/.shmalloc-selftest-XXXXXX", dir) >= (int)sizeof(path)) {
        errno = ENAMETOOLONG;
        return -1;
    }
    int fd = mkostemp(path, O_CLOEXEC);
    if (fd >= 0)
        unlink(path);
    return fd;
}

static enum verdict run(struct inspect *in)
{
    struct utsname kernel = {0};
    if (!in->path)
        in->path = ".";
    struct place place = {.dir = in->path, .fd = open_file(in->path)};
    if (place.fd < 0)
        return refuse(in, errno);
    uname(&kernel);
    if (in->out) {
        inspect_add_text(in->out, "file", in->path);
        inspect_add_text(in->out, "kernel", kernel.release);
    } else {
        printf("%s", inspect_color(in, BOLD));
        inspect_print_text(in->path);
        printf("%s on Linux %s, %s\n", inspect_color(in, PLAIN), kernel.release, kernel.machine);
    }
    enum verdict verdict = run_probes(in, &place);
    close(place.fd);
    return verdict;
}

const struct subcommand inspect_selftest = {
    "selftest", "does this machine do what shmalloc relies on?", help, run, NULL};
const struct command_line inspect_selftest_line = {"[--json] [DIR]", "", NULL, 1};
