/* SPDX-License-Identifier: MIT */
/*
 * structures.c - threads on one queue and one vector. For ThreadSanitizer, which does not start
 * under the unit tests' framework; without it: are all messages received, once, and all elements
 * whole?
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include <shmalloc/queue.h>
#include <shmalloc/vector.h>

#include "support.h"

#define PAIRS 3
#define MESSAGES 20000u
#define CHANGES 5000u

static struct fixture f;
static shmalloc_queue queue;
static shmalloc_vector vector;
static uint64_t sum, received;
static uint32_t stop;
static uint64_t seed;

static void *send_all(void *arg)
{
    uint64_t message[40] = {0};
    for (uint64_t i = 1; i <= MESSAGES; i++) {
        message[0] = i;
        must_work(shmalloc_queue_send(&queue, message, i % 16 == 0 ? sizeof(message) : 16,
                                      SHMALLOC_NEVER));
    }
    return arg;
}

static void *receive_some(void *arg)
{
    uint64_t message[40];
    size_t length;
    shmalloc_message m;
    for (unsigned i = 0; i < MESSAGES / 2; i++) {
        must_work(
            shmalloc_queue_receive(&queue, message, sizeof(message), &length, SHMALLOC_NEVER));
        __atomic_fetch_add(&sum, message[0], __ATOMIC_RELAXED);
        must_work(shmalloc_queue_take(&queue, &m, SHMALLOC_NEVER));
        memcpy(message, m.data, 8);
        __atomic_fetch_add(&sum, message[0], __ATOMIC_RELAXED);
        must_work(shmalloc_queue_ack(&queue, &m));
        __atomic_fetch_add(&received, 2, __ATOMIC_RELAXED);
    }
    return arg;
}

static void *change_vector(void *arg)
{
    struct rng rng = rng_from(seed + (uintptr_t)arg);
    for (uint64_t i = 0; i < CHANGES; i++) {
        uint64_t element[6], index = rng_below(&rng, 100);
        for (int k = 0; k < 6; k++)
            element[k] = i;
        int rc = rng_below(&rng, 3) == 0     ? shmalloc_vector_append(&vector, element, NULL)
                 : rng_below(&rng, 50) == 0 ? shmalloc_vector_truncate(&vector, index)
                                             : shmalloc_vector_set(&vector, index, element);
        must(rc == 0 || rc == -34, "%s", shmalloc_errmsg());
    }
    return arg;
}

static void *read_vector(void *arg)
{
    struct rng rng = rng_from(seed + (uintptr_t)arg);
    while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
        uint64_t element[6];
        if (shmalloc_vector_get(&vector, rng_below(&rng, 200), element) == 0)
            for (int k = 1; k < 6; k++)
                must(element[k] == element[0], "a torn element");
    }
    return arg;
}

int main(void)
{
    pthread_t threads[2 * PAIRS + 4];
    shmalloc_queue_options options = SHMALLOC_QUEUE_OPTIONS_INIT;
    options.capacity = 64;
    seed = test_seed();
    fixture_begin_heap(&f, 0);
    must_code(shmalloc_queue_open_root(f.heap, "queue", &options, &queue), SHMALLOC_CREATED);
    must_code(shmalloc_vector_open_root(f.heap, "vector", 48, &vector), SHMALLOC_CREATED);
    for (uintptr_t i = 0; i < 2 * PAIRS; i++)
        pthread_create(&threads[i], NULL, i % 2 ? send_all : receive_some, NULL);
    for (uintptr_t i = 0; i < 4; i++)
        pthread_create(&threads[2 * PAIRS + i], NULL, i % 2 ? change_vector : read_vector,
                       (void *)i);
    for (int i = 0; i < 2 * PAIRS; i++)
        pthread_join(threads[i], NULL);
    pthread_join(threads[2 * PAIRS + 1], NULL);
    pthread_join(threads[2 * PAIRS + 3], NULL);
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    pthread_join(threads[2 * PAIRS], NULL);
    pthread_join(threads[2 * PAIRS + 2], NULL);
    must(received == PAIRS * MESSAGES && sum == PAIRS * (uint64_t)MESSAGES * (MESSAGES + 1) / 2,
         "%llu received", (unsigned long long)received);
    must_be_sound(f.heap);
    fixture_end(&f);
    printf("%llu messages received\n", (unsigned long long)received);
    return 0;
}
