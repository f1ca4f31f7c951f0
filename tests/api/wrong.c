/* SPDX-License-Identifier: MIT */
/*
 * wrong.c - a program that compiles, unless WRONG is an argument that is no address of a ref.
 */
#include <shmalloc/shmalloc.h>

struct node {
    shmalloc_ref next;
    shmalloc_ref children[4];
};

int call_all(shmalloc_heap *heap, struct node *node, void *block, shmalloc_ref *word);
int call_all(shmalloc_heap *heap, struct node *node, void *block, shmalloc_ref *word)
{
    shmalloc_ref ref = 0, refs[2] = {0, 0};
    const shmalloc_ref constant = 0;
    int number = 0;
    int (*by_pointer)(shmalloc_heap *, shmalloc_ref *) = shmalloc_ref_free;
    int (*by_address)(shmalloc_heap *, size_t, shmalloc_ref *) = &shmalloc_ref_alloc;
    int rc = by_pointer(heap, &ref) + by_address(heap, 8, &ref) + (shmalloc_ref_free)(heap, word);
    (void)block;
    (void)constant;
    (void)number;

    rc += shmalloc_ref_alloc(heap, 8, &node->next) + shmalloc_ref_free(heap, node->children + 1);
    rc += shmalloc_ref_alloc_zeroed(heap, 8, refs) + shmalloc_ref_free(heap, NULL);
    rc += shmalloc_ref_alloc_aligned(heap, 64, 8, word++); /* is evaluated once */
    rc += shmalloc_ref_realloc(heap, word, 9);
    rc += shmalloc_ref_alloc_tagged(heap, 8, 7, rc ? &ref : refs);
    rc += shmalloc_ref_dup(heap, node, sizeof(*node), &node->next);
    rc += shmalloc_retire(heap, &node->next) + (shmalloc_retire)(heap, word);
    rc += shmalloc_tx_alloc(heap, 8, node->children) + (shmalloc_tx_alloc)(heap, 8, word);
    rc += shmalloc_tx_free(heap, word) + (shmalloc_tx_free)(heap, word);
    rc += shmalloc_tx_retire(heap, NULL) + (shmalloc_tx_retire)(heap, word);
#ifdef WRONG
    rc += CALL(WRONG);
#endif
    return rc;
}
