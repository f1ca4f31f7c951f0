/* SPDX-License-Identifier: MIT */
/*
 * test_retire.c - read sections, and blocks that are retired while others may read them.
 *
 * Bags close at 16 blocks here, so that a few retires go through all that 1,000 do. What a kill at
 * each instruction leaves is tested in tests/crash.
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap_suite.h"
#include "life/adopt.h"
#include "life/context.h"
#include "tx/retire.h"

HEAP_SUITE(retire, 0, 60);

enum { BAG = 16, MANY = 10 * BAG };

__attribute__((constructor)) static void small_bags(void)
{
    smi_bag_limit = BAG;
}

/* A word in the heap that names a block of `size` bytes. */
static shmalloc_ref *new_word(shmalloc_heap *heap, size_t size)
{
    shmalloc_ref *word = shmalloc_calloc(heap, 1, sizeof(*word));
    must(word != NULL, "no word");
    must_work(shmalloc_ref_alloc(heap, size, word));
    return word;
}

static void retire_many(shmalloc_heap *heap, int count, size_t size)
{
    shmalloc_ref *word = shmalloc_calloc(heap, 1, sizeof(*word));
    for (int i = 0; i < count; i++) {
        must_work(shmalloc_ref_alloc(heap, size, word));
        must_work(shmalloc_retire(heap, word));
        must(*word == 0, "the word is not cleared");
    }
    must_work(shmalloc_free(heap, word));
}

/* ---- one thread ---- */

Test(retire, what_is_retired_waits_and_is_counted)
{
    shmalloc_ref *word = new_word(f.heap, 100), ref = *word;
    uint64_t blocks = heap_stats(f.heap).allocated_blocks;
    must_work(shmalloc_retire(f.heap, word));
    must(heap_stats(f.heap).retired_blocks == 1 && heap_stats(f.heap).retired >= 100,
         "not counted");
    must(heap_stats(f.heap).allocated_blocks == blocks - 1, "still allocated");
    void *other = shmalloc_malloc(f.heap, 100);
    must(other != shmalloc_ptr(f.heap, ref), "it was given out");
    must_be_sound(f.heap);
    shmalloc_block *list;
    size_t count = all_blocks(f.heap, &list);
    for (size_t i = 0; i < count; i++)
        must(list[i].ref != ref, "a retired block is shown as allocated");
    free(list);
    must_work(shmalloc_free(f.heap, other));
    must_work(shmalloc_free(f.heap, word));
}

Test(retire, a_thread_has_two_bags_of_them_at_most)
{
    static const size_t sizes[] = {8, 48, 1000, 20000, 65536};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        retire_many(f.heap, MANY, sizes[i]);
        shmalloc_stats stats = heap_stats(f.heap);
        must(stats.retired_blocks > 0 && stats.retired_blocks <= 2 * BAG, "%llu blocks wait",
             (unsigned long long)stats.retired_blocks);
        must_be_sound(f.heap);
    }
    smi_bag_limit = SMF_BAG; /* then bytes close a bag */
    retire_many(f.heap, 1000, 60000);
    must(heap_stats(f.heap).retired <= 2 * (SMI_BAG_BYTES + 65536), "%llu bytes wait",
         (unsigned long long)heap_stats(f.heap).retired);
    smi_bag_limit = BAG;
}

Test(retire, words_outside_the_heap_and_tagged_blocks)
{
    shmalloc_ref ref;
    for (int i = 0; i < MANY; i++) {
        must_work(i % 2 ? shmalloc_ref_alloc(f.heap, 40, &ref)
                        : shmalloc_ref_alloc_tagged(f.heap, 40, 7, &ref));
        must_work(shmalloc_retire(f.heap, &ref));
        must(ref == 0, "not cleared");
    }
    shmalloc_ref *word = shmalloc_calloc(f.heap, 1, sizeof(*word));
    for (int i = 0; i < MANY; i++) {
        must_work(shmalloc_ref_alloc_tagged(f.heap, 200, 7, word));
        must_work(shmalloc_retire(f.heap, word));
    }
    must_work(shmalloc_free(f.heap, word));
}

Test(retire, large_blocks_are_freed_at_once)
{
    uint64_t allocated = heap_stats(f.heap).allocated;
    for (int i = 0; i < 5; i++) {
        shmalloc_ref ref;
        must_work(shmalloc_ref_alloc(f.heap, 3 << 20, &ref));
        must_work(shmalloc_read_begin(f.heap));
        must_work(shmalloc_retire(f.heap, &ref));
        must(!shmalloc_read_valid(f.heap), "the section could still read it");
        must_code(shmalloc_read_end(f.heap), SHMALLOC_EOUSTED);
        must(heap_stats(f.heap).allocated == allocated && heap_stats(f.heap).retired == 0,
             "it waits");
    }
}

Test(retire, bad_input)
{
    shmalloc_ref ref = 0, *word = new_word(f.heap, 1000);
    must_work(shmalloc_retire(f.heap, &ref));
    must_code(shmalloc_retire(f.heap, NULL), -EINVAL);
    must_code(shmalloc_retire(f.heap, (shmalloc_ref *)(void *)((char *)word + 4)), -EINVAL);
    uint64_t bad[] = {
        1,          8,          *word + 8, *word + 1,
        1ull << 40, UINT64_MAX, 4096,      shmalloc_ref_of(f.heap, word) + 4096 * 100};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ref = bad[i];
        must_code(shmalloc_retire(f.heap, &ref), SHMALLOC_EBADREF);
        must(ref == bad[i], "a refused call changed the word");
    }
    ref = *word;
    must_work(shmalloc_retire(f.heap, word));
    must_code(shmalloc_retire(f.heap, &ref), SHMALLOC_EDOUBLEFREE);
    must_code(shmalloc_read_end(f.heap), -EINVAL);
    must(!shmalloc_read_valid(f.heap), "no section is open");
    must_work(shmalloc_free(f.heap, word));
    must_work(shmalloc_close(f.heap));
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(f.path, &options, &f.heap));
    must_code(shmalloc_retire(f.heap, &ref), SHMALLOC_EREADONLY);
    fixture_reopen(&f);
}

Test(retire, what_is_retired_makes_room)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = SHMALLOC_CREATE;
    options.max_size = 8 << 20;
    must_work(shmalloc_open(fixture_path(&f, "small"), &options, &heap));
    shmalloc_ref *words = shmalloc_calloc(heap, 1000, sizeof(*words)), ref;
    unsigned count = 0, freed;
    while (count < 1000 && shmalloc_ref_alloc(heap, 60000, &words[count]) == 0)
        count++;
    must(count > 50 && count < 1000, "%u blocks fit", count);
    for (freed = 0; freed < BAG; freed++)
        must_work(shmalloc_retire(heap, &words[freed]));
    for (unsigned i = 0; i < BAG; i++) /* which are not free before they are needed */
        must_work(shmalloc_ref_alloc(heap, 60000, &words[i]));
    must_code(shmalloc_ref_alloc(heap, 60000, &ref), SHMALLOC_EFULL);
    must_work(shmalloc_close(heap));
}

/* ---- sections ---- */

Test(retire, sections_lie_in_each_other)
{
    must_work(shmalloc_read_begin(f.heap));
    must_work(shmalloc_read_begin(f.heap));
    must(shmalloc_read_valid(f.heap), "ousted by nobody");
    must_work(shmalloc_read_end(f.heap));
    must(shmalloc_read_valid(f.heap), "the outer one is open");
    retire_many(f.heap, 4 * BAG, 16); /* ousts the section of its own thread */
    must(!shmalloc_read_valid(f.heap), "what it saw is freed");
    must_work(shmalloc_read_begin(f.heap));
    must(!shmalloc_read_valid(f.heap), "a section in one that was ousted");
    must_code(shmalloc_read_end(f.heap), SHMALLOC_EOUSTED);
    must_code(shmalloc_read_end(f.heap), SHMALLOC_EOUSTED);
    must_code(shmalloc_read_end(f.heap), -EINVAL);
    must_work(shmalloc_read_begin(f.heap));
    must(shmalloc_read_valid(f.heap), "a new section");
    must_work(shmalloc_read_end(f.heap));
}

Test(retire, a_bag_that_is_switched_ousts_only_who_may_have_seen_it)
{
    must_work(shmalloc_read_begin(f.heap));
    retire_many(f.heap, BAG, 16);
    must(shmalloc_read_valid(f.heap), "nothing was freed yet");
    must_work(shmalloc_read_end(f.heap));
}


Test(retire, sections_of_two_heaps)
{
    shmalloc_heap *other = heap_create(fixture_path(&f, "other"), 0);
    must_work(shmalloc_read_begin(f.heap));
    must_work(shmalloc_read_begin(other));
    retire_many(other, 4 * BAG, 16);
    must(shmalloc_read_valid(f.heap) && !shmalloc_read_valid(other), "one was ousted");
    must_work(shmalloc_read_end(f.heap));
    must_code(shmalloc_read_end(other), SHMALLOC_EOUSTED);
    must_work(shmalloc_close(other));
}

Test(retire, storage_stays_while_a_section_is_open)
{
    shmalloc_ref ref;
    retire_many(f.heap, 1, 16);
    shmalloc_trim(f.heap); /* which frees what it had retired */
    must_work(shmalloc_ref_alloc(f.heap, 8 << 20, &ref));
    must_work(shmalloc_read_begin(f.heap));
    must_work(shmalloc_ref_free(f.heap, &ref));
    must(shmalloc_trim(f.heap) == 0, "storage went while a section is open");
    must_work(shmalloc_read_end(f.heap));
    must(shmalloc_trim(f.heap) > 4 << 20, "it did not go afterwards");
}

/* ---- several threads and processes ---- */

struct scene {
    uint32_t step;
    int rc;
};

/* Reads, is stopped or waits in a section, and then says what became of it. */
static int reader(void *arg)
{
    struct scene *scene = arg;
    shmalloc_heap *heap = fixture_join(&f);
    must_work(shmalloc_read_begin(heap));
    signal_word(&scene->step);
    await_word(&scene->step, 2);
    scene->rc = shmalloc_read_end(heap);
    must_work(shmalloc_read_begin(heap));
    must_work(shmalloc_read_end(heap));
    return shmalloc_close(heap);
}

Test(retire, a_stopped_reader_is_ousted_and_memory_stays_bounded)
{
    struct scene *scene = shared_memory(sizeof(*scene));
    pid_t child = start_child(reader, scene);
    await_word(&scene->step, 1);
    kill(child, SIGSTOP);
    retire_many(f.heap, MANY, 1000);
    must(heap_stats(f.heap).retired_blocks <= 2 * BAG, "%llu blocks wait for it",
         (unsigned long long)heap_stats(f.heap).retired_blocks);
    kill(child, SIGCONT);
    signal_word(&scene->step);
    must(wait_child_within(child, 20000) == 0, "the reader failed");
    must(scene->rc == SHMALLOC_EOUSTED, "it answers %d", scene->rc);
}

static int retirer(void *arg)
{
    struct scene *scene = arg;
    shmalloc_heap *heap = fixture_join(&f);
    must_work(shmalloc_read_begin(heap));
    retire_many(heap, 2 * BAG, 5000);
    signal_word(&scene->step);
    pause();
    return 1;
}

Test(retire, what_a_killed_process_had_retired_is_freed)
{
    struct scene *scene = shared_memory(sizeof(*scene));
    pid_t child = start_child(retirer, scene);
    await_word(&scene->step, 1);
    must(heap_stats(f.heap).retired_blocks == 2 * BAG, "the bags are not full");
    uint64_t adoptions = SMI_LOAD(&f.heap->state->adoptions);
    kill_child(child);
    must_work(smi_adopt(f.heap, SMI_ADOPT_ALL));
    must(heap_stats(f.heap).retired_blocks == 0, "its bags are still there");
    must(SMI_LOAD(&f.heap->state->adoptions) > adoptions, "not counted");
    must_be_sound(f.heap);
}

static void *thread_that_retires(void *arg)
{
    (void)arg;
    must_work(shmalloc_read_begin(f.heap));
    retire_many(f.heap, 2 * BAG, 300);
    return NULL;
}

Test(retire, a_thread_that_ends_leaves_nothing)
{
    pthread_t thread;
    must_work(shmalloc_read_begin(f.heap));
    pthread_create(&thread, NULL, thread_that_retires, NULL);
    pthread_join(thread, NULL);
    must(heap_stats(f.heap).retired_blocks == 0, "its bags are still there");
    must_code(shmalloc_read_end(f.heap), SHMALLOC_EOUSTED);
}

Test(retire, a_forked_child_has_no_section)
{
    must_work(shmalloc_read_begin(f.heap));
    retire_many(f.heap, 3, 100);
    pid_t child = fork();
    if (child == 0) {
        int bad = shmalloc_read_valid(f.heap) || shmalloc_read_end(f.heap) != -EINVAL ||
                  shmalloc_read_begin(f.heap) != 0 || shmalloc_read_end(f.heap) != 0 ||
                  shmalloc_close(f.heap) != 0;
        _exit(bad);
    }
    must(wait_child_within(child, 20000) == 0, "the child has one");
    must_work(shmalloc_read_end(f.heap));
    must(heap_stats(f.heap).retired_blocks == 3, "what the parent retired");
}

Test(retire, private_heaps)
{
    shmalloc_heap *heap;
    must_work(shmalloc_open_private(NULL, &heap));
    must_work(shmalloc_read_begin(heap));
    retire_many(heap, 4 * BAG, 100);
    must_code(shmalloc_read_end(heap), SHMALLOC_EOUSTED);
    must_work(shmalloc_read_begin(heap));
    pid_t child = fork();
    if (child == 0) {
        int bad =
            !shmalloc_read_valid(heap) || shmalloc_read_end(heap) != 0 || shmalloc_check(heap) != 0;
        retire_many(heap, 4 * BAG, 100);
        _exit(bad || shmalloc_check(heap) != 0);
    }
    must(wait_child_within(child, 20000) == 0, "the child's copy");
    must_work(shmalloc_read_end(heap));
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}

/* ---- without membarrier ---- */

/* From here on membarrier(2) is -EPERM in this process. */
static void forbid_membarrier(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_membarrier, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
    must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
             prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0,
         "no filter: %s", strerror(errno));
}

static int alone_without_membarrier(void *arg)
{
    (void)arg;
    forbid_membarrier();
    shmalloc_heap *heap = fixture_join(&f);
    must_work(shmalloc_read_begin(heap));
    retire_many(heap, MANY, 100);
    must_code(shmalloc_read_end(heap), SHMALLOC_EOUSTED);
    must_work(shmalloc_read_begin(heap));
    must_work(shmalloc_read_end(heap));
    must(heap_stats(heap).retired_blocks <= 2 * BAG, "too much waits");
    return shmalloc_close(heap);
}

Test(retire, processes_without_membarrier_fence_their_sections)
{
    must(run_child(alone_without_membarrier, NULL) == 0, "the child failed");
    must(heap_stats(f.heap).retired_blocks == 0, "it left something");
}

static int beside_readers_without_membarrier(void *arg)
{
    int rc = 0;
    uint64_t *retired = arg;
    forbid_membarrier();
    shmalloc_heap *heap = fixture_join(&f);
    shmalloc_ref *word = shmalloc_calloc(heap, 1, sizeof(*word));
    for (int i = 0; i < MANY && rc == 0; i++) {
        must_work(shmalloc_ref_alloc(heap, 100, word));
        rc = shmalloc_retire(heap, word);
        *retired += rc == 0;
    }
    must_code(rc, -ENOTSUP);
    must_work(shmalloc_ref_free(heap, word));
    must_work(shmalloc_free(heap, word));
    raise(SIGKILL);
    return 1;
}

Test(retire, without_membarrier_nothing_is_freed_that_others_may_read)
{
    uint64_t *retired = shared_memory(sizeof(*retired));
    must_work(shmalloc_read_begin(f.heap));
    must(run_child(beside_readers_without_membarrier, retired) == -SIGKILL, "the child failed");
    must(*retired == 2 * BAG, "%llu blocks were retired", (unsigned long long)*retired);
    must(shmalloc_read_valid(f.heap), "something was freed");
    must_work(shmalloc_read_end(f.heap));
    must_work(smi_adopt(f.heap, SMI_ADOPT_ALL));
    must(heap_stats(f.heap).retired_blocks == 0, "who adopts it can free it");
}

/* ---- publishing ---- */

static void put(shmalloc_heap *heap, uint64_t *word, size_t size, uint64_t bits)
{
    int rc;
    struct smi_thread *t = smi_thread_enter_any(heap, &rc);
    must(t != NULL, "no context");
    struct smi_fresh fresh;
    must_work(smi_fresh_make(t, size, &fresh));
    pattern_fill(smi_at(heap, fresh.ref), 0, size, fresh.ref);
    must_work(smi_fresh_publish(t, &fresh, word, bits, *word & SMF_REF_MASK));
    must(*word == (fresh.ref | bits), "the word is %#llx", (unsigned long long)*word);
    smi_thread_leave_any(t);
}

static void put_many(shmalloc_heap *heap)
{
    static const size_t sizes[] = {16, 16, 100, 5000, 65536, 100000, 40, 300000, 300000, 24};
    uint64_t blocks = heap_stats(heap).allocated_blocks,
             *word = shmalloc_calloc(heap, 1, sizeof(*word));
    for (uint64_t i = 0; i < MANY; i++) {
        size_t size = sizes[i % 10];
        put(heap, word, size, (i | 1ull << 19) << 44);
        uint64_t ref = *word & SMF_REF_MASK;
        must(pattern_check(smi_at(heap, ref), size, ref) == size, "block %llu",
             (unsigned long long)i);
        must(heap_stats(heap).allocated_blocks == blocks + 2, "%llu blocks", (unsigned long long)i);
    }
    must_be_sound(heap);
    *word &= SMF_REF_MASK;
    must_work(shmalloc_retire(heap, word));
    must_work(shmalloc_free(heap, word));
}

Test(retire, a_block_is_published_and_the_old_one_retired)
{
    put_many(f.heap);
}

Test(retire, publishing_in_a_hardened_heap)
{
    shmalloc_heap *heap = heap_create(fixture_path(&f, "hard"), SHMALLOC_HARDENED);
    put_many(heap);
    must_work(shmalloc_close(heap));
}

Test(retire, what_is_made_and_not_published_is_nobodys)
{
    int rc;
    struct smi_thread *t = smi_thread_enter_any(f.heap, &rc);
    struct smi_fresh fresh;
    static const size_t sizes[] = {16, 5000, 100000};
    for (int i = 0; i < 30; i++) {
        must_work(smi_fresh_make(t, sizes[i % 3], &fresh));
        smi_fresh_drop(t, &fresh);
    }
    smi_thread_leave_any(t);
}

/* ---- hardened heaps ---- */

Test(retire, hardened_heaps_find_what_is_retired_twice)
{
    shmalloc_heap *heap = heap_create(fixture_path(&f, "hard"), SHMALLOC_HARDENED);
    for (int i = 0; i < MANY; i++) {
        shmalloc_ref *word = new_word(heap, 1 + (size_t)i * 7), copy = *word;
        must_work(shmalloc_retire(heap, word));
        must_code(shmalloc_retire(heap, &copy), SHMALLOC_EDOUBLEFREE);
        must_code(shmalloc_ref_free(heap, &copy), SHMALLOC_EDOUBLEFREE);
        must_code(shmalloc_ref_realloc(heap, &copy, 3000), SHMALLOC_EDOUBLEFREE);
        must_work(shmalloc_free(heap, word));
        must_be_sound(heap);
    }
    shmalloc_trim(heap);
    must(heap_stats(heap).allocated_blocks == 0 && heap_stats(heap).retired_blocks == 0,
         "not all was freed");
    must_be_sound(heap);
    must_work(shmalloc_close(heap));
}
