/* SPDX-License-Identifier: MIT */
/* map_type.h - what the table of structures (structures.c) knows of maps. */
#ifndef SMI_MAP_TYPE_H
#define SMI_MAP_TYPE_H

#include "structures/structures.h"

/* From now on transactions know what to do with a map's pending entries. */
void smi_map_take_part(void);

int smi_map_free(struct smi_ending *ending, struct smf_structure *head);

#endif
