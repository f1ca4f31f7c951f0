/* SPDX-License-Identifier: MIT */
/*
 * main.c - shmalloc-run: run a program with its malloc replaced.
 *
 * It sets LD_PRELOAD and what the library reads from the environment, says beforehand what could not work, and
 * becomes the program: its exit status, signals and process id are the program's own.
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
    "                    of files that exist, only the heap of an earlier run goes.\n"
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
    "as they are. See also shmalloc-run(1).\n";

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

/* Beside this program, as in a build folder; where it is installed relative to this program; where it was to be
 * installed. */
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

/* Where execvp will find it; NULL when it will not. */
static const char *find_program(const char *name, char out[PATH_MAX])
{
    if (strchr(name, '/'))
        return access(name, F_OK) == 0 ? name : NULL;
    const char *path = getenv("PATH");
    for (const char *at = path ? path : "/bin:/usr/bin", *end; at; at = *end ? end + 1 : NULL) {
        struct stat st;
        end = strchrnul(at, ':');
        snprintf(out, PATH_MAX, "%.*s%s%s", (int)(end - at), at, end > at ? "/" : "", name);
        if (stat(out, &st) == 0 && S_ISREG(st.st_mode) && access(out, X_OK) == 0)
            return out;
    }
    return NULL;
}

/* Has a program header of type PT_INTERP: the dynamic linker will run. */
static int is_dynamic(int fd, const Elf64_Ehdr *header)
{
    Elf64_Phdr segment;
    for (unsigned i = 0; i < header->e_phnum; i++)
        if (pread(fd, &segment, sizeof(segment), (off_t)(header->e_phoff + i * sizeof(segment))) ==
                (ssize_t)sizeof(segment) &&
            segment.p_type == PT_INTERP)
            return 1;
    return 0;
}

/* Is the interpreter one that is there to run other programs: env, or a shell? */
static int starts_another(const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    size_t len = strlen(name);
    return strcmp(name, "env") == 0 || (len >= 2 && strcmp(name + len - 2, "sh") == 0);
}

/* Say what will keep the library out of the program in `path`, or out of the interpreter that its first line names. */
static void warn_about(const char *path, int is_interpreter)
{
    union {
        Elf64_Ehdr header;
        char text[256];
    } begin = {.text = ""};
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0 || pread(fd, &begin, sizeof(begin) - 1, 0) < 2) {
        if (fd >= 0)
            close(fd);
        return; /* it will be seen at exec */
    }
    if (memcmp(begin.text, "#!", 2) == 0 && !is_interpreter) {
        char *name = begin.text + 2 + strspn(begin.text + 2, " \t");
        name[strcspn(name, " \t\n")] = 0;
        if (getenv("SHMALLOC_HEAP") && starts_another(name))
            warn(path, "is a script", "the heap file is its interpreter's, which may go on to run another program; "
                                      "name that program instead");
        warn_about(name, 1);
    } else if (memcmp(begin.text, ELFMAG, SELFMAG) == 0) {
        if (begin.header.e_ident[EI_CLASS] != ELFCLASS64)
            warn(path, "is not a 64-bit program", OWN_MALLOC);
        else if (!is_dynamic(fd, &begin.header))
            warn(path, "is linked statically", OWN_MALLOC);
        else if (((st.st_mode & S_ISUID) && st.st_uid != geteuid()) || ((st.st_mode & S_ISGID) && st.st_gid != getegid()))
            warn(path, "is set-user-ID or set-group-ID", OWN_MALLOC);
        else if (geteuid() != 0 && fgetxattr(fd, "security.capability", NULL, 0) > 0)
            warn(path, "has file capabilities", OWN_MALLOC);
    }
    close(fd);
}

/* ---- options ---- */

/* Did an earlier run make the file? 0 yes, whatever state it is in; SHMALLOC_ELAYOUT: an application; or another code. */
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
        return fail(OWN_FAILURE, path, "holds the heap of a program that has it for its data, not of an earlier run; "
                                       "give another name");
    if (rc == 0)
        rc = shmalloc_destroy(path);
    if (rc < 0 && rc != -ENOENT)
        return fail(OWN_FAILURE, "cannot replace the heap file", shmalloc_errmsg());
    /* The program may change its folder before its first allocation. */
    if (path[0] != '/' && (!(folder = getcwd(NULL, 0)) || asprintf(&absolute, "%s/%s", folder, path) < 0))
        return fail(OWN_FAILURE, "cannot name the heap file", strerror(errno));
    rc = setenv("SHMALLOC_HEAP", absolute ? absolute : path, 1);
    free(folder);
    free(absolute);
    return rc < 0 ? fail(OWN_FAILURE, "setenv", strerror(errno)) : 0;
}

enum { OPTION_HEAP = 256, OPTION_HUGE, OPTION_STATS, OPTION_STRICT, OPTION_VERSION };

static const struct option options[] = {
    {"heap", required_argument, NULL, OPTION_HEAP},   {"huge-pages", no_argument, NULL, OPTION_HUGE},
    {"stats", no_argument, NULL, OPTION_STATS},       {"strict", no_argument, NULL, OPTION_STRICT},
    {"help", no_argument, NULL, 'h'},                 {"version", no_argument, NULL, OPTION_VERSION},
    {NULL, 0, NULL, 0},
};

/* -1: go on with the program at optind; else the exit status. */
static int read_options(int argc, char **argv)
{
    int option, rc = 0, huge = 0;
    const char *heap = NULL;
    while (rc == 0 && (option = getopt_long(argc, argv, "+h", options, NULL)) != -1)
        switch (option) {
        case OPTION_HEAP: heap = optarg; break;
        case OPTION_HUGE: huge = 1; break;
        case OPTION_STATS: rc = setenv("SHMALLOC_STATS", "1", 1); break;
        case OPTION_STRICT: rc = setenv("SHMALLOC_STRICT", "1", 1); break;
        case 'h': return fputs(help, stdout) < 0 || fflush(stdout) < 0 ? OWN_FAILURE : 0;
        case OPTION_VERSION: return printf("shmalloc-run %s\n", shmalloc_version()) < 0 ? OWN_FAILURE : 0;
        default: return fail(OWN_FAILURE, "shmalloc-run --help explains the options", NULL);
        }
    if (rc < 0)
        return fail(OWN_FAILURE, "setenv", strerror(errno));
    if (optind == argc)
        return fail(OWN_FAILURE, "which program? Usage: shmalloc-run [OPTION]... PROGRAM [ARGUMENT]...", NULL);
    if (heap && huge)
        return fail(OWN_FAILURE, "--huge-pages is for heaps that are not in a file", NULL);
    if (huge && setenv("SHMALLOC_HUGE_PAGES", "1", 1) < 0)
        return fail(OWN_FAILURE, "setenv", strerror(errno));
    rc = heap ? prepare_heap(heap) : 0;
    return rc == 0 ? -1 : rc;
}

int main(int argc, char **argv)
{
    char library[PATH_MAX], place[PATH_MAX];
    int rc = read_options(argc, argv);
    if (rc >= 0)
        return rc;
    char **program = argv + optind;
    if (find_library(library) < 0)
        return fail(OWN_FAILURE, LIBRARY " is neither beside this program nor at " RUN_LIBRARY, NULL);
    if (strpbrk(library, " :"))
        return fail(OWN_FAILURE, library, "LD_PRELOAD takes no path with a blank or a colon");
    const char *found = find_program(program[0], place);
    if (found)
        warn_about(found, 0);
    if (set_preload(library) < 0)
        return fail(OWN_FAILURE, "setenv", strerror(errno));
    execvp(program[0], program);
    return fail(errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE, program[0], strerror(errno));
}
