/* SPDX-License-Identifier: MIT */
/* error.h - the thread's message about its last failure. */
#ifndef SMI_ERROR_H
#define SMI_ERROR_H

/* Set the thread's detail message (printf format, at most 511 bytes) and return `code`, so that a
 * failure is reported where it is found: return smi_error(SHMALLOC_EBADREF, "...", ...); */
int smi_error(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
