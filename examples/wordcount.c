/* SPDX-License-Identifier: MIT */
/*
 * wordcount.c - several processes count the words of many files into one hash table in one heap.
 *
 *     wordcount add HEAP < NAMES    make the heap if need be; note the files, names ended by NUL
 *     wordcount work HEAP           count; start as many of these at once as you like
 *     wordcount top HEAP N          the N most frequent words
 *     wordcount get HEAP WORD       one word's count
 *     wordcount dump HEAP           all words: word, tab, count
 *
 * A word is a run of A-Z and a-z. Every file has a mutex, which whoever counts the file holds, and
 * an offset up to which it is counted. A worker may be killed anywhere: the next who gets the mutex
 * goes on where it stopped, and no word is lost or counted twice. What that takes:
 *   - A record is allocated, zeroed, straight into the last link of its chain, so it cannot leak;
 *     its `ready` is stored when it is complete. One that is not ready is the last, and is freed.
 *   - A word's count and the file's offset change together: the new values are written down in the
 *     stripe, then `armed` is stored, then they are copied. Who finds an armed step copies again.
 */
#include <shmalloc/shmalloc.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define STRIPES 256   /* locks of the table */
#define BUCKETS 65536 /* a multiple of STRIPES: each chain belongs to one lock */

struct record { /* begins both kinds of record, so that both are appended alike */
    shmalloc_ref next;
    uint64_t ready; /* stored last; 0: whoever made it died before it was complete */
};

struct file {
    struct record record;
    shmalloc_mutex mutex; /* held by who counts the file */
    uint64_t offset;      /* bytes counted */
    uint64_t done;
    char name[];
};

struct word {
    struct record record;
    uint64_t count;
    uint64_t length;
    char text[];
};

struct stripe {
    shmalloc_mutex mutex;
    uint64_t armed; /* 1: the step below is valid and may not have happened, or not wholly */
    struct step {
        shmalloc_ref word, file;
        uint64_t count, offset; /* what they get */
    } step;
};

struct table {
    shmalloc_mutex adding;
    shmalloc_ref files;
    struct stripe stripe[STRIPES];
    shmalloc_ref bucket[BUCKETS];
};

/* The record at a link if there is one and it is complete. */
static void *follow(shmalloc_heap *heap, const shmalloc_ref *link)
{
    struct record *record = shmalloc_ptr(heap, shmalloc_load(link));
    return record && shmalloc_load(&record->ready) ? record : NULL;
}

/* Append a zeroed record of `size` bytes at the link that ends a chain. */
static int append(shmalloc_heap *heap, shmalloc_ref *last, size_t size)
{
    int rc = shmalloc_ref_free(heap, last); /* 0, or a record that never became ready */
    return rc < 0 ? rc : shmalloc_ref_alloc_zeroed(heap, size, last);
}

/* The first failure of an operation and of the unlocking after it. */
static int unlock(shmalloc_heap *heap, shmalloc_mutex *mutex, int rc)
{
    int unlocked = shmalloc_mutex_unlock(heap, mutex);
    return rc < 0 ? rc : unlocked;
}

/* Note the files whose names, ended by NUL, come on standard input. */
static int add(shmalloc_heap *heap, struct table *table)
{
    int rc = shmalloc_mutex_lock(heap, &table->adding);
    if (rc < 0)
        return rc;
    shmalloc_ref *link = &table->files;
    for (struct file *file; (file = follow(heap, link));)
        link = &file->record.next;

    char *name = NULL;
    size_t room = 0;
    for (ssize_t length; (length = getdelim(&name, &room, '\0', stdin)) > 0;) {
        rc = append(heap, link, sizeof(struct file) + (size_t)length + 1);
        if (rc < 0)
            break;
        struct file *file = shmalloc_ptr(heap, *link);
        memcpy(file->name, name, (size_t)length);
        shmalloc_store(&file->record.ready, 1);
        link = &file->record.next;
    }
    free(name);
    if (rc >= 0) /* a name half added is not ready, and nothing refers to it */
        rc = shmalloc_mutex_consistent(heap, &table->adding);
    return unlock(heap, &table->adding, rc);
}

/* Copy the armed step of a stripe; doing it twice does no harm. */
static void take_step(shmalloc_heap *heap, struct stripe *stripe)
{
    struct word *word = shmalloc_ptr(heap, stripe->step.word);
    struct file *file = shmalloc_ptr(heap, stripe->step.file);
    shmalloc_store(&word->count, stripe->step.count);
    shmalloc_store(&file->offset, stripe->step.offset);
    shmalloc_store(&stripe->armed, 0);
}

static int lock_stripe(shmalloc_heap *heap, struct stripe *stripe)
{
    int rc = shmalloc_mutex_lock(heap, &stripe->mutex);
    if (rc != SHMALLOC_OWNER_DIED)
        return rc;
    if (stripe->armed)
        take_step(heap, stripe);
    return shmalloc_mutex_consistent(heap, &stripe->mutex);
}

static uint64_t bucket_of(const char *text, uint64_t length)
{
    uint64_t hash = 0;
    for (uint64_t i = 0; i < length; i++)
        hash = (hash ^ (unsigned char)text[i]) * 0x9e3779b97f4a7c15u;
    return (hash >> 32) % BUCKETS;
}

/* The link to a word, or the one that ends its chain. */
static shmalloc_ref *find(shmalloc_heap *heap, struct table *table, const char *text,
                          uint64_t length)
{
    shmalloc_ref *link = &table->bucket[bucket_of(text, length)];
    for (struct word *word; (word = follow(heap, link)); link = &word->record.next)
        if (word->length == length && memcmp(word->text, text, length) == 0)
            break;
    return link;
}

static int append_word(shmalloc_heap *heap, shmalloc_ref *link, const char *text, uint64_t length)
{
    int rc = append(heap, link, sizeof(struct word) + length);
    if (rc < 0)
        return rc;
    struct word *word = shmalloc_ptr(heap, *link);
    word->length = length;
    memcpy(word->text, text, length);
    shmalloc_store(&word->record.ready, 1);
    return 0;
}

/* Count one word of a file whose offset is `before` if nobody has done so. */
static int count_word(shmalloc_heap *heap, struct table *table, struct file *file, uint64_t before,
                      const char *text, uint64_t length, uint64_t after)
{
    struct stripe *stripe = &table->stripe[bucket_of(text, length) % STRIPES];
    int rc = lock_stripe(heap, stripe);
    if (rc < 0)
        return rc;
    if (file->offset == before) { /* else locking has just completed a dead worker's step for it */
        shmalloc_ref *link = find(heap, table, text, length);
        if (!follow(heap, link))
            rc = append_word(heap, link, text, length);
        if (rc == 0) {
            struct word *word = shmalloc_ptr(heap, *link);
            stripe->step =
                (struct step){*link, shmalloc_ref_of(heap, file), word->count + 1, after};
            shmalloc_store(&stripe->armed, 1); /* killed before: nothing happened; after: it will */
            take_step(heap, stripe);
        }
    }
    return unlock(heap, &stripe->mutex, rc);
}

/* The whole file in private memory, the caller's to free; NULL when it cannot be had. */
static char *read_file(const char *name, size_t *size)
{
    FILE *stream = fopen(name, "r");
    if (!stream)
        return NULL;
    if (getc(stream) == EOF && ferror(stream)) { /* a folder can be opened, but not read */
        fclose(stream);
        return NULL;
    }
    char *text = NULL;
    long end = fseek(stream, 0, SEEK_END) == 0 ? ftell(stream) : -1;
    if (end >= 0 && fseek(stream, 0, SEEK_SET) == 0 && (text = malloc((size_t)end + 1)))
        *size = fread(text, 1, (size_t)end, stream);
    fclose(stream);
    return text;
}

static int is_letter(char c)
{
    return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

/* With the file's mutex held: count what is left of it. */
static int count_file(shmalloc_heap *heap, struct table *table, struct file *file)
{
    size_t size = 0;
    char *text = read_file(file->name, &size);
    if (!text)
        perror(file->name); /* it counts as a file without words */
    int rc = 0;
    for (size_t at = file->offset; rc == 0 && at < size;) {
        size_t start = at;
        while (start < size && !is_letter(text[start]))
            start++;
        size_t end = start;
        while (end < size && is_letter(text[end]))
            end++;
        if (end > start)
            rc = count_word(heap, table, file, file->offset, text + start, end - start, end);
        at = end;
    }
    free(text);
    if (rc == 0)
        shmalloc_store(&file->done, 1);
    return rc;
}

/* First the files that nobody is at; then wait for the others, in case their workers die. */
static int work(shmalloc_heap *heap, struct table *table)
{
    unsigned counted = 0, inherited = 0;
    for (int wait = 0; wait < 2; wait++) {
        struct file *file;
        for (shmalloc_ref *link = &table->files; (file = follow(heap, link));
             link = &file->record.next) {
            if (shmalloc_load(&file->done))
                continue;
            int rc = wait ? shmalloc_mutex_lock(heap, &file->mutex)
                          : shmalloc_mutex_trylock(heap, &file->mutex);
            if (rc == -EBUSY)
                continue;
            if (rc < 0)
                return rc;
            if (!file->done) {
                inherited += rc == SHMALLOC_OWNER_DIED;
                counted++;
                rc = count_file(heap, table, file);
            }
            if (rc == 0)
                rc = shmalloc_mutex_consistent(heap, &file->mutex);
            rc = unlock(heap, &file->mutex, rc);
            if (rc < 0)
                return rc;
        }
    }
    printf("files counted: %u, begun by a worker that died: %u\n", counted, inherited);
    return 0;
}

/* ---- reading: takes no locks, so it is exact when no worker runs ---- */

static int by_count(const void *a, const void *b)
{
    const struct word *x = *(struct word *const *)a, *y = *(struct word *const *)b;
    if (x->count != y->count)
        return x->count < y->count ? 1 : -1;
    int order = memcmp(x->text, y->text, x->length < y->length ? x->length : y->length);
    return order ? order : (x->length > y->length) - (x->length < y->length);
}

/* Store pointers to the first `room` words; returns how many words there are. */
static size_t collect(shmalloc_heap *heap, struct table *table, struct word **out, size_t room)
{
    size_t count = 0;
    struct word *word;
    for (unsigned i = 0; i < BUCKETS; i++)
        for (shmalloc_ref *link = &table->bucket[i]; (word = follow(heap, link));
             link = &word->record.next)
            if (shmalloc_load(&word->count) && count++ < room)
                out[count - 1] = word;
    return count;
}

/* The most frequent words, in that order. */
static int print_words(shmalloc_heap *heap, struct table *table, size_t limit)
{
    size_t count = collect(heap, table, NULL, 0);
    struct word **words = malloc((count + 1) * sizeof(*words));
    if (!words)
        return -ENOMEM;
    size_t found = collect(heap, table, words, count);
    if (found < count)
        count = found;
    qsort(words, count, sizeof(*words), by_count);
    for (size_t i = 0; i < count && i < limit; i++)
        printf("%.*s\t%llu\n", (int)words[i]->length, words[i]->text,
               (unsigned long long)words[i]->count);
    free(words);
    return 0;
}

static int print_word(shmalloc_heap *heap, struct table *table, const char *text)
{
    const struct word *word = follow(heap, find(heap, table, text, strlen(text)));
    printf("%s\t%llu\n", text, word ? (unsigned long long)word->count : 0);
    return 0;
}

/* ---- the command ---- */

static int run(shmalloc_heap *heap, const char *command, const char *argument)
{
    shmalloc_ref ref;
    int rc = strcmp(command, "add") != 0
                 ? shmalloc_root_get(heap, "words", 0, &ref)
                 : shmalloc_root_get_or_create(heap, "words", 0, sizeof(struct table), NULL, NULL,
                                               &ref);
    if (rc < 0)
        return rc;
    struct table *table = shmalloc_ptr(heap, ref);
    if (strcmp(command, "add") == 0)
        return add(heap, table);
    if (strcmp(command, "work") == 0)
        return work(heap, table);
    if (strcmp(command, "dump") == 0)
        return print_words(heap, table, SIZE_MAX);
    if (strcmp(command, "top") == 0)
        return print_words(heap, table, strtoul(argument, NULL, 10));
    return print_word(heap, table, argument);
}

static int fail(const char *path, int code)
{
    fprintf(stderr, "wordcount: %s: %s (%s)\n", path, shmalloc_strerror(code), shmalloc_errmsg());
    return 1;
}

static double milliseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

int main(int argc, char **argv)
{
    const char *command = argc > 2 ? argv[1] : "";
    int adds = strcmp(command, "add") == 0, works = strcmp(command, "work") == 0;
    int plain = adds || works || strcmp(command, "dump") == 0;
    int asks = strcmp(command, "top") == 0 || strcmp(command, "get") == 0;
    if (!(plain && argc == 3) && !(asks && argc == 4))
        return fputs("usage: wordcount add HEAP < NAMES\n"
                     "       wordcount work|dump HEAP\n"
                     "       wordcount top HEAP N\n"
                     "       wordcount get HEAP WORD\n", stderr), 2;

    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = adds ? SHMALLOC_CREATE : works ? 0 : SHMALLOC_READ_ONLY;
    options.layout = "wordcount";
    options.layout_version = 1;
    shmalloc_heap *heap;
    double start = milliseconds();
    int rc = shmalloc_open(argv[2], &options, &heap);
    if (rc < 0)
        return fail(argv[2], rc);
    if (!adds && !works)
        fprintf(stderr, "opened in %.2f ms\n", milliseconds() - start);
    rc = run(heap, command, argc == 4 ? argv[3] : NULL);
    int status = rc < 0 ? fail(argv[2], rc) : 0;
    rc = shmalloc_close(heap);
    return rc < 0 ? fail(argv[2], rc) : status;
}
