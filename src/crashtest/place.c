/* SPDX-License-Identifier: MIT */
/*
 * place.c - naming an address of code: dladdr says which file and symbol, addr2line which function
 * and line.
 *
 * Without addr2line (package binutils), or without debugging information, the symbol is all there
 * is.
 */
#include "crashtest/place.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

/* The next line of what addr2line says, or NULL; "" when it does not know. */
static const char *next_line(FILE *from, char *line, size_t size)
{
    if (!fgets(line, (int)size, from))
        return NULL;
    char *detail = strstr(line, " (discriminator");
    line[detail ? (size_t)(detail - line) : strcspn(line, "\n")] = 0;
    return line[0] == '?' ? "" : line;
}

/* What addr2line says about an address of a file; NULL when it cannot be asked. Its process is for
 * the caller. */
static FILE *ask(const char *file, uint64_t offset, pid_t *pid)
{
    char at[32];
    int ends[2];
    snprintf(at, sizeof(at), "%#llx", (unsigned long long)offset);
    if (pipe(ends) < 0)
        return NULL;
    *pid = fork();
    if (*pid == 0) {
        dup2(ends[1], STDOUT_FILENO);
        close(STDERR_FILENO);
        execlp("addr2line", "addr2line", "-fie", file, at, (char *)NULL);
        _exit(1);
    }
    close(ends[1]);
    FILE *answer = fdopen(ends[0], "r");
    if (!answer)
        close(ends[0]);
    return answer;
}

/* A function that was compiled into others has several places, the innermost first. */
static void print_places(FILE *to, FILE *answer, const char *what, const char *symbol,
                         const char *file)
{
    char name[256], line[512];
    const char *function = next_line(answer, name, sizeof(name));
    const char *place = function ? next_line(answer, line, sizeof(line)) : NULL;
    fprintf(to, "  %s: %s in %s", what, function && function[0] ? function : symbol, file);
    fprintf(to, "%s%s\n", place && place[0] ? ", " : "", place ? place : "");
    while ((function = next_line(answer, name, sizeof(name))) &&
           (place = next_line(answer, line, sizeof(line))))
        fprintf(to, "    which is part of: %s, %s\n", function, place);
}

/* The file that an address of code is from. */
struct code {
    uint64_t address, load; /* load: what its own addresses have been moved by */
    const char *path;       /* NULL: none; "" for the program, as the name that it was called by
                               need not lead to it */
};

static int is_from(struct dl_phdr_info *file, size_t size, void *arg)
{
    struct code *code = arg;
    (void)size;
    for (unsigned i = 0; i < file->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &file->dlpi_phdr[i];
        uint64_t start = file->dlpi_addr + part->p_vaddr;
        if (part->p_type != PT_LOAD || code->address < start ||
            code->address >= start + part->p_memsz)
            continue;
        code->load = file->dlpi_addr;
        code->path = file->dlpi_name;
        return 1;
    }
    return 0;
}

void smi_place_print(FILE *to, const char *what, uint64_t address)
{
    Dl_info info;
    struct code code = {address, 0, NULL};
    char program[64];
    pid_t pid = -1;
    if (address == 0)
        return;
    dl_iterate_phdr(is_from, &code);
    if (!code.path || !dladdr((void *)(uintptr_t)address, &info) || !info.dli_fname) {
        fprintf(to, "  %s: %#llx\n", what, (unsigned long long)address);
        return;
    }
    snprintf(program, sizeof(program), "/proc/%d/exe", (int)getpid());
    const char *base = strrchr(info.dli_fname, '/');
    FILE *answer = ask(code.path[0] ? code.path : program, address - code.load, &pid);
    if (answer) {
        print_places(to, answer, what, info.dli_sname ? info.dli_sname : "code",
                     base ? base + 1 : info.dli_fname);
        fclose(answer);
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
}

/* ---- the program's own code ---- */

struct range {
    uint64_t start, end;
};
static struct range ranges[64];
static unsigned range_count;

static uint64_t base_of(const void *address)
{
    Dl_info info;
    return address && dladdr(address, &info) ? (uintptr_t)info.dli_fbase : 0;
}

/* Is it the file of the C library, the dynamic linker, the heap or the test library? */
static int is_other_library(uint64_t base)
{
    return base == base_of((void *)(uintptr_t)smi_place_is_programs) ||
           base == base_of(dlsym(RTLD_DEFAULT, "fork")) ||
           base == base_of((void *)(uintptr_t)shmalloc_open) ||
           base == base_of(dlsym(RTLD_DEFAULT, "__tls_get_addr"));
}

static int add_ranges(struct dl_phdr_info *file, size_t size, void *arg)
{
    int *others = arg; /* the first file is the program, also when the libraries are linked into
                          it */
    (void)size;
    for (unsigned i = 0; i < file->dlpi_phnum && strncmp(file->dlpi_name, "linux-vdso", 10) != 0;
         i++) {
        const ElfW(Phdr) *part = &file->dlpi_phdr[i];
        uint64_t start = file->dlpi_addr + part->p_vaddr;
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X) ||
            range_count == sizeof(ranges) / sizeof(ranges[0]))
            continue;
        uint64_t base = base_of((void *)(uintptr_t)start);
        if (!*others || (base != 0 && !is_other_library(base)))
            ranges[range_count++] = (struct range){start, start + part->p_memsz};
    }
    *others = 1;
    return 0;
}

/* Jumps to a library, between a call and the function that it means: no place that anybody wants to
 * know. */
static int is_linkage(uint64_t address)
{
#if defined(__x86_64__)
    static const uint8_t landing[] = {0xf3, 0x0f, 0x1e, 0xfa};
    const uint8_t *code = (const void *)(uintptr_t)address;
    if (memcmp(code, landing, sizeof(landing)) == 0)
        code += sizeof(landing);
    code += *code == 0xf2;                                              /* bnd */
    return (code[0] == 0xff && (code[1] == 0x25 || code[1] == 0x35)) || /* jmp, push of a word of
                                                                           the table */
           (code[0] == 0x68 && (code[5] == 0xe9 || code[5] == 0xf2)) || /* push of a number, then
                                                                           ... */
           (code[0] == 0xe9 && (code[-5] == 0x68 || code[-6] == 0x68)); /* ... jmp */
#else
    (void)address;
    return 0;
#endif
}

int smi_place_is_programs(uint64_t address)
{
    int others = 0;
    if (range_count == 0)
        dl_iterate_phdr(add_ranges, &others);
    for (unsigned i = 0; i < range_count; i++)
        if (address >= ranges[i].start && address + 16 < ranges[i].end)
            return !is_linkage(address);
    return 0;
}
