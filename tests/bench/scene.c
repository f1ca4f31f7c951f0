/* SPDX-License-Identifier: MIT */
/*
 * scene.c - objects that live, processes that wait.
 *
 * Owns the pipe that the waiting processes hang on: they read until its last writer, which is the
 * process that called scene_attach(), is gone.
 */
#include "scene.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

static void wait_attached(const struct bench_options *options, int ready, int until)
{
    char byte = 0;
    bench_slot *slot;
    adapter_open(options);
    slot = adapter_slots(1);
    bench_take(slot, options->size_min);
    bench_give(slot);
    if (write(ready, &byte, 1) != 1)
        bench_die("pipe: %s", strerror(errno));
    while (read(until, &byte, 1) < 0 && errno == EINTR)
        ;
    adapter_close();
}

/* One waiting process; returns when it is ready. `until` is the pipe all of them hang on. */
static void start_attached(const struct bench_options *options, const int until[2])
{
    int ready[2];
    char byte;
    if (pipe2(ready, O_CLOEXEC))
        bench_die("pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child < 0)
        bench_die("fork: %s", strerror(errno));
    if (child == 0) {
        close(until[1]);
        wait_attached(options, ready[1], until[0]);
        _exit(0);
    }
    close(ready[1]);
    if (read(ready[0], &byte, 1) != 1)
        bench_die("an attached process failed");
    close(ready[0]);
}

void scene_attach(const struct bench_options *options)
{
    int until[2];
    if (options->attached == 0)
        return;
    if (pipe2(until, O_CLOEXEC))
        bench_die("pipe: %s", strerror(errno));
    for (unsigned i = 0; i < options->attached; i++)
        start_attached(options, until);
    close(until[0]);
}

void scene_objects(const struct bench_options *options)
{
    if (options->objects == 0)
        return;
    bench_slot *slots = adapter_slots(options->objects);
    uint64_t random = options->seed;
    for (uint64_t i = 0; i < options->objects; i++) {
        uint32_t size = bench_random_size(&random, options);
        bench_take(&slots[i], size);
        bench_fill(&slots[i], size);
    }
}
