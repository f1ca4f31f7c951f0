/* SPDX-License-Identifier: MIT */
/* inject.c - see inject.h. Owns nothing. */
#include "inject.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* ---- what can fail, and how ---- */

static const struct failing {
    int number;
    const char *name;
    int errors[4];
} failing[] = {
    {SYS_openat, "openat", {EMFILE, EOPNOTSUPP, EINTR}},
    {SYS_newfstatat, "newfstatat", {EIO, ENOMEM}},
    {SYS_fstat, "fstat", {EIO, ENOMEM}},
    {SYS_fstatfs, "fstatfs", {EIO, ENOSYS}},
    {SYS_mmap, "mmap", {ENOMEM, EAGAIN}},
    {SYS_madvise, "madvise", {ENOMEM, EINVAL}},
    {SYS_mprotect, "mprotect", {ENOMEM}},
    {SYS_brk, "brk", {ENOMEM}},
    {SYS_ftruncate, "ftruncate", {EIO, ENOSPC, EINTR}},
    {SYS_fallocate, "fallocate", {ENOSPC, EIO, EINTR, EOPNOTSUPP}},
    {SYS_read, "read", {EIO, EINTR}},
    {SYS_pread64, "pread64", {EIO, EINTR}},
    {SYS_pwrite64, "pwrite64", {EIO, ENOSPC, EINTR}},
    {SYS_fdatasync, "fdatasync", {EIO, ENOSPC}},
    {SYS_msync, "msync", {EIO, ENOMEM}},
    {SYS_fcntl, "fcntl", {ENOLCK, EINTR}},
    {SYS_renameat2, "renameat2", {EINVAL, EIO}},
    {SYS_linkat, "linkat", {EIO, ENOSPC}},
    {SYS_unlinkat, "unlinkat", {EIO, EACCES}},
    {SYS_fchmod, "fchmod", {EIO, EPERM}},
    {SYS_readlinkat, "readlinkat", {EIO, ENOMEM}},
    {SYS_getcwd, "getcwd", {ENOENT, ENOMEM}},
    {SYS_getrandom, "getrandom", {ENOSYS, EINTR}},
    {SYS_clock_nanosleep, "clock_nanosleep", {EINTR}},
    {SYS_prlimit64, "prlimit64", {EPERM}},
    {SYS_tgkill, "tgkill", {EPERM, EAGAIN}},
#ifdef SYS_open /* older names, where the machine has them */
    {SYS_open, "open", {EMFILE, EOPNOTSUPP, EINTR}},
    {SYS_stat, "stat", {EIO, ENOMEM}},
    {SYS_unlink, "unlink", {EIO, EACCES}},
    {SYS_readlink, "readlink", {EIO, ENOMEM}},
    {SYS_nanosleep, "nanosleep", {EINTR}},
    {SYS_getrlimit, "getrlimit", {EPERM}},
#endif
};
enum { FAILING = sizeof(failing) / sizeof(failing[0]) };

static const struct failing *failing_of(int number)
{
    for (unsigned i = 0; i < FAILING; i++)
        if (failing[i].number == number)
            return &failing[i];
    return NULL;
}

unsigned inject_errors(int number)
{
    const struct failing *call = failing_of(number);
    unsigned count = 0;
    while (call && count < 4 && call->errors[count])
        count++;
    return count;
}

const char *inject_name(int number)
{
    const struct failing *call = failing_of(number);
    return call ? call->name : "none";
}

/* ---- the child ---- */

#if defined(__x86_64__)
#define MACHINE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define MACHINE AUDIT_ARCH_AARCH64
#elif defined(__riscv)
#define MACHINE AUDIT_ARCH_RISCV64
#elif defined(__powerpc64__)
#define MACHINE AUDIT_ARCH_PPC64LE
#else
#error "which machine is this? add its audit number"
#endif

/* Report the calls of the table; returns the descriptor that they are reported on. */
static int install_filter(void)
{
    struct sock_filter code[FAILING + 6];
    unsigned at = 0;
    code[at++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MACHINE, 1, 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] =
        (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (unsigned i = 0; i < FAILING; i++)
        code[at++] = (struct sock_filter)BPF_JUMP(
            BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)failing[i].number, (uint8_t)(FAILING - i), 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog program = {(unsigned short)at, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return -errno;
    int fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER,
                          &program);
    return fd < 0 ? -errno : fd;
}

struct start {
    worker_fn *fn;
    void *arg;
    int listener;    /* the child's descriptor, or an errno */
    uint32_t ready;  /* the child has it */
    uint32_t taken;  /* the parent has it too */
    struct injected injected;
};

static int begin_child(void *arg)
{
    struct start *start = arg;
    start->listener = install_filter();
    signal_word(&start->ready);
    if (start->listener < 0)
        return NOT_POSSIBLE;
    await_word(&start->taken, 1);
    close(start->listener);
    return start->fn(start->arg);
}

void inject_arm(struct injected *injected)
{
    __atomic_store_n(&injected->armed, __atomic_add_fetch(&injected->entries, 1, __ATOMIC_SEQ_CST),
                     __ATOMIC_SEQ_CST);
}

void inject_disarm(struct injected *injected)
{
    __atomic_store_n(&injected->armed, 0, __ATOMIC_SEQ_CST);
}

/* ---- the parent ---- */

/* Does the C library's code begin before `address`, and end behind? The child has it at the same
 * place. */
static int in_c_library(uint64_t address)
{
    static uint64_t begin, end;
    char line[512], rights[8];
    FILE *maps = begin ? NULL : fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof(line), maps)) {
        unsigned long from, to;
        if ((strstr(line, "/libc.so") || strstr(line, "/libc-")) &&
            sscanf(line, "%lx-%lx %7s", &from, &to, rights) == 3 && rights[2] == 'x') {
            begin = from;
            end = to;
        }
    }
    if (maps)
        fclose(maps);
    must(begin, "the C library is not to be found in /proc/self/maps");
    return address >= begin && address < end;
}

static int is_unlock(pid_t pid, const struct seccomp_data *call)
{
    struct flock lock = {0};
    struct iovec here = {&lock, sizeof(lock)},
                 there = {(void *)(uintptr_t)call->args[2], sizeof(lock)};
    return call->nr == SYS_fcntl && call->args[1] == F_OFD_SETLK &&
           process_vm_readv(pid, &here, 1, &there, 1, 0) == sizeof(lock) && lock.l_type == F_UNLCK;
}

/* The errno that a call is answered with; 0: it goes on. */
static int verdict(struct injected *run, const struct injection *injection, pid_t pid,
                   const struct seccomp_data *call)
{
    uint32_t armed = __atomic_load_n(&run->armed, __ATOMIC_SEQ_CST);
    const struct failing *entry = failing_of(call->nr);
    if (!armed || !entry || !in_c_library(call->instruction_pointer) || is_unlock(pid, call))
        return 0;
    if (injection->no_tmpfile && call->nr == SYS_openat &&
        ((int)call->args[2] & O_TMPFILE) == O_TMPFILE)
        return EOPNOTSUPP;
    if (run->calls < INJECT_SEEN)
        run->seen[run->calls] = (uint16_t)call->nr;
    run->calls++;
    if (run->calls == injection->position && injection->choice < inject_errors(call->nr)) {
        run->fired = armed;
        run->number = call->nr;
        run->error = entry->errors[injection->choice];
        return run->error;
    }
    int lasts = injection->lasting && run->error != EINTR; /* what was interrupted is asked again,
                                                              for ever */
    return lasts && run->fired == armed && run->number == call->nr ? run->error : 0;
}

/* Answer all calls until nobody is under the filter any more. */
static void answer_calls(int listener, struct injected *run, const struct injection *injection)
{
    union { /* a later kernel's are longer */
        struct seccomp_notif notif;
        struct seccomp_notif_resp resp;
        uint8_t room[512];
    } in, out;
    struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
    while (poll(&poll_fd, 1, -1) > 0 && !(poll_fd.revents & POLLHUP)) {
        memset(&in, 0, sizeof(in));
        memset(&out, 0, sizeof(out));
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &in) < 0)
            continue; /* who called was killed meanwhile */
        int error = verdict(run, injection, (pid_t)in.notif.pid, &in.notif.data);
        out.resp.id = in.notif.id;
        out.resp.error = -error;
        out.resp.flags = error ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &out);
    }
}

int inject_run(worker_fn *fn, void *arg, const struct injection *injection, struct injected *out)
{
    static struct start *start;
    if (!start)
        start = shared_memory(sizeof(*start));
    memset(start, 0, sizeof(*start));
    start->fn = fn;
    start->arg = arg;
    start->injected.number = -1;
    *(struct injected **)arg = &start->injected; /* the first thing in what the run is given */
    pid_t pid = start_child(begin_child, start);
    await_word(&start->ready, 1);
    if (start->listener >= 0) {
        int child = (int)syscall(SYS_pidfd_open, pid, 0);
        int listener = (int)syscall(SYS_pidfd_getfd, child, start->listener, 0);
        must(listener >= 0, "pidfd_getfd: %s", strerror(errno));
        close(child);
        signal_word(&start->taken);
        answer_calls(listener, &start->injected, injection);
        close(listener);
    }
    int status = wait_child(pid);
    *out = start->injected;
    return status;
}
