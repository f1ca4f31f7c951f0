/* SPDX-License-Identifier: MIT */
/* cmd_trim.c - unused memory of a heap at rest goes back to the file system. */
#include "inspect.h"

#include <errno.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "platform/os.h"

static const char help[] =
    "Gives unused memory of a heap that nobody uses back to the file system: free runs of\n"
    "64 KiB and more become holes, free chunks at the end of the file are cut off. Blocks\n"
    "and roots stay as they are. What shmalloc_trim() does in a program, for a heap whose\n"
    "programs have ended: they gave back only what had been free long enough.\n"
    "\n"
    "The heap is opened and closed in order for that, so what dead programs left comes\n"
    "to rest, too. While it is in use nothing is done: its programs do it by themselves.\n"
    "What a seal or an attribute of the file forbids is left out.\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"trim\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  given_back              bytes of free pages that had storage\n"
    "  before, after           length and storage of the file, bytes\n";

static void add_file(struct json_object *out, const char *key, const struct smi_file_info *info)
{
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, "length", info->size);
    inspect_add_number(object, "storage", info->blocks);
    inspect_add(out, key, object);
}

static void show_trim(struct inspect *in, uint64_t given, const struct smi_file_info *before,
                      const struct smi_file_info *after)
{
    char a[32], b[32], c[32];
    if (in->out) {
        inspect_add_number(in->out, "given_back", given);
        add_file(in->out, "before", before);
        add_file(in->out, "after", after);
        return;
    }
    if (given == 0)
        printf("nothing to give back: ");
    else
        printf("%sgave back %s%s: ", inspect_color(in, GREEN), inspect_bytes(given, a),
               inspect_color(in, PLAIN));
    printf("%s stored before, %s now", inspect_bytes(before->blocks, a),
           inspect_bytes(after->blocks, b));
    if (before->size != after->size)
        printf("; the file is %s long, it was %s", inspect_bytes(after->size, a),
               inspect_bytes(before->size, c));
    printf(".\n");
}

/* Open, trim, close: all three must work. */
static int64_t trim(const char *path)
{
    shmalloc_heap *heap;
    int rc = shmalloc_open(path, NULL, &heap);
    if (rc < 0)
        return rc;
    int64_t given = shmalloc_trim(heap);
    if (given < 0) {
        char text[700]; /* closing may have one of its own */
        snprintf(text, sizeof(text), "%s", shmalloc_errmsg());
        shmalloc_close(heap);
        return smi_error((int)given, "%s", text);
    }
    rc = shmalloc_close(heap);
    return rc < 0 ? rc : given;
}

static enum verdict run(struct inspect *in)
{
    struct smi_file_info before, after;
    int rc = inspect_open(in);
    if (rc == 0)
        rc = inspect_need_rest(in);
    if (rc == 0)
        rc = smi_os_stat(in->view.fd, &before);
    int64_t given = rc < 0 ? rc : trim(in->path);
    if (given >= 0 && (rc = smi_os_stat(in->view.fd, &after)) < 0)
        given = smi_error(rc, "%s: cannot look at the file: %s", in->path, shmalloc_strerror(rc));
    if (given < 0)
        return inspect_report_error(in, (int)given);
    show_trim(in, (uint64_t)given, &before, &after);
    return SOUND;
}

const struct subcommand inspect_trim = {"trim", "give unused memory of a heap at rest back", help,
                                        run, NULL};
