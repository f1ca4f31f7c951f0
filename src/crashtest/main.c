/* SPDX-License-Identifier: MIT */
/* main.c - a test as a program: options, exit status. */
#include "crashtest/main.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "Kill an operation on a data structure in a shmalloc heap at every instruction, and\n"
    "look at what is left.\n"
    "\n"
    "Modes (the program's choice unless given)\n"
    "      --dead          everybody dies, at each instruction that changes the heap\n"
    "      --survivor      one of two processes is killed there, the other goes on\n"
    "      --random        several repeat the operation and are killed at random times\n"
    "\n"
    "Options\n"
    "      --step N        this instruction only, as a report names it\n"
    "      --seconds N     that the modes survivor and random may take, each\n"
    "      --kills N       that they may make, each\n"
    "      --workers N     processes in random mode\n"
    "      --seed N        of random mode\n"
    "      --max-steps N   instructions that the operation may have\n"
    "      --timeout N     seconds that one call may take\n"
    "      --dir DIR       where the heaps under test lie\n"
    "      --keep DIR      where heaps that show a fault stay\n"
    "      --help          this text\n"
    "\n"
    "Exit status\n"
    "  0 no fault was found; 1 faults were found; 2 it could not be told\n";

enum choice {
    DEAD = 256,
    SURVIVOR,
    RANDOM,
    STEP,
    SECONDS,
    KILLS,
    WORKERS,
    SEED,
    MAX_STEPS,
    TIMEOUT,
    DIR,
    KEEP,
    HELP
};

static const struct option options[] = {{"dead", no_argument, NULL, DEAD},
                                        {"survivor", no_argument, NULL, SURVIVOR},
                                        {"random", no_argument, NULL, RANDOM},
                                        {"step", required_argument, NULL, STEP},
                                        {"seconds", required_argument, NULL, SECONDS},
                                        {"kills", required_argument, NULL, KILLS},
                                        {"workers", required_argument, NULL, WORKERS},
                                        {"seed", required_argument, NULL, SEED},
                                        {"max-steps", required_argument, NULL, MAX_STEPS},
                                        {"timeout", required_argument, NULL, TIMEOUT},
                                        {"dir", required_argument, NULL, DIR},
                                        {"keep", required_argument, NULL, KEEP},
                                        {"help", no_argument, NULL, HELP},
                                        {NULL, 0, NULL, 0}};

/* A number from 1 to `most`: 0, or -1 and a complaint. */
static int number(const char *program, const char *text, uint64_t most, uint64_t *out)
{
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 0);
    if (errno == 0 && end != text && *end == 0 && text[0] != '-' && *out > 0 && *out <= most)
        return 0;
    fprintf(stderr, "%s: \"%s\" is not a number from 1 to %llu\n", program, text,
            (unsigned long long)most);
    return -1;
}

static int apply_number(const char *program, int option, shmalloc_crashtest *test)
{
    uint64_t value,
        most = option == STEP || option == SEED || option == MAX_STEPS ? UINT64_MAX : UINT_MAX;
    if (number(program, optarg, most, &value) < 0)
        return -1;
    switch (option) {
    case STEP:
        test->step = value;
        break;
    case SECONDS:
        test->seconds = (unsigned)value;
        break;
    case KILLS:
        test->kills = (unsigned)value;
        break;
    case WORKERS:
        test->workers = (unsigned)value;
        break;
    case SEED:
        test->seed = value;
        break;
    case MAX_STEPS:
        test->max_steps = value;
        break;
    default: /* TIMEOUT */
        test->timeout = (unsigned)value;
        break;
    }
    return 0;
}

/* 0; 1 help was asked for; -1 wrong. */
static int parse(int argc, char **argv, shmalloc_crashtest *test)
{
    unsigned modes = 0;
    optind = 1;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == HELP)
            return 1;
        if (option == '?')
            return -1;
        if (option <= RANDOM)
            modes |= 1u << (option - DEAD);
        else if (option == DIR)
            test->dir = optarg;
        else if (option == KEEP)
            test->keep = optarg;
        else if (apply_number(argv[0], option, test) < 0)
            return -1;
    }
    if (modes != 0)
        test->modes = modes;
    return 0;
}

/* The program and its own arguments, which getopt has moved to the end. */
static char *join_arguments(int argc, char **argv)
{
    size_t size = strlen(argv[0]) + 1;
    for (int i = optind; i < argc; i++)
        size += strlen(argv[i]) + 1;
    char *line = malloc(size);
    if (!line)
        return NULL;
    strcpy(line, argv[0]);
    for (int i = optind; i < argc; i++)
        strcat(strcat(line, " "), argv[i]);
    return line;
}

int shmalloc_crashtest_main(int argc, char **argv, const shmalloc_crashtest *given)
{
    shmalloc_crashtest test;
    if (argc < 1 || smi_crashtest_take(&test, given) < 0)
        return 2;
    int rc = parse(argc, argv, &test);
    if (rc > 0)
        printf("usage: %s [OPTION...]\n%s", argv[0], help);
    if (rc < 0)
        fprintf(stderr, "%s: --help lists the options\n", argv[0]);
    if (rc != 0)
        return rc < 0 ? 2 : 0;
    char *again = join_arguments(argc, argv);
    rc = smi_crashtest_run(&test, again ? again : argv[0]);
    free(again);
    return rc < 0 ? 2 : rc;
}
