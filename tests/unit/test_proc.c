/* SPDX-License-Identifier: MIT */
/*
 * test_proc.c - what the library reads in /proc, where that is missing, masked, or another
 * namespace's.
 *
 * Would fail if the answer were about the heap's file, half a heap were left, a text that is no
 * boot id were believed, or somebody who lives were taken for dead because /proc does not show him.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "heap_suite.h"
#include "platform/os.h"

HEAP_SUITE(proc, 0, 60);

enum { NOT_PERMITTED = 77 };
#define BOOT_ID "/proc/sys/kernel/random/boot_id"

static int own_mounts(void)
{
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0;
}

static int mask_boot_id(const char *text)
{
    const char *path = fixture_path(&f, "boot id");
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    must(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text), "write");
    close(fd);
    return mount(path, BOOT_ID, NULL, MS_BIND, NULL);
}

static unsigned files(void)
{
    unsigned count = 0;
    DIR *dir = opendir(f.dir);
    must(dir, "opendir");
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static void must_be_told(int rc)
{
    must_code(rc, SHMALLOC_EPROC);
    for (const char *const *word = (const char *const[]){"/proc", "mount -t proc", NULL}; *word;
         word++)
        must(strstr(shmalloc_errmsg(), *word), "\"%s\" does not say \"%s\"", shmalloc_errmsg(),
             *word);
}

static int open_with(const char *path, unsigned flags)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = flags;
    int rc = shmalloc_open(path, &options, &heap);
    return rc < 0 ? rc : shmalloc_close(heap);
}

/* Every way to come to a heap is refused, and leaves what there was. */
static void must_refuse(void)
{
    unsigned before_creation = files();
    must_be_told(open_with(fixture_path(&f, "new"), SHMALLOC_CREATE));
    must_be_told(open_with(fixture_path(&f, "new"), SHMALLOC_CREATE | SHMALLOC_EXCLUSIVE));
    must(files() == before_creation, "a file was left");
    must_be_told(open_with(fixture_path(&f, "at rest"), 0));
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    struct stat st;
    options.flags = SHMALLOC_CREATE;
    int fd = memfd_create("heap", MFD_CLOEXEC);
    must_be_told(shmalloc_open_fd(fd, &options, &heap));
    must(fstat(fd, &st) == 0 && st.st_size == 0, "half a heap was left");
    close(fd);
}

enum { UNMOUNTED, ONLY_PROCESSES, DEVICE, EMPTY, SHORT, LONG, ZERO, OTHER_DIGITS, WAYS };

static int without_proc(void *arg)
{
    static const char *const ids[WAYS] = {
        [EMPTY] = "",
        [SHORT] = "0f3c2a11-1234-4123-8123-0123456789a\n",
        [LONG] = "0f3c2a11-1234-4123-8123-0123456789abc\n",
        [ZERO] = "00000000-0000-0000-0000-000000000000\n",
        [OTHER_DIGITS] = "0f3c2a11-1234-4123-8123-0123456789ax\n",
    };
    int way = *(int *)arg;
    if (!own_mounts())
        return NOT_PERMITTED;
    if (way == UNMOUNTED        ? mount("none", "/proc", "tmpfs", 0, NULL) < 0
        : way == ONLY_PROCESSES ? mount("proc", "/proc", "proc", 0, "subset=pid") < 0
                                : (way == DEVICE ? mount("/dev/null", BOOT_ID, NULL, MS_BIND, NULL)
                                                 : mask_boot_id(ids[way])) < 0)
        return NOT_PERMITTED;
    must_refuse();
    uint8_t id[16], zero[16] = {0};
    must(smi_os_boot_id(id) == SHMALLOC_EPROC && memcmp(id, zero, 16) == 0, "it is believed");
    return 0;
}

Test(proc, what_is_missing_is_told)
{
    must_work(shmalloc_close(heap_create(fixture_path(&f, "at rest"), 0)));
    for (int way = 0; way < WAYS; way++) {
        int status = run_child(without_proc, &way);
        if (status == NOT_PERMITTED && way != ONLY_PROCESSES) { /* which Linux has since 5.8 */
            heap_suite_end();
            cr_skip_test("no mounts of our own here");
        }
        cr_assert(status == 0 || status == NOT_PERMITTED, "way %d: %d", way, status);
    }
}

/* A process that has the heap open already, as one that calls chroot(2) then. */
static int proc_goes_away(void *arg)
{
    shmalloc_ref ref = 0;
    shmalloc_heap *heap = heap_create(fixture_path(&f, "open"), 0);
    (void)arg;
    uint64_t started = smi_os_start_time(getpid(), getpid());
    must(started != 0, "no start time");
    must(smi_os_thread_exists(getpid(), started) && !smi_os_thread_exists(getpid(), started + 1),
         "threads");
    if (!own_mounts() || mount("none", "/proc", "tmpfs", 0, NULL) < 0)
        return NOT_PERMITTED;
    must(smi_os_thread_exists(getpid(), started), "a thread that cannot be seen is taken for dead");
    must_work(shmalloc_ref_alloc(heap, 20 << 20, &ref));
    must_work(shmalloc_ref_free(heap, &ref));
    must_be_sound(heap);
    must_be_told(shmalloc_ref_alloc(f.heap, 100, &ref)); /* inherited, and this child never
                                                            called */
    return shmalloc_close(heap) < 0;
}

Test(proc, an_open_heap_goes_on_without_it)
{
    int status = run_child(proc_goes_away, NULL);
    cr_assert(status == 0 || status == NOT_PERMITTED, "%d", status);
    cr_assert_eq(unlink(fixture_path(&f, "open")), 0);
}

/* Others' processes are hidden: they live all the same. */
static int hidden_from_nobody(void *arg)
{
    shmalloc_heap *heap;
    shmalloc_ref ref = 0;
    (void)arg;
    if (!own_mounts() || mount("proc", "/proc", "proc", 0, "hidepid=2") < 0)
        return NOT_PERMITTED;
    must(setgid(65534) == 0 && setuid(65534) == 0, "setuid");
    must(access("/proc/1", F_OK) < 0, "nothing is hidden");
    must_work(shmalloc_open(f.path, NULL, &heap));
    must_work(shmalloc_ref_alloc(heap, 20 << 20, &ref));
    must_work(shmalloc_ref_free(heap, &ref));
    usleep(1100000); /* the next long call looks for the dead */
    must_work(shmalloc_ref_alloc(heap, 20 << 20, &ref));
    must_work(shmalloc_ref_free(heap, &ref));
    must(heap_stats(heap).processes == 2, "%llu processes",
         (unsigned long long)heap_stats(heap).processes);
    return shmalloc_close(heap) < 0;
}

static int opener(void *arg)
{
    (void)arg;
    must_work(shmalloc_close(f.heap)); /* inherited; the child of this one is to come by the path */
    return run_child(hidden_from_nobody, NULL);
}

Test(proc, hidden_processes_live)
{
    chmod(f.dir, 0755);
    chmod(f.path, 0666);
    int status = run_child(opener, NULL);
    cr_assert(status == 0 || status == NOT_PERMITTED, "%d", status);
}
