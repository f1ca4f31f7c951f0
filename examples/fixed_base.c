/* SPDX-License-Identifier: MIT */
/*
 * fixed_base.c - raw pointers that persist, in a heap that every process maps at one address.
 *
 *     fixed_base HEAP WORD...    put words into a sorted tree
 *     fixed_base HEAP            print it
 *
 * With a fixed base, existing code that is full of pointers keeps its data in a heap unchanged. The
 * price: a process whose address range is taken cannot open the heap, and the calls that return
 * pointers are not crash-atomic as those that store refs are.
 */
#include <shmalloc/shmalloc.h>

#include <stdio.h>
#include <string.h>

#define BASE ((void *)0x300000000000) /* far from where Linux puts programs, stacks and libraries */

struct node {
    struct node *left, *right; /* pointers, not refs */
    unsigned count;
    char word[];
};

struct tree {
    struct node *top;
};

static int fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, shmalloc_errmsg());
    return 1;
}

static int insert(shmalloc_heap *heap, struct node **at, const char *word)
{
    while (*at) {
        int order = strcmp(word, (*at)->word);
        if (order == 0)
            return (*at)->count++, 0;
        at = order < 0 ? &(*at)->left : &(*at)->right;
    }
    size_t size = strlen(word) + 1;
    struct node *node = shmalloc_calloc(heap, 1, sizeof(*node) + size);
    if (!node)
        return fail("insert");
    node->count = 1;
    memcpy(node->word, word, size);
    *at = node;
    return 0;
}

static void print(const struct node *node)
{
    if (!node)
        return;
    print(node->left);
    printf("%s %u\n", node->word, node->count);
    print(node->right);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return fputs("usage: fixed_base HEAP [WORD...]\n", stderr), 2;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    options.base = BASE;
    options.max_size = 1ull << 30; /* bytes of addresses that must be free there */
    shmalloc_heap *heap;
    shmalloc_ref ref;
    if (shmalloc_open(argv[1], &options, &heap) < 0)
        return fail("open");
    int failed = 0;
    if (shmalloc_ref_of(heap, (char *)BASE + 8) != 8) { /* a base is chosen when a heap is made */
        fprintf(stderr, "%s: is not a heap that was made with the base %p\n", argv[1], BASE);
        return shmalloc_close(heap), 1;
    }
    if (shmalloc_root_get_or_create(heap, "tree", 0, sizeof(struct tree), NULL, NULL, &ref) < 0) {
        failed = fail("root");
    } else {
        struct tree *tree = shmalloc_ptr(heap, ref);
        for (int i = 2; i < argc && !failed; i++)
            failed = insert(heap, &tree->top, argv[i]);
        if (argc == 2)
            print(tree->top);
    }
    return shmalloc_close(heap) < 0 ? fail("close") : failed;
}
