/* SPDX-License-Identifier: MIT */
/*
 * test_messages.c - bad input: each kind has its code, and a message with the file, what was
 * expected, what was found, and what to do.
 *
 * Files are damaged as a user meets them: the bytes on disk, with a checksum that agrees where the
 * damage is one that another library could have written.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap_suite.h"
#include "format/layout.h"

HEAP_SUITE(messages, 0, 60);

/* `rc` is `code`, and the message has the path and all of the words, a list that ends with NULL. */
static void must_explain(int64_t rc, int code, const char *path, ...)
{
    const char *word;
    va_list words;
    must_code((int)rc, code);
    must(strstr(shmalloc_errmsg(), path), "\"%s\" does not name %s", shmalloc_errmsg(), path);
    va_start(words, path);
    while ((word = va_arg(words, const char *)))
        must(strstr(shmalloc_errmsg(), word), "\"%s\" does not say \"%s\"", shmalloc_errmsg(),
             word);
    va_end(words);
}

static int open_with(const char *path, unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = flags;
    int rc = shmalloc_open(path, &options, &heap);
    if (rc == 0)
        must_work(shmalloc_close(heap));
    return rc;
}

/* ---- other files ---- */

static const char *file_of(const char *name, const char *bytes, size_t len)
{
    const char *path = fixture_path(&f, name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && write(fd, bytes, len) == (ssize_t)len, "%s: %s", path, strerror(errno));
    close(fd);
    return path;
}

Test(messages, files_that_are_no_heap)
{
    static char text[20000] = "#!/bin/sh\necho this is not a heap\n";
    const char *empty = file_of("empty", "", 0), *script = file_of("script", text, sizeof(text));
    must_explain(open_with(empty, 0), SHMALLOC_ENOTHEAP, empty, "not a shmalloc heap", "0 bytes",
                 "expected 434f4c4c414d4853", "SHMALLOC_CREATE", NULL);
    must_explain(open_with(script, 0), SHMALLOC_ENOTHEAP, script, "not a shmalloc heap",
                 "20000 bytes", "first word 732f6e69622f2123", "expected", "give the name of one",
                 NULL);
    must_explain(shmalloc_destroy(script), SHMALLOC_ENOTHEAP, script, "not a shmalloc heap",
                 "nothing was removed", NULL);
    must_explain(open_with(f.dir, 0), -EISDIR, f.dir, "directory", "regular file", NULL);
    must_explain(open_with(f.dir, SHMALLOC_READ_ONLY), -EISDIR, f.dir, "directory", "regular file",
                 NULL);
    must_explain(open_with("/dev/null", 0), SHMALLOC_ENOTHEAP, "/dev/null", "not a regular file",
                 "give the name", NULL);
    const char *cut = file_of("cut", "SHMALLOC and some bytes", 23),
               *dangling = fixture_path(&f, "dangling");
    must_explain(open_with(cut, 0), SHMALLOC_ENOTHEAP, cut, "begins as one", "23 bytes", "copy",
                 NULL);
    cr_assert_eq(symlink("nowhere", dangling), 0);
    must_explain(open_with(dangling, SHMALLOC_CREATE), -ENOENT, dangling, "symbolic link",
                 "remove it", NULL);
    must_explain(open_with(dangling, 0), -ENOENT, dangling, "No such file", NULL);
    const char *missing = fixture_path(&f, "missing");
    must_explain(open_with(missing, 0), -ENOENT, missing, "cannot open", "No such file",
                 "SHMALLOC_CREATE", NULL);
    must_explain(open_with(f.path, SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE), -EEXIST, f.path, "exists",
                 "without SHMALLOC_EXCLUSIVE", NULL);
}

Test(messages, names_that_are_links)
{
    char heap[256], link[256], other[256];
    snprintf(heap, sizeof(heap), "%s", fixture_path(&f, "linked"));
    snprintf(link, sizeof(link), "%s", fixture_path(&f, "link"));
    snprintf(other, sizeof(other), "%s", fixture_path(&f, "second name"));
    must_work(shmalloc_close(heap_create(heap, 0)));
    cr_assert_eq(symlink("linked", link), 0);
    must_explain(open_with(link, 0), 0, "", NULL);
    must_explain(open_with(link, SHMALLOC_CREATE), 0, "", NULL);
    must_explain(open_with(link, SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE), -EEXIST, link, "exists",
                 NULL);
    must_explain(shmalloc_destroy(link), -ELOOP, link, "symbolic link", "nothing was removed", heap,
                 NULL);
    must_explain(open_with(link, 0), 0, "", NULL);
    cr_assert_eq(linkat(AT_FDCWD, heap, AT_FDCWD, other, 0), 0);
    shmalloc_heap *first = heap_open(heap), *second = heap_open(other);
    cr_assert_eq(first, second, "two names are two heaps");
    must_work(shmalloc_close(first));
    must_work(shmalloc_close(second));
    must_work(shmalloc_destroy(heap));
    must_explain(open_with(other, 0), 0, "", NULL);
    must_explain(shmalloc_destroy(link), -ENOENT, link, NULL);
    must_work(shmalloc_destroy(other));
}

static int without_permission(void *arg)
{
    const char *path = arg;
    must(geteuid() != 0 || (setegid(65534) == 0 && seteuid(65534) == 0), "seteuid");
    must_explain(open_with(path, 0), -EACCES, path, "Permission denied", "needs permission to read",
                 NULL);
    must_explain(open_with(path, SHMALLOC_READ_ONLY), geteuid() == 65534 ? 0 : -EACCES, "", NULL);
    return 0;
}

Test(messages, no_permission)
{
    const char *path = fixture_path(&f, "guarded");
    must_work(shmalloc_close(heap_create(path, 0)));
    chmod(f.dir, 0755);
    chmod(path, geteuid() == 0 ? 0444 : 0000);
    cr_assert_eq(run_child(without_permission, (void *)path), 0);
}

/* ---- files that may not be changed ---- */

/* A heap in a memfd that may be sealed; *ref is a block in it, bound to "x". */
static int sealable(shmalloc_heap **heap, uint64_t initial_size)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_ref ref = 0;
    int fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    must(fd >= 0, "memfd_create: %s", strerror(errno));
    options.flags = SHMALLOC_CREATE;
    options.initial_size = initial_size;
    must_work(shmalloc_open_fd(fd, &options, heap));
    must_work(shmalloc_ref_alloc(*heap, 1000, &ref));
    pattern_fill(shmalloc_ptr(*heap, ref), 0, 1000, 1);
    must_work(shmalloc_root_set(*heap, "x", 0, ref));
    return fd;
}

static int open_fd_with(int fd, unsigned flags, shmalloc_heap **heap)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = flags;
    return shmalloc_open_fd(fd, &options, heap);
}

static void must_be_readable(int fd)
{
    shmalloc_heap *reader;
    shmalloc_ref ref;
    must_work(open_fd_with(fd, SHMALLOC_READ_ONLY, &reader));
    must_work(shmalloc_root_get(reader, "x", 0, &ref));
    must(pattern_check(shmalloc_ptr(reader, ref), 1000, 1) == 1000, "contents");
    must_be_sound(reader);
    must_work(shmalloc_close(reader));
}

Test(messages, memfds_sealed_against_writing)
{
    static const struct {
        int seal;
        const char *name;
    } seals[] = {{F_SEAL_WRITE, "(F_SEAL_WRITE)"}, {0x10, "(F_SEAL_FUTURE_WRITE)"}};
    shmalloc_heap *heap;
    char path[32];
    for (int i = 0; i < 2; i++) {
        int fd = sealable(&heap, 0);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        must_work(shmalloc_close(heap));
        must(fcntl(fd, F_ADD_SEALS, seals[i].seal) == 0, "seal: %s", strerror(errno));
        must_explain(open_fd_with(fd, 0, &heap), -EPERM, path, "sealed", seals[i].name,
                     "(SHMALLOC_READ_ONLY)", "without that seal", NULL);
        must_be_readable(fd);
        close(fd);
        fd = memfd_create("empty", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        must(fcntl(fd, F_ADD_SEALS, seals[i].seal) == 0, "seal: %s", strerror(errno));
        must_explain(open_fd_with(fd, SHMALLOC_CREATE, &heap), -EPERM, path, "sealed",
                     seals[i].name, NULL);
        close(fd);
    }
}

enum { SEALED = 60, PIECE = 100000 };

static int fill(shmalloc_heap *heap, shmalloc_ref *refs, int *count)
{
    int rc = 0;
    for (*count = 0; rc == 0; *count += rc == 0) {
        must(*count < SEALED, "it grows");
        rc = shmalloc_ref_alloc(heap, PIECE, &refs[*count]);
        if (rc == 0)
            pattern_fill(shmalloc_ptr(heap, refs[*count]), 0, PIECE, (uint64_t)*count);
    }
    return rc;
}

/* Full, emptied and full again: as much as before. Nothing is cut off, for what is cut off from a
 * file that cannot grow is lost. */
static void use_sealed(int fd, shmalloc_heap *heap, int can_punch)
{
    shmalloc_ref refs[SEALED + 1] = {0};
    struct stat st;
    int count, again;
    must(fstat(fd, &st) == 0, "fstat");
    off_t size = st.st_size;
    must_explain(fill(heap, refs, &count), SHMALLOC_EFULL, "/proc/self/fd", "F_SEAL_GROW",
                 "largest free run", "free something", "without that seal", NULL);
    must(count > 20, "%d blocks", count);
    for (int i = 0; i < count; i++) {
        must(pattern_check(shmalloc_ptr(heap, refs[i]), PIECE, (uint64_t)i) == PIECE, "block %d",
             i);
        must_work(shmalloc_ref_free(heap, &refs[i]));
    }
    int64_t given = shmalloc_trim(heap);
    must(can_punch ? given > 0 : given == 0, "%lld: %s", (long long)given, shmalloc_errmsg());
    must(fstat(fd, &st) == 0 && st.st_size == size, "cut from %lld to %lld", (long long)size,
         (long long)st.st_size);
    must_be_sound(heap);
    must_code(fill(heap, refs, &again), SHMALLOC_EFULL);
    must(again == count, "%d blocks, before %d", again, count);
    while (again-- > 0)
        must_work(shmalloc_ref_free(heap, &refs[again]));
}

Test(messages, memfds_sealed_against_growing)
{
    static const int seals[] = {F_SEAL_GROW, F_SEAL_GROW | F_SEAL_SHRINK, F_SEAL_GROW | 0x10};
    shmalloc_heap *heap;
    for (int i = 0; i < 3; i++) {
        int fd = sealable(&heap, 1 << 20);
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(heap, 3 << 20, &ref)); /* a chunk of its own, free then, which
                                                               could be cut off */
        must_work(shmalloc_ref_free(heap, &ref));
        must(fcntl(fd, F_ADD_SEALS, seals[i]) == 0, "seal: %s", strerror(errno));
        use_sealed(fd, heap, i < 2);
        must_work(shmalloc_set_give_back(heap, 0, 0)); /* the same without being asked to */
        use_sealed(fd, heap, 0);
        must_work(shmalloc_close(heap));
        must_be_readable(fd);
        close(fd);
    }
}

/* What lies beyond the end of the heap cannot be cut off, and is zeroed before the heap grows over
 * it. */
Test(messages, memfds_sealed_against_shrinking)
{
    static char dirt[1 << 20];
    shmalloc_heap *heap;
    shmalloc_ref refs[4] = {0};
    int fd = sealable(&heap, 0);
    struct stat st;
    must(fstat(fd, &st) == 0, "fstat");
    memset(dirt, 0xaa, sizeof(dirt));
    for (int i = 0; i < 6; i++) /* a grower that died, half a chunk of words behind it */
        must(pwrite(fd, dirt, sizeof(dirt), st.st_size + (i << 20)) == sizeof(dirt), "pwrite");
    must(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) == 0, "seal: %s", strerror(errno));
    for (int i = 0; i < 4; i++) {
        must_work(shmalloc_ref_alloc_zeroed(heap, 3 << 20, &refs[i]));
        must(all_zero(shmalloc_ptr(heap, refs[i]), 3 << 20), "not zero");
    }
    must_be_sound(heap);
    for (int i = 0; i < 4; i++)
        must_work(shmalloc_ref_free(heap, &refs[i]));
    must(fstat(fd, &st) == 0, "fstat");
    off_t size = st.st_size;
    must(shmalloc_trim(heap) > 0, "%s", shmalloc_errmsg());
    must(fstat(fd, &st) == 0 && st.st_size == size && st.st_blocks < 4 << 11,
         "%lld bytes, %lld stored", (long long)st.st_size, (long long)st.st_blocks * 512);
    must_work(shmalloc_ref_alloc(heap, 8 << 20, &refs[0]));
    must_work(shmalloc_ref_free(heap, &refs[0]));
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
    close(fd);
}

/* 0 where attributes cannot be set. */
static int set_attribute(const char *path, int attribute)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int done = fd >= 0 && ioctl(fd, FS_IOC_SETFLAGS, &attribute) == 0;
    close(fd);
    return done;
}

Test(messages, files_with_attributes)
{
    static const struct {
        int attribute;
        const char *word, *remedy;
    } attributes[] = {{FS_IMMUTABLE_FL, "immutable", "chattr -i"},
                      {FS_APPEND_FL, "appended to", "chattr -a"}};
    char path[256], folder[256], inside[300];
    snprintf(path, sizeof(path), "%s", fixture_path(&f, "kept"));
    snprintf(folder, sizeof(folder), "%s", fixture_path(&f, "folder"));
    snprintf(inside, sizeof(inside), "%s/heap", folder);
    must_work(shmalloc_close(heap_create(path, 0)));
    cr_assert_eq(mkdir(folder, 0700), 0);
    must_work(shmalloc_close(heap_create(inside, 0)));
    for (int i = 0; i < 2; i++) {
        if (!set_attribute(path, attributes[i].attribute)) {
            heap_suite_end();
            cr_skip_test("attributes cannot be set here");
        }
        must_explain(open_with(path, 0), -EPERM, path, attributes[i].word, attributes[i].remedy,
                     "(SHMALLOC_READ_ONLY)", NULL);
        must_explain(open_with(path, SHMALLOC_READ_ONLY), 0, "", NULL);
        must_explain(shmalloc_destroy(path), -EPERM, path, attributes[i].word, attributes[i].remedy,
                     NULL);
        must(set_attribute(path, 0), "chattr");
        must(set_attribute(folder, attributes[i].attribute), "chattr");
        must_explain(shmalloc_destroy(inside), -EPERM, inside, "its folder", attributes[i].remedy,
                     NULL);
        must(set_attribute(folder, 0), "chattr");
    }
    must(set_attribute(folder, FS_IMMUTABLE_FL), "chattr");
    snprintf(inside, sizeof(inside), "%s/new", folder);
    must_explain(open_with(inside, SHMALLOC_CREATE), -EPERM, inside, "its folder is immutable",
                 "chattr -i", NULL);
    must(set_attribute(folder, 0), "chattr");
    snprintf(inside, sizeof(inside), "%s/heap", folder);
    must_work(shmalloc_destroy(inside));
    cr_assert_eq(rmdir(folder), 0);
}

/* The heap is open while the attribute comes: what needs the file is refused, nothing is lost. */
Test(messages, an_attribute_set_meanwhile)
{
    const char *path = fixture_path(&f, "open");
    shmalloc_heap *heap = heap_create(path, 0);
    shmalloc_ref ref = 0, large = 0;
    must_work(shmalloc_ref_alloc(heap, 3 << 20, &ref));
    pattern_fill(shmalloc_ptr(heap, ref), 0, 3 << 20, 1);
    if (!set_attribute(path, FS_IMMUTABLE_FL)) {
        shmalloc_close(heap);
        heap_suite_end();
        cr_skip_test("attributes cannot be set here");
    }
    must_explain(shmalloc_ref_alloc(heap, 20 << 20, &large), -EPERM, path, "immutable", "chattr -i",
                 NULL);
    must_work(shmalloc_ref_free(heap, &ref));
    must(shmalloc_trim(heap) == 0, "%s", shmalloc_errmsg());
    must_work(shmalloc_ref_alloc(heap, 3 << 20, &ref));
    must(set_attribute(path, 0), "chattr");
    must_work(shmalloc_ref_alloc(heap, 20 << 20, &large));
    must_work(shmalloc_ref_free(heap, &large));
    must_work(shmalloc_ref_free(heap, &ref));
    must(shmalloc_trim(heap) > 0, "%s", shmalloc_errmsg());
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}

/* ---- heaps of another kind ---- */

static struct smf_header header;
static char foreign[256];

static void read_header(void)
{
    snprintf(foreign, sizeof(foreign), "%s", fixture_path(&f, "foreign"));
    if (access(foreign, F_OK) < 0) {
        shmalloc_options options = SHMALLOC_OPTIONS_INIT;
        shmalloc_heap *heap;
        options.flags = SHMALLOC_CREATE;
        options.layout = "queue";
        options.layout_version = 3;
        must_work(shmalloc_open(foreign, &options, &heap));
        must_work(shmalloc_close(heap));
    }
    int fd = open(foreign, O_RDONLY | O_CLOEXEC);
    must(pread(fd, &header, sizeof(header), 0) == sizeof(header), "pread");
    close(fd);
}

/* Store `header`, with a checksum that agrees; returns what an open answers. */
static int open_changed(unsigned flags)
{
    int fd = open(foreign, O_RDWR | O_CLOEXEC);
    header.checksum = smi_hash(&header, offsetof(struct smf_header, checksum));
    must(pwrite(fd, &header, sizeof(header), 0) == sizeof(header), "pwrite");
    close(fd);
    return open_with(foreign, flags);
}

/* Make one change to the identity, see what an open says, and take it back. */
#define changed(change, flags, code, ...)                                                          \
    do {                                                                                           \
        struct smf_header sound;                                                                   \
        read_header();                                                                             \
        sound = header;                                                                            \
        change;                                                                                    \
        must_explain(open_changed(flags), (code), foreign, __VA_ARGS__, NULL);                     \
        header = sound;                                                                            \
        must_work(open_changed(0));                                                                \
    } while (0)

Test(messages, heaps_of_another_library_or_machine)
{
    changed(header.magic ^= 1, 0, SHMALLOC_ENOTHEAP, "first word", "expected");
    char ours[32];
    snprintf(ours, sizeof(ours), "reads version %u", SMF_FORMAT_VERSION);
    changed(header.format_version = 99, 0, SHMALLOC_EVERSION, "version 99", ours,
            "use the library");
    changed(header.features_must = 8, 0, SHMALLOC_EVERSION, "features 0x8", "lacks",
            "newer library");
    changed(header.features_read_only = 4, 0, SHMALLOC_EVERSION, "features 0x4", "read-only",
            "newer library");
    changed(header.endian = __builtin_bswap32(SMF_ENDIAN), 0, SHMALLOC_EFOREIGN, "byte order",
            "04030201", "expected 01020304", "where it was made");
    changed(header.word_bits = 32, 0, SHMALLOC_EFOREIGN, "32-bit words", "64-bit words",
            "where it was made");
    changed(header.machine = 999, 0, SHMALLOC_EFOREIGN, "machine type 999", "this is machine type");
    changed(header.os_page_bytes = 65536, 0, SHMALLOC_EFOREIGN, "pages of 65536 bytes",
            "this kernel has", "same page size");
    changed(header.mutex_fingerprint = 0xabc, 0, SHMALLOC_EFOREIGN, "0000000000000abc", "C library",
            "link all programs");
    changed(header.mutex_bytes = 48, SHMALLOC_READ_ONLY, SHMALLOC_EFOREIGN, "48 bytes",
            "same C library");
    changed(header.arena_count = 70, 0, SHMALLOC_ECORRUPT, "70 arenas", "expected 1..64",
            "from a copy");
    changed(header.class_count = 7, 0, SHMALLOC_ECORRUPT, "classes", "format version",
            "from a copy");
}

Test(messages, layouts_of_another_program)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    read_header();
    options.layout = "tree";
    options.layout_version = 3;
    must_explain(shmalloc_open(foreign, &options, &heap), SHMALLOC_ELAYOUT, foreign,
                 "\"queue\" version 3", "expects \"tree\" version 3", "run the program", NULL);
    options.layout = "queue";
    options.layout_version = 4;
    must_explain(shmalloc_open(foreign, &options, &heap), SHMALLOC_ELAYOUT, foreign, "version 3",
                 "expects \"queue\" version 4", "convert", NULL);
}

Test(messages, heaps_that_are_damaged)
{
    read_header();
    int fd = open(foreign, O_RDWR | O_CLOEXEC);
    struct smf_state state, sound;
    must(pread(fd, &sound, sizeof(sound), SMF_STATE_OFFSET) == sizeof(sound), "pread");
    uint8_t byte = header.uuid[0] ^ 1;
    must(pwrite(fd, &byte, 1, offsetof(struct smf_header, uuid)) == 1, "pwrite");
    must_explain(open_with(foreign, 0), SHMALLOC_ECORRUPT, foreign, "checksum is", "its bytes give",
                 "from a copy", NULL);
    must(pwrite(fd, header.uuid, 1, offsetof(struct smf_header, uuid)) == 1, "pwrite");
    state = sound;
    state.max_size = sound.size / 2;
    must(pwrite(fd, &state, sizeof(state), SMF_STATE_OFFSET) == sizeof(state), "pwrite");
    must_explain(open_with(foreign, 0), SHMALLOC_ECORRUPT, foreign, "size 1048576",
                 "maximum 524288", "from a copy", NULL);
    state = sound;
    state.mark = 77;
    must(pwrite(fd, &state, sizeof(state), SMF_STATE_OFFSET) == sizeof(state), "pwrite");
    must_explain(open_with(foreign, 0), SHMALLOC_ECORRUPT, foreign, "mark is 77", "expected 1 to 3",
                 "from a copy", NULL);
    must(pwrite(fd, &sound, sizeof(sound), SMF_STATE_OFFSET) == sizeof(sound), "pwrite");
    must(ftruncate(fd, 600000) == 0, "ftruncate");
    must_explain(open_with(foreign, 0), SHMALLOC_ECORRUPT, foreign, "600000 bytes",
                 "the heap in it 1048576", "cut short", "from a copy", NULL);
    close(fd);
}

/* ---- options ---- */

static int open_sizes(uint64_t initial_size, uint64_t max_size)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = SHMALLOC_CREATE;
    options.initial_size = initial_size;
    options.max_size = max_size;
    return shmalloc_open(fixture_path(&f, "sizes"), &options, &heap);
}

Test(messages, sizes_out_of_range)
{
    const char *path = fixture_path(&f, "sizes");
    must_explain(open_sizes(0, (16ull << 40) + 1), -EINVAL, path, "17592186044417", "16 TiB", NULL);
    must_explain(open_sizes(8 << 20, 4 << 20), -EINVAL, path, "initial size 8388608",
                 "maximum size 4194304", NULL);
    cr_assert(access(path, F_OK) < 0, "half a heap was left");
    must_explain(shmalloc_set_max_size(f.heap, 1 << 20), -EINVAL, f.path, "1048576", "16 TiB",
                 NULL);
}

/* ---- blocks ---- */

static int alloc_in_a_heap_of_2_MiB(size_t size)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    shmalloc_ref ref = 0;
    options.flags = SHMALLOC_CREATE;
    options.max_size = 2 << 20;
    must_work(shmalloc_open(fixture_path(&f, "small"), &options, &heap));
    int rc = shmalloc_ref_alloc(heap, size, &ref);
    must(rc < 0 && ref == 0, "%zu bytes were to be had", size);
    char text[1024];
    snprintf(text, sizeof(text), "%s", shmalloc_errmsg());
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
    must(strstr(text, "at most 2097152 bytes") && strstr(text, "largest free run has") &&
             strstr(text, "raise the maximum"),
         "\"%s\"", text);
    return rc;
}

Test(messages, sizes_beyond_the_maximum)
{
    must_code(alloc_in_a_heap_of_2_MiB(3 << 20), SHMALLOC_EFULL);
    must_code(alloc_in_a_heap_of_2_MiB(SIZE_MAX / 2), SHMALLOC_EFULL);
    must_code(alloc_in_a_heap_of_2_MiB(SIZE_MAX), SHMALLOC_EFULL);
}

Test(messages, blocks_that_are_none)
{
    shmalloc_ref ref = 0, other;
    int local = 0;
    must_work(shmalloc_ref_alloc(f.heap, 0, &ref)); /* counts as 1 */
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(shmalloc_ref_alloc(f.heap, 100, &ref));
    other = ref + 16;
    must_explain(shmalloc_ref_free(f.heap, &other), SHMALLOC_EBADREF, f.path, "not the first byte",
                 "0x", "what an allocation gave", NULL);
    must_explain(shmalloc_free(f.heap, &local), SHMALLOC_EBADREF, f.path, "not in this heap", NULL);
    other = 1ull << 43;
    must_explain(shmalloc_ref_free(f.heap, &other), SHMALLOC_EBADREF, f.path, "0x80000000000",
                 NULL);
    other = ref;
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_explain(shmalloc_ref_free(f.heap, &other), SHMALLOC_EDOUBLEFREE, f.path, "free already",
                 "once", NULL);
    shmalloc_heap *reader;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(f.path, &options, &reader));
    must_explain(shmalloc_ref_alloc(reader, 8, &other), SHMALLOC_EREADONLY, f.path, "read-only",
                 "open it for writing", NULL);
    must_work(shmalloc_close(reader));
}
