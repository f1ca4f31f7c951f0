/* SPDX-License-Identifier: MIT */
/*
 * open.c - a heap file, who uses it, and what failures mean.
 *
 * A process that uses a heap holds a lock on its byte of the file for as long as it lives. Whether
 * somebody holds one can be asked without taking it (F_OFD_GETLK), so neither a stopped process nor
 * this tool ever waits for the other.
 */
#include "inspect.h"

#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/error.h"
#include "platform/os.h"

static void look_for_users(struct inspect *in)
{
    struct users *users = &in->users;
    int rc = smi_os_is_locked(in->view.fd, SMF_ATTACH_BYTE, 1);
    users->known = rc >= 0;
    users->attaching = rc == 1;
    users->processes = 0;
    for (uint32_t i = 0; users->known && i < SMF_PROCESSES; i++) {
        users->alive[i] = smi_os_is_locked(in->view.fd, SMF_LOCK_BYTES + i, 1) == 1;
        users->processes += users->alive[i];
    }
}

int inspect_open(struct inspect *in)
{
    int rc = smi_view_open(&in->view, in->path);
    in->view.progress = inspect_progress;
    if (in->view.fd >= 0)
        look_for_users(in);
    return rc;
}

int inspect_open_again(struct inspect *in)
{
    int rc = smi_view_reload(&in->view);
    look_for_users(in);
    return rc;
}

int inspect_is_live(const struct inspect *in)
{
    return !in->users.known || in->users.attaching || in->users.processes > 0;
}

/* What this machine and this file are to the runtime area. */
enum kinship { OTHERS, OURS, MAYBE_OURS };

static enum kinship kinship(struct inspect *in)
{
    const struct smf_runtime *runtime =
        smi_view_record(&in->view, in->view.header.areas.runtime, sizeof(*runtime));
    struct smi_file_info file;
    uint8_t boot_id[16];
    if (!runtime || smi_os_stat(in->view.fd, &file) < 0 || runtime->device != file.device ||
        runtime->inode != file.inode)
        return OTHERS;
    if (smi_os_boot_id(boot_id) < 0)
        return MAYBE_OURS;
    return memcmp(runtime->boot_id, boot_id, sizeof(boot_id)) == 0 ? OURS : OTHERS;
}

int inspect_runtime_is_valid(struct inspect *in)
{
    return kinship(in) == OURS;
}

int inspect_is_unclean(struct inspect *in)
{
    uint64_t mark = in->view.state.mark;
    return !inspect_is_live(in) && mark != SMF_CLEAN &&
           !(mark == SMF_IN_USE && kinship(in) != OTHERS);
}

int inspect_cannot_tell(struct inspect *in)
{
    return !inspect_is_live(in) && in->view.state.mark == SMF_IN_USE && kinship(in) == MAYBE_OURS;
}

int inspect_same_namespace(struct inspect *in)
{
    const struct smf_runtime *runtime =
        smi_view_record(&in->view, in->view.header.areas.runtime, sizeof(*runtime));
    uint64_t here;
    return runtime && smi_os_pid_namespace(&here) == 0 && runtime->pid_namespace == here;
}

int inspect_faults(const struct smf_process *process, uint64_t *minor, uint64_t *major)
{
    if (smi_os_start_time((pid_t)process->pid, (pid_t)process->pid) != process->start_time)
        return -1;
    return smi_os_faults((pid_t)process->pid, minor, major);
}

enum verdict inspect_verdict(int code)
{
    if (code >= 0)
        return SOUND;
    return code == SHMALLOC_ECORRUPT || code == SHMALLOC_EPOISONED ? DAMAGED : CANNOT_TELL;
}

enum verdict inspect_report_error(struct inspect *in, int code)
{
    if (in->out) {
        struct json_object *error = json_object_new_object();
        inspect_add(error, "code", json_object_new_int(code));
        inspect_add_text(error, "meaning", shmalloc_strerror(code));
        inspect_add_text(error, "message", shmalloc_errmsg());
        inspect_add(in->out, "error", error);
    } else {
        fprintf(stderr, "shmalloc-inspect: %s\n", shmalloc_errmsg());
    }
    return inspect_verdict(code);
}

int inspect_settle(struct inspect *in, struct smi_cached **cached, size_t *count)
{
    int rc = smi_view_settle(&in->view, NULL, NULL);
    if (rc == 0)
        rc = smi_view_cached(&in->view, cached, count);
    return rc < 0 ? smi_error(rc, "%s: %s", in->path, shmalloc_strerror(rc)) : 0;
}

enum verdict inspect_conclude(struct inspect *in)
{
    int error = in->view.read_error, poisoned = in->view.state.poison != 0;
    if (in->out)
        inspect_add_flag(in->out, "moving", inspect_is_live(in));
    else if (inspect_is_live(in))
        printf("%sThe heap is in use: this is a moving picture.%s\n", inspect_color(in, DIM),
               inspect_color(in, PLAIN));
    if (poisoned && !in->out)
        printf("%sThe heap is poisoned: `shmalloc-inspect check` says more.%s\n",
               inspect_color(in, RED), inspect_color(in, PLAIN));
    if (error)
        return inspect_report_error(in, smi_error(-error, "%s: cannot read: %s", in->path,
                                                  shmalloc_strerror(-error)));
    return poisoned ? DAMAGED : SOUND;
}

enum verdict inspect_open_or_report(struct inspect *in)
{
    int rc = inspect_open(in);
    return rc < 0 ? inspect_report_error(in, rc) : SOUND;
}
