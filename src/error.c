/* SPDX-License-Identifier: MIT */
/*
 * error.c - codes to words, and the thread's message about its last failure.
 *
 * A message has memory from the thread's first failure to its end: a place in a table, or a mapping when more threads
 * than that have failed. As a thread-local array it would cost every thread of the program, and libraries that are
 * loaded late (dlopen) share some hundred bytes of such memory.
 */
#include "error.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

#include "os.h"

#define MESSAGE 1024u /* bytes, the end included */

static _Thread_local char *message; /* NULL: nothing failed yet */
static pthread_key_t key;           /* whose destructor gives the message's memory back */
static int has_key;

#define PLACES 4
static struct {
    int taken;
    char text[MESSAGE];
} places[PLACES];

static char no_message[] = "there is no memory for the message";

static char *take_place(void)
{
    for (unsigned i = 0; i < PLACES; i++)
        if (__atomic_exchange_n(&places[i].taken, 1, __ATOMIC_ACQUIRE) == 0)
            return places[i].text;
    return smi_os_private(MESSAGE, 0);
}

static void at_thread_exit(void *text)
{
    message = NULL;
    for (unsigned i = 0; i < PLACES; i++)
        if (text == places[i].text) {
            places[i].text[0] = '\0';
            __atomic_store_n(&places[i].taken, 0, __ATOMIC_RELEASE);
            return;
        }
    smi_os_unmap(text, MESSAGE);
}

/* Before the program has keys of its own: the C library allocates memory for late ones, and that may come from us. */
__attribute__((constructor)) static void make_key(void)
{
    has_key = pthread_key_create(&key, at_thread_exit) == 0;
}

/* Where the thread's message goes; NULL when there is no memory for it. */
static char *room(void)
{
    if (message && message != no_message)
        return message;
    char *text = take_place();
    message = text ? text : no_message;
    if (text && has_key)
        pthread_setspecific(key, text);
    return text;
}

int smi_error(int code, const char *format, ...)
{
    char *text = room();
    va_list args;
    va_start(args, format);
    if (text)
        vsnprintf(text, MESSAGE, format, args);
    va_end(args);
    return code;
}

static const char *remedy(int code)
{
    switch (-code) {
    case ENOENT:
        return "; give a name that exists, or with SHMALLOC_CREATE one in a folder that exists";
    case EBADF:
        return "; open the heap again, and leave descriptors alone that you did not open";
    case EACCES:
    case EPERM:
        return "; needs permission to read and write, with SHMALLOC_READ_ONLY to read";
    case EROFS:
        return "; open it with SHMALLOC_READ_ONLY, or remount the file system for writing";
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
        return "; free memory, or raise the limits on memory and mappings (ulimit -v, sysctl vm.max_map_count)";
    case ENOLCK:
        return "; the system has no lock left: close other files, or use a local file system";
    case EOPNOTSUPP:
        return "; use a file system that can do it, such as ext4, XFS or tmpfs";
    case EIO:
        return "; see the kernel's log for the device, and restore the file from a copy";
    default:
        return "";
    }
}

int smi_refused(int code, const char *format, ...)
{
    char *text = room();
    va_list args;
    va_start(args, format);
    int len = text ? vsnprintf(text, MESSAGE, format, args) : -1;
    va_end(args);
    if (len >= 0 && len < (int)MESSAGE)
        snprintf(text + len, MESSAGE - (size_t)len, ": %s%s", shmalloc_strerror(code), remedy(code));
    return code;
}

const char *shmalloc_errmsg(void)
{
    return message ? message : "";
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
    [-20000 - SHMALLOC_EUNCLEAN] = "heap was in use when the machine stopped or the file was copied",
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
};

const char *shmalloc_strerror(int code)
{
    int own = -20000 - code;
    if (own > 0 && own < (int)(sizeof(own_texts) / sizeof(own_texts[0])) && own_texts[own])
        return own_texts[own];
    if (code >= 0)
        return "success";
#if defined(__GLIBC__) /* whose strerror is not thread-safe; NULL for what is no errno */
    const char *text = code > -4096 ? strerrordesc_np(-code) : NULL;
#else
    const char *text = code > -4096 ? strerror(-code) : NULL;
#endif
    return text ? text : "unknown error";
}
