/* SPDX-License-Identifier: MIT */
/*
 * cmd_repair.c - check --repair: what would be done, or what was done.
 *
 * The plan and its execution are in repair/repair.h. Here: that nobody uses the heap, the
 * copy that is saved first, and what a person reads.
 */
#include "inspect.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "platform/os.h"
#include "repair/repair.h"

/* ---- who uses it ---------------------------------------------------------------------------- */

/* "processes 12 (writer), 17 (reader)", as far as there is room. */
static void name_users(struct inspect *in, char *out, size_t size)
{
    size_t used = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < SMF_PROCESSES; i++) {
        const struct smf_process *p =
            in->users.alive[i]
                ? smi_view_record(&in->view, in->view.header.areas.processes + i * sizeof(*p),
                                  sizeof(*p))
                : NULL;
        if (p && used < size)
            used +=
                (size_t)snprintf(out + used, size - used, "%s%u (%.*s)", used ? ", " : "process ",
                                 p->pid, (int)sizeof(p->name), p->name);
    }
}

int inspect_need_rest(struct inspect *in)
{
    char names[300];
    if (!in->users.known)
        return smi_error(
            -EOPNOTSUPP,
            "%s: its file system does not tell whether somebody uses it; copy it to another "
            "and do it there",
            in->path);
    if (!inspect_is_live(in))
        return 0;
    name_users(in, names, sizeof(names));
    return smi_error(SHMALLOC_EBUSY, "%s: is in use by %s; end that first: nothing was changed",
                     in->path, names[0] ? names : "a process that attaches or leaves");
}

/* The same after opening a heap whose header and state may be damaged. */
static int open_at_rest(struct inspect *in)
{
    int rc = inspect_open(in);
    return in->view.fd < 0 ? rc : inspect_need_rest(in);
}

/* ---- what is said --------------------------------------------------------------------------- */

static void print_steps(struct inspect *in, const struct smi_repair_steps *steps, enum color color)
{
    for (size_t i = 0; i < steps->count; i++) {
        printf("%4zu. ", i + 1);
        inspect_print_finding(in, color, steps->at[i].invariant, steps->at[i].ref,
                              steps->at[i].text);
    }
}

static void add_steps(struct json_object *to, const char *key, const struct smi_repair_steps *steps)
{
    struct json_object *list = json_object_new_array();
    for (size_t i = 0; i < steps->count; i++)
        inspect_add_finding(list, steps->at[i].invariant, steps->at[i].ref, steps->at[i].text);
    inspect_add(to, key, list);
}

static void say_older(struct inspect *in)
{
    if (!smi_format_is_older(&in->view.header) || inspect_is_live(in))
        return;
    printf("It is of file format version %u and becomes one of version %u when it is opened for "
           "writing,\n"
           "or by `shmalloc-inspect check --repair --yes ",
           in->view.header.format_version, SMF_FORMAT_VERSION);
    inspect_print_text(in->path);
    printf("`.\n");
}

void inspect_say_unclean(struct inspect *in)
{
    if (inspect_cannot_tell(in))
        printf("Whether it can be opened cannot be told: its processes died, or the machine "
               "stopped, and\n"
               "the machine's boot id, in /proc, cannot be read.\n");
    if (!inspect_is_unclean(in)) {
        say_older(in);
        return;
    }
    printf("It cannot be opened yet: the machine stopped, or the file was copied, while it was in\n"
           "use. Have it closed in order with `shmalloc-inspect check --repair --yes ");
    inspect_print_text(in->path);
    printf("`;\nwhat programs stored last may be missing in their blocks.\n");
}

static void show_plan(struct inspect *in, const struct smi_repair *repair)
{
    char n[64], m[64];
    inspect_progress_end();
    if (in->out) {
        struct json_object *object = json_object_new_object();
        add_steps(object, "steps", &repair->steps);
        add_steps(object, "obstacles", &repair->obstacles);
        if (inspect_cannot_tell(in))
            inspect_add(object, "unclean", NULL);
        else
            inspect_add_flag(object, "unclean", inspect_is_unclean(in));
        inspect_add_flag(object, "applied", 0);
        inspect_add(object, "backup", NULL);
        inspect_add(in->out, "repair", object);
        return;
    }
    print_steps(in, &repair->steps, YELLOW);
    if (repair->obstacles.count == 0 && repair->steps.count == 0) {
        printf("%ssound%s: there is nothing to repair.\n", inspect_color(in, GREEN),
               inspect_color(in, PLAIN));
        if (!in->given['y'])
            inspect_say_unclean(in);
    } else if (repair->obstacles.count > 0) {
        printf("%sbeyond repair%s: %s\n", inspect_color(in, RED), inspect_color(in, PLAIN),
               inspect_count(repair->obstacles.count, "thing for which there is no safe rule",
                             "things for which there is no safe rule", n));
        print_steps(in, &repair->obstacles, RED);
        printf("Nothing was written. Restore the file from a copy.\n");
    } else if (!in->given['y']) {
        printf("%srepairable%s: %s would bring the heap back. %s\n", inspect_color(in, YELLOW),
               inspect_color(in, PLAIN), inspect_count(repair->steps.count, "step", "steps", m),
               "Nothing was written.");
        printf("Carry it out with `shmalloc-inspect check --repair --yes ");
        inspect_print_text(in->path);
        printf("`;\nthe file as it is now is saved beside it first, or where --backup says.\n");
    }
}

/* ---- carrying out --------------------------------------------------------------------------- */

/* The name of the copy: as given, or the first that is free. */
static int choose_backup(const struct inspect *in, char *out)
{
    if (in->given['b'])
        return snprintf(out, PATH_MAX, "%s", in->given['b']) < PATH_MAX ? 0 : -ENAMETOOLONG;
    for (int i = 1; i < 1000; i++) {
        int len = i == 1 ? snprintf(out, PATH_MAX, "%s.before-repair", in->path)
                         : snprintf(out, PATH_MAX, "%s.before-repair-%d", in->path, i);
        if (len >= PATH_MAX)
            return -ENAMETOOLONG;
        if (access(out, F_OK) != 0)
            return 0;
    }
    return -EEXIST;
}

static int save(struct inspect *in, struct smi_repair *repair, int fd, char *backup)
{
    int rc = choose_backup(in, backup);
    if (rc < 0)
        return smi_error(rc, "%s: no name for a copy: %s", in->path, shmalloc_strerror(rc));
    rc = smi_repair_save(repair, fd, backup, inspect_progress_count);
    inspect_progress_end();
    if (rc < 0)
        return rc;
    if (in->out) {
        struct json_object *object = json_object_object_get(in->out, "repair");
        inspect_add_text(object, "backup", backup);
    } else {
        printf("The file as it was is saved as ");
        inspect_print_text(backup);
        printf(".\n");
    }
    return 0;
}

static void show_done(struct inspect *in, size_t steps)
{
    char n[64];
    inspect_progress_end();
    if (in->out)
        inspect_add_flag(json_object_object_get(in->out, "repair"), "applied", 1);
    else
        printf("%srepaired%s: %s carried out.\n", inspect_color(in, GREEN),
               inspect_color(in, PLAIN), inspect_count(steps, "step was", "steps were", n));
}

/* The heap is as after a machine that stopped: taking it into use once brings back what the dead
 * had cached, checks it and closes it in order. Then it is looked at again. Nobody may have it
 * open, so `*fd` is closed. */
static enum verdict settle(struct inspect *in, int *fd)
{
    smi_os_close(*fd);
    *fd = -1;
    int rc = shmalloc_recover(in->path);
    if (rc < 0 && !in->out)
        fprintf(stderr, "shmalloc-inspect: the heap cannot be used yet, for it could not be closed "
                        "in order:\n");
    if (rc < 0)
        inspect_report_error(in, rc);
    else if (in->out)
        inspect_add_flag(json_object_object_get(in->out, "repair"), "applied", 1);
    else
        printf("The heap was closed in order and may be used again.\n");
    smi_view_finish(&in->view);
    enum verdict verdict = inspect_check_now(in);
    return rc < 0 && verdict == SOUND ? CANNOT_TELL : verdict;
}

static enum verdict carry_out(struct inspect *in, struct smi_repair *repair, int *fd)
{
    char backup[PATH_MAX];
    int rc = save(in, repair, *fd, backup);
    if (rc == 0)
        rc = smi_repair_apply(repair, *fd, inspect_progress_count);
    if (rc < 0)
        return inspect_report_error(in, rc);
    show_done(in, repair->steps.count);
    return settle(in, fd);
}

enum verdict inspect_repair(struct inspect *in)
{
    struct smi_repair repair;
    enum verdict verdict = SOUND;
    int rc = open_at_rest(in), fd = -1;
    if (rc == 0)
        rc = fd = smi_os_open(in->path, !in->given['y']);
    if (rc == fd && rc < 0)
        smi_error(rc, "%s: cannot open: %s", in->path, shmalloc_strerror(rc));
    if (fd >= 0)
        rc = in->given['y'] ? smi_repair_claim(fd, in->path) : 0;
    if (rc < 0) {
        smi_os_close(fd);
        return inspect_report_error(in, rc);
    }
    rc = smi_repair_plan(&repair, fd, in->path, inspect_progress);
    if (rc < 0) {
        verdict = inspect_report_error(in, rc);
    } else {
        show_plan(in, &repair);
        verdict = repair.steps.count + repair.obstacles.count > 0 ? DAMAGED : SOUND;
        if (verdict == DAMAGED && repair.obstacles.count == 0 && in->given['y'])
            verdict = carry_out(in, &repair, &fd);
        else if (verdict == SOUND && in->given['y'] &&
                 (inspect_is_unclean(in) || inspect_cannot_tell(in) ||
                  smi_format_is_older(&in->view.header)))
            verdict = settle(in, &fd);
    }
    smi_repair_finish(&repair);
    smi_os_close(fd);
    return verdict;
}
