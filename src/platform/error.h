/* SPDX-License-Identifier: MIT */
/* error.h - the thread's message about its last failure. */
#ifndef SMI_ERROR_H
#define SMI_ERROR_H

/* Set the thread's detail message (printf format, at most 1,023 bytes) and return `code`, so that a
 * failure is reported where it is found: return smi_error(SHMALLOC_EBADREF, "...", ...); */
int smi_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same for what the system refused with the errno `code` negates: what that means, and what
 * helps against it, follow the text, which says what could not be done. */
int smi_refused(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The same for a change of a file. What forbids it whatever the permissions (-EPERM) is looked for:
 * in what `fd` is or, if that is -1, in the file `path` and its folder. */
int smi_refused_change(int code, int fd, const char *path, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

#endif
