/* SPDX-License-Identifier: MIT */
/* main.c - shmalloc-inspect: arguments, help, and the table of subcommands. */
#include "inspect.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

static const struct subcommand *const subcommands[] = {
    &inspect_info,
    &inspect_check,
    &inspect_roots,
    &inspect_procs,
    &inspect_mutexes,
    &inspect_map,
    &inspect_classes,
    &inspect_blocks,
    &inspect_leaks,
    &inspect_structures,
    &inspect_dump,
    &inspect_get,
    &inspect_report,
    &inspect_selftest,
    &inspect_top,
    &inspect_trim,
    &inspect_copy,
};
#define SUBCOMMANDS (sizeof(subcommands) / sizeof(subcommands[0]))

/* The others take [--json] FILE. */
static const struct {
    const struct subcommand *command;
    const struct command_line *line;
} lines[] = {
    {&inspect_check, &inspect_check_line},
    {&inspect_map, &inspect_map_line},
    {&inspect_classes, &inspect_classes_line},
    {&inspect_blocks, &inspect_blocks_line},
    {&inspect_leaks, &inspect_leaks_line},
    {&inspect_structures, &inspect_structures_line},
    {&inspect_dump, &inspect_dump_line},
    {&inspect_get, &inspect_get_line},
    {&inspect_report, &inspect_report_line},
    {&inspect_selftest, &inspect_selftest_line},
    {&inspect_top, &inspect_top_line},
    {&inspect_copy, &inspect_copy_line},
};

static const struct command_line *line_of(const struct subcommand *command)
{
    static const struct command_line usual = {"[--json] FILE", "", NULL, 0};
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++)
        if (lines[i].command == command)
            return lines[i].line;
    return &usual;
}

/* What a command may have behind the file. */
static int operands_of(const struct subcommand *command)
{
    return command == &inspect_get                                      ? 2
           : command == &inspect_dump || command == &inspect_structures ? 1
                                                                        : 0;
}

#define OPTIONS_MAX 32

static const char before_commands[] =
    "Usage: shmalloc-inspect COMMAND [--json] FILE\n"
    "\n"
    "Look into a shmalloc heap without disturbing it. The file is only read: no lock\n"
    "is taken and no process is waited for, so it may be in use, or its users may be\n"
    "stopped or dead. Only `check --repair --yes` and `trim` write, to a heap that nobody\n"
    "uses, and `copy` takes the locks of one that is in use.\n"
    "\n"
    "Commands\n";

static const char after_commands[] =
    "\n"
    "Options\n"
    "      --json     print one JSON object instead of text\n"
    "  -h, --help     this text; with a command: what it shows and its JSON keys\n"
    "      --version  print the version and exit\n"
    "\n"
    "Exit status\n"
    "  0  sound\n"
    "  1  damaged\n"
    "  2  cannot tell: not a heap, not readable, made for another machine, bad usage\n"
    "\n"
    "Examples\n"
    "  shmalloc-inspect info my.heap         is it in use? how full is it?\n"
    "  shmalloc-inspect check my.heap        is every structure in it whole?\n"
    "  shmalloc-inspect check --repair my.heap   if not: what can be done about it?\n"
    "  shmalloc-inspect procs --json my.heap | python3 -m json.tool\n"
    "\n"
    "`shmalloc-inspect COMMAND --help` explains a command; see also shmalloc-inspect(1).\n";

static void print_help(void)
{
    fputs(before_commands, stdout);
    for (size_t i = 0; i < SUBCOMMANDS; i++)
        printf("  %-10s %s\n", subcommands[i]->name, subcommands[i]->summary);
    fputs(after_commands, stdout);
}

static void print_command_help(const struct subcommand *command)
{
    printf("Usage: shmalloc-inspect %s %s\n\n%s: %s\n\n%s", command->name,
           line_of(command)->arguments, command->name, command->summary, command->help);
    if (command->more_help)
        command->more_help();
}

static const struct subcommand *find(const char *name)
{
    for (size_t i = 0; i < SUBCOMMANDS; i++)
        if (strcmp(subcommands[i]->name, name) == 0)
            return subcommands[i];
    return NULL;
}

static int usage(const char *what, const char *about)
{
    fprintf(stderr, "shmalloc-inspect: %s%s\n", what, about);
    fprintf(stderr, "Usage: shmalloc-inspect COMMAND [--json] FILE   (--help explains)\n");
    return CANNOT_TELL;
}

static int unknown_command(const char *name)
{
    fprintf(stderr, "shmalloc-inspect: no command \"%s\"; there are:", name);
    for (size_t i = 0; i < SUBCOMMANDS; i++)
        fprintf(stderr, " %s", subcommands[i]->name);
    fprintf(stderr, "\n");
    return CANNOT_TELL;
}

/* Options of every command, then those of `command`; NULL before it is known. */
static void all_options(const struct subcommand *command, struct option *out, char *letters)
{
    static const struct option general[] = {
        {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},
        {"version", no_argument, NULL, 'v'},
    };
    size_t n = sizeof(general) / sizeof(general[0]);
    memcpy(out, general, sizeof(general));
    for (const struct option *o = line_of(command)->options; o && o->name; o++)
        if (n < OPTIONS_MAX)
            out[n++] = *o;
    out[n] = (struct option){0};
    snprintf(letters, OPTIONS_MAX, "%sh%s", command ? "" : "+",
             line_of(command)->letters);
}

/* Read options up to the command, or all those behind it. 0, or the one that is unknown. */
static const char *read_options(struct inspect *in, int argc, char **argv, int *help, int *version)
{
    struct option options[OPTIONS_MAX + 1];
    char letters[OPTIONS_MAX];
    int option;
    all_options(in->command, options, letters);
    while ((option = getopt_long(argc, argv, letters, options, NULL)) != -1) {
        if (option == 'j')
            in->json = 1;
        else if (option == 'h')
            *help = 1;
        else if (option == 'v')
            *version = 1;
        else if (option == '?' || option == ':' || option >= INSPECT_LETTERS)
            return argv[optind - 1];
        else
            in->given[option] = optarg ? optarg : "";
    }
    return NULL;
}

/* Without them, what is opened first would get what is printed. */
static void have_standard_streams(void)
{
    int fd = 0;
    while (fd >= 0 && fd <= STDERR_FILENO)
        fd = open("/dev/null", O_RDWR);
    close(fd);
}

int main(int argc, char **argv)
{
    static struct inspect in;
    have_standard_streams();
    int help = 0, version = 0;
    opterr = 0;
    const char *unknown = read_options(&in, argc, argv, &help, &version);
    if (!unknown && optind < argc) {
        if (!(in.command = find(argv[optind])))
            return unknown_command(argv[optind]);
        argc -= optind;
        argv += optind;
        optind = 0; /* starts getopt anew, behind the command */
        unknown = read_options(&in, argc, argv, &help, &version);
    }
    if (unknown)
        return usage("unknown option, or no value for it: ", unknown);
    if (version) {
        printf("shmalloc-inspect %s\n", shmalloc_version());
        return 0;
    }
    if (help) {
        in.command ? print_command_help(in.command) : print_help();
        return 0;
    }
    if (!in.command)
        return usage("a command is missing", "");
    in.path = optind < argc ? argv[optind] : NULL;
    if (!in.path && !line_of(in.command)->without_file)
        return usage("a file is missing", "");
    if (argc - optind > 1 + operands_of(in.command))
        return usage("more than one file given", "");
    for (int i = 0; i < operands_of(in.command) && optind + 1 + i < argc; i++)
        in.operand[i] = argv[optind + 1 + i];
    return (int)inspect_run(&in);
}
