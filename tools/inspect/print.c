/* SPDX-License-Identifier: MIT */
/* print.c - text for people, JSON for programs, progress for the impatient. */
#include "inspect.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "os.h"

const char *inspect_color(const struct inspect *in, enum color color)
{
    static const char *const codes[] = {
        [PLAIN] = "\033[0m", [BOLD] = "\033[1m", [DIM] = "\033[2m",
        [RED] = "\033[31m",  [GREEN] = "\033[32m", [YELLOW] = "\033[33m",
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

enum verdict inspect_finish(struct inspect *in, enum verdict verdict)
{
    static const char *const words[] = {
        [SOUND] = "sound", [DAMAGED] = "damaged", [CANNOT_TELL] = "unknown"};
    inspect_progress_end();
    if (!in->out)
        return verdict;
    inspect_add_text(in->out, "status", words[verdict]);
    puts(json_object_to_json_string_ext(in->out, JSON_C_TO_STRING_PRETTY | JSON_C_TO_STRING_SPACED |
                                                     JSON_C_TO_STRING_NOSLASHESCAPE));
    json_object_put(in->out);
    in->out = NULL;
    return verdict;
}

/* ---- progress ------------------------------------------------------------------------------- */

static int progress_shown;

void inspect_progress(const struct smi_view *view)
{
    static uint64_t started, last;
    uint64_t now = smi_os_tick();
    if (!started)
        started = now;
    if (!isatty(STDERR_FILENO) || now - started < 500000000ull || now - last < 100000000ull)
        return;
    last = now;
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
