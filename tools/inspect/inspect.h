/* SPDX-License-Identifier: MIT */
/*
 * inspect.h - what the subcommands of shmalloc-inspect share.
 *
 * A subcommand reads one heap through a view and prints text or one JSON object. It never writes to
 * the file, takes no lock and waits for nobody; only check --repair --yes and trim do. To add one:
 * a file cmd_<name>.c with its `struct subcommand`, a line in main.c's table and one in
 * meson.build.
 */
#ifndef INSPECT_H
#define INSPECT_H

#include <json-c/json.h>
#include <stdint.h>
#include <stdio.h>

#include "look/view.h"

/* Exit statuses. */
enum verdict { SOUND = 0, DAMAGED = 1, CANNOT_TELL = 2 };

struct inspect;
struct option;

#define INSPECT_LETTERS 128

struct subcommand {
    const char *name;
    const char *summary; /* one line for the general help */
    const char *help;    /* what it shows, its JSON keys */
    enum verdict (*run)(struct inspect *in);
    void (*more_help)(void); /* what the help says beyond that; may be NULL */
};

/* The command line of a subcommand that takes more, or less, than [--json] FILE. */
struct command_line {
    const char *arguments;        /* for the usage line */
    const char *letters;          /* options of its own, as for getopt */
    const struct option *options; /* their long forms: `val` a letter, the last one's name NULL */
    int without_file;             /* the file may be left out: then in->path is NULL */
};

extern const struct subcommand inspect_info, inspect_check, inspect_roots, inspect_procs,
    inspect_mutexes, inspect_top, inspect_report, inspect_selftest;
extern const struct command_line inspect_check_line, inspect_top_line, inspect_report_line,
    inspect_selftest_line;

extern const struct subcommand inspect_trim, inspect_copy;
extern const struct command_line inspect_copy_line;

extern const struct subcommand inspect_map, inspect_classes, inspect_blocks, inspect_leaks;
extern const struct subcommand inspect_structures, inspect_dump, inspect_get;
extern const struct command_line inspect_structures_line, inspect_dump_line, inspect_get_line;
extern const struct command_line inspect_map_line, inspect_classes_line, inspect_blocks_line,
    inspect_leaks_line;

/* Who uses a heap, from the locks that its processes hold on the file; queried, not taken. */
struct users {
    int known; /* 0: the file system does not tell; then somebody may be there */
    int attaching;
    uint32_t processes;           /* number alive */
    uint8_t alive[SMF_PROCESSES]; /* by entry of the process table */
};

/* One run of the tool. */
struct inspect {
    const struct subcommand *command;
    const char *path;
    const char *operand[2]; /* what the command line has behind the file, or NULL */
    int json;
    const char *given[INSPECT_LETTERS]; /* the command's own options by letter: value, "" without
                                           one, NULL when not given */
    int color; /* stdout is a terminal that shows colours */
    struct smi_view view;
    struct users users;
    struct json_object *out; /* with --json: the object that is printed at the end */
    const char *finding; /* the status in JSON, where exit status 1 does not mean damage; or NULL */
};

/* ---- run.c ---------------------------------------------------------------------------------- */

/* Run in->command with what the command line said: command, path, json and given are filled, the
 * rest is zero. */
enum verdict inspect_run(struct inspect *in);

/* ---- open.c --------------------------------------------------------------------------------- */

/* Open in->path: 0, or the code of smi_view_open, whose message has not been printed yet. Header
 * and state are filled as far as the file goes. */
int inspect_open(struct inspect *in);

/* Look anew at what was opened. */
int inspect_open_again(struct inspect *in);

/* Somebody uses the heap, so what is read may be moving. */
int inspect_is_live(const struct inspect *in);

/* The runtime area is about this file on this machine since it started. */
int inspect_runtime_is_valid(struct inspect *in);

/* The machine stopped, or the file was copied, while the heap was in use: it cannot be opened until
 * it was checked. */
int inspect_is_unclean(struct inspect *in);

/* Or is that not to be known, since the machine's boot id cannot be read? Then it is not said to be
 * unclean. */
int inspect_cannot_tell(struct inspect *in);

/* If so, say it, and what helps. */
void inspect_say_unclean(struct inspect *in);

/* PIDs of the heap's process table are of the PID namespace this tool is in. */
int inspect_same_namespace(struct inspect *in);

/* Page faults, of the whole program, of a process that is alive in this PID namespace: 0 when /proc
 * tells, and it still is that process. */
int inspect_faults(const struct smf_process *process, uint64_t *minor, uint64_t *major);

/* What a code of the library means for the exit status. */
enum verdict inspect_verdict(int code);

/* Open for a subcommand that needs a sound identity; a failure is reported and its verdict
 * returned. */
enum verdict inspect_open_or_report(struct inspect *in);

/* Settle the view and list the slots in stacks, ascending; free `*cached`. 0, or a code to
 * report. */
int inspect_settle(struct inspect *in, struct smi_cached **cached, size_t *count);

/* Report `code` with shmalloc_errmsg(), as text or in the JSON object. Returns its verdict. */
enum verdict inspect_report_error(struct inspect *in, int code);

/* ---- cmd_check.c, repair.c ------------------------------------------------------------------ */

/* Open, check, print what is wrong and what was looked at. */
enum verdict inspect_check_now(struct inspect *in);

/* Of a heap that was opened: 0 when nobody uses it, as far as the locks tell, else SHMALLOC_EBUSY
 * and others. */
int inspect_need_rest(struct inspect *in);

/* check --repair */
enum verdict inspect_repair(struct inspect *in);

/* ---- print.c -------------------------------------------------------------------------------- */

/* Print the JSON object with the verdict, if there is one. Returns the verdict. */
enum verdict inspect_finish(struct inspect *in, enum verdict verdict);

enum color { PLAIN, BOLD, DIM, RED, GREEN, YELLOW, BLUE, CYAN };
/* Terminal codes around text, "" without colours. */
const char *inspect_color(const struct inspect *in, enum color color);

/* "1.5 MiB"; "12,345"; both in `buf`, which is returned. */
const char *inspect_bytes(uint64_t bytes, char buf[32]);
const char *inspect_number(uint64_t n, char buf[32]);
/* "1 block", "1,024 blocks" */
const char *inspect_count(uint64_t n, const char *one, const char *many, char buf[64]);
/* "2025-01-31 12:00:00 UTC" */
const char *inspect_time(uint64_t seconds, char buf[32]);

/* Columns of the terminal: --width if its letter `w` is given, COLUMNS, what the terminal says, 80;
 * brought into 40..200. */
int inspect_width(const struct inspect *in);

/* The number given with the option `letter`, with K, M, G for powers of 1024; `*out` stays as it is
 * when the option was not given. 0, or -1 after a message. */
int inspect_option_number(const struct inspect *in, int letter, const char *name, uint64_t least,
                          uint64_t most, uint64_t *out);

/* What every look at a heap ends with: that it moves, that it is poisoned, that bytes could not be
 * read. Returns the verdict. */
enum verdict inspect_conclude(struct inspect *in);

/* What a span of the library is for (enum smf_purpose): 1 to INSPECT_PURPOSES - 1, of which the
 * last stands for those that this tool does not know. */
#define INSPECT_PURPOSES 6
unsigned inspect_purpose(const struct smf_page *page);
/* "thread slots"; for JSON "thread-slot". */
const char *inspect_purpose_text(unsigned purpose);
const char *inspect_purpose_key(unsigned purpose);

/* Text from the file, fit for a terminal: what is not printable UTF-8 is shown as \xNN. */
void inspect_print_text(const char *text);

/* A violation, or a step of a repair: invariant, place, text. */
void inspect_print_finding(const struct inspect *in, enum color color, const char *invariant,
                           uint64_t ref, const char *text);
void inspect_add_finding(struct json_object *list, const char *invariant, uint64_t ref,
                         const char *text);

/* Words of `text` in lines that end before `width`; the lines after the first are indented by
 * `indent`, where the first begins. */
void inspect_print_wrapped(const char *text, int indent, int width);

/* JSON: a string that is valid whatever the bytes, a ref, a member. */
struct json_object *inspect_json_text(const char *text);
void inspect_add(struct json_object *object, const char *key, struct json_object *value);
void inspect_add_number(struct json_object *object, const char *key, uint64_t value);
void inspect_add_text(struct json_object *object, const char *key, const char *value);
void inspect_add_flag(struct json_object *object, const char *key, int value);

/* Progress on stderr, if that is a terminal and the work is long. */
void inspect_progress(const struct smi_view *view);
/* "searching: 12,000 of 1,000,000 blocks" */
void inspect_progress_count(const char *doing, uint64_t done, uint64_t all, const char *what);
void inspect_progress_end(void);

#endif
