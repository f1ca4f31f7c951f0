/* SPDX-License-Identifier: MIT */
/*
 * test_repair.c - every damage is either repaired, with all blocks and roots as they were, or
 * refused, with the file as it was; a repair may be killed after any word that it writes and is
 * then done again.
 *
 * Each run takes some kill points and some rounds of random damage, others with each seed.
 * SHMALLOC_TEST_ROUNDS=N takes N times as many: 30 and more before a change of a rule.
 */
#include <criterion/criterion.h>
#include <sys/mman.h>

#include "look/check.h"
#include "damages.h"
#include "image.h"
#include "repair/repair.h"
#include "view_check.h"

/* What must come of a damage. */
enum outcome {
    ALL,     /* sound again; every block and every root as before */
    NO_ROOT, /* one root is dropped, and said to be; every block as before */
    REFUSED, /* no safe rule: the file stays as it is */
};

static const struct {
    const char *name;
    enum outcome outcome;
} exceptions[] = {
    {"truncated", REFUSED},                  /* a large block lay there */
    {"root_longer_than_its_block", NO_ROOT}, /* its name is overwritten */
    {"one_name_twice", NO_ROOT},
};

static enum outcome outcome_of(const struct damage *damage)
{
    for (size_t i = 0; i < sizeof(exceptions) / sizeof(exceptions[0]); i++)
        if (strcmp(exceptions[i].name, damage->name) == 0)
            return exceptions[i].outcome;
    return ALL;
}

/* ---- what a heap holds ----------------------------------------------------------------------- */

struct named_root {
    char name[32];
    uint64_t type, ref;
};

struct holdings {
    shmalloc_block *blocks;
    size_t block_count, room;
    struct named_root roots[IMAGE_ROOTS + 1];
    size_t root_count;
};

static int hold_block(const shmalloc_block *block, void *arg)
{
    struct holdings *h = arg;
    if (h->block_count == h->room) {
        h->room = 2 * h->room + 1024;
        h->blocks = realloc(h->blocks, h->room * sizeof(*h->blocks));
        must(h->blocks, "memory");
    }
    h->blocks[h->block_count++] = *block;
    return 0;
}

static int hold_root(const shmalloc_root *root, void *arg)
{
    struct holdings *h = arg;
    must(h->root_count <= IMAGE_ROOTS, "more roots than were bound");
    struct named_root *r = &h->roots[h->root_count++];
    snprintf(r->name, sizeof(r->name), "%s", root->name);
    r->type = root->type;
    r->ref = root->ref;
    return 0;
}

static struct holdings holdings_of(const struct image *m)
{
    struct holdings h = {0};
    struct smi_view view;
    smi_view_of_mapping(&view, m->bytes, m->size, "image");
    must_work(smi_view_each_block(&view, hold_block, &h));
    must_work(smi_view_each_root(&view, hold_root, &h));
    smi_view_finish(&view);
    return h;
}

static const shmalloc_block *block_at(const struct holdings *h, uint64_t ref, size_t *at)
{
    size_t low = 0, high = h->block_count; /* each_block ascends */
    while (low < high) {
        *at = (low + high) / 2;
        if (h->blocks[*at].ref == ref)
            return &h->blocks[*at];
        if (h->blocks[*at].ref < ref)
            low = *at + 1;
        else
            high = *at;
    }
    return NULL;
}

static int has_root(const struct holdings *h, const struct named_root *root)
{
    for (size_t i = 0; i < h->root_count; i++)
        if (strcmp(h->roots[i].name, root->name) == 0 && h->roots[i].type == root->type &&
            h->roots[i].ref == root->ref)
            return 1;
    return 0;
}

/* `now` has all blocks of `before`, no smaller and with the contents that they have in `m`, damaged
 * as it is; of its roots all but `lost`, and no other. */
static void must_hold(const struct image *now, const struct holdings *before, const struct image *m,
                      size_t lost, const char *name)
{
    struct holdings h = holdings_of(now);
    for (size_t i = 0; i < before->block_count; i++) {
        const shmalloc_block *was = &before->blocks[i];
        size_t at = 0;
        const shmalloc_block *b = block_at(&h, was->ref, &at);
        must(b && b->size >= was->size, "%s: the block at %#llx is lost", name,
             (unsigned long long)was->ref);
        must(was->ref + was->size <= m->size &&
                 memcmp(now->bytes + was->ref, m->bytes + was->ref, was->size) == 0,
             "%s: the block at %#llx changed", name, (unsigned long long)was->ref);
    }
    size_t missing = 0;
    for (size_t i = 0; i < before->root_count; i++)
        missing += !has_root(&h, &before->roots[i]);
    must(missing == lost, "%s: %zu roots are missing, %zu may be", name, missing, lost);
    must(h.root_count == before->root_count - lost, "%s: %zu roots", name, h.root_count);
    free(h.blocks);
}

/* ---- running a repair ------------------------------------------------------------------------ */

static struct fixture f;
static struct image bases[BASES];
static struct holdings held[BASES];
static struct rng rng;

static void begin(void)
{
    make_bases(&f, bases);
    for (int i = 0; i < BASES; i++)
        held[i] = holdings_of(&bases[i]);
    rng = rng_from(test_seed());
}

static int rounds(int by_default)
{
    const char *given = getenv("SHMALLOC_TEST_ROUNDS");
    return given ? by_default * atoi(given) : by_default;
}

static void end(void)
{
    for (int i = 0; i < BASES; i++)
        free(held[i].blocks);
    drop_bases(&f, bases);
}

TestSuite(repair, .init = begin, .fini = end, .timeout = 3600); /* for a long one */

static struct image damaged_image(size_t i)
{
    const struct image *base = &bases[damages[i].base];
    struct image m = {malloc(base->size), base->size};
    memcpy(m.bytes, base->bytes, base->size);
    damages[i].apply(&m);
    return m;
}

static int open_file(void)
{
    int fd = open(f.path, O_RDWR | O_CLOEXEC);
    must(fd >= 0, "%s", f.path);
    return fd;
}

static void show(const struct smi_repair *r)
{
    for (size_t i = 0; i < r->steps.count && i < 40; i++)
        fprintf(stderr, "  %s at %#llx: %s\n", r->steps.at[i].invariant,
                (unsigned long long)r->steps.at[i].ref, r->steps.at[i].text);
    for (size_t i = 0; i < r->obstacles.count && i < 40; i++)
        fprintf(stderr, "  obstacle %s at %#llx: %s\n", r->obstacles.at[i].invariant,
                (unsigned long long)r->obstacles.at[i].ref, r->obstacles.at[i].text);
}

/* Repair the file. 1 repaired, 0 refused or no heap. */
static int repair_file(int loud)
{
    struct smi_repair r;
    int fd = open_file(), done = 0;
    int rc = smi_repair_plan(&r, fd, f.path, NULL);
    must(rc >= -30000, "code %d", rc);
    if (loud)
        show(&r);
    if (rc == 0 && r.obstacles.count == 0) {
        rc = smi_repair_apply(&r, fd, NULL);
        if (rc < 0)
            show(&r);
        must_work(rc);
        done = 1;
    }
    smi_repair_finish(&r);
    close(fd);
    return done;
}

/* What the file holds now, mapped. */
static struct image map_file(void)
{
    int fd = open_file();
    struct image m = {.size = (uint64_t)lseek(fd, 0, SEEK_END)};
    m.bytes = mmap(NULL, m.size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    must(m.bytes != MAP_FAILED, "map %s", f.path);
    close(fd);
    return m;
}

static void must_be_unchanged(const struct image *m, const char *name)
{
    struct image now = map_file();
    must(now.size == m->size && memcmp(now.bytes, m->bytes, m->size) == 0,
         "%s: a refused repair changed the file", name);
    munmap(now.bytes, now.size);
}

/* Take it into use: what the dead left comes back, and a lot of work leads to no contradiction. */
static int use_heap(void *arg)
{
    (void)arg;
    static shmalloc_ref refs[2000];
    struct rng work = rng_from(7);
    must_work(shmalloc_recover(f.path));
    shmalloc_heap *heap = heap_open(f.path);
    for (int step = 0; step < 5000; step++) {
        shmalloc_ref *ref = &refs[rng_below(&work, 2000)];
        must_work(*ref ? shmalloc_ref_free(heap, ref)
                       : shmalloc_ref_alloc_tagged(heap, rng_log_uniform(&work, 17),
                                                   (uint16_t)(step % 3), ref));
    }
    for (int i = 0; i < 2000; i++)
        if (refs[i])
            must_work(shmalloc_ref_free(heap, &refs[i]));
    must_work(shmalloc_root_set(heap, "bound after", 1, 0));
    must_work(shmalloc_root_remove(heap, "bound after"));
    must_work(shmalloc_check(heap));
    must_work(shmalloc_close(heap));
    return 0;
}

static void must_be_as_held(enum base base, const struct image *m, size_t lost, const char *name)
{
    must_be_sound_on_disk(f.path);
    struct image now = map_file();
    must_hold(&now, &held[base], m, lost, name);
    munmap(now.bytes, now.size);
}

Test(repair, of_each_damage_leads_to_a_sound_heap_or_is_refused)
{
    size_t repaired = 0, failed = 0;
    for (size_t i = 0; i < DAMAGES; i++) {
        struct image m = damaged_image(i);
        enum outcome outcome = outcome_of(&damages[i]);
        image_write(&m, f.path);
        int done = repair_file(0);
        if (done != (outcome != REFUSED)) {
            fprintf(stderr, "%s is %s:\n", damages[i].name, done ? "repaired" : "refused");
            if (!done)
                repair_file(1);
            failed++;
        } else if (!done) {
            must_be_unchanged(&m, damages[i].name);
        } else {
            must_be_as_held(damages[i].base, &m, outcome == NO_ROOT, damages[i].name);
            must(run_child(use_heap, NULL) == 0, "%s: the repaired heap is of no use",
                 damages[i].name);
            must_be_as_held(damages[i].base, &m, outcome == NO_ROOT, damages[i].name);
            repaired++;
        }
        free(m.bytes);
    }
    cr_assert_eq(failed, 0, "%zu of %zu damages have another outcome than they must", failed,
                 DAMAGES);
    cr_assert_geq(repaired, DAMAGES - 10);
}

/* ---- killed half way ------------------------------------------------------------------------- */

/* The file as a repair leaves it that is killed after `count` of its words. */
static void write_part(const struct smi_repair *r, size_t count)
{
    int fd = open_file();
    uint64_t poison = (uint64_t)-SHMALLOC_ECORRUPT;
    must(pwrite(fd, &poison, 8, SMF_STATE_OFFSET + offsetof(struct smf_state, poison)) == 8,
         "pwrite");
    for (int stage = 0; stage < SMI_REPAIR_STAGES; stage++)
        for (size_t i = 0; i < r->words[stage].count && count > 0; i++, count--) {
            const struct smi_repair_word *word = &r->words[stage].at[i];
            must(pwrite(fd, &word->value, 8, (off_t)word->ref) == 8, "pwrite");
        }
    close(fd);
}

static size_t word_count(const struct smi_repair *r)
{
    size_t count = 0;
    for (int stage = 0; stage < SMI_REPAIR_STAGES; stage++)
        count += r->words[stage].count;
    return count;
}

Test(repair, that_is_killed_after_any_word_is_done_again)
{
    for (size_t i = 0; i < DAMAGES; i++) {
        enum outcome outcome = outcome_of(&damages[i]);
        if (outcome == REFUSED)
            continue;
        struct image m = damaged_image(i);
        struct smi_repair r;
        image_write(&m, f.path);
        int fd = open_file();
        must_work(smi_repair_plan(&r, fd, f.path, NULL));
        size_t words = word_count(&r);
        for (int point = 0; point < rounds(1); point++) {
            size_t n = rng_below(&rng, words + 1);
            image_write(&m, f.path);
            write_part(&r, n);
            if (!repair_file(0)) {
                show(&r);
                fprintf(stderr, "again:\n");
                repair_file(1);
                must(0, "%s: killed after %zu of %zu words the repair is refused", damages[i].name,
                     n, words);
            }
            must_be_as_held(damages[i].base, &m, outcome == NO_ROOT, damages[i].name);
        }
        smi_repair_finish(&r);
        close(fd);
        free(m.bytes);
    }
}

/* ---- several damages ------------------------------------------------------------------------- */

/* Damages that do not need what another one of them destroys: one of each group, those of the
 * identity last. */
static size_t pick(const char *letters)
{
    size_t i;
    do
        i = rng_below(&rng, DAMAGES);
    while (!strchr(letters, damages[i].invariant[0]) || damages[i].base != KILLED);
    return i;
}

Test(repair, of_several_damages_loses_no_block)
{
    static const char *const groups[] = {"P", "C", "S", "T", "RO", "L", "HD"};
    size_t repaired = 0, refused = 0;
    for (int round = 0; round < rounds(25); round++) {
        struct image m = {malloc(bases[KILLED].size), bases[KILLED].size};
        size_t lost = 0, chosen[8], count = 0;
        char names[600] = "";
        memcpy(m.bytes, bases[KILLED].bytes, m.size);
        for (size_t g = 0; g < sizeof(groups) / sizeof(groups[0]); g++)
            if (rng_below(&rng, 3) == 0)
                chosen[count++] = pick(groups[g]);
        for (size_t c = 0; c < count; c++) {
            damages[chosen[c]].apply(&m);
            lost += outcome_of(&damages[chosen[c]]) == NO_ROOT;
            strcat(strcat(names, " "), damages[chosen[c]].name);
        }
        image_write(&m, f.path);
        if (repair_file(0)) {
            must_be_as_held(KILLED, &m, lost, names);
            repaired++;
        } else {
            must_be_unchanged(&m, names);
            fprintf(stderr, "refused:%s\n", names);
            refused++;
        }
        free(m.bytes);
    }
    fprintf(stderr, "%zu repaired, %zu refused\n", repaired, refused);
    cr_assert_gt(repaired, refused);
}

/* Neither its descriptor nor its word makes a slab, but what is left of both and the class's count
 * do. */
Test(repair, of_a_slab_whose_word_and_descriptor_are_wrong_loses_no_block)
{
    struct image m = {malloc(bases[KILLED].size), bases[KILLED].size};
    memcpy(m.bytes, bases[KILLED].bytes, m.size);
    wrong_index_in_word(&m);
    slab_of_no_class(&m);
    image_write(&m, f.path);
    cr_assert(repair_file(0));
    must_be_as_held(KILLED, &m, 0, "a slab");
    free(m.bytes);
}

/* ---- any damage ------------------------------------------------------------------------------ */

/* A word of the fixed areas, or, more often, one that is not 0 of a chunk's words and descriptors
 * or of what the library keeps in pages: thread slots, roots, bitmaps. */
static uint64_t some_word(const struct image *m)
{
    const struct smf_areas *areas = image_areas(m);
    for (;;) {
        uint32_t chunk = (uint32_t)rng_below(&rng, image_state(m)->chunk_count);
        const struct smf_chunk *c = &image_directory(m)[chunk];
        uint64_t start = smi_chunk_words_offset(c, areas),
                 len = smi_chunk_metadata_bytes(c->page_count), word;
        if (rng_below(&rng, 3) == 0) {
            start = SMF_STATE_OFFSET;
            len = areas->end - start;
        } else if (rng_below(&rng, 2) == 0) {
            uint32_t page = c->first_page + (uint32_t)rng_below(&rng, c->page_count);
            const struct smf_page *d = image_page(m, page);
            if (d->kind != SMF_PAGE_META &&
                !(d->kind == SMF_PAGE_SLAB &&
                  (d->arena == image_header(m)->arena_count || d->size_class == 0)))
                continue;
            start = image_page_ref(page);
            len = (uint64_t)d->page_count << SMF_PAGE_SHIFT;
        }
        uint64_t at = (start + rng_below(&rng, len)) & ~7ull;
        memcpy(&word, m->bytes + at, 8);
        if (word != 0)
            return at;
    }
}

/* Words of metadata get likely and unlikely values. */
static void scratch(struct image *m, const struct image *base, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        uint64_t at = some_word(base), old, value;
        memcpy(&old, base->bytes + at, 8);
        value = rng_below(&rng, 3) == 0   ? rng_next(&rng)
                : rng_below(&rng, 2) == 0 ? old ^ 1ull << rng_below(&rng, 64)
                                          : rng_below(&rng, base->size + 100);
        memcpy(m->bytes + at, &value, 8);
    }
}

static size_t lost_blocks(const struct holdings *before)
{
    struct image now = map_file();
    struct holdings h = holdings_of(&now);
    size_t lost = 0, at;
    for (size_t i = 0; i < before->block_count; i++)
        lost += block_at(&h, before->blocks[i].ref, &at) == NULL;
    free(h.blocks);
    munmap(now.bytes, now.size);
    return lost;
}

Test(repair, of_any_damage_ends_in_a_sound_heap_or_an_unchanged_file)
{
    size_t repaired = 0, losing = 0, refused = 0;
    for (int round = 0; round < rounds(24); round++) {
        const enum base base = (enum base)(round % BASES);
        struct image m = {malloc(bases[base].size), bases[base].size};
        memcpy(m.bytes, bases[base].bytes, m.size);
        scratch(&m, &bases[base], 1 + (unsigned)round / BASES % 8);
        image_write(&m, f.path);
        if (repair_file(0)) {
            must_be_sound_on_disk(f.path);
            losing += lost_blocks(&held[base]) > 0; /* a truth that nothing else tells cannot come
                                                       back */
            repaired++;
        } else {
            must_be_unchanged(&m, "scratches");
            refused++;
        }
        free(m.bytes);
    }
    fprintf(stderr, "%zu repaired, of which %zu lost blocks, %zu refused\n", repaired, losing,
            refused);
}
