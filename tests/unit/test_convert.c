/* SPDX-License-Identifier: MIT */
/* Heaps of an older format, made by the library of that time, and their conversion. */
#include <criterion/criterion.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "life/convert.h"
#include "old/old_heaps.h"
#include "platform/os.h"
#include "support.h"
#include "view_check.h"

static struct fixture f;

/* ---- the stored heaps ----------------------------------------------------------------------- */

static const uint8_t *pack;
static size_t pack_size;

static void load_pack(void)
{
    struct stat info;
    int fd = open(OLD_HEAPS, O_RDONLY | O_CLOEXEC);
    must(fd >= 0 && fstat(fd, &info) == 0, "%s: cannot open", OLD_HEAPS);
    pack_size = (size_t)info.st_size;
    uint8_t *bytes = malloc(pack_size);
    must(bytes && read(fd, bytes, pack_size) == (ssize_t)pack_size, "%s: cannot read", OLD_HEAPS);
    close(fd);
    pack = bytes;
}

struct stored {
    const char *name;
    const uint8_t *at, *end; /* behind the name */
};

/* The next stored heap; begin with zeros. */
static int next_stored(struct stored *s)
{
    const uint8_t *at = s->end ? s->end : pack;
    if (at == pack + pack_size)
        return 0;
    size_t len = at[0] | (size_t)at[1] << 8 | (size_t)at[2] << 16 | (size_t)at[3] << 24;
    s->name = (const char *)at + 4;
    s->at = at + 4 + strlen(s->name) + 1;
    s->end = at + 4 + len;
    return 1;
}

static struct stored stored_named(const char *name)
{
    struct stored s = {0};
    while (next_stored(&s))
        if (strcmp(s.name, name) == 0)
            return s;
    must(0, "no stored heap is called \"%s\"", name);
    return s;
}

static uint64_t number(struct stored *s)
{
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        value |= (uint64_t)(*s->at & 127) << shift;
        if ((*s->at++ & 128) == 0)
            return value;
    }
}

static uint8_t *unpacked(struct stored s, uint64_t *size)
{
    *size = number(&s);
    uint8_t *bytes = calloc(*size, 1);
    for (uint64_t at = 0;;) {
        uint64_t len = number(&s);
        memcpy(bytes + at, s.at, len);
        s.at += len;
        at += len;
        if (at == *size)
            return bytes;
        len = number(&s);
        for (uint64_t back = number(&s); len > 0; len--, at++)
            bytes[at] = bytes[at - back];
    }
}

static void seal(struct smf_header *header)
{
    header->checksum = smi_hash(header, offsetof(struct smf_header, checksum));
}

/* As if it had been made on this machine, with this C library. */
static void naturalize(struct smf_header *header)
{
    struct smi_platform here;
    must_work(smi_os_platform(&here));
    header->machine = here.machine;
    header->os_page_bytes = here.os_page_bytes;
    header->mutex_bytes = here.mutex_bytes;
    header->mutex_fingerprint = here.mutex_fingerprint;
    seal(header);
}

/* Make the file that was stored; `same`: it is the file that its users had open, and the machine
 * has been running. */
static void make(struct stored s, int same)
{
    struct smi_file_info info;
    uint64_t size;
    uint8_t *bytes = unpacked(s, &size);
    struct smf_header *header = (void *)bytes;
    struct smf_runtime *runtime = (void *)(bytes + header->areas.runtime);
    unlink(f.path);
    int fd = open(f.path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    must(fd >= 0 && ftruncate(fd, (off_t)size) == 0, "%s: cannot make it", f.path);
    must_work(smi_os_stat(fd, &info));
    naturalize(header);
    if (same) {
        must_work(smi_os_boot_id(runtime->boot_id));
        must_work(smi_os_pid_namespace(&runtime->pid_namespace));
        runtime->device = info.device;
        runtime->inode = info.inode;
        runtime->stored = 0;
    }
    for (uint64_t at = 0; at < size; at += 4096)
        if (!all_zero(bytes + at, 4096))
            must(pwrite(fd, bytes + at, 4096, (off_t)at) == 4096, "%s: cannot write", f.path);
    close(fd);
    free(bytes);
}

static struct smf_header header_now(void)
{
    struct smf_header header;
    int fd = open(f.path, O_RDONLY | O_CLOEXEC);
    must(pread(fd, &header, sizeof(header), 0) == sizeof(header), "%s: cannot read", f.path);
    close(fd);
    return header;
}

static void put_bytes(uint64_t at, const void *bytes, size_t len)
{
    int fd = open(f.path, O_WRONLY | O_CLOEXEC);
    must(pwrite(fd, bytes, len, (off_t)at) == (ssize_t)len, "%s: cannot write", f.path);
    close(fd);
}

static void put_header(struct smf_header header)
{
    seal(&header);
    put_bytes(0, &header, sizeof(header));
}

static void put_state(size_t offset, uint64_t value)
{
    put_bytes(SMF_STATE_OFFSET + offset, &value, sizeof(value));
}

/* ---- what must be in them ------------------------------------------------------------------- */

static struct old_model *model_of(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "model", 7, &ref));
    return shmalloc_ptr(heap, ref);
}

static void must_have_items(shmalloc_heap *heap, const struct old_model *m, const char *name)
{
    for (uint64_t i = 0; i < OLD_ITEMS; i++) {
        const uint64_t *word = shmalloc_ptr_range(heap, m->items[i], m->sizes[i]);
        must(word && word[0] == old_stamp(i) && word[old_last_word(m->sizes[i])] == old_stamp(i),
             "%s: block %llu of %llu bytes has changed", name, (unsigned long long)i,
             (unsigned long long)m->sizes[i]);
        must(shmalloc_usable_size(heap, word) >= m->sizes[i], "%s: block %llu is shorter", name,
             (unsigned long long)i);
        must(shmalloc_tag(heap, m->items[i]) == (i % 5 == 4 ? i + 1 : 0), "%s: tag of block %llu",
             name, (unsigned long long)i);
    }
    for (uint64_t i = 0; i < 10; i++) {
        char root[16];
        shmalloc_ref ref;
        snprintf(root, sizeof(root), "root %d", (int)i);
        must_work(shmalloc_root_get(heap, root, i, &ref));
        must(ref == m->items[i], "%s: %s names another block", name, root);
    }
}

/* No block more and no block less than the model knows. */
static void must_have_no_others(const shmalloc_heap *heap, const struct old_model *m,
                                const char *name)
{
    shmalloc_block *blocks;
    size_t count = all_blocks(heap, &blocks), known = 1 + OLD_ITEMS;
    for (int i = 0; i < OLD_BUSY; i++)
        known += m->busy[i] != 0;
    free(blocks);
    must(m->has_others ? count >= known : count == known, "%s: %zu blocks, of which %zu are known",
         name, count, known);
}

static void must_be_whole(shmalloc_heap *heap, const char *name)
{
    const struct old_model *m = model_of(heap);
    must_be_sound(heap);
    must_have_items(heap, m, name);
    must_have_no_others(heap, m, name);
}

/* Use all of it: free, allocate, lock. */
static void use(shmalloc_heap *heap)
{
    struct old_model *m = model_of(heap);
    for (int i = 0; i < OLD_BUSY; i++)
        must_work(shmalloc_ref_free(heap, &m->busy[i]));
    for (unsigned i = 0; i < 600; i++) {
        must_work(shmalloc_ref_realloc(heap, &m->busy[i % OLD_BUSY], 8 + i * 331 % 150000));
        memset(shmalloc_ptr(heap, m->busy[i % OLD_BUSY]), 255, 8);
    }
    must_code(shmalloc_mutex_lock(heap, &m->mutex), m->mutex_is_held ? SHMALLOC_OWNER_DIED : 0);
    m->mutex_is_held = 0;
    must_work(shmalloc_mutex_unlock(heap, &m->mutex));
}

static uint64_t word_of(uint64_t at)
{
    uint64_t value;
    int fd = open(f.path, O_RDONLY | O_CLOEXEC);
    must(pread(fd, &value, sizeof(value), (off_t)at) == sizeof(value), "%s: cannot read", f.path);
    close(fd);
    return value;
}

static void must_be_converted(const char *name)
{
    shmalloc_heap *heap = heap_open(f.path);
    struct smf_header header = header_now();
    must(word_of(SMF_STATE_OFFSET + offsetof(struct smf_state, epoch)) > 0, "%s: the epoch is 0",
         name);
    must(header.format_version == SMF_FORMAT_VERSION && !smi_layout_awaits_checksum(&header),
         "%s: not converted", name);
    must_be_whole(heap, name);
    use(heap);
    must_be_whole(heap, name);
    must_work(shmalloc_close(heap));
    must_be_sound_on_disk(f.path);
    heap = heap_open(f.path);
    must_be_whole(heap, name);
    must_work(shmalloc_close(heap));
}

/* ---- conversions ---------------------------------------------------------------------------- */

static void suite_begin(void)
{
    fixture_begin(&f);
    load_pack();
}

static void suite_end(void)
{
    free((void *)(uintptr_t)pack);
    fixture_end(&f);
}

TestSuite(convert, .init = suite_begin, .fini = suite_end, .timeout = 120);

Test(convert, each_stored_heap_at_its_first_attach)
{
    int count = 0;
    for (struct stored s = {0}; next_stored(&s); count++) {
        make(s, 1);
        cr_assert_eq(header_now().format_version, 2);
        must_be_converted(s.name);
    }
    cr_assert_geq(count, 15);
}

static uint32_t *steps;

static void count_step(void)
{
    if (--*steps == 0)
        kill(getpid(), SIGKILL);
}

static int open_and_be_killed(void *arg)
{
    shmalloc_heap *heap;
    (void)arg;
    smi_convert_step = count_step;
    must_work(shmalloc_open(f.path, NULL, &heap));
    smi_convert_step = NULL;
    must_work(shmalloc_close(heap));
    return 0;
}

/* Convert in a child that is killed at the n-th step; 1: it was. */
static int killed_at(uint32_t n)
{
    *steps = n;
    int status = run_child(open_and_be_killed, NULL);
    must(status == 0 || status == -SIGKILL, "ended with %d", status);
    return status != 0;
}

Test(convert, a_conversion_that_is_killed_is_finished_by_the_next)
{
    steps = shared_memory(sizeof(*steps));
    for (struct stored s = {0}; next_stored(&s);) {
        int older = 0, torn = 0;
        for (uint32_t n = 1; make(s, 1), killed_at(n); n++) {
            struct smf_header header = header_now();
            older += header.format_version == 2;
            torn += smi_layout_awaits_checksum(&header);
            cr_assert_lt(n, 100);
            must_be_sound_on_disk(f.path);
            must_be_converted(s.name);
        }
        must(older >= 4 && torn == 1, "%s: %d steps before, %d between version and checksum",
             s.name, older, torn);
    }
}

/* Again and again: the n-th who tries is killed at the n-th step. */
Test(convert, conversions_that_are_killed_one_after_the_other)
{
    steps = shared_memory(sizeof(*steps));
    for (struct stored s = {0}; next_stored(&s);) {
        make(s, 1);
        for (uint32_t n = 1; n < 20; n++)
            killed_at(n);
        must_be_converted(s.name);
    }
}

static int open_and_look(void *arg)
{
    shmalloc_heap *heap = heap_open(f.path);
    signal_word(arg);
    await_word(arg, 4); /* all have it open at once */
    must_have_items(heap, model_of(heap), "opened by four");
    must_work(shmalloc_close(heap));
    return 0;
}

Test(convert, one_of_those_who_come_at_once_converts)
{
    uint32_t *opened = shared_memory(sizeof(*opened));
    for (int turn = 0; turn < 10; turn++) {
        pid_t child[4];
        make(stored_named("killed with long stacks"), 1);
        *opened = 0;
        for (int i = 0; i < 4; i++)
            child[i] = start_child(open_and_look, opened);
        for (int i = 0; i < 4; i++)
            cr_assert_eq(wait_child(child[i]), 0);
        must_be_converted("killed with long stacks");
    }
}

Test(convert, a_header_between_version_and_checksum_can_be_read)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    make(stored_named("closed"), 1);
    struct smf_header header = header_now();
    header.format_version = SMF_FORMAT_VERSION;
    put_bytes(0, &header, sizeof(header)); /* no thread slot of it was ever converted: only readers
                                              are asked */
    options.flags = SHMALLOC_READ_ONLY;
    must_work(shmalloc_open(f.path, &options, &heap));
    must_work(shmalloc_close(heap));
    header.created_at ^= 1;
    put_bytes(0, &header, sizeof(header));
    cr_assert_eq(shmalloc_open(f.path, &options, &heap), SHMALLOC_ECORRUPT);
}

/* ---- refusals ------------------------------------------------------------------------------- */

/* Opening answers `code`, with these words, and the heap stays of format 2; the list ends with
 * NULL. */
static void must_refuse(unsigned flags, int code, const char *const *words)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    uint32_t version = header_now().format_version;
    options.flags = flags;
    must_code(shmalloc_open(f.path, &options, &heap), code);
    for (; *words; words++)
        must(strstr(shmalloc_errmsg(), *words), "\"%s\" does not say \"%s\"", shmalloc_errmsg(),
             *words);
    must(header_now().format_version == version, "it was converted");
}
#define refuses(flags, code, ...)                                                                  \
    must_refuse((flags), (code), (const char *const[]){f.path, __VA_ARGS__, NULL})

Test(convert, readers_do_not_convert)
{
    struct stored s = stored_named("closed");
    make(s, 1);
    refuses(SHMALLOC_READ_ONLY, SHMALLOC_EVERSION, "version 2", "expected 3", "opened for writing",
            "shmalloc-inspect check --repair --yes");
    must_be_converted(s.name);
}

Test(convert, newer_formats_and_unknown_features_are_refused)
{
    make(stored_named("closed"), 1);
    const struct smf_header sound = header_now();
    struct smf_header header = sound;
    header.format_version = 4;
    put_header(header);
    refuses(0, SHMALLOC_EVERSION, "version 4", "reads version 3", "newer");
    header = sound;
    header.format_version = 1;
    put_header(header);
    refuses(0, SHMALLOC_EVERSION, "version 1", "converts from 2");
    header = sound;
    header.features_must = 1;
    put_header(header);
    refuses(0, SHMALLOC_EVERSION, "features 0x1", "newer library");
    header = sound;
    header.features_read_only = 2;
    put_header(header);
    refuses(0, SHMALLOC_EVERSION, "features 0x2", "newer library");
    header = sound;
    header.commit_space = 1;
    put_header(header);
    refuses(0, SHMALLOC_ECORRUPT, "version 2", "commits");
    put_header(sound);
    must_be_converted("closed");
}

Test(convert, a_heap_that_others_have_open_is_refused)
{
    make(stored_named("killed with long stacks"), 1);
    int fd = open(f.path, O_RDWR | O_CLOEXEC);
    must_work(smi_os_lock_byte(fd, SMF_LOCK_BYTES + 5));
    refuses(0, SHMALLOC_EBUSY, "version 2", "version 3", "close it in all of them");
    close(fd);
    must_be_converted("killed with long stacks");
}

static void flip(uint64_t at, uint64_t bits)
{
    uint64_t value = word_of(at) ^ bits;
    put_bytes(at, &value, sizeof(value));
}

/* Damage of something that adoption meets, and of something that only the check sees. */
Test(convert, damaged_heaps_are_refused)
{
    make(stored_named("closed"), 1);
    uint64_t at = header_now().areas.page_heap + offsetof(struct smf_page_heap, free_pages);
    flip(at, 1);
    refuses(0, SHMALLOC_ECORRUPT, "version 2", "damaged", "free_pages",
            "shmalloc-inspect check --repair");
    cr_assert_eq(word_of(SMF_STATE_OFFSET + offsetof(struct smf_state, mark)), SMF_CLEAN);
    flip(at, 1);
    must_be_converted("closed");

    make(stored_named("closed"), 1);
    uint64_t slot = word_of(header_now().areas.threads);
    at = slot + SMF_THREAD_ARRAYS_2; /* the count of class 0 */
    flip(at, 1);
    refuses(0, SHMALLOC_ECORRUPT, "version 2", "damaged", "thread slot 0",
            "shmalloc-inspect check --repair");
    flip(at, 1);
    must_be_converted("closed");

    make(stored_named("killed with threads"), 1);
    slot = word_of(header_now().areas.threads);
    at = slot + offsetof(struct smf_thread, stacks) + 8;
    flip(at, 4096);
    refuses(0, SHMALLOC_ECORRUPT, "version 2", "damaged", "class 1",
            "shmalloc-inspect check --repair");
    flip(at, 4096);
    refuses(0, SHMALLOC_ECORRUPT, "poisoned", "shmalloc-inspect check --repair");
    put_state(offsetof(struct smf_state, poison), 0);
    must_be_converted("killed with threads");
}

/* ---- marks ---------------------------------------------------------------------------------- */

Test(convert, a_heap_that_was_in_use_when_the_machine_stopped_is_unclean_first)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    for (struct stored s = {0}; next_stored(&s);) {
        if (strncmp(s.name, "killed", 6) != 0)
            continue;
        make(s, 0);
        refuses(0, SHMALLOC_EUNCLEAN, "shmalloc-inspect check --repair --yes");
        must_work(shmalloc_recover(f.path));
        must_be_sound_on_disk(f.path);
        must_be_converted(s.name);
        make(s, 0);
        options.flags = SHMALLOC_ACCEPT_UNCLEAN;
        must_work(shmalloc_open(f.path, &options, &heap));
        must_be_whole(heap, s.name);
        must_work(shmalloc_close(heap));
        must_be_converted(s.name);
    }
}

Test(convert, a_copy_of_a_closed_heap)
{
    for (struct stored s = {0}; next_stored(&s);)
        if (strncmp(s.name, "closed", 6) == 0) {
            make(s, 0);
            must_be_converted(s.name);
        }
}
