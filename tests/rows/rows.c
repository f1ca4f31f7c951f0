/* SPDX-License-Identifier: MIT */
/* rows.c - see rows.h. Owns nothing. */
#include "rows.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

void rows_on_disk(struct fixture *f)
{
    fixture_end(f);
    setenv("SHMALLOC_TEST_DIR", access("/var/tmp", W_OK) == 0 ? "/var/tmp" : "/tmp", 0);
    fixture_begin(f);
}

shmalloc_heap *rows_heap(const char *path, uint64_t initial_size, uint64_t max_size,
                         unsigned arenas)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE;
    options.initial_size = initial_size;
    options.max_size = max_size;
    options.arenas = arenas;
    must_work(shmalloc_open(path, &options, &heap));
    return heap;
}

/* ---- what the file holds ---- */

uint64_t rows_storage(const char *path)
{
    struct stat st;
    must(stat(path, &st) == 0, "stat %s: %s", path, strerror(errno));
    return (uint64_t)st.st_blocks * 512;
}

void rows_view(struct smi_view *view, const char *path)
{
    must_work(smi_view_open(view, path));
    must_work(smi_view_settle(view, NULL, NULL));
}

int rows_kind(const char *path, shmalloc_ref ref)
{
    struct smi_view view;
    rows_view(&view, path);
    uint16_t kind = smi_view_word(&view, ref >> SMF_PAGE_SHIFT) & SMF_WORD_KIND;
    smi_view_finish(&view);
    return kind == 0 ? SMF_PAGE_NONE : kind == SMF_WORD_LARGE ? SMF_PAGE_LARGE
                                   : kind == SMF_WORD_META    ? SMF_PAGE_META
                                                              : SMF_PAGE_SLAB;
}

char *rows_free_spans(const char *path)
{
    struct smi_view view;
    struct smi_span span = {0};
    char *text;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    rows_view(&view, path);
    while (smi_view_next_span(&view, &span))
        if (span.page->kind == SMF_PAGE_FREE)
            fprintf(out, "%u+%u ", span.first_page, span.page_count);
    smi_view_finish(&view);
    fclose(out);
    return text;
}

/* ---- what the process costs ---- */

uint64_t rows_mapped(const void *from, uint64_t len, const char *field)
{
    FILE *smaps = fopen("/proc/self/smaps", "r");
    must(smaps, "/proc/self/smaps: %s", strerror(errno));
    char line[512];
    uint64_t sum = 0;
    int inside = 0;
    size_t field_len = strlen(field);
    while (fgets(line, sizeof(line), smaps)) {
        unsigned long begin, end, kib;
        if (sscanf(line, "%lx-%lx ", &begin, &end) == 2)
            inside = begin >= (uintptr_t)from && begin < (uintptr_t)from + len;
        else if (inside && strncmp(line, field, field_len) == 0 && line[field_len] == ':' &&
                 sscanf(line + field_len + 1, "%lu", &kib) == 1)
            sum += kib * 1024;
    }
    fclose(smaps);
    return sum;
}

unsigned rows_mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    must(maps, "/proc/self/maps: %s", strerror(errno));
    unsigned lines = 0;
    for (int c; (c = fgetc(maps)) != EOF;)
        lines += c == '\n';
    fclose(maps);
    return lines;
}

/* Options that prctl does not have: the kernel says no, the tracer has seen them. */
enum { MARK_BEGIN = 0x53484d31, MARK_END = 0x53484d32 };

void rows_mark_begin(void)
{
    prctl(MARK_BEGIN, 0, 0, 0, 0);
}

void rows_mark_end(void)
{
    prctl(MARK_END, 0, 0, 0, 0);
}

/* One stop at a system call; 1 after the second mark. */
static int count_stop(pid_t pid, struct rows_calls *out, int *counting)
{
    struct __ptrace_syscall_info info;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, pid, sizeof(info), &info) <= 0 ||
        info.op != PTRACE_SYSCALL_INFO_ENTRY)
        return 0;
    if (info.entry.nr == SYS_prctl && info.entry.args[0] == MARK_END)
        return 1;
    if (*counting) {
        out->total++;
        if (info.entry.nr < sizeof(out->of) / sizeof(out->of[0]))
            out->of[info.entry.nr]++;
    }
    if (info.entry.nr == SYS_prctl && info.entry.args[0] == MARK_BEGIN)
        *counting = 1;
    return 0;
}

static int trace(pid_t pid, struct rows_calls *out)
{
    int status, signal_number = 0, counting = 0;
    for (;;) {
        if (ptrace(PTRACE_SYSCALL, pid, 0, signal_number) < 0)
            return -errno;
        must(waitpid(pid, &status, 0) == pid, "waitpid: %s", strerror(errno));
        if (!WIFSTOPPED(status))
            return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
        signal_number = 0;
        if (WSTOPSIG(status) != (SIGTRAP | 0x80))
            signal_number = WSTOPSIG(status);
        else if (count_stop(pid, out, &counting))
            break;
    }
    ptrace(PTRACE_DETACH, pid, 0, 0);
    return wait_child(pid);
}

struct traced {
    worker_fn *fn;
    void *arg;
};

static int run_traced(void *arg)
{
    struct traced *traced = arg;
    if (ptrace(PTRACE_TRACEME, 0, 0, 0) < 0)
        return NOT_POSSIBLE;
    raise(SIGSTOP);
    return traced->fn(traced->arg);
}

int rows_count_calls(worker_fn *fn, void *arg, struct rows_calls *out)
{
    struct traced traced = {fn, arg};
    memset(out, 0, sizeof(*out));
    pid_t pid = start_child(run_traced, &traced);
    int status;
    must(waitpid(pid, &status, WUNTRACED) == pid, "waitpid: %s", strerror(errno));
    if (!WIFSTOPPED(status))
        return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    if (ptrace(PTRACE_SETOPTIONS, pid, 0, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL) < 0) {
        kill_child(pid);
        return NOT_POSSIBLE;
    }
    return trace(pid, out);
}

uint64_t rows_storage_calls(const struct rows_calls *calls)
{
    static const int numbers[] = {SYS_mmap,      SYS_munmap,    SYS_mremap,    SYS_madvise,
                                  SYS_mprotect,  SYS_ftruncate, SYS_fallocate, SYS_msync,
                                  SYS_fdatasync, SYS_fsync,     SYS_brk,       SYS_pwrite64,
                                  SYS_pread64};
    uint64_t sum = 0;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        sum += calls->of[numbers[i]];
    return sum;
}

/* ---- small file systems ---- */

static int not_possible(const char *what)
{
    fprintf(stderr, "not possible here: %s: %s\n", what, strerror(errno));
    return NOT_POSSIBLE;
}

/* Attach the file `image` to a loop device that goes when nobody uses it; returns its
 * descriptor. */
static int attach_loop(const char *image, char device[32])
{
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC),
        file = open(image, O_RDWR | O_CLOEXEC);
    int loop = -1;
    for (int tries = 0; control >= 0 && file >= 0 && loop < 0 && tries < 20; tries++) {
        int number = ioctl(control, LOOP_CTL_GET_FREE);
        if (number < 0)
            break;
        snprintf(device, 32, "/dev/loop%d", number);
        struct loop_config config = {.fd = (uint32_t)file,
                                     .info = {.lo_flags = LO_FLAGS_AUTOCLEAR}};
        loop = open(device, O_RDWR | O_CLOEXEC);
        if (loop >= 0 && ioctl(loop, LOOP_CONFIGURE, &config) < 0) { /* somebody else was faster */
            close(loop);
            loop = -1;
        }
    }
    close(control);
    close(file);
    return loop;
}

static int make_file_system(const char *type, uint64_t bytes, const char *image)
{
    int fd = open(image, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0, "%s: %s", image, strerror(errno));
    close(fd);
    char command[512];
    snprintf(command, sizeof(command),
             "PATH=$PATH:/sbin:/usr/sbin; mkfs.%s -q '%s' >/dev/null 2>&1", type, image);
    return system(command);
}

int rows_mount(const char *type, uint64_t bytes, const char *image, const char *where)
{
    char device[32] = "tmpfs", options[64] = "";
    int loop = -1;
    if (unshare(geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) < 0 ||
        mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
        return not_possible("a mount namespace");
    if (strcmp(type, "tmpfs") == 0) {
        snprintf(options, sizeof(options), "size=%llu", (unsigned long long)bytes);
    } else {
        if (make_file_system(type, bytes, image) != 0)
            return not_possible("mkfs");
        if ((loop = attach_loop(image, device)) < 0)
            return not_possible("a loop device");
    }
    int rc = mount(device, where, type, 0, options);
    if (loop >= 0)
        close(loop); /* the mount keeps it */
    return rc < 0 ? not_possible("mount") : 0;
}

void rows_fill(const char *path)
{
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    must(fd >= 0, "%s: %s", path, strerror(errno));
    off_t end = lseek(fd, 0, SEEK_END);
    for (off_t step = 64 << 20; step >= 4096;)
        if (posix_fallocate(fd, end, step) == 0)
            end += step;
        else
            step /= 2;
    must(ftruncate(fd, end) == 0, "%s: %s", path, strerror(errno));
    close(fd);
}

/* ---- little memory ---- */

static int write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    int rc = fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text) ? -errno : 0;
    if (fd >= 0)
        close(fd);
    return rc;
}

int rows_make_group(char group[128], uint64_t limit)
{
    static const char *const places[][2] = {{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"},
                                            {"/sys/fs/cgroup", "memory.max"}};
    char path[192], text[32];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)limit);
    for (int i = 0; i < 2; i++) {
        snprintf(group, 128, "%s/shmalloc-test-%d", places[i][0], (int)getpid());
        if (mkdir(group, 0755) < 0)
            continue;
        snprintf(path, sizeof(path), "%s/%s", group, places[i][1]);
        if (write_text(path, text) == 0)
            return 0;
        rmdir(group);
    }
    return -1;
}

int rows_join_group(const char *group)
{
    char path[192];
    snprintf(path, sizeof(path), "%s/cgroup.procs", group);
    return write_text(path, "0");
}
