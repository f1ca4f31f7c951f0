/* SPDX-License-Identifier: MIT */
/*
 * cmd_structures.c - queues, vectors and other structures of the library: a list, and what is in
 * one.
 *
 * What a structure is comes from the library's table (structures/structures.h): a type that is
 * added there is listed, described and dumped here without a change.
 */
#include "inspect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "structures/structures.h"

static const char structures_help[] =
    "The structures of the library in a heap: queues, vectors. Each with its ref, the root\n"
    "that names it, and a description. NAME is a root's name, or a ref as 0x...\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"structures\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\"\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  structures              list of: ref, type, tag, root (or null), life (\"live\", \"being\n"
    "                          made\", \"being freed\"), description\n"
    "  unused                  headers that wait to be used again\n";

static const char dump_help[] =
    "What is in a structure: the messages of a queue from the oldest on, the elements of a\n"
    "vector. NAME is a root's name, or a ref as 0x... Bytes that are text are shown as text,\n"
    "others in hexadecimal; a message that is a ref is shown as such.\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, the command, the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\"\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  type, ref, description  as `structures` has them\n"
    "  items                   list of: index, length, text (null when it is none), bytes\n"
    "                          (hexadecimal, or null for a ref), ref (0: none), note\n";

/* ---- finding one ---- */

struct wanted {
    struct inspect *in;
    const char *name; /* NULL: all */
    uint64_t ref;     /* that it names */
    uint64_t found, unused, index;
    int has_index, no_number; /* one item was asked for; not by a number */
    struct json_object *list;
    struct smi_structure_seen seen; /* the last that was found */
};

struct naming {
    uint64_t ref;
    char name[SMF_ROOT_NAME_MAX + 1];
};

static int name_of_ref(const shmalloc_root *root, void *arg)
{
    struct naming *naming = arg;
    if (root->ref != naming->ref)
        return 0;
    snprintf(naming->name, sizeof(naming->name), "%s", root->name);
    return 1;
}

static int ref_of_name(const shmalloc_root *root, void *arg)
{
    struct wanted *wanted = arg;
    if (strcmp(root->name, wanted->name) != 0)
        return 0;
    wanted->ref = root->ref;
    return 1;
}

/* What NAME says. 0, or -1: there is no such root. */
static int resolve_name(struct wanted *wanted)
{
    char *end;
    if (!wanted->name)
        return 0;
    if (smi_view_each_root(&wanted->in->view, ref_of_name, wanted) == 1)
        return 0;
    wanted->ref = strtoull(wanted->name, &end, 16);
    return strncmp(wanted->name, "0x", 2) == 0 && *end == 0 ? 0 : -1;
}

static const char *life_text(uint64_t life)
{
    uint64_t state = life & SMF_LIFE_STATE;
    return state == SMF_LIFE_LIVE     ? "live"
           : state == SMF_LIFE_MAKING ? "being made"
                                      : "being freed";
}

/* ---- the list ---- */

static void add_structure(struct wanted *wanted, const struct smi_structure_seen *seen,
                          const char *root, const char *text)
{
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, "ref", seen->ref);
    inspect_add_text(object, "type", seen->type ? seen->type->name : "unknown");
    inspect_add_number(object, "tag", seen->head->tag);
    inspect_add(object, "root", *root ? inspect_json_text(root) : NULL);
    inspect_add_text(object, "life", life_text(seen->head->life));
    inspect_add_text(object, "description", text);
    json_object_array_add(wanted->list, object);
}

static int list_one(const struct smi_structure_seen *seen, void *arg)
{
    struct wanted *wanted = arg;
    struct naming naming = {seen->ref, ""};
    char text[256] = "of a type that this tool does not know";
    if ((seen->head->life & SMF_LIFE_STATE) == SMF_LIFE_NONE) {
        wanted->unused++;
        return 0;
    }
    if (wanted->name && seen->ref != wanted->ref)
        return 0;
    wanted->found++;
    smi_view_each_root(&wanted->in->view, name_of_ref, &naming);
    if (seen->type)
        seen->type->describe(&wanted->in->view, seen->ref, text, sizeof(text));
    if (wanted->list) {
        add_structure(wanted, seen, naming.name, text);
        return 0;
    }
    printf("0x%012llx  %-8s  ", (unsigned long long)seen->ref,
           seen->type ? seen->type->name : "unknown");
    printf("%s%s%s  ", text, (seen->head->life & SMF_LIFE_STATE) == SMF_LIFE_LIVE ? "" : ", ",
           (seen->head->life & SMF_LIFE_STATE) == SMF_LIFE_LIVE ? "" : life_text(seen->head->life));
    inspect_print_text(naming.name);
    printf("\n");
    return 0;
}

static enum verdict no_such(struct inspect *in, const char *name)
{
    if (!in->out)
        fprintf(
            stderr,
            "shmalloc-inspect: %s: no structure \"%s\"; `shmalloc-inspect structures` lists them\n",
            in->path, name);
    return CANNOT_TELL;
}

static enum verdict run_structures(struct inspect *in)
{
    struct wanted wanted = {.in = in, .name = in->operand[0]};
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict != SOUND)
        return verdict;
    wanted.list = in->out ? json_object_new_array() : NULL;
    int rc = smi_view_settle(&in->view, NULL, NULL);
    int resolved = rc == 0 ? resolve_name(&wanted) : 0;
    if (rc == 0 && resolved == 0)
        rc = smi_structures_each(&in->view, list_one, &wanted);
    if (in->out) {
        inspect_add_flag(in->out, "moving", inspect_is_live(in));
        inspect_add(in->out, "structures", wanted.list);
        inspect_add_number(in->out, "unused", wanted.unused);
    }
    if (rc < 0)
        return inspect_report_error(in, rc);
    if (wanted.name && wanted.found == 0)
        return no_such(in, wanted.name);
    if (!in->out && wanted.found == 0)
        printf("no structures\n");
    return inspect_conclude(in);
}

/* ---- contents ---- */

static int is_text(const uint8_t *bytes, uint64_t length)
{
    uint64_t end = length;
    while (end > 0 && bytes[end - 1] == 0) /* a string's end, or what is behind it */
        end--;
    for (uint64_t i = 0; i < end; i++)
        if ((bytes[i] < 32 && bytes[i] != '\t' && bytes[i] != '\n') || bytes[i] > 126)
            return 0;
    return end > 0 && end + 8 >= length;
}

static char *as_hexadecimal(const uint8_t *bytes, uint64_t length)
{
    char *text = malloc(2 * length + 1);
    for (uint64_t i = 0; text && i < length; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    if (text)
        text[2 * length] = 0;
    return text;
}

static char *as_text(const uint8_t *bytes, uint64_t length)
{
    char *text = bytes && is_text(bytes, length) ? malloc(length + 1) : NULL;
    if (text) {
        memcpy(text, bytes, length);
        text[length] = 0;
    }
    return text;
}

/* The item's key, as text if it is one; NULL: it has none. */
static char *key_of_item(const struct smi_item *item)
{
    const uint8_t *key = (const uint8_t *)item->key;
    char *text = as_text(key, item->key_length);
    return text || !key ? text : as_hexadecimal(key, item->key_length);
}

/* Is it the one that was asked for: by its key, if items have keys, else by its number? */
static int is_wanted(const struct wanted *wanted, const struct smi_item *item)
{
    if (!wanted->has_index)
        return 1;
    const char *key = wanted->in->operand[1];
    return item->key ? item->key_length == strlen(key) &&
                           memcmp(item->key, key, item->key_length) == 0
                     : item->index == wanted->index;
}

static void add_item(struct json_object *list, const struct smi_item *item, const char *key,
                     const char *text, const char *hexadecimal)
{
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, "index", item->index);
    if (key)
        inspect_add(object, "key", inspect_json_text(key));
    inspect_add_number(object, "length", item->length);
    inspect_add(object, "text", text ? inspect_json_text(text) : NULL);
    inspect_add(object, "bytes", hexadecimal ? json_object_new_string(hexadecimal) : NULL);
    inspect_add_number(object, "ref", item->ref);
    inspect_add_text(object, "note", item->note ? item->note : "");
    json_object_array_add(list, object);
}

static int show_item(const struct smi_item *item, void *arg)
{
    struct wanted *wanted = arg;
    if (!is_wanted(wanted, item))
        return 0;
    wanted->found++;
    char *key = key_of_item(item);
    char *text = as_text(item->bytes, item->length);
    char *hexadecimal =
        item->bytes && (!text || wanted->list) ? as_hexadecimal(item->bytes, item->length) : NULL;
    if (wanted->list) {
        add_item(wanted->list, item, key, text, hexadecimal);
    } else {
        printf("%llu%s%s%s\t", (unsigned long long)item->index, item->note ? " (" : "",
               item->note ? item->note : "", item->note ? ")" : "");
        if (key) {
            inspect_print_text(key);
            printf("\t");
        }
        if (text)
            inspect_print_text(text);
        else if (hexadecimal)
            printf("%s", hexadecimal);
        else
            printf("ref 0x%llx", (unsigned long long)item->ref);
        printf("\n");
    }
    free(key);
    free(text);
    free(hexadecimal);
    return wanted->has_index;
}

static int find_one(const struct smi_structure_seen *seen, void *arg)
{
    struct wanted *wanted = arg;
    if (seen->ref != wanted->ref || (seen->head->life & SMF_LIFE_STATE) != SMF_LIFE_LIVE ||
        !seen->type)
        return 0;
    wanted->seen = *seen;
    return 1;
}

static enum verdict show_contents(struct inspect *in, struct wanted *wanted)
{
    char text[256];
    int rc = smi_view_settle(&in->view, NULL, NULL);
    if (rc == 0 && resolve_name(wanted) < 0)
        return no_such(in, wanted->name);
    rc = rc == 0 ? smi_structures_each(&in->view, find_one, wanted) : rc;
    if (rc == 0)
        return no_such(in, wanted->name);
    if (rc > 0 && wanted->no_number && wanted->seen.type->tag != SMF_TAG_MAP) {
        fprintf(stderr, "shmalloc-inspect: \"%s\" is no number\n", in->operand[1]);
        return CANNOT_TELL;
    }
    if (rc > 0) {
        wanted->seen.type->describe(&in->view, wanted->ref, text, sizeof(text));
        wanted->list = in->out ? json_object_new_array() : NULL;
        rc = wanted->seen.type->each_item(&in->view, wanted->ref, show_item, wanted);
    }
    if (in->out) {
        inspect_add_flag(in->out, "moving", inspect_is_live(in));
        inspect_add_text(in->out, "type", wanted->seen.type->name);
        inspect_add_number(in->out, "ref", wanted->ref);
        inspect_add_text(in->out, "description", text);
        inspect_add(in->out, "items", wanted->list);
    }
    if (rc == SHMALLOC_ECORRUPT && !in->out)
        fprintf(stderr, "shmalloc-inspect: %s: %s\n", in->path, text);
    if (rc == SHMALLOC_ECORRUPT)
        return DAMAGED;
    if (wanted->has_index && wanted->found == 0 && !in->out)
        fprintf(stderr, "shmalloc-inspect: %s: there is no %s in it\n", in->path, in->operand[1]);
    return wanted->has_index && wanted->found == 0 ? CANNOT_TELL : inspect_conclude(in);
}

static enum verdict run_dump(struct inspect *in)
{
    struct wanted wanted = {.in = in, .name = in->operand[0], .has_index = in->operand[1] != NULL};
    char *end = NULL;
    if (!wanted.name) {
        fprintf(stderr,
                "shmalloc-inspect: which structure? `shmalloc-inspect structures` lists them\n");
        return CANNOT_TELL;
    }
    wanted.index = wanted.has_index ? strtoull(in->operand[1], &end, 0) : 0;
    wanted.no_number = wanted.has_index && (*in->operand[1] == 0 || *end != 0);
    enum verdict verdict = inspect_open_or_report(in);
    return verdict == SOUND ? show_contents(in, &wanted) : verdict;
}

static enum verdict run_get(struct inspect *in)
{
    if (!in->operand[1]) {
        fprintf(stderr,
                "shmalloc-inspect: which one? Give FILE, NAME and a number, as `dump` shows it\n");
        return CANNOT_TELL;
    }
    return run_dump(in);
}

const struct command_line inspect_structures_line = {"[--json] FILE [NAME]", "", NULL, 0};
const struct command_line inspect_dump_line = {"[--json] FILE NAME", "", NULL, 0};
const struct command_line inspect_get_line = {"[--json] FILE NAME NUMBER|KEY", "", NULL, 0};

const struct subcommand inspect_structures = {"structures",
                                              "queues, vectors and other structures of the library",
                                              structures_help, run_structures, NULL};
const struct subcommand inspect_dump = {"dump", "what is in a queue, vector or map", dump_help,
                                        run_dump,
                                        NULL};
const struct subcommand inspect_get = {"get",
                                       "a queue's message, a vector's element, a map's value",
                                       dump_help, run_get, NULL};
