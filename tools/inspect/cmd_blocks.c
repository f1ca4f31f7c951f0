/* SPDX-License-Identifier: MIT */
/* cmd_blocks.c - the allocated blocks: sums by size and by tag, and a list to choose from. */
#include "inspect.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "format/sizeclass.h"

static const char help[] =
    "Blocks that programs have allocated, first in sums by size and by type tag, then one\n"
    "by one: ref (bytes from the start of the heap), usable size, tag, and where the block\n"
    "lies: in a slab of an arena, or, too large for slots, in pages of its own.\n"
    "Sizes are those of slots or pages, not what was asked for. Blocks of the library\n"
    "itself, such as the names of roots, are not listed, nor are large ones that a thread\n"
    "freed and keeps for its next requests.\n"
    "Sums and list are both of the blocks that pass all of the filters.\n"
    "\n"
    "Options\n"
    "      --min-size N, --max-size N   bytes; K, M, G stand for powers of 1024\n"
    "      --tag N                      blocks with this tag only; 0: with none\n"
    "      --sort KEY                   ref (else), size (largest first) or tag\n"
    "      --limit N                    lines of the list, 20 unless said; \"all\"\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"blocks\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  total                   count, bytes\n"
    "  by_size                 list of: size (the most in this line; of large blocks the\n"
    "                          next power of two), count, bytes\n"
    "  by_tag                  list of: tag, count, bytes\n"
    "  blocks                  list of: ref, size, tag, kind (\"slab\", \"large\"), arena\n"
    "                          (of slabs)\n"
    "  left_out                number of blocks that the limit left out of the list\n";

static const struct option options[] = {
    {"min-size", required_argument, NULL, 'm'}, {"max-size", required_argument, NULL, 'M'},
    {"tag", required_argument, NULL, 't'},      {"sort", required_argument, NULL, 's'},
    {"limit", required_argument, NULL, 'l'},    {NULL, 0, NULL, 0},
};
const struct command_line inspect_blocks_line = {
    "[--json] [--min-size N] [--max-size N] [--tag N]\n"
    "                               [--sort ref|size|tag] [--limit N] FILE",
    "", options, 0};

struct sum {
    uint64_t count, bytes;
};

#define TAGS 65536
#define DOUBLINGS 64 /* of large blocks: [n] those of 2^(n-1) + 1 to 2^n bytes */

struct listing {
    struct inspect *in;
    uint64_t least, most, tag, limit; /* tag: TAGS = any */
    int (*order)(const void *a, const void *b); /* NULL: by ref, in which they come */
    struct sum total, by_class[SMF_CLASSES], by_doubling[DOUBLINGS], by_tag[TAGS];
    shmalloc_block *blocks; /* that may be shown */
    uint64_t count, room;
};

/* ---- collecting ----------------------------------------------------------------------------- */

static void add(struct sum *sum, uint64_t bytes)
{
    sum->count++;
    sum->bytes += bytes;
}

static unsigned doubling_of(uint64_t size)
{
    return size <= 1 ? 0 : 64 - (unsigned)__builtin_clzll(size - 1);
}

/* Is that the size of a slot? Large blocks of a slot's size, which strict alignment can make, are
 * counted there, too. */
static int is_slot_size(uint64_t size)
{
    return size <= SMI_MAX_SMALL && smi_classes[smi_class_of(size)].size == size;
}

static int keep(struct listing *l, const shmalloc_block *block)
{
    if (!l->order && l->count >= l->limit)
        return 0;
    if (l->count == l->room) {
        uint64_t room = 2 * l->room + 1024;
        shmalloc_block *larger = realloc(l->blocks, room * sizeof(*larger));
        if (!larger)
            return smi_error(-ENOMEM, "%s: no memory for a list of %llu blocks", l->in->path,
                             (unsigned long long)room);
        l->blocks = larger;
        l->room = room;
    }
    l->blocks[l->count++] = *block;
    return 0;
}

static int collect(const shmalloc_block *block, void *arg)
{
    struct listing *l = arg;
    if (block->size < l->least || block->size > l->most || (l->tag != TAGS && block->tag != l->tag))
        return 0;
    add(&l->total, block->size);
    add(&l->by_tag[block->tag], block->size);
    if (is_slot_size(block->size))
        add(&l->by_class[smi_class_of(block->size)], block->size);
    else
        add(&l->by_doubling[doubling_of(block->size)], block->size);
    return keep(l, block);
}

static int compare(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

static int by_size(const void *a, const void *b)
{
    const shmalloc_block *x = a, *y = b;
    return x->size != y->size ? compare(y->size, x->size) : compare(x->ref, y->ref);
}

static int by_tag(const void *a, const void *b)
{
    const shmalloc_block *x = a, *y = b;
    return x->tag != y->tag ? compare(x->tag, y->tag) : compare(x->ref, y->ref);
}

/* Arena of the slab that a block lies in, -1 for large ones. */
static int arena_of(struct inspect *in, const shmalloc_block *block)
{
    uint32_t slab, index;
    if (smi_view_slot(&in->view, block->ref, &slab, &index) < 0)
        return -1;
    return smi_view_page(&in->view, slab)->arena;
}

/* The tags by bytes, most first, in `tags`; their number. */
static const struct listing *sorted_listing;

static int by_bytes_of_tag(const void *a, const void *b)
{
    const uint32_t *x = a, *y = b;
    const struct sum *sums = sorted_listing->by_tag;
    return sums[*x].bytes != sums[*y].bytes ? compare(sums[*y].bytes, sums[*x].bytes)
                                            : compare(*x, *y);
}

static uint32_t tags_by_bytes(const struct listing *l, uint32_t tags[TAGS])
{
    uint32_t count = 0;
    for (uint32_t tag = 0; tag < TAGS; tag++)
        if (l->by_tag[tag].count)
            tags[count++] = tag;
    sorted_listing = l;
    qsort(tags, count, sizeof(*tags), by_bytes_of_tag);
    return count;
}

/* ---- text ----------------------------------------------------------------------------------- */

static void print_head(struct inspect *in, const char *text)
{
    printf("%s%s%s\n", inspect_color(in, BOLD), text, inspect_color(in, PLAIN));
}

static void print_sum(const struct listing *l, const char *name, const struct sum *sum)
{
    char count[32], bytes[32];
    double part = l->total.bytes ? 100.0 * (double)sum->bytes / (double)l->total.bytes : 0;
    printf("%14s %13s %12s %5.1f %%\n", name, inspect_number(sum->count, count),
           inspect_bytes(sum->bytes, bytes), part);
}

static void print_by_size(const struct listing *l)
{
    char name[32], bytes[32], up_to[64];
    print_head(l->in, "          SIZE         COUNT        BYTES");
    for (unsigned k = 0; k < SMF_CLASSES; k++)
        if (l->by_class[k].count)
            print_sum(l, inspect_number(smi_classes[k].size, name), &l->by_class[k]);
    for (unsigned i = 0; i < DOUBLINGS; i++) {
        if (l->by_doubling[i].count == 0)
            continue;
        snprintf(up_to, sizeof(up_to), "to %s", inspect_bytes(1ull << i, bytes));
        print_sum(l, up_to, &l->by_doubling[i]);
    }
    print_sum(l, "total", &l->total);
}

static void print_by_tag(const struct listing *l)
{
    enum {
        SHOWN = 20
    };
    static uint32_t tags[TAGS];
    uint32_t count = tags_by_bytes(l, tags);
    char name[32], n[64];
    if (count == 0 || (count == 1 && tags[0] == 0))
        return;
    printf("\n");
    print_head(l->in, "           TAG         COUNT        BYTES");
    for (uint32_t i = 0; i < count && i < SHOWN; i++) {
        snprintf(name, sizeof(name), "%u", tags[i]);
        print_sum(l, tags[i] ? name : "none", &l->by_tag[tags[i]]);
    }
    if (count > SHOWN)
        printf("%14s %s with fewer bytes\n", "and", inspect_count(count - SHOWN, "tag", "tags", n));
}

static void print_list(const struct listing *l)
{
    uint64_t shown = l->count < l->limit ? l->count : l->limit;
    char size[32], n[64];
    if (shown == 0)
        return;
    printf("\n");
    print_head(l->in, "REF                        SIZE    TAG  WHERE");
    for (uint64_t i = 0; i < shown; i++) {
        const shmalloc_block *block = &l->blocks[i];
        int arena = arena_of(l->in, block);
        printf("0x%012llx  %15s  %5u  ", (unsigned long long)block->ref,
               inspect_number(block->size, size), block->tag);
        if (arena < 0)
            printf("large\n");
        else
            printf("slab of arena %d\n", arena);
    }
    if (shown < l->total.count)
        printf("and %s; --limit shows more\n",
               inspect_count(l->total.count - shown, "block", "blocks", n));
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void add_sum(struct json_object *list, const char *key, uint64_t value,
                    const struct sum *sum)
{
    if (sum->count == 0)
        return;
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, key, value);
    inspect_add_number(object, "count", sum->count);
    inspect_add_number(object, "bytes", sum->bytes);
    json_object_array_add(list, object);
}

static void add_sums(const struct listing *l)
{
    struct json_object *total = json_object_new_object();
    struct json_object *sizes = json_object_new_array(), *tags = json_object_new_array();
    inspect_add_number(total, "count", l->total.count);
    inspect_add_number(total, "bytes", l->total.bytes);
    for (unsigned k = 0; k < SMF_CLASSES; k++)
        add_sum(sizes, "size", smi_classes[k].size, &l->by_class[k]);
    for (unsigned i = 0; i < DOUBLINGS; i++)
        add_sum(sizes, "size", 1ull << i, &l->by_doubling[i]);
    for (uint32_t tag = 0; tag < TAGS; tag++)
        add_sum(tags, "tag", tag, &l->by_tag[tag]);
    inspect_add(l->in->out, "total", total);
    inspect_add(l->in->out, "by_size", sizes);
    inspect_add(l->in->out, "by_tag", tags);
}

static void add_list(const struct listing *l)
{
    uint64_t shown = l->count < l->limit ? l->count : l->limit;
    struct json_object *list = json_object_new_array();
    for (uint64_t i = 0; i < shown; i++) {
        struct json_object *object = json_object_new_object();
        int arena = arena_of(l->in, &l->blocks[i]);
        inspect_add_number(object, "ref", l->blocks[i].ref);
        inspect_add_number(object, "size", l->blocks[i].size);
        inspect_add_number(object, "tag", l->blocks[i].tag);
        inspect_add_text(object, "kind", arena < 0 ? "large" : "slab");
        if (arena >= 0)
            inspect_add_number(object, "arena", (uint64_t)arena);
        json_object_array_add(list, object);
    }
    inspect_add(l->in->out, "blocks", list);
    inspect_add_number(l->in->out, "left_out", l->total.count - shown);
}

/* ---- the command ---------------------------------------------------------------------------- */

static int read_sort(struct listing *l)
{
    const char *sort = l->in->given['s'];
    if (!sort || strcmp(sort, "ref") == 0)
        return 0;
    l->order = strcmp(sort, "size") == 0 ? by_size : strcmp(sort, "tag") == 0 ? by_tag : NULL;
    if (l->order)
        return 0;
    fprintf(stderr, "shmalloc-inspect: --sort takes ref, size or tag, not \"%s\"\n", sort);
    return -1;
}

static int read_options(struct listing *l)
{
    const char *limit = l->in->given['l'];
    l->most = UINT64_MAX;
    l->tag = TAGS;
    l->limit = 20;
    if (limit && strcmp(limit, "all") == 0)
        l->limit = UINT64_MAX;
    else if (inspect_option_number(l->in, 'l', "limit", 0, UINT64_MAX, &l->limit) < 0)
        return -1;
    if (inspect_option_number(l->in, 'm', "min-size", 0, UINT64_MAX, &l->least) < 0 ||
        inspect_option_number(l->in, 'M', "max-size", 0, UINT64_MAX, &l->most) < 0 ||
        inspect_option_number(l->in, 't', "tag", 0, TAGS - 1, &l->tag) < 0)
        return -1;
    return read_sort(l);
}

static void show(struct listing *l)
{
    if (l->order && l->count)
        qsort(l->blocks, l->count, sizeof(*l->blocks), l->order);
    if (l->in->out) {
        add_sums(l);
        add_list(l);
    } else {
        print_by_size(l);
        print_by_tag(l);
        print_list(l);
    }
}

static enum verdict run(struct inspect *in)
{
    static struct listing listing; /* large; a program may run the command more than once */
    memset(&listing, 0, sizeof(listing));
    listing.in = in;
    if (read_options(&listing) < 0)
        return CANNOT_TELL;
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict != SOUND)
        return verdict;
    int rc = smi_view_each_block(&in->view, collect, &listing);
    if (rc == 0)
        show(&listing);
    free(listing.blocks);
    return rc < 0 ? inspect_report_error(in, rc) : inspect_conclude(in);
}

const struct subcommand inspect_blocks = {
    "blocks", "allocated blocks: sums by size and tag, and a list", help, run, NULL};
