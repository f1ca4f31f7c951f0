/* SPDX-License-Identifier: MIT */
/* judge.c - findings of processes that open images; comparing them; see judge.h. */
#include "crashtest/judge.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- the judging process ---- */

static struct smi_findings *findings;

static __attribute__((format(printf, 1, 0))) void note_wrong(const char *format, va_list args)
{
    if (findings->why[0] == 0)
        vsnprintf(findings->why, sizeof(findings->why), format, args);
}

void smi_note_wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    note_wrong(format, args);
    va_end(args);
}

_Noreturn void smi_judge_leave(int status)
{
    fflush(NULL); /* what callbacks printed; nothing of the parent's was waiting */
    _exit(status);
}

_Noreturn void smi_wrong(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    note_wrong(format, args);
    va_end(args);
    smi_judge_leave(1);
}

void smi_say_list(const char *format, va_list args)
{
    size_t room = sizeof(findings->text) - findings->used;
    if (findings->silent)
        return;
    int len = vsnprintf(findings->text + findings->used, room, format, args);
    if (len < 0 || (size_t)len >= room)
        smi_wrong("its description takes more than %zu bytes; is there a cycle?",
                  sizeof(findings->text));
    findings->used += (size_t)len;
}

void smi_say(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    smi_say_list(format, args);
    va_end(args);
}

/* ---- its parent ---- */

void smi_findings_clear(struct smi_findings *out)
{
    out->used = 0;
    out->reached = 0;
    out->text[0] = out->why[0] = 0;
}

void smi_findings_use(struct smi_findings *out)
{
    findings = out;
}

pid_t smi_judge_start(void (*fn)(void *), void *arg, unsigned seconds, struct smi_findings *out)
{
    smi_findings_use(out);
    fflush(NULL); /* else the process could write this one's text once more */
    pid_t parent = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent && getppid() != 0) /* 0: it is outside of our PID namespace */
        _exit(1);                              /* it was gone before we asked */
    alarm(seconds); /* no image may hang who opens it */
    fn(arg);
    smi_judge_leave(0);
}

void smi_judge_wait(pid_t pid, struct smi_findings *out)
{
    int status;
    smi_findings_use(out);
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR) {
            smi_note_wrong("waitpid: %s", strerror(errno));
            return;
        }
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
        smi_note_wrong("who opened it did not come to an end: it hung");
    else if (WIFSIGNALED(status))
        smi_note_wrong("who opened it was ended by a signal: %s", strsignal(WTERMSIG(status)));
    else if (WEXITSTATUS(status) != 0)
        smi_note_wrong("who opened it ended with exit status %d", WEXITSTATUS(status));
}

void smi_judge(void (*fn)(void *), void *arg, unsigned seconds, struct smi_findings *out)
{
    smi_findings_clear(out);
    pid_t pid = smi_judge_start(fn, arg, seconds, out);
    if (pid < 0)
        smi_note_wrong("fork: %s", strerror(errno));
    else
        smi_judge_wait(pid, out);
}

/* ---- comparing ---- */

static int has_line(const char *text, const char *wanted, size_t len)
{
    for (const char *at = text; *at; at = strchr(at, '\n') + 1)
        if (strncmp(at, wanted, len) == 0)
            return 1;
    return 0;
}

/* All lines of `text` are in one of the two. */
static int covered(const char *text, const char *a, const char *b)
{
    for (const char *at = text, *end; *at; at = end) {
        end = strchr(at, '\n') + 1;
        if (!has_line(a, at, (size_t)(end - at)) && !has_line(b, at, (size_t)(end - at)))
            return 0;
    }
    return 1;
}

int smi_is_between(const char *text, const char *before, const char *after)
{
    if (!covered(text, before, after))
        return 0;
    for (const char *at = before, *end; *at; at = end) {
        end = strchr(at, '\n') + 1;
        size_t len = (size_t)(end - at);
        if (has_line(after, at, len) && !has_line(text, at, len))
            return 0;
    }
    return 1;
}

enum smi_verdict smi_compare(struct smi_comparison *c, const char *text)
{
    int is_before = strcmp(text, c->before) == 0, is_after = strcmp(text, c->after) == 0;
    if (is_after) {
        c->happened |= !is_before;
        return SMI_RIGHT;
    }
    if (is_before)
        return c->happened ? SMI_UNDONE : SMI_RIGHT;
    return c->between && smi_is_between(text, c->before, c->after) ? SMI_RIGHT : SMI_NEITHER;
}

static void print_missing(FILE *to, const char *mark, const char *lines, const char *in)
{
    for (const char *at = lines, *end; *at; at = end) {
        end = strchr(at, '\n') + 1;
        if (!has_line(in, at, (size_t)(end - at)))
            fprintf(to, "    %s %.*s", mark, (int)(end - at), at);
    }
}

void smi_print_difference(FILE *to, const char *was, const char *is)
{
    print_missing(to, "-", was, is);
    print_missing(to, "+", is, was);
}
