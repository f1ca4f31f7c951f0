/* SPDX-License-Identifier: MIT */
/*
 * model.c - random programs for a heap, checked against a mirror. See ops.c for what is compared.
 *
 *   model [-n operations] [-s seconds] [-h]      until either is reached; -h: a hardened heap
 *
 * Replay a failure with the printed SHMALLOC_TEST_SEED and the same arguments.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "ops.h"
#include "support.h"

enum { PROGRAM = 4096 };

int main(int argc, char **argv)
{
    uint64_t operations = 300000, seconds = 60;
    unsigned flags = 0;
    for (int c; (c = getopt(argc, argv, "n:s:h")) != -1;) {
        if (c == 'n')
            operations = strtoull(optarg, NULL, 0);
        else if (c == 's')
            seconds = strtoull(optarg, NULL, 0);
        else if (c == 'h')
            flags = SHMALLOC_HARDENED;
        else
            return fprintf(stderr, "usage: %s [-n operations] [-s seconds] [-h]\n", argv[0]), 2;
    }
    struct fixture f;
    struct rng rng = rng_from(test_seed());
    fixture_begin(&f);
    struct model *m = model_begin(f.path, flags);
    /* Bytes of the program lie in shared memory because children read on where their parent was. */
    uint8_t *bytes = shared_memory(PROGRAM);
    uint64_t start = now_ns(), programs = 0;
    while (model_operations(m) < operations && now_ns() - start < seconds * 1000000000ull) {
        for (int i = 0; i < PROGRAM; i += 8)
            *(uint64_t *)(void *)(bytes + i) = rng_next(&rng);
        model_run(m, bytes, PROGRAM);
        model_verify(m);
        programs++;
    }
    struct model_counts n;
    model_end(m, &n);
    fixture_end(&f);
    printf(
        "%llu operations in %llu programs, %.1f s: %llu allocated, %llu freed, %llu resized, %llu "
        "roots, "
        "%llu reopened, %llu children (%llu killed), %llu from rest, %llu verified\n",
        (unsigned long long)n.ops, (unsigned long long)programs, (double)(now_ns() - start) / 1e9,
        (unsigned long long)n.allocated, (unsigned long long)n.freed, (unsigned long long)n.resized,
        (unsigned long long)n.roots, (unsigned long long)n.reopened, (unsigned long long)n.children,
        (unsigned long long)n.killed, (unsigned long long)n.rests, (unsigned long long)n.verified);
    return 0;
}
