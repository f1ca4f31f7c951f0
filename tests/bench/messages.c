/* SPDX-License-Identifier: MIT */
/*
 * messages.c - messages of 64 bytes between two processes: a queue in a heap, a pipe, a
 * SOCK_SEQPACKET pair, POSIX mq, and boost::interprocess::message_queue if it was there at the
 * build.
 *
 *   messages [--cpus 1|2] [--rounds N] [--messages N]
 *
 * One way: how long a message takes when one process sends and the other receives as fast as they
 * can. Round trip: one message there, one back. The kinds take turns in each round, so that they
 * meet the same machine; the ratios are medians of the rounds' own. Processes are pinned to one or
 * to two processors.
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <mqueue.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <shmalloc/queue.h>

#define LENGTH 64
#define CAPACITY 1024
#define MOST_ROUNDS 101
#define TRIPS 4000

enum kind { QUEUE, PIPE, SEQPACKET, POSIX_MQ, BOOST, KINDS };
static const char *const names[] = {"shmalloc queue", "pipe", "SOCK_SEQPACKET", "POSIX mq",
                                    "boost message_queue"};

#ifdef BENCH_BOOST
void boost_queues_open(unsigned capacity, unsigned length);
void boost_queue_send(int which, const void *message, unsigned length);
void boost_queue_receive(int which, void *message, unsigned length);
#else
static void boost_queues_open(unsigned capacity, unsigned length)
{
    (void)capacity;
    (void)length;
}
static void boost_queue_send(int which, const void *message, unsigned length)
{
    (void)which;
    (void)message;
    (void)length;
}
static void boost_queue_receive(int which, void *message, unsigned length)
{
    (void)which;
    (void)message;
    (void)length;
}
#endif

static shmalloc_queue queues[2];
static int pipes[2][2], sockets[2][2];
static mqd_t posix[2];
static int is_there[KINDS] = {1, 1, 1, 0, 0};

static _Noreturn void stop(const char *what)
{
    fprintf(stderr, "messages: %s: %s; %s\n", what, strerror(errno), shmalloc_errmsg());
    exit(1);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

/* ---- the kinds ---- */

static void open_queues(const char *path)
{
    shmalloc_heap *heap;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    shmalloc_queue_options shape = SHMALLOC_QUEUE_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    shape.capacity = CAPACITY;
    if (shmalloc_open(path, &options, &heap) < 0 ||
        shmalloc_queue_open_root(heap, "0", &shape, &queues[0]) < 0 ||
        shmalloc_queue_open_root(heap, "1", &shape, &queues[1]) < 0)
        stop("heap");
    unlink(path);
}

static void open_posix(void)
{
    for (int i = 0; i < 2; i++) {
        char name[64];
        /* more is a privilege */
        struct mq_attr attributes = {.mq_maxmsg = 10, .mq_msgsize = LENGTH};
        snprintf(name, sizeof(name), "/shmalloc-bench-%d-%d", (int)getpid(), i);
        posix[i] = mq_open(name, O_CREAT | O_RDWR, 0600, &attributes);
        is_there[POSIX_MQ] = posix[i] != (mqd_t)-1;
        mq_unlink(name);
    }
}

static void open_all(const char *path)
{
    open_queues(path);
    open_posix();
    for (int i = 0; i < 2; i++)
        if (pipe(pipes[i]) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, sockets[i]) < 0)
            stop("pipe");
    boost_queues_open(CAPACITY, LENGTH);
#ifdef BENCH_BOOST
    is_there[BOOST] = 1;
#endif
}

static void send_message(enum kind kind, int way, const void *message)
{
    if (kind == QUEUE ? shmalloc_queue_send(&queues[way], message, LENGTH, SHMALLOC_NEVER) < 0
        : kind == PIPE      ? write(pipes[way][1], message, LENGTH) != LENGTH
        : kind == SEQPACKET ? send(sockets[way][0], message, LENGTH, 0) != LENGTH
        : kind == POSIX_MQ  ? mq_send(posix[way], message, LENGTH, 0) < 0
                            : 0)
        stop(names[kind]);
    if (kind == BOOST)
        boost_queue_send(way, message, LENGTH);
}

static ssize_t read_all(int fd, char *message)
{
    size_t got = 0;
    while (got < LENGTH) {
        ssize_t n = read(fd, message + got, LENGTH - got);
        if (n <= 0)
            return -1;
        got += (size_t)n;
    }
    return LENGTH;
}

static void receive_message(enum kind kind, int way, void *message)
{
    size_t length;
    if (kind == QUEUE
            ? shmalloc_queue_receive(&queues[way], message, LENGTH, &length, SHMALLOC_NEVER) < 0
        : kind == PIPE      ? read_all(pipes[way][0], message) != LENGTH
        : kind == SEQPACKET ? recv(sockets[way][1], message, LENGTH, 0) != LENGTH
        : kind == POSIX_MQ  ? mq_receive(posix[way], message, LENGTH, NULL) < 0
                            : 0)
        stop(names[kind]);
    if (kind == BOOST)
        boost_queue_receive(way, message, LENGTH);
}

/* ---- the rounds ---- */

static struct {
    volatile int arrived;
} *shared;

/* Both processes are here. */
static void meet(int *times)
{
    *times += 2;
    __atomic_fetch_add(&shared->arrived, 1, __ATOMIC_SEQ_CST);
    while (shared->arrived < *times)
        sched_yield();
}

static double one_way(enum kind kind, int is_child, unsigned count, int *times)
{
    uint64_t message[LENGTH / 8] = {0};
    meet(times);
    double start = now();
    for (unsigned i = 0; i < count; i++) {
        if (is_child) {
            receive_message(kind, 0, message);
            if (message[0] != i)
                stop("another order");
        } else {
            message[0] = i;
            send_message(kind, 0, message);
        }
    }
    meet(times);
    return (now() - start) / count;
}

static double round_trip(enum kind kind, int is_child, unsigned count, int *times)
{
    uint64_t message[LENGTH / 8] = {0};
    meet(times);
    double start = now();
    for (unsigned i = 0; i < count; i++) {
        if (!is_child)
            send_message(kind, 0, message);
        receive_message(kind, !is_child, message);
        if (is_child)
            send_message(kind, 1, message);
    }
    return (now() - start) / count;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(const double *values, unsigned count)
{
    double copy[MOST_ROUNDS];
    memcpy(copy, values, count * sizeof(*copy));
    qsort(copy, count, sizeof(*copy), by_value);
    return copy[count / 2];
}

/* How many times as long as the queue's: the median of the rounds' ratios. */
static double ratio(double measured[KINDS][MOST_ROUNDS], enum kind kind, unsigned rounds)
{
    double ratios[MOST_ROUNDS];
    for (unsigned i = 0; i < rounds; i++)
        ratios[i] = measured[kind][i] / measured[QUEUE][i];
    return median(ratios, rounds);
}

static void pin(int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        stop("cannot pin; are there two processors?");
}

static void measure(int is_child, unsigned rounds, unsigned messages, int cpus)
{
    static double way[KINDS][MOST_ROUNDS], trip[KINDS][MOST_ROUNDS];
    int times = 0;
    pin(is_child && cpus == 2);
    for (unsigned r = 0; r < rounds; r++)
        for (enum kind kind = 0; kind < KINDS; kind++) {
            if (!is_there[kind])
                continue;
            way[kind][r] = one_way(kind, is_child, kind == QUEUE ? messages : messages / 4, &times);
            trip[kind][r] = round_trip(kind, is_child, TRIPS, &times);
        }
    if (is_child)
        _exit(0);
    printf("%d bytes, 2 processes on %d CPU%s, %u rounds, medians, ns\n%-20s %10s %7s %12s %7s\n",
           LENGTH, cpus, cpus == 1 ? "" : "s", rounds, "", "one way", "ratio", "round trip",
           "ratio");
    for (enum kind kind = 0; kind < KINDS; kind++)
        if (is_there[kind])
            printf("%-20s %10.0f %7.2f %12.0f %7.2f\n", names[kind], median(way[kind], rounds),
                   ratio(way, kind, rounds), median(trip[kind], rounds), ratio(trip, kind, rounds));
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"cpus", required_argument, NULL, 'c'}, {"rounds", required_argument, NULL, 'r'},
        {"messages", required_argument, NULL, 'm'}, {NULL, 0, NULL, 0}};
    unsigned rounds = 9, messages = 200000;
    int cpus = 2, option;
    char path[64];
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        unsigned value = optarg ? (unsigned)strtoul(optarg, NULL, 0) : 0;
        if (option == '?' || value == 0)
            return fprintf(stderr, "usage: messages [--cpus 1|2] [--rounds N] [--messages N]\n"), 2;
        *(option == 'c' ? (unsigned *)&cpus : option == 'r' ? &rounds : &messages) = value;
    }
    rounds = rounds < MOST_ROUNDS ? rounds : MOST_ROUNDS;
    snprintf(path, sizeof(path), "/dev/shm/shmalloc-bench-%d", (int)getpid());
    open_all(path);
    shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t child = fork();
    measure(child == 0, rounds, messages, cpus);
    int status;
    waitpid(child, &status, 0);
    return status != 0;
}
