/* SPDX-License-Identifier: MIT */
/*
 * heaps.h - damaged heap files from short inputs.
 *
 * A heap file is a MiB of which nearly all is zero and a checksum guards the rest: bytes drawn at
 * random never get past the first comparison. So an input says which of a few heaps, made when the
 * program starts, is to be changed, and lists the changes by what they hit: a field of a record,
 * not a byte of a file.
 *
 *   byte 0      which heap; the number after the last one: no heap, the file is the bytes from 3 on
 *   byte 1      bits of enum heaps_flag
 *   byte 2      number of changes; with no heap: length of the file in units of 64 KiB, at least
 *               its bytes
 *   changes     14 bytes each, struct heaps_change
 *   the rest    for the target: what it does with the heap
 */
#ifndef FUZZ_HEAPS_H
#define FUZZ_HEAPS_H

#include <stddef.h>
#include <stdint.h>

enum heaps_flag {
    HEAPS_BAD_CHECKSUM = 1, /* leave the header's checksum as it came; else it is made right */
    HEAPS_SAME = 2,         /* the runtime area says: this machine, this file */
    HEAPS_ALIVE = 4,        /* a process seems to have the heap open, so whoever opens it joins */
    HEAPS_READ_ONLY = 8,    /* for the target: open it so */
    HEAPS_ACCEPT = 16,      /* for the target: accept an unclean heap */
    HEAPS_RECOVER = 32,     /* for the target: recover it before */
    HEAPS_OTHER = 64,       /* for the target: the other kind of look */
};

/* What a change hits. */
enum heaps_record {
    HEADER,
    STATE,
    RUNTIME,
    PROCESS,
    LOCK,
    CHUNK,
    PAGE_HEAP,
    ROOTS,
    THREAD_TABLE,
    CENTRAL,
    WORD,
    PAGE,
    THREAD, /* with its arrays */
    ROOT,
    SIDE,
    ANYWHERE,  /* `which` times 64 KiB from the start */
    FILE_SIZE, /* the value is the new length */
    RECORDS,
};

enum heaps_op {
    SET,
    XOR,
    ADD,
    COPY /* the word that the value's bytes 0, 1..2, 3..4 name as a change does */
};

struct heaps_change {
    uint8_t record; /* modulo RECORDS */
    uint8_t how;    /* enum heaps_op, and 4 times the logarithm of the width in bytes */
    uint8_t which[2], offset[2]; /* of the record, and in it; little-endian, modulo what there is */
    uint8_t value[8];
};
_Static_assert(sizeof(struct heaps_change) == 14, "no padding");

/* Make the file that `data` describes. Returns its flags; *rest is what is left of the data. */
unsigned heaps_make(const uint8_t *data, size_t size, const uint8_t **rest, size_t *rest_size);

/* Path of that file, always the same one. */
const char *heaps_path(void);

/* After each input: nobody seems to have the heap open any more. */
void heaps_end(void);

/* A mutation that knows the format, for LLVMFuzzerCustomMutator. */
size_t heaps_mutate(uint8_t *data, size_t size, size_t max_size, unsigned seed);

#endif
