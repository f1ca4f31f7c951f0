/* SPDX-License-Identifier: MIT */
/* create.h - the bytes of a new heap. */
#ifndef SMI_CREATE_H
#define SMI_CREATE_H

#include "handle/handle.h"

#define SMI_DEFAULT_DECAY_NS 10000000000ull

/* The caller's options, or the defaults for NULL, as this library has them, if a heap can be opened
 * or created with them. `path` is for messages. */
int smi_create_options(const shmalloc_options *given, const char *path, shmalloc_options *out);
/* SHMALLOC_EFILESYSTEM if the file lies where a heap cannot. */
int smi_create_check_place(int fd, const char *path, const shmalloc_options *o);

/* Bytes, rounded up to what a heap's length is a multiple of. */
uint64_t smi_create_granules(uint64_t n);
/* The header of a new heap, but for magic and checksum. */
int smi_create_header(struct smf_header *h, const shmalloc_options *o);

/* Make the heap under no name and link it into place. -EEXIST: somebody else was faster. */
int smi_create_file(const char *path, const shmalloc_options *o);
/* Make the heap in a descriptor unless it is made; one process at a time. */
int smi_create_in(int fd, const char *path, const shmalloc_options *o);

#endif
