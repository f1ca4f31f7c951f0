/* SPDX-License-Identifier: MIT */
/*
 * hooks.c - a library to preload that looks on at many calls, as tracers and libraries that fake
 * the time do, and allocates in each.
 *
 * It has no guard of its own: a malloc that makes one of these calls comes back to it. That ends
 * the program with the status 99 and the name of the call, unless the call is one of those that
 * malloc makes once without a lock.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

#define DEEPEST 4 /* of the calls that malloc makes once */

static __thread int depth;

/* Small, medium and large blocks, by turns. */
static void allocate(const char *name, int most)
{
    static const size_t sizes[] = {24, 24, 700, 24, 5000, 24, 24, 60000, 24, 300000};
    static unsigned turn;
    if (depth > most) {
        struct iovec text[] = {{(char *)(uintptr_t) "hooks: malloc calls ", 20},
                               {(char *)(uintptr_t)name, strlen(name)}};
        writev(STDERR_FILENO, text, 2); /* neither hooked nor with memory of its own */
        _exit(99);
    }
    depth++;
    size_t size =
        sizes[__atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED) % (sizeof(sizes) / sizeof(sizes[0]))];
    char *volatile block = malloc(size), *volatile other = malloc(size / 2 + 1);
    if (block && other) {
        block[size - 1] = 1;
        other[0] = 1;
    }
    free(block);
    free(other);
    depth--;
}

/* The symbol is `name`, whatever the headers make of that. */
#define HOOK_UP_TO(most, type, name, parameters, arguments)                                        \
    type hook_##name parameters __asm__(#name);                                                    \
    type hook_##name parameters                                                                    \
    {                                                                                              \
        static type(*next) parameters;                                                             \
        if (!next)                                                                                 \
            *(void **)&next = dlsym(RTLD_NEXT, #name);                                             \
        allocate(#name, most);                                                                     \
        return next arguments;                                                                     \
    }
#define HOOK(...) HOOK_UP_TO(0, __VA_ARGS__)
#define HOOK_64(type, name, parameters, arguments)                                                 \
    HOOK(type, name, parameters, arguments)                                                        \
    HOOK(type, name##64, parameters, arguments)

/* A further argument, which is there or not, goes on. */
#define HOOK_OPTIONAL(name, parameters, last, ...)                                                 \
    int hook_##name parameters __asm__(#name);                                                     \
    int hook_##name parameters                                                                     \
    {                                                                                              \
        static int (*next) parameters;                                                             \
        va_list rest;                                                                              \
        va_start(rest, last);                                                                      \
        void *more = va_arg(rest, void *);                                                         \
        va_end(rest);                                                                              \
        if (!next)                                                                                 \
            *(void **)&next = dlsym(RTLD_NEXT, #name);                                             \
        allocate(#name, 0);                                                                        \
        return next(__VA_ARGS__, more);                                                            \
    }

HOOK_OPTIONAL(open, (const char *path, int flags, ...), flags, path, flags)
HOOK_OPTIONAL(open64, (const char *path, int flags, ...), flags, path, flags)
HOOK_OPTIONAL(openat, (int folder, const char *path, int flags, ...), flags, folder, path, flags)
HOOK_OPTIONAL(openat64, (int folder, const char *path, int flags, ...), flags, folder, path, flags)
HOOK_OPTIONAL(fcntl, (int fd, int command, ...), command, fd, command)
HOOK_OPTIONAL(fcntl64, (int fd, int command, ...), command, fd, command)

long hook_syscall(long number, ...) __asm__("syscall");
long hook_syscall(long number, ...)
{
    static long (*next)(long number, ...);
    long a[6];
    va_list rest;
    va_start(rest, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(rest, long);
    va_end(rest);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "syscall");
    allocate("syscall", 0);
    return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

HOOK(int, close, (int fd), (fd))
HOOK(ssize_t, read, (int fd, void *to, size_t n), (fd, to, n))
HOOK(ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n))
HOOK_64(ssize_t, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
HOOK_64(ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
HOOK_64(off_t, lseek, (int fd, off_t at, int whence), (fd, at, whence))
HOOK_64(int, fstat, (int fd, struct stat *out), (fd, out))
HOOK_64(int, stat, (const char *path, struct stat *out), (path, out))
HOOK_64(int, lstat, (const char *path, struct stat *out), (path, out))
HOOK_64(int, fstatat, (int folder, const char *path, struct stat *out, int flags),
        (folder, path, out, flags))
HOOK_64(int, fstatfs, (int fd, struct statfs *out), (fd, out))
HOOK_64(int, ftruncate, (int fd, off_t size), (fd, size))
HOOK_64(int, fallocate, (int fd, int mode, off_t at, off_t n), (fd, mode, at, n))
HOOK_64(int, posix_fadvise, (int fd, off_t at, off_t n, int advice), (fd, at, n, advice))
HOOK(int, fsync, (int fd), (fd))
HOOK(int, fdatasync, (int fd), (fd))
HOOK(int, fchmod, (int fd, mode_t mode), (fd, mode))
HOOK(ssize_t, readlink, (const char *path, char *to, size_t n), (path, to, n))
HOOK(int, unlink, (const char *path), (path))
HOOK(int, linkat, (int a, const char *from, int b, const char *to, int flags),
     (a, from, b, to, flags))
HOOK(char *, realpath, (const char *path, char *to), (path, to))
HOOK_64(void *, mmap, (void *at, size_t n, int how, int flags, int fd, off_t from),
        (at, n, how, flags, fd, from))
HOOK(int, munmap, (void *at, size_t n), (at, n))
HOOK(int, mprotect, (void *at, size_t n, int how), (at, n, how))
HOOK(int, madvise, (void *at, size_t n, int advice), (at, n, advice))
HOOK(int, msync, (void *at, size_t n, int flags), (at, n, flags))
HOOK(ssize_t, getrandom, (void *to, size_t n, unsigned flags), (to, n, flags))
HOOK(int, clock_gettime, (clockid_t clock, struct timespec *out), (clock, out))
HOOK(time_t, time, (time_t *out), (out))
HOOK(int, nanosleep, (const struct timespec *pause, struct timespec *rest), (pause, rest))
HOOK(pid_t, getpid, (void), ())
HOOK(uid_t, getuid, (void), ())
HOOK(pid_t, gettid, (void), ())
HOOK_64(int, getrlimit, (int which, struct rlimit *out), (which, out))
HOOK(int, getrusage, (int who, struct rusage *out), (who, out))
HOOK(long, sysconf, (int name), (name))
HOOK(int, getpagesize, (void), ())
HOOK(unsigned long, getauxval, (unsigned long which), (which))
HOOK(char *, getenv, (const char *name), (name))
HOOK(int, unsetenv, (const char *name), (name))
HOOK(int, pthread_sigmask, (int how, const sigset_t *set, sigset_t *was), (how, set, was))
HOOK(int, sigprocmask, (int how, const sigset_t *set, sigset_t *was), (how, set, was))
HOOK(int, sigfillset, (sigset_t *set), (set))
HOOK(int, pthread_mutex_init, (pthread_mutex_t * mutex, const pthread_mutexattr_t *attr),
     (mutex, attr))
HOOK(int, pthread_mutex_lock, (pthread_mutex_t *mutex), (mutex))
HOOK(int, pthread_mutex_trylock, (pthread_mutex_t *mutex), (mutex))
HOOK(int, pthread_mutex_unlock, (pthread_mutex_t *mutex), (mutex))
HOOK(int, pthread_setcancelstate, (int state, int *was), (state, was))
HOOK_UP_TO(DEEPEST, int, pthread_once, (pthread_once_t *once, void (*call)(void)), (once, call))
HOOK_UP_TO(DEEPEST, int, pthread_key_create, (pthread_key_t *key, void (*end)(void *)), (key, end))
HOOK_UP_TO(DEEPEST, int, pthread_setspecific, (pthread_key_t key, const void *value), (key, value))
