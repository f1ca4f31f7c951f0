/* SPDX-License-Identifier: MIT */
/*
 * cmd_map.c - a picture of the heap's pages.
 *
 * The pages are passed once, in ascending order, and drawn as they come: a cell is printed when the
 * page after its last one is reached, so the picture needs no memory, however long the heap is.
 */
#include "inspect.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

#include "format/sizeclass.h"

static const char help[] =
    "Each character stands for a run of pages of 8 KiB, as many as it takes to fit the\n"
    "terminal, and shows what most of them are. At the left, how far from the start of\n"
    "the heap the row begins; below, the legend with the exact sums.\n"
    "\n"
    "A slab is a few pages cut into slots of one size; the digit says how much of it\n"
    "programs have, in quarters: 0 none, 1 up to a quarter, ... 4 more than three.\n"
    "Slots in the caches of threads count as not used; a large block that a thread freed\n"
    "and keeps for its next requests is cached, too, and has a sign of its own. Many 1\n"
    "and 2 in a long heap are fragmentation: a slab goes back only when all its slots are\n"
    "free. Of the metadata the legend tells what the library took pages for.\n"
    "\n"
    "Options\n"
    "      --width N  columns to use, 40..200; else the terminal's, else 80\n"
    "      --all      a character for every page, however many rows that takes\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"map\", the path\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status; pages\n"
    "                          that nothing claims are damage, unless the heap moves\n"
    "  error                   only on failure: code, meaning, message\n"
    "  moving                  true when processes use the heap\n"
    "  size, page_bytes        bytes of the heap, of a page\n"
    "  totals                  bytes: metadata, slab, large, kept (large, freed, and kept by\n"
    "                          a thread), free (with storage), hole, unknown; slab_levels:\n"
    "                          list of five, by the digits above\n"
    "  purposes                of metadata: list of: purpose (\"thread-slot\", \"stack\",\n"
    "                          \"limbo\", \"log\", \"other\"), bytes\n"
    "  chunks                  list of: ref, bytes\n"
    "  runs                    neighbours alike, in one: list of: ref, bytes, kind (a key of\n"
    "                          totals), spans; of slabs also arena, slot_size, slots, used,\n"
    "                          cached; of pages that the library took also purpose\n";

static const struct option options[] = {
    {"width", required_argument, NULL, 'w'},
    {"all", no_argument, NULL, 'a'},
    {NULL, 0, NULL, 0},
};
const struct command_line inspect_map_line = {"[--json] [--width N] [--all] FILE", "", options, 0};

/* What a page can be, in the order in which the legend shows it. */
enum kind {
    METADATA,
    SLAB,
    SLAB_1,
    SLAB_2,
    SLAB_3,
    SLAB_4,
    LARGE,
    KEPT,
    FREE,
    HOLE,
    UNKNOWN,
    KINDS
};

static const struct {
    char sign;
    enum color color;
    const char *key, *text;
} kinds[KINDS] = {
    [METADATA] = {'#', BLUE, "metadata", "metadata"},
    [SLAB] = {'0', RED, "slab", "slabs with nothing used"},
    [SLAB_1] = {'1', RED, "slab", "slabs used up to 1/4"},
    [SLAB_2] = {'2', YELLOW, "slab", "slabs used up to 1/2"},
    [SLAB_3] = {'3', YELLOW, "slab", "slabs used up to 3/4"},
    [SLAB_4] = {'4', GREEN, "slab", "slabs used over 3/4"},
    [LARGE] = {'L', CYAN, "large", "large blocks"},
    [KEPT] = {'K', YELLOW, "kept", "large blocks, cached"},
    [FREE] = {'-', PLAIN, "free", "free, with storage"},
    [HOLE] = {'.', DIM, "hole", "free, without storage"},
    [UNKNOWN] = {'?', RED, "unknown", "claimed by nothing"},
};

/* A run for JSON: neighbouring spans of one kind, of one class and arena, and of one purpose. */
struct run {
    enum kind kind; /* SLAB for slabs of any level */
    uint32_t arena, size_class;
    uint64_t first_page, pages, spans, slots, used, cached;
    unsigned purpose; /* of a span of the library; 0: it is none */
};

struct picture {
    struct inspect *in;
    uint64_t pages;      /* that the heap has */
    uint64_t at;         /* the next page to come */
    uint64_t sum[KINDS]; /* pages */
    uint64_t purposes[INSPECT_PURPOSES]; /* pages, of METADATA */

    uint32_t cells; /* in a row */
    uint64_t pages_per_cell;
    uint32_t ref_digits;
    uint64_t cell[KINDS]; /* pages of the cell that is being filled */
    enum color color;     /* that the terminal is in */

    struct json_object *runs; /* NULL: the picture is drawn */
    struct run run;           /* not in the list yet; no pages = none */

    struct smi_cached *cached;
    size_t cached_count, next_cached;
};

/* ---- drawing -------------------------------------------------------------------------------- */

static void set_color(struct picture *p, enum color color)
{
    if (p->color == color)
        return;
    fputs(inspect_color(p->in, PLAIN), stdout);
    if (color != PLAIN)
        fputs(inspect_color(p->in, color), stdout);
    p->color = color;
}

static void draw_cell(struct picture *p)
{
    uint64_t cell = (p->at - 1) / p->pages_per_cell, column = cell % p->cells;
    enum kind most = METADATA;
    for (enum kind kind = METADATA; kind < KINDS; kind++)
        if (p->cell[kind] > p->cell[most])
            most = kind;
    if (column == 0)
        printf("0x%0*llx  ", (int)p->ref_digits,
               (unsigned long long)(cell * p->pages_per_cell << SMF_PAGE_SHIFT));
    set_color(p, kinds[most].color);
    putchar(kinds[most].sign);
    if (column + 1 == p->cells || p->at == p->pages) {
        set_color(p, PLAIN);
        putchar('\n');
    }
    memset(p->cell, 0, sizeof(p->cell));
}

static void draw(struct picture *p, enum kind kind, uint64_t count)
{
    while (count > 0) {
        uint64_t room = p->pages_per_cell - p->at % p->pages_per_cell;
        uint64_t n = count < room ? count : room;
        p->cell[kind] += n;
        p->at += n;
        count -= n;
        if (n == room || p->at == p->pages)
            draw_cell(p);
    }
}

/* Rows that the picture may take: what the terminal has left beside the legend. */
static uint64_t rows_wanted(void)
{
    struct winsize size = {0};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) < 0 || size.ws_row == 0)
        return 24;
    uint32_t legend = KINDS + INSPECT_PURPOSES - 1;
    return size.ws_row > legend + 14 ? size.ws_row - legend - 6 : 8;
}

/* Powers of two, so that rows begin at round refs. */
static void choose_scale(struct picture *p)
{
    int width = inspect_width(p->in);
    for (p->ref_digits = 6; p->pages << SMF_PAGE_SHIFT >> 4 * p->ref_digits; p->ref_digits++)
        ;
    p->cells = ((uint32_t)width - p->ref_digits - 4) / 8 * 8;
    p->pages_per_cell = 1;
    while (!p->in->given['a'] && p->pages_per_cell * p->cells * rows_wanted() < p->pages)
        p->pages_per_cell *= 2;
}

/* ---- runs for JSON -------------------------------------------------------------------------- */

static void end_run(struct picture *p)
{
    const struct run *run = &p->run;
    if (run->pages == 0)
        return;
    struct json_object *object = json_object_new_object();
    inspect_add_number(object, "ref", run->first_page << SMF_PAGE_SHIFT);
    inspect_add_number(object, "bytes", run->pages << SMF_PAGE_SHIFT);
    inspect_add_text(object, "kind", kinds[run->kind].key);
    inspect_add_number(object, "spans", run->spans);
    if (run->purpose)
        inspect_add_text(object, "purpose", inspect_purpose_key(run->purpose));
    if (run->kind == SLAB) {
        inspect_add_number(object, "arena", run->arena);
        inspect_add_number(object, "slot_size", smi_classes[run->size_class].size);
        inspect_add_number(object, "slots", run->slots);
        inspect_add_number(object, "used", run->used);
        inspect_add_number(object, "cached", run->cached);
    }
    json_object_array_add(p->runs, object);
    p->run.pages = 0;
}

static void extend_run(struct picture *p, const struct run *more)
{
    struct run *run = &p->run;
    if (run->kind != more->kind || run->arena != more->arena ||
        run->size_class != more->size_class || run->purpose != more->purpose)
        end_run(p);
    if (run->pages == 0) {
        *run = *more;
        return;
    }
    run->pages += more->pages;
    run->spans += more->spans;
    run->slots += more->slots;
    run->used += more->used;
    run->cached += more->cached;
}

/* ---- the pages ------------------------------------------------------------------------------ */

/* The next `more->pages` pages are of `kind`. */
static void feed(struct picture *p, enum kind kind, const struct run *more)
{
    p->sum[kind] += more->pages;
    if (p->runs) {
        extend_run(p, more);
        p->at += more->pages;
    } else {
        draw(p, kind, more->pages);
    }
}

static void feed_plain(struct picture *p, enum kind kind, uint64_t pages)
{
    struct run run = {.kind = kind, .first_page = p->at, .pages = pages, .spans = 1};
    if (pages)
        feed(p, kind, &run);
}

static void feed_meta(struct picture *p, const struct smi_span *span)
{
    struct run run = {.kind = METADATA, .first_page = p->at, .pages = span->page_count, .spans = 1};
    run.purpose = inspect_purpose(span->page);
    p->purposes[run.purpose] += run.pages;
    feed(p, METADATA, &run);
}

static void feed_free(struct picture *p, const struct smi_span *span)
{
    uint64_t from = 0;
    int before = 0;
    for (uint64_t i = 0; i <= span->page_count; i++) {
        int stored = i < span->page_count &&
                     (smi_view_word(&p->in->view, span->first_page + i) & SMF_WORD_RESERVED) != 0;
        if (i > 0 && (i == span->page_count || stored != before)) {
            feed_plain(p, before ? FREE : HOLE, i - from);
            from = i;
        }
        before = stored;
    }
}

/* Slots of the next slab that caches hold; slabs and cached slots both come in ascending order. */
static uint64_t count_cached(struct picture *p, uint64_t first, uint64_t end)
{
    uint64_t count = 0;
    while (p->next_cached < p->cached_count && p->cached[p->next_cached].ref < first)
        p->next_cached++;
    for (; p->next_cached < p->cached_count && p->cached[p->next_cached].ref < end;
         p->next_cached++)
        count++;
    return count;
}

static void feed_slab(struct picture *p, const struct smi_span *span)
{
    unsigned k = span->page->size_class;
    const struct smi_class *class = &smi_classes[k];
    struct run run = {SLAB,
                      span->page->arena,
                      k,
                      span->first_page + (uint64_t) class->bitmap_pages,
                      class->data_pages,
                      1,
                      class->slots,
                      class->slots,
                      0,
                      0};
    for (uint32_t w = 0; w < (class->slots + 63u) / 64; w++) {
        uint64_t bits = smi_view_slab_bits(&p->in->view, span->first_page, k, w);
        uint64_t freed = (uint64_t)__builtin_popcountll(bits);
        run.used -= freed < run.used ? freed : run.used;
    }
    run.cached = count_cached(p, (uint64_t)span->first_page << SMF_PAGE_SHIFT,
                              ((uint64_t)span->first_page + span->page_count) << SMF_PAGE_SHIFT);
    if (run.cached > run.used)
        run.cached = run.used;
    run.used -= run.cached;
    feed_plain(p, METADATA, class->bitmap_pages);
    feed(p, SLAB + (enum kind)((4 * run.used + run.slots - 1) / run.slots), &run);
}

static void feed_span(struct picture *p, const struct smi_span *span)
{
    int is_slab = smi_view_is_slab(&p->in->view, span->page);
    if (is_slab && span->page->arena < p->in->view.header.arena_count)
        feed_slab(p, span);
    else if (is_slab)
        feed_plain(p, METADATA, span->page_count);
    else if (span->page->kind == SMF_PAGE_META)
        feed_meta(p, span);
    else if (span->page->kind == SMF_PAGE_LARGE)
        feed_plain(p, span->page->side & SMF_MARK_KEPT ? KEPT : LARGE, span->page_count);
    else if (span->page->kind == SMF_PAGE_FREE)
        feed_free(p, span);
    else
        feed_plain(p, UNKNOWN, span->page_count);
}

/* Every page once; what a broken directory does not reach is unknown. */
static void feed_heap(struct picture *p)
{
    struct smi_view *view = &p->in->view;
    struct smi_span span = {0};
    uint32_t chunk = 0;
    int more = smi_view_next_span(view, &span);
    while (more || chunk < view->chunk_count) {
        if (chunk < view->chunk_count && (!more || chunk <= span.chunk)) {
            const struct smf_chunk *c = &view->chunks[chunk++];
            feed_plain(p, UNKNOWN, c->first_page - p->at);
            feed_plain(p, METADATA, smi_chunk_data_page(c, &view->header.areas) - p->at);
            continue;
        }
        feed_span(p, &span);
        more = smi_view_next_span(view, &span);
    }
    if (p->at < p->pages)
        feed_plain(p, UNKNOWN, p->pages - p->at);
}

/* ---- text ----------------------------------------------------------------------------------- */

static void print_purposes(struct picture *p)
{
    char bytes[32];
    for (unsigned i = 1; i < INSPECT_PURPOSES; i++)
        if (p->purposes[i])
            printf("       %-21s %11s\n", inspect_purpose_text(i),
                   inspect_bytes(p->purposes[i] << SMF_PAGE_SHIFT, bytes));
}

static void print_legend(struct picture *p)
{
    char bytes[32];
    putchar('\n');
    for (enum kind kind = METADATA; kind < KINDS; kind++) {
        if (p->sum[kind] == 0)
            continue;
        set_color(p, kinds[kind].color);
        printf("  %c", kinds[kind].sign);
        set_color(p, PLAIN);
        printf("  %-23s %11s", kinds[kind].text,
               inspect_bytes(p->sum[kind] << SMF_PAGE_SHIFT, bytes));
        if (inspect_width(p->in) >= 48)
            printf(" %5.1f %%", 100.0 * (double)p->sum[kind] / (double)p->pages);
        putchar('\n');
        if (kind == METADATA)
            print_purposes(p);
    }
}

static void print_scale(struct picture *p)
{
    char all[32], cell[32], chunks[64], pages[64];
    printf("%s", inspect_color(p->in, BOLD));
    inspect_print_text(p->in->path);
    printf("%s\n", inspect_color(p->in, PLAIN));
    printf("%s in %s\na character is %s, %s\n\n", inspect_bytes(p->pages << SMF_PAGE_SHIFT, all),
           inspect_count(p->in->view.chunk_count, "chunk", "chunks", chunks),
           inspect_count(p->pages_per_cell, "page", "pages", pages),
           inspect_bytes(p->pages_per_cell << SMF_PAGE_SHIFT, cell));
}

/* ---- JSON ----------------------------------------------------------------------------------- */

static void add_totals(struct picture *p)
{
    static const enum kind shown[] = {METADATA, LARGE, KEPT, FREE, HOLE, UNKNOWN};
    struct json_object *totals = json_object_new_object(), *levels = json_object_new_array();
    uint64_t slabs = 0;
    for (enum kind kind = SLAB; kind <= SLAB_4; kind++) {
        slabs += p->sum[kind];
        json_object_array_add(levels, json_object_new_uint64(p->sum[kind] << SMF_PAGE_SHIFT));
    }
    for (size_t i = 0; i < sizeof(shown) / sizeof(shown[0]); i++)
        inspect_add_number(totals, kinds[shown[i]].key, p->sum[shown[i]] << SMF_PAGE_SHIFT);
    inspect_add_number(totals, "slab", slabs << SMF_PAGE_SHIFT);
    inspect_add(totals, "slab_levels", levels);
    inspect_add(p->in->out, "totals", totals);
}

static void add_purposes(struct picture *p)
{
    struct json_object *list = json_object_new_array();
    for (unsigned i = 1; i < INSPECT_PURPOSES; i++) {
        if (p->purposes[i] == 0)
            continue;
        struct json_object *object = json_object_new_object();
        inspect_add_text(object, "purpose", inspect_purpose_key(i));
        inspect_add_number(object, "bytes", p->purposes[i] << SMF_PAGE_SHIFT);
        json_object_array_add(list, object);
    }
    inspect_add(p->in->out, "purposes", list);
}

static void add_all(struct picture *p)
{
    struct json_object *chunks = json_object_new_array();
    end_run(p);
    inspect_add_number(p->in->out, "size", p->pages << SMF_PAGE_SHIFT);
    inspect_add_number(p->in->out, "page_bytes", SMF_PAGE);
    add_totals(p);
    add_purposes(p);
    for (uint32_t i = 0; i < p->in->view.chunk_count; i++) {
        const struct smf_chunk *chunk = &p->in->view.chunks[i];
        struct json_object *object = json_object_new_object();
        inspect_add_number(object, "ref", (uint64_t)chunk->first_page << SMF_PAGE_SHIFT);
        inspect_add_number(object, "bytes", (uint64_t)chunk->page_count << SMF_PAGE_SHIFT);
        json_object_array_add(chunks, object);
    }
    inspect_add(p->in->out, "chunks", chunks);
    inspect_add(p->in->out, "runs", p->runs);
}

/* ---- the command ---------------------------------------------------------------------------- */

/* Pages of the heap; where its size cannot be believed, those of the chunks that can. */
static uint64_t pages_of(const struct smi_view *view)
{
    const struct smf_chunk *last = view->chunk_count ? &view->chunks[view->chunk_count - 1] : NULL;
    uint64_t pages = last ? (uint64_t)last->first_page + last->page_count : 0;
    uint64_t said = view->state.size >> SMF_PAGE_SHIFT;
    return said > pages && view->state.size <= view->file_size ? said : pages;
}

static enum verdict show(struct picture *p)
{
    struct inspect *in = p->in;
    if (in->out) {
        p->runs = json_object_new_array();
        feed_heap(p);
        add_all(p);
    } else {
        choose_scale(p);
        print_scale(p);
        feed_heap(p);
        print_legend(p);
    }
    enum verdict verdict = inspect_conclude(in);
    return verdict == SOUND && p->sum[UNKNOWN] && !inspect_is_live(in) ? DAMAGED : verdict;
}

static enum verdict run(struct inspect *in)
{
    struct picture p = {.in = in};
    uint64_t width = 0;
    if (inspect_option_number(in, 'w', "width", 40, 200, &width) < 0)
        return CANNOT_TELL;
    enum verdict verdict = inspect_open_or_report(in);
    if (verdict != SOUND)
        return verdict;
    int rc = inspect_settle(in, &p.cached, &p.cached_count);
    if (rc < 0)
        return inspect_report_error(in, rc);
    p.pages = pages_of(&in->view);
    verdict = show(&p);
    free(p.cached);
    return verdict;
}

const struct subcommand inspect_map = {"map", "a picture of the pages, and what fills them", help,
                                       run, NULL};
