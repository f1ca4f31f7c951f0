/* SPDX-License-Identifier: MIT */
/* cmd_check.c - every invariant, and each violation with its place. */
#include "inspect.h"

#include <getopt.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "look/check.h"
#include "structures/structures.h"

static const char help[] =
    "Verifies that the heap's own data agree with each other: chunks, spans of pages,\n"
    "sets of free spans, slabs and their bitmaps, threads' caches, roots. What dead or\n"
    "stopped threads left half done is first resolved in private memory, as the next\n"
    "owner of each lock would resolve it, so it is not damage. What programs keep in\n"
    "their blocks is not looked at.\n"
    "\n"
    "One line for each violation: the invariant, the byte of the file where it shows,\n"
    "and what is wrong there. The invariants are listed below. The last one is about roots\n"
    "that name no block: a fault of a program, no damage of the heap; the exit status is 1,\n"
    "too.\n"
    "\n"
    "A heap in use changes while it is read. If something disagrees it is read again a\n"
    "few times, and only what every reading shows, and what held still meanwhile, is\n"
    "reported; the rest is counted as left out.\n"
    "\n"
    "With --repair: what it takes to bring the heap back, one numbered line for each\n"
    "step, or why there is no safe way. Everything derived (sets, counts) is built anew\n"
    "from what it is derived of; blocks, caches and roots are kept; where it cannot be\n"
    "known whether a program has a block, it stays allocated. Nothing is written unless\n"
    "--yes is given, too: then a copy is saved first, the steps are carried out, and the\n"
    "heap is checked again, taken out of its poisoned state and closed in order. The\n"
    "heap must not be in use. A repair that was killed can be started again. A sound heap\n"
    "that was in use when the machine stopped, or when the file was copied, is closed in\n"
    "order by --yes, too, and one of an older file format is converted.\n"
    "\n"
    "Options\n"
    "  -r, --repair        plan a repair; only with --yes write to the file\n"
    "  -y, --yes           carry it out\n"
    "  -b, --backup PATH   where the copy goes; PATH must not exist. Otherwise\n"
    "                      FILE.before-repair, with a number if that exists\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"check\", the path\n"
    "  status                  \"sound\", \"dangling\" when nothing is wrong but that roots name\n"
    "                          no block, \"damaged\" or \"unknown\"\n"
    "  error                   only on failure: code, meaning, message\n"
    "                          The next seven not with --repair, unless something was written:\n"
    "  violations              list of: invariant, ref (bytes from the start), text\n"
    "  dangling                number of roots that name no block, which are in the list, too\n"
    "  checked                 numbers of pages, slabs, blocks, free_runs, cached_slots, roots\n"
    "  in_flight               steps of dead, stopped or running threads, resolved\n"
    "  moving                  true when the heap changed while it was read\n"
    "  readings, left_out      number of readings; of disagreements not confirmed\n"
    "  repair                  only with --repair: steps and obstacles (lists as violations),\n"
    "                          unclean (it cannot be opened until --yes closed it in order;\n"
    "                          null when that cannot be told without the machine's boot id),\n"
    "                          applied, backup (the path of the copy, null when there is none)\n";

struct report {
    struct inspect *in;
    struct json_object *violations; /* with --json */
};

static void show(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    struct report *report = arg;
    if (report->violations)
        inspect_add_finding(report->violations, invariant, ref, text);
    else
        inspect_print_finding(report->in, strcmp(invariant, SMI_DANGLING) == 0 ? YELLOW : RED,
                              invariant, ref, text);
}

static void print_counts(struct inspect *in, const struct smi_check_result *r)
{
    char n[6][64];
    if (r->violations)
        printf("%sdamaged%s: %s in ", inspect_color(in, RED), inspect_color(in, PLAIN),
               inspect_count(r->violations, "violation", "violations", n[0]));
    else if (r->dangling)
        printf("%ssound, but %s%s: ", inspect_color(in, YELLOW),
               inspect_count(r->dangling, "root names no block", "roots name no block", n[0]),
               inspect_color(in, PLAIN));
    else
        printf("%ssound%s: ", inspect_color(in, GREEN), inspect_color(in, PLAIN));
    printf("%s, %s, %s, %s, %s, %s\n", inspect_count(r->pages, "page", "pages", n[0]),
           inspect_count(r->slabs, "slab", "slabs", n[1]),
           inspect_count(r->blocks, "block", "blocks", n[2]),
           inspect_count(r->free_runs, "free run", "free runs", n[3]),
           inspect_count(r->cached_slots, "cached slot", "cached slots", n[4]),
           inspect_count(r->roots, "root", "roots", n[5]));
    if (r->in_flight)
        printf("%s in flight, resolved for this reading as the next owner of each lock will do.\n",
               inspect_count(r->in_flight, "step was", "steps were", n[0]));
}

static void print_motion(struct inspect *in, const struct smi_check_result *r)
{
    char n[64], w[64];
    if (!inspect_is_live(in))
        return;
    printf("%sThe heap is in use%s", inspect_color(in, DIM),
           r->moving ? " and was moving while it was read" : " and held still while it was read");
    if (r->left_out)
        printf("; %s not confirmed in %s",
               inspect_count(r->left_out, "disagreement was", "disagreements were", n),
               inspect_count(r->walks, "reading", "readings", w));
    printf(".%s\n", inspect_color(in, PLAIN));
}

static void add_counts(struct inspect *in, const struct smi_check_result *r)
{
    struct json_object *checked = json_object_new_object();
    inspect_add_number(checked, "pages", r->pages);
    inspect_add_number(checked, "slabs", r->slabs);
    inspect_add_number(checked, "blocks", r->blocks);
    inspect_add_number(checked, "free_runs", r->free_runs);
    inspect_add_number(checked, "cached_slots", r->cached_slots);
    inspect_add_number(checked, "roots", r->roots);
    inspect_add(in->out, "checked", checked);
    inspect_add_number(in->out, "in_flight", r->in_flight);
    inspect_add_number(in->out, "dangling", r->dangling);
    inspect_add_flag(in->out, "moving", r->moving);
    inspect_add_number(in->out, "readings", r->walks);
    inspect_add_number(in->out, "left_out", r->left_out);
}

static void print_way_out(const struct inspect *in)
{
    if (inspect_is_live(in))
        return;
    printf("`shmalloc-inspect check --repair ");
    inspect_print_text(in->path);
    printf("` tells what can be done about it.\n");
}

enum verdict inspect_check_now(struct inspect *in)
{
    struct smi_check_result result;
    struct report report = {in, NULL};
    int rc = inspect_open(in);
    if (rc < 0 && rc != SHMALLOC_ECORRUPT)
        return inspect_report_error(in, rc);
    if (in->out) {
        report.violations = json_object_new_array();
        inspect_add(in->out, "violations", report.violations);
    }
    rc = smi_check(&in->view, inspect_is_live(in), show, &report, &result);
    if (rc < 0 && rc != SHMALLOC_ECORRUPT)
        return inspect_report_error(in, rc);
    inspect_progress_end();
    if (in->out) {
        add_counts(in, &result);
    } else {
        print_counts(in, &result);
        print_motion(in, &result);
        if (result.violations)
            print_way_out(in);
        else
            inspect_say_unclean(in);
    }
    if (result.dangling)
        in->finding = result.violations ? NULL : "dangling";
    return result.violations || result.dangling ? DAMAGED : SOUND;
}

static enum verdict run(struct inspect *in)
{
    if (in->given['r'])
        return inspect_repair(in);
    if (in->given['y'] || in->given['b']) {
        fprintf(stderr, "shmalloc-inspect: --yes and --backup go with --repair\n");
        return CANNOT_TELL;
    }
    return inspect_check_now(in);
}

static void list_invariants(void)
{
    printf("\nInvariants\n");
    const struct smi_invariant *const lists[] = {smi_invariants, smi_structure_invariants};
    for (unsigned k = 0; k < 2; k++)
        for (const struct smi_invariant *i = lists[k]; i->id; i++) {
            printf("  %s  ", i->id);
            inspect_print_wrapped(i->text, 6, 80);
        }
    printf("  %s  ", SMI_DANGLING);
    inspect_print_wrapped(SMI_DANGLING_TEXT, 6, 80);
}

static const struct option options[] = {
    {"repair", no_argument, NULL, 'r'},
    {"yes", no_argument, NULL, 'y'},
    {"backup", required_argument, NULL, 'b'},
    {NULL, 0, NULL, 0},
};

const struct command_line inspect_check_line = {
    "[--repair [--yes] [--backup PATH]] [--json] FILE", "ryb:", options, 0};

const struct subcommand inspect_check = {
    "check", "verify every invariant, report each violation with its place, repair", help, run,
    list_invariants};
