/* SPDX-License-Identifier: MIT */
/*
 * test_roots.c - named roots: thousands of names, odd names, types, iteration, creation at once.
 *
 * Would fail if a name were lost or confused with another, a type id ignored, two creators both
 * won, or a loser's block or a removed name leaked.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "heap_suite.h"
#include "look/check.h"

HEAP_SUITE(roots, 0, 60);

/* Roots name blocks: number `i` of those that a test has, made when it is first asked for. */
enum { MOST_BLOCKS = 5001 };
static shmalloc_ref blocks[MOST_BLOCKS];

static shmalloc_ref block(size_t i)
{
    if (blocks[i] == 0)
        must_work(shmalloc_ref_alloc(f.heap, 8, &blocks[i]));
    return blocks[i];
}

static void free_blocks(void)
{
    for (size_t i = 0; i < MOST_BLOCKS; i++)
        must_work(shmalloc_ref_free(f.heap, &blocks[i]));
}

static void must_be(const char *name, uint64_t type, shmalloc_ref ref)
{
    shmalloc_ref got = ~ref;
    must_work(shmalloc_root_get(f.heap, name, type, &got));
    must(got == ref, "%s names %#llx", name, (unsigned long long)got);
}

static void must_not_exist(const char *name)
{
    shmalloc_ref got = 99;
    must_code(shmalloc_root_get(f.heap, name, 0, &got), SHMALLOC_ENOROOT);
    must(got == 99, "written on failure");
}

Test(roots, set_get_replace_remove)
{
    must_not_exist("a");
    must_work(shmalloc_root_set(f.heap, "a", 0, block(1)));
    must_be("a", 0, block(1));
    must_work(shmalloc_root_set(f.heap, "a", 0, 0));
    must_be("a", 0, 0);
    must_work(shmalloc_root_set(f.heap, "a", 7, block(2)));
    must_be("a", 7, block(2));
    cr_assert_eq(heap_stats(f.heap).roots, 1);
    must_work(shmalloc_root_remove(f.heap, "a"));
    must_not_exist("a");
    must_code(shmalloc_root_remove(f.heap, "a"), SHMALLOC_ENOROOT);
    cr_assert_eq(heap_stats(f.heap).roots, 0);
    free_blocks();
}

Test(roots, type_ids_are_compared_when_given)
{
    shmalloc_ref got = 99;
    must_work(shmalloc_root_set(f.heap, "typed", 5, block(1)));
    must_work(shmalloc_root_set(f.heap, "plain", 0, block(2)));
    must_be("typed", 5, block(1));
    must_be("typed", 0, block(1));
    must_be("plain", 0, block(2));
    must_code(shmalloc_root_get(f.heap, "typed", 6, &got), SHMALLOC_ETYPE);
    must_code(shmalloc_root_get(f.heap, "plain", 5, &got), SHMALLOC_ETYPE);
    cr_assert_eq(got, 99);
    must_work(shmalloc_root_remove(f.heap, "typed"));
    must_work(shmalloc_root_remove(f.heap, "plain"));
    free_blocks();
}

Test(roots, bad_names_are_refused)
{
    char long_name[300];
    memset(long_name, 'x', sizeof(long_name));
    long_name[256] = 0;
    shmalloc_ref ref;
    const char *const bad[] = {NULL, "", long_name};
    for (int i = 0; i < 3; i++) {
        must_code(shmalloc_root_set(f.heap, bad[i], 0, 0), -EINVAL);
        must_code(shmalloc_root_get(f.heap, bad[i], 0, &ref), -EINVAL);
        must_code(shmalloc_root_remove(f.heap, bad[i]), -EINVAL);
        must_code(shmalloc_root_get_or_create(f.heap, bad[i], 0, 8, NULL, NULL, &ref), -EINVAL);
    }
    must_code(shmalloc_root_get(f.heap, "a", 0, NULL), -EINVAL);
    must_code(shmalloc_root_get_or_create(f.heap, "a", 0, 8, NULL, NULL, NULL), -EINVAL);
}

Test(roots, names_of_every_length_and_any_bytes)
{
    char name[256];
    for (size_t len = 1; len <= 255; len++) {
        memset(name, (int)(len % 255 + 1), len);
        name[len] = 0;
        must_work(shmalloc_root_set(f.heap, name, 0, block(len)));
    }
    for (size_t len = 1; len <= 255; len++) {
        memset(name, (int)(len % 255 + 1), len);
        name[len] = 0;
        must_be(name, 0, block(len));
        must_work(shmalloc_root_remove(f.heap, name));
    }
    free_blocks();
}

/* ---- many ---- */

enum { MANY = 5000 };

static const char *name_of(int i)
{
    static char name[64];
    snprintf(name, sizeof(name), i % 2 ? "root %d" : "a longer name for the root of number %d", i);
    return name;
}

static int count_root(const shmalloc_root *root, void *arg)
{
    uint8_t *seen = arg;
    const char *number = strrchr(root->name, ' ');
    int i = number ? atoi(number) : -1;
    must(i >= 0 && i < MANY && root->ref == block((size_t)i) &&
             strcmp(root->name, name_of(i)) == 0 && root->type == (uint64_t)i % 3,
         "%s names %llu", root->name, (unsigned long long)root->ref);
    seen[i]++;
    return 0;
}

static void must_iterate(int step)
{
    static uint8_t seen[MANY];
    memset(seen, 0, sizeof(seen));
    must_work(shmalloc_root_each(f.heap, count_root, seen));
    for (int i = 0; i < MANY; i++)
        must(seen[i] == (i % step == 0), "root %d was seen %d times", i, seen[i]);
}

Test(roots, thousands)
{
    for (int i = 0; i < MANY; i++)
        must_work(shmalloc_root_set(f.heap, name_of(i), (uint64_t)i % 3, block((size_t)i)));
    cr_assert_eq(heap_stats(f.heap).roots, MANY);
    for (int i = 0; i < MANY; i++)
        must_be(name_of(i), (uint64_t)i % 3, block((size_t)i));
    must_iterate(1);
    must_be_sound(f.heap);
    for (int i = 0; i < MANY; i++)
        if (i % 5)
            must_work(shmalloc_root_remove(f.heap, name_of(i)));
    must_iterate(5);
    fixture_reopen(&f);
    must_iterate(5);
    cr_assert_eq(heap_stats(f.heap).roots, MANY / 5);
    for (int i = 0; i < MANY; i += 5)
        must_work(shmalloc_root_remove(f.heap, name_of(i)));
    free_blocks();
}

static int stop_at_third(const shmalloc_root *root, void *arg)
{
    (void)root;
    return ++*(int *)arg == 3 ? -77 : 0;
}

Test(roots, iteration_stops_with_the_visitors_value)
{
    int count = 0;
    for (int i = 0; i < 10; i++)
        must_work(shmalloc_root_set(f.heap, name_of(i), 0, 0));
    cr_assert_eq(shmalloc_root_each(f.heap, stop_at_third, &count), -77);
    cr_assert_eq(count, 3);
    for (int i = 0; i < 10; i++)
        must_work(shmalloc_root_remove(f.heap, name_of(i)));
}

static int remove_visited(const shmalloc_root *root, void *arg)
{
    ++*(int *)arg;
    return shmalloc_root_remove(f.heap, root->name); /* no lock may be held here */
}

Test(roots, a_visitor_may_change_the_roots)
{
    int count = 0;
    for (int i = 0; i < 500; i++)
        must_work(shmalloc_root_set(f.heap, name_of(i), 0, 0));
    must_work(shmalloc_root_each(f.heap, remove_visited, &count));
    cr_assert_eq(count, 500);
    cr_assert_eq(heap_stats(f.heap).roots, 0);
}

/* ---- get or create ---- */

static int init_pattern(shmalloc_heap *heap, void *block, void *arg)
{
    (void)heap;
    must(all_zero(block, 1000), "the block is not zeroed");
    pattern_fill(block, 0, 1000, *(uint64_t *)arg);
    return 0;
}

static int init_refuses(shmalloc_heap *heap, void *block, void *arg)
{
    (void)heap;
    (void)block;
    return *(int *)arg;
}

/* An init that needs blocks of its own and other roots: no lock may be held around it. */
static int init_allocates(shmalloc_heap *heap, void *block, void *arg)
{
    (void)arg;
    uint64_t *words = block;
    int rc = shmalloc_ref_alloc(heap, 64, &words[0]);
    return rc < 0 ? rc : shmalloc_root_set(heap, "inner", 0, words[0]);
}

static void drop_root(const char *name)
{
    shmalloc_ref ref;
    must_work(shmalloc_root_get(f.heap, name, 0, &ref));
    must_work(shmalloc_root_remove(f.heap, name));
    must_work(shmalloc_ref_free(f.heap, &ref));
}

Test(roots, get_or_create_creates_once)
{
    uint64_t stamp = 12;
    shmalloc_ref first = 0, second = 0;
    must_code(shmalloc_root_get_or_create(f.heap, "x", 3, 1000, init_pattern, &stamp, &first),
              SHMALLOC_CREATED);
    cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, first), 1000, 12), 1000);
    stamp = 13;
    must_code(shmalloc_root_get_or_create(f.heap, "x", 3, 1000, init_pattern, &stamp, &second), 0);
    cr_assert_eq(first, second);
    cr_assert_eq(pattern_check(shmalloc_ptr(f.heap, first), 1000, 12), 1000);
    must_code(shmalloc_root_get_or_create(f.heap, "x", 4, 1000, NULL, NULL, &second),
              SHMALLOC_ETYPE);
    drop_root("x");
}

/* ---- what roots name ---- */

static void must_say(const char *const *fragments)
{
    for (; *fragments; fragments++)
        cr_assert_not_null(strstr(shmalloc_errmsg(), *fragments), "\"%s\" lacks \"%s\"",
                           shmalloc_errmsg(), *fragments);
}
#define MUST_SAY(...) must_say((const char *const[]){__VA_ARGS__, NULL})

Test(roots, a_block_that_is_smaller_than_asked_is_refused)
{
    shmalloc_ref first = 0, second = 5;
    must_code(shmalloc_root_get_or_create(f.heap, "users", 7, 64, NULL, NULL, &first), 1);
    must_code(shmalloc_root_get_or_create(f.heap, "users", 7, 4096, NULL, NULL, &second),
              SHMALLOC_ESIZE);
    MUST_SAY("users", " 64 bytes", "4096 were asked for");
    cr_assert_eq(second, 5);
    must_code(shmalloc_root_get_or_create(f.heap, "users", 7, 65, NULL, NULL, &second),
              SHMALLOC_ESIZE);
    must_code(shmalloc_root_get_or_create(f.heap, "users", 7, 64, NULL, NULL, &second), 0);
    cr_assert_eq(second, first);
    must_code(shmalloc_root_get_or_create(f.heap, "users", 7, 0, NULL, NULL, &second), 0);
    must_code(shmalloc_root_get_or_create(f.heap, "users", 8, 4096, NULL, NULL, &second),
              SHMALLOC_ETYPE);
    drop_root("users");
    must_code(shmalloc_root_get_or_create(f.heap, "large", 0, 100000, NULL, NULL, &first), 1);
    must_code(shmalloc_root_get_or_create(f.heap, "large", 0, 200000, NULL, NULL, &second),
              SHMALLOC_ESIZE);
    drop_root("large");
    must_work(shmalloc_root_set(f.heap, "nothing", 0, 0));
    must_code(shmalloc_root_get_or_create(f.heap, "nothing", 0, 4096, NULL, NULL, &second), 0);
    cr_assert_eq(second, 0);
    must_work(shmalloc_root_remove(f.heap, "nothing"));
}

Test(roots, only_blocks_are_bound)
{
    shmalloc_ref ref = 0, large = 0, kept = 0, other = 0, end = heap_stats(f.heap).file_size;
    must_work(shmalloc_ref_alloc(f.heap, 64, &ref));
    must_work(shmalloc_ref_alloc(f.heap, 300000, &large));
    must_work(shmalloc_root_set(f.heap, "it", 0, ref));
    must_work(shmalloc_root_set(f.heap, "it", 0, large));
    const shmalloc_ref none[] = {12345,        1,          8192, ref + 1, ref + 8,   ref + 32,
                                 large + 8192, large + 16, end,  ~0ull,   1ull << 40};
    for (size_t i = 0; i < sizeof(none) / sizeof(none[0]); i++) {
        must_code(shmalloc_root_set(f.heap, "it", 9, none[i]), SHMALLOC_EBADREF);
        must_code(shmalloc_root_set(f.heap, "new", 9, none[i]), SHMALLOC_EBADREF);
    }
    must_be("it", 0, large); /* as before */
    must_not_exist("new");
    other = ref;
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_code(shmalloc_root_set(f.heap, "it", 0, other), SHMALLOC_EBADREF);
    MUST_SAY("was freed");
    kept = large;
    must_work(shmalloc_ref_free(f.heap, &large));
    must_code(shmalloc_root_set(f.heap, "other", 0, kept), SHMALLOC_EBADREF);
    must_code(shmalloc_root_get_or_create(f.heap, "it", 0, 8, NULL, NULL, &ref), SHMALLOC_EBADREF);
    MUST_SAY("\"it\"", "no block any more");
    must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg()); /* the central heap and the page heap
                                                                  have them */
    must_code(shmalloc_root_set(f.heap, "it", 0, other), SHMALLOC_EBADREF);
    must_code(shmalloc_root_set(f.heap, "it", 0, kept), SHMALLOC_EBADREF);
    must_work(shmalloc_root_remove(f.heap, "it"));
}

/* What is no damage: the heap is sound, and the roots are named all the same. */
Test(roots, the_check_names_those_that_dangle)
{
    shmalloc_ref ref = 0;
    struct smi_view view;
    struct smi_check_result result;
    struct smi_finding finding = {0};
    must_code(shmalloc_root_get_or_create(f.heap, "users", 7, 64, NULL, NULL, &ref), 1);
    must_work(shmalloc_ref_free(f.heap, &ref));
    must_work(shmalloc_root_set(f.heap, "sound", 0, 0));
    must_work(shmalloc_check(f.heap));
    must_work(smi_view_open(&view, f.path));
    for (int live = 0; live < 2; live++) {
        must_work(smi_check(&view, live, smi_note_finding, &finding, &result));
        cr_assert_eq(result.dangling, 1, "%llu", (unsigned long long)result.dangling);
        cr_assert_eq(result.violations, 0);
        cr_assert_eq(finding.count, 0);
    }
    smi_view_finish(&view);
    must_work(shmalloc_root_remove(f.heap, "users"));
    must_work(shmalloc_root_remove(f.heap, "sound"));
}

/* `offer`: a name in the message, NULL none. */
static void must_offer(const char *name, const char *offer)
{
    shmalloc_ref ref;
    char wanted[400];
    snprintf(wanted, sizeof(wanted), "there is one named \"%s\"", offer ? offer : "");
    must_code(shmalloc_root_get(f.heap, name, 0, &ref), SHMALLOC_ENOROOT);
    int offers = strstr(shmalloc_errmsg(), offer ? wanted : "there is one") != NULL;
    must(offers == (offer != NULL), "%s", shmalloc_errmsg());
    must_code(shmalloc_root_remove(f.heap, name), SHMALLOC_ENOROOT);
    must((strstr(shmalloc_errmsg(), offer ? wanted : "there is one") != NULL) == (offer != NULL),
         "%s", shmalloc_errmsg());
}

Test(roots, a_close_name_is_offered)
{
    static const char *const names[] = {"users", "sessions", "ab", "queue 1", "queue 17"};
    char long_name[256], misspelt[256];
    must_offer("users", NULL); /* there is none at all */
    for (int i = 0; i < 5; i++)
        must_work(shmalloc_root_set(f.heap, names[i], 0, 0));
    must_offer("user", "users");
    must_offer("Users", "users");
    must_offer("USERS", "users");
    must_offer("usres", "users");
    must_offer("user ", "users");
    must_offer("uesr", NULL); /* two edits in four bytes */
    must_offer("losers", "users"); /* six bytes: two edits */
    must_offer("sesions", "sessions");
    must_offer("sseisons", "sessions");
    must_offer("session table", NULL);
    must_offer("sxxxions", NULL);
    must_offer("AB", "ab");
    must_offer("ac", NULL);
    must_offer("b", NULL);
    must_offer("queue 16", "queue 1"); /* as close as the other: one of them */
    must_offer("something else", NULL);
    memset(long_name, 'x', 255);
    long_name[255] = 0;
    must_work(shmalloc_root_set(f.heap, long_name, 0, 0));
    memcpy(misspelt, long_name, sizeof(misspelt));
    misspelt[0] = misspelt[254] = 'y';
    must_offer(misspelt, long_name);
    misspelt[100] = 'y';
    must_offer(misspelt, NULL);
    for (int i = 0; i < 5; i++)
        must_work(shmalloc_root_remove(f.heap, names[i]));
    must_work(shmalloc_root_remove(f.heap, long_name));
}

Test(roots, init_that_fails_leaves_nothing)
{
    int code = -4242;
    shmalloc_ref ref = 5;
    cr_assert_eq(shmalloc_root_get_or_create(f.heap, "x", 0, 100000, init_refuses, &code, &ref),
                 -4242);
    cr_assert_eq(ref, 5);
    must_not_exist("x");
    cr_assert_eq(shmalloc_root_get_or_create(f.heap, "x", 0, 100, init_refuses, &code, &ref),
                 -4242);
    must_not_exist("x");
}

Test(roots, init_may_use_the_heap)
{
    shmalloc_ref ref = 0;
    must_code(shmalloc_root_get_or_create(f.heap, "outer", 0, 64, init_allocates, NULL, &ref),
              SHMALLOC_CREATED);
    uint64_t *words = shmalloc_ptr(f.heap, ref);
    must_be("inner", 0, words[0]);
    drop_root("inner");
    drop_root("outer");
}

Test(roots, a_heap_that_is_full_creates_nothing)
{
    shmalloc_ref ref = 5;
    must_code(shmalloc_root_get_or_create(f.heap, "x", 0, 1ull << 50, NULL, NULL, &ref),
              SHMALLOC_EFULL);
    cr_assert_eq(ref, 5);
    must_not_exist("x");
}

/* ---- processes at once ---- */

enum { RACERS = 6, RACES = 300 };
struct race {
    uint32_t ready[RACES];
    uint32_t created[RACES];
    uint64_t refs[RACES][RACERS];
    uint32_t next_racer;
};

static int racer(void *arg)
{
    struct race *race = arg;
    uint32_t me = __atomic_fetch_add(&race->next_racer, 1, __ATOMIC_RELAXED);
    shmalloc_heap *heap = fixture_join(&f);
    for (int i = 0; i < RACES; i++) {
        signal_word(&race->ready[i]);
        await_word(&race->ready[i], RACERS);
        int rc =
            shmalloc_root_get_or_create(heap, name_of(i), 0, 100, NULL, NULL, &race->refs[i][me]);
        must(rc >= 0, "%d %s", rc, shmalloc_errmsg());
        if (rc == 1)
            signal_word(&race->created[i]);
    }
    return shmalloc_close(heap) < 0;
}

Test(roots, of_racing_creators_one_wins)
{
    struct race *race = shared_memory(sizeof(*race));
    pid_t pids[RACERS];
    for (int i = 0; i < RACERS; i++)
        pids[i] = start_child(racer, race);
    for (int i = 0; i < RACERS; i++)
        cr_assert_eq(wait_child(pids[i]), 0);
    for (int i = 0; i < RACES; i++) {
        cr_assert_eq(race->created[i], 1, "root %d was created %u times", i, race->created[i]);
        for (int k = 0; k < RACERS; k++)
            must_be(name_of(i), 0, race->refs[i][k]);
        drop_root(name_of(i));
    }
}

/* One process sets and removes, another looks: it sees the old binding or the new one or none. */
static int flipper(void *arg)
{
    uint32_t *stop = arg;
    shmalloc_heap *heap = fixture_join(&f);
    for (uint64_t i = 0; !__atomic_load_n(stop, __ATOMIC_RELAXED); i++) {
        must_work(shmalloc_root_set(heap, "flip", i % 2 + 1, blocks[i % 2 + 1]));
        if (i % 3 == 0)
            must_work(shmalloc_root_remove(heap, "flip"));
    }
    return shmalloc_close(heap) < 0;
}

Test(roots, readers_see_whole_bindings)
{
    uint32_t *stop = shared_memory(sizeof(*stop));
    const shmalloc_ref old = block(1), new = block(2);
    pid_t pid = start_child(flipper, stop);
    int seen[3] = {0};
    uint64_t deadline = now_ns() + 5000000000ull;
    while ((seen[0] < 100 || seen[1] < 100 || seen[2] < 100) && now_ns() < deadline) {
        shmalloc_ref ref = 0;
        int rc = shmalloc_root_get(f.heap, "flip", 0, &ref);
        must(rc == SHMALLOC_ENOROOT || (rc == 0 && (ref == old || ref == new)), "%d: %llu", rc,
             (unsigned long long)ref);
        seen[rc < 0 ? 0 : ref == old ? 1 : 2]++;
        rc = shmalloc_root_get(f.heap, "flip", 2, &ref);
        must(rc == SHMALLOC_ENOROOT || rc == SHMALLOC_ETYPE || ref == new, "type 2 with %llu",
             (unsigned long long)ref);
    }
    *stop = 1;
    cr_assert_eq(wait_child(pid), 0);
    cr_assert(seen[0] && seen[1] && seen[2], "%d none, %d old, %d new", seen[0], seen[1], seen[2]);
    shmalloc_root_remove(f.heap, "flip");
    free_blocks();
}
