/* SPDX-License-Identifier: MIT */
/*
 * wordcount.c - several processes count the words of many files into one map in one heap.
 *
 *     wordcount add HEAP < NAMES    make the heap if need be; note the files, names ended by NUL
 *     wordcount work HEAP           count; start as many of these at once as you like
 *     wordcount get HEAP WORD       one word's count
 *     wordcount dump HEAP           all words, in no order: word, tab, count
 *
 * A word is a run of A-Z and a-z. One map has the words, another the files that are not finished
 * and how far each is counted. A worker takes a piece of a file at a time: to count its words and
 * to note that they are counted is one transaction. So a worker may be killed anywhere, and no word
 * is lost or counted twice: the piece that it was at is as if nobody had begun it.
 */
#include <shmalloc/map.h>

#include <ctype.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PIECE 8192 /* bytes counted at once, and the rest of the last word, if a key can have it */

struct file { /* the value in the map of files; its key is a number */
    uint64_t counted; /* bytes */
    char name[4096];
};

struct worker {
    shmalloc_map words, files;
    int64_t number; /* the file, and how long it is in the map */
    struct file file;
    size_t length;
    unsigned char text[SHMALLOC_MAP_KEY_MAX]; /* its next piece, and is it the last? */
    size_t size;
    int is_last;
};

/* Note the files whose names come on standard input. */
static int add(struct worker *w)
{
    int rc = 0;
    char *name = NULL;
    size_t room = 0;
    while (rc >= 0 && getdelim(&name, &room, '\0', stdin) > 0) {
        rc = shmalloc_map_add(&w->files, "last", 4, 1, &w->number);
        snprintf(w->file.name, sizeof(w->file.name), "%s", name);
        w->length = offsetof(struct file, name) + strlen(w->file.name) + 1;
        if (rc >= 0)
            rc = shmalloc_map_put(&w->files, &w->number, 8, &w->file, w->length);
    }
    free(name);
    return rc;
}

/* A file that cannot be read has no words. */
static void read_piece(struct worker *w, FILE *stream)
{
    int c = EOF;
    w->size = 0;
    if (stream && fseeko(stream, (off_t)w->file.counted, SEEK_SET) == 0)
        while ((c = getc(stream)) != EOF && w->size < sizeof(w->text) &&
               (w->size < PIECE || isalpha(c)))
            w->text[w->size++] = (unsigned char)c;
    w->is_last = c == EOF;
    if (!stream || ferror(stream))
        perror(w->file.name);
}

/* The transaction. 1: the piece is counted; 0: another worker has done that. */
static int count_piece(shmalloc_heap *heap, void *arg)
{
    (void)heap;
    struct worker *w = arg;
    struct file after = w->file;
    after.counted += w->size;
    int rc = shmalloc_map_put_if(&w->files, &w->number, 8, &w->file, w->length, &after, w->length);
    if (rc == 1 && w->is_last)
        rc = shmalloc_map_remove(&w->files, &w->number, 8);
    if (rc <= 0)
        return rc;
    for (size_t start = 0, end = 0; rc >= 0 && start < w->size; start = ++end) {
        while (end < w->size && isalpha(w->text[end]))
            end++;
        if (end > start)
            rc = shmalloc_map_add(&w->words, w->text + start, end - start, 1, NULL);
    }
    return rc < 0 ? rc : 1;
}

/* All files that are left. Workers begin at different ones; where they meet, they share. */
static int work(struct worker *w)
{
    int64_t last = 0, pieces = 0, begin = getpid() * INT64_C(7919);
    int rc = shmalloc_map_get(&w->files, "last", 4, &last, 8, NULL);
    for (int64_t i = 0; rc >= 0 && i < last; i++) {
        w->number = (begin + i) % last + 1;
        FILE *stream = NULL;
        while (rc >= 0 && (rc = shmalloc_map_get(&w->files, &w->number, 8, &w->file,
                                                 sizeof(w->file), &w->length)) > 0) {
            stream = stream ? stream : fopen(w->file.name, "r");
            read_piece(w, stream);
            rc = shmalloc_tx_run(w->files.heap, count_piece, w);
            pieces += rc == 1;
        }
        if (stream)
            fclose(stream);
    }
    printf("pieces counted: %lld\n", (long long)pieces);
    return rc;
}

static int print(const void *key, size_t klen, const void *value, size_t vlen, void *arg)
{
    (void)vlen, (void)arg;
    int64_t count;
    memcpy(&count, value, sizeof(count));
    return printf("%.*s\t%lld\n", (int)klen, (const char *)key, (long long)count) < 0;
}

int main(int argc, char **argv)
{
    static struct worker w;
    const char *command = argc > 2 ? argv[1] : "", *word = argc > 3 ? argv[3] : "";
    int adds = strcmp(command, "add") == 0, works = strcmp(command, "work") == 0;
    int gets = strcmp(command, "get") == 0, dumps = strcmp(command, "dump") == 0;
    if (adds + works + gets + dumps != 1 || argc != 3 + gets)
        return fputs("usage: wordcount add HEAP < NAMES, wordcount work HEAP,\n"
                     "       wordcount get HEAP WORD, wordcount dump HEAP\n", stderr), 2;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = adds ? SHMALLOC_CREATE : 0;
    options.layout = "wordcount", options.layout_version = 2;
    shmalloc_map_options map = SHMALLOC_MAP_OPTIONS_INIT;
    shmalloc_heap *heap;
    int64_t count = 0;
    if (shmalloc_open(argv[2], &options, &heap) < 0 ||
        shmalloc_map_open_root(heap, "words", &map, &w.words) < 0 ||
        shmalloc_map_open_root(heap, "files", &map, &w.files) < 0 ||
        (adds && add(&w) < 0) || (works && work(&w) < 0) ||
        (dumps && shmalloc_map_each(&w.words, print, NULL) < 0) ||
        (gets && shmalloc_map_get(&w.words, word, strlen(word), &count, 8, NULL) < 0) ||
        shmalloc_close(heap) < 0)
        return fprintf(stderr, "wordcount: %s\n", shmalloc_errmsg()), 1;
    if (gets)
        printf("%s\t%lld\n", word, (long long)count);
    return 0;
}
