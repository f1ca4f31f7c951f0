/* SPDX-License-Identifier: MIT */
/*
 * cmd_leaks.c - blocks that cannot be reached from the roots.
 *
 * The library does not know where programs keep refs, so every aligned word of a reachable block is
 * taken for one if it could be (Boehm and Weiser's conservative marking). The blocks are listed
 * once, in ascending order; a word is looked up by binary search; a block is put on the worklist
 * when it is first reached, so each is read once and the worklist never holds more than all of
 * them.
 */
#include "inspect.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "platform/os.h"
#include "structures/structures.h"

static const char help[] =
    "Blocks that no chain of refs leads to from the named roots. A heap outlives the\n"
    "programs that use it, and so do blocks that they forgot.\n"
    "\n"
    "The search is conservative: every 8-byte word of a reachable block that equals the\n"
    "ref of a block keeps that block, whether it is meant as a ref or not (in heaps with\n"
    "a fixed base, so does its address). So a leak can be missed, but what is listed is\n"
    "unreachable, if programs keep refs in aligned words of the heap. Refs that are packed\n"
    "or combined with other bits are not seen; those that point inside a block are, with\n"
    "--interior, and those that are relative to where they lie, with --relative.\n"
    "\n"
    "A heap in use moves during the search. So it is searched again, until a search takes\n"
    "no block away any more, and only what all of them found is reported: two at least.\n"
    "Blocks that only running programs hold are leaked all the same: best search at rest.\n"
    "\n"
    "A leaked block that no other leaked block refers to is the start of a chain; samples\n"
    "are of those first.\n"
    "\n"
    "Options\n"
    "      --interior    a word that points anywhere inside a block keeps it, too\n"
    "      --relative    a word that leads to a block when it is added to where it lies\n"
    "                    (offset_ptr of Boost.Interprocess) keeps it, too\n"
    "      --samples N   leaked blocks to show, 10 unless said\n"
    "\n"
    "Exit status\n"
    "  0 no leaks; 1 leaks found, or the heap is damaged; 2 cannot tell\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"leaks\", the path\n"
    "  status                  \"sound\", \"leaks\", \"damaged\" or \"unknown\"\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  blocks, reachable, leaked   count, bytes of each\n"
    "  starts                  number of leaked blocks that no leaked block refers to\n"
    "  looks, left_out         searches made; blocks that only some of them found\n"
    "  by_size                 list of: size, count, bytes; most bytes first\n"
    "  by_tag                  list of: tag, count, bytes; most bytes first\n"
    "  samples                 list of: ref, size, tag, start\n";

static const struct option options[] = {{"interior", no_argument, NULL, 'i'},
                                        {"relative", no_argument, NULL, 'r'},
                                        {"samples", required_argument, NULL, 'n'},
                                        {NULL, 0, NULL, 0}};
const struct command_line inspect_leaks_line = {
    "[--json] [--interior] [--relative] [--samples N] FILE", "", options, 0};

enum mark {
    REACHED = 1,
    REFERRED = 2
}; /* from a root; by another leaked block */

struct sum {
    uint64_t count, bytes;
};

/* A block that every look so far found leaked, with the same bytes. */
struct suspect {
    uint64_t ref, size, hash;
    uint16_t tag;
};

struct search {
    struct inspect *in;
    struct suspect *suspects; /* ascending; of a heap in use */
    uint64_t suspect_count;
    uint64_t left_out; /* blocks that only some looks found leaked */
    uint32_t looks;
    shmalloc_block *blocks; /* ascending */
    uint64_t count, room;
    uint8_t *marks; /* of each block */
    uint64_t *worklist; /* indices of blocks that were reached and not read yet */
    uint64_t waiting, done;
    uint64_t samples;
    struct sum all, leaked;
    uint64_t starts;
    int out_of_memory;
};

/* ---- blocks --------------------------------------------------------------------------------- */

static int no_memory(const struct search *s)
{
    return smi_error(-ENOMEM, "%s: no memory to search %llu blocks", s->in->path,
                     (unsigned long long)s->count);
}

static int collect(const shmalloc_block *block, void *arg)
{
    struct search *s = arg;
    if (s->count == s->room) {
        uint64_t room = 2 * s->room + 4096;
        shmalloc_block *larger = realloc(s->blocks, room * sizeof(*larger));
        if (!larger)
            return no_memory(s);
        s->blocks = larger;
        s->room = room;
    }
    s->blocks[s->count++] = *block;
    s->all.count++;
    s->all.bytes += block->size;
    return 0;
}

static int prepare(struct search *s)
{
    int rc = smi_view_each_block(&s->in->view, collect, s);
    if (rc < 0)
        return rc;
    s->in->view.progress = NULL; /* from here on, progress is counted in blocks */
    s->marks = calloc(s->count + 1, sizeof(*s->marks));
    s->worklist = malloc((s->count + 1) * sizeof(*s->worklist));
    return s->marks && s->worklist ? 0 : no_memory(s);
}

/* Index of the block that `ref` names, or lies in; `count` when there is none. */
static uint64_t find(const struct search *s, uint64_t ref, int interior)
{
    uint64_t low = 0, high = s->count;
    while (low < high) { /* the last block that begins at or before ref */
        uint64_t middle = low + (high - low) / 2;
        if (s->blocks[middle].ref <= ref)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return s->count;
    const shmalloc_block *block = &s->blocks[low - 1];
    return ref == block->ref || (interior && ref - block->ref < block->size) ? low - 1 : s->count;
}

/* A block's number, when a word is its ref. */
static uint64_t at_ref(const struct search *s, uint64_t word)
{
    uint64_t end = s->in->view.file_size;
    int interior = s->in->given['i'] != NULL;
    if (word < SMF_PAGE || word >= end || (!interior && word % 8 != 0))
        return s->count;
    return find(s, word, interior);
}

/* What a word names, as a ref or as an address where the heap is mapped at a fixed one. */
static uint64_t named_by(const struct search *s, uint64_t word)
{
    uint64_t base = s->in->view.header.fixed_base;
    return at_ref(s,
                  base && word >= base && word - base < s->in->view.file_size ? word - base : word);
}

/* ---- marking -------------------------------------------------------------------------------- */

static void reach(struct search *s, uint64_t i)
{
    if (i == s->count || s->marks[i] & REACHED)
        return;
    s->marks[i] |= REACHED;
    s->worklist[s->waiting++] = i;
}

static void refer(struct search *s, uint64_t i, uint64_t from)
{
    if (i != s->count && i != from)
        s->marks[i] |= REFERRED;
}

typedef void found_fn(struct search *s, uint64_t named, uint64_t from);

/* A word of block `i`, at `own`. A pointer that is relative to itself, as offset_ptr of
 * Boost.Interprocess is, leads as many bytes from there. */
static void read_word(struct search *s, uint64_t word, uint64_t own, uint64_t i, found_fn *found)
{
    if (word >= SMF_PAGE)
        found(s, named_by(s, word), i);
    if (word != 0 && s->in->given['r'])
        found(s, at_ref(s, own + word), i);
}

/*
 * Call `found` for every block that a word of block `i` names. The view keeps what it read, which
 * is what makes scattered small blocks cheap; beyond KEPT bytes blocks are read one by one, so that
 * a heap may be larger than memory.
 */
#define KEPT (1ull << 30)

static void read_words(struct search *s, uint64_t i, found_fn *found)
{
    enum {
        PIECE = 8192
    };
    uint64_t buffer[PIECE], end = s->blocks[i].ref + s->blocks[i].size;
    struct smi_view *view = &s->in->view;
    for (uint64_t ref = s->blocks[i].ref; ref < end; ref += sizeof(buffer)) {
        uint64_t len = end - ref < sizeof(buffer) ? end - ref : sizeof(buffer);
        const uint64_t *words = buffer;
        if (view->bytes_read < KEPT)
            words = smi_view_at(view, ref, len);
        else if (smi_view_read_now(view, ref, len, buffer) < 0)
            words = NULL;
        for (uint64_t w = 0; words && w < len / 8; w++)
            read_word(s, words[w], ref + 8 * w, i, found);
    }
    if (++s->done % 1024 == 0)
        inspect_progress_count("searching", s->done, s->count, "blocks");
}

static void reach_from(struct search *s, uint64_t named, uint64_t from)
{
    (void)from;
    reach(s, named);
}

static int reach_root(const shmalloc_root *root, void *arg)
{
    struct search *s = arg;
    reach(s, find(s, root->ref, 1)); /* a root may name a part of a block */
    return 0;
}

/* Blocks that a realloc or the making of a root holds on behalf of the library. */
static void reach_steps_under_way(struct search *s)
{
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref;
        const struct smf_thread *thread = smi_view_thread(&s->in->view, i, &ref);
        if (thread && thread->owner) {
            reach(s, find(s, thread->scratch, 1));
            reach(s, find(s, thread->building, 1));
            reach(s, find(s, thread->structure & ~SMF_WHAT, 1));
            reach(s, find(s, thread->nested, 1));
        }
    }
}

/* Headers of structures that wait to be used again are the library's. */
static int reach_unused(const struct smi_structure_seen *seen, void *arg)
{
    struct search *s = arg;
    if ((seen->head->life & SMF_LIFE_STATE) == SMF_LIFE_NONE)
        reach(s, find(s, seen->ref, 0));
    return 0;
}

static int reach_part(uint64_t part, void *arg)
{
    struct search *s = arg;
    reach(s, find(s, part, 0));
    return 0;
}

/* The words of a structure may be more than refs; its type knows what they name. */
static void reach_parts(struct search *s, const shmalloc_block *block)
{
    const struct smi_structure_type *type = smi_structure_type(block->tag);
    const struct smf_structure *head =
        type ? smi_view_at(&s->in->view, block->ref, sizeof(*head)) : NULL;
    if (head && (head->life & SMF_LIFE_STATE) != SMF_LIFE_NONE)
        type->each_ref(&s->in->view, block->ref, reach_part, s);
}

static int mark(struct search *s)
{
    int rc = smi_view_each_root(&s->in->view, reach_root, s);
    if (rc == 0)
        rc = smi_structures_each(&s->in->view, reach_unused, s);
    if (rc < 0)
        return rc;
    reach_steps_under_way(s);
    while (s->waiting > 0) {
        uint64_t i = s->worklist[--s->waiting];
        read_words(s, i, reach_from);
        reach_parts(s, &s->blocks[i]);
    }
    return 0;
}

static void find_starts(struct search *s)
{
    for (uint64_t i = 0; i < s->count; i++)
        if (!(s->marks[i] & REACHED))
            read_words(s, i, refer);
    for (uint64_t i = 0; i < s->count; i++) {
        if (s->marks[i] & REACHED)
            continue;
        s->leaked.count++;
        s->leaked.bytes += s->blocks[i].size;
        s->starts += !(s->marks[i] & REFERRED);
    }
}

/* ---- sums ----------------------------------------------------------------------------------- */

struct line {
    uint64_t key; /* a size or a tag */
    struct sum sum;
};

static int by_key(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    return x->key < y->key ? -1 : x->key > y->key;
}

static int by_bytes(const void *a, const void *b)
{
    const struct line *x = a, *y = b;
    return x->sum.bytes != y->sum.bytes ? (x->sum.bytes < y->sum.bytes ? 1 : -1) : by_key(a, b);
}

/* Sums of the leaked blocks by size or by tag, most bytes first; their number. NULL in `*lines`
 * when memory is short. */
static uint64_t sum_up(struct search *s, int tags, struct line **lines)
{
    uint64_t count = 0, used = 0;
    struct line *all = malloc((s->leaked.count + 1) * sizeof(*all));
    *lines = all;
    if (!all) {
        s->out_of_memory = 1;
        return 0;
    }
    for (uint64_t i = 0; i < s->count; i++)
        if (!(s->marks[i] & REACHED))
            all[count++] =
                (struct line){tags ? s->blocks[i].tag : s->blocks[i].size, {1, s->blocks[i].size}};
    if (count)
        qsort(all, count, sizeof(*all), by_key);
    for (uint64_t i = 0; i < count; i++) {
        if (used == 0 || all[used - 1].key != all[i].key) {
            all[used++] = all[i];
            continue;
        }
        all[used - 1].sum.count++;
        all[used - 1].sum.bytes += all[i].sum.bytes;
    }
    if (used)
        qsort(all, used, sizeof(*all), by_bytes);
    return used;
}

/* Call `show` for at most `s->samples` leaked blocks, starts of chains first. */
static void each_sample(struct search *s,
                        void (*show)(const shmalloc_block *block, int is_start, void *arg),
                        void *arg)
{
    uint64_t left = s->samples;
    for (int starts = 1; starts >= 0; starts--)
        for (uint64_t i = 0; i < s->count && left > 0; i++)
            if (!(s->marks[i] & REACHED) && starts == !(s->marks[i] & REFERRED)) {
                show(&s->blocks[i], starts, arg);
                left--;
            }
}

/* ---- text ----------------------------------------------------------------------------------- */

static void print_lines(struct search *s, int tags)
{
    enum {
        SHOWN = 12
    };
    struct line *lines;
    uint64_t count = sum_up(s, tags, &lines);
    char name[32], number[32], bytes[32], n[64];
    if (count > 1 || (count == 1 && (!tags || lines[0].key)))
        printf("\n%s%14s %13s %12s%s\n", inspect_color(s->in, BOLD), tags ? "TAG" : "SIZE",
               "LEAKED", "BYTES", inspect_color(s->in, PLAIN));
    else
        count = 0;
    for (uint64_t i = 0; i < count && i < SHOWN; i++)
        printf("%14s %13s %12s\n",
               tags && lines[i].key == 0 ? "none" : inspect_number(lines[i].key, name),
               inspect_number(lines[i].sum.count, number),
               inspect_bytes(lines[i].sum.bytes, bytes));
    if (count > SHOWN)
        printf("%14s %s with fewer bytes\n", "and",
               inspect_count(count - SHOWN, tags ? "tag" : "size", tags ? "tags" : "sizes", n));
    free(lines);
}

static void print_sample(const shmalloc_block *block, int is_start, void *arg)
{
    char size[32];
    (void)arg;
    printf("0x%012llx  %15s  %5u  %s\n", (unsigned long long)block->ref,
           inspect_number(block->size, size), block->tag,
           is_start ? "" : "a leaked block refers to it");
}

static void print_samples(struct search *s)
{
    char n[64];
    if (s->samples == 0)
        return;
    printf("\n%sREF                        SIZE    TAG%s\n", inspect_color(s->in, BOLD),
           inspect_color(s->in, PLAIN));
    each_sample(s, print_sample, NULL);
    if (s->leaked.count > s->samples)
        printf("and %s; --samples shows more\n",
               inspect_count(s->leaked.count - s->samples, "block", "blocks", n));
}

/* Of a heap in use. */
static void print_motion(struct search *s)
{
    char n[64], m[64];
    if (!inspect_is_live(s->in))
        return;
    printf("%sThe heap moves: what is said here is what %s agree%s on", inspect_color(s->in, DIM),
           inspect_count(s->looks, "look", "looks", n), s->looks == 1 ? "s" : "");
    if (s->left_out)
        printf("; %s looked leaked in some only", inspect_count(s->left_out, "block", "blocks", m));
    printf(".%s\n", inspect_color(s->in, PLAIN));
}

static void print_all(struct search *s)
{
    char n[64], m[64], bytes[32];
    if (s->leaked.count == 0) {
        printf("%sno leaks%s: all of %s, %s, can be reached from the roots\n",
               inspect_color(s->in, GREEN), inspect_color(s->in, PLAIN),
               inspect_count(s->all.count, "block", "blocks", n),
               inspect_bytes(s->all.bytes, bytes));
        return;
    }
    printf("%sleaked: %s, %s%s, of %s\n", inspect_color(s->in, RED),
           inspect_count(s->leaked.count, "block", "blocks", n),
           inspect_bytes(s->leaked.bytes, bytes), inspect_color(s->in, PLAIN),
           inspect_count(s->all.count, "block", "blocks", m));
    printf("%s of them are referred to by no leaked block\n", inspect_number(s->starts, bytes));
    print_lines(s, 0);
    print_lines(s, 1);
    print_samples(s);
    printf("\n%sThe search is conservative: no aligned word of what can be\n"
           "reached equals a ref to these blocks. --help says more.\n",
           inspect_color(s->in, DIM));
    if (inspect_is_live(s->in))
        printf("Blocks that only running programs hold are among them.\n");
    printf("%s", inspect_color(s->in, PLAIN));
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void add_sum(struct json_object *object, const struct sum *sum)
{
    inspect_add_number(object, "count", sum->count);
    inspect_add_number(object, "bytes", sum->bytes);
}

static void add_lines(struct search *s, int tags)
{
    struct json_object *list = json_object_new_array();
    struct line *lines;
    uint64_t count = sum_up(s, tags, &lines);
    for (uint64_t i = 0; i < count; i++) {
        struct json_object *object = json_object_new_object();
        inspect_add_number(object, tags ? "tag" : "size", lines[i].key);
        add_sum(object, &lines[i].sum);
        json_object_array_add(list, object);
    }
    free(lines);
    inspect_add(s->in->out, tags ? "by_tag" : "by_size", list);
}

static void add_sample(const shmalloc_block *block, int is_start, void *arg)
{
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, "ref", block->ref);
    inspect_add_number(object, "size", block->size);
    inspect_add_number(object, "tag", block->tag);
    inspect_add_flag(object, "start", is_start);
    json_object_array_add(arg, object);
}

static void add_all(struct search *s)
{
    struct sum reachable = {s->all.count - s->leaked.count, s->all.bytes - s->leaked.bytes};
    const struct sum *sums[] = {&s->all, &reachable, &s->leaked};
    static const char *const keys[] = {"blocks", "reachable", "leaked"};
    struct json_object *samples = json_object_new_array();
    for (int i = 0; i < 3; i++) {
        struct json_object *object = json_object_new_object();
        add_sum(object, sums[i]);
        inspect_add(s->in->out, keys[i], object);
    }
    inspect_add_number(s->in->out, "starts", s->starts);
    inspect_add_number(s->in->out, "looks", s->looks);
    inspect_add_number(s->in->out, "left_out", s->left_out);
    add_lines(s, 0);
    add_lines(s, 1);
    each_sample(s, add_sample, samples);
    inspect_add(s->in->out, "samples", samples);
}

/* ---- looks ---------------------------------------------------------------------------------- */

/*
 * While a heap is in use, what links two blocks may be read before it is stored and the block after
 * that; then the block looks leaked. So the heap is looked at until AGREED looks in a row take no
 * block away: those that stay were leaked in each look, and nobody wrote to them in between. One
 * such look is not enough: where a block is freed and allocated all the time, and nobody writes to
 * it, it looks leaked in two looks in a row now and then.
 */
#define AGREED 6
#define MOST_LOOKS 40
#define MOST_WAIT_NS 50000000ull /* between two looks */
#define HASHED 512u /* bytes of a block */

static struct suspect suspect_of(struct search *s, uint64_t i)
{
    const shmalloc_block *block = &s->blocks[i];
    uint8_t bytes[HASHED];
    uint64_t len = block->size < HASHED ? block->size : HASHED;
    int rc = smi_view_read_now(&s->in->view, block->ref, len, bytes);
    return (struct suspect){block->ref, block->size, rc < 0 ? 0 : smi_hash(bytes, len), block->tag};
}

/* The suspects become those of them that this look found leaked, too; the first look's are all that
 * it found. */
static int agree(struct search *s)
{
    uint64_t kept = 0, at = 0;
    if (s->looks == 1 && !(s->suspects = malloc((s->count + 1) * sizeof(*s->suspects))))
        return no_memory(s);
    for (uint64_t i = 0; i < s->count; i++) {
        if (s->marks[i] & REACHED)
            continue;
        struct suspect now = suspect_of(s, i);
        while (s->looks > 1 && at < s->suspect_count && s->suspects[at].ref < now.ref)
            at++;
        const struct suspect *was = &s->suspects[at];
        if (s->looks == 1 ||
            (at < s->suspect_count && was->ref == now.ref && was->size == now.size &&
             was->tag == now.tag && was->hash == now.hash))
            s->suspects[kept++] = now;
    }
    s->left_out += s->looks > 1 ? s->suspect_count - kept : 0;
    s->suspect_count = kept;
    return 0;
}

static void forget_look(struct search *s)
{
    free(s->blocks);
    free(s->marks);
    free(s->worklist);
    s->blocks = NULL;
    s->marks = NULL;
    s->worklist = NULL;
    s->count = s->room = s->waiting = s->done = 0;
    s->all = (struct sum){0, 0};
}

static int look_once(struct search *s)
{
    if (s->looks > 0) {
        forget_look(s);
        uint64_t wait_ns = 10000000ull * s->looks;
        smi_os_sleep(wait_ns < MOST_WAIT_NS ? wait_ns : MOST_WAIT_NS);
        int rc = smi_view_reload(&s->in->view);
        if (rc < 0)
            return rc;
        s->in->view.progress = inspect_progress;
    }
    int rc = prepare(s);
    if (rc == 0)
        rc = mark(s);
    s->looks++;
    return rc;
}

/* What the looks do not agree on is none. */
static void acquit(struct search *s)
{
    uint64_t at = 0;
    for (uint64_t i = 0; i < s->count; i++) {
        while (at < s->suspect_count && s->suspects[at].ref < s->blocks[i].ref)
            at++;
        if (at == s->suspect_count || s->suspects[at].ref != s->blocks[i].ref)
            s->marks[i] |= REACHED;
    }
}

static int look_until_agreed(struct search *s)
{
    unsigned agreed = 0;
    int rc;
    do {
        uint64_t before = s->suspect_count;
        if ((rc = look_once(s)) < 0)
            return rc;
        if (!inspect_is_live(s->in))
            return 0;
        rc = agree(s);
        agreed = s->looks > 1 && s->suspect_count == before ? agreed + 1 : 0;
    } while (rc == 0 && s->suspect_count > 0 && s->looks < MOST_LOOKS && agreed < AGREED);
    if (rc == 0)
        acquit(s);
    return rc;
}

/* ---- the command ---------------------------------------------------------------------------- */

static enum verdict search_and_show(struct search *s)
{
    int rc = look_until_agreed(s);
    if (rc < 0)
        return inspect_report_error(s->in, rc);
    find_starts(s);
    inspect_progress_end();
    if (s->in->out) {
        add_all(s);
    } else {
        print_all(s);
        print_motion(s);
    }
    enum verdict verdict =
        s->out_of_memory ? inspect_report_error(s->in, no_memory(s)) : inspect_conclude(s->in);
    if (verdict != SOUND || s->leaked.count == 0)
        return verdict;
    s->in->finding = "leaks";
    return DAMAGED;
}

static enum verdict run(struct inspect *in)
{
    struct search search = {.in = in, .samples = 10};
    if (inspect_option_number(in, 'n', "samples", 0, UINT64_MAX, &search.samples) < 0)
        return CANNOT_TELL;
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict == SOUND)
        verdict = search_and_show(&search);
    forget_look(&search);
    free(search.suspects);
    return verdict;
}

const struct subcommand inspect_leaks = {"leaks", "blocks that cannot be reached from the roots",
                                         help, run, NULL};
