/* SPDX-License-Identifier: MIT */
/*
 * inspect.c - fuzz target: the commands of shmalloc-inspect on a heap file of any bytes.
 *
 * The first byte after the file's description says which command, 0 says all; the second one has a
 * bit for each option, --repair and --yes of check among them. What they print goes nowhere.
 */
#include <string.h>
#include <unistd.h>

#include "../../tools/inspect/inspect.h"
#include "fuzz.h"
#include "heaps.h"
#include "support.h"

static const struct subcommand *const commands[] = {
    &inspect_info,    &inspect_check,  &inspect_roots, &inspect_procs,  &inspect_map,
    &inspect_classes, &inspect_blocks, &inspect_leaks, &inspect_report,
};
#define COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void run_command(const struct subcommand *command, int json, unsigned options)
{
    struct fixture backup; /* a repair saves the file as it was */
    int repairs = command == &inspect_check && (options & 4), writes = repairs && (options & 8);
    struct inspect in = {.command = command, .path = heaps_path(), .json = json};
    if (command == &inspect_report)
        in.given['o'] = json ? "/dev/null" : "-";
    if (options & 1)
        in.given['a'] = "";
    if (options & 2)
        in.given['i'] = "";
    if (repairs)
        in.given['r'] = "";
    if (writes) {
        fixture_begin(&backup);
        in.given['y'] = "";
        in.given['b'] = backup.path;
    }
    enum verdict verdict = inspect_run(&in);
    if (writes)
        fixture_end(&backup);
    must(verdict == SOUND || verdict == DAMAGED || verdict == CANNOT_TELL, "%s ended with %d",
         command->name, verdict);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static FILE *nowhere;
    if (!nowhere)
        nowhere = fopen("/dev/null", "w");
    must(nowhere, "/dev/null");
    unsigned flags = heaps_make(data, size, &data, &size);
    unsigned which = size > 0 ? data[0] % (COMMANDS + 1) : 0, options = size > 1 ? data[1] : 0;
    FILE *out = stdout, *err = stderr;
    stdout = stderr = nowhere;
    for (unsigned i = 0; i < COMMANDS; i++)
        if (which == 0 || which == i + 1)
            run_command(commands[i], (flags & HEAPS_OTHER) != 0, options);
    stdout = out;
    stderr = err;
    heaps_end();
    return 0;
}
