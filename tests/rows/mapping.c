/* SPDX-License-Identifier: MIT */
/*
 * mapping.c - rows A19 to A21, A25, A26: refs at any base, survival of all processes' deaths, sync,
 * bytes as other programs see them, sharing with unrelated users.
 *
 * Would fail if a base mattered, a store of a killed process were lost, a failed sync went
 * unnoticed, a byte of the file differed from the mapping's, or a second user, a passed descriptor
 * or a fork did not see the same heap.
 */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "rows.h"

ROWS_SUITE(60);

/* ---- A19 ---- */

enum { PROCESSES = 3, NODES = 100000 };

struct node {
    shmalloc_ref next;
    uint64_t value;
};

struct bases {
    uintptr_t base[PROCESSES];
    uint32_t turn;
};

/* Each process adds its nodes in front of those of the others and follows all of them, at a base of
 * its own. */
static int add_at_base(shmalloc_heap *heap, uint64_t me)
{
    shmalloc_ref anchor;
    must_work(shmalloc_root_get(heap, "anchor", 0, &anchor));
    struct node *first = shmalloc_ptr(heap, anchor);
    for (uint64_t i = 0; i < NODES; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(heap, sizeof(struct node), &ref));
        *(struct node *)shmalloc_ptr(heap, ref) = (struct node){first->next, me};
        first->next = ref;
    }
    uint64_t count = 0;
    for (shmalloc_ref ref = first->next; ref; count++) {
        const struct node *node = shmalloc_ptr(heap, ref);
        must(node && node->value == me - count / NODES, "node %llu", (unsigned long long)count);
        ref = node->next;
    }
    must(count == (me + 1) * NODES, "%llu nodes", (unsigned long long)count);
    return 0;
}

static int at_own_base(void *arg)
{
    struct bases *b = arg;
    /* addresses that are taken */
    for (uint32_t i = 0; i < __atomic_load_n(&b->turn, __ATOMIC_ACQUIRE); i++)
        must(mmap(NULL, 3ull << 40, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
                  0) != MAP_FAILED,
             "mmap");
    shmalloc_heap *heap = heap_open(f.path);
    b->base[b->turn] = (uintptr_t)shmalloc_ptr(heap, SMF_PAGE) - SMF_PAGE;
    add_at_base(heap, b->turn);
    return shmalloc_close(heap) < 0;
}

Test(rows, a19_refs_hold_at_three_bases)
{
    struct bases *b = shared_memory(sizeof(*b));
    shmalloc_ref anchor = 0;
    shmalloc_heap *heap = heap_create(f.path, 0);
    must_work(shmalloc_ref_alloc_zeroed(heap, sizeof(struct node), &anchor));
    must_work(shmalloc_root_set(heap, "anchor", 0, anchor));
    must_work(shmalloc_close(heap));
    for (int i = 0; i < PROCESSES; i++) {
        cr_assert_eq(run_child(at_own_base, b), 0);
        signal_word(&b->turn);
    }
    cr_assert(b->base[0] != b->base[1] && b->base[1] != b->base[2] && b->base[0] != b->base[2],
              "the same base: the test proves nothing");
    must_be_sound_on_disk(f.path);
}

/* ---- A20 ---- */

enum { WRITERS = 4, MOST = 20000 };
struct progress {
    uint32_t total;
    uint32_t done[WRITERS], next;
};

static size_t size_of_block(uint32_t writer, uint32_t i)
{
    return 8 + (writer * 7919 + i * 104729) % 3000;
}

static int write_for_ever(void *arg)
{
    struct progress *p = arg;
    uint32_t me = __atomic_fetch_add(&p->next, 1, __ATOMIC_RELAXED);
    char name[16];
    shmalloc_ref table;
    shmalloc_heap *heap = heap_open(f.path);
    snprintf(name, sizeof(name), "writer %u", me);
    must(shmalloc_root_get_or_create(heap, name, 0, MOST * sizeof(shmalloc_ref), NULL, NULL,
                                     &table) >= 0,
         "%s", shmalloc_errmsg());
    for (uint32_t i = 0; i < MOST; i++) {
        shmalloc_ref *ref = (shmalloc_ref *)shmalloc_ptr(heap, table) + i;
        must_work(shmalloc_ref_alloc(heap, size_of_block(me, i), ref));
        pattern_fill(shmalloc_ptr(heap, *ref), 0, size_of_block(me, i), (uint64_t)me << 32 | i);
        __atomic_store_n(&p->done[me], i + 1, __ATOMIC_RELEASE);
        signal_word(&p->total);
    }
    pause();
    return 1;
}

Test(rows, a20_what_was_stored_survives_the_death_of_all)
{
    struct progress *p = shared_memory(sizeof(*p));
    pid_t pids[WRITERS];
    must_work(shmalloc_close(heap_create(f.path, 0)));
    for (int i = 0; i < WRITERS; i++)
        pids[i] = start_child(write_for_ever, p);
    await_word(&p->total, 5000);
    for (int i = 0; i < WRITERS; i++)
        kill_child(pids[i]);
    f.heap = heap_open(f.path);
    for (uint32_t w = 0; w < WRITERS; w++) {
        char name[16];
        shmalloc_ref table;
        snprintf(name, sizeof(name), "writer %u", w);
        if (p->done[w] == 0)
            continue;
        must_work(shmalloc_root_get(f.heap, name, 0, &table));
        const shmalloc_ref *refs = shmalloc_ptr(f.heap, table);
        for (uint32_t i = 0; i < p->done[w]; i++) {
            size_t size = size_of_block(w, i);
            cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, refs[i]), size, (uint64_t)w << 32 | i),
                         size, "writer %u, block %u", w, i);
        }
    }
}

/* ---- A21 ---- */

Test(rows, a21_sync_answers)
{
    rows_on_disk(&f);
    f.heap = heap_create(f.path, 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 1 << 20, &ref));
    must_work(shmalloc_sync(f.heap, 0, 0));
    must_work(shmalloc_sync(f.heap, ref + 3, 10));
    must_code(shmalloc_sync(f.heap, heap_stats(f.heap).file_size, 1), SHMALLOC_EBADREF);
    must_code(shmalloc_sync(f.heap, ref, UINT64_MAX), SHMALLOC_EBADREF);
}

/* A file system whose device runs out of room below it: writing back fails. */
static int sync_on_a_failing_device(void *arg)
{
    (void)arg;
    char image[256], where[256];
    snprintf(image, sizeof(image), "%s/image", fixture_path(&f, "low"));
    snprintf(where, sizeof(where), "%s", fixture_path(&f, "high"));
    int rc = rows_mount("tmpfs", 12 << 20, NULL, fixture_path(&f, "low"));
    if (rc == 0)
        rc = rows_mount("ext4", 64 << 20, image, where);
    if (rc != 0)
        return rc;
    char path[300];
    snprintf(path, sizeof(path), "%s/heap", where);
    shmalloc_heap *heap = heap_create(path, 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(heap, 30 << 20, &ref));
    pattern_fill(shmalloc_ptr(heap, ref), 0, 30 << 20, 4);
    must(shmalloc_sync(heap, ref, 30 << 20) < 0, "a sync to a full device says all is well");
    must_code(shmalloc_sync(heap, ref, 8), -EIO); /* sticky */
    must(pattern_check(shmalloc_ptr(heap, ref), 30 << 20, 4) == 30 << 20,
         "the mapping is as it was");
    must_be_sound(heap);
    must(shmalloc_close(heap) < 0, "close says that all is on disk");
    return 0;
}

static void make_directory(const char *name)
{
    cr_assert_eq(mkdir(fixture_path(&f, name), 0755), 0);
}

static void remove_directory(const char *name)
{
    cr_assert_eq(rmdir(fixture_path(&f, name)), 0, "%s", strerror(errno));
}

Test(rows, a21_a_failed_sync_is_told_and_stays)
{
    make_directory("low");
    make_directory("high");
    int status = run_child(sync_on_a_failing_device, NULL);
    remove_directory("low");
    remove_directory("high");
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("mounting a loop device is not possible");
    cr_assert_eq(status, 0, "%d", status);
}

/* ---- A25 ---- */

Test(rows, a25_read_and_the_mapping_agree)
{
    f.heap = heap_create(f.path, 0);
    for (int i = 0; i < 2000; i++) {
        shmalloc_ref ref = 0;
        must_work(shmalloc_ref_alloc(f.heap, 1 + (size_t)i * 37, &ref));
        pattern_fill(shmalloc_ptr(f.heap, ref), 0, 1 + (size_t)i * 37, (uint64_t)i);
    }
    uint64_t size = heap_stats(f.heap).file_size, at = 0;
    static uint8_t buf[1 << 20];
    int fd = open(f.path, O_RDONLY);
    for (ssize_t got; (got = pread(fd, buf, sizeof(buf), (off_t)at)) > 0; at += (uint64_t)got)
        cr_assert_eq(memcmp(buf, f.heap->base + at, (size_t)got), 0, "at %llu",
                     (unsigned long long)at);
    close(fd);
    cr_assert_eq(at, size);
    struct smi_view view;
    shmalloc_stats by_file = SHMALLOC_STATS_INIT, by_mapping = heap_stats(f.heap);
    must_work(smi_view_open(&view, f.path));
    must_work(smi_view_stats(&view, &by_file));
    smi_view_finish(&view);
    cr_assert_eq(by_file.allocated, by_mapping.allocated);
    cr_assert_eq(by_file.free_pages, by_mapping.free_pages);
    cr_assert_eq(by_file.cached, by_mapping.cached);
}

/* ---- A26 ---- */

enum { STRANGER = 65534, STRANGERS = 65533 };

/* Become a user that has nothing in common with the heap's owner but a group. */
static int become_stranger(void)
{
    gid_t group = STRANGERS;
    return setgroups(1, &group) < 0 || setgid(STRANGERS) < 0 || setuid(STRANGER) < 0 ? NOT_POSSIBLE
                                                                                     : 0;
}

static int use_as_stranger(void *arg)
{
    int writes = *(int *)arg;
    shmalloc_heap *heap;
    shmalloc_ref ref;
    if (become_stranger() != 0)
        return NOT_POSSIBLE;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    if (!writes) {
        must_code(shmalloc_open(f.path, NULL, &heap), -EACCES);
        options.flags = SHMALLOC_READ_ONLY;
    }
    must_work(shmalloc_open(f.path, &options, &heap));
    must_work(shmalloc_root_get(heap, "question", 0, &ref));
    must(pattern_check(shmalloc_ptr(heap, ref), 5000, 1) == 5000, "contents");
    if (writes) {
        shmalloc_ref answer = 0;
        must_work(shmalloc_ref_alloc(heap, 5000, &answer));
        pattern_fill(shmalloc_ptr(heap, answer), 0, 5000, 2);
        must_work(shmalloc_root_set(heap, "answer", 0, answer));
        must_work(shmalloc_ref_free(heap, &ref));
    }
    return shmalloc_close(heap) < 0;
}

static void exchange_with_stranger(unsigned mode, int writes)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.mode = mode;
    if (geteuid() != 0)
        ROWS_SKIP("only root can be two users");
    must_work(shmalloc_open(f.path, &options, &f.heap));
    cr_assert_eq(chown(f.path, 0, STRANGERS), 0);
    cr_assert_eq(chmod(f.dir, 0711), 0);
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 5000, &ref));
    pattern_fill(shmalloc_ptr(f.heap, ref), 0, 5000, 1);
    must_work(shmalloc_root_set(f.heap, "question", 0, ref));
    int status = run_child(use_as_stranger, &writes);
    if (status == NOT_POSSIBLE)
        ROWS_SKIP("no other user here");
    cr_assert_eq(status, 0, "%d", status);
    if (!writes)
        return;
    must_work(shmalloc_root_get(f.heap, "answer", 0, &ref));
    cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, ref), 5000, 2), 5000);
    cr_assert_eq(heap_stats(f.heap).allocated_blocks, 1);
}

Test(rows, a26_an_unrelated_user_reads_by_group_permission)
{
    exchange_with_stranger(0640, 0);
}

Test(rows, a26_unrelated_users_write_by_group_permission)
{
    exchange_with_stranger(0660, 1);
}

static void send_descriptor(int socket, int fd)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control = {0};
    char byte = 1;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control.bytes)};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof(fd));
    must(sendmsg(socket, &message, 0) == 1, "sendmsg: %s", strerror(errno));
}

static int receive_descriptor(int socket)
{
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int))];
    } control;
    char byte;
    int fd;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof(control.bytes)};
    must(recvmsg(socket, &message, MSG_CMSG_CLOEXEC) == 1, "recvmsg: %s", strerror(errno));
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    must(header && header->cmsg_type == SCM_RIGHTS, "no descriptor came");
    memcpy(&fd, CMSG_DATA(header), sizeof(fd));
    return fd;
}

/* Started before the memfd exists, and of another user where that is possible. */
static int use_what_comes(void *arg)
{
    int socket = *(int *)arg;
    if (geteuid() == 0 && become_stranger() != 0)
        return NOT_POSSIBLE;
    int fd = receive_descriptor(socket);
    shmalloc_heap *heap;
    shmalloc_ref ref;
    must_work(shmalloc_open_fd(fd, NULL, &heap));
    close(fd);
    must_work(shmalloc_root_get(heap, "x", 0, &ref));
    must(pattern_check(shmalloc_ptr(heap, ref), 100000, 1) == 100000, "contents");
    pattern_fill(shmalloc_ptr(heap, ref), 0, 100000, 2);
    return shmalloc_close(heap) < 0;
}

Test(rows, a26_a_memfd_passed_over_a_socket)
{
    int pair[2];
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    pid_t pid = start_child(use_what_comes, &pair[1]);
    int fd = memfd_create("heap", MFD_CLOEXEC);
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    must_work(shmalloc_open_fd(fd, &options, &f.heap));
    shmalloc_ref ref = 0;
    must_work(shmalloc_ref_alloc(f.heap, 100000, &ref));
    pattern_fill(shmalloc_ptr(f.heap, ref), 0, 100000, 1);
    must_work(shmalloc_root_set(f.heap, "x", 0, ref));
    send_descriptor(pair[0], fd);
    cr_assert_eq(wait_child(pid), 0);
    cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, ref), 100000, 2), 100000);
    close(fd);
}

static int use_what_was_inherited(void *arg)
{
    shmalloc_ref *shared = arg;
    must(pattern_check(shmalloc_ptr(f.heap, shared[0]), 1000, 1) == 1000, "contents");
    must_work(shmalloc_ref_free(f.heap, &shared[0]));
    must_work(shmalloc_ref_alloc(f.heap, 1000, &shared[1]));
    pattern_fill(shmalloc_ptr(f.heap, shared[1]), 0, 1000, 2);
    return shmalloc_close(f.heap) < 0;
}

Test(rows, a26_a_forked_child_uses_the_heap)
{
    shmalloc_ref *shared = shared_memory(2 * sizeof(*shared));
    f.heap = heap_create(f.path, 0);
    must_work(shmalloc_ref_alloc(f.heap, 1000, &shared[0]));
    pattern_fill(shmalloc_ptr(f.heap, shared[0]), 0, 1000, 1);
    cr_assert_eq(run_child(use_what_was_inherited, shared), 0);
    cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, shared[1]), 1000, 2), 1000);
    must_work(shmalloc_ref_free(f.heap, &shared[1]));
    cr_assert_eq(heap_stats(f.heap).allocated_blocks, 0);
}
