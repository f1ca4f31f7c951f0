/* SPDX-License-Identifier: MIT */
/* hash.h - the one hash of the file: checksums, fingerprints, names. */
#ifndef SMI_HASH_H
#define SMI_HASH_H

#include <stddef.h>
#include <stdint.h>

/* FNV-1a 64 (Fowler, Noll, Vo). */
uint64_t smi_hash(const void *bytes, size_t len);

#endif
