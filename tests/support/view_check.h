/* SPDX-License-Identifier: MIT */
/* view_check.h - soundness as shmalloc-inspect sees it: from the file's bytes alone. */
#ifndef TEST_VIEW_CHECK_H
#define TEST_VIEW_CHECK_H

/* The heap file `path`, read with pread, passes the full check; every violation is printed. Nobody
 * may be changing the heap. Unlike shmalloc_check() this trusts no handle and no mapping. */
void must_be_sound_on_disk(const char *path);

#endif
