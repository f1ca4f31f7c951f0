/* SPDX-License-Identifier: MIT */
/*
 * trace.c - reads traces. The bytes may be damaged or hostile: nothing is believed.
 */
#include "trace.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER 24
#define MAX_FILE (64u << 20) /* bytes; far above what a recording has */

struct decoder {
    const unsigned char *at;
    const unsigned char *end;
    uint32_t *sizes;  /* by slot: bytes of the block that lives there, 0 none */
    uint32_t *vacant; /* stack of slots that were freed */
    uint32_t vacancies;
    uint32_t touched;  /* slots ever used */
    uint32_t previous; /* slot of the operation before */
};

static uint32_t number_at(const unsigned char *bytes)
{
    return bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static uint32_t fnv1a(const unsigned char *bytes, size_t len)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    return hash;
}

/* A number below 2^35; -1 when the bytes end before it does, or it is larger. */
static int64_t next_number(struct decoder *decoder)
{
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 35; shift += 7) {
        if (decoder->at == decoder->end)
            return -1;
        unsigned char byte = *decoder->at++;
        value |= (uint64_t)(byte & 127) << shift;
        if (byte < 128)
            return (int64_t)value;
    }
    return -1;
}

/* The slot that a distance means, or -1 when no block lives there. */
static int64_t living_slot(const struct decoder *decoder, int64_t distance)
{
    int64_t moved = distance & 1 ? -(distance / 2) - 1 : distance / 2;
    int64_t slot = (int64_t)decoder->previous + moved;
    if (slot < 0 || slot >= decoder->touched || decoder->sizes[slot] == 0)
        return -1;
    return slot;
}

static const char *decode_allocate(struct decoder *decoder, int64_t size, uint32_t slots,
                                   struct trace_op *op)
{
    if (size < 1 || size > TRACE_MAX_SIZE)
        return "a size is out of range";
    if (decoder->vacancies == 0 && decoder->touched == slots)
        return "more blocks live than the header says";
    uint32_t slot = decoder->vacancies ? decoder->vacant[--decoder->vacancies] : decoder->touched++;
    decoder->sizes[slot] = (uint32_t)size;
    *op = (struct trace_op){TRACE_ALLOCATE, slot, (uint32_t)size};
    return NULL;
}

static const char *decode_free(struct decoder *decoder, int64_t distance, struct trace_op *op)
{
    int64_t slot = living_slot(decoder, distance);
    if (slot < 0)
        return "a block is freed that does not live";
    decoder->sizes[slot] = 0;
    decoder->vacant[decoder->vacancies++] = (uint32_t)slot;
    *op = (struct trace_op){TRACE_FREE, (uint32_t)slot, 0};
    return NULL;
}

static const char *decode_resize(struct decoder *decoder, int64_t distance, struct trace_op *op)
{
    int64_t slot = living_slot(decoder, distance);
    int64_t size = next_number(decoder);
    if (slot < 0)
        return "a block is resized that does not live";
    if (size < 1 || size > TRACE_MAX_SIZE)
        return "a size is out of range";
    decoder->sizes[slot] = (uint32_t)size;
    *op = (struct trace_op){TRACE_RESIZE, (uint32_t)slot, (uint32_t)size};
    return NULL;
}

static const char *decode_op(struct decoder *decoder, uint32_t slots, struct trace_op *op)
{
    const char *wrong;
    int64_t number = next_number(decoder);
    if (number < 0)
        return "a number is too long, or the operations end early";
    switch (number & 3) {
    case TRACE_ALLOCATE: wrong = decode_allocate(decoder, number >> 2, slots, op); break;
    case TRACE_FREE: wrong = decode_free(decoder, number >> 2, op); break;
    case TRACE_RESIZE: wrong = decode_resize(decoder, number >> 2, op); break;
    default: return "an operation of no known kind";
    }
    decoder->previous = op->slot;
    return wrong;
}

static const char *decode_all(struct decoder *decoder, struct trace *out)
{
    for (uint32_t i = 0; i < out->count; i++) {
        const char *wrong = decode_op(decoder, out->slots, &out->ops[i]);
        if (wrong)
            return wrong;
        out->taken += out->ops[i].kind != TRACE_FREE;
    }
    return decoder->at == decoder->end ? NULL : "bytes follow the last operation";
}

const char *trace_decode(const unsigned char *bytes, size_t len, struct trace *out)
{
    *out = (struct trace){0};
    if (len < HEADER || memcmp(bytes, "SHMTRACE", 8))
        return "not a trace";
    uint32_t count = number_at(bytes + 8), slots = number_at(bytes + 12);
    if (number_at(bytes + 16) != len - HEADER)
        return "cut off, or longer than its header says";
    if (number_at(bytes + 20) != fnv1a(bytes + HEADER, len - HEADER))
        return "the checksum differs";
    /* Each operation has a byte at least, and each slot an operation: memory is bounded by the
     * file's length. */
    if (count == 0 || count > len - HEADER || slots == 0 || slots > count || slots >= 1u << 30)
        return "more operations or slots than bytes, or none";
    struct decoder decoder = {.at = bytes + HEADER, .end = bytes + len};
    out->count = count;
    out->slots = slots;
    out->ops = calloc(count, sizeof(*out->ops));
    decoder.sizes = calloc(slots, sizeof(*decoder.sizes));
    decoder.vacant = calloc(slots, sizeof(*decoder.vacant));
    const char *wrong = "no memory";
    if (out->ops && decoder.sizes && decoder.vacant)
        wrong = decode_all(&decoder, out);
    free(decoder.sizes);
    free(decoder.vacant);
    if (!wrong && out->taken == 0)
        wrong = "nothing is allocated";
    if (wrong)
        trace_release(out);
    return wrong;
}

const char *trace_read(const char *path, struct trace *out)
{
    *out = (struct trace){0};
    FILE *file = fopen(path, "re");
    if (!file)
        return strerror(errno);
    const char *wrong = "no memory";
    unsigned char *bytes = malloc(MAX_FILE);
    if (bytes) {
        size_t len = fread(bytes, 1, MAX_FILE, file);
        if (ferror(file))
            wrong = "it cannot be read";
        else
            wrong = len == MAX_FILE ? "longer than 64 MiB" : trace_decode(bytes, len, out);
    }
    free(bytes);
    fclose(file);
    return wrong;
}

void trace_release(struct trace *trace)
{
    free(trace->ops);
    *trace = (struct trace){0};
}
