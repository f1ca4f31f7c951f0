/* SPDX-License-Identifier: MIT */
/*
 * bench.c - options, records, files and CPU placement of the benchmark programs.
 *
 * No state but the fields of the record that is being printed. Nothing here runs while a clock
 * runs.
 */
#include "bench.h"

#include <dlfcn.h>
#include <errno.h>
#include <getopt.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

void bench_die(const char *format, ...)
{
    fprintf(stderr, "%s: ", program_invocation_short_name);
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t parse_number(const char *name, const char *text, uint64_t low, uint64_t high)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || end == text || *end || value < low || value > high)
        bench_die("--%s %s: expected a number from %llu to %llu", name, text,
                  (unsigned long long)low, (unsigned long long)high);
    return value;
}

/* "64" or "16-512". */
static void parse_size(const char *text, struct bench_options *out)
{
    char low[32];
    const char *dash = strchr(text, '-');
    size_t len = dash ? (size_t)(dash - text) : strlen(text);
    if (len >= sizeof(low))
        bench_die("--size %s: expected BYTES or LOWEST-HIGHEST", text);
    memcpy(low, text, len);
    low[len] = '\0';
    out->size_min = parse_number("size", low, 1, 1u << 30);
    out->size_max = dash ? parse_number("size", dash + 1, out->size_min, 1u << 30) : out->size_min;
}

void bench_parse(int argc, char **argv, struct bench_options *out)
{
    static const struct option known[] = {
        {"workload", required_argument, NULL, 'w'},   {"allocator", required_argument, NULL, 'a'},
        {"heap", required_argument, NULL, 'h'},       {"size", required_argument, NULL, 'z'},
        {"blocks", required_argument, NULL, 'b'},     {"threads", required_argument, NULL, 't'},
        {"processes", required_argument, NULL, 'p'},  {"samples", required_argument, NULL, 's'},
        {"sample-ms", required_argument, NULL, 'm'},  {"repetition", required_argument, NULL, 'r'},
        {"seed", required_argument, NULL, 'e'},       {"trace", required_argument, NULL, 'c'},
        {"heap-size", required_argument, NULL, 'g'},  {"objects", required_argument, NULL, 'o'},
        {"arenas", required_argument, NULL, 'n'},     {"attached", required_argument, NULL, 'd'},
        {NULL, 0, NULL, 0},
    };
    *out = (struct bench_options){.workload = "", .allocator = "", .size_min = 64, .size_max = 64,
                                  .blocks = 10000, .threads = 1, .processes = 1, .samples = 5,
                                  .sample_ms = 4, .seed = 1};
    int index, option;
    while ((option = getopt_long(argc, argv, "", known, &index)) != -1) {
        const char *name = option == '?' ? "" : known[index].name;
        switch (option) {
        case 'w': out->workload = optarg; break;
        case 'a': out->allocator = optarg; break;
        case 'h': out->heap = optarg; break;
        case 'z': parse_size(optarg, out); break;
        case 'b': out->blocks = parse_number(name, optarg, 1, 100000000); break;
        case 't': out->threads = (unsigned)parse_number(name, optarg, 1, 64); break;
        case 'p': out->processes = (unsigned)parse_number(name, optarg, 1, 64); break;
        case 's': out->samples = (unsigned)parse_number(name, optarg, 1, 100000); break;
        case 'm': out->sample_ms = (unsigned)parse_number(name, optarg, 1, 60000); break;
        case 'r': out->repetition = (unsigned)parse_number(name, optarg, 0, 1000000); break;
        case 'c': out->trace = optarg; break;
        case 'g': out->heap_size = parse_number(name, optarg, 0, 1ull << 44); break;
        case 'o': out->objects = parse_number(name, optarg, 0, 100000000); break;
        case 'n': out->arenas = (unsigned)parse_number(name, optarg, 0, 64); break;
        case 'd': out->attached = (unsigned)parse_number(name, optarg, 0, 100); break;
        case 'e': out->seed = parse_number(name, optarg, 0, UINT64_MAX); break;
        default: exit(2);
        }
    }
    if (optind != argc || (out->threads > 1 && out->processes > 1))
        bench_die("superfluous arguments, or both --threads and --processes");
}

void bench_begin(const struct bench_options *options, const char *library, const char *unit)
{
    printf("{\"workload\": \"%s\", \"allocator\": \"%s\", \"library\": \"%s\", \"unit\": \"%s\"",
           options->workload, options->allocator, library, unit);
    bench_number("size_min", (double)options->size_min);
    bench_number("size_max", (double)options->size_max);
    bench_number("blocks", (double)options->blocks);
    bench_number("heap_size", (double)options->heap_size);
    bench_number("objects", (double)options->objects);
    bench_number("arenas", options->arenas);
    bench_number("attached", options->attached);
    bench_number("threads", options->threads);
    bench_number("processes", options->processes);
    bench_number("repetition", options->repetition);
    bench_number("seed", (double)options->seed);
}

void bench_number(const char *name, double value)
{
    printf(", \"%s\": %.15g", name, value);
}

void bench_end(void)
{
    printf("}\n");
    if (fflush(stdout))
        bench_die("cannot write: %s", strerror(errno));
}

const char *bench_library_of(const char *symbol)
{
    Dl_info info;
    void *address = dlsym(RTLD_DEFAULT, symbol);
    if (!address || !dladdr(address, &info) || !info.dli_fname)
        bench_die("no shared object defines %s", symbol);
    return info.dli_fname;
}

void *bench_pages(size_t len)
{
    void *pages =
        mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (pages == MAP_FAILED)
        bench_die("mmap of %zu bytes: %s", len, strerror(errno));
    return pages;
}

uint64_t bench_file_size(const struct bench_options *options)
{
    return options->heap_size ? options->heap_size : 8ull << 30;
}

uint64_t bench_stored_bytes(const char *path)
{
    struct stat status;
    if (stat(path, &status))
        bench_die("cannot stat %s: %s", path, strerror(errno));
    return (uint64_t)status.st_blocks * 512;
}

int bench_wait(pid_t child)
{
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            bench_die("waitpid: %s", strerror(errno));
    return status;
}

void bench_pin(unsigned worker)
{
    cpu_set_t allowed, one;
    if (sched_getaffinity(0, sizeof(allowed), &allowed))
        bench_die("sched_getaffinity: %s", strerror(errno));
    int left = (int)(worker % (unsigned)CPU_COUNT(&allowed));
    int cpu = CPU_SETSIZE - 1;
    while (!CPU_ISSET(cpu, &allowed) || left-- > 0)
        cpu--;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof(one), &one))
        bench_die("sched_setaffinity to CPU %d: %s", cpu, strerror(errno));
}
