/* SPDX-License-Identifier: MIT */
/* holes.h - a file that may lack storage where its page words say that there is some. */
#ifndef SMI_HOLES_H
#define SMI_HOLES_H

#include <stdint.h>

/* Bring facts and storage of the heap in the file `fd` together: the library's areas and pages in
 * use get storage where they are holes, free pages that are holes are said to be some. Nobody has
 * the heap open or mapped; the caller holds the attach lock. 0, or why not, with a message; then
 * the file's bytes are as they were. */
int smi_holes_fill(int fd, const char *path);

/* Bytes of all holes where there has to be storage; nothing is changed, so `fd` may be
 * read-only. */
int smi_holes_measure(int fd, const char *path, uint64_t *needed);

#endif
