/* SPDX-License-Identifier: MIT */
/* run.c - what every command begins and ends with. */
#include "inspect.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int shows_colors(void)
{
    const char *no_color = getenv("NO_COLOR"), *terminal = getenv("TERM");
    return isatty(STDOUT_FILENO) && !(no_color && no_color[0]) && terminal &&
           strcmp(terminal, "dumb") != 0;
}

enum verdict inspect_run(struct inspect *in)
{
    in->color = !in->json && shows_colors();
    in->view.fd = -1;
    if (in->json) {
        in->out = json_object_new_object();
        inspect_add_number(in->out, "schema", 1);
        inspect_add_text(in->out, "command", in->command->name);
        if (in->path)
            inspect_add_text(in->out, "file", in->path);
        inspect_add(in->out, "status", NULL); /* keeps its place; filled in at the end */
    }
    enum verdict verdict = inspect_finish(in, in->command->run(in));
    smi_view_finish(&in->view);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        perror("shmalloc-inspect: standard output");
        return CANNOT_TELL;
    }
    return verdict;
}
