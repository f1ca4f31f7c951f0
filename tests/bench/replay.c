/* SPDX-License-Identifier: MIT */
/*
 * replay.c - does again what a real program asked its allocator for. trace.h has the format.
 *
 * A round is the whole trace, after which what still lives is freed; the time is for each
 * allocation or resize, with its free. The trace is decoded before the clock starts.
 */
#include "team.h"
#include "trace.h"

static struct trace trace;

static void *replay_prepare(struct worker *worker)
{
    (void)worker;
    return adapter_slots(trace.slots);
}

/* Sizes by slot, so that a resize knows what to keep and the end knows what lives. */
static uint32_t *sizes;

static void replay_once(bench_slot *slots)
{
    for (uint32_t i = 0; i < trace.count; i++) {
        const struct trace_op op = trace.ops[i];
        bench_slot *slot = &slots[op.slot];
        if (op.kind == TRACE_ALLOCATE)
            bench_take(slot, op.size);
        else if (op.kind == TRACE_FREE)
            bench_give(slot);
        else
            bench_resize(slot, sizes[op.slot], op.size);
        sizes[op.slot] = op.size;
    }
    for (uint32_t slot = 0; slot < trace.slots; slot++)
        if (sizes[slot]) {
            bench_give(&slots[slot]);
            sizes[slot] = 0;
        }
}

static void replay_run(struct worker *worker, uint64_t rounds)
{
    for (uint64_t round = 0; round < rounds; round++)
        replay_once(worker->state);
}

int main(int argc, char **argv)
{
    struct bench_options options;
    bench_parse(argc, argv, &options);
    if (!options.trace || team_workers(&options) > 1)
        bench_die("expected --trace, and one worker");
    const char *wrong = trace_read(options.trace, &trace);
    if (wrong)
        bench_die("%s: %s", options.trace, wrong);
    sizes = bench_pages(trace.slots * sizeof(*sizes));
    const struct workload replay = {"replay", trace.taken, replay_prepare, replay_run};
    team_measure(&replay, &options);
    trace_release(&trace);
    return 0;
}
