/* SPDX-License-Identifier: MIT */
/* report.c - what a run tells: progress, faults with all that is needed to look into them, sums. */
#include <stdarg.h>
#include <string.h>
#include <time.h>

#include "crashtest/place.h"
#include "crashtest/run.h"

enum { FAULTS_TOLD = 3 }; /* of each mode; the rest are counted */

uint64_t smi_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

void smi_progress(struct smi_run *run, const char *format, ...)
{
    va_list args;
    uint64_t now = smi_now_ns();
    if (!run->terminal || now - run->shown_ns < 100000000)
        return;
    run->shown_ns = now;
    fprintf(run->out, "\r\033[K%s: ", run->mode);
    va_start(args, format);
    vfprintf(run->out, format, args);
    va_end(args);
    fflush(run->out);
}

static void clear_progress(struct smi_run *run)
{
    if (run->terminal)
        fprintf(run->out, "\r\033[K");
}

void smi_tell(struct smi_run *run, const char *format, ...)
{
    va_list args;
    clear_progress(run);
    va_start(args, format);
    vfprintf(run->out, format, args);
    va_end(args);
    fflush(run->out);
}

int smi_cannot(struct smi_run *run, int code, const char *format, ...)
{
    va_list args;
    clear_progress(run);
    fprintf(run->out, "%s: cannot be tested: ", run->test.name);
    va_start(args, format);
    vfprintf(run->out, format, args);
    va_end(args);
    fprintf(run->out, "\n");
    fflush(run->out);
    return code;
}

static void keep(struct smi_run *run)
{
    char path[512];
    snprintf(path, sizeof(path), "%s/%s.%s-%llu.heap", run->test.keep, run->test.name, run->mode,
             (unsigned long long)run->stepper.steps);
    if (smi_image_write(run->image, path) < 0)
        fprintf(run->out, "  what was left could not be kept: %s\n", run->image->failure);
    else
        fprintf(run->out, "  what was left: %s\n  look at it:    shmalloc-inspect check %s\n", path,
                path);
}

void smi_fault(struct smi_run *run, const char *why, const char *was)
{
    run->faults++;
    run->all_faults++;
    if (run->faults > FAULTS_TOLD)
        return;
    clear_progress(run);
    unsigned long long step = run->stepper.steps;
    int random = strcmp(run->mode, "random") == 0;
    if (random)
        fprintf(run->out, "FAULT (random, seed %llu): %s\n", (unsigned long long)run->test.seed,
                why);
    else
        fprintf(run->out, "FAULT (%s, step %llu): %s\n", run->mode, step, why);
    if (was)
        smi_print_difference(run->out, was, run->found->text);
    smi_place_print(run->out, "killed after", run->stepper.at);
    if (run->programs_at != run->stepper.at)
        smi_place_print(run->out, "called from", run->programs_at);
    if (run->image->fd >= 0)
        keep(run);
    if (!random && step > 0) {
        fprintf(run->out, "  once more:     %s --%s --step %llu", run->again, run->mode, step);
        if (run->test.max_steps != SMI_USUAL_STEPS) /* the fault may be that there are more */
            fprintf(run->out, " --max-steps %llu", (unsigned long long)run->test.max_steps);
        fprintf(run->out, "\n");
    }
    fflush(run->out);
}

const char *smi_count_faults(uint64_t faults)
{
    static char text[64];
    snprintf(text, sizeof(text), "%llu fault%s", (unsigned long long)faults,
             faults == 1 ? "" : "s");
    return text;
}
