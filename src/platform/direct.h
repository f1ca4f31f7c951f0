/* SPDX-License-Identifier: MIT */
/*
 * direct.h - system calls without a name that others may define.
 *
 * For os.c in the preload library alone (SMI_DIRECT_CALLS). Other preloaded libraries define
 * open(), mmap(), clock_gettime() and more, to look on or to change the answer, and may allocate in
 * them. Called from malloc, under a lock of the heap or while the heap is made, such a function
 * would come back to malloc and wait for itself. So here each system call is an instruction.
 *
 * Included after the system's headers: their functions become macros. They answer as the C
 * library's do, -1 and errno; none is a cancellation point. On other machines nothing changes. What
 * os.c calls anew and this file lacks is found by tests/preload/imported.sh.
 */
#ifndef SMI_DIRECT_H
#define SMI_DIRECT_H

#if defined(SMI_DIRECT_CALLS) &&                                                                   \
    (defined(__x86_64__) || defined(__aarch64__) || (defined(__riscv) && __riscv_xlen == 64))

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#include "platform/vdso.h"

#define SMI_DIRECT_IS_ON 1

/* ---- one instruction ---- */

static inline long smi_direct_raw(long number, long a, long b, long c, long d, long e, long f)
{
#if defined(__x86_64__)
    long answer;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(answer)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return answer;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
#else
    register long a7 __asm__("a7") = number;
    register long a0 __asm__("a0") = a;
    register long a1 __asm__("a1") = b;
    register long a2 __asm__("a2") = c;
    register long a3 __asm__("a3") = d;
    register long a4 __asm__("a4") = e;
    register long a5 __asm__("a5") = f;
    __asm__ volatile("ecall"
                     : "+r"(a0)
                     : "r"(a7), "r"(a1), "r"(a2), "r"(a3), "r"(a4), "r"(a5)
                     : "memory");
    return a0;
#endif
}

static inline long smi_direct_answer(long answer)
{
    if (answer >= 0 || answer < -4095) /* an address is no error, wherever it lies */
        return answer;
    errno = (int)-answer;
    return -1;
}

static inline int smi_direct_int(long answer)
{
    return (int)smi_direct_answer(answer);
}

/* Up to six arguments, of any type that fits a register; what is missing is 0. */
#define SMI_DIRECT_7(number, a, b, c, d, e, f, ...)                                                \
    smi_direct_raw((long)(number), (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))
#define SMI_DIRECT_RAW(...) SMI_DIRECT_7(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#define SMI_DIRECT(...) smi_direct_answer(SMI_DIRECT_RAW(__VA_ARGS__))
#define SMI_DIRECT_INT(...) smi_direct_int(SMI_DIRECT_RAW(__VA_ARGS__))

/* ---- what is no plain system call ---- */

/* The page size is the kernel's, and no call tells it; but advice about no bytes is refused in the
 * middle of a page. */
static inline long smi_direct_page_bytes(void)
{
    long size = 4096;
#if defined(__aarch64__) /* the others have one size only */
    while (SMI_DIRECT_RAW(SYS_madvise, size, 0, MADV_NORMAL) < 0)
        size *= 2;
#endif
    return size;
}

static inline int smi_direct_clock(clockid_t clock, struct timespec *out)
{
    smi_vdso_clock *fast = __atomic_load_n(&smi_vdso_clock_gettime, __ATOMIC_RELAXED);
    return fast && fast(clock, out) == 0 ? 0 : SMI_DIRECT_INT(SYS_clock_gettime, clock, out);
}

/* The kernel's set is a word. Two signals are the C library's own, which it never lets anybody
 * block. */
static inline int smi_direct_sigmask(int how, const sigset_t *set, sigset_t *was)
{
    const unsigned long own = 3ul << 31; /* SIGCANCEL, SIGSETXID: 32 and 33 */
    unsigned long mask = set ? *(const unsigned long *)(const void *)set : 0;
    if (how != SIG_SETMASK)
        mask &= ~own;
    return (int)-SMI_DIRECT_RAW(SYS_rt_sigprocmask, how, set ? &mask : NULL, was, sizeof(mask));
}

static inline int smi_direct_fill(sigset_t *set)
{
    for (size_t i = 0; i < sizeof(*set); i++)
        ((unsigned char *)set)[i] = 0xff;
    return 0;
}

/* ---- by the names that os.c uses ---- */

#define clock_gettime(clock, out) smi_direct_clock(clock, out)
#define close(fd) SMI_DIRECT_INT(SYS_close, fd)
#define fallocate(...) SMI_DIRECT_INT(SYS_fallocate, __VA_ARGS__)
#define fchmod(fd, mode) SMI_DIRECT_INT(SYS_fchmod, fd, mode)
#define fcntl(...) SMI_DIRECT_INT(SYS_fcntl, __VA_ARGS__)
#define fdatasync(fd) SMI_DIRECT_INT(SYS_fdatasync, fd)
#define fstat(fd, out) SMI_DIRECT_INT(SYS_fstat, fd, out)
#define fstatat(...) SMI_DIRECT_INT(SYS_newfstatat, __VA_ARGS__)
#define fstatfs(fd, out) SMI_DIRECT_INT(SYS_fstatfs, fd, out)
#define fsync(fd) SMI_DIRECT_INT(SYS_fsync, fd)
#define ftruncate(fd, size) SMI_DIRECT_INT(SYS_ftruncate, fd, size)
#define getpid() SMI_DIRECT_INT(SYS_getpid)
#define getrandom(...) SMI_DIRECT(SYS_getrandom, __VA_ARGS__)
#define getrlimit(which, out) SMI_DIRECT_INT(SYS_prlimit64, 0, which, NULL, out)
#define getrusage(who, out) SMI_DIRECT_INT(SYS_getrusage, who, out)
#define getuid() SMI_DIRECT_INT(SYS_getuid)
#define linkat(...) SMI_DIRECT_INT(SYS_linkat, __VA_ARGS__)
#define lseek(...) SMI_DIRECT(SYS_lseek, __VA_ARGS__)
#define lstat(path, out) fstatat(AT_FDCWD, path, out, AT_SYMLINK_NOFOLLOW)
#define madvise(...) SMI_DIRECT_INT(SYS_madvise, __VA_ARGS__)
#define mmap(...) (void *)SMI_DIRECT(SYS_mmap, __VA_ARGS__)
#define mprotect(...) SMI_DIRECT_INT(SYS_mprotect, __VA_ARGS__)
#define msync(...) SMI_DIRECT_INT(SYS_msync, __VA_ARGS__)
#define munmap(address, len) SMI_DIRECT_INT(SYS_munmap, address, len)
#define nanosleep(time, rest) SMI_DIRECT_INT(SYS_nanosleep, time, rest)
#define open(...) SMI_DIRECT_INT(SYS_openat, AT_FDCWD, __VA_ARGS__)
#define posix_fadvise(...) (int)-SMI_DIRECT_RAW(SYS_fadvise64, __VA_ARGS__)
#define pread(...) SMI_DIRECT(SYS_pread64, __VA_ARGS__)
#define pwrite(...) SMI_DIRECT(SYS_pwrite64, __VA_ARGS__)
#define readlink(...) SMI_DIRECT(SYS_readlinkat, AT_FDCWD, __VA_ARGS__)
#define pthread_sigmask(how, set, was) smi_direct_sigmask(how, set, was)
#define sigfillset(set) smi_direct_fill(set)
#define stat(path, out) fstatat(AT_FDCWD, path, out, 0)
#define syscall(...) SMI_DIRECT(__VA_ARGS__)
#define sysconf(name) smi_direct_page_bytes() /* only the page size is asked for */
#define unlink(path) SMI_DIRECT_INT(SYS_unlinkat, AT_FDCWD, path, 0)
#define write(...) SMI_DIRECT(SYS_write, __VA_ARGS__)

#endif
#endif
