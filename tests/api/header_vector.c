/* SPDX-License-Identifier: MIT */
/* header_vector.c - the header alone gives a caller all it needs, in C11 and in C++. */
#include <shmalloc/vector.h>

int uses(shmalloc_heap *heap);

int uses(shmalloc_heap *heap)
{
    shmalloc_vector vector;
    double value = 1.5;
    uint64_t index;
    if (shmalloc_vector_open_root(heap, "values", sizeof(value), &vector) < 0)
        return 1;
    return shmalloc_vector_append(&vector, &value, &index) < 0 ||
           shmalloc_vector_get(&vector, index, &value) < 0;
}
