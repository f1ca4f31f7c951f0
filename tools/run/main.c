/* SPDX-License-Identifier: MIT */
/*
 * main.c - shmalloc-run: run a program with its malloc replaced.
 *
 * It sets LD_PRELOAD and what the library reads from the environment, says beforehand what could
 * not work, and becomes the program: its exit status, signals and process id are the program's own.
 */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <shmalloc/shmalloc.h>

#define LIBRARY "libshmalloc-preload.so"

enum { OWN_FAILURE = 125, NOT_EXECUTABLE = 126, NOT_FOUND = 127 };

static const char help[] =
    "Usage: shmalloc-run [OPTION]... PROGRAM [ARGUMENT]...\n"
    "\n"
    "Run PROGRAM with malloc, free and their family served by shmalloc. The program is\n"
    "not changed and need not be compiled anew; programs that it starts are served too.\n"
    "\n"
    "By default each process has a heap in its own memory: nothing is shared, and a\n"
    "forked child goes on with a copy of its parent's, as with any malloc.\n"
    "\n"
    "Options\n"
    "      --heap FILE   put the heap into FILE, so that shmalloc-inspect can look at it\n"
    "                    while the program runs and after it ended. FILE is made anew;\n"
    "                    of files that exist, only the heap of an earlier run goes,\n"
    "                    and only for a program that runs. It is closed in order when\n"
    "                    PROGRAM ends by exit.\n"
    "                    Children of the program may exec; one that goes on without\n"
    "                    and allocates is stopped with a message (status 125), for it\n"
    "                    would share its parent's blocks\n"
    "      --huge-pages  ask the kernel for transparent huge pages: faster for programs\n"
    "                    with much memory, which also take more of it\n"
    "      --stats       print a line about the heap to stderr when a process ends\n"
    "      --strict      end the program with a message when it frees what is no block,\n"
    "                    instead of leaving that alone\n"
    "  -h, --help        this text\n"
    "      --version     print the version and exit\n"
    "\n"
    "Environment, which the options set for PROGRAM and all that it starts\n"
    "  SHMALLOC_HEAP=FILE, SHMALLOC_HUGE_PAGES=1, SHMALLOC_STATS=1, SHMALLOC_STRICT=1\n"
    "  LD_PRELOAD        " LIBRARY " is put in front of what is there\n"
    "\n"
    "Exit status\n"
    "  that of PROGRAM, or 125: shmalloc-run failed, 126: PROGRAM cannot be executed,\n"
    "  127: PROGRAM was not found\n"
    "\n"
    "Examples\n"
    "  shmalloc-run python3 script.py\n"
    "  shmalloc-run --stats sort big.txt >/dev/null      how much was it?\n"
    "  shmalloc-run --heap /dev/shm/py.heap python3 &    and in another terminal:\n"
    "  shmalloc-inspect classes /dev/shm/py.heap         which sizes does it use?\n"
    "\n"
    "Programs that are linked statically have no malloc to replace, and the dynamic\n"
    "linker ignores LD_PRELOAD for setuid programs: both are warned about and run\n"
    "as they are; so are programs built with a sanitizer, which has a malloc of its\n"
    "own. See also shmalloc-run(1).\n";

static int fail(int status, const char *what, const char *why)
{
    fprintf(stderr, "shmalloc-run: %s%s%s\n", what, why ? ": " : "", why ? why : "");
    return status;
}

#define OWN_MALLOC "it runs with its own malloc"

static void warn(const char *program, const char *what, const char *consequence)
{
    fprintf(stderr, "shmalloc-run: warning: %s %s: %s\n", program, what, consequence);
}

/* ---- the library ---- */

/* Beside this program, as in a build folder; where it is installed relative to this program; where
 * it was to be installed. */
static int find_library(char out[PATH_MAX])
{
    static const char *const places[] = {"/../../src/" LIBRARY, "/" RUN_LIBRARY_FOLDER "/" LIBRARY};
    char self[PATH_MAX], path[PATH_MAX + 300];
    ssize_t len = readlink("/proc/self/exe", self, sizeof(self) - 1);
    if (len > 0) {
        self[len] = 0;
        *strrchr(self, '/') = 0;
        for (size_t i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
            snprintf(path, sizeof(path), "%s%s", self, places[i]);
            if (realpath(path, out))
                return 0;
        }
    }
    return realpath(RUN_LIBRARY, out) ? 0 : -1;
}

static int set_preload(const char *library)
{
    const char *before = getenv("LD_PRELOAD");
    char *text;
    if (!before || !*before)
        return setenv("LD_PRELOAD", library, 1);
    if (asprintf(&text, "%s:%s", library, before) < 0)
        return -1;
    int rc = setenv("LD_PRELOAD", text, 1);
    free(text);
    return rc;
}

/* ---- the program ---- */

/* 0, or why execve will not have it. */
static int cannot_execute(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return errno;
    return S_ISREG(st.st_mode) && faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == 0 ? 0 : EACCES;
}

/* Where execvp will find it, or 0 and errno as execvp would leave it. */
static const char *find_program(const char *name, char out[PATH_MAX])
{
    const char *path = getenv("PATH");
    int why = ENOENT, rc;
    if (strchr(name, '/')) {
        errno = cannot_execute(name);
        return errno ? NULL : name;
    }
    for (const char *at = path ? path : "/bin:/usr/bin", *end; at && *name;
         at = *end ? end + 1 : NULL) {
        end = strchrnul(at, ':');
        if (snprintf(out, PATH_MAX, "%.*s%s%s", (int)(end - at), at, end > at ? "/" : "", name) >=
            PATH_MAX)
            continue;
        if ((rc = cannot_execute(out)) == 0)
            return out;
        why = rc == EACCES ? rc : why; /* it goes on, and says so in the end */
    }
    errno = why;
    return NULL;
}

/* The program header of a type, the first from number *i on. */
static int find_segment(int fd, const Elf64_Ehdr *header, uint32_t type, unsigned *i,
                        Elf64_Phdr *out)
{
    for (; *i < header->e_phnum; ++*i)
        if (pread(fd, out, sizeof(*out), (off_t)(header->e_phoff + *i * sizeof(*out))) ==
                (ssize_t)sizeof(*out) &&
            out->p_type == type)
            return 1;
    return 0;
}

/* Text of a file with a zero behind it, to be freed; NULL: not there. */
static char *text_at(int fd, uint64_t offset, uint64_t len)
{
    char *text = len > 0 && len < 1ull << 26 ? calloc(1, len + 1) : NULL;
    if (text && pread(fd, text, len, (off_t)offset) == (ssize_t)len)
        return text;
    free(text);
    return NULL;
}

/* The file that the kernel starts for a program, its dynamic linker, to be freed; NULL: none, it is
 * static. */
static char *dynamic_linker(int fd, const Elf64_Ehdr *header)
{
    Elf64_Phdr segment;
    unsigned i = 0;
    return find_segment(fd, header, PT_INTERP, &i, &segment)
               ? text_at(fd, segment.p_offset, segment.p_filesz)
               : NULL;
}

/* All names that the dynamic linker sees of a program, one behind another; to be freed. */
static char *dynamic_names(int fd, const Elf64_Ehdr *header, uint64_t *len)
{
    Elf64_Phdr segment;
    unsigned i = 0;
    uint64_t address = 0;
    *len = 0;
    if (!find_segment(fd, header, PT_DYNAMIC, &i, &segment))
        return NULL;
    Elf64_Dyn *entry = (Elf64_Dyn *)(void *)text_at(fd, segment.p_offset, segment.p_filesz);
    for (uint64_t n = 0; entry && n < segment.p_filesz / sizeof(*entry); n++)
        if (entry[n].d_tag == DT_STRTAB)
            address = entry[n].d_un.d_ptr;
        else if (entry[n].d_tag == DT_STRSZ)
            *len = entry[n].d_un.d_val;
    free(entry);
    for (i = 0; find_segment(fd, header, PT_LOAD, &i, &segment); i++)
        if (address >= segment.p_vaddr && address - segment.p_vaddr < segment.p_filesz)
            return text_at(fd, address - segment.p_vaddr + segment.p_offset, *len);
    return NULL;
}

/* The sanitizer that a program was built with, of those that have a malloc; NULL: none. Its library
 * begins with a call of the program's, or lies in the program. */
static const char *sanitizer_of(int fd, const Elf64_Ehdr *header)
{
    static const struct {
        const char *begins, *name;
    } known[] = {
        {"__asan_init", "AddressSanitizer"},    {"__hwasan_init", "HWAddressSanitizer"},
        {"__tsan_init", "ThreadSanitizer"},     {"__msan_init", "MemorySanitizer"},
        {"__lsan_init", "LeakSanitizer"},
    };
    const char *found = NULL;
    uint64_t len;
    char *names = dynamic_names(fd, header, &len);
    for (const char *at = names; at && at < names + len && !found; at += strlen(at) + 1)
        for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
            if (strcmp(at, known[i].begins) == 0)
                found = known[i].name;
    free(names);
    return found;
}

/* Is the interpreter one that is there to run other programs: env, or a shell? */
static int starts_another(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t len = strlen(name);
    return strcmp(name, "env") == 0 || (len >= 2 && strcmp(name + len - 2, "sh") == 0);
}

enum { SERVED, HAS_OWN_MALLOC, CANNOT_RUN }; /* what will become of a program */

static int judge(const char *path, const char *heap, int is_interpreter);

/* Of a script: its interpreter is the program. */
static int judge_script(const char *path, char *line, const char *heap)
{
    char *name = line + strspn(line, " \t");
    name[strcspn(name, " \t\n")] = 0;
    if (heap && starts_another(name))
        warn(path, "is a script",
             "the heap file is its interpreter's, which may go on to run another program; "
             "name that program instead");
    return *name ? judge(name, heap, 1) : SERVED;
}

static int judge_binary(const char *path, int fd, const Elf64_Ehdr *header, const struct stat *st)
{
    const char *why = NULL, *sanitizer;
    char text[100], *linker = NULL;
    if (header->e_ident[EI_CLASS] != ELFCLASS64)
        why = "is not a 64-bit program";
    else if (!(linker = dynamic_linker(fd, header)))
        why = "is linked statically";
    else if (((st->st_mode & S_ISUID) && st->st_uid != geteuid()) ||
             ((st->st_mode & S_ISGID) && st->st_gid != getegid()))
        why = "is set-user-ID or set-group-ID";
    else if (geteuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0)
        why = "has file capabilities";
    int rc = linker ? cannot_execute(linker) : 0;
    free(linker);
    errno = rc;
    if (rc != 0)
        return CANNOT_RUN;
    if (why) {
        warn(path, why, OWN_MALLOC);
        return HAS_OWN_MALLOC;
    }
    if ((sanitizer = sanitizer_of(fd, header))) {
        snprintf(text, sizeof(text), "is built with %s", sanitizer);
        warn(path, text,
             "that has a malloc of its own; beside this one it may refuse to start, crash, miss "
             "errors, or report "
             "some that are none. Run the program without shmalloc-run, or build it without the "
             "sanitizer");
    }
    return SERVED;
}

/* Say what will keep the library out of the program in `path`, or out of the interpreter that its
 * first line names. Of what is not known here, such as a script without a first line, the kernel or
 * a shell makes something. */
static int judge(const char *path, const char *heap, int is_interpreter)
{
    union {
        Elf64_Ehdr header;
        char text[256];
    } begin = {.text = ""};
    struct stat st;
    int result = SERVED;
    if ((errno = cannot_execute(path)))
        return CANNOT_RUN;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0 || pread(fd, &begin, sizeof(begin) - 1, 0) < 2)
        ; /* it may be executed all the same */
    else if (memcmp(begin.text, "#!", 2) == 0 && !is_interpreter)
        result = judge_script(path, begin.text + 2, heap);
    else if (memcmp(begin.text, ELFMAG, SELFMAG) == 0)
        result = judge_binary(path, fd, &begin.header, &st);
    int why = errno;
    if (fd >= 0)
        close(fd);
    errno = why;
    return result;
}

/* ---- options ---- */

/* Did an earlier run make the file? 0 yes, whatever state it is in; SHMALLOC_ELAYOUT: an
 * application; or another code. */
static int probe_earlier_run(const char *path)
{
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_heap *heap;
    options.flags = SHMALLOC_READ_ONLY | SHMALLOC_ACCEPT_UNCLEAN;
    options.layout = "shmalloc-run";
    int rc = shmalloc_open(path, &options, &heap);
    if (rc == 0)
        shmalloc_close(heap);
    return rc;
}

/* A heap file of an earlier run goes; anything else of that name stays. */
static int prepare_heap(const char *path)
{
    char *absolute = NULL, *folder = NULL;
    int rc = probe_earlier_run(path);
    if (rc == SHMALLOC_ELAYOUT)
        return fail(OWN_FAILURE, path,
                    "holds the heap of a program that has it for its data, not of an earlier run; "
                    "give another name");
    if (rc == 0)
        rc = shmalloc_destroy(path);
    if (rc < 0 && rc != -ENOENT)
        return fail(OWN_FAILURE, "cannot replace the heap file", shmalloc_errmsg());
    /* The program may change its folder before its first allocation. */
    if (path[0] != '/' &&
        (!(folder = getcwd(NULL, 0)) || asprintf(&absolute, "%s/%s", folder, path) < 0))
        return fail(OWN_FAILURE, "cannot name the heap file", strerror(errno));
    rc = setenv("SHMALLOC_HEAP", absolute ? absolute : path, 1);
    free(folder);
    free(absolute);
    return rc < 0 ? fail(OWN_FAILURE, "setenv", strerror(errno)) : 0;
}

enum { OPTION_HEAP = 256, OPTION_HUGE, OPTION_STATS, OPTION_STRICT, OPTION_VERSION };

static const struct option options[] = {
    {"heap", required_argument, NULL, OPTION_HEAP},
    {"huge-pages", no_argument, NULL, OPTION_HUGE},
    {"stats", no_argument, NULL, OPTION_STATS},
    {"strict", no_argument, NULL, OPTION_STRICT},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

/* -1: go on with the program at optind; else the exit status. */
static int read_options(int argc, char **argv, const char **heap)
{
    int option, rc = 0, huge = 0;
    while (rc == 0 && (option = getopt_long(argc, argv, "+h", options, NULL)) != -1)
        switch (option) {
        case OPTION_HEAP: *heap = optarg; break;
        case OPTION_HUGE: huge = 1; break;
        case OPTION_STATS: rc = setenv("SHMALLOC_STATS", "1", 1); break;
        case OPTION_STRICT: rc = setenv("SHMALLOC_STRICT", "1", 1); break;
        case 'h': return fputs(help, stdout) < 0 || fflush(stdout) < 0 ? OWN_FAILURE : 0;
        case OPTION_VERSION:
            return printf("shmalloc-run %s\n", shmalloc_version()) < 0 ? OWN_FAILURE : 0;
        default: return fail(OWN_FAILURE, "shmalloc-run --help explains the options", NULL);
        }
    if (rc < 0)
        return fail(OWN_FAILURE, "setenv", strerror(errno));
    if (optind == argc)
        return fail(OWN_FAILURE,
                    "which program? Usage: shmalloc-run [OPTION]... PROGRAM [ARGUMENT]...", NULL);
    if (*heap && huge)
        return fail(OWN_FAILURE, "--huge-pages is for heaps that are not in a file", NULL);
    if (huge && setenv("SHMALLOC_HUGE_PAGES", "1", 1) < 0)
        return fail(OWN_FAILURE, "setenv", strerror(errno));
    return -1;
}

/* What is wrong is said before anything is done: the heap of an earlier run goes only for that of a
 * program that runs. */
int main(int argc, char **argv)
{
    char library[PATH_MAX], place[PATH_MAX];
    const char *heap = NULL;
    int rc = read_options(argc, argv, &heap);
    if (rc >= 0)
        return rc;
    char **program = argv + optind;
    if (find_library(library) < 0)
        return fail(OWN_FAILURE, LIBRARY " is neither beside this program nor at " RUN_LIBRARY,
                    NULL);
    if (strpbrk(library, " :"))
        return fail(OWN_FAILURE, library, "LD_PRELOAD takes no path with a blank or a colon");
    const char *found = find_program(program[0], place);
    int what = found ? judge(found, heap ? heap : getenv("SHMALLOC_HEAP"), 0) : CANNOT_RUN;
    if (what == CANNOT_RUN)
        return fail(errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE, program[0], strerror(errno));
    if (heap && what == HAS_OWN_MALLOC)
        fail(0, heap, "is left as it is, for the program would not use it");
    else if (heap && (rc = prepare_heap(heap)) != 0)
        return rc;
    if (set_preload(library) < 0)
        return fail(OWN_FAILURE, "setenv", strerror(errno));
    execvp(program[0], program);
    return fail(errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE, program[0], strerror(errno));
}
