/* SPDX-License-Identifier: MIT */
/* pageset.c - digital search trees in descriptors; see pageset.h. */
#include "pages/pageset.h"

#define KEY_BITS 64

static uint64_t key_of(const struct smf_page *node, uint32_t page, enum smi_order order)
{
    return order == SMI_BY_LENGTH ? (uint64_t)node->page_count << 32 | page : (uint64_t)page << 32;
}

static unsigned bit_of(uint64_t key, unsigned depth)
{
    return (unsigned)(key >> (KEY_BITS - 1 - depth)) & 1;
}

static uint32_t child_of(const struct smf_page *node, unsigned side)
{
    return side ? node->right : node->left;
}

static uint64_t *children_word(struct smf_page *node)
{
    return (uint64_t *)(void *)node;
}

static uint64_t pack(uint32_t left, uint32_t right)
{
    return (uint64_t)right << 32 | left;
}

/* What refers to a node: the root word, or one side of its parent. */
struct link {
    uint64_t *root;
    struct smf_page *parent; /* NULL: the root word refers to it */
    unsigned side;
};

static uint32_t link_get(const struct link *link)
{
    return link->parent ? child_of(link->parent, link->side) : (uint32_t)*link->root;
}

static void link_set(struct smi_op *op, const struct link *link, uint32_t page)
{
    if (!link->parent)
        smi_set(op, link->root, page);
    else if (link->side)
        smi_set(op, children_word(link->parent), pack(link->parent->left, page));
    else
        smi_set(op, children_word(link->parent), pack(page, link->parent->right));
}

static int damaged_set(struct smi_op *op, uint32_t page)
{
    return smi_heap_poison(op->heap, "ordered set around page %u is damaged", page);
}

int smi_pageset_insert(struct smi_op *op, uint64_t *root, enum smi_order order, uint32_t page)
{
    struct smf_page *node = smi_page(op->heap, page);
    if (!node)
        return damaged_set(op, page);
    uint64_t key = key_of(node, page, order);
    struct link at = {root, NULL, 0};
    for (unsigned depth = 0; link_get(&at) != 0; depth++) {
        struct smf_page *other = smi_page(op->heap, link_get(&at));
        if (!other || other == node || depth == KEY_BITS)
            return damaged_set(op, link_get(&at));
        at.parent = other;
        at.side = bit_of(key, depth);
    }
    smi_set(op, children_word(node), 0);
    link_set(op, &at, page);
    return 0;
}

/* Some leaf below `node`, found by going down; *at becomes its link. */
static int find_leaf(struct smi_op *op, struct smf_page *node, struct link *at, uint32_t *leaf)
{
    *leaf = 0;
    for (unsigned depth = 0; node->left || node->right; depth++) {
        if (depth == KEY_BITS)
            return damaged_set(op, *leaf);
        at->parent = node;
        at->side = node->right ? 1 : 0;
        *leaf = link_get(at);
        node = smi_page(op->heap, *leaf);
        if (!node)
            return damaged_set(op, *leaf);
    }
    return 0;
}

int smi_pageset_remove(struct smi_op *op, uint64_t *root, enum smi_order order, uint32_t page)
{
    struct smf_page *node = smi_page(op->heap, page);
    if (!node)
        return damaged_set(op, page);
    uint64_t key = key_of(node, page, order);
    struct link at = {root, NULL, 0};
    for (unsigned depth = 0; link_get(&at) != page; depth++) {
        struct smf_page *other = smi_page(op->heap, link_get(&at));
        if (!other || depth == KEY_BITS)
            return damaged_set(op, page);
        at.parent = other;
        at.side = bit_of(key, depth);
    }
    /* A leaf from below takes the node's place: it has the same leading bits. */
    struct link leaf_at = {NULL, NULL, 0};
    uint32_t leaf;
    int rc = find_leaf(op, node, &leaf_at, &leaf);
    if (rc < 0)
        return rc;
    if (leaf != 0) {
        link_set(op, &leaf_at, 0);
        smi_set(op, children_word(smi_known_page(op->heap, leaf)), pack(node->left, node->right));
    }
    link_set(op, &at, leaf);
    return 0;
}

/* The smallest key below `page`, itself included: it lies on the way that keeps left. */
static void smallest_below(shmalloc_heap *heap, uint32_t page, enum smi_order order, uint64_t *best,
                           uint32_t *best_page)
{
    for (unsigned depth = 0; page != 0 && depth <= KEY_BITS; depth++) {
        const struct smf_page *node = smi_page(heap, page);
        if (!node)
            return;
        uint64_t key = key_of(node, page, order);
        if (key < *best) {
            *best = key;
            *best_page = page;
        }
        page = node->left ? node->left : node->right;
    }
}

uint32_t smi_pageset_first(shmalloc_heap *heap, const uint64_t *root, enum smi_order order,
                           uint32_t length)
{
    uint64_t wanted = order == SMI_BY_LENGTH ? (uint64_t)length << 32 : 0;
    uint64_t best = UINT64_MAX;
    uint32_t best_page = 0, beside = 0;
    uint32_t page = (uint32_t)*root;
    for (unsigned depth = 0; page != 0 && depth < KEY_BITS; depth++) {
        const struct smf_page *node = smi_page(heap, page);
        if (!node)
            return 0;
        uint64_t key = key_of(node, page, order);
        if (key >= wanted && key < best) {
            best = key;
            best_page = page;
        }
        unsigned side = bit_of(wanted, depth);
        if (side == 0 && node->right)
            beside = node->right; /* all of it is larger; the deepest such is the smallest */
        page = child_of(node, side);
    }
    smallest_below(heap, beside, order, &best, &best_page);
    return best_page;
}

int smi_pageset_each(shmalloc_heap *heap, uint64_t root,
                     int (*visit)(shmalloc_heap *, uint32_t, void *), void *arg)
{
    uint32_t stack[KEY_BITS + 2];
    unsigned used = 0;
    uint64_t budget = smi_size(heap) >> SMF_PAGE_SHIFT;
    if (root)
        stack[used++] = (uint32_t)root;
    while (used > 0 && budget-- > 0) {
        uint32_t page = stack[--used];
        const struct smf_page *node = smi_page(heap, page);
        if (!node)
            return 0;
        uint32_t left = node->left, right = node->right;
        int rc = visit(heap, page, arg);
        if (rc != 0)
            return rc;
        if (left && used < KEY_BITS + 2)
            stack[used++] = left;
        if (right && used < KEY_BITS + 2)
            stack[used++] = right;
    }
    return 0;
}
