/* SPDX-License-Identifier: MIT */
/* stamp.h - the application's layout, in the header; shmalloc_set_layout() is public. */
#ifndef SMI_STAMP_H
#define SMI_STAMP_H

#include "handle/handle.h"

/* What a killed call left; the attach lock is held and nobody else is attached. */
int smi_stamp_finish(shmalloc_heap *heap);

#endif
