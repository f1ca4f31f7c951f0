/* SPDX-License-Identifier: MIT */
/* view_check.c - runs the library's own check over a file view; needs the internal library. */
#include "view_check.h"

#include <stdio.h>

#include "look/check.h"
#include "support.h"

static void print_violation(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    fprintf(stderr, "%s: %s at %#llx: %s\n", (const char *)arg, invariant, (unsigned long long)ref,
            text);
}

void must_be_sound_on_disk(const char *path)
{
    struct smi_view view;
    struct smi_check_result result = {0};
    must_work(smi_view_open(&view, path));
    must_work(smi_check(&view, 0, print_violation, (void *)(uintptr_t)path, &result));
    smi_view_finish(&view);
    must(result.violations == 0, "%s: %llu violations", path,
         (unsigned long long)result.violations);
}
