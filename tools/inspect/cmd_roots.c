/* SPDX-License-Identifier: MIT */
/* cmd_roots.c - named roots and what they name. */
#include "inspect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/shmalloc.h>


static const char help[] =
    "The named roots, by name: the type id the program gave, the ref, and the size of the\n"
    "block that begins there: - for a root that names nothing, \"no block\" where none begins\n"
    "that a program has. Such a root dangles: its block was freed, or never was one. The heap\n"
    "is as sound as it was, but who follows the root finds somebody else's data; so the\n"
    "exit status is 1 then.\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"roots\", the path\n"
    "  status                  \"sound\", \"dangling\" when a root is, \"damaged\" or \"unknown\"\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  roots                   list of: name (invalid UTF-8 as U+FFFD), type (hexadecimal, in\n"
    "                          quotes), ref, size (bytes of the block, or null), tag, dangling\n";

struct root {
    char *name;
    uint64_t type, ref;
    int has_block; /* one that a program has begins at `ref` */
    shmalloc_block block;
};

struct roots {
    struct root *at;
    size_t count, room;
    int moved; /* they changed while the blocks were looked at */
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
    roots->at[roots->count++] = (struct root){name, root->type, root->ref, 0, {0}};
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

/* What each root names. */
static int find_blocks(struct inspect *in, struct roots *roots)
{
    struct smi_cached *cached;
    size_t count;
    int rc = smi_view_cached(&in->view, &cached, &count);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < roots->count; i++) {
        struct root *root = &roots->at[i];
        root->has_block = smi_view_find_block(&in->view, cached, count, root->ref, &root->block);
    }
    free(cached);
    return 0;
}

/* The roots and their blocks as of one moment: while the lists change, the sequence does, too. What
 * was named all the time that the blocks were looked at, and is none, is dangling. */
static int read_roots(struct inspect *in, struct roots *roots)
{
    int rc = 0;
    for (int tries = 0; tries < 8; tries++) {
        if (tries > 0) {
            forget(roots);
            rc = smi_view_reload(&in->view);
        }
        uint64_t before = list_sequence(in);
        if (rc == 0)
            rc = smi_view_each_root(&in->view, collect, roots);
        int found = rc == 0 || rc == SHMALLOC_ECORRUPT ? find_blocks(in, roots) : rc;
        rc = found < 0 ? found : rc;
        roots->moved = inspect_is_live(in) && list_sequence(in) != before;
        if (!inspect_is_live(in) || (rc == 0 && !roots->moved))
            break;
    }
    return rc;
}

static int is_dangling(const struct roots *roots, const struct root *root)
{
    return root->ref != 0 && !root->has_block && !roots->moved;
}

static size_t count_dangling(const struct roots *roots)
{
    size_t count = 0;
    for (size_t i = 0; i < roots->count; i++)
        count += is_dangling(roots, &roots->at[i]) ? 1 : 0;
    return count;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct root *)a)->name, ((const struct root *)b)->name);
}

/* ---- text ---- */

static void print_root(struct inspect *in, const struct roots *roots, const struct root *root)
{
    char size[32] = "-";
    int dangling = is_dangling(roots, root);
    if (root->has_block)
        inspect_number(root->block.size, size);
    printf("0x%012llx  %s%14s%s  %#18llx  ", (unsigned long long)root->ref,
           inspect_color(in, dangling ? RED : PLAIN), dangling ? "no block" : size,
           inspect_color(in, PLAIN), (unsigned long long)root->type);
    inspect_print_text(root->name);
    printf("\n");
}

static void print_all(struct inspect *in, const struct roots *roots)
{
    char n[64];
    size_t dangling = count_dangling(roots);
    if (roots->count == 0) {
        printf("no roots\n");
        return;
    }
    printf("%s%-14s  %14s  %18s  %s%s\n", inspect_color(in, BOLD), "REF", "SIZE", "TYPE", "NAME",
           inspect_color(in, PLAIN));
    for (size_t i = 0; i < roots->count; i++)
        print_root(in, roots, &roots->at[i]);
    if (dangling > 0)
        printf(
            "\n%s%s%s where no block begins that a program has: it was freed, or never was one.\n"
            "Bind such a root anew, or remove it, before somebody follows it.\n",
            inspect_color(in, RED),
            inspect_count(dangling, "root names a place", "roots name places", n),
            inspect_color(in, PLAIN));
    if (roots->moved)
        printf("%sThe roots changed each time they were read: the blocks are those of a moment "
               "later.%s\n",
               inspect_color(in, DIM), inspect_color(in, PLAIN));
}

/* ---- JSON ---- */

static void add_root(struct json_object *list, const struct roots *roots, const struct root *root)
{
    struct json_object *object = json_object_new_object();
    char type[32];
    snprintf(type, sizeof(type), "0x%llx", (unsigned long long)root->type);
    inspect_add_text(object, "name", root->name);
    inspect_add_text(object, "type", type);
    inspect_add_number(object, "ref", root->ref);
    inspect_add(object, "size", root->has_block ? json_object_new_uint64(root->block.size) : NULL);
    inspect_add(object, "tag", json_object_new_int(root->has_block ? root->block.tag : 0));
    inspect_add_flag(object, "dangling", is_dangling(roots, root));
    json_object_array_add(list, object);
}

static void add_all(struct inspect *in, const struct roots *roots)
{
    struct json_object *list = json_object_new_array();
    for (size_t i = 0; i < roots->count; i++)
        add_root(list, roots, &roots->at[i]);
    inspect_add_flag(in->out, "moving", inspect_is_live(in));
    inspect_add(in->out, "roots", list);
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
    if (rc == 0 || rc == SHMALLOC_ECORRUPT) /* of a damaged list, what can be read */
        in->out ? add_all(in, &roots) : print_all(in, &roots);
    if (rc < 0)
        verdict = inspect_report_error(in, rc);
    else if (count_dangling(&roots) > 0) {
        in->finding = "dangling";
        verdict = DAMAGED;
    }
    forget(&roots);
    return verdict;
}

const struct subcommand inspect_roots = {"roots", "named roots and what they name", help, run,
                                         NULL};
