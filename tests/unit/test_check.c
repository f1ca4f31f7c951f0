/* SPDX-License-Identifier: MIT */
/*
 * test_check.c - every invariant is tripped by a damage made for it, at the right place; sound
 * heaps trip none; and no damage whatever brings the check down.
 */
#include <criterion/criterion.h>

#include <sys/wait.h>

#include "look/check.h"
#include "damages.h"
#include "image.h"

/* ---- what the check says -------------------------------------------------------------------- */

struct finding {
    char invariant[4];
    uint64_t ref;
    char text[200];
};

struct findings {
    struct finding at[64];
    size_t count;
};

static void note(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    struct findings *findings = arg;
    must(*text, "a violation of %s has no text", invariant);
    if (findings->count == sizeof(findings->at) / sizeof(findings->at[0]))
        return;
    struct finding *finding = &findings->at[findings->count++];
    snprintf(finding->invariant, sizeof(finding->invariant), "%s", invariant);
    snprintf(finding->text, sizeof(finding->text), "%s", text);
    finding->ref = ref;
}

static void print(const struct findings *findings)
{
    for (size_t i = 0; i < findings->count; i++)
        fprintf(stderr, "  %s at %#llx: %s\n", findings->at[i].invariant,
                (unsigned long long)findings->at[i].ref, findings->at[i].text);
}

static int has(const struct findings *findings, const char *invariant, uint64_t ref)
{
    for (size_t i = 0; i < findings->count; i++)
        if (strcmp(findings->at[i].invariant, invariant) == 0 && findings->at[i].ref == ref)
            return 1;
    return 0;
}

static int check_image(const struct image *m, struct findings *findings)
{
    struct smi_view view;
    struct smi_check_result result;
    memset(findings, 0, sizeof(*findings));
    smi_view_of_mapping(&view, m->bytes, m->size, "image");
    int rc = smi_check(&view, 0, note, findings, &result);
    must((result.violations == 0) == (findings->count == 0), "%llu violations, %zu reported",
         (unsigned long long)result.violations, findings->count);
    smi_view_finish(&view);
    return rc;
}

static void image_must_be_sound(const struct image *m)
{
    struct findings findings;
    must_work(check_image(m, &findings));
    print(&findings);
    must(findings.count == 0, "%zu violations in a sound heap", findings.count);
}

/* ---- tests ---------------------------------------------------------------------------------- */

static struct fixture f;
static struct image bases[BASES];

static void begin(void)
{
    make_bases(&f, bases);
}

static void end(void)
{
    drop_bases(&f, bases);
}

TestSuite(check, .init = begin, .fini = end, .timeout = 120);

static struct image copy_of(const struct image *m)
{
    struct image copy = {malloc(m->size), m->size};
    memcpy(copy.bytes, m->bytes, m->size);
    return copy;
}

Test(check, finds_nothing_in_sound_heaps)
{
    for (int i = 0; i < BASES; i++)
        image_must_be_sound(&bases[i]);
}

Test(check, finds_each_damage_at_its_place)
{
    size_t missed = 0;
    for (size_t i = 0; i < DAMAGES; i++) {
        struct image m = copy_of(&bases[damages[i].base]);
        struct findings findings;
        uint64_t ref = damages[i].apply(&m);
        int rc = check_image(&m, &findings);
        must(rc == 0 || rc == SHMALLOC_ECORRUPT, "%s: %s", damages[i].name, shmalloc_strerror(rc));
        if (!has(&findings, damages[i].invariant, ref)) {
            fprintf(stderr, "%s should trip %s at %#llx; found:\n", damages[i].name,
                    damages[i].invariant, (unsigned long long)ref);
            print(&findings);
            missed++;
        }
        free(m.bytes);
    }
    cr_assert_eq(missed, 0, "%zu of %zu damages were not found", missed, DAMAGES);
}

Test(check, has_a_damage_for_each_invariant)
{
    for (const struct smi_invariant *i = smi_invariants; i->id; i++) {
        size_t n = 0;
        while (n < DAMAGES && strcmp(damages[n].invariant, i->id) != 0)
            n++;
        cr_expect_lt(n, DAMAGES, "no damage is made for %s: %s", i->id, i->text);
    }
}

static int count_block(const shmalloc_block *block, void *arg)
{
    (void)block;
    return ++*(uint64_t *)arg == 0;
}

static int count_root(const shmalloc_root *root, void *arg)
{
    must(strlen(root->name) <= SMF_ROOT_NAME_MAX, "a root's name has no end");
    return ++*(uint64_t *)arg == 0;
}

/* What a damage leads to is a report or an error code, whatever the bytes. */
static void must_survive(const struct image *m)
{
    struct smi_view view;
    struct smi_check_result result;
    shmalloc_stats stats;
    smi_view_of_mapping(&view, m->bytes, m->size, "image");
    int rc = smi_check(&view, 0, NULL, NULL, &result);
    must(rc <= 0, "the check returned %d", rc);
    if (rc == 0) {
        must_work(smi_view_stats(&view, &stats));
        must(stats.allocated <= m->size && stats.free_pages <= m->size, "impossible figures");
        uint64_t blocks = 0, roots = 0;
        must_work(smi_view_each_block(&view, count_block, &blocks));
        must(blocks <= m->size / 8, "more blocks than fit");
        rc = smi_view_each_root(&view, count_root, &roots);
        must(rc == 0 || rc == SHMALLOC_ECORRUPT, "each_root returned %d", rc);
    }
    smi_view_finish(&view);
}

Test(check, survives_any_damage)
{
    struct image m = copy_of(&bases[KILLED]);
    struct rng rng = rng_from(test_seed());
    uint64_t fixed =
        image_areas(&m)->end + smi_chunk_metadata_bytes(image_directory(&m)[0].page_count);
    for (int round = 0; round < 3000; round++) {
        uint64_t at[8];
        uint64_t old[8];
        for (int i = 0; i < 8; i++) { /* words of metadata, near each other or not, likely values */
            uint64_t limit = rng_below(&rng, 2) ? fixed : m.size;
            at[i] = SMF_STATE_OFFSET + rng_below(&rng, (limit - SMF_STATE_OFFSET) / 8) * 8;
            memcpy(&old[i], m.bytes + at[i], 8);
            uint64_t value = rng_below(&rng, 3) == 0   ? rng_next(&rng)
                             : rng_below(&rng, 2) == 0 ? old[i] ^ 1ull << rng_below(&rng, 64)
                                                       : rng_below(&rng, m.size + 100);
            memcpy(m.bytes + at[i], &value, 8);
        }
        must_survive(&m);
        for (int i = 8; i-- > 0;)
            memcpy(m.bytes + at[i], &old[i], 8);
    }
    image_must_be_sound(&m);
    free(m.bytes);
}

Test(check, survives_any_length)
{
    struct image m = copy_of(&bases[KILLED]);
    for (uint64_t size = m.size; size > 8192; size = size * 7 / 8) {
        struct image cut = {m.bytes, size};
        must_survive(&cut);
    }
    free(m.bytes);
}

Test(check, of_a_file_says_what_that_of_a_mapping_says)
{
    for (size_t i = 0; i < DAMAGES; i += 9) {
        struct image m = copy_of(&bases[damages[i].base]);
        uint64_t ref = damages[i].apply(&m);
        struct findings findings = {.count = 0};
        struct smi_check_result result;
        struct smi_view view;
        image_write(&m, f.path);
        int rc = smi_view_open(&view, f.path);
        must(rc == 0 || rc == SHMALLOC_ECORRUPT, "%s", shmalloc_strerror(rc));
        smi_check(&view, 0, note, &findings, &result);
        smi_view_finish(&view);
        must(has(&findings, damages[i].invariant, ref), "%s", damages[i].name);
        free(m.bytes);
    }
}

/* In the place of the file that the images were read from. */
static shmalloc_heap *fresh_heap(unsigned flags)
{
    unlink(f.path);
    return heap_create(f.path, flags);
}

/* A heap at work as `live` sees it from a process that is not part of it. */
static int churn(void *arg)
{
    shmalloc_heap *heap = heap_open(arg);
    static shmalloc_ref refs[3000];
    struct rng rng = rng_from(5);
    for (;;) {
        shmalloc_ref *ref = &refs[rng_below(&rng, 3000)];
        must_work(*ref ? shmalloc_ref_free(heap, ref)
                       : shmalloc_ref_alloc(heap, rng_log_uniform(&rng, 17), ref));
    }
    return 0;
}

Test(check, of_a_heap_in_use_reports_no_motion)
{
    f.heap = fresh_heap(0);
    pid_t pids[2] = {start_child(churn, f.path), start_child(churn, f.path)};
    uint64_t until = now_ns() + 2000000000ull;
    for (int i = 0; now_ns() < until; i++) {
        struct smi_view view;
        struct smi_check_result result;
        struct findings findings = {.count = 0};
        must_work(smi_view_open(&view, f.path));
        must_work(smi_check(&view, 1, note, &findings, &result));
        smi_view_finish(&view);
        print(&findings);
        must(findings.count == 0, "check %d reports motion as damage", i);
        must_work(shmalloc_check(f.heap));
    }
    kill_child(pids[0]);
    kill_child(pids[1]);
}

static void stop_and_check(unsigned flags)
{
    f.heap = fresh_heap(flags);
    pid_t pid = start_child(churn, f.path);
    struct rng rng = rng_from(test_seed());
    for (int i = 0; i < 300; i++) {
        struct smi_view view;
        struct smi_check_result result;
        struct findings findings = {.count = 0};
        usleep((useconds_t)rng_below(&rng, 500));
        kill(pid, SIGSTOP);
        waitpid(pid, NULL, WUNTRACED);
        must_work(smi_view_open(&view, f.path));
        must_work(smi_check(&view, 0, note, &findings, &result));
        smi_view_finish(&view);
        print(&findings);
        must(findings.count == 0, "stop %d: in-flight steps are reported as damage", i);
        kill(pid, SIGCONT);
    }
    kill_child(pid);
}

Test(check, of_a_stopped_heap_finds_nothing)
{
    stop_and_check(0);
}

Test(check, of_a_stopped_hardened_heap_finds_nothing)
{
    stop_and_check(SHMALLOC_HARDENED);
}

Test(check, of_a_heap_in_use_reports_damage_that_stays)
{
    f.heap = fresh_heap(0);
    pid_t pid = start_child(churn, f.path);
    struct smi_view view;
    struct smi_check_result result;
    struct findings findings = {.count = 0};
    usleep(10000);
    must_work(smi_view_open(&view, f.path));
    /* a root whose record is not there: nobody in the churn looks at roots */
    uint64_t at = view.header.areas.roots + offsetof(struct smf_roots, bucket), nonsense = 12345;
    int fd = open(f.path, O_RDWR);
    must(pwrite(fd, &nonsense, 8, (off_t)at) == 8, "pwrite");
    must_work(smi_check(&view, 1, note, &findings, &result));
    smi_view_finish(&view);
    must(has(&findings, "R1", at), "damage in a part that stands still is not reported");
    nonsense = 0;
    must(pwrite(fd, &nonsense, 8, (off_t)at) == 8, "pwrite");
    close(fd);
    kill_child(pid);
}

Test(check, finds_nothing_in_many_states)
{
    struct rng rng = rng_from(test_seed());
    f.heap = fresh_heap(0);
    static shmalloc_ref refs[2000];
    for (int step = 0; step < 20000; step++) {
        shmalloc_ref *ref = &refs[rng_below(&rng, 2000)];
        if (*ref)
            must_work(shmalloc_ref_free(f.heap, ref));
        else if (rng_below(&rng, 8) == 0)
            must_work(shmalloc_ref_alloc_tagged(f.heap, rng_log_uniform(&rng, 14), 7, ref));
        else
            must_work(shmalloc_ref_alloc(f.heap, rng_log_uniform(&rng, 20), ref));
        if (step % 4000 == 3999)
            must(shmalloc_trim(f.heap) >= 0, "%s", shmalloc_errmsg());
        if (step % 200 == 0) {
            struct image m = image_read(f.path);
            image_must_be_sound(&m);
            free(m.bytes);
        }
    }
}
