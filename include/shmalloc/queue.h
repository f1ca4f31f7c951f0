/* SPDX-License-Identifier: MIT */
/**
 * @file queue.h - a queue of messages in a heap: any number of processes send, any number receive.
 *
 * Bounded, first in first out, messages of any size up to a limit that is the queue's. No message
 * is lost and none is delivered twice unnoticed, whoever is killed at whatever instruction: a
 * message that somebody took and did not acknowledge before he died is delivered again, and says
 * so.
 *
 * @code
 *   shmalloc_queue queue;
 *   shmalloc_queue_options options = SHMALLOC_QUEUE_OPTIONS_INIT;
 *   if (shmalloc_queue_open_root(heap, "jobs", &options, &queue) < 0)
 *       ...
 *   shmalloc_queue_send(&queue, "make coffee", 12, SHMALLOC_NEVER);
 *
 *   shmalloc_message message; // in another process, after opening the queue there
 *   if (shmalloc_queue_take(&queue, &message, SHMALLOC_NEVER) == 0) {
 *       work_on(message.data, message.length, message.redelivered);
 *       shmalloc_queue_ack(&queue, &message);
 *   }
 * @endcode
 *
 * Words are those of shmalloc.h. All calls are safe from any thread of any process at the same
 * time, except where a text says otherwise. A handle (shmalloc_queue) is plain memory of the
 * caller, may be copied, is used by any number of threads at once, stays valid in forked children,
 * and needs no end. Threads of a private heap beyond 1,023 get SHMALLOC_ETHREADS.
 *
 * Timeouts are nanoseconds: 0 does not wait, SHMALLOC_NEVER waits for ever. A wait ends within some
 * 60 ms of the death of the process that holds what is waited for.
 *
 * Two limits. A sender that is *stopped* (SIGSTOP, a debugger) between claiming its place and
 * having filled it, which takes less than a microsecond, holds up all receivers until it goes on or
 * is killed. And order is that of claiming: a message that is delivered again comes later than
 * those behind it.
 */
#ifndef SHMALLOC_QUEUE_H
#define SHMALLOC_QUEUE_H

#include <shmalloc/shmalloc.h>

#ifdef __cplusplus
extern "C" {
#endif

/** How to make a queue. Start from SHMALLOC_QUEUE_OPTIONS_INIT. */
typedef struct shmalloc_queue_options {
    size_t struct_size;     /**< sizeof(shmalloc_queue_options) */
    uint64_t capacity;      /**< messages that it holds, sent and not acknowledged; rounded up to a
                                 power of two, 2 to 16,777,216; 0 means 1,024. Each takes 128 bytes
                                 from the start */
    uint64_t most;          /**< bytes of the longest message; 0 means 1 MiB, at most 4 GiB - 1. Up
                                 to 112 bytes lie in the queue itself, longer ones in a block
                                 each */
} shmalloc_queue_options;

#define SHMALLOC_QUEUE_OPTIONS_INIT { sizeof(shmalloc_queue_options), 0, 0 }

/** A queue, as the process knows it. Filled by shmalloc_queue_open() and _open_root(). */
typedef struct shmalloc_queue {
    shmalloc_heap *heap;
    uint64_t opaque[9];
} shmalloc_queue;

/** A message that was taken. */
typedef struct shmalloc_message {
    const void *data; /**< its bytes, in the heap; NULL when it is a ref. Valid until it is
                           acknowledged or returned */
    size_t length;    /**< their number */
    shmalloc_ref ref; /**< what shmalloc_queue_send_ref() sent; else 0 */
    int redelivered;  /**< 1: it was taken before, by somebody who died or returned it, and maybe
                           worked on */
    uint64_t opaque[2];
} shmalloc_message;

/**
 * Make a queue, and store its ref in `*out`.
 *
 * @param options  NULL: the default ones.
 * @param out      If it points into the heap (8-aligned), making and storing are one crash-atomic
 *                 step, which makes a queue a part of the program's own structures. Otherwise a
 *                 kill can leave a queue that nothing names.
 * @return 0, or a negative code and no queue: -EINVAL for an option out of range or a misaligned
 *         `out`; codes of shmalloc_ref_alloc(); SHMALLOC_EBUSY: a structure that this thread freed
 *         is still used by a stopped one.
 * Ownership: the queue is the heap's until shmalloc_queue_free(). Visible. Crash: as said for
 * `out`.
 */
SHMALLOC_API SHMALLOC_USE_RESULT int shmalloc_queue_create(shmalloc_heap *heap,
                                                           const shmalloc_queue_options *options,
                                                           shmalloc_ref *out);

/**
 * Use the queue that `ref` names.
 * @return 0; SHMALLOC_EBADREF: no block of this heap; SHMALLOC_ETYPE: a block, but no queue;
 *         SHMALLOC_EGONE: a queue that was freed; SHMALLOC_ECORRUPT: its header is damaged;
 *         SHMALLOC_ECLOSED; -EINVAL. Works read-only, where only shmalloc_queue_count() can be
 *         called.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_queue_open(shmalloc_heap *heap, shmalloc_ref ref, shmalloc_queue *out);

/**
 * Use the queue that the root `name` names; make it, with `options`, if there is no such root.
 * @param options  NULL: it must exist. Ignored for one that exists.
 * @return 0 found; SHMALLOC_CREATED; SHMALLOC_ENOROOT; SHMALLOC_ETYPE: the root is of another type;
 *         codes of shmalloc_queue_create() and _open(). Of several that make it at once one does.
 *         Visible, crash-atomic.
 */
SHMALLOC_API SHMALLOC_USE_RESULT int shmalloc_queue_open_root(shmalloc_heap *heap, const char *name,
                                                              const shmalloc_queue_options *options,
                                                              shmalloc_queue *out);

/** The queue's ref. */
SHMALLOC_API shmalloc_ref shmalloc_queue_ref(const shmalloc_queue *queue);

/**
 * Free the queue `*ref`, with all messages in it, and store 0 there. Blocks that were sent by
 * shmalloc_queue_send_ref() and not received are freed, structures among them with all that is in
 * them; what such a block names itself is not. A `*ref` of 0 does nothing.
 *
 * From then on each call on the queue is SHMALLOC_EGONE, in all processes; calls that wait end so.
 * Calls under way are waited for. If one of them does not end within a second, because its process
 * is stopped, its memory comes back later.
 *
 * @return 0, or a negative code: those of shmalloc_queue_open(), SHMALLOC_EREADONLY, SHMALLOC_EBUSY
 * as for _create(), SHMALLOC_EINTX inside a transaction of the calling thread. Visible,
 * crash-atomic: after a kill `*ref` (in the heap) names the whole queue,
 * or is 0 and the queue's memory comes back when the dead process is noticed.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_queue_free(shmalloc_heap *heap, shmalloc_ref *ref);

/** Remove the root `name` and free the queue that it names, in one step as above. SHMALLOC_ENOROOT,
 * SHMALLOC_ETYPE. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_queue_remove(shmalloc_heap *heap, const char *name);

/**
 * Send a copy of `length` bytes (0 is allowed).
 *
 * @return 0: sent; or a negative code, and it was not:
 *   -EAGAIN, -ETIMEDOUT  the queue is full, and was for `timeout_ns`
 *   -EMSGSIZE            longer than the queue allows; shmalloc_errmsg() says how much that is
 *   SHMALLOC_EGONE       the queue was freed
 *   SHMALLOC_EREADONLY, _ECORRUPT, _EPOISONED, _ETHREADS, and for more than 112 bytes the codes of
 *   shmalloc_ref_alloc()
 * Visible; crash-atomic: killed before the return, it was sent wholly or not at all.
 * Cost: up to 112 bytes without a lock or a system call, unless somebody waits.
 */
SHMALLOC_API SHMALLOC_USE_RESULT int shmalloc_queue_send(shmalloc_queue *queue, const void *data,
                                                         size_t length, uint64_t timeout_ns);

/**
 * Send the block `*ref`, and whatever it leads to, and store 0 to `*ref`: no byte is copied. If
 * `ref` points into the heap, both are one crash-atomic step: the block belongs to the word or to
 * the queue, never to both or none.
 * @return as shmalloc_queue_send(); SHMALLOC_EBADREF: `*ref` is not a block.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_queue_send_ref(shmalloc_queue *queue, shmalloc_ref *ref, uint64_t timeout_ns);

/**
 * Take the oldest message. It stays in the queue, in its place, until it is acknowledged; if this
 * thread ends or its process dies before, another one gets it, flagged `redelivered`.
 * @return 0; -EAGAIN, -ETIMEDOUT: there is none; SHMALLOC_EGONE; SHMALLOC_ECORRUPT: the message is
 *         damaged; SHMALLOC_EREADONLY, _EPOISONED, _ETHREADS.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_queue_take(shmalloc_queue *queue, shmalloc_message *out, uint64_t timeout_ns);

/**
 * Acknowledge: the message is done with, its place and its block are free. The block of a ref
 * message (`message->ref`) is the caller's from now on; see shmalloc_queue_ack_ref().
 * @return 0; SHMALLOC_ENOTOWNER: this thread has not taken it, or acknowledged it before;
 * SHMALLOC_EGONE. Crash-atomic. By the thread that took it.
 */
SHMALLOC_API int shmalloc_queue_ack(shmalloc_queue *queue, shmalloc_message *message);

/** Acknowledge a ref message and store its ref to `*out`. If `out` points into the heap
 * (8-aligned),
 * both are one
 *  crash-atomic step. -EINVAL: it is no ref message. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_queue_ack_ref(shmalloc_queue *queue, shmalloc_message *message, shmalloc_ref *out);

/** Give a message back unacknowledged: somebody gets it again, flagged. Codes of
 * shmalloc_queue_ack(). */
SHMALLOC_API int shmalloc_queue_return(shmalloc_queue *queue, shmalloc_message *message);

/**
 * Take a message, copy it to `buffer` and acknowledge it. Killed in here, the message is gone or
 * delivered again.
 * @param length  Its bytes, also with -EMSGSIZE: longer than `room`, or a ref message (then 8); it
 *                stays.
 * @return as shmalloc_queue_take().
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_queue_receive(shmalloc_queue *queue, void *buffer, size_t room, size_t *length,
                           uint64_t timeout_ns);

/** Messages sent and not taken, as of some moment during the call; those that died in being sent
 * are
 * counted until
 *  somebody comes by. Or a negative code. Works read-only. */
SHMALLOC_API int64_t shmalloc_queue_count(const shmalloc_queue *queue);

#ifdef __cplusplus
}
#endif

#endif
