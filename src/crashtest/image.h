/* SPDX-License-Identifier: MIT */
/*
 * image.h - the heap file of a stopped process, as a tracer sees it between two instructions.
 */
#ifndef SMI_CRASHTEST_IMAGE_H
#define SMI_CRASHTEST_IMAGE_H

#include <stdint.h>

#include "format/layout.h"

enum { SMI_IMAGE_MAX = 256 << 20, SMI_IMAGE_PAGES = SMI_IMAGE_MAX / 4096 };

enum { SMI_IMAGE_RANGES = 64 };
struct smi_image_range {
    uint64_t start, end;
};

struct smi_image {
    const char *path;
    int large;       /* set by the caller: what is stored in large blocks makes another image,
                        too */
    int watch_locks; /* set by the caller: somebody stays attached, so which locks are held makes
                        another image */
    int fd;          /* -1: there is no file yet */
    uint64_t size, device, inode;
    struct smf_areas areas;
    uint8_t *file;   /* mapping of the file, longer than it */
    uint8_t *copy;   /* what was seen last */
    uint64_t hashes[SMI_IMAGE_PAGES];
    uint64_t sum;    /* of all pages' hashes and the size: says whether an image was seen before */
    uint64_t touched; /* 1: bytes that make no other image changed since anything else did; in
                         `sum` */
    uint64_t held;   /* sum over the locks that are; in `sum` */
    int bulk;        /* the last change was one of bytes in large blocks only */
    struct smi_image_range range[SMI_IMAGE_RANGES]; /* what is looked at each time */
    unsigned ranges;
    uint64_t looks;
    uint64_t locks_end; /* mutexes are made anew by the first attacher, so they are left out */
    char failure[256]; /* not empty: why the file cannot be looked at or copied */
};

/* Look at the file anew: 1 when it differs from what was seen before, 0 when not, -1 failed. The
 * process that changes it is stopped. */
int smi_image_look(struct smi_image *image);
/* Back to a file that was not looked at. */
void smi_image_forget(struct smi_image *image);
/* Make `path` the copy that is left when all processes die now: 0, or -1 failed. */
int smi_image_write(struct smi_image *image, const char *path);

#endif
