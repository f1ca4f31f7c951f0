/* SPDX-License-Identifier: MIT */
/*
 * hooks.c - another library's memory in the heap, through the malloc-shaped functions.
 *
 *     hooks HEAP pack < TEXT    compress with zlib; the result stays in the heap
 *     hooks HEAP unpack         another process, at any later time, prints the text again
 *
 * zlib takes an allocator with an argument of the caller's: here the heap. Its working memory comes
 * and goes in the heap; the result is reached through a root.
 */
#include <shmalloc/shmalloc.h>

#include <stdio.h>
#include <string.h>
#include <zlib.h>

#define MOST (1 << 20) /* bytes of a text */

struct packed {
    uint64_t size, text_size; /* bytes */
    unsigned char bytes[];
};

static void *take(void *heap, unsigned count, unsigned size)
{
    return shmalloc_calloc(heap, count, size);
}

static void give(void *heap, void *block)
{
    (void)shmalloc_free(heap, block);
}

static int fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    return 1;
}

/* Compress all of `text` into a block of the heap and return its ref, 0 on failure. */
static shmalloc_ref compress_text(shmalloc_heap *heap, unsigned char *text, size_t size)
{
    z_stream stream = {.zalloc = take, .zfree = give, .opaque = heap};
    if (deflateInit(&stream, Z_BEST_COMPRESSION) != Z_OK)
        return 0;
    size_t bound = deflateBound(&stream, size);
    struct packed *packed = shmalloc_malloc(heap, sizeof(*packed) + bound);
    if (!packed) {
        deflateEnd(&stream);
        return 0;
    }
    stream.next_in = text;
    stream.avail_in = (uInt)size;
    stream.next_out = packed->bytes;
    stream.avail_out = (uInt)bound;
    int rc = deflate(&stream, Z_FINISH);
    packed->size = stream.total_out;
    packed->text_size = size;
    deflateEnd(&stream);
    if (rc != Z_STREAM_END) {
        give(heap, packed);
        return 0;
    }
    packed = shmalloc_realloc(heap, packed, sizeof(*packed) + packed->size); /* shrinks */
    return shmalloc_ref_of(heap, packed);
}

static int pack(shmalloc_heap *heap)
{
    static unsigned char text[MOST + 1];
    size_t size = fread(text, 1, sizeof(text), stdin);
    if (size > MOST)
        return fail("pack", "the text is longer than 1 MiB");
    shmalloc_ref ref = compress_text(heap, text, size), before = 0;
    if (!ref)
        return fail("pack", shmalloc_errmsg());
    int has_before = shmalloc_root_get(heap, "packed", 0, &before) == 0;
    if (shmalloc_root_set(heap, "packed", 0, ref) < 0 ||
        (has_before && shmalloc_ref_free(heap, &before) < 0))
        return fail("root", shmalloc_errmsg());
    return 0;
}

static int unpack(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    if (shmalloc_root_get(heap, "packed", 0, &ref) < 0)
        return fail("root", shmalloc_errmsg());
    struct packed *packed = shmalloc_ptr(heap, ref);
    static unsigned char text[MOST];
    z_stream stream = {.zalloc = take, .zfree = give, .opaque = heap};
    stream.next_in = packed->bytes;
    stream.avail_in = (uInt)packed->size;
    stream.next_out = text;
    stream.avail_out = sizeof(text);
    int rc = inflateInit(&stream);
    if (rc == Z_OK) {
        rc = inflate(&stream, Z_FINISH);
        inflateEnd(&stream);
    }
    if (rc != Z_STREAM_END || stream.total_out != packed->text_size)
        return fail("unpack", stream.msg ? stream.msg : "the text is not whole");
    fwrite(text, 1, packed->text_size, stdout);
    return 0;
}

int main(int argc, char **argv)
{
    int packs = argc == 3 && strcmp(argv[2], "pack") == 0;
    if (!packs && !(argc == 3 && strcmp(argv[2], "unpack") == 0))
        return fputs("usage: hooks HEAP pack|unpack\n", stderr), 2;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = packs ? SHMALLOC_CREATE : 0;
    shmalloc_heap *heap;
    if (shmalloc_open(argv[1], &options, &heap) < 0)
        return fail("open", shmalloc_errmsg());
    int failed = packs ? pack(heap) : unpack(heap);
    return shmalloc_close(heap) < 0 ? fail("close", shmalloc_errmsg()) : failed;
}
