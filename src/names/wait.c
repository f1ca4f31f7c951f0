/* SPDX-License-Identifier: MIT */
/*
 * wait.c - sleeping on a word in the heap; condition variables.
 *
 * A futex wakes who sleeps, but a wake-up is no truth: whoever is killed on the way takes it along.
 * The word is the truth, and who sleeps looks at it again by himself after a slice of time. So
 * these deaths cost a slice at most:
 *
 *   who stored the word is killed before the wake       the next slice finds another value
 *   who was woken, alone, is killed before it acts      the same, for all others
 *
 * A death before the store changes no word. So deaths are counted (smf_state.adoptions), a waiter
 * looks for the dead now and then, which adopts them, and when the count grew it goes back to its
 * caller, who looks at what it waits for. A waiter compares with the count that it knew before the
 * caller looked: none is missed.
 *
 * A condition variable is a word that counts signals. Its lowest bit says that somebody may be
 * asleep, so that a signal that nobody waits for costs no system call. Only a signaller that woke
 * nobody clears it, and wakes once more then, for who fell asleep in between. There is no count of
 * waiters, which the dead would make wrong.
 */
#include "names/wait.h"

#include <errno.h>

#include "names/mutex.h"
#include "platform/os.h"

#define SLICE_NS 20000000ull

_Static_assert(sizeof(shmalloc_cond) == sizeof(struct smf_user_cond), "one layout");

static uint64_t deaths(const shmalloc_heap *heap)
{
    return __atomic_load_n(&heap->state->adoptions, __ATOMIC_ACQUIRE);
}

static uint64_t deadline_of(uint64_t timeout_ns)
{
    uint64_t now = smi_os_clock();
    return timeout_ns < UINT64_MAX - now ? now + timeout_ns : UINT64_MAX;
}

static int refused_wait(const shmalloc_heap *heap, const void *word, int rc)
{
    return smi_refused(rc, "%s: cannot wait or wake at the word %#llx", heap->path,
                       (unsigned long long)((uintptr_t)word - (uintptr_t)heap->base));
}

/* Sleep while the word is `expected` and no more than `known` deaths are counted. 0, -ETIMEDOUT
 * without a message, or why that cannot be. */
static int sleep_on(shmalloc_heap *heap, const uint32_t *word, uint32_t expected, uint64_t deadline,
                    uint64_t known, smi_look *look)
{
    for (;;) {
        uint64_t now = smi_os_clock(), slice = now + SLICE_NS;
        if (deaths(heap) != known)
            return 0;
        int rc = smi_os_futex_wait(word, expected, slice < deadline ? slice : deadline,
                                   heap->is_private);
        if (rc == 0 || rc == -EAGAIN)
            return 0;
        if (rc != -ETIMEDOUT && rc != -EINTR)
            return refused_wait(heap, word, rc);
        if (smi_os_clock() >= deadline)
            return -ETIMEDOUT;
        if ((rc = smi_heap_writable(heap)) < 0) /* damage was found meanwhile */
            return rc;
        look(heap);
    }
}

static void note(struct smi_thread *t, const void *word)
{
    SMI_STORE(&t->slot->waits_since, smi_os_tick());
    SMI_STORE(&t->slot->waits_for, (uint64_t)((uintptr_t)word - (uintptr_t)t->heap->base));
}

static void forget_waiter(struct smi_thread *t)
{
    SMI_STORE(&t->slot->waits_for, 0);
}

/* Is there an aligned record of that many bytes in the heap? 0, or -EINVAL. */
static int find_record(const shmalloc_heap *heap, const void *record, uint64_t len,
                       uint64_t alignment, const char *what)
{
    uint64_t ref;
    if (smi_ref_of(heap, record, &ref) && ref % alignment == 0 && smi_in_heap(heap, ref, len))
        return 0;
    return smi_error(-EINVAL, "%s: the %s at %p is not in a block of the heap, or not %u-aligned",
                     heap->path, what, record, (unsigned)alignment);
}

/* ---- words ---- */

int smi_wait(struct smi_thread *t, const uint32_t *word, uint32_t expected, uint64_t timeout_ns,
             smi_look *look)
{
    shmalloc_heap *heap = t->heap;
    int rc = find_record(heap, word, sizeof(*word), sizeof(*word), "word");
    if (rc < 0)
        return rc;
    /* The caller has looked at what it waits for since its last wait ended, so what it knew then is
     * what counts. */
    uint64_t known = t->deaths_seen;
    note(t, word);
    rc = sleep_on(heap, word, expected, deadline_of(timeout_ns), known, look);
    forget_waiter(t);
    t->deaths_seen = deaths(heap);
    return rc == -ETIMEDOUT
               ? smi_error(rc, "%s: the word at %#llx was %u all the time", heap->path,
                           (unsigned long long)((uintptr_t)word - (uintptr_t)heap->base), expected)
               : rc;
}

int smi_wake(shmalloc_heap *heap, const uint32_t *word, uint32_t count)
{
    int rc = find_record(heap, word, sizeof(*word), sizeof(*word), "word");
    if (rc == 0)
        rc = smi_os_futex_wake(word, count, heap->is_private);
    return rc == -EFAULT ? refused_wait(heap, word, rc) : rc;
}

/* ---- condition variables ---- */

#define ASLEEP 1u  /* the bit of the word: somebody may be */
#define A_SIGNAL 2u

static int find_cond(const shmalloc_heap *heap, const shmalloc_cond *cond)
{
    return find_record(heap, cond, sizeof(*cond), 8, "condition variable");
}

int smi_cond_wait(struct smi_thread *t, shmalloc_cond *cond, shmalloc_mutex *mutex,
                  uint64_t timeout_ns, smi_look *look)
{
    shmalloc_heap *heap = t->heap;
    struct smf_user_cond *c = (struct smf_user_cond *)cond;
    int rc = find_cond(heap, cond);
    if (rc == 0)
        rc = smi_mutex_mine(t, mutex);
    if (rc < 0)
        return rc;
    /* Both before the mutex is unlocked: what is waited for changes under it only, so no signal and
     * no death that comes after such a change is missed. */
    uint64_t known = deaths(heap), deadline = deadline_of(timeout_ns);
    uint32_t seen = __atomic_fetch_or(&c->sequence, ASLEEP, __ATOMIC_RELAXED) | ASLEEP;
    rc = smi_mutex_unlock(t, mutex);
    if (rc < 0)
        return rc;
    note(t, cond);
    int slept = sleep_on(heap, &c->sequence, seen, deadline, known, look);
    forget_waiter(t);
    rc = smi_mutex_lock(t, mutex, UINT64_MAX, 0);
    if (rc != 0 || slept != -ETIMEDOUT)
        return rc != 0 ? rc : slept;
    return smi_error(slept, "%s: no signal came for the condition variable at %#llx", heap->path,
                     (unsigned long long)((uintptr_t)cond - (uintptr_t)heap->base));
}

/* Count a signal, and wake if somebody may be asleep. */
static int tell_waiters(shmalloc_heap *heap, shmalloc_cond *cond, uint32_t count)
{
    uint32_t *word = &((struct smf_user_cond *)cond)->sequence;
    int rc = find_cond(heap, cond);
    if (rc < 0)
        return rc;
    uint32_t before = __atomic_fetch_add(word, A_SIGNAL, __ATOMIC_RELAXED), now = before + A_SIGNAL;
    if (!(before & ASLEEP)) /* kill before the wake: the slice of who sleeps ends with another
                               value */
        return 0;
    rc = smi_os_futex_wake(word, count, heap->is_private);
    if (rc == 0 && __atomic_compare_exchange_n(word, &now, now & ~ASLEEP, 0, __ATOMIC_RELAXED,
                                               __ATOMIC_RELAXED))
        rc = smi_os_futex_wake(word, UINT32_MAX, heap->is_private);
    return rc < 0 ? refused_wait(heap, word, rc) : 0;
}

int smi_cond_signal(shmalloc_heap *heap, shmalloc_cond *cond)
{
    return tell_waiters(heap, cond, 1);
}

int smi_cond_broadcast(shmalloc_heap *heap, shmalloc_cond *cond)
{
    return tell_waiters(heap, cond, UINT32_MAX);
}
