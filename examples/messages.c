/* SPDX-License-Identifier: MIT */
/*
 * messages.c - two processes hand over messages of any size without copying them.
 *
 *     messages HEAP TEXT...
 *
 * The child makes a message of each TEXT and sends its ref, 8 bytes, through a pipe; the parent
 * reads the text where it lies and frees it: any process may, not only the one that allocated it.
 * The child uses the handle that it inherited.
 */
#include <shmalloc/shmalloc.h>

#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int fail(const char *who)
{
    fprintf(stderr, "%s: %s\n", who, shmalloc_errmsg());
    return 1;
}

/* Writes of 8 bytes to a pipe are never split. */
static int send_texts(shmalloc_heap *heap, int pipe_end, char **texts)
{
    for (; *texts; texts++) {
        size_t size = strlen(*texts) + 1;
        shmalloc_ref ref;
        if (shmalloc_ref_alloc(heap, size, &ref) < 0)
            return fail("sender");
        memcpy(shmalloc_ptr(heap, ref), *texts, size);
        if (write(pipe_end, &ref, sizeof(ref)) != sizeof(ref))
            return perror("sender"), 1;
    }
    return 0;
}

static int receive_texts(shmalloc_heap *heap, int pipe_end)
{
    shmalloc_ref ref;
    while (read(pipe_end, &ref, sizeof(ref)) == sizeof(ref)) {
        const char *text = shmalloc_ptr(heap, ref);
        if (!text)
            return fprintf(stderr, "receiver: not a ref of this heap\n"), 1;
        printf("received: %s\n", text);
        if (shmalloc_ref_free(heap, &ref) < 0)
            return fail("receiver");
    }
    return 0;
}

/* Nothing is left of the messages: they were freed where they were read. */
static int report(shmalloc_heap *heap)
{
    shmalloc_stats stats = SHMALLOC_STATS_INIT;
    if (shmalloc_get_stats(heap, &stats) < 0)
        return fail("parent");
    printf("%llu blocks left\n", (unsigned long long)stats.allocated_blocks);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return fputs("usage: messages HEAP TEXT...\n", stderr), 2;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    shmalloc_heap *heap;
    int ends[2];
    if (shmalloc_open(argv[1], &options, &heap) < 0)
        return fail("open");
    if (pipe(ends) < 0)
        return perror("pipe"), 1;

    pid_t child = fork();
    if (child < 0)
        return perror("fork"), 1;
    if (child == 0) {
        close(ends[0]);
        int failed = send_texts(heap, ends[1], argv + 2);
        if (shmalloc_close(heap) < 0)
            failed = fail("sender");
        _exit(failed);
    }
    close(ends[1]);
    int failed = receive_texts(heap, ends[0]);
    int status = 0;
    if (waitpid(child, &status, 0) < 0 || status != 0)
        failed = 1;
    failed |= report(heap);
    return shmalloc_close(heap) < 0 ? fail("close") : failed;
}
