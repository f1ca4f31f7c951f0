/* SPDX-License-Identifier: MIT */
/*
 * list.c - a linked list of refs that is there again after a restart.
 *
 *     list HEAP add TEXT       append a line
 *     list HEAP remove TEXT    take the first such line out
 *     list HEAP show
 *
 * Links are refs, not pointers: every process maps the heap at another address. A line on its way
 * in or out is held by `limbo`, so a kill loses nothing: who locks next sees whether it is linked.
 */
#include <shmalloc/shmalloc.h>

#include <stdio.h>
#include <string.h>

struct line {
    shmalloc_ref next;
    char text[];
};

struct list {
    shmalloc_mutex mutex; /* zeroed bytes are an unlocked one */
    shmalloc_ref first;
    shmalloc_ref limbo; /* 0 but for moments: linked, or to be freed */
};

/* The link to the first line that says `text`; without such a line, or with NULL, the last link. */
static shmalloc_ref *find(shmalloc_heap *heap, struct list *list, const char *text)
{
    shmalloc_ref *link = &list->first;
    for (struct line *line; (line = shmalloc_ptr(heap, *link)); link = &line->next)
        if (text && strcmp(line->text, text) == 0)
            break;
    return link;
}

static int resolve_limbo(shmalloc_heap *heap, struct list *list)
{
    for (shmalloc_ref at = list->first; at;) {
        if (at == list->limbo)
            shmalloc_store(&list->limbo, 0);
        at = ((struct line *)shmalloc_ptr(heap, at))->next;
    }
    return shmalloc_ref_free(heap, &list->limbo); /* nothing to do for 0 */
}

static int add(shmalloc_heap *heap, struct list *list, const char *text)
{
    size_t size = strlen(text) + 1;
    int rc = shmalloc_ref_alloc(heap, sizeof(struct line) + size, &list->limbo);
    if (rc < 0)
        return rc;
    struct line *line = shmalloc_ptr(heap, list->limbo);
    line->next = 0;
    memcpy(line->text, text, size);
    shmalloc_store(find(heap, list, NULL), list->limbo);
    shmalloc_store(&list->limbo, 0);
    return 0;
}

static int take_out(shmalloc_heap *heap, struct list *list, const char *text)
{
    shmalloc_ref *link = find(heap, list, text);
    const struct line *line = shmalloc_ptr(heap, *link);
    if (!line) {
        printf("no such line\n");
        return 0;
    }
    shmalloc_store(&list->limbo, *link);
    shmalloc_store(link, line->next);
    return shmalloc_ref_free(heap, &list->limbo);
}

static int show(shmalloc_heap *heap, const struct list *list)
{
    const struct line *line;
    for (shmalloc_ref at = list->first; (line = shmalloc_ptr(heap, at)); at = line->next)
        printf("%s\n", line->text);
    return 0;
}

static int run(shmalloc_heap *heap, const char *command, const char *text)
{
    shmalloc_ref ref;
    int rc = shmalloc_root_get_or_create(heap, "list", 0, sizeof(struct list), NULL, NULL, &ref);
    if (rc < 0)
        return rc;
    struct list *list = shmalloc_ptr(heap, ref);
    rc = shmalloc_mutex_lock(heap, &list->mutex);
    if (rc < 0)
        return rc;
    if (rc == SHMALLOC_OWNER_DIED && (rc = resolve_limbo(heap, list)) == 0)
        rc = shmalloc_mutex_consistent(heap, &list->mutex);
    if (rc == 0)
        rc = strcmp(command, "add") == 0      ? add(heap, list, text)
             : strcmp(command, "remove") == 0 ? take_out(heap, list, text)
                                              : show(heap, list);
    int unlocked = shmalloc_mutex_unlock(heap, &list->mutex);
    return rc < 0 ? rc : unlocked;
}

int main(int argc, char **argv)
{
    int changes = argc == 4 && (strcmp(argv[2], "add") == 0 || strcmp(argv[2], "remove") == 0);
    if (!changes && !(argc == 3 && strcmp(argv[2], "show") == 0))
        return fputs("usage: list HEAP add|remove TEXT\n       list HEAP show\n", stderr), 2;

    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.layout = "list";
    options.layout_version = 1;
    shmalloc_heap *heap;
    if (shmalloc_open(argv[1], &options, &heap) < 0)
        return fprintf(stderr, "list: %s\n", shmalloc_errmsg()), 1;
    int status = 0;
    if (run(heap, argv[2], changes ? argv[3] : NULL) < 0)
        status = (fprintf(stderr, "list: %s\n", shmalloc_errmsg()), 1);
    if (shmalloc_close(heap) < 0)
        status = (fprintf(stderr, "list: %s\n", shmalloc_errmsg()), 1);
    return status;
}
