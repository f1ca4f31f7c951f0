/* SPDX-License-Identifier: MIT */
/* os.c - the only module that talks to the kernel; see os.h. */
#include "platform/os.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

#include "platform/direct.h" /* after the system's: it takes names of theirs */
#include "platform/direct_mutex.h"
#include "platform/hash.h"

#define MAP_ALIGNMENT (2ull << 20)

/* ---- platform ---- */

static uint32_t machine(void)
{
#if defined(__x86_64__)
    return EM_X86_64;
#elif defined(__aarch64__)
    return EM_AARCH64;
#elif defined(__riscv)
    return EM_RISCV;
#elif defined(__powerpc64__)
    return EM_PPC64;
#elif defined(__s390x__)
    return EM_S390;
#else
#error "which machine is this? add its ELF number"
#endif
}

uint32_t smi_os_page_bytes(void)
{
    return (uint32_t)sysconf(_SC_PAGESIZE);
}

int smi_os_mutex_init(void *mutex)
{
    _Static_assert(sizeof(pthread_mutex_t) <= SMI_MUTEX_WORDS * sizeof(uint64_t),
                   "a mutex fits its place");
    pthread_mutexattr_t attr;
    int rc = pthread_mutexattr_init(&attr);
    if (rc != 0)
        return -rc;
    rc = pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    if (rc == 0)
        rc = pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    if (rc == 0)
        rc = pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ERRORCHECK);
    if (rc == 0)
        rc = pthread_mutex_init(mutex, &attr);
    pthread_mutexattr_destroy(&attr);
    return -rc;
}

int smi_os_mutex_lock_until(void *mutex, uint64_t deadline)
{
    struct timespec at;
    /* Neither ThreadSanitizer nor musl knows pthread_mutex_clocklock; there, a clock that is set
     * back lengthens a wait. */
#if defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
    uint64_t until = smi_os_now() + (deadline - smi_os_clock());
    at = (struct timespec){(time_t)(until / 1000000000ull), (long)(until % 1000000000ull)};
    return pthread_mutex_timedlock(mutex, &at);
#else
    at = (struct timespec){(time_t)(deadline / 1000000000ull), (long)(deadline % 1000000000ull)};
    return pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &at);
#endif
}

int smi_os_platform(struct smi_platform *out)
{
    uint64_t fresh[SMI_MUTEX_WORDS] = {0};
    int rc = smi_os_mutex_init(fresh);
    if (rc < 0)
        return rc;
    out->machine = machine();
    out->os_page_bytes = smi_os_page_bytes();
    out->mutex_bytes = sizeof(pthread_mutex_t);
    out->mutex_fingerprint = smi_hash(fresh, sizeof(pthread_mutex_t));
    return 0;
}

/* ---- files ---- */

static struct smi_file_info info_of(const struct stat *st)
{
    return (struct smi_file_info){
        .size = (uint64_t)st->st_size,
        .device = st->st_dev,
        .inode = st->st_ino,
        .blocks = (uint64_t)st->st_blocks * 512,
        .mode = st->st_mode,
        .links = st->st_nlink,
    };
}

int smi_os_stat(int fd, struct smi_file_info *out)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    *out = info_of(&st);
    return 0;
}

int smi_os_stat_path(const char *path, int follow, struct smi_file_info *out)
{
    struct stat st;
    if (fstatat(AT_FDCWD, path, &st, follow ? 0 : AT_SYMLINK_NOFOLLOW) < 0)
        return -errno;
    *out = info_of(&st);
    return 0;
}

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* Attributes of a file, by statx(2), which is not in every C library. */
static uint64_t attributes_of(int fd, const char *path)
{
    struct {
        uint32_t mask, block_size;
        uint64_t attributes, others[30];
    } found = {0};
    _Static_assert(sizeof(found) == 256, "struct statx");
    const unsigned type_only = 1;
    long rc = fd < 0 ? syscall(SYS_statx, AT_FDCWD, path, 0, type_only, &found)
                     : syscall(SYS_statx, fd, "", AT_EMPTY_PATH, type_only, &found);
    return rc < 0 ? 0 : found.attributes;
}

unsigned smi_os_guards(int fd, const char *path)
{
    unsigned guards = 0;
    int seals = fd < 0 ? -1 : fcntl(fd, F_GET_SEALS); /* -1: not a memfd */
    uint64_t attributes = attributes_of(fd, path);
    guards |= attributes & 0x10 ? SMI_IMMUTABLE : 0;
    guards |= attributes & 0x20 ? SMI_APPEND_ONLY : 0;
    if (seals < 0)
        return guards;
    guards |= seals & F_SEAL_WRITE ? SMI_SEAL_WRITE : 0;
    guards |= seals & F_SEAL_FUTURE_WRITE ? SMI_SEAL_FUTURE_WRITE : 0;
    guards |= seals & F_SEAL_GROW ? SMI_SEAL_GROW : 0;
    guards |= seals & F_SEAL_SHRINK ? SMI_SEAL_SHRINK : 0;
    return guards;
}

int smi_os_is_link(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISLNK(st.st_mode);
}

const char *smi_os_unfit_file_system(int fd)
{
    static const struct {
        uint32_t type; /* statfs(2) */
        const char *name;
    } unfit[] = {
        {0x6969, "NFS"},       {0x517b, "SMB"},         {0xfe534d42, "SMB2"}, {0xff534d42, "CIFS"},
        {0x65735546, "FUSE"},  {0x01021997, "9P"},      {0x00c36400, "Ceph"}, {0x5346414f, "AFS"},
        {0x73757245, "Coda"},  {0x0bd00bd0, "Lustre"},  {0x7461636f, "OCFS2"}, {0x01161970, "GFS2"},
        /* What maps a file of another file system: a lock is not pinned by a mapping. Who has a
         * file of a lower layer open does not see what the first writer and all after him store. */
        {0x794c7630, "overlayfs"}, {0x61756673, "aufs"},
    };
    struct statfs fs;
    if (fstatfs(fd, &fs) < 0)
        return NULL;
    for (size_t i = 0; i < sizeof(unfit) / sizeof(unfit[0]); i++)
        if ((uint32_t)fs.f_type == unfit[i].type)
            return unfit[i].name;
    return NULL;
}

uint64_t smi_os_free_for_reading(int fd)
{
    struct statfs fs;
    const uint32_t tmpfs = 0x01021994; /* statfs(2) */
    if (fstatfs(fd, &fs) < 0 || (uint32_t)fs.f_type != tmpfs || fs.f_blocks == 0)
        return UINT64_MAX;
    return (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
}

/* What open(2) answered, away from the numbers of standard input, output and errors: a program that
 * runs without them still writes there, and so do its libraries. A lock would move with the
 * description. */
static int settle(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO)
        return fd < 0 ? -errno : fd;
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    /* EINVAL: the limit is below such numbers */
    int rc = moved >= 0 ? moved : errno == EINVAL ? -EMFILE : -errno;
    close(fd);
    return rc;
}

int smi_os_open(const char *path, int read_only)
{
    return settle(open(path, (read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
}

int smi_os_reopen(int fd, int read_only)
{
    char name[32];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    int rc = smi_os_open(name, read_only);
    if (rc != -ENOENT && rc != -ENOTDIR)
        return rc;
    return fcntl(fd, F_GETFD) < 0 ? -EBADF : SHMALLOC_EPROC;
}

void smi_os_close(int fd)
{
    if (fd >= 0)
        close(fd);
}

int smi_os_mark(int fd, uint32_t mark)
{
    return lseek(fd, (off_t)mark, SEEK_SET) < 0 ? -errno : 0;
}

int smi_os_has_mark(int fd, uint32_t mark)
{
    return fd >= 0 && lseek(fd, 0, SEEK_CUR) == (off_t)mark;
}

static void directory_of(const char *path, char *out)
{
    const char *slash = strrchr(path, '/');
    size_t len = slash ? (size_t)(slash - path) + 1 : 0;
    if (len == 0)
        strcpy(out, ".");
    else
        snprintf(out, PATH_MAX, "%.*s", (int)len, path);
}

unsigned smi_os_guards_of_directory(const char *path)
{
    char directory[PATH_MAX];
    directory_of(path, directory);
    return smi_os_guards(-1, directory);
}

static int create_named(const char *path, uint32_t mode, char *temp_name)
{
    for (int i = 0; i < 100; i++) {
        uint32_t salt;
        smi_os_random(&salt, sizeof(salt));
        int len = snprintf(temp_name, PATH_MAX, "%s.%08x.new", path, salt);
        if (len >= PATH_MAX)
            return -ENAMETOOLONG;
        int made = open(temp_name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode), fd = settle(made);
        if (made >= 0 && fd < 0)
            unlink(temp_name);
        if (made >= 0 || fd != -EEXIST)
            return fd;
    }
    return -EEXIST;
}

int smi_os_create_unnamed(const char *path, uint32_t mode, char *temp_name)
{
    char directory[PATH_MAX];
    if (strlen(path) >= PATH_MAX)
        return -ENAMETOOLONG;
    directory_of(path, directory);
    temp_name[0] = 0;
    int fd = settle(open(directory, O_TMPFILE | O_RDWR | O_CLOEXEC, mode));
    if (fd == -EOPNOTSUPP || fd == -EISDIR || fd == -EINVAL)
        fd = create_named(path, mode, temp_name);
    if (fd >= 0 && fchmod(fd, mode) < 0) { /* whatever the umask */
        int rc = -errno;
        smi_os_close(fd);
        smi_os_discard(temp_name);
        return rc;
    }
    return fd;
}

int smi_os_publish(int fd, const char *path, const char *temp_name)
{
    char name[32];
    snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
    const char *from = temp_name[0] ? temp_name : name;
    /* A rename leaves no second name to be removed; not every file system can do it without
     * replacing. The call is not in every C library. */
    const unsigned no_replace = 1;
    if (temp_name[0] && syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, path, no_replace) == 0)
        return 0;
    int rc = 0;
    if (linkat(AT_FDCWD, from, AT_FDCWD, path, temp_name[0] ? 0 : AT_SYMLINK_FOLLOW) < 0)
        rc = -errno;
    smi_os_discard(temp_name);
    return rc;
}

void smi_os_discard(const char *temp_name)
{
    if (temp_name[0])
        unlink(temp_name);
}

int smi_os_unlink(const char *path)
{
    return unlink(path) < 0 ? -errno : 0;
}

int64_t smi_os_read(int fd, void *buf, size_t len, uint64_t offset)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pread(fd, (char *)buf + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    memset((char *)buf + done, 0, len - done);
    return (int64_t)done;
}

int smi_os_write(int fd, const void *buf, size_t len, uint64_t offset)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = pwrite(fd, (const char *)buf + done, len - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        done += (size_t)n;
    }
    return 0;
}

/* Beyond this limit the kernel would send SIGXFSZ, which ends the process. */
static int beyond_limit(uint64_t size)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
           size > limit.rlim_cur;
}

int smi_os_truncate(int fd, uint64_t size)
{
    struct stat st;
    int rc;
    if (beyond_limit(size) && (fstat(fd, &st) < 0 || size > (uint64_t)st.st_size))
        return -EFBIG;
    do
        rc = ftruncate(fd, (off_t)size);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

int smi_os_reserve(int fd, uint64_t offset, uint64_t len)
{
    int rc;
    do
        rc = fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

int smi_os_punch(int fd, uint64_t offset, uint64_t len)
{
    int rc;
    do
        rc = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)len);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

int smi_os_sync_file(int fd)
{
    return fdatasync(fd) < 0 ? -errno : 0;
}

int smi_os_sync_directory(const char *path)
{
    char directory[PATH_MAX];
    directory_of(path, directory);
    int fd = settle(open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    int rc = fd < 0 ? fd : fsync(fd) < 0 ? -errno : 0;
    smi_os_close(fd);
    return rc == -EINVAL ? 0 : rc; /* a file system whose directories cannot be synced */
}

int smi_os_next_data(int fd, uint64_t size, uint64_t *at, uint64_t *end)
{
    off_t start = lseek(fd, (off_t)*at, SEEK_DATA);
    if (start < 0 && errno != ENXIO && errno != EINVAL)
        return -errno;
    if (start < 0 && errno == EINVAL) { /* the file system does not tell: all of it */
        *end = size;
        return 0;
    }
    off_t stop = start < 0 ? start : lseek(fd, start, SEEK_HOLE);
    if (start < 0 || (uint64_t)start >= size) { /* the rest is a hole */
        *at = *end = size;
        return 0;
    }
    *at = (uint64_t)start;
    *end = stop < 0 || (uint64_t)stop > size ? size : (uint64_t)stop;
    return 0;
}

void smi_os_forget(int fd)
{
    (void)fdatasync(fd); /* what is not on the disk yet would stay */
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
}

int smi_os_sync_range(void *address, uint64_t len)
{
    return msync(address, len, MS_SYNC) < 0 ? -errno : 0;
}

/* ---- memory ---- */

static void *reserve_aligned(uint64_t len, uint64_t alignment)
{
    uint64_t slack = alignment > 4096 ? alignment : 0; /* every mapping begins at an OS page */
    char *area =
        mmap(NULL, len + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    if (slack == 0)
        return area;
    char *aligned = (char *)(((uintptr_t)area + alignment - 1) & ~(uintptr_t)(alignment - 1));
    if (aligned > area)
        munmap(area, (size_t)(aligned - area));
    munmap(aligned + len, (size_t)(area + alignment - aligned));
    return aligned;
}

void *smi_os_reserve_private(uint64_t len, uint64_t alignment)
{
    void *area = reserve_aligned(len, alignment);
    if (area)
        madvise(area, len, MADV_DONTDUMP); /* gcore would write all of it */
    return area;
}

void *smi_os_reserve_zeros(uint64_t len)
{
    void *area = mmap(NULL, len, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    madvise(area, len, MADV_DONTDUMP);
    return area;
}

uint64_t smi_os_address_limit(void)
{
    struct rlimit limit;
    return getrlimit(RLIMIT_AS, &limit) < 0 || limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX
                                                                               : limit.rlim_cur;
}

int smi_os_allow(void *address, uint64_t len)
{
    if (mprotect(address, len, PROT_READ | PROT_WRITE) < 0)
        return -errno;
    madvise(address, len, MADV_DODUMP);
    return 0;
}

int smi_os_empty(void *address, uint64_t len)
{
    if (madvise(address, len, MADV_DONTNEED) == 0)
        return 0;
    if (errno != EINVAL)
        return -errno;
    memset(address, 0, len); /* the program locked it (mlock), so the memory has to stay */
    return 0;
}

int smi_os_map(int fd, uint64_t len, int read_only, void *fixed, void **out)
{
    int protection = read_only ? PROT_READ : PROT_READ | PROT_WRITE;
    void *where = fixed ? fixed : reserve_aligned(len, MAP_ALIGNMENT);
    if (!where)
        return -ENOMEM;
    void *area =
        mmap(where, len, protection,
             MAP_SHARED | MAP_NORESERVE | (fixed ? MAP_FIXED_NOREPLACE : MAP_FIXED), fd, 0);
    if (area == MAP_FAILED) {
        int rc = -errno;
        if (!fixed)
            munmap(where, len);
        return rc == -EEXIST ? -EADDRINUSE : rc;
    }
    if (area != where) { /* a kernel older than MAP_FIXED_NOREPLACE took it as a hint */
        munmap(area, len);
        return -EADDRINUSE;
    }
    /* A core dump of a large heap would keep its dead owner's locks alive for seconds. */
    madvise(area, len, MADV_DONTDUMP);
    *out = area;
    return 0;
}

void smi_os_unmap(void *address, uint64_t len)
{
    if (address)
        munmap(address, len);
}

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static int advise(void *address, uint64_t len, int advice)
{
    return madvise(address, len, advice) < 0 ? -errno : 0;
}

int smi_os_populate(void *address, uint64_t len, int write)
{
    return advise(address, len, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
}

int smi_os_want_huge(void *address, uint64_t len)
{
    return advise(address, len, MADV_HUGEPAGE);
}

int smi_os_collapse(void *address, uint64_t len)
{
    return advise(address, len, MADV_COLLAPSE);
}

uint64_t smi_os_huge_bytes(const void *address, uint64_t len)
{
    char line[512];
    uint64_t sum = 0;
    int inside = 0;
    FILE *smaps = fopen("/proc/self/smaps", "re");
    while (smaps && fgets(line, sizeof(line), smaps)) {
        unsigned long from, to, kib;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = from >= (uintptr_t)address && from < (uintptr_t)address + len;
        else if (inside && (sscanf(line, "ShmemPmdMapped: %lu", &kib) == 1 ||
                            sscanf(line, "FilePmdMapped: %lu", &kib) == 1))
            sum += kib * 1024ull;
    }
    if (smaps)
        fclose(smaps);
    return sum;
}

void *smi_os_private(size_t len, size_t wiped)
{
    void *area =
        mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return NULL;
    if (wiped > 0 && madvise(area, wiped, MADV_WIPEONFORK) < 0) {
        munmap(area, len);
        return NULL;
    }
    return area;
}

/* ---- OFD locks ---- */

static struct flock byte_range(short type, uint64_t byte, uint64_t count)
{
    return (struct flock){
        .l_type = type, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = (off_t)count};
}

int smi_os_lock_byte(int fd, uint64_t byte)
{
    struct flock lock = byte_range(F_WRLCK, byte, 1);
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0)
        return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

int smi_os_unlock_byte(int fd, uint64_t byte)
{
    struct flock lock = byte_range(F_UNLCK, byte, 1);
    return fcntl(fd, F_OFD_SETLK, &lock) < 0 ? -errno : 0;
}

int smi_os_is_locked(int fd, uint64_t byte, uint64_t count)
{
    struct flock lock = byte_range(F_WRLCK, byte, count);
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0)
        return -errno;
    return lock.l_type != F_UNLCK;
}

int smi_os_hold_byte(int own, uint64_t byte, void **out)
{
    int rc = smi_os_lock_byte(own, byte);
    if (rc < 0)
        return rc;
    void *page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, own, 0);
    if (page == MAP_FAILED)
        return -errno;
    if (madvise(page, 4096, MADV_DONTFORK) < 0) {
        rc = -errno;
        munmap(page, 4096);
        return rc;
    }
    *out = page;
    return 0;
}

/* ---- who and when ---- */

static int read_text(const char *path, char *buf, size_t size)
{
    int fd = smi_os_open(path, 1);
    if (fd < 0)
        return fd;
    ssize_t n;
    do /* one read gives all of a text in /proc that is no longer than this */
        n = pread(fd, buf, size - 1, 0);
    while (n < 0 && errno == EINTR);
    int rc = n < 0 ? -errno : 0;
    smi_os_close(fd);
    buf[n < 0 ? 0 : n] = 0;
    return rc;
}

/* Of a file that Linux has in /proc: is it not mounted, not whole, or kept from us? */
static int of_proc(int rc)
{
    return rc == -ENOENT || rc == -ENOTDIR || rc == -EACCES || rc == -EPERM ? SHMALLOC_EPROC : rc;
}

int smi_os_boot_id(uint8_t out[16])
{
    char text[64];
    memset(out, 0, 16);
    int rc = read_text("/proc/sys/kernel/random/boot_id", text, sizeof(text));
    if (rc < 0)
        return of_proc(rc);
    uint8_t id[16] = {0}, any = 0;
    int digits = 0;
    text[strcspn(text, "\n")] = 0;
    for (int i = 0; i < 36; i++) {
        int hyphen = i == 8 || i == 13 || i == 18 || i == 23, c = text[i];
        int value = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
        if (hyphen ? c != '-' : value < 0) /* the end of a shorter text too */
            return SHMALLOC_EPROC;
        if (hyphen)
            continue;
        id[digits / 2] = (uint8_t)(id[digits / 2] << 4 | value);
        any |= id[digits++ / 2];
    }
    if (text[36] || !any)
        return SHMALLOC_EPROC;
    memcpy(out, id, 16);
    return 0;
}

int smi_os_pid_namespace(uint64_t *out)
{
    struct stat st;
    if (stat("/proc/self/ns/pid", &st) < 0)
        return of_proc(-errno);
    *out = st.st_ino;
    return 0;
}

/* A numeric field of proc(5)'s stat, 4 and more; 0 when it is not there. */
static uint64_t stat_field(const char *text, int number)
{
    const char *field = strrchr(text, ')'); /* the name may hold anything; field 3 follows it */
    for (int i = 2; field && i < number; i++)
        field = strchr(field + 1, ' ');
    return field ? strtoull(field + 1, NULL, 10) : 0;
}

/* Does /proc know processes by the ids that they have here? It may be mounted from another PID
 * namespace. */
static int proc_has_our_ids(void)
{
    char text[16];
    ssize_t len = readlink("/proc/self", text, sizeof(text) - 1);
    text[len > 0 ? len : 0] = 0;
    return strtol(text, NULL, 10) == getpid();
}

uint64_t smi_os_start_time(pid_t pid, pid_t tid)
{
    char path[64], text[1024];
    if (!proc_has_our_ids())
        return 0;
    snprintf(path, sizeof(path), "/proc/%d/task/%d/stat", (int)pid, (int)tid);
    return read_text(path, text, sizeof(text)) < 0 ? 0 : stat_field(text, 22);
}

unsigned smi_os_threads(void)
{
    char text[1024];
    return read_text("/proc/self/stat", text, sizeof(text)) < 0 ? 0
                                                                : (unsigned)stat_field(text, 20);
}

int smi_os_faults(pid_t pid, uint64_t *minor, uint64_t *major)
{
    char path[64], text[1024];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    int rc = read_text(path, text, sizeof(text));
    if (rc < 0)
        return rc;
    *minor = stat_field(text, 10);
    *major = stat_field(text, 12);
    return 0;
}

uint32_t smi_os_process_id(void)
{
    return (uint32_t)getpid();
}

uint32_t smi_os_user_id(void)
{
    return (uint32_t)getuid();
}

uint32_t smi_os_thread_id(void)
{
    return (uint32_t)syscall(SYS_gettid);
}

int smi_os_thread_exists(pid_t tid, uint64_t start_time)
{
    if (syscall(SYS_tgkill, getpid(), tid, 0) < 0 && errno == ESRCH)
        return 0;
    uint64_t now = start_time ? smi_os_start_time(getpid(), tid) : 0;
    return now == 0 || now == start_time; /* what cannot be told is no death */
}

int smi_os_thread_known(void)
{
    /* An error-checking mutex names its owner by the id that the C library keeps for the thread. */
    uint64_t probe[SMI_MUTEX_WORDS] = {0};
    uint32_t owner = smi_os_thread_id();
    if (smi_os_mutex_init(probe) < 0 || pthread_mutex_lock((pthread_mutex_t *)probe) != 0)
        return 0;
    int known = memmem(probe, sizeof(probe), &owner, sizeof(owner)) != NULL;
    pthread_mutex_unlock((pthread_mutex_t *)probe);
    return known;
}

void smi_os_describe_self(char name[16], uint64_t *start_time)
{
    char text[1024];
    memset(name, 0, 16);
    *start_time = 0;
    if (read_text("/proc/self/stat", text, sizeof(text)) < 0)
        return;
    *start_time = stat_field(text, 22);
    char *from = strchr(text, '('), *to = strrchr(text, ')'); /* the name may hold anything */
    if (from && to && from < to)
        snprintf(name, 16, "%.*s", (int)(to - from - 1), from + 1);
}

void smi_os_random(void *buf, size_t len)
{
    size_t done = 0;
    while (done < len) {
        ssize_t n = getrandom((char *)buf + done, len - done, 0);
        if (n > 0)
            done += (size_t)n;
        else if (errno != EINTR) { /* no such call here: the clock has to do */
            struct timespec now;
            clock_gettime(CLOCK_MONOTONIC, &now);
            for (uint64_t x = (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 32; done < len; done++)
                ((uint8_t *)buf)[done] = (uint8_t)((x = x * 6364136223846793005ull + 1) >> 56);
        }
    }
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

uint64_t smi_os_now(void)
{
    return clock_ns(CLOCK_REALTIME);
}

uint64_t smi_os_clock(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

uint64_t smi_os_tick(void)
{
    return clock_ns(CLOCK_MONOTONIC_COARSE);
}

void smi_os_sleep(uint64_t ns)
{
    struct timespec pause = {(time_t)(ns / 1000000000ull), (long)(ns % 1000000000ull)};
    nanosleep(&pause, NULL);
}

void smi_os_relax(int times)
{
    for (int i = 0; i < times; i++) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        __asm__ volatile("yield");
#else
        SMI_OPAQUE(times);
#endif
    }
}

/* Of linux/membarrier.h, which not all C libraries come with. */
#define BARRIER_GLOBAL_EXPEDITED (1 << 1)
#define BARRIER_REGISTER_GLOBAL_EXPEDITED (1 << 2)

int smi_os_barrier_join(void)
{
    return syscall(SYS_membarrier, BARRIER_REGISTER_GLOBAL_EXPEDITED, 0, 0) < 0 ? -errno : 0;
}

int smi_os_barrier(void)
{
    return syscall(SYS_membarrier, BARRIER_GLOBAL_EXPEDITED, 0, 0) < 0 ? -errno : 0;
}

void smi_os_say(int fd, const char *text, size_t len)
{
    while (write(fd, text, len) < 0 && errno == EINTR)
        ;
}

int smi_os_keep(int fd)
{
    int kept = fcntl(fd, F_DUPFD_CLOEXEC, 200);
    return kept < 0 ? -errno : kept;
}

uint64_t smi_os_peak(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) < 0 ? 0 : (uint64_t)usage.ru_maxrss << 10;
}

#ifdef SMI_DIRECT_IS_ON /* and none of the calls is a cancellation point */
int smi_os_cancel_off(void)
{
    return 0;
}

void smi_os_cancel_restore(int state)
{
    (void)state;
}
#else
int smi_os_cancel_off(void)
{
    int state;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
    return state;
}

void smi_os_cancel_restore(int state)
{
    pthread_setcancelstate(state, NULL);
}
#endif

/* Signal handlers, which may fork, are kept out until `was` is given back. */
static void block_signals(sigset_t *was)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, was);
}

void smi_os_at_fork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void))
{
    sigset_t was;
    block_signals(&was);
    pthread_atfork(before, in_parent, in_child);
    pthread_sigmask(SIG_SETMASK, &was, NULL);
}

/* As linux/futex.h has them, which not every C library comes with. */
#define FUTEX_WAKE 1
#define FUTEX_WAIT_BITSET 9
#define FUTEX_PRIVATE_FLAG 128
#define FUTEX_BITSET_MATCH_ANY 0xffffffffu

/* A file's page is the same word in every process only by the shared key. */
static int futex_op(int op, int is_private)
{
    return is_private ? op | FUTEX_PRIVATE_FLAG : op;
}

int smi_os_futex_wait(const uint32_t *word, uint32_t expected, uint64_t until, int is_private)
{
    struct timespec at = {(time_t)(until / 1000000000u), (long)(until % 1000000000u)};
    long rc = syscall(SYS_futex, word, futex_op(FUTEX_WAIT_BITSET, is_private), expected, &at, NULL,
                      FUTEX_BITSET_MATCH_ANY); /* whose time is absolute, by CLOCK_MONOTONIC */
    return rc < 0 ? -errno : 0;
}

int smi_os_futex_wake(const uint32_t *word, uint32_t count, int is_private)
{
    uint32_t most = count < INT_MAX ? count : INT_MAX;
    long rc =
        most ? syscall(SYS_futex, word, futex_op(FUTEX_WAKE, is_private), most, NULL, NULL, 0) : 0;
    return rc < 0 ? -errno : (int)rc;
}

/* glibc's own, since 2.32; false in a process that made a thread. */
extern char __libc_single_threaded __attribute__((weak));

int smi_os_only_thread(void)
{
    return &__libc_single_threaded && __libc_single_threaded;
}

void smi_os_unlock_counted(pthread_mutex_t *mutex, unsigned *depth)
{
    sigset_t was;
    block_signals(&was);
    pthread_mutex_unlock(mutex);
    *depth = 0;
    pthread_sigmask(SIG_SETMASK, &was, NULL);
}

char *smi_os_absolute(const char *path)
{
    return realpath(path, NULL);
}
