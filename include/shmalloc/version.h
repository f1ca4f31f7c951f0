/* SPDX-License-Identifier: MIT */
#ifndef SHMALLOC_VERSION_H
#define SHMALLOC_VERSION_H

/** Version of the headers; shmalloc_version() is that of the library. Semantic versioning; the file
 *  format has a version of its own. */
#define SHMALLOC_VERSION "0.2.0"
#define SHMALLOC_VERSION_MAJOR 0
#define SHMALLOC_VERSION_MINOR 2
#define SHMALLOC_VERSION_PATCH 0

#endif
