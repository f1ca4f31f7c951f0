/* SPDX-License-Identifier: MIT */
/*
 * replay.c - a fuzz target as a plain program: saved inputs, and packs of them.
 *
 *   TARGET [-t SECONDS] INPUT|PACK...      run them; SECONDS for each one, 60 unless said otherwise
 *   TARGET -p PACK INPUT...                write a pack: all inputs in one file, for version
 *                                          control
 *   TARGET -u FOLDER PACK                  write the inputs of a pack to a folder, as a fuzzer
 *                                          wants them
 *   TARGET -                               run what comes on standard input, for fuzzers that start
 *                                          a process each
 *
 * A pack is named *.pack; it has, for each input, its length in four bytes, lowest first, and its
 * bytes. Inputs are run in a child, so that one that ends it is named and the rest still run. Exit
 * status: 0, or 1 when one failed.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fuzz.h"
#include "support.h"

struct input {
    uint8_t *data;
    uint32_t size;
    char name[200];
};

static struct input *inputs;
static size_t count;
static unsigned seconds = 60;
static uint32_t *at; /* the input under way, seen by parent and child */

/* ---- files ---------------------------------------------------------------------------------- */

static void add(const char *name, const uint8_t *data, size_t size)
{
    if ((count & (count - 1)) == 0)
        inputs = realloc(inputs, (count ? 2 * count : 1) * sizeof(*inputs));
    must(inputs, "out of memory");
    struct input *input = &inputs[count++];
    /* its own memory, of its size: a target that reads beyond is found */
    *input = (struct input){.data = malloc(size), .size = (uint32_t)size};
    must(input->data || size == 0, "out of memory");
    if (size > 0)
        memcpy(input->data, data, size);
    snprintf(input->name, sizeof(input->name), "%s", name);
}

static int is_pack(const char *path)
{
    size_t len = strlen(path);
    return len > 5 && strcmp(path + len - 5, ".pack") == 0;
}

static void add_pack(const char *path, const uint8_t *data, size_t size)
{
    char name[200];
    for (size_t from = 0, n = 0; from < size; n++) {
        must(size - from >= 4, "%s: cut short", path);
        size_t len = data[from] | (size_t)data[from + 1] << 8 | (size_t)data[from + 2] << 16 |
                     (size_t)data[from + 3] << 24;
        must(size - from - 4 >= len, "%s: cut short", path);
        snprintf(name, sizeof(name), "%s, input %zu", path, n);
        add(name, data + from + 4, len);
        from += 4 + len;
    }
}

static void read_stream(FILE *file, const char *name)
{
    static uint8_t data[16 << 20];
    must(file, "%s: cannot open", name);
    size_t size = fread(data, 1, sizeof(data), file);
    must(!ferror(file) && size < sizeof(data), "%s: cannot read", name);
    if (is_pack(name))
        add_pack(name, data, size);
    else
        add(name, data, size);
    if (file != stdin)
        fclose(file);
}

static void write_pack(FILE *file)
{
    for (size_t i = 0; i < count; i++) {
        const struct input *input = &inputs[i];
        for (unsigned b = 0; b < 4; b++)
            fputc((int)(input->size >> 8 * b & 255), file);
        must(fwrite(input->data, 1, input->size, file) == input->size, "cannot write");
    }
}

static void write_folder(const char *folder)
{
    for (size_t i = 0; i < count; i++) {
        char path[300];
        snprintf(path, sizeof(path), "%s/%04zu", folder, i);
        FILE *file = fopen(path, "w");
        must(file && fwrite(inputs[i].data, 1, inputs[i].size, file) == inputs[i].size &&
                 fclose(file) == 0,
             "%s: cannot write", path);
    }
}

/* ---- running -------------------------------------------------------------------------------- */

static int run_from(void *arg)
{
    (void)arg;
    for (; *at < count; ++*at) {
        alarm(seconds);
        LLVMFuzzerTestOneInput(inputs[*at].data, inputs[*at].size);
        alarm(0);
    }
    return 0;
}

static int run_all(void)
{
    size_t failed = 0;
    at = shared_memory(sizeof(*at));
    while (*at < count) {
        int status = run_child(run_from, NULL);
        if (*at == count && status == 0)
            break;
        printf("%s: ended with %s %d\n", inputs[*at].name, status < 0 ? "signal" : "status",
               abs(status));
        failed++;
        ++*at;
    }
    printf("%zu inputs, %zu failed\n", count, failed);
    return failed || count == 0;
}

int main(int argc, char **argv)
{
    const char *pack = NULL, *folder = NULL;
    for (int option; (option = getopt(argc, argv, "t:p:u:")) != -1;) {
        if (option == 't')
            seconds = (unsigned)atoi(optarg);
        else if (option == 'p')
            pack = optarg;
        else if (option == 'u')
            folder = optarg;
        else
            return 2;
    }
    if (optind + 1 == argc && strcmp(argv[optind], "-") == 0) {
        read_stream(stdin, "standard input");
        return LLVMFuzzerTestOneInput(inputs[0].data, inputs[0].size);
    }
    for (int i = optind; i < argc; i++)
        read_stream(fopen(argv[i], "r"), argv[i]);
    if (folder)
        write_folder(folder);
    if (!pack)
        return folder ? 0 : run_all();
    FILE *file = fopen(pack, "w");
    must(file, "%s: cannot open", pack);
    write_pack(file);
    return fclose(file) != 0;
}
