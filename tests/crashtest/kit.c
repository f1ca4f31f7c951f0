/* SPDX-License-Identifier: MIT */
/*
 * kit.c - the kit for users' structures finds what is planted and passes what is right.
 *
 *   kit stepped [NAME]   every instruction: the structures of structures.c, repeating a fault,
 *                        ptrace refused
 *   kit random           kills at random times
 *   kit inputs           what cannot be tested, and the command line
 */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "structures.h"
#include "support.h"

static struct fixture f;

/* ---- running a test ---- */

/* Run it with its report in memory, which is overwritten by the next. */
static int run(shmalloc_crashtest test, char **report)
{
    static char *text;
    static size_t size;
    free(text);
    test.report = open_memstream(&text, &size);
    must(test.report, "open_memstream: %s", strerror(errno));
    test.dir = test.dir ? test.dir : f.dir;
    test.keep = f.dir;
    test.timeout = test.timeout ? test.timeout : 5;
    int rc = shmalloc_crashtest_run(&test);
    fclose(test.report);
    *report = text;
    return rc;
}

static void expect(const struct planted *p)
{
    char *report;
    uint64_t start = now_ns();
    int rc = run(p->test, &report);
    must(rc == p->result, "%s: the result is %d instead of %d:\n%s", p->name, rc, p->result,
         report);
    for (unsigned i = 0; i < 3 && p->says[i]; i++)
        must(strstr(report, p->says[i]), "%s: the report lacks \"%s\":\n%s", p->name, p->says[i],
             report);
    printf("%-32s %5.1f s\n", p->name, (double)(now_ns() - start) / 1e9);
    fflush(stdout);
}

static const struct planted *find(const char *name)
{
    for (unsigned i = 0; i < stepped_count; i++)
        if (strcmp(stepped[i].name, name) == 0)
            return &stepped[i];
    test_fail(__FILE__, __LINE__, "no structure %s", name);
}

/* ---- what a report leads to ---- */

/* The step that a report names is the fault's, also in the next run; the steps beside it are
 * none. */
static void repeat_a_fault(void)
{
    char *report;
    shmalloc_crashtest test = find("torn pair")->test;
    test.modes = SHMALLOC_CRASHTEST_DEAD;
    must(run(test, &report) == 1, "no fault:\n%s", report);
    const char *step = strstr(report, "--step ");
    must(step, "the report names no step:\n%s", report);
    test.step = strtoull(step + 7, NULL, 10);
    must(run(test, &report) == 1, "not repeated:\n%s", report);
    test.modes = SHMALLOC_CRASHTEST_SURVIVOR;
    must(run(test, &report) == 1, "not repeated with a survivor:\n%s", report);
    test.modes = SHMALLOC_CRASHTEST_DEAD;
    test.step -= 1;
    must(run(test, &report) == 0, "a fault one step earlier:\n%s", report);
    test.step = 1000000;
    must(run(test, &report) == -EINVAL && strstr(report, "no step 1000000"), "%s", report);
    printf("a fault is repeated\n");
}

/* What is kept is what was left: a sound heap with a torn pair, in this case. */
static void open_what_is_left(void)
{
    char *report, path[512];
    shmalloc_heap *heap;
    shmalloc_crashtest test = find("torn pair")->test;
    test.name = "pair";
    must(run(test, &report) == 1, "no fault:\n%s", report);
    const char *said = strstr(report, "what was left: ");
    must(said && sscanf(said, "what was left: %511[^\n]", path) == 1, "no heap is kept:\n%s",
         report);
    must(strstr(path, "/pair.dead-"), "it is kept as %s", path);
    must_work(shmalloc_open(path, NULL, &heap));
    must_work(shmalloc_check(heap));
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "world", 0, &ref));
    must_work(shmalloc_close(heap));
    printf("what was left can be opened\n");
}

static void notice_other_instructions(void)
{
    char *report;
    shmalloc_crashtest test = find("one word")->test;
    uint32_t *runs = shared_memory(sizeof(*runs));
    test.operation = uneven;
    test.arg = runs;
    test.modes = SHMALLOC_CRASHTEST_DEAD;
    must(run(test, &report) == 0, "a fault:\n%s", report);
    must(strstr(report, "note: the operation was not the same"), "the report lacks a note:\n%s",
         report);
    printf("other instructions in another run are noticed\n");
}

/* ---- where nobody may trace ---- */

static int forbid_ptrace(void)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ptrace, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(rules) / sizeof(rules[0]), rules};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static int without_ptrace(void *arg)
{
    char *report;
    (void)arg;
    must(forbid_ptrace(), "seccomp: %s", strerror(errno));
    int rc = run(find("push")->test, &report);
    must(rc == -EPERM && strstr(report, "ptrace is refused"), "the result is %d:\n%s", rc, report);
    shmalloc_crashtest test = at_random[0].test;
    test.kills = 5;
    rc = run(test, &report);
    must(rc == 0, "random kills need no ptrace; the result is %d:\n%s", rc, report);
    return 0;
}

/* ---- wrong inputs ---- */

static void refuse(shmalloc_crashtest test, int code, const char *says)
{
    char *report;
    int rc = run(test, &report);
    must(rc == code && strstr(report, says), "the result is %d instead of %d, \"%s\":\n%s", rc,
         code, says, report);
}

static int main_returns(const char *option, const char *value)
{
    char *argv[] = {(char *)"kit", (char *)"own argument", (char *)option, (char *)value, NULL};
    shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
    return shmalloc_crashtest_main(value ? 4 : 3, argv, &test);
}

static void inputs(void)
{
    shmalloc_crashtest test = SHMALLOC_CRASHTEST_INIT;
    refuse(test, -EINVAL, "no operation is given");
    test.setup = find("one word")->test.setup;
    test.operation = find("one word")->test.operation;
    shmalloc_crashtest other = test;
    other.modes = 8;
    refuse(other, -EINVAL, "modes is 0x8");
    other = test;
    other.workers = 65;
    refuse(other, -EINVAL, "65 workers; at most 64");
    other = test;
    other.max_steps = UINT64_MAX;
    refuse(other, -EINVAL, "max_steps is");
    other = test;
    other.timeout = 2000000;
    refuse(other, -EINVAL, "timeout 2000000");
    other = test;
    other.modes = SHMALLOC_CRASHTEST_RANDOM;
    other.step = 7;
    refuse(other, -EINVAL, "no step 7");
    other = test;
    other.dir = "/nowhere";
    refuse(other, -ENOENT, "no folder can be made in /nowhere");
    other = test;
    other.struct_size = 8;
    must(shmalloc_crashtest_run(&other) == -EINVAL && shmalloc_crashtest_run(NULL) == -EINVAL,
         "a foreign struct");
    must(shmalloc_crashtest_main(1, (char *[]){(char *)"kit", NULL}, &other) == 2,
         "a foreign struct in main");
    struct {
        shmalloc_crashtest test;
        uint64_t beyond;
    } newer = {test, 1};
    newer.test.struct_size += sizeof(newer.beyond);
    must(shmalloc_crashtest_run(&newer.test) == -EINVAL, "what a newer program asks for");
    newer.beyond = 0;
    newer.test.modes = SHMALLOC_CRASHTEST_DEAD;
    must(shmalloc_crashtest_run(&newer.test) == 0, "a newer program's struct");
    other = test;
    other.modes = SHMALLOC_CRASHTEST_DEAD;
    other.struct_size = offsetof(shmalloc_crashtest, leaks);
    other.dir = "/nowhere"; /* which an older program's struct has not */
    must(shmalloc_crashtest_run(&other) == 0, "an older program's struct");
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.struct_size = 4;
    other = test;
    other.options = &options;
    refuse(other, -EINVAL, "options.struct_size");
    must(main_returns("--help", NULL) == 0, "--help");
    must(main_returns("--nonsense", NULL) == 2, "an unknown option");
    must(main_returns("--step", NULL) == 2, "no number");
    must(main_returns("--step", "12x") == 2 && main_returns("--kills", "0") == 2 &&
             main_returns("--seed", "-1") == 2 && main_returns("--workers", "99999999999") == 2,
         "wrong numbers");
    must(main_returns("--dead", NULL) == 2, "main without an operation");
}

/* ---- the whole ---- */

static void every_instruction(const char *name)
{
    for (unsigned i = 0; i < stepped_count; i++)
        if (!name || strcmp(stepped[i].name, name) == 0)
            expect(&stepped[i]);
    if (name)
        return;
    repeat_a_fault();
    open_what_is_left();
    notice_other_instructions();
    must(run_child(without_ptrace, NULL) == 0, "without ptrace");
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    fixture_begin(&f);
    if (strcmp(what, "stepped") == 0)
        every_instruction(argc > 2 ? argv[2] : NULL);
    else if (strcmp(what, "random") == 0)
        for (unsigned i = 0; i < at_random_count; i++)
            expect(&at_random[i]);
    else if (strcmp(what, "inputs") == 0)
        inputs();
    else
        return fprintf(stderr, "usage: kit stepped [NAME] | random | inputs\n"), 2;
    fixture_end(&f);
    return 0;
}
