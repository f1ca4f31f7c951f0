/* SPDX-License-Identifier: MIT */
/*
 * error.c - codes to words, and the thread's message about its last failure.
 *
 * Messages lie in a table, which costs memory where it is used. A thread takes a place when it
 * fails first, and has it to its end; the place of a thread that is gone is taken by the next. So a
 * failure needs no memory that might be missing, no allocation that might come back to a lock that
 * is held, and no destructor. As a thread-local array the messages would cost every thread of the
 * program, and libraries that are loaded late (dlopen) share some hundred bytes of such memory.
 */
#include "platform/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "platform/os.h"

#define MESSAGE 1024u /* bytes, the end included */
#define PLACES 1024u  /* threads that failed and live */

static char texts[PLACES][MESSAGE];
/* Who took the place last: in the low half the kernel's thread id, 0 nobody's; in the high half how
 * often it was taken. */
static uint64_t owners[PLACES];

/* This thread's place + 1, 0 none yet. In a forked child the thread has another id and takes the
 * place again, unless another thread of the child was faster. */
static _Thread_local uint32_t place;

/* Take place `i` for this thread, which has none: unless somebody has it who lives. Ids come again,
 * so this thread's means one that is gone; and the count tells whether another took the place
 * meanwhile, who may be this thread's namesake. */
static int take(uint32_t i, uint32_t me)
{
    uint64_t owner = __atomic_load_n(&owners[i], __ATOMIC_ACQUIRE);
    uint32_t id = (uint32_t)owner;
    return (id == 0 || id == me || !smi_os_thread_exists((pid_t)id, 0)) &&
           __atomic_compare_exchange_n(&owners[i], &owner, ((owner >> 32) + 1) << 32 | me, 0,
                                       __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}

/* The message of this thread, as long as it has one. */
static char *text_of(uint32_t me)
{
    if (place > 0 && ((uint32_t)__atomic_load_n(&owners[place - 1], __ATOMIC_ACQUIRE) == me ||
                      take(place - 1, me)))
        return texts[place - 1];
    place = 0;
    return NULL;
}

/* Where the thread's message goes; NULL while that many other threads have one. */
static char *room(void)
{
    uint32_t me = smi_os_thread_id();
    char *text = text_of(me);
    for (uint32_t i = 0; !text && i < PLACES; i++)
        if (take(i, me)) {
            place = i + 1;
            text = texts[i];
        }
    return text;
}

/* The message is written. Who takes the place after this thread's end, which the kernel tells, has
 * seen it: said in the way that compilers and their tools know. */
static void written(void)
{
    if (place > 0)
        __atomic_fetch_add(&owners[place - 1], 0, __ATOMIC_RELEASE);
}

int smi_error(int code, const char *format, ...)
{
    char *text = room();
    va_list args;
    va_start(args, format);
    if (text)
        vsnprintf(text, MESSAGE, format, args);
    va_end(args);
    written();
    return code;
}

static const char *remedy(int code)
{
    switch (-code) {
    case ENOENT:
        return "; it, or a folder on the way to it, is not there: give the name of a heap, or "
               "create one "
               "(SHMALLOC_CREATE) in a folder that exists";
    case EBADF:
        return "; open the heap again, and leave descriptors alone that you did not open";
    case EACCES:
        return "; needs permission to read it and, unless it is opened for reading only "
               "(SHMALLOC_READ_ONLY), to write "
               "it, and to search its folders; to create or remove it, to write to the last of "
               "them";
    case EPERM:
        return "; this is not for want of permission to read or write: the kernel, or a security "
               "module, forbids it";
    case EROFS:
        return "; remount the file system for writing; a heap that is there can be opened for "
               "reading only "
               "(SHMALLOC_READ_ONLY)";
    case ETXTBSY:
        return "; it is a program that runs, or swap space: give the name of a heap";
    case EISDIR:
        return "; a heap is a regular file: give the name of one";
    case EEXIST:
        return "; without SHMALLOC_EXCLUSIVE it is opened";
    case EMFILE:
        return "; close some, or raise the limit (ulimit -n)";
    case ENFILE:
        return "; close some, or raise the limit (sysctl fs.file-max)";
    case ENOSPC:
        return "; free some there, or put the heap on a larger file system";
    case EDQUOT:
        return "; free some, or raise the quota";
    case EFBIG:
        return "; raise the limit on file sizes (ulimit -f), or use a file system for larger files";
    case ENOMEM:
        return "; free memory, or raise the limits on memory and mappings (ulimit -v, sysctl "
               "vm.max_map_count)";
    case ENOLCK:
        return "; the system has no lock left: close other files, or use a local file system";
    case EOPNOTSUPP:
        return "; use a file system that can do it, such as ext4, XFS or tmpfs";
    case -SHMALLOC_EPROC:
        return "; mount it where this process sees it, whole (mount -t proc proc /proc, without "
               "subset=pid)";
    case EIO:
        return "; see the kernel's log for the device, and restore the file from a copy";
    default:
        return "";
    }
}

/* What is forbidden by `guards`, of the file or of its folder, and what helps; NULL: nothing. */
static const char *remedy_of(unsigned guards, int is_folder)
{
    if (guards & SMI_IMMUTABLE)
        return is_folder ? "; its folder is immutable (an attribute): take that away (chattr -i)"
                         : "; it is immutable (an attribute): take that away (chattr -i), or open "
                           "it for reading only "
                           "(SHMALLOC_READ_ONLY)";
    if (guards & SMI_APPEND_ONLY)
        return is_folder
                   ? "; its folder can only be added to (an attribute): take that away (chattr -a)"
                   : "; it can only be appended to (an attribute): take that away (chattr -a), or "
                     "open it for "
                     "reading only (SHMALLOC_READ_ONLY)";
    if (guards & SMI_SEAL_WRITE)
        return "; it is sealed against writing (F_SEAL_WRITE): open it for reading only "
               "(SHMALLOC_READ_ONLY), or use a "
               "memfd without that seal";
    if (guards & SMI_SEAL_FUTURE_WRITE)
        return "; it is sealed against writing (F_SEAL_FUTURE_WRITE): open it for reading only "
               "(SHMALLOC_READ_ONLY), or "
               "use a memfd without that seal";
    if (guards & SMI_SEAL_GROW)
        return "; it is sealed against growing (F_SEAL_GROW): use a memfd without that seal";
    if (guards & SMI_SEAL_SHRINK)
        return "; it is sealed against shrinking (F_SEAL_SHRINK): use a memfd without that seal";
    return NULL;
}

/* Why `code` is the answer for that file, and what helps. */
static const char *remedy_for(int code, int fd, const char *path)
{
    const char *found = code == -EPERM ? remedy_of(smi_os_guards(fd, path), 0) : NULL;
    if (code == -EPERM && !found && fd < 0)
        found = remedy_of(smi_os_guards_of_directory(path), 1);
    return found ? found : remedy(code);
}

__attribute__((format(printf, 3, 0))) static void explain(int code, const char *help,
                                                          const char *format, va_list args)
{
    char *text = room();
    int len = text ? vsnprintf(text, MESSAGE, format, args) : -1;
    if (len >= 0 && len < (int)MESSAGE)
        snprintf(text + len, MESSAGE - (size_t)len, ": %s%s", shmalloc_strerror(code), help);
    written();
}

int smi_refused(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    explain(code, remedy(code), format, args);
    va_end(args);
    return code;
}

int smi_refused_change(int code, int fd, const char *path, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    explain(code, remedy_for(code, fd, path), format, args);
    va_end(args);
    return code;
}

const char *shmalloc_errmsg(void)
{
    const char *text = place > 0 ? text_of(smi_os_thread_id()) : NULL;
    return text ? text : "";
}

const char *shmalloc_version(void)
{
    return SHMALLOC_VERSION;
}

static const char *const own_texts[] = {
    [-20000 - SHMALLOC_EFULL] = "heap is full",
    [-20000 - SHMALLOC_ENOTHEAP] = "not a shmalloc heap",
    [-20000 - SHMALLOC_EVERSION] = "heap needs another version of the library",
    [-20000 - SHMALLOC_EFOREIGN] = "heap belongs to another architecture, libc or PID namespace",
    [-20000 - SHMALLOC_ECORRUPT] = "heap is damaged",
    [-20000 - SHMALLOC_EPOISONED] = "heap was found damaged before; it can only be read",
    [-20000 - SHMALLOC_EUNCLEAN] =
        "heap was in use when the machine stopped or the file was copied",
    [-20000 - SHMALLOC_ELAYOUT] = "heap holds another application's data or another version of it",
    [-20000 - SHMALLOC_EBUSY] = "heap is busy in another process",
    [-20000 - SHMALLOC_EPROCESSES] = "too many processes have the heap open",
    [-20000 - SHMALLOC_ETHREADS] = "too many threads use the heap",
    [-20000 - SHMALLOC_EADDRESS] = "no suitable address range for the heap",
    [-20000 - SHMALLOC_EBADREF] = "not a block of this heap",
    [-20000 - SHMALLOC_EDOUBLEFREE] = "block is free already",
    [-20000 - SHMALLOC_EREADONLY] = "heap was opened read-only",
    [-20000 - SHMALLOC_ENOROOT] = "no root of that name",
    [-20000 - SHMALLOC_ETYPE] = "root has another type id",
    [-20000 - SHMALLOC_ENOTOWNER] = "mutex is not held by the calling thread",
    [-20000 - SHMALLOC_ECLOSED] = "heap handle is closed",
    [-20000 - SHMALLOC_EFILESYSTEM] = "file system does not suit a shared heap",
    [-20000 - SHMALLOC_EGONE] = "structure was freed",
    [-20000 - SHMALLOC_EPROC] = "/proc is not mounted, or a part of it is missing or masked",
    [-20000 - SHMALLOC_ESIZE] = "root's block is smaller than asked",
    [-20000 - SHMALLOC_EOUSTED] = "what the read section saw may have been freed meanwhile",
    [-20000 - SHMALLOC_ECONFLICT] = "a mutex is held that the transaction must not wait for",
    [-20000 - SHMALLOC_ENOTX] = "no transaction is open in the calling thread",
    [-20000 - SHMALLOC_EINTX] = "a transaction is open",
};

const char *shmalloc_strerror(int code)
{
    int own = -20000 - code;
    if (own > 0 && own < (int)(sizeof(own_texts) / sizeof(own_texts[0])) && own_texts[own])
        return own_texts[own];
    if (code >= 0)
        return code == SHMALLOC_OWNER_DIED ? "locked, but an owner before died holding the mutex"
                                           : "success";
#if defined(__GLIBC__) /* whose strerror is not thread-safe; NULL for what is no errno */
    const char *text = code > -4096 ? strerrordesc_np(-code) : NULL;
#else
    const char *text = code > -4096 ? strerror(-code) : NULL;
#endif
    return text ? text : "unknown error";
}
