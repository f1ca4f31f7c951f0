/* SPDX-License-Identifier: MIT */
/* context.c - the context of those who have none; see context.h. */
#include "slots/context.h"

const char smi_serves_none;
struct smi_thread smi_nobody = {.serves = SMI_SERVES_NONE, .true_epoch = UINT64_MAX};
_Thread_local struct smi_thread *smi_current = &smi_nobody;
