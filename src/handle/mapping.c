/* SPDX-License-Identifier: MIT */
/* mapping.c - how many addresses a heap gets, and where; see mapping.h. */
#include "handle/mapping.h"

#include <errno.h>

#include "handle/pagetable.h"
#include "platform/os.h"

/* that heaps may take: half of what a process has on the usual machine */
#define ADDRESSES (64ull << 40)
/* after each of these a heap without a smaller maximum gets less */
#define STEP_OF_ADDRESSES (16ull << 40)

/* Bytes that are reserved for the heaps of this process. */
static uint64_t addresses_taken;

/* How many there may be in all: the program needs some, too. */
static uint64_t addresses_for_heaps(void)
{
    uint64_t limit = smi_os_address_limit();
    limit -= limit / 4;
    return limit < ADDRESSES ? limit : ADDRESSES;
}

/* How many of `wanted` bytes of addresses the next heap gets, where there may be `all`. The first
 * 16 heaps may have 1 TiB each, the next 256 have 64 GiB, the next 4,096 have 4 GiB, and so on;
 * under a limit a heap gets two thirds of what is left. A greater maximum was asked for: it is
 * granted while much is left. */
static uint64_t affordable(uint64_t wanted, uint64_t all)
{
    uint64_t taken = SMI_LOAD(&addresses_taken), step = SMI_DEFAULT_MAX_SIZE;
    uint64_t left = all > taken ? all - taken : 0;
    if (wanted > step && wanted <= left - left / 4 && all == ADDRESSES)
        step = wanted;
    for (uint64_t t = taken; t >= STEP_OF_ADDRESSES && step > SMI_MAP_UNIT; t -= STEP_OF_ADDRESSES)
        step /= 16;
    if (step > left / 3 * 2)
        step = left / 3 * 2;
    return wanted < step ? wanted : step;
}

static int no_addresses(const shmalloc_heap *heap, uint64_t size)
{
    return smi_error(SHMALLOC_EADDRESS,
                     "%s: no free address range of %llu bytes, expected that many at least; the "
                     "heaps of this process "
                     "have %llu bytes and may have %llu, the rest is the program's; close some, or "
                     "raise the limits on "
                     "address space (ulimit -v) and, with mlockall, on locked memory (ulimit -l)",
                     heap->path, (unsigned long long)size,
                     (unsigned long long)SMI_LOAD(&addresses_taken),
                     (unsigned long long)addresses_for_heaps());
}

/* What memory of this process alone may hold (RLIMIT_DATA) is for blocks. */
static uintptr_t *new_tables(const shmalloc_heap *heap)
{
    size_t bytes = 2 * smi_handle_table_bytes(heap);
    return heap->is_private ? smi_os_reserve_zeros(bytes) : smi_os_private(bytes, 0);
}

/* Map what `heap->reserved` says, and the two tables. */
static int map_reserved(shmalloc_heap *heap, void *fixed)
{
    int rc = 0;
    if (!heap->is_private)
        rc = smi_os_map(heap->fd, heap->reserved, heap->read_only, fixed, (void **)&heap->base);
    else if (!(heap->base = smi_os_reserve_private(heap->reserved,
                                                   heap->reserved >= 64 * SMI_PRIVATE_ALIGNMENT
                                                       ? SMI_PRIVATE_ALIGNMENT
                                                       : SMI_MAP_UNIT)))
        rc = -ENOMEM;
    if (rc < 0)
        return rc;
    heap->words = new_tables(heap);
    if (heap->words) {
        heap->descriptors = heap->words + smi_handle_table_bytes(heap) / sizeof(*heap->descriptors);
        smi_pagetable_make(heap);
        return 0;
    }
    smi_os_unmap(heap->base, heap->reserved);
    heap->base = NULL;
    return -ENOMEM;
}

/* Who chose a base chose what lies around it. */
int smi_mapping_make(shmalloc_heap *heap, uint64_t wanted, uint64_t size, void *fixed)
{
    int rc = -ENOMEM;
    uint64_t all = fixed ? 0 : addresses_for_heaps(),
             spared = fixed ? wanted : affordable(wanted, all);
    wanted = spared < size ? size : spared;
    if (!fixed && (size > all || SMI_LOAD(&addresses_taken) > all - size))
        return no_addresses(heap, size);
    heap->reserved = (wanted + SMI_MAP_UNIT - 1) & ~(SMI_MAP_UNIT - 1);
    while ((rc = map_reserved(heap, fixed)) < 0) {
        uint64_t half = (heap->reserved / 2 + SMI_MAP_UNIT - 1) & ~(SMI_MAP_UNIT - 1);
        if (rc != -ENOMEM || half < size || half == heap->reserved)
            break;
        heap->reserved = half; /* a limit on addresses: take what there is */
    }
    if (rc == 0) {
        heap->backed = heap->is_private ? 0 : size;
        __atomic_fetch_add(&addresses_taken, heap->reserved, __ATOMIC_RELAXED);
        return 0;
    }
    if (rc == -EADDRINUSE)
        return smi_error(
            SHMALLOC_EADDRESS,
            "%s: the heap must be mapped at %p, where this process has something else; run it "
            "without that, or make a heap without a fixed base",
            heap->path, fixed);
    if (rc == -ENOMEM)
        return no_addresses(heap, size);
    return smi_refused_change(rc, heap->fd, heap->path, "%s: cannot map the file", heap->path);
}

void smi_mapping_drop(shmalloc_heap *heap)
{
    if (heap->base)
        __atomic_fetch_sub(&addresses_taken, heap->reserved, __ATOMIC_RELAXED);
    smi_os_unmap(heap->base, heap->base ? heap->reserved : 0);
    smi_os_unmap(heap->words, 2 * smi_handle_table_bytes(heap));
    smi_pagetable_drop(heap);
}
