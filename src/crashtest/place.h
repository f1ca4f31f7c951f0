/* SPDX-License-Identifier: MIT */
/* place.h - what lies at an address of code. */
#ifndef SMI_CRASHTEST_PLACE_H
#define SMI_CRASHTEST_PLACE_H

#include <stdint.h>
#include <stdio.h>

/* Print function and source line of an address, as far as they can be found; a line of its own,
 * indented. */
void smi_place_print(FILE *to, const char *what, uint64_t address);

/* Is it code of the program under test, rather than of the C library, the heap or the test
 * library? */
int smi_place_is_programs(uint64_t address);

#endif
