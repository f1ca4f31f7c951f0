/* SPDX-License-Identifier: MIT */
/* header_queue.c - the header alone gives a caller all it needs, in C11 and in C++. */
#include <shmalloc/queue.h>

int uses(shmalloc_heap *heap);

int uses(shmalloc_heap *heap)
{
    shmalloc_queue queue;
    shmalloc_message message;
    shmalloc_queue_options options = SHMALLOC_QUEUE_OPTIONS_INIT;
    options.capacity = 16;
    if (shmalloc_queue_open_root(heap, "jobs", &options, &queue) < 0 ||
        shmalloc_queue_send(&queue, "x", 1, 0) < 0)
        return 1;
    return shmalloc_queue_take(&queue, &message, SHMALLOC_NEVER) < 0 ||
           shmalloc_queue_ack(&queue, &message) < 0;
}
