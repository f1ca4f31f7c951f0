/* SPDX-License-Identifier: MIT */
/* fuse.h - a FUSE file system with one directory and one empty file at most: enough to be refused
 * on. */
#ifndef TEST_FUSE_H
#define TEST_FUSE_H

/* Mount one at `where`, in the mount namespace of the calling process, and serve it from a child.
 * Returns 0, or NOT_POSSIBLE with a word on stderr. */
int fuse_mount(const char *where);

/* Unmount it and end the child. */
void fuse_end(const char *where);

#endif
