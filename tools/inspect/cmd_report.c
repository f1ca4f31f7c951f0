/* SPDX-License-Identifier: MIT */
/*
 * cmd_report.c - one HTML page about a heap, for the browser or to hand on.
 *
 * The page is whole by itself: style and pictures are inside, it loads nothing and runs nothing. It
 * is made in memory and written when it is complete. Whatever text comes from the file goes through
 * put_text, which leaves no character that HTML could take for its own.
 */
#include "inspect.h"

#include <errno.h>
#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <shmalloc/shmalloc.h>

#include "look/check.h"
#include "platform/error.h"
#include "platform/os.h"
#include "report_style.h"
#include "structures/structures.h"
#include "format/sizeclass.h"

static const char help[] =
    "Writes one HTML page about the heap: verdict of the full check, a picture of its\n"
    "pages, occupancy by size class and by type tag, fragmentation, free runs, processes\n"
    "and threads, roots. The page needs nothing but itself: it can be mailed, kept, and\n"
    "compared with the one of next week.\n"
    "\n"
    "Options\n"
    "  -o, --output PAGE  where to write it; - is standard output (not with --json).\n"
    "                     A heap is not overwritten\n"
    "\n"
    "Exit status: as of `check`; 2 also when the page cannot be written.\n"
    "\n"
    "JSON keys\n"
    "  schema, command, file   1, \"report\", the path of the heap\n"
    "  status                  \"sound\", \"damaged\" or \"unknown\", as the exit status\n"
    "  error                   only on failure: code, meaning, message\n"
    "  output, bytes           the page and its length\n"
    "  violations              number of them\n"
    "  dangling                number of roots that name no block\n"
    "  moving                  true when processes use the heap\n";

#define COLUMNS 64
#define MOST_CELLS 2048
#define MOST_VIOLATIONS 100
#define MOST_ROOTS 500
#define MOST_TAGS 40
#define RUN_LENGTHS 32 /* free runs by powers of two of pages */

enum kind {
    META,
    FULL_SLAB,
    PART_SLAB,
    LARGE,
    KEPT,
    STORED,
    HOLE,
    KINDS
};

static const struct {
    const char *style, *text;
} kinds[KINDS] = {
    [META] = {"meta", "the library's own"},
    [FULL_SLAB] = {"used", "slabs, three quarters used or more"},
    [PART_SLAB] = {"part", "slabs, less used"},
    [LARGE] = {"large", "large blocks"},
    [KEPT] = {"cached", "large blocks that threads freed and keep"},
    [STORED] = {"stored", "free, with storage"},
    [HOLE] = {"hole", "free, without storage"},
};

struct class_figures {
    uint64_t slabs, used, cached, free; /* slots */
};

struct violation {
    char invariant[8];
    uint64_t ref;
    char *text;
};

/* What the page says, gathered before it is written. */
static struct figures {
    struct inspect *in;
    shmalloc_stats stats;
    int has_stats;
    struct smi_check_result check;
    struct violation violations[MOST_VIOLATIONS];
    uint64_t cells[MOST_CELLS][KINDS];
    uint64_t pages, pages_per_cell;
    struct class_figures classes[SMF_CLASSES];
    uint64_t large_blocks, large_bytes, kept_blocks, kept_bytes;
    uint64_t purposes[INSPECT_PURPOSES]; /* pages */
    uint64_t tag_blocks[65536], tag_bytes[65536];
    uint64_t runs[RUN_LENGTHS], run_pages[RUN_LENGTHS];
    uint64_t slab_bytes;
} figures;

/* ---- gathering ------------------------------------------------------------------------------ */

static void note_violation(const char *invariant, uint64_t ref, const char *text, void *arg)
{
    struct figures *f = arg;
    for (size_t i = 0; i < MOST_VIOLATIONS; i++) {
        struct violation *v = &f->violations[i];
        if (v->text)
            continue;
        snprintf(v->invariant, sizeof(v->invariant), "%s", invariant);
        v->ref = ref;
        v->text = strdup(text);
        return;
    }
}

/* A program may run the command more than once. */
static void forget(struct figures *f)
{
    for (size_t i = 0; i < MOST_VIOLATIONS; i++)
        free(f->violations[i].text);
    memset(f, 0, sizeof(*f));
}

static enum kind kind_of(struct smi_view *view, const struct smi_span *span, uint32_t page)
{
    const struct smf_page *p = span->page;
    switch (p ? p->kind : SMF_PAGE_NONE) {
    case SMF_PAGE_FREE:
        return smi_view_word(view, page) & SMF_WORD_RESERVED ? STORED : HOLE;
    case SMF_PAGE_LARGE:
        return p->side & SMF_MARK_KEPT ? KEPT : LARGE;
    case SMF_PAGE_SLAB:
        if (!smi_view_is_slab(view, p) || p->arena >= view->header.arena_count)
            return META;
        return p->free_slots * 4u > smi_classes[p->size_class].slots ? PART_SLAB : FULL_SLAB;
    default:
        return META;
    }
}

static void count_span(struct figures *f, struct smi_view *view, const struct smi_span *span)
{
    const struct smf_page *p = span->page;
    if (p && p->kind == SMF_PAGE_FREE) {
        unsigned length = 31 - (unsigned)__builtin_clz(span->page_count);
        f->runs[length]++;
        f->run_pages[length] += span->page_count;
    } else if (p && smi_view_is_slab(view, p) && p->arena < view->header.arena_count) {
        f->classes[p->size_class].slabs++;
        f->classes[p->size_class].free += p->free_slots;
        f->slab_bytes += (uint64_t)span->page_count << SMF_PAGE_SHIFT;
    } else if (p && p->kind == SMF_PAGE_LARGE && (p->side & SMF_MARK_KEPT)) {
        f->kept_blocks++;
        f->kept_bytes += (uint64_t)span->page_count << SMF_PAGE_SHIFT;
    } else if (p && p->kind == SMF_PAGE_META) {
        f->purposes[inspect_purpose(p)] += span->page_count;
    }
    for (uint32_t i = 0; i < span->page_count; i++) {
        uint64_t cell = (span->first_page + i) / f->pages_per_cell;
        if (cell < MOST_CELLS)
            f->cells[cell][kind_of(view, span, span->first_page + i)]++;
    }
}

static void count_pages(struct figures *f, struct smi_view *view)
{
    struct smi_span span = {0};
    f->pages = view->state.size >> SMF_PAGE_SHIFT;
    f->pages_per_cell = (f->pages + MOST_CELLS - 1) / MOST_CELLS;
    if (f->pages_per_cell == 0)
        f->pages_per_cell = 1;
    while (smi_view_next_span(view, &span))
        count_span(f, view, &span);
}

static int count_block(const shmalloc_block *block, void *arg)
{
    struct figures *f = arg;
    const struct smf_page *page = smi_view_page(&f->in->view, block->ref >> SMF_PAGE_SHIFT);
    f->tag_blocks[block->tag]++;
    f->tag_bytes[block->tag] += block->size;
    if (block->size > SMI_MAX_SMALL || (page && page->kind == SMF_PAGE_LARGE)) {
        f->large_blocks++;
        f->large_bytes += block->size;
    } else {
        f->classes[smi_class_of(block->size)].used++;
    }
    return 0;
}

static void count_cached(struct figures *f, struct smi_view *view)
{
    struct smi_cached *cached;
    size_t count;
    if (smi_view_cached(view, &cached, &count) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        f->classes[cached[i].size_class].cached++;
    free(cached);
}

/* Codes of smi_check. What can be read of a damaged heap is counted as well. */
static int gather(struct figures *f, struct inspect *in)
{
    f->in = in;
    int rc = smi_check(&in->view, inspect_is_live(in), note_violation, f, &f->check);
    if (rc == 0 && smi_view_stats(&in->view, &f->stats) == 0) {
        f->has_stats = 1;
        count_pages(f, &in->view);
        count_cached(f, &in->view);
        smi_view_each_block(&in->view, count_block, f);
    }
    inspect_progress_end();
    return rc == SHMALLOC_ECORRUPT ? 0 : rc;
}

/* ---- HTML ----------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static void put(FILE *page, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vfprintf(page, format, args);
    va_end(args);
}

/* Text of any bytes. What turns the direction of writing does so inside <bdi> only. */
static void put_text(FILE *page, const char *text)
{
    struct json_object *valid = inspect_json_text(text);
    fputs("<bdi>", page);
    for (const char *s = valid ? json_object_get_string(valid) : ""; *s; s++) {
        if (*s == '&')
            fputs("&amp;", page);
        else if (*s == '<')
            fputs("&lt;", page);
        else if (*s == '>')
            fputs("&gt;", page);
        else if (*s == '"')
            fputs("&quot;", page);
        else if (*s == '\'')
            fputs("&#39;", page);
        else if ((unsigned char)*s < 0x20 || *s == 0x7f)
            fputs("\xef\xbf\xbd", page);
        else
            fputc(*s, page);
    }
    fputs("</bdi>", page);
    json_object_put(valid);
}

static void put_tile(FILE *page, const char *value, const char *name)
{
    put(page, "<div class=\"tile\"><b>%s</b><span>%s</span></div>\n", value, name);
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static void put_part(FILE *page, const char *style, uint64_t part, uint64_t whole)
{
    if (part)
        put(page, "<span class=\"%s\" style=\"width:%.2f%%\"></span>", style, percent(part, whole));
}

static void open_card(FILE *page, const char *style, const char *title, const char *note)
{
    put(page, "<section class=\"card%s\"><h2>%s</h2>\n", style, title);
    if (note)
        put(page, "<p class=\"note\">%s</p>\n", note);
}

/* ---- sections ------------------------------------------------------------------------------- */

static void put_identity(FILE *page, struct inspect *in)
{
    const struct smf_header *h = &in->view.header;
    char when[32], made[32], layout[65], n[64];
    put(page, "<h1>");
    put_text(page, in->path);
    put(page, "</h1>\n<p class=\"soft\">a shmalloc heap, as of %s</p>\n",
        inspect_time(smi_os_now() / 1000000000u, when));
    put(page, "<dl><dt>identity</dt><dd>");
    for (int i = 0; i < 16; i++)
        put(page, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", h->uuid[i]);
    put(page, "</dd><dt>made</dt><dd>%s, format version %u</dd><dt>layout</dt><dd>",
        inspect_time(h->created_at, made), h->format_version);
    memcpy(layout, h->layout_name, 64);
    layout[64] = 0;
    put_text(page, layout[0] ? layout : "none given");
    if (layout[0])
        put(page, " version %llu", (unsigned long long)h->layout_version);
    put(page, "</dd><dt>options</dt><dd>%s%s</dd></dl>\n",
        inspect_count(h->arena_count, "arena", "arenas", n),
        h->mode & SMF_HEAP_HARDENED ? ", hardened" : "");
}

static void put_verdict(FILE *page, const struct figures *f)
{
    struct inspect *in = f->in;
    char n[2][64];
    if (f->check.violations)
        put(page, "<p><span class=\"verdict bad\">damaged: %s</span></p>\n",
            inspect_count(f->check.violations, "violation", "violations", n[0]));
    else if (f->check.dangling)
        put(page, "<p><span class=\"verdict bad\">sound, but %s</span></p>\n",
            inspect_count(f->check.dangling, "root names no block", "roots name no block", n[0]));
    else
        put(page, "<p><span class=\"verdict\">sound</span></p>\n");
    put(page, "<p>%s and %s were checked. ", inspect_count(f->check.pages, "page", "pages", n[0]),
        inspect_count(f->check.blocks, "block", "blocks", n[1]));
    if (inspect_is_live(in))
        put(page, "The heap is in use by %s: this is a moving picture.</p>\n",
            inspect_count(in->users.processes, "process", "processes", n[0]));
    else if (in->view.state.mark == SMF_CLEAN)
        put(page, "It was closed in order.</p>\n");
    else if (inspect_runtime_is_valid(in))
        put(page, "Every process ended without closing it; the next open finds the heap as it "
                  "was.</p>\n");
    else if (inspect_cannot_tell(in))
        put(page, "Every process ended without closing it, or the machine stopped: the machine's "
                  "boot id cannot be read.</p>\n");
    else
        put(page, "It was in use when the machine stopped or the file was copied.</p>\n");
    if (in->view.state.poison)
        put(page, "<p class=\"dead\">It is poisoned: it can only be read.</p>\n");
}

static void put_violations(FILE *page, const struct figures *f)
{
    uint64_t shown = 0, all = f->check.violations + f->check.dangling;
    if (!all)
        return;
    open_card(page, " all", "Violations", "The invariant, the byte of the file, what is wrong.");
    put(page, "<div class=\"scroll\"><table>\n");
    for (; shown < MOST_VIOLATIONS && f->violations[shown].text; shown++) {
        const struct violation *v = &f->violations[shown];
        put(page,
            "<tr><td class=\"text\">%s</td><td class=\"text\">0x%llx</td>"
            "<td class=\"text free\">",
            v->invariant, (unsigned long long)v->ref);
        put_text(page, v->text);
        put(page, "</td></tr>\n");
    }
    put(page, "</table></div>\n");
    if (shown < all)
        put(page, "<p class=\"note\">and %llu more</p>\n", (unsigned long long)(all - shown));
    put(page, "</section>\n");
}

static void put_tiles(FILE *page, const struct figures *f)
{
    const shmalloc_stats *s = &f->stats;
    char n[32];
    put(page, "<div class=\"tiles\">\n");
    put_tile(page, inspect_bytes(f->in->view.state.size, n), "size");
    put_tile(page, inspect_bytes(s->allocated, n), "allocated");
    put_tile(page, inspect_number(s->allocated_blocks, n), "blocks");
    put_tile(page, inspect_bytes(s->cached, n), "cached by threads");
    put_tile(page, inspect_bytes(s->central_free, n), "free in slabs");
    put_tile(page, inspect_bytes(s->free_pages, n), "free runs");
    put_tile(page, inspect_bytes(s->metadata, n), "metadata");
    put_tile(page, inspect_number(s->roots, n), "roots");
    put(page, "</div>\n");
}

/* The kind that most pages of a cell have; pages that no span has are the library's. */
static enum kind main_kind(const struct figures *f, uint64_t cell)
{
    uint64_t first = cell * f->pages_per_cell, pages = f->pages_per_cell, others = 0;
    if (first + pages > f->pages)
        pages = f->pages - first;
    enum kind best = META;
    for (int kind = 0; kind < KINDS; kind++)
        others += f->cells[cell][kind];
    uint64_t most = f->cells[cell][META] + (pages > others ? pages - others : 0);
    for (int kind = 1; kind < KINDS; kind++) {
        if (f->cells[cell][kind] > most) {
            most = f->cells[cell][kind];
            best = (enum kind)kind;
        }
    }
    return best;
}

/* Neighbours of one kind in a row are one rectangle. */
static void put_cells(FILE *page, const struct figures *f)
{
    uint64_t count = (f->pages + f->pages_per_cell - 1) / f->pages_per_cell;
    for (uint64_t cell = 0; cell < count;) {
        uint64_t end = cell + 1;
        enum kind kind = main_kind(f, cell);
        while (end < count && end % COLUMNS != 0 && main_kind(f, end) == kind)
            end++;
        put(page, "<rect class=\"%s\" x=\"%llu\" y=\"%llu\" width=\"%llu\" height=\"9\"/>\n",
            kinds[kind].style, (unsigned long long)(cell % COLUMNS * 10),
            (unsigned long long)(cell / COLUMNS * 10), (unsigned long long)((end - cell) * 10));
        cell = end;
    }
}

static void put_map(FILE *page, const struct figures *f)
{
    char n[2][64];
    uint64_t count = (f->pages + f->pages_per_cell - 1) / f->pages_per_cell;
    uint64_t rows = (count + COLUMNS - 1) / COLUMNS;
    open_card(page, " all", "Pages", NULL);
    put(page, "<p class=\"note\">%s, from the start of the file, %s to a square</p>\n",
        inspect_bytes(f->pages << SMF_PAGE_SHIFT, n[0]),
        inspect_bytes(f->pages_per_cell << SMF_PAGE_SHIFT, n[1]));
    put(page, "<svg viewBox=\"0 0 %d %llu\" role=\"img\" aria-label=\"map of the pages\">\n",
        COLUMNS * 10, (unsigned long long)(rows * 10));
    put_cells(page, f);
    put(page, "</svg>\n<ul class=\"legend\">\n");
    for (int kind = 0; kind < KINDS; kind++)
        put(page, "<li><i class=\"%s\"></i>%s</li>\n", kinds[kind].style, kinds[kind].text);
    put(page, "</ul></section>\n");
}

static void put_large(FILE *page, const struct figures *f)
{
    char a[32], b[32], c[32];
    put(page,
        "<tr><td>large</td><td class=\"wide\"></td><td>%s</td><td class=\"wide\">%s</td>"
        "<td class=\"wide\"></td><td>%s</td><td class=\"bar\"><div class=\"stack\">",
        inspect_number(f->large_blocks, a), inspect_number(f->kept_blocks, b),
        inspect_bytes(f->large_bytes, c));
    put_part(page, "large", f->large_bytes, f->large_bytes + f->kept_bytes);
    put_part(page, "cached", f->kept_bytes, f->large_bytes + f->kept_bytes);
    put(page, "</div></td></tr>\n");
}

static void put_classes(FILE *page, const struct figures *f)
{
    char a[32], b[32], c[32], d[32];
    open_card(page, " all", "Size classes",
              "Slots that programs have, that threads have cached, and "
              "that slabs hold; large blocks, cached if a thread freed and keeps them.");
    put(page, "<div class=\"scroll\"><table>\n<tr><th>slot</th><th class=\"wide\">slabs</th>"
              "<th>in use</th><th class=\"wide\">cached</th><th class=\"wide\">free</th>"
              "<th>bytes in use</th><th class=\"text\">occupancy</th></tr>\n");
    for (unsigned k = 0; k < SMF_CLASSES; k++) {
        const struct class_figures *class = &f->classes[k];
        uint64_t all = class->used + class->cached + class->free;
        if (!class->slabs)
            continue;
        put(page,
            "<tr><td>%u</td><td class=\"wide\">%llu</td><td>%s</td><td class=\"wide\">%s</td>"
            "<td class=\"wide\">%s</td><td>%s</td><td class=\"bar\"><div class=\"stack\">",
            smi_classes[k].size, (unsigned long long)class->slabs, inspect_number(class->used, a),
            inspect_number(class->cached, b), inspect_number(class->free, c),
            inspect_bytes(class->used * smi_classes[k].size, d));
        put_part(page, "used", class->used, all);
        put_part(page, "cached", class->cached, all);
        put(page, "</div></td></tr>\n");
    }
    if (f->large_blocks || f->kept_blocks)
        put_large(page, f);
    put(page, "</table></div>\n<ul class=\"legend\"><li><i class=\"used\"></i>in use</li>"
              "<li><i class=\"cached\"></i>cached</li><li><i class=\"hole\"></i>free</li>"
              "<li><i class=\"large\"></i>large blocks</li></ul></section>\n");
}

static const struct figures *sorted_figures; /* for by_tag_bytes */

static int by_tag_bytes(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    uint64_t bx = sorted_figures->tag_bytes[x], by = sorted_figures->tag_bytes[y];
    return bx != by ? (bx < by) - (bx > by) : (x > y) - (x < y);
}

static void put_tags(FILE *page, const struct figures *f)
{
    static uint32_t tags[65536];
    uint32_t count = 0;
    char a[32], b[32];
    for (uint32_t tag = 0; tag < 65536; tag++)
        if (f->tag_blocks[tag])
            tags[count++] = tag;
    sorted_figures = f;
    qsort(tags, count, sizeof(*tags), by_tag_bytes);
    open_card(page, "", "Type tags", "What fills the heap, by the tags that programs gave.");
    put(page, "<div class=\"scroll\"><table>\n<tr><th>tag</th><th>blocks</th><th>bytes</th>"
              "<th class=\"text\">of all that is allocated</th></tr>\n");
    for (uint32_t i = 0; i < count && i < MOST_TAGS; i++) {
        if (tags[i])
            put(page, "<tr><td>%u</td>", tags[i]);
        else
            put(page, "<tr><td>none</td>");
        put(page, "<td>%s</td><td>%s</td><td class=\"bar\"><div class=\"stack\">",
            inspect_number(f->tag_blocks[tags[i]], a), inspect_bytes(f->tag_bytes[tags[i]], b));
        put_part(page, "used", f->tag_bytes[tags[i]], f->stats.allocated);
        put(page, "</div></td></tr>\n");
    }
    put(page, "</table></div>\n");
    if (count > MOST_TAGS)
        put(page, "<p class=\"note\">and %u more tags</p>\n", count - MOST_TAGS);
    put(page, "%s</section>\n", count ? "" : "<p class=\"note\">No blocks.</p>\n");
}

static void put_fragmentation(FILE *page, const struct figures *f)
{
    const shmalloc_stats *s = &f->stats;
    char a[32], b[64];
    /* less if the heap moves */
    uint64_t slots = s->cached > f->kept_bytes ? s->cached - f->kept_bytes : 0;
    uint64_t idle = slots + s->central_free, largest = s->largest_free_run;
    open_card(page, "", "Fragmentation", "Where bytes are that are in nobody's block.");
    put(page, "<dl><dt>slabs</dt><dd>%s, of which %s (%.1f %%) are free or cached slots</dd>\n",
        inspect_bytes(f->slab_bytes, a), inspect_bytes(idle, b), percent(idle, f->slab_bytes));
    put(page, "<dt>kept</dt><dd>%s in ", inspect_bytes(f->kept_bytes, a));
    put(page, "%s that threads freed and keep</dd>\n",
        inspect_count(f->kept_blocks, "large block", "large blocks", b));
    put(page, "<dt>free runs</dt><dd>%s in %s of pages</dd>\n", inspect_bytes(s->free_pages, a),
        inspect_count(f->check.free_runs, "run", "runs", b));
    put(page, "<dt>largest run</dt><dd>%s, %.1f %% of what is free</dd>\n",
        inspect_bytes(largest, a), percent(largest, s->free_pages));
    put(page, "<dt>storage</dt><dd>%s of the free runs still take space in the file system</dd>\n",
        inspect_bytes(s->free_reserved, a));
    put(page, "<dt>metadata</dt><dd>%s, %.1f %% of the heap", inspect_bytes(s->metadata, a),
        percent(s->metadata, f->in->view.state.size));
    for (unsigned i = 1; i < INSPECT_PURPOSES; i++)
        if (f->purposes[i])
            put(page, "; %s %s", inspect_purpose_text(i),
                inspect_bytes(f->purposes[i] << SMF_PAGE_SHIFT, a));
    put(page, "</dd></dl>\n</section>\n");
}

static void put_runs(FILE *page, const struct figures *f)
{
    uint64_t most = 0;
    char a[32], b[32], c[32];
    for (int i = 0; i < RUN_LENGTHS; i++)
        most = f->run_pages[i] > most ? f->run_pages[i] : most;
    open_card(page, "", "Free runs", "By length; a bar shows the bytes in runs of that length.");
    put(page, "<div class=\"scroll\"><table>\n<tr><th>from</th><th>runs</th><th>bytes</th>"
              "<th class=\"text\">compared</th></tr>\n");
    for (int i = 0; i < RUN_LENGTHS; i++) {
        if (!f->runs[i])
            continue;
        put(page, "<tr><td>%s</td><td>%s</td><td>%s</td><td class=\"bar\"><div class=\"stack\">",
            inspect_bytes((uint64_t)1 << (i + SMF_PAGE_SHIFT), a), inspect_number(f->runs[i], b),
            inspect_bytes(f->run_pages[i] << SMF_PAGE_SHIFT, c));
        put_part(page, "part", f->run_pages[i], most);
        put(page, "</div></td></tr>\n");
    }
    put(page, "</table></div>%s</section>\n", most ? "" : "<p class=\"note\">None.</p>");
}

static void put_threads_of(FILE *page, struct smi_view *view, uint32_t process)
{
    char slots[32], bytes[32], blocks[64];
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        uint64_t ref, count = 0, sum = 0;
        const struct smf_thread *t = smi_view_thread(view, i, &ref);
        if (!t || t->owner != process + 1)
            continue;
        for (unsigned k = 0; k < SMF_CLASSES; k++) {
            struct smi_view_stack stack;
            smi_view_read_stack(view, ref, t, k, &stack);
            count += stack.count;
            sum += (uint64_t)stack.count * smi_classes[k].size;
        }
        put(page,
            "<tr><td></td><td class=\"text soft\">thread %llu</td><td class=\"wide\"></td>"
            "<td></td><td class=\"text soft free\">%s cached slots, %s",
            (unsigned long long)t->tid, inspect_number(count, slots), inspect_bytes(sum, bytes));
        struct smi_view_kept kept = smi_view_kept(view, i, t);
        if (kept.blocks)
            put(page, "; keeps %s, %s",
                inspect_count(kept.blocks, "large block", "large blocks", blocks),
                inspect_bytes(kept.bytes, bytes));
        put(page, "</td></tr>\n");
    }
}

static void put_process(FILE *page, struct inspect *in, uint32_t i, const struct smf_process *p)
{
    char name[17], when[32];
    int alive = in->users.alive[i];
    memcpy(name, p->name, 16);
    name[16] = 0;
    put(page, "<tr><td>%u</td><td class=\"text\">", p->pid);
    put_text(page, name);
    put(page,
        "</td><td class=\"wide\">%u</td><td class=\"text %s\">%s</td>"
        "<td class=\"text free\">since %s</td></tr>\n",
        p->uid, alive ? "alive" : "dead", alive ? "alive" : "dead",
        inspect_time(p->attached_at / 1000000000u, when));
    put_threads_of(page, &in->view, i);
}

static void put_processes(FILE *page, struct inspect *in)
{
    int any = 0, table_is_valid = inspect_runtime_is_valid(in);
    open_card(page, " all", "Processes and threads", NULL);
    for (uint32_t i = 0; i < SMF_PROCESSES; i++) {
        const struct smf_process *p = smi_view_record(
            &in->view, in->view.header.areas.processes + i * sizeof(*p), sizeof(*p));
        if (!p || !(in->users.alive[i] || (table_is_valid && p->state == 1)))
            continue;
        if (!any++)
            put(page, "<div class=\"scroll\"><table>\n<tr><th>PID</th><th class=\"text\">name</th>"
                      "<th class=\"wide\">uid</th><th class=\"text\">state</th>"
                      "<th class=\"text\"></th></tr>\n");
        put_process(page, in, i, p);
    }
    put(page, "%s</section>\n",
        any ? "</table></div>" : "<p class=\"note\">No process has the heap open.</p>");
}

struct roots {
    FILE *page;
    uint64_t count;
};

static int put_root(const shmalloc_root *root, void *arg)
{
    struct roots *roots = arg;
    if (++roots->count > MOST_ROOTS)
        return 0;
    put(roots->page, "<tr><td class=\"text free\">");
    put_text(roots->page, root->name);
    put(roots->page, "</td><td>0x%llx</td><td class=\"wide\">0x%llx</td></tr>\n",
        (unsigned long long)root->ref, (unsigned long long)root->type);
    return 0;
}

static void put_roots(FILE *page, struct inspect *in)
{
    struct roots roots = {page, 0};
    open_card(page, " all", "Roots", NULL);
    put(page, "<div class=\"scroll\"><table>\n<tr><th class=\"text\">name</th><th>ref</th>"
              "<th class=\"wide\">type</th></tr>\n");
    int rc = smi_view_each_root(&in->view, put_root, &roots);
    put(page, "</table></div>\n");
    if (roots.count > MOST_ROOTS)
        put(page, "<p class=\"note\">and %llu more</p>\n",
            (unsigned long long)(roots.count - MOST_ROOTS));
    put(page, "%s</section>\n",
        rc < 0        ? "<p class=\"dead\">The list is damaged: this is what can be read of it.</p>"
        : roots.count ? ""
                      : "<p class=\"note\">None.</p>");
}

/* ---- structures ---- */

struct structures {
    FILE *page;
    struct inspect *in;
    uint64_t count;
};

static int put_structure(const struct smi_structure_seen *seen, void *arg)
{
    struct structures *structures = arg;
    char text[256] = "of a type that this tool does not know";
    if ((seen->head->life & SMF_LIFE_STATE) != SMF_LIFE_LIVE || ++structures->count > MOST_ROOTS)
        return 0;
    if (seen->type)
        seen->type->describe(&structures->in->view, seen->ref, text, sizeof(text));
    put(structures->page, "<tr><td>0x%llx</td><td class=\"text\">%s</td><td class=\"text free\">",
        (unsigned long long)seen->ref, seen->type ? seen->type->name : "unknown");
    put_text(structures->page, text);
    put(structures->page, "</td></tr>\n");
    return 0;
}

/* Nothing, in a heap without. */
static void put_structures(FILE *page, struct inspect *in)
{
    struct structures structures = {NULL, in, 0};
    char *text = NULL;
    size_t size = 0;
    structures.page = open_memstream(&text, &size);
    if (!structures.page)
        return;
    smi_structures_each(&in->view, put_structure, &structures);
    fclose(structures.page);
    if (structures.count > 0) {
        open_card(page, " all", "Structures", NULL);
        put(page, "<div class=\"scroll\"><table>\n<tr><th>ref</th><th class=\"text\">type</th>"
                  "<th class=\"text\"></th></tr>\n%s</table></div>\n", text);
        if (structures.count > MOST_ROOTS)
            put(page, "<p class=\"note\">and %llu more</p>\n",
                (unsigned long long)(structures.count - MOST_ROOTS));
        put(page, "</section>\n");
    }
    free(text);
}

static void put_page(FILE *page, const struct figures *f)
{
    struct inspect *in = f->in;
    put(page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
        "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
        "<title>shmalloc heap</title>\n<style>\n%s</style>\n</head>\n<body>\n<main>\n",
        report_style);
    put_identity(page, in);
    put_verdict(page, f);
    if (f->has_stats)
        put_tiles(page, f);
    put(page, "<div class=\"grid\">\n");
    put_violations(page, f);
    if (f->has_stats) {
        put_map(page, f);
        put_classes(page, f);
        put_tags(page, f);
        put(page, "<div>\n");
        put_fragmentation(page, f);
        put(page, "<div style=\"height:16px\"></div>\n");
        put_runs(page, f);
        put(page, "</div>\n");
        put_processes(page, in);
        put_roots(page, in);
        put_structures(page, in);
    }
    put(page,
        "</div>\n<p class=\"note\" style=\"margin-top:20px\">shmalloc-inspect %s</p>\n"
        "</main>\n</body>\n</html>\n",
        shmalloc_version());
}

/* ---- the file ------------------------------------------------------------------------------- */

static enum verdict cannot_write(struct inspect *in, const char *path, int error)
{
    const char *why =
        error == EEXIST ? "that is a shmalloc heap; name another file" : strerror(error);
    if (in->out) {
        struct json_object *object = json_object_new_object();
        inspect_add(object, "code", json_object_new_int(-error));
        inspect_add_text(object, "meaning", strerror(error));
        inspect_add_text(object, "message", why);
        inspect_add(in->out, "error", object);
    } else {
        fprintf(stderr, "shmalloc-inspect: %s: the page cannot be written: %s\n", path, why);
    }
    return CANNOT_TELL;
}

/* Files that must not be overwritten by mistake: the heap, which may be damaged, and all others. */
static int is_a_heap(struct inspect *in, const char *path)
{
    struct smi_file_info heap, out;
    uint64_t magic = 0;
    if (strcmp(path, "-") == 0 || smi_os_stat_path(path, 1, &out) < 0)
        return 0;
    if (smi_os_stat(in->view.fd, &heap) == 0 && heap.device == out.device &&
        heap.inode == out.inode)
        return 1;
    int fd = S_ISREG(out.mode) ? smi_os_open(path, 1) : -1;
    int is_heap = fd >= 0 && smi_os_read(fd, &magic, sizeof(magic), 0) >= 0 && magic == SMF_MAGIC;
    smi_os_close(fd);
    return is_heap;
}

/* 0 or an errno. */
static int write_page(const char *path, const char *text, size_t len)
{
    int to_stdout = strcmp(path, "-") == 0, error = 0;
    FILE *file = to_stdout ? stdout : fopen(path, "we");
    if (!file)
        return errno;
    if (fwrite(text, 1, len, file) != len || fflush(file) != 0)
        error = errno ? errno : EIO;
    if (!to_stdout && fclose(file) != 0 && !error)
        error = errno;
    return error;
}

static enum verdict finish_page(struct inspect *in, const char *path, const char *text, size_t len)
{
    const struct figures *f = &figures;
    char n[32], v[64];
    int error = is_a_heap(in, path) ? EEXIST : write_page(path, text, len);
    if (error)
        return cannot_write(in, path, error);
    if (in->out) {
        inspect_add_text(in->out, "output", path);
        inspect_add_number(in->out, "bytes", len);
        inspect_add_number(in->out, "violations", f->check.violations);
        inspect_add_number(in->out, "dangling", f->check.dangling);
        inspect_add_flag(in->out, "moving", inspect_is_live(in));
    } else if (strcmp(path, "-") != 0) {
        printf("%s: %s; the heap is ", path, inspect_bytes(len, n));
        if (f->check.violations)
            printf("%sdamaged%s: %s\n", inspect_color(in, RED), inspect_color(in, PLAIN),
                   inspect_count(f->check.violations, "violation", "violations", v));
        else if (f->check.dangling)
            printf(
                "%ssound, but %s%s\n", inspect_color(in, YELLOW),
                inspect_count(f->check.dangling, "root names no block", "roots name no block", v),
                inspect_color(in, PLAIN));
        else
            printf("%ssound%s\n", inspect_color(in, GREEN), inspect_color(in, PLAIN));
    }
    if (f->check.dangling && !f->check.violations)
        in->finding = "dangling";
    return f->check.violations || f->check.dangling ? DAMAGED : SOUND;
}

static enum verdict run(struct inspect *in)
{
    const char *path = in->given['o'];
    char *text = NULL;
    size_t len = 0;
    if (!path || !path[0] || (in->out && strcmp(path, "-") == 0)) {
        int rc =
            smi_error(-EINVAL, "say where to write the page: -o PAGE%s", in->out ? ", a file" : "");
        return inspect_report_error(in, rc);
    }
    int rc = inspect_open(in);
    if (rc == 0 || rc == SHMALLOC_ECORRUPT)
        rc = gather(&figures, in);
    FILE *page = rc < 0 ? NULL : open_memstream(&text, &len);
    if (!page) {
        forget(&figures);
        return rc < 0 ? inspect_report_error(in, rc) : cannot_write(in, path, ENOMEM);
    }
    put_page(page, &figures);
    enum verdict verdict =
        fclose(page) == 0 ? finish_page(in, path, text, len) : cannot_write(in, path, ENOMEM);
    free(text);
    forget(&figures);
    return verdict;
}

static const struct option options[] = {{"output", required_argument, NULL, 'o'},
                                        {NULL, 0, NULL, 0}};

const struct subcommand inspect_report = {
    "report", "one HTML page: map, occupancy, fragmentation, processes", help, run, NULL};
const struct command_line inspect_report_line = {"[--json] -o PAGE FILE", "o:", options, 0};
