/* SPDX-License-Identifier: MIT */
/* print.c - text for people, JSON for programs, progress for the impatient. */
#include "inspect.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "platform/os.h"

const char *inspect_color(const struct inspect *in, enum color color)
{
    static const char *const codes[] = {
        [PLAIN] = "\033[0m", [BOLD] = "\033[1m", [DIM] = "\033[2m",
        [RED] = "\033[31m",  [GREEN] = "\033[32m", [YELLOW] = "\033[33m",
        [BLUE] = "\033[34m", [CYAN] = "\033[36m",
    };
    return in->color ? codes[color] : "";
}

const char *inspect_bytes(uint64_t bytes, char buf[32])
{
    static const char units[] = "KMGTPE";
    double value = (double)bytes;
    int unit = -1;
    while (value >= 1024 && unit < 5) {
        value /= 1024;
        unit++;
    }
    if (unit < 0)
        snprintf(buf, 32, "%d bytes", (int)bytes);
    else
        snprintf(buf, 32, "%.1f %ciB", value, units[unit]);
    return buf;
}

const char *inspect_number(uint64_t n, char buf[32])
{
    char digits[32];
    int len = snprintf(digits, sizeof(digits), "%llu", (unsigned long long)n), at = 0;
    for (int i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0)
            buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = 0;
    return buf;
}

const char *inspect_count(uint64_t n, const char *one, const char *many, char buf[64])
{
    char number[32];
    snprintf(buf, 64, "%s %s", inspect_number(n, number), n == 1 ? one : many);
    return buf;
}

const char *inspect_time(uint64_t seconds, char buf[32])
{
    time_t when = (time_t)seconds;
    struct tm tm;
    if (seconds > 253402300799ull || !gmtime_r(&when, &tm))
        snprintf(buf, 32, "an impossible time");
    else
        strftime(buf, 32, "%Y-%m-%d %H:%M:%S UTC", &tm);
    return buf;
}

int inspect_width(const struct inspect *in)
{
    struct winsize size = {0};
    const char *said = in->given['w'] ? in->given['w'] : getenv("COLUMNS");
    int width = said ? atoi(said) : 0;
    if (width <= 0 && ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0)
        width = size.ws_col;
    if (width <= 0)
        width = 80;
    return width < 40 ? 40 : width > 200 ? 200 : width;
}

/* Digits and at most one suffix: 1, or 0 when that is not what the text is. */
static int read_number(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, *end) : NULL;
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    *out = value << shift;
    return text[0] >= '0' && text[0] <= '9' && errno == 0 && *out >> shift == value &&
           (unit ? end[1] : *end) == 0;
}

int inspect_option_number(const struct inspect *in, int letter, const char *name, uint64_t least,
                          uint64_t most, uint64_t *out)
{
    const char *text = in->given[letter];
    uint64_t value;
    if (!text)
        return 0;
    if (!read_number(text, &value) || value < least || value > most) {
        fprintf(stderr, "shmalloc-inspect: --%s takes a number from %llu", name,
                (unsigned long long)least);
        if (most < UINT64_MAX)
            fprintf(stderr, " to %llu", (unsigned long long)most);
        fprintf(stderr, ", not \"%s\"\n", text);
        return -1;
    }
    *out = value;
    return 0;
}

/* Bytes of the UTF-8 character at `text`, its code in `*code`; 0 when there is none. */
static int utf8_at(const char *text, uint32_t *code)
{
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) {
        *code = s[0];
        return 1;
    }
    int len = s[0] >= 0xc2 && s[0] < 0xe0   ? 2
              : s[0] >= 0xe0 && s[0] < 0xf0 ? 3
              : s[0] >= 0xf0 && s[0] < 0xf5 ? 4
                                            : 0;
    *code = len ? s[0] & (0x7fu >> len) : 0;
    for (int i = 1; i < len; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        *code = *code << 6 | (s[i] & 0x3f);
    }
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    if (*code < least[len] || (*code >= 0xd800 && *code < 0xe000) || *code > 0x10ffff)
        return 0;
    return len;
}

static const struct {
    const char *key, *text;
} purposes[INSPECT_PURPOSES] = {
    [SMF_PURPOSE_SLOT] = {"thread-slot", "thread slots"},
    [SMF_PURPOSE_ARRAY] = {"stack", "longer stacks"},
    [SMF_PURPOSE_LIMBO] = {"limbo", "limbo"},
    [SMF_PURPOSE_LOG] = {"log", "logs"},
    [INSPECT_PURPOSES - 1] = {"other", "other spans"},
};

unsigned inspect_purpose(const struct smf_page *page)
{
    return page->tag >= 1 && page->tag < INSPECT_PURPOSES - 1 ? page->tag : INSPECT_PURPOSES - 1;
}

const char *inspect_purpose_text(unsigned purpose)
{
    return purposes[purpose].text;
}

const char *inspect_purpose_key(unsigned purpose)
{
    return purposes[purpose].key;
}

/* Characters that change what a terminal shows of the others: controls and changes of direction. */
static int is_printable(uint32_t code)
{
    return code >= 0x20 && !(code >= 0x7f && code < 0xa0) && !(code >= 0x200b && code < 0x2010) &&
           !(code >= 0x2028 && code < 0x202f) && !(code >= 0x2060 && code < 0x2070) &&
           code != 0xfeff;
}

void inspect_print_text(const char *text)
{
    while (*text) {
        uint32_t code;
        int len = utf8_at(text, &code);
        if (len > 0 && is_printable(code)) {
            fwrite(text, 1, (size_t)len, stdout);
            text += len;
            continue;
        }
        for (int i = 0; i < (len ? len : 1); i++)
            printf("\\x%02x", (uint8_t)*text++);
    }
}

void inspect_print_wrapped(const char *text, int indent, int width)
{
    int column = indent;
    while (*text) {
        int word = (int)strcspn(text, " ");
        if (column > indent && column + 1 + word > width)
            column = indent, printf("\n%*s", indent, "");
        else if (column > indent)
            column++, printf(" ");
        printf("%.*s", word, text);
        column += word;
        text += word + (text[word] == ' ');
    }
    printf("\n");
}

void inspect_print_finding(const struct inspect *in, enum color color, const char *invariant,
                           uint64_t ref, const char *text)
{
    inspect_progress_end();
    printf("%s%-3s%s 0x%012llx  ", inspect_color(in, color), invariant, inspect_color(in, PLAIN),
           (unsigned long long)ref);
    inspect_print_text(text);
    printf("\n");
}

/* ---- JSON ----------------------------------------------------------------------------------- */

struct json_object *inspect_json_text(const char *text)
{
    size_t room = 3 * strlen(text) + 1, at = 0;
    char *valid = malloc(room);
    if (!valid)
        return NULL;
    while (*text) {
        uint32_t code;
        int len = utf8_at(text, &code);
        /* what is no UTF-8 becomes U+FFFD: JSON has no other way to say it */
        memcpy(valid + at, len ? text : "\xef\xbf\xbd", len ? (size_t)len : 3);
        at += len ? (size_t)len : 3;
        text += len ? len : 1;
    }
    struct json_object *string = json_object_new_string_len(valid, (int)at);
    free(valid);
    return string;
}

void inspect_add(struct json_object *object, const char *key, struct json_object *value)
{
    json_object_object_add(object, key, value);
}

void inspect_add_number(struct json_object *object, const char *key, uint64_t value)
{
    inspect_add(object, key, json_object_new_uint64(value));
}

void inspect_add_text(struct json_object *object, const char *key, const char *value)
{
    inspect_add(object, key, inspect_json_text(value));
}

void inspect_add_flag(struct json_object *object, const char *key, int value)
{
    inspect_add(object, key, json_object_new_boolean(value));
}

void inspect_add_finding(struct json_object *list, const char *invariant, uint64_t ref,
                         const char *text)
{
    struct json_object *finding = json_object_new_object();
    inspect_add_text(finding, "invariant", invariant);
    inspect_add_number(finding, "ref", ref);
    inspect_add_text(finding, "text", text);
    json_object_array_add(list, finding);
}

enum verdict inspect_finish(struct inspect *in, enum verdict verdict)
{
    static const char *const words[] = {
        [SOUND] = "sound", [DAMAGED] = "damaged", [CANNOT_TELL] = "unknown"};
    const char *word = verdict == DAMAGED && in->finding ? in->finding : words[verdict];
    inspect_progress_end();
    if (!in->out)
        return verdict;
    inspect_add_text(in->out, "status", word);
    puts(json_object_to_json_string_ext(in->out, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                     JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(in->out);
    in->out = NULL;
    return verdict;
}

/* ---- progress ------------------------------------------------------------------------------- */

static int progress_shown;

/* Half a second has passed since the start, and a tenth since the last line. */
static int is_progress_due(void)
{
    static uint64_t started, last;
    uint64_t now = smi_os_tick();
    if (!started)
        started = now;
    if (!isatty(STDERR_FILENO) || now - started < 500000000ull || now - last < 100000000ull)
        return 0;
    last = now;
    return 1;
}

void inspect_progress_count(const char *doing, uint64_t done, uint64_t all, const char *what)
{
    char a[32], b[32];
    if (!is_progress_due())
        return;
    fprintf(stderr, "\r%s: %s of %s %s\033[K", doing, inspect_number(done, a),
            inspect_number(all, b), what);
    progress_shown = 1;
}

void inspect_progress(const struct smi_view *view)
{
    if (!is_progress_due())
        return;
    char read[32], all[32];
    fprintf(stderr, "\rreading: %s of %s of metadata ", inspect_bytes(view->bytes_read, read),
            inspect_bytes(smi_view_metadata_bytes(view), all));
    progress_shown = 1;
}

void inspect_progress_end(void)
{
    if (progress_shown)
        fputs("\r\033[K", stderr);
    progress_shown = 0;
}
