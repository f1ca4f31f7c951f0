/* SPDX-License-Identifier: MIT */
/*
 * test_sizeclass.c - the table of classes against the rule that it claims to follow.
 *
 * The rule is written down here a second time, from the words of sizeclass.h, so that a typo in one
 * of the table's 445 figures, which would waste memory or let slots overlap, cannot stay.
 */
#include <criterion/criterion.h>

#include "slots/slab.h"

TestSuite(sizeclass, .timeout = 20);

static uint32_t expected_size(unsigned k)
{
    if (k == 0)
        return 8;
    if (k <= 32)
        return 16 * k;
    unsigned doubling = (k - 33) / 8, step = (k - 33) % 8 + 1;
    return (512u << doubling) + step * (64u << doubling);
}

/* The fewest of 1..8 pages that leave at most 1/64 over, else those that leave the smallest
 * share. */
static unsigned expected_pages(uint32_t size)
{
    unsigned best = 0;
    double best_share = 2;
    for (unsigned pages = 1; pages <= 8; pages++) {
        uint32_t span = pages * (uint32_t)SMF_PAGE;
        if (span < size)
            continue;
        uint32_t over = span % size;
        if (over * 64 <= span)
            return pages;
        if ((double)over / span < best_share) {
            best_share = (double)over / span;
            best = pages;
        }
    }
    return best;
}

Test(sizeclass, table_follows_the_rule)
{
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        const struct smi_class *c = &smi_classes[k];
        cr_assert_eq(c->size, expected_size(k), "class %u has size %u", k, c->size);
        unsigned pages = k == 0 ? 16 : k == 1 ? 24 : expected_pages(c->size);
        cr_assert_eq(c->data_pages, pages, "class %u (%u bytes): %u pages, not %u", k, c->size,
                     c->data_pages, pages);
        cr_assert_eq(c->bitmap_pages, k <= 1 ? 1 : 0);
        cr_assert_eq(c->slots, pages * SMF_PAGE / c->size, "class %u has %u slots", k, c->slots);
        cr_assert_eq(smi_class_span_pages(k), (uint32_t)c->data_pages + c->bitmap_pages);
    }
    cr_assert_eq(smi_classes[SMF_CLASSES - 1].size, SMI_MAX_SMALL);
}

Test(sizeclass, bitmaps_have_room_for_every_slot)
{
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        const struct smi_class *c = &smi_classes[k];
        unsigned room = c->bitmap_pages ? c->bitmap_pages * (unsigned)SMF_PAGE * 8
                                        : c->data_pages * SMF_BITS_PER_PAGE;
        cr_assert_leq(c->slots, room, "class %u: %u slots, %u bits", k, c->slots, room);
        cr_assert_leq(smi_class_span_pages(k) - 1, SMF_WORD_INDEX >> SMF_WORD_INDEX_SHIFT);
    }
}

Test(sizeclass, a_request_fits_and_no_smaller_class_would_do)
{
    for (size_t n = 1; n <= SMI_MAX_SMALL; n++) {
        unsigned k = smi_class_of(n);
        cr_assert_lt(k, SMF_CLASSES, "%zu", n);
        cr_assert_geq(smi_classes[k].size, n, "%zu bytes go to class %u of %u", n, k,
                      smi_classes[k].size);
        cr_assert(k == 0 || smi_classes[k - 1].size < n, "%zu bytes go to class %u, too large", n,
                  k);
    }
    cr_assert_eq(smi_class_of(0), 0, "0 counts as 1");
}

Test(sizeclass, waste_stays_within_the_stated_bound)
{
    for (size_t n = 1; n <= SMI_MAX_SMALL; n++) {
        size_t waste = smi_classes[smi_class_of(n)].size - n;
        cr_assert_leq(waste, n / 8 > 15 ? n / 8 : 15, "%zu bytes waste %zu", n, waste);
    }
}

Test(sizeclass, alignment_is_8_up_to_8_bytes_and_16_above)
{
    for (unsigned k = 1; k < SMF_CLASSES; k++)
        cr_assert_eq(smi_classes[k].size % 16, 0, "class %u", k);
}

/* The multiplication stands for a division on every free: one wrong quotient frees a neighbour. The
 * dividend is an offset inside the slab's span. */
Test(sizeclass, reciprocals_divide_exactly)
{
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        uint64_t size = smi_classes[k].size, span = smi_class_span_pages(k) * SMF_PAGE;
        for (uint64_t n = 0; n <= span; n++)
            cr_assert(n * smi_classes[k].reciprocal >> 32 == n / size, "%llu / %llu",
                      (unsigned long long)n, (unsigned long long)size);
    }
}

/* So does what tells on every free whether a slot begins there. */
Test(sizeclass, tops_tell_where_slots_begin)
{
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        const struct smi_class *c = &smi_classes[k];
        struct smi_top top = {.inverse = UINT64_MAX / c->size + 1,
                              .length = (uint32_t)c->slots * c->size};
        uint64_t begin = c->bitmap_pages * SMF_PAGE;
        for (uint64_t n = 0; n < smi_class_span_pages(k) * SMF_PAGE; n++) {
            int begins =
                n >= begin && (n - begin) % c->size == 0 && (n - begin) / c->size < c->slots;
            cr_assert_eq(smi_begins_slot(&top, (uint32_t)(n - begin)), begins,
                         "class %u, offset %llu", k, (unsigned long long)n);
        }
    }
}

Test(sizeclass, slabs_waste_what_the_design_promises)
{
    double worst = 0, sum = 0;
    unsigned small = 0;
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        const struct smi_class *c = &smi_classes[k];
        double span = (double)smi_class_span_pages(k) * SMF_PAGE;
        double share = 1 - c->slots * (double)c->size / span;
        worst = share > worst ? share : worst;
        if (c->size <= 512) {
            sum += share;
            small++;
        }
    }
    cr_assert_lt(worst, 0.15, "the worst slab wastes %.3f", worst);
    cr_assert_lt(sum / small, 0.015, "slabs up to 512 bytes waste %.4f on average", sum / small);
}

Test(sizeclass, aligned_requests_get_slots_that_are_multiples)
{
    for (size_t alignment = 1; alignment <= SMF_PAGE; alignment *= 2)
        for (size_t n = 1; n <= SMI_MAX_SMALL; n += n < 2048 ? 1 : 61) {
            unsigned k = smi_class_of_aligned(n, alignment);
            if (k == SMF_CLASSES)
                continue;
            cr_assert_geq(smi_classes[k].size, n);
            cr_assert_eq(smi_classes[k].size % alignment, 0);
            for (unsigned less = smi_class_of(n); less < k; less++)
                cr_assert_neq(smi_classes[less].size % alignment, 0, "class %u would do", less);
        }
    cr_assert_eq(smi_class_of_aligned(64, SMF_PAGE), smi_class_of(SMF_PAGE));
    cr_assert_eq(smi_class_of_aligned(64, 2 * SMF_PAGE), SMF_CLASSES);
    cr_assert_eq(smi_class_of_aligned(SMI_MAX_SMALL + 1, 16), SMF_CLASSES);
}
