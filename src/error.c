/* SPDX-License-Identifier: MIT */
/* error.c - codes to words, and the thread's message about its last failure. */
#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <shmalloc/shmalloc.h>

static _Thread_local char message[512];

int smi_error(int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    return code;
}

const char *shmalloc_errmsg(void)
{
    return message;
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
