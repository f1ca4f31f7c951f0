/* SPDX-License-Identifier: MIT */
/* cmd_roots.c - named roots and what they name. */
#include "inspect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "format/sizeclass.h"

static const char help[] =
    "The named roots, by name: the type id the program gave, the ref, and the size of the\n"
    "block that begins there (- when none does: a root may name any byte, or nothing).\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"roots\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  roots                   list of: name (invalid UTF-8 as U+FFFD), type (hexadecimal, in\n"
    "                          quotes), ref, size (bytes of the block, or null), tag\n";

struct root {
    char *name;
    uint64_t type, ref;
};

struct roots {
    struct root *at;
    size_t count, room;
};

static int collect(const shmalloc_root *root, void *arg)
{
    struct roots *roots = arg;
    if (roots->count == roots->room) {
        size_t room = 2 * roots->room + 64;
        struct root *more = realloc(roots->at, room * sizeof(*more));
        if (!more)
            return -ENOMEM;
        roots->at = more;
        roots->room = room;
    }
    char *name = strdup(root->name);
    if (!name)
        return -ENOMEM;
    roots->at[roots->count++] = (struct root){name, root->type, root->ref};
    return 0;
}

static void forget(struct roots *roots)
{
    for (size_t i = 0; i < roots->count; i++)
        free(roots->at[i].name);
    free(roots->at);
    *roots = (struct roots){0};
}

static uint64_t list_sequence(struct inspect *in)
{
    uint64_t sequence = 0;
    smi_view_read_now(&in->view, in->view.header.areas.roots + offsetof(struct smf_roots, sequence),
                      sizeof(sequence), &sequence);
    return sequence;
}

/* The roots as of one moment: while the lists change, the sequence does, too. */
static int read_roots(struct inspect *in, struct roots *roots)
{
    int rc = 0;
    for (int tries = 0; tries < 4; tries++) {
        if (tries > 0) {
            forget(roots);
            rc = smi_view_reload(&in->view);
        }
        uint64_t before = list_sequence(in);
        if (rc == 0)
            rc = smi_view_each_root(&in->view, collect, roots);
        if (!inspect_is_live(in) || (rc == 0 && list_sequence(in) == before))
            break;
    }
    return rc;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct root *)a)->name, ((const struct root *)b)->name);
}

static int is_cached(const struct smi_cached *cached, size_t count, uint64_t ref)
{
    size_t low = 0, high = count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (cached[middle].ref < ref)
            low = middle + 1;
        else
            high = middle;
    }
    return low < count && cached[low].ref == ref;
}

struct blocks {
    struct inspect *in;
    struct smi_cached *cached;
    size_t cached_count;
};

/* The allocated block that begins at `ref`: 1, or 0 when none does. */
static int find_block(const struct blocks *blocks, uint64_t ref, shmalloc_block *out)
{
    struct smi_view *view = &blocks->in->view;
    uint32_t slab, index;
    const struct smf_page *page = smi_view_page(view, ref >> SMF_PAGE_SHIFT);
    if (page && page->kind == SMF_PAGE_LARGE && ref % SMF_PAGE == 0) {
        *out = (shmalloc_block){ref, (uint64_t)page->page_count << SMF_PAGE_SHIFT, page->tag};
        return 1;
    }
    if (smi_view_slot(view, ref, &slab, &index) < 0)
        return 0;
    page = smi_view_page(view, slab);
    if (page->arena >= view->header.arena_count ||
        (smi_view_slab_bits(view, slab, page->size_class, index / 64) >> index % 64 & 1) ||
        is_cached(blocks->cached, blocks->cached_count, ref))
        return 0;
    *out = (shmalloc_block){ref, smi_classes[page->size_class].size,
                            smi_view_slot_tag(view, page, index)};
    return 1;
}

static void print_root(const struct blocks *blocks, const struct root *root)
{
    shmalloc_block block;
    char size[32] = "-";
    if (find_block(blocks, root->ref, &block))
        inspect_number(block.size, size);
    printf("0x%012llx  %14s  %#18llx  ", (unsigned long long)root->ref, size,
           (unsigned long long)root->type);
    inspect_print_text(root->name);
    printf("\n");
}

static void add_root(const struct blocks *blocks, struct json_object *list, const struct root *root)
{
    struct json_object *object = json_object_new_object();
    shmalloc_block block;
    char type[32];
    int found = find_block(blocks, root->ref, &block);
    snprintf(type, sizeof(type), "0x%llx", (unsigned long long)root->type);
    inspect_add_text(object, "name", root->name);
    inspect_add_text(object, "type", type);
    inspect_add_number(object, "ref", root->ref);
    inspect_add(object, "size", found ? json_object_new_uint64(block.size) : NULL);
    inspect_add(object, "tag", json_object_new_int(found ? block.tag : 0));
    json_object_array_add(list, object);
}

static void show_roots(struct inspect *in, const struct roots *roots)
{
    struct blocks blocks = {in, NULL, 0};
    smi_view_cached(&in->view, &blocks.cached, &blocks.cached_count);
    if (in->out) {
        struct json_object *list = json_object_new_array();
        for (size_t i = 0; i < roots->count; i++)
            add_root(&blocks, list, &roots->at[i]);
        inspect_add_flag(in->out, "moving", inspect_is_live(in));
        inspect_add(in->out, "roots", list);
    } else if (roots->count) {
        printf("%s%-14s  %14s  %18s  %s%s\n", inspect_color(in, BOLD), "REF", "SIZE", "TYPE",
               "NAME", inspect_color(in, PLAIN));
        for (size_t i = 0; i < roots->count; i++)
            print_root(&blocks, &roots->at[i]);
    } else {
        printf("no roots\n");
    }
    free(blocks.cached);
}

static enum verdict run(struct inspect *in)
{
    struct roots roots = {0};
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict != SOUND)
        return verdict;
    int rc = read_roots(in, &roots);
    if (roots.count)
        qsort(roots.at, roots.count, sizeof(*roots.at), by_name);
    if (rc == 0 || rc == SHMALLOC_ECORRUPT)
        show_roots(in, &roots); /* of a damaged list, what can be read */
    forget(&roots);
    return rc < 0 ? inspect_report_error(in, rc) : SOUND;
}

const struct subcommand inspect_roots = {"roots", "named roots and what they name", help, run,
                                         NULL};
