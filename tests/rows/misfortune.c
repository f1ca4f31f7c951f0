/* SPDX-License-Identifier: MIT */
/*
 * misfortune.c - bad luck around the file: full, read-only and unfit file systems, limits,
 * descriptors closed under us, files removed or replaced. It has no row; its tests' names begin
 * with "luck".
 *
 * Each has its own code, a message that names the file, nothing lost and nothing half made left
 * behind; never a signal. Bad contents of files are in tests/unit/test_heap.c, limits of address
 * space and of file size in test_error.c.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "fuse.h"
#include "rows.h"

ROWS_SUITE(60);

static int open_with(const char *path, unsigned flags, shmalloc_heap **out)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = flags;
    return shmalloc_open(path, &options, out);
}

/* The last failure is explained, with the file's name and what helps. */
static void must_name(const char *path, const char *remedy)
{
    must(strstr(shmalloc_errmsg(), path), "\"%s\" does not name %s", shmalloc_errmsg(), path);
    must(strstr(shmalloc_errmsg(), remedy), "\"%s\" does not say \"%s\"", shmalloc_errmsg(),
         remedy);
}

/* ---- full file systems ---- */

enum { MOST = 4000, SIZE = 100000 }; /* 400 MB: XFS does not come smaller than 300 */

struct full {
    shmalloc_heap *heap;
    shmalloc_ref refs[MOST];
    int count;
};

static void check_contents(struct full *full)
{
    for (int i = 0; i < full->count; i++)
        if (full->refs[i])
            must(pattern_check(shmalloc_ptr(full->heap, full->refs[i]), SIZE, (uint64_t)i) == SIZE,
                 "block %d", i);
    must_be_sound(full->heap);
}

/* Allocate and fill until the answer is no; every block that was handed out takes a store to its
 * last byte. */
static void allocate_until_full(struct full *full, int from)
{
    int rc = 0;
    for (int i = from; rc == 0; i++) {
        must(i < MOST, "the file system is not small");
        if (full->refs[i])
            continue;
        rc = shmalloc_ref_alloc(full->heap, SIZE, &full->refs[i]);
        if (rc == 0)
            pattern_fill(shmalloc_ptr(full->heap, full->refs[i]), 0, SIZE, (uint64_t)i);
        full->count = i > full->count ? i : full->count;
    }
    must_code(rc, -ENOSPC);
    must_name("heap", "a larger file system");
    must(strstr(shmalloc_errmsg(), "free run"), "no largest free run in \"%s\"", shmalloc_errmsg());
    check_contents(full);
}

/* A full file system at creation, at growth and when a hole is to get storage again. */
static void use_full_file_system(const char *where)
{
    static struct full full;
    char path[256], filler[256];
    snprintf(path, sizeof(path), "%s/heap", where);
    snprintf(filler, sizeof(filler), "%s/filler", where);
    rows_fill(filler);
    must_code(open_with(path, SHMALLOC_CREATE, &full.heap), -ENOSPC);
    must_name(path, "a larger file system");
    must(access(path, F_OK) != 0, "half a heap was left");
    unlink(filler);
    full.heap = heap_create(path, 0);
    allocate_until_full(&full, 0);
    must(full.count > 10, "%d blocks fit", full.count);
    for (int i = 0; i < full.count; i += 2)
        must_work(shmalloc_ref_free(full.heap, &full.refs[i]));
    must(shmalloc_trim(full.heap) > SIZE, "no holes were made");
    rows_fill(filler); /* somebody else takes what the holes gave */
    allocate_until_full(&full, 0);
    unlink(filler);
    allocate_until_full(&full, 0);
    for (int i = 0; i < MOST; i++)
        must_work(shmalloc_ref_free(full.heap, &full.refs[i]));
    must_be_sound(full.heap);
    must_work(shmalloc_close(full.heap));
    must_be_sound_on_disk(path);
}

struct small {
    const char *type;
    uint64_t bytes;
};

static int on_small_file_system(void *arg)
{
    const struct small *small = arg;
    const char *where = fixture_path(&f, "mount");
    int rc = rows_mount(small->type, small->bytes, fixture_path(&f, "image"), where);
    if (rc == 0)
        use_full_file_system(where);
    return rc;
}

static void in_mount(worker_fn *fn, void *arg, const char *why_not)
{
    cr_assert_eq(mkdir(fixture_path(&f, "mount"), 0755), 0);
    int status = run_child(fn, arg);
    cr_assert_eq(rmdir(fixture_path(&f, "mount")), 0);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("%s", why_not);
    cr_assert_eq(status, 0, "%d", status);
}

Test(rows, luck_full_tmpfs)
{
    struct small small = {"tmpfs", 20 << 20};
    in_mount(on_small_file_system, &small, "no mount namespace");
}

Test(rows, luck_full_ext4)
{
    struct small small = {"ext4", 24 << 20};
    in_mount(on_small_file_system, &small, "no loop device, mkfs.ext4 or mount namespace");
}

Test(rows, luck_full_xfs)
{
    struct small small = {"xfs", 300 << 20};
    in_mount(on_small_file_system, &small, "no loop device, mkfs.xfs or mount namespace");
}

/* A container's /dev/shm. */
Test(rows, luck_tmpfs_of_64_MiB)
{
    struct small small = {"tmpfs", 64 << 20};
    in_mount(on_small_file_system, &small, "no mount namespace");
}

/* ---- files with holes ---- */

/* Of 24 blocks of 1 MiB that were never written, the program keeps six: what of them? */
enum { BLOCKS = 24, KEPT = 6, BLOCK = 1 << 20 };

static void make_unwritten(const char *path)
{
    shmalloc_heap *heap = heap_create(path, 0);
    shmalloc_ref refs[BLOCKS] = {0};
    char name[16];
    must_work(shmalloc_set_give_back(heap, SHMALLOC_NEVER, 0));
    for (int i = 0; i < BLOCKS; i++)
        must_work(shmalloc_ref_alloc(heap, BLOCK, &refs[i]));
    for (int i = 0; i < BLOCKS; i++) {
        snprintf(name, sizeof(name), "kept %d", i);
        if (i < KEPT)
            must_work(shmalloc_root_set(heap, name, 0, refs[i]));
        else
            must_work(shmalloc_ref_free(heap, &refs[i]));
    }
    must_work(shmalloc_close(heap));
}

/* As tools do that leave out zeros: what is zero gets no storage. The name may be another's, whose
 * inode stays. */
static void copy_with_holes(const char *from, const char *to)
{
    static const char zeros[4096];
    char block[4096];
    int in = open(from, O_RDONLY | O_CLOEXEC),
        out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    struct stat st;
    must(in >= 0 && out >= 0 && fstat(in, &st) == 0 && ftruncate(out, st.st_size) == 0, "%s",
         strerror(errno));
    for (off_t at = 0; at < st.st_size; at += sizeof(block)) {
        must(pread(in, block, sizeof(block), at) == sizeof(block), "pread");
        if (memcmp(block, zeros, sizeof(block)) != 0)
            must(pwrite(out, block, sizeof(block), at) == sizeof(block), "pwrite: %s",
                 strerror(errno));
    }
    close(in);
    close(out);
}

static uint64_t hash_of_file(const char *path)
{
    uint64_t hash = 0;
    char block[4096];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(fd >= 0, "%s", strerror(errno));
    while (read(fd, block, sizeof(block)) == sizeof(block))
        hash = hash * 31 + smi_hash(block, sizeof(block));
    close(fd);
    return hash;
}

/* All that the program has, and all that it can get, takes a store to every page. */
static int use_to_the_last_byte(const char *path)
{
    shmalloc_heap *heap = heap_open(path);
    shmalloc_ref ref;
    char name[16];
    int rc = 0, more = 0;
    for (int i = 0; i < KEPT; i++) {
        snprintf(name, sizeof(name), "kept %d", i);
        must_work(shmalloc_root_get(heap, name, 0, &ref));
        must(all_zero(shmalloc_ptr(heap, ref), BLOCK), "contents");
        pattern_fill(shmalloc_ptr(heap, ref), 0, BLOCK, (uint64_t)i);
    }
    for (; rc == 0 && more < 1000; more++) {
        ref = 0;
        if ((rc = shmalloc_ref_alloc(heap, BLOCK / 8, &ref)) == 0)
            pattern_fill(shmalloc_ptr(heap, ref), 0, BLOCK / 8, 1);
    }
    must_code(rc, -ENOSPC);
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
    must_be_sound_on_disk(path);
    return more - 1;
}

/* A reader of holes, for which there is too little room: only where reading takes storage is that
 * an error. */
static void read_without_room(const char *path, int takes_storage)
{
    shmalloc_heap *heap;
    shmalloc_ref ref;
    must_code(open_with(path, SHMALLOC_READ_ONLY, &heap), takes_storage ? -ENOSPC : 0);
    if (takes_storage) {
        must_name(path, "a larger file system");
        must(strstr(shmalloc_errmsg(), "holes") && strstr(shmalloc_errmsg(), "are free"), "\"%s\"",
             shmalloc_errmsg());
        return;
    }
    must_work(shmalloc_root_get(heap, "kept 0", 0, &ref));
    must(all_zero(shmalloc_ptr(heap, ref), BLOCK), "contents");
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}

/* And one for which there is room. */
static int read_to_the_last_byte(void *arg)
{
    shmalloc_heap *heap;
    shmalloc_ref ref;
    char name[16];
    must_work(open_with(arg, SHMALLOC_READ_ONLY, &heap));
    for (int i = 0; i < KEPT; i++) {
        snprintf(name, sizeof(name), "kept %d", i);
        must_work(shmalloc_root_get(heap, name, 0, &ref));
        must(all_zero(shmalloc_ptr(heap, ref), BLOCK), "contents");
    }
    must_be_sound(heap);
    return shmalloc_close(heap) < 0;
}

/* Leave `bytes` free. */
static void leave_free(const char *filler, uint64_t bytes)
{
    struct stat st;
    unlink(filler);
    rows_fill(filler);
    must(stat(filler, &st) == 0 && (uint64_t)st.st_size > bytes, "stat");
    must(truncate(filler, st.st_size - (off_t)bytes) == 0, "truncate");
}

/* A heap with holes where its words say storage: too little room for what is in use, then just
 * enough. */
static void use_with_holes(const char *path, const char *filler, int takes_storage)
{
    shmalloc_heap *heap;
    leave_free(filler, KEPT * BLOCK / 2);
    uint64_t hash = hash_of_file(path), stored = rows_storage(path);
    must_code(open_with(path, 0, &heap), -ENOSPC);
    must_name(path, "a larger file system");
    must(strstr(shmalloc_errmsg(), "holes") && strstr(shmalloc_errmsg(), "bytes of storage"),
         "\"%s\"", shmalloc_errmsg());
    must(hash_of_file(path) == hash, "the heap was changed");
    read_without_room(path, takes_storage);
    /* ext4's list of extents may be longer */
    must(rows_storage(path) <= stored + 65536, "took %llu bytes, had %llu",
         (unsigned long long)rows_storage(path), (unsigned long long)stored);
    leave_free(filler, (KEPT + 2) * BLOCK);
    if (takes_storage)
        must(read_to_the_last_byte((void *)path) == 0, "%s", shmalloc_errmsg());
    int more = use_to_the_last_byte(path);
    must(more >= 4 && more < (BLOCKS - KEPT) * 8, "%d blocks more", more);
}

static int copies_with_holes(void *arg)
{
    const struct small *small = arg;
    char path[256], filler[256];
    const char *where = fixture_path(&f, "mount");
    int rc = rows_mount(small->type, small->bytes, fixture_path(&f, "image"), where);
    if (rc != 0)
        return rc;
    snprintf(path, sizeof(path), "%s/heap", where);
    snprintf(filler, sizeof(filler), "%s/filler", where);
    make_unwritten(f.path);
    copy_with_holes(f.path, path);
    use_with_holes(path, filler, strcmp(small->type, "tmpfs") == 0);
    unlink(filler);
    unlink(path);
    /* The same under the heap's own inode: restored from a copy in place. */
    make_unwritten(path);
    unlink(f.path);
    copy_with_holes(path, f.path);
    copy_with_holes(f.path, path);
    use_with_holes(path, filler, strcmp(small->type, "tmpfs") == 0);
    return 0;
}

Test(rows, luck_a_copy_with_holes_on_a_full_tmpfs)
{
    struct small small = {"tmpfs", 40 << 20};
    in_mount(copies_with_holes, &small, "no mount namespace");
}

Test(rows, luck_a_copy_with_holes_on_a_full_ext4)
{
    struct small small = {"ext4", 48 << 20};
    in_mount(copies_with_holes, &small, "no loop device, mkfs.ext4 or mount namespace");
}

/* A heap that nobody has attached: its creator finds the fixed base taken, and gives up. */
static void make_unattached(const char *path)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    void *base = (void *)(uintptr_t)0x310000000000;
    options.flags = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE;
    options.base = base;
    options.max_size = 1 << 30;
    must(mmap(base, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) ==
             base,
         "mmap");
    must_code(shmalloc_open(path, &options, &heap), SHMALLOC_EADDRESS);
    must(munmap(base, 4096) == 0, "munmap");
}

static int open_marked(void *arg)
{
    rows_mark_begin();
    shmalloc_heap *heap = heap_open(arg);
    rows_mark_end();
    return shmalloc_close(heap) < 0;
}

/* It has all its storage since creation, so nothing is looked for; its copy has holes. */
static int never_attached(void *arg)
{
    char path[256], copy[256], filler[256];
    static struct rows_calls first, later;
    const char *where = fixture_path(&f, "mount");
    shmalloc_heap *heap;
    (void)arg;
    int rc = rows_mount("tmpfs", 16 << 20, NULL, where);
    if (rc != 0)
        return rc;
    snprintf(path, sizeof(path), "%s/heap", where);
    snprintf(copy, sizeof(copy), "%s/copy", where);
    snprintf(filler, sizeof(filler), "%s/filler", where);
    make_unattached(path);
    copy_with_holes(path, copy);
    rows_fill(filler);
    must_code(open_with(copy, 0, &heap), -ENOSPC);
    must(strstr(shmalloc_errmsg(), "holes"), "\"%s\"", shmalloc_errmsg());
    rc = rows_count_calls(open_marked, path, &first);
    if (rc != 0)
        return rc;
    must(rows_count_calls(open_marked, path, &later) == 0, "the second open");
    must(first.total == later.total, "the first open took %llu calls, the second %llu",
         (unsigned long long)first.total, (unsigned long long)later.total);
    unlink(filler);
    must_work(open_with(copy, 0, &heap));
    rows_fill(filler);
    memset(smi_at(heap, heap->areas.end - 4096), 0, 4096); /* where nothing is yet */
    must_be_sound(heap);
    return shmalloc_close(heap) < 0;
}

Test(rows, luck_heaps_that_were_never_attached)
{
    in_mount(never_attached, NULL, "no mount namespace, or no ptrace");
}

/* ---- little memory ---- */

enum { MEMORY = 24 << 20, BELOW_MEMORY = 12 << 20 };

/* Fill a heap on a tmpfs; what has been handed out is counted where the parent sees it. */
struct crowded {
    char group[128], path[256];
    uint64_t max_size;
    uint32_t blocks;
    int code;
};

static int fill_in_group(void *arg)
{
    struct crowded *c = arg;
    if (rows_join_group(c->group) < 0)
        return NOT_POSSIBLE;
    shmalloc_heap *heap = rows_heap(c->path, 0, c->max_size, 0);
    shmalloc_ref table;
    must(shmalloc_root_get_or_create(heap, "table", 0, MOST * sizeof(table), NULL, NULL, &table) ==
             SHMALLOC_CREATED,
         "%s", shmalloc_errmsg());
    shmalloc_ref *refs = shmalloc_ptr(heap, table);
    for (; c->blocks < MOST && (c->code = shmalloc_ref_alloc(heap, SIZE, &refs[c->blocks])) == 0;
         c->blocks++)
        pattern_fill(shmalloc_ptr(heap, refs[c->blocks]), 0, SIZE, c->blocks);
    return shmalloc_close(heap) < 0;
}

static int run_in_group(struct crowded *c, const char *name, uint64_t max_size)
{
    snprintf(c->path, sizeof(c->path), "%s", fixture_path(&f, name));
    c->max_size = max_size;
    c->blocks = 0;
    if (rows_make_group(c->group, MEMORY) < 0)
        return NOT_POSSIBLE;
    int status = run_child(fill_in_group, c);
    rmdir(c->group);
    return status;
}

/* A tmpfs file is memory. Where its group has none left, the kernel answers a growth not with an
 * error but by killing a process of the group: the heap takes that as it takes any death, and a
 * maximum below the limit avoids it. */
Test(rows, luck_a_memory_limit_kills_and_the_heap_lives)
{
    struct crowded *c = shared_memory(sizeof(*c));
    shmalloc_ref table;
    int status = run_in_group(c, "killed", 1 << 30);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("no memory control group can be made here");
    cr_assert_eq(status, -SIGKILL, "%d after %u blocks", status, c->blocks);
    cr_assert_gt(c->blocks, 100);
    f.heap = heap_open(c->path);
    must_work(shmalloc_root_get(f.heap, "table", 0, &table));
    const shmalloc_ref *refs = shmalloc_ptr(f.heap, table);
    for (uint32_t i = 0; i < c->blocks; i++)
        must(pattern_check(shmalloc_ptr(f.heap, refs[i]), SIZE, i) == SIZE, "block %u", i);
    must_be_sound(f.heap);
    cr_assert_eq(run_in_group(c, "bounded", BELOW_MEMORY), 0);
    must_code(c->code, SHMALLOC_EFULL);
    cr_assert_gt(c->blocks, 50);
}

/* ---- read-only file system ---- */

static int on_read_only_file_system(void *arg)
{
    (void)arg;
    const char *where = fixture_path(&f, "mount");
    char path[256];
    snprintf(path, sizeof(path), "%s/heap", where);
    int rc = rows_mount("tmpfs", 16 << 20, NULL, where);
    if (rc != 0)
        return rc;
    shmalloc_heap *heap = heap_create(path, 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 1000, &ref));
    pattern_fill(shmalloc_ptr(heap, ref), 0, 1000, 1);
    must_work(shmalloc_root_set(heap, "x", 0, ref));
    must_work(shmalloc_close(heap));
    if (mount(NULL, where, NULL, MS_REMOUNT | MS_RDONLY, NULL) < 0)
        return NOT_POSSIBLE;
    must_code(open_with(path, 0, &heap), -EROFS);
    must_name(path, "for reading only (SHMALLOC_READ_ONLY)");
    char other[300];
    snprintf(other, sizeof(other), "%s-2", path);
    must_code(open_with(other, SHMALLOC_CREATE, &heap), -EROFS);
    must_name(other, "remount");
    must_work(open_with(path, SHMALLOC_READ_ONLY, &heap));
    must_work(shmalloc_root_get(heap, "x", 0, &ref));
    must(pattern_check(shmalloc_ptr(heap, ref), 1000, 1) == 1000, "contents");
    must_be_sound(heap);
    return shmalloc_close(heap) < 0;
}

Test(rows, luck_read_only_file_system)
{
    in_mount(on_read_only_file_system, NULL, "no mount namespace");
}

/* ---- overlayfs ---- */

struct overlay {
    char heap[300], merged[300];
};

/* An overlay with a heap in its lower layer, which has the root "old". */
static int mount_overlay(struct overlay *o, const char *where, const char *name, int is_writable)
{
    snprintf(o->merged, sizeof(o->merged), "%.200s/%s/merged", where, name);
    snprintf(o->heap, sizeof(o->heap), "%.200s/%s/merged/heap", where, name);
    must(chdir(where) == 0 && mkdir(name, 0755) == 0 && chdir(name) == 0, "%s: %s", name,
         strerror(errno));
    must(mkdir("lower", 0755) == 0 && mkdir("upper", 0755) == 0 && mkdir("work", 0755) == 0 &&
             mkdir("merged", 0755) == 0,
         "mkdir");
    shmalloc_heap *heap = heap_create("lower/heap", 0);
    must_work(shmalloc_root_set(heap, "old", 0, 0));
    must_work(shmalloc_close(heap));
    must(chmod("lower/heap", 0644) == 0, "chmod");
    const char *options =
        is_writable ? "lowerdir=lower,upperdir=upper,workdir=work" : "lowerdir=lower:upper";
    return mount("overlay", "merged", "overlay", 0, options) < 0 ? NOT_POSSIBLE : 0;
}

/* Where a mapping does not keep a process's lock, so that who lives would be taken for dead,
 * several processes must not write. Reading what is there works, and so does one writer who says
 * that he is alone. */
static int on_overlay(void *arg)
{
    struct overlay o[2];
    shmalloc_heap *heap, *other;
    shmalloc_ref ref;
    const char *where = fixture_path(&f, "mount");
    char new_heap[400];
    (void)arg;
    if (geteuid() != 0 || rows_mount("tmpfs", 64 << 20, NULL, where) != 0 ||
        mount_overlay(&o[0], where, "a", 1) != 0 || mount_overlay(&o[1], where, "b", 0) != 0)
        return NOT_POSSIBLE;
    must_code(open_with(o[0].heap, 0, &heap), SHMALLOC_EFILESYSTEM);
    must_name(o[0].heap, "/dev/shm");
    must(strstr(shmalloc_errmsg(), "overlayfs"), "\"%s\" does not name overlayfs",
         shmalloc_errmsg());
    snprintf(new_heap, sizeof(new_heap), "%s/new", o[0].merged);
    must_code(open_with(new_heap, SHMALLOC_CREATE, &heap), SHMALLOC_EFILESYSTEM);
    must(access(new_heap, F_OK) != 0, "half a heap was left");
    for (int i = 0; i < 2; i++) {
        must_work(open_with(o[i].heap, SHMALLOC_READ_ONLY, &heap));
        must_work(shmalloc_root_get(heap, "old", 0, &ref));
        must_work(shmalloc_close(heap));
    }
    must_work(open_with(o[0].heap, SHMALLOC_ANY_FILE_SYSTEM, &heap));
    must_work(shmalloc_root_set(heap, "new", 0, 0));
    must_work(open_with(o[0].heap, SHMALLOC_READ_ONLY, &other));
    must_work(shmalloc_root_get(other, "new", 0, &ref));
    must_work(shmalloc_close(other));
    return shmalloc_close(heap) < 0;
}

Test(rows, luck_overlayfs_is_refused)
{
    in_mount(on_overlay, NULL, "no overlay");
}

/* ---- FUSE ---- */

static int on_fuse(void *arg)
{
    (void)arg;
    const char *where = fixture_path(&f, "mount");
    char path[256];
    shmalloc_heap *heap;
    snprintf(path, sizeof(path), "%s/heap", where);
    int rc = fuse_mount(where);
    if (rc != 0)
        return rc;
    must_code(open_with(path, SHMALLOC_CREATE, &heap), SHMALLOC_EFILESYSTEM);
    must_name(path, "put it on a local file system");
    must(strstr(shmalloc_errmsg(), "FUSE"), "\"%s\" does not name FUSE", shmalloc_errmsg());
    must(access(path, F_OK) != 0, "half a heap was left");
    close(open(path, O_RDWR | O_CREAT | O_EXCL, 0600));
    must_code(open_with(path, 0, &heap), SHMALLOC_EFILESYSTEM);
    /* it is empty */
    must_code(open_with(path, SHMALLOC_ANY_FILE_SYSTEM, &heap), SHMALLOC_ENOTHEAP);
    must_code(open_with(path, SHMALLOC_READ_ONLY, &heap), SHMALLOC_ENOTHEAP);
    fuse_end(where);
    return 0;
}

Test(rows, luck_fuse_is_refused)
{
    in_mount(on_fuse, NULL, "no FUSE");
}

/* ---- descriptors ---- */

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    for (int fd = 0; fd < 256; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Whatever number of descriptors is left, open works or says EMFILE, and gives all of them back. */
static int few_descriptors(void *arg)
{
    int create = *(int *)arg, worked = 0, refused = 0;
    struct rlimit all, few;
    shmalloc_heap *heap;
    closefrom(3);
    getrlimit(RLIMIT_NOFILE, &all);
    if (!create)
        must_work(shmalloc_close(heap_create(f.path, 0)));
    unsigned mappings = rows_mappings();
    for (few = all, few.rlim_cur = 3; !worked; few.rlim_cur++) {
        must(setrlimit(RLIMIT_NOFILE, &few) == 0, "setrlimit");
        int rc = open_with(f.path, create ? SHMALLOC_CREATE : 0, &heap);
        setrlimit(RLIMIT_NOFILE, &all);
        worked = rc == 0;
        refused += !worked;
        if (worked)
            break;
        must_code(rc, -EMFILE);
        must_name(f.path, "ulimit -n");
        must(open_descriptors() == 3, "%u descriptors are open", open_descriptors());
        must(rows_mappings() <= mappings + 1, "%u mappings, there were %u", rows_mappings(),
             mappings);
    }
    must(refused > 0, "nothing was refused");
    fprintf(stderr, "%s needs %d descriptors for a moment\n", create ? "creating" : "opening",
            refused);
    return shmalloc_close(heap) < 0;
}

Test(rows, luck_no_descriptor_left_at_open)
{
    int create = 0;
    cr_assert_eq(run_child(few_descriptors, &create), 0);
}

Test(rows, luck_no_descriptor_left_at_creation)
{
    int create = 1;
    cr_assert_eq(run_child(few_descriptors, &create), 0);
}

/* A daemon closes all that it does not know, and its descriptors' numbers become other files'. */
static int daemon_life(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = heap_create(f.path, 0);
    const char *other = fixture_path(&f, "not ours");
    closefrom(3);
    for (int i = 0; i < 8; i++)
        must(open(other, O_RDWR | O_CREAT, 0600) >= 0, "open");
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 20 << 20, &ref)); /* growth needs a descriptor */
    pattern_fill(shmalloc_ptr(heap, ref), 0, 20 << 20, 1);
    must_be_sound(heap);
    must_work(shmalloc_ref_free(heap, &ref));
    must(shmalloc_trim(heap) > 0, "%s", shmalloc_errmsg());
    must_work(shmalloc_sync(heap, 0, 0));
    must_work(shmalloc_close(heap));
    struct stat st;
    must(stat(other, &st) == 0 && st.st_size == 0, "the other file was written to");
    must_work(shmalloc_open(f.path, NULL, &heap));
    return shmalloc_close(heap) < 0;
}

Test(rows, luck_descriptors_closed_by_a_daemon)
{
    cr_assert_eq(run_child(daemon_life, NULL), 0);
    must_be_sound_on_disk(f.path);
}

/* The same, and the file has gone: what has storage can be used, more storage cannot be had. */
static int daemon_without_file(void *arg)
{
    (void)arg;
    shmalloc_heap *heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0, small = 0;
    must_work(shmalloc_ref_alloc(heap, 100, &small));
    closefrom(3);
    unlink(f.path);
    must_code(shmalloc_ref_alloc(heap, 20 << 20, &ref), -EBADF);
    must(ref == 0, "the word was written");
    must_name(f.path, "open the heap again");
    for (int i = 0; i < 100000; i++) {
        must_work(shmalloc_ref_free(heap, &small));
        must_work(shmalloc_ref_alloc(heap, 100, &small));
    }
    must_code(shmalloc_check(heap), -EBADF); /* walkers read through the descriptor */
    must(shmalloc_close(heap) < 0, "close says that all is on disk");
    return 0;
}

Test(rows, luck_descriptors_closed_and_file_removed)
{
    cr_assert_eq(run_child(daemon_without_file, NULL), 0);
}

/* ---- removed, replaced ---- */

static void use_a_lot(shmalloc_heap *heap)
{
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 20 << 20, &ref));
    pattern_fill(shmalloc_ptr(heap, ref), 0, 20 << 20, 7);
    must(pattern_check(shmalloc_ptr(heap, ref), 20 << 20, 7) == 20 << 20, "contents");
    must_work(shmalloc_ref_free(heap, &ref));
    must(shmalloc_trim(heap) > 0, "%s", shmalloc_errmsg());
    must_be_sound(heap);
}

Test(rows, luck_a_file_removed_while_open)
{
    shmalloc_heap *other = NULL;
    f.heap = heap_create(f.path, 0);
    cr_assert_eq(unlink(f.path), 0);
    use_a_lot(f.heap);
    must_code(open_with(f.path, 0, &other), -ENOENT);
    use_a_lot(f.heap);
}

Test(rows, luck_a_file_replaced_while_open)
{
    char aside[256];
    shmalloc_ref ref = 0, got;
    snprintf(aside, sizeof(aside), "%s", fixture_path(&f, "new"));
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_ref_alloc(f.heap, 10, &ref));
    must_work(shmalloc_root_set(f.heap, "old", 0, ref));
    must_work(shmalloc_close(heap_create(aside, 0)));
    cr_assert_eq(rename(aside, f.path), 0);
    shmalloc_heap *other = heap_open(f.path);
    cr_assert_neq(other, f.heap, "two files are one heap");
    must_code(shmalloc_root_get(other, "old", 0, &got), SHMALLOC_ENOROOT);
    use_a_lot(f.heap);
    use_a_lot(other);
    must_work(shmalloc_root_get(f.heap, "old", 0, &got));
    must_work(shmalloc_close(other));
}

/* ---- limits ---- */

enum { LIMIT = 150 << 20, PIECE = 13 * SMF_PAGE };

/* Blocks of 13 pages until the answer is no; bytes. */
static uint64_t take_all(shmalloc_heap *heap, int code)
{
    uint64_t got = 0;
    int rc = 0;
    while (rc == 0) {
        shmalloc_ref ref = 0;
        rc = shmalloc_ref_alloc(heap, PIECE, &ref);
        if (rc == 0)
            memset(shmalloc_ptr(heap, ref), 1, PIECE);
        got += rc == 0 ? PIECE : 0;
    }
    must_code(rc, code);
    return got;
}

static uint64_t data_now(void)
{
    unsigned long kib = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    must(status, "/proc/self/status: %s", strerror(errno));
    while (fgets(line, sizeof(line), status))
        sscanf(line, "VmData: %lu", &kib);
    fclose(status);
    return kib * 1024ull;
}

static int limit_on_data(void *arg)
{
    (void)arg;
    shmalloc_heap *heap;
    struct rlimit limit = {data_now() + LIMIT, data_now() + LIMIT};
    must(setrlimit(RLIMIT_DATA, &limit) == 0, "setrlimit");
    must_work(shmalloc_open_private(NULL, &heap));
    uint64_t got = take_all(heap, -ENOMEM);
    must(got > LIMIT / 100 * 95, "%llu of %d bytes", (unsigned long long)got, LIMIT);
    return shmalloc_close(heap) < 0;
}

Test(rows, luck_a_limit_on_data_can_be_used_up)
{
    if (TEST_ASAN)
        ROWS_SKIP("the sanitizer's own memory does not fit under the limit");
    cr_assert_eq(run_child(limit_on_data, NULL), 0);
}

static int limit_on_file_size(void *arg)
{
    (void)arg;
    struct rlimit limit = {LIMIT, LIMIT};
    must(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
    shmalloc_heap *heap = heap_create(f.path, 0);
    uint64_t got = take_all(heap, -EFBIG);
    must(got > LIMIT / 100 * 95, "%llu of %d bytes", (unsigned long long)got, LIMIT);
    must_be_sound(heap);
    return shmalloc_close(heap) < 0;
}

/* The kernel would send SIGXFSZ, which ends the process. */
Test(rows, luck_a_limit_on_file_size_can_be_used_up)
{
    cr_assert_eq(run_child(limit_on_file_size, NULL), 0);
}

/* ---- core dumps ---- */

/* Bytes of a heap's addresses that a core dump would have. */
static uint64_t dumped_bytes(const shmalloc_heap *heap)
{
    FILE *smaps = fopen("/proc/self/smaps", "r");
    must(smaps, "/proc/self/smaps: %s", strerror(errno));
    char line[512];
    uint64_t sum = 0;
    unsigned long from, to, size = 0;
    while (fgets(line, sizeof(line), smaps)) {
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            size = from >= (uintptr_t)heap->base && from < (uintptr_t)heap->base + heap->reserved
                       ? to - from
                       : 0;
        else if (strncmp(line, "VmFlags:", 8) == 0 && !strstr(line, " dd"))
            sum += size;
    }
    fclose(smaps);
    return sum;
}

Test(rows, luck_a_core_dump_has_what_is_used)
{
    shmalloc_heap *heap;
    must_work(shmalloc_open_private(NULL, &heap));
    cr_assert_not_null(shmalloc_malloc(heap, 50 << 20));
    cr_assert_geq(dumped_bytes(heap), 50 << 20);
    cr_assert_leq(dumped_bytes(heap), 128 << 20);
    must_work(shmalloc_close(heap));
    f.heap = heap_create(f.path, 0); /* the file has it */
    cr_assert_eq(dumped_bytes(f.heap), 0);
}

/* ---- many heaps ---- */

enum { MOST_HEAPS = 2000, LEAST_HEAPS = 200 };

static void *do_nothing(void *arg)
{
    return arg;
}

/* The program has addresses left: for a mapping and for a thread. */
static void must_have_addresses(void)
{
    pthread_t thread;
    void *area =
        mmap(NULL, 1u << 30, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(area != MAP_FAILED, "mmap: %s", strerror(errno));
    munmap(area, 1u << 30);
    must(pthread_create(&thread, NULL, do_nothing, NULL) == 0 && pthread_join(thread, NULL) == 0,
         "no thread");
}

static int many_heaps(void *arg)
{
    (void)arg;
    static shmalloc_heap *heaps[MOST_HEAPS];
    struct rlimit files;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    char path[256];
    must(getrlimit(RLIMIT_NOFILE, &files) == 0, "getrlimit");
    files.rlim_cur = files.rlim_max;
    must(setrlimit(RLIMIT_NOFILE, &files) == 0, "setrlimit");
    int count = files.rlim_cur < MOST_HEAPS + 100 ? (int)files.rlim_cur - 100 : MOST_HEAPS;
    if (count < LEAST_HEAPS)
        return NOT_POSSIBLE;
    options.flags = SHMALLOC_CREATE;
    for (int i = 0; i < count; i++) {
        shmalloc_ref ref = 0;
        snprintf(path, sizeof(path), "%s.%d", f.path, i);
        must_work(shmalloc_open(path, &options, &heaps[i]));
        must(heaps[i]->reserved >= 64u << 20, "heap %d has %llu bytes of addresses", i,
             (unsigned long long)heaps[i]->reserved);
        if (i % 100 == 0)
            must_work(shmalloc_ref_alloc(heaps[i], 40u << 20, &ref));
        unlink(path);
    }
    must_have_addresses();
    for (int i = 0; i < count; i++)
        must_work(shmalloc_close(heaps[i]));
    return 0;
}

Test(rows, luck_thousands_of_heaps)
{
    int status = run_child(many_heaps, NULL);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("too few descriptors");
    cr_assert_eq(status, 0);
}

static int private_heaps(void *arg)
{
    (void)arg;
    static shmalloc_heap *heaps[300];
    for (int i = 0; i < 300; i++) {
        must_work(shmalloc_open_private(NULL, &heaps[i]));
        must(shmalloc_malloc(heaps[i], 64u << 20), "heap %d: %s", i, shmalloc_errmsg());
    }
    must_have_addresses();
    for (int i = 0; i < 300; i++)
        must_work(shmalloc_close(heaps[i]));
    return 0;
}

Test(rows, luck_hundreds_of_private_heaps)
{
    cr_assert_eq(run_child(private_heaps, NULL), 0);
}

/* Heaps under a limit leave a share of it to the program; then there is an error, and closing one
 * helps. */
static int heaps_under_a_limit(void *arg)
{
    (void)arg;
    static shmalloc_heap *heaps[500];
    struct rlimit limit = {2u << 30, 2u << 30};
    char path[256];
    int count = 0, rc = 0;
    must(setrlimit(RLIMIT_AS, &limit) == 0, "setrlimit");
    while (rc == 0 && count < 500) {
        snprintf(path, sizeof(path), "%s.%d", f.path, count);
        rc = open_with(path, SHMALLOC_CREATE, &heaps[count]);
        count += rc == 0;
    }
    must(count >= 5, "%d heaps", count);
    must_code(rc, SHMALLOC_EADDRESS);
    must_name(path, "close some");
    void *area =
        mmap(NULL, 64 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    must(area != MAP_FAILED, "mmap: %s", strerror(errno));
    while (count-- > 0)
        must_work(shmalloc_close(heaps[count]));
    return 0;
}

Test(rows, luck_many_heaps_under_a_limit_on_addresses)
{
    if (TEST_ASAN)
        ROWS_SKIP("the sanitizer's own shadow does not fit under the limit");
    cr_assert_eq(run_child(heaps_under_a_limit, NULL), 0);
}

/* A maximum bounds what is reserved; it can be raised to a multiple at once. */
Test(rows, luck_a_small_maximum_takes_few_addresses)
{
    shmalloc_ref ref = 0;
    f.heap = rows_heap(f.path, 0, 8 << 20, 0);
    cr_assert_leq(f.heap->reserved, 16ull * (8 << 20));
    must_work(shmalloc_set_max_size(f.heap, 100 << 20));
    must_work(shmalloc_ref_alloc(f.heap, 50 << 20, &ref));
    must_work(shmalloc_ref_free(f.heap, &ref));
}

/* ---- fixed base ---- */

Test(rows, luck_the_fixed_base_is_taken)
{
    void *base = (void *)(uintptr_t)0x300000000000;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap = NULL;
    options.flags = SHMALLOC_CREATE;
    options.base = base;
    options.max_size = 1 << 30;
    must_work(shmalloc_open(f.path, &options, &heap));
    must_work(shmalloc_close(heap));
    char *last = (char *)base + (1 << 30) - 4096;
    char *taken = mmap(last, 4096, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    cr_assert_eq(taken, last);
    *taken = 5;
    must_code(shmalloc_open(f.path, NULL, &heap), SHMALLOC_EADDRESS);
    must_name(f.path, "must be mapped at 0x300000000000");
    cr_assert_eq(*taken, 5, "what was there is gone");
    munmap(taken, 4096);
    f.heap = heap_open(f.path);
    cr_assert_eq(shmalloc_ptr(f.heap, SMF_PAGE), (char *)base + SMF_PAGE);
}

/* ---- maximum ---- */

Test(rows, luck_a_maximum_below_the_file)
{
    shmalloc_heap *heap;
    must_work(shmalloc_close(rows_heap(f.path, 8 << 20, 16 << 20, 0)));
    int fd = open(f.path, O_RDWR | O_CLOEXEC);
    uint64_t max = 4 << 20;
    must(pwrite(fd, &max, sizeof(max), SMF_STATE_OFFSET + offsetof(struct smf_state, max_size)) ==
             sizeof(max),
         "pwrite");
    close(fd);
    must_code(open_with(f.path, 0, &heap), SHMALLOC_ECORRUPT);
    must_name(f.path, "from a copy");
}
