/* SPDX-License-Identifier: MIT */
/*
 * judge.h - what somebody finds who opens an image, as text, and how it compares with what was and
 * will be.
 */
#ifndef SMI_CRASHTEST_JUDGE_H
#define SMI_CRASHTEST_JUDGE_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

/* A heap in words: equal states have equal texts, lines that end with '\n'. In memory that the
 * judging process shares with its parent. */
struct smi_findings {
    char text[256 << 10];
    size_t used;
    int silent;       /* set by the parent: the text is of no interest */
    uint64_t reached; /* blocks that were said to be reached */
    char why[1024];   /* not empty: what is wrong */
};

/* ---- by the judging process ---- */

/* Add to the text. */
void smi_say(const char *format, ...) __attribute__((format(printf, 1, 2)));
void smi_say_list(const char *format, va_list args) __attribute__((format(printf, 1, 0)));
/* Note what is wrong; the first one counts. */
void smi_note_wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* The same, and end the process. */
_Noreturn void smi_wrong(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* End the process. */
_Noreturn void smi_judge_leave(int status);

/* ---- by its parent ---- */

void smi_findings_clear(struct smi_findings *out);
/* What `out` takes from here on is what this process and those forked from it say. */
void smi_findings_use(struct smi_findings *out);
/* Fork a process that dies with this one, and after `seconds` at the latest; it runs fn(arg) and is
 * found by smi_judge_wait(), which adds to `why` how it ended if not in order. < 0: no process. */
pid_t smi_judge_start(void (*fn)(void *), void *arg, unsigned seconds, struct smi_findings *out);
void smi_judge_wait(pid_t pid, struct smi_findings *out);
/* Both. */
void smi_judge(void (*fn)(void *), void *arg, unsigned seconds, struct smi_findings *out);

/* ---- comparing ---- */

/* Do the lines of `text` lie between `before` and `after`: in both or either, and all that both
 * have? */
int smi_is_between(const char *text, const char *before, const char *after);

struct smi_comparison {
    const char *before, *after;
    int between;  /* several steps: a state between is allowed */
    int happened; /* the operation was seen to be done; not to be undone any more */
};
enum smi_verdict { SMI_RIGHT, SMI_UNDONE, SMI_NEITHER };
enum smi_verdict smi_compare(struct smi_comparison *comparison, const char *text);

/* Print the lines that only one of them has, marked - and +. */
void smi_print_difference(FILE *to, const char *was, const char *is);

#endif
