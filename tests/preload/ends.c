/* SPDX-License-Identifier: MIT */
/*
 * ends.c WAY - a program that allocates and ends in one of many ways; as a library to preload
 * (LATE), one that goes on after everybody's destructors.
 */
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int wrong(const char *what)
{
    fprintf(stderr, "ends: %s\n", what);
    _exit(9);
}

#ifdef LATE

extern int __cxa_atexit(void (*handler)(void *), void *argument, void *library);

static char *of_the_file, *of_before;

/* A handler that is there before the preload library's own: it comes after that. */
static void last(void *argument)
{
    (void)argument;
    if (memcmp(of_the_file, "kept", 5) != 0 || malloc_usable_size(of_the_file) < 100)
        wrong("a block is lost at the end");
    char *grown = realloc(of_the_file, 100000);
    if (!grown || memcmp(grown, "kept", 5) != 0)
        wrong("a block cannot grow at the end");
    char *fresh = malloc(100), *zeros = calloc(10, 10);
    if (!fresh || !zeros || zeros[99] != 0)
        wrong("there is no memory at the end");
    free(of_before);
    free(grown);
    free(fresh);
    free(zeros);
    if (write(STDOUT_FILENO, "late\n", 5) != 5)
        wrong("write");
}

__attribute__((constructor)) static void begin(void)
{
    of_before = malloc(100);
    __cxa_atexit(last, NULL, NULL);
}

__attribute__((destructor)) static void end(void)
{
    of_the_file = malloc(100);
    if (!of_the_file)
        wrong("there is no memory in a destructor");
    strcpy(of_the_file, "kept");
}

#else

static int is_at_work;

static void *work(void *forever)
{
    do {
        free(malloc(100));
        __atomic_store_n(&is_at_work, 1, __ATOMIC_RELEASE);
    } while (forever);
    return NULL;
}

static void *volatile kept;

static void in_a_handler(void)
{
    free(kept);
    kept = malloc(3000);
}

int main(int argc, char **argv)
{
    const char *way = argc == 2 ? argv[1] : "";
    pthread_t thread;
    kept = malloc(70000);
    for (int i = 0; i < 100; i++)
        free(malloc((size_t)i * 50));
    if (strcmp(way, "return") == 0)
        return 4;
    if (strcmp(way, "exit") == 0)
        exit(4);
    if (strcmp(way, "handlers") == 0) {
        atexit(in_a_handler);
        exit(4);
    }
    if (strcmp(way, "_exit") == 0)
        _exit(4);
    if (strcmp(way, "quick_exit") == 0)
        quick_exit(4);
    if (strcmp(way, "joined") == 0) {
        if (pthread_create(&thread, NULL, work, NULL) != 0 || pthread_join(thread, NULL) != 0)
            wrong("no thread");
        return 4;
    }
    if (strcmp(way, "thread") == 0) {
        if (pthread_create(&thread, NULL, work, &is_at_work) != 0)
            wrong("no thread");
        while (!__atomic_load_n(&is_at_work, __ATOMIC_ACQUIRE))
            usleep(1000);
        exit(4);
    }
    if (strcmp(way, "child") == 0) { /* whose end is not the parent's */
        int status;
        pid_t pid = fork();
        if (pid == 0)
            exit(5);
        if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 5)
            wrong("the child");
        free(kept);
        kept = malloc(90000);
        return 4;
    }
    return wrong("which way?");
}

#endif
