/* SPDX-License-Identifier: MIT */
/*
 * repair.c - the plan as a whole: its parts in order, the check of the result, and carrying it out.
 *
 * Crash: the plan's words reach the file in stages (repair.h), with the heap poisoned before the
 * first and until the file was read again and passed the check. Each word is one pwrite. Whatever
 * prefix of them a killed repair leaves, planning again leads to the same heap: settled words are
 * in place before their log is disarmed, truths change before anything derived from them, and what
 * is derived is no evidence but where the text says so.
 */
#include "repair_plan.h"

#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "look/check.h"
#include "platform/error.h"
#include "platform/os.h"

#define MOST_OBSTACLES 64

/* ---- lists ---- */

void smi_repair_note(struct smi_repair *r, struct smi_repair_words *list, uint64_t ref,
                     uint64_t value)
{
    if (list->count == list->room) {
        size_t room = 2 * list->room + 64;
        struct smi_repair_word *more = realloc(list->at, room * sizeof(*more));
        if (!more) {
            r->failed = 1;
            return;
        }
        list->at = more;
        list->room = room;
    }
    list->at[list->count++] = (struct smi_repair_word){ref, value};
}

int smi_repair_noted(const struct smi_repair_words *list, uint64_t ref)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->at[i].ref == ref)
            return 1;
    return 0;
}

__attribute__((format(printf, 5, 0))) static void
add_step(struct smi_repair *r, struct smi_repair_steps *list, const char *invariant, uint64_t ref,
         const char *format, va_list args)
{
    char text[320];
    vsnprintf(text, sizeof(text), format, args);
    if (list->count == list->room) {
        size_t room = 2 * list->room + 16;
        struct smi_repair_step *more = realloc(list->at, room * sizeof(*more));
        if (!more) {
            r->failed = 1;
            return;
        }
        list->at = more;
        list->room = room;
    }
    struct smi_repair_step *step = &list->at[list->count];
    *step = (struct smi_repair_step){.ref = ref, .text = strdup(text)};
    snprintf(step->invariant, sizeof(step->invariant), "%.3s", invariant);
    if (step->text)
        list->count++;
    else
        r->failed = 1;
}

void smi_repair_say(struct smi_repair *r, const char *invariant, uint64_t ref, const char *format,
                    ...)
{
    va_list args;
    va_start(args, format);
    add_step(r, &r->steps, invariant, ref, format, args);
    va_end(args);
}

void smi_repair_refuse(struct smi_repair *r, const char *invariant, uint64_t ref,
                       const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (r->obstacles.count < MOST_OBSTACLES)
        add_step(r, &r->obstacles, invariant, ref, format, args);
    va_end(args);
}

static void drop_steps(struct smi_repair_steps *list)
{
    for (size_t i = 0; i < list->count; i++)
        free(list->at[i].text);
    free(list->at);
}

/* ---- words ---- */

uint64_t smi_repair_word(struct smi_repair *r, uint64_t ref)
{
    const uint64_t *word = ref % 8 == 0 ? smi_view_at(&r->view, ref, 8) : NULL;
    return word ? *word : 0;
}

void smi_repair_put(struct smi_repair *r, enum smi_repair_stage stage, uint64_t ref, uint64_t value)
{
    if (smi_repair_word(r, ref) == value)
        return;
    if (smi_view_store(&r->view, ref, value) < 0)
        smi_repair_refuse(r, "", ref, "the word at %#llx, which has to change, cannot be read",
                          (unsigned long long)ref);
    else
        smi_repair_note(r, &r->words[stage], ref, value);
}

void smi_repair_put_part(struct smi_repair *r, enum smi_repair_stage stage, uint64_t ref,
                         unsigned bytes, uint64_t value)
{
    uint64_t at = ref & ~7ull, word = smi_repair_word(r, at);
    memcpy((uint8_t *)&word + (ref - at), &value, bytes); /* little-endian, as the file */
    smi_repair_put(r, stage, at, word);
}

/* Words that changed in two stages reach the file with the value of the later stage; see that this
 * is the one that the check has seen. */
static void add_last_values(struct smi_repair *r)
{
    for (int stage = 0; stage < SMI_LAST; stage++)
        for (size_t i = 0; i < r->words[stage].count; i++) {
            const struct smi_repair_word *w = &r->words[stage].at[i];
            uint64_t value = smi_repair_word(r, w->ref);
            if (value != w->value)
                smi_repair_note(r, &r->words[SMI_LAST], w->ref, value);
        }
}

/* ---- planning ---- */

int smi_repair_claim(int fd, const char *path)
{
    int rc = smi_os_lock_byte(fd, SMF_ATTACH_BYTE);
    int busy = rc == -EAGAIN;
    if (rc == 0 && (rc = smi_os_is_locked(fd, SMF_LOCK_BYTES, SMF_PROCESSES)) > 0)
        busy = 1;
    if (busy)
        return smi_error(SHMALLOC_EBUSY, "%s: processes have the heap open; nothing was changed",
                         path);
    return rc < 0 ? smi_error(rc, "%s: cannot lock the file: %s", path, shmalloc_strerror(rc)) : 0;
}

static void still_wrong(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    if (strcmp(invariant, SMI_DANGLING) != 0) /* which is the program's */
        smi_repair_refuse(arg, invariant, ref, "no safe rule: %s", text);
}

/* The state that the heap has when the repair is over. Not among the plan's words: apply stores it
 * last. */
static void assume_state(struct smi_repair *r)
{
    uint64_t at = SMF_STATE_OFFSET + offsetof(struct smf_state, poison);
    uint64_t poison = smi_repair_word(r, at);
    if (poison != 0)
        smi_repair_say(r, "H2", at,
                       "the heap may be changed again (it was poisoned with code %lld)",
                       -(long long)poison);
    smi_view_store(&r->view, at, 0);
    smi_view_store(&r->view, SMF_STATE_OFFSET + offsetof(struct smf_state, mark), SMF_UNCHECKED);
}

static void mend(struct smi_repair *r)
{
    smi_mend_spans(r);
    smi_mend_thread_table(r);
    smi_mend_pages(r);
    smi_mend_bitmaps(r);
    smi_mend_stacks(r);
    smi_mend_own(r);
    smi_mend_users(r);
    smi_mend_counts(r);
    smi_mend_sets(r);
}

static int cannot_read(struct smi_repair *r)
{
    int rc = r->failed ? -ENOMEM : -r->view.read_error;
    return rc < 0
               ? smi_error(rc, "%s: cannot plan a repair: %s", r->view.path, shmalloc_strerror(rc))
               : 0;
}

static int verify(struct smi_repair *r)
{
    struct smi_check_result result;
    int rc = smi_view_settle_again(&r->view, still_wrong, r);
    if (rc == 0)
        rc = smi_check(&r->view, 0, still_wrong, r, &result);
    return rc == SHMALLOC_ECORRUPT ? 0 : rc; /* an obstacle already */
}

int smi_repair_plan(struct smi_repair *r, int fd, const char *path,
                    void (*progress)(const struct smi_view *view))
{
    memset(r, 0, sizeof(*r));
    int rc = smi_view_of_descriptor(&r->view, fd, path);
    r->view.progress = progress;
    r->file_size = r->view.file_size;
    if (rc < 0 && (rc > -4096 || r->file_size == 0)) /* not read, or nothing that could be a heap */
        return rc;
    if (rc == 0) /* to be written, not only read */
        rc = smi_layout_validate(&r->view.header, &r->view.state, r->file_size, 0, path);
    if (rc < 0 && r->file_size > 0 && r->view.state.size > r->file_size &&
        r->view.state.size <= SMF_MAX_SIZE) {
        r->view.missing = r->view.state.size - r->file_size; /* cut, or said to be: room to look at
                                                                it */
        r->view.file_size = r->view.state.size;
    }
    if (rc < 0 && (rc = smi_mend_header(r)) < 0)
        return rc;
    smi_mend_state(r);
    assume_state(r);
    rc = smi_mend_flight(r);
    if (rc == 0)
        rc = smi_mend_directory(r);
    if (rc == 0 && r->obstacles.count == 0)
        mend(r);
    if (rc == 0 && r->obstacles.count == 0)
        rc = verify(r);
    add_last_values(r);
    return rc < 0 ? rc : cannot_read(r);
}

void smi_repair_finish(struct smi_repair *r)
{
    for (int i = 0; i < SMI_REPAIR_STAGES; i++)
        free(r->words[i].at);
    free(r->unstored.at);
    free(r->pieces.at);
    drop_steps(&r->steps);
    drop_steps(&r->obstacles);
    smi_view_finish(&r->view);
    memset(r, 0, sizeof(*r));
    r->view.fd = -1;
}

/* ---- carrying out ---- */

static int cannot(const struct smi_repair *r, int rc, const char *what)
{
    return smi_error(rc, "%s: cannot %s: %s", r->view.path, what, shmalloc_strerror(rc));
}

static int store_state(int fd, size_t offset, uint64_t value)
{
    int rc = smi_os_write(fd, &value, sizeof(value), SMF_STATE_OFFSET + offset);
    return rc < 0 ? rc : smi_os_sync_file(fd);
}

/* Pages in use get their storage while nothing is changed yet: the disk may be full. */
static int reserve_pages(const struct smi_repair *r, int fd)
{
    for (size_t i = 0; i < r->unstored.count; i++) {
        int rc = smi_os_reserve(fd, r->unstored.at[i].ref, r->unstored.at[i].value);
        if (rc < 0)
            return cannot(r, rc, "put storage behind pages in use; nothing was changed");
    }
    return 0;
}

static int write_words(const struct smi_repair *r, int fd, smi_repair_progress_fn *progress)
{
    uint64_t all = 0, done = 0;
    for (int stage = 0; stage < SMI_REPAIR_STAGES; stage++)
        all += r->words[stage].count;
    for (int stage = 0; stage < SMI_REPAIR_STAGES; stage++) {
        const struct smi_repair_words *words = &r->words[stage];
        int rc = 0;
        for (size_t i = 0; rc == 0 && i < words->count; i++) {
            rc = smi_os_write(fd, &words->at[i].value, 8, words->at[i].ref);
            if (progress && ++done % 1024 == 0)
                progress("writing", done, all, "words");
        }
        if (rc == 0)
            rc = smi_os_sync_file(fd);
        if (rc < 0)
            return cannot(r, rc, "write the repaired words");
    }
    return 0;
}

/* What is wrong in a heap that was just written, other than that it is poisoned still: the state's
 * turn comes later. */
static void note_second(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    if (strcmp(invariant, "H2") != 0 && strcmp(invariant, "H3") != 0)
        smi_note_finding(invariant, ref, text, arg);
}

static int read_again(const struct smi_repair *r, int fd)
{
    struct smi_view view;
    struct smi_check_result result;
    struct smi_finding finding = {0};
    int rc = smi_view_of_descriptor(&view, fd, r->view.path);
    view.progress = r->view.progress;
    if (rc == 0)
        rc = smi_check(&view, 0, note_second, &finding, &result);
    smi_view_finish(&view);
    if (rc < 0 || finding.count == 0)
        return rc;
    return smi_error(SHMALLOC_ECORRUPT,
                     "%s: is still damaged after the repair (%s); did something else write to it?",
                     r->view.path, finding.text);
}

/* A mark that is no mark forbids to look again; the others wait for the end, as the clean mark is
 * evidence. */
static int make_mark_possible(const struct smi_repair *r, int fd)
{
    struct smf_state state;
    int64_t got = smi_os_read(fd, &state, sizeof(state), SMF_STATE_OFFSET);
    if (got < 0 || (state.mark >= SMF_CLEAN && state.mark <= SMF_UNCHECKED))
        return got < 0 ? cannot(r, (int)got, "read") : 0;
    return store_state(fd, offsetof(struct smf_state, mark), SMF_UNCHECKED);
}

int smi_repair_apply(struct smi_repair *r, int fd, smi_repair_progress_fn *progress)
{
    if (r->obstacles.count > 0)
        return smi_error(SHMALLOC_ECORRUPT, "%s: there is no repair to carry out", r->view.path);
    int rc = reserve_pages(r, fd);
    if (rc < 0)
        return rc;
    rc = store_state(fd, offsetof(struct smf_state, poison), (uint64_t)-SHMALLOC_ECORRUPT);
    if (rc < 0)
        return cannot(r, rc, "mark the heap as under repair");
    rc = write_words(r, fd, progress); /* kill from here: poisoned, to be repaired again */
    if (rc == 0 && r->view.file_size > r->file_size &&
        (rc = smi_os_truncate(fd, r->view.file_size)) < 0)
        cannot(r, rc, "lengthen the file");
    if (rc == 0)
        rc = make_mark_possible(r, fd);
    if (rc == 0)
        rc = read_again(r, fd);
    if (rc < 0)
        return rc;
    rc = store_state(fd, offsetof(struct smf_state, mark), SMF_UNCHECKED);
    if (rc == 0) /* kill here: poisoned, and nothing but that to repair */
        rc = store_state(fd, offsetof(struct smf_state, poison), 0);
    return rc < 0 ? cannot(r, rc, "mark the heap as repaired") : 0;
}

/* ---- the copy ---- */

/* Pages that begin at `page` and have storage, up to `end`. */
static uint64_t stored_run(struct smi_repair *r, uint64_t page, uint64_t end)
{
    uint64_t at = page;
    while (at < end && (smi_view_word(&r->view, at) & SMF_WORD_RESERVED))
        at++;
    return at - page;
}

/* Storage that was not written to yet looks like a hole; the page words know. A heap that is put
 * back from a copy must not find out on a full disk. */
static int reserve_in_copy(struct smi_repair *r, int to)
{
    const struct smf_areas *areas = &r->view.header.areas;
    int rc = smi_os_reserve(to, 0, areas->end);
    for (uint32_t i = 0; rc == 0 && i < r->view.chunk_count; i++) {
        const struct smf_chunk *chunk = &r->view.chunks[i];
        uint64_t end = (uint64_t)chunk->first_page + chunk->page_count, run;
        rc = smi_os_reserve(to, smi_chunk_words_offset(chunk, areas),
                            smi_chunk_metadata_bytes(chunk->page_count));
        for (uint64_t page = smi_chunk_data_page(chunk, areas); rc == 0 && page < end;
             page += run + (run == 0)) {
            run = stored_run(r, page, end);
            rc = run > 0 ? smi_os_reserve(to, smi_repair_ref(page), run << SMF_PAGE_SHIFT) : 0;
        }
    }
    return rc == -EOPNOTSUPP ? 0 : rc; /* no heap can be used there, but a copy can be kept */
}

static int copy_data(int from, int to, uint64_t size, smi_repair_progress_fn *progress)
{
    static uint8_t buffer[1 << 20];
    int rc = smi_os_truncate(to, size);
    for (uint64_t at = 0, end; rc == 0 && at < size;) {
        rc = smi_os_next_data(from, size, &at, &end);
        while (rc == 0 && at < end) {
            uint64_t len = end - at < sizeof(buffer) ? end - at : sizeof(buffer);
            int64_t got = smi_os_read(from, buffer, len, at);
            rc = got < 0 ? (int)got : smi_os_write(to, buffer, len, at);
            at += len;
            if (progress)
                progress("copying", at >> 20, size >> 20, "MiB");
        }
    }
    return rc < 0 ? rc : smi_os_sync_file(to);
}

int smi_repair_save(struct smi_repair *r, int fd, const char *to, smi_repair_progress_fn *progress)
{
    char temp_name[PATH_MAX];
    struct smi_file_info info;
    int rc = smi_os_stat(fd, &info), copy = -1;
    if (rc == 0)
        rc = copy = smi_os_create_unnamed(to, info.mode & 0777, temp_name);
    if (copy >= 0) {
        rc = reserve_in_copy(r, copy);
        if (rc == 0)
            rc = copy_data(fd, copy, info.size, progress);
        if (rc < 0)
            smi_os_discard(temp_name);
        else if ((rc = smi_os_publish(copy, to, temp_name)) == 0)
            rc = smi_os_sync_directory(to);
        smi_os_close(copy);
    }
    if (rc < 0)
        return smi_error(rc, "%s: cannot save a copy as %s: %s; nothing was changed", r->view.path,
                         to, shmalloc_strerror(rc));
    return 0;
}
