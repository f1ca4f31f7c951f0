/* SPDX-License-Identifier: MIT */
/* map_type.h - what the table of structures (structures.c) knows of maps. */
#ifndef SMI_MAP_TYPE_H
#define SMI_MAP_TYPE_H

#include "structures/structures.h"

int smi_map_free(struct smi_ending *ending, struct smf_structure *head);

#endif
