/* SPDX-License-Identifier: MIT */
/* map_tx.h - what a transaction changes in a map. */
#ifndef SMI_MAP_TX_H
#define SMI_MAP_TX_H

#include "structures/map_stripe.h"
#include "tx/tx.h"

#define SMI_MAP_KIND 0u /* among the structures that have entries in logs */

/* Is the pending entry the transaction's own? */
int smi_map_is_mine(const struct smi_tx *x, const struct smf_map_entry *entry, uint64_t meta);

/* The pair takes the place of what is there when the transaction is committed; `absent`:
 * SMF_MAP_ABSENT, and no value, if there is to be no such key; else 0. 1: there was no such key,
 * 0. */
int smi_map_tx_store(struct smi_stripe *m, struct smi_tx *x, const struct smi_pair *pair,
                     struct smi_place *place, uint64_t absent);

#endif
