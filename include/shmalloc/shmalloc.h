/* SPDX-License-Identifier: MIT */
/**
 * @file shmalloc.h - a heap in a file, shared by processes.
 *
 * Several processes map the file, allocate and free in it at malloc speed and build shared data
 * structures from position-independent references. Link with `pkg-config --libs shmalloc`.
 *
 * @code
 *   #include <shmalloc/shmalloc.h>
 *   #include <stdio.h>
 *
 *   struct counter { uint64_t runs; };
 *
 *   int main(void)
 *   {
 *       shmalloc_options options = SHMALLOC_OPTIONS_INIT;
 *       options.flags = SHMALLOC_CREATE;
 *       shmalloc_heap *heap;
 *       shmalloc_ref ref;
 *       if (shmalloc_open("runs.heap", &options, &heap) < 0 ||
 *           shmalloc_root_get_or_create(heap, "counter", 0, sizeof(struct counter), NULL, NULL,
 *                                       &ref) < 0)
 *           return fprintf(stderr, "%s\n", shmalloc_errmsg()), 1;
 *       struct counter *counter = shmalloc_ptr(heap, ref);
 *       printf("run %llu\n", (unsigned long long)++counter->runs);
 *       return shmalloc_close(heap) < 0;
 *   }
 * @endcode
 *
 * Three words are used in exactly these senses:
 *   **visible**       other processes see it when the call returns;
 *   **crash-atomic**  after SIGKILL at any instruction it happened wholly or not at all;
 *   **durable**       it survives power loss. Nothing is durable until shmalloc_sync() or the last
 *                     orderly shmalloc_close() returned 0.
 *
 * What holds after a death: SIGKILL of any process at any instruction leaves no lock held and the
 * heap's own data sound; what the dead process had cached comes back to the others; a block that
 * was handed to the program stays allocated. All processes may die: the next open finds the heap as
 * it was, as long as the machine stays up. After power loss or a kernel crash without an orderly
 * close, shmalloc_open() says SHMALLOC_EUNCLEAN and shmalloc_recover() decides.
 *
 * What the program itself stores is its own to order: the compiler may move and merge plain stores.
 * A structure that is to be whole after a kill is made ready first and linked last, by
 * shmalloc_store() (or by the library: shmalloc_ref_alloc() and its kin store the ref word so).
 * examples/list.c shows it, and shmalloc-crashtest(3) tests it. Transactions (shmalloc_tx_run())
 * make several changes one, and <shmalloc/map.h>, queue.h and vector.h are whole after a kill by
 * themselves.
 *
 * Errors: every function that can fail returns 0 or a count, or a negative code: a negated errno
 * value when the system refused, or one of enum shmalloc_error. Out-parameters are written only on
 * success, and a failed call changed nothing unless its text says otherwise. shmalloc_errmsg()
 * explains the calling thread's last failure for people. errno is left unspecified. The library
 * never prints, exits or aborts.
 *
 * Threads and processes: every function that takes a heap may be called from any thread of any
 * process that has it open, at the same time as any other, except shmalloc_close(), which must be
 * the process's last use of that handle. What may be done at once to one *block* or to one user's
 * *ref word* is for the program to order, as with malloc:
 *
 *                       | same block, free | same ref word, alloc/free/realloc | other blocks
 *   read or write it    | exclude          | exclude                           | free
 *   shmalloc_ref_free       | exclude          | exclude                           | free
 *   shmalloc_ref_alloc      | free             | exclude                           | free
 *
 * "exclude" for a ref word in the heap means: hold a shmalloc_mutex, whose next owner after a death
 * finds the dead thread's unfinished step resolved.
 *
 * No function may be called from a signal handler that interrupted another function here, and a
 * child that such a handler forks must not return from it, but exec or _exit(): it would go on with
 * its parent's call, in a file in its parent's place, or wait for a thread that it does not have.
 * Nor may such a handler leave by siglongjmp(), or by an exception: the call that it cuts off may
 * lose a slot or leave a lock held, and what any later call of that thread does is undefined. It
 * returns, or ends the process, which is a death like any other.
 *
 * A thread that is cancelled finishes its call first; with PTHREAD_CANCEL_ASYNCHRONOUS none may be
 * called, as POSIX says of all functions but three.
 *
 * Caveats
 *  - Network, FUSE and overlay file systems (a container's own files; its volumes and /dev/shm are
 *    others) do not keep what a shared mapping needs; heaps there are refused unless
 *    SHMALLOC_ANY_FILE_SYSTEM says that one process alone uses them. They can be opened with
 *    SHMALLOC_READ_ONLY; on overlayfs, who did so before the first writer came does not see what is
 *    stored from then on.
 *  - A reflinked copy, or a copy-on-write file system, can make a store fail for lack of space
 *    (SIGBUS) although blocks were reserved.
 *  - A memfd sealed against writing (F_SEAL_WRITE, F_SEAL_FUTURE_WRITE), or a file with the
 *    attribute immutable or append-only, can be opened with SHMALLOC_READ_ONLY; else the answer is
 *    -EPERM. A heap sealed against growing is SHMALLOC_EFULL where it had to grow. What is sealed
 *    or has an attribute keeps its length, and if it is sealed against writing its storage, too.
 *  - Processes on one heap must be in one PID namespace and use the same C library: robust mutexes
 *    rely on both. Other combinations are refused at open.
 *  - An open heap keeps one descriptor, above 2. A program that closes it (a daemon that closes
 *    all) and uses the number for itself keeps what it opened there; the heap is opened again by
 *    its name, or calls that need the file answer -EBADF if that no longer leads to it.
 *  - A process reserves addresses for a heap (its maximum size times sixteen, up to 1 TiB), and
 *    1/1024 of that for a table of its pages, of which some 4 KiB are in memory for 4 MiB of heap
 *    in which the process frees blocks.
 *  - After fork() the child has the heap too and attaches by itself at its first call; a child that
 *    only calls exec costs nothing.
 *  - The heap file is not a backup of itself. Copy it while no process has it open, or with
 *    `shmalloc-inspect copy`, which makes a copy that is sound for the allocator; what programs
 *    keep in their blocks may be torn in it.
 *  - Processes with write access are trusted not to be hostile; they need not be free of bugs.
 */
#ifndef SHMALLOC_SHMALLOC_H
#define SHMALLOC_SHMALLOC_H

#include <stddef.h>
#include <stdint.h>

#include <shmalloc/version.h>

#if defined(__GNUC__)
#define SHMALLOC_API __attribute__((visibility("default")))
#define SHMALLOC_USE_RESULT __attribute__((warn_unused_result)) /* who ignores it goes wrong */
#else
#define SHMALLOC_API
#define SHMALLOC_USE_RESULT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** An open heap in this process. */
typedef struct shmalloc_heap shmalloc_heap;

/** A position-independent reference: bytes from the start of the heap; 0 is none. Never a
 * pointer. */
typedef uint64_t shmalloc_ref;

/** The library's own causes of failure. Never renumbered. System causes are negated errno
 * values. */
enum shmalloc_error {
    SHMALLOC_EFULL = -20001,      /**< no free run is long enough and the heap may not grow
                                       further */
    SHMALLOC_ENOTHEAP = -20002,   /**< the file is not a heap */
    SHMALLOC_EVERSION = -20003,   /**< the file needs a format or feature this library lacks */
    SHMALLOC_EFOREIGN = -20004,   /**< a sound heap of another architecture, libc or PID
                                       namespace */
    SHMALLOC_ECORRUPT = -20005,   /**< a check of the file's contents failed */
    SHMALLOC_EPOISONED = -20006,  /**< an earlier SHMALLOC_ECORRUPT stopped all mutation, until
                                       `shmalloc-inspect check --repair --yes` has mended the
                                       file */
    SHMALLOC_EUNCLEAN = -20007,   /**< the machine stopped, or the file was copied, while in use */
    SHMALLOC_ELAYOUT = -20008,    /**< the application's layout name or version differs */
    SHMALLOC_EBUSY = -20009,      /**< another process is attaching, or has the heap open, too
                                       long */
    SHMALLOC_EPROCESSES = -20010, /**< 128 processes have the heap open */
    SHMALLOC_ETHREADS = -20011,   /**< 1,024 threads use the heap */
    SHMALLOC_EADDRESS = -20012,   /**< no address range: fixed base taken, or a limit too small */
    SHMALLOC_EBADREF = -20013,    /**< not a block of this heap: foreign, misaligned or inside
                                       one */
    SHMALLOC_EDOUBLEFREE = -20014, /**< the block is free already */
    SHMALLOC_EREADONLY = -20015,  /**< the heap was opened read-only */
    SHMALLOC_ENOROOT = -20016,    /**< no root of that name */
    SHMALLOC_ETYPE = -20017,      /**< the root's type id differs */
    SHMALLOC_ENOTOWNER = -20018,  /**< the mutex is not held by the calling thread */
    SHMALLOC_ECLOSED = -20019,    /**< the handle is closed */
    SHMALLOC_EFILESYSTEM = -20020, /**< the file lies on a network, FUSE or overlay file system */
    SHMALLOC_EPROC = -20021,      /**< /proc is missing or masked; a heap in a file needs /proc/self
                                       and the boot id */
    SHMALLOC_ESIZE = -20022,      /**< the root's block is smaller than asked */
    SHMALLOC_EOUSTED = -20023,    /**< what the read section saw may have been freed meanwhile: do
                                       it again */
    SHMALLOC_EGONE = -20028,      /**< the queue, vector or other structure was freed */
    SHMALLOC_ECONFLICT = -20025,  /**< a transaction would have to wait for a mutex out of order:
                                       abort it, run it again */
    SHMALLOC_ENOTX = -20026,      /**< no transaction is open in the calling thread */
    SHMALLOC_EINTX = -20027,      /**< not while a transaction is open that holds this, or is in
                                       another heap */
};

/** What calls return that did what they were asked for and have more to say: positive, no error. */
enum shmalloc_outcome {
    SHMALLOC_CREATED = 1,    /**< shmalloc_root_get_or_create() made the root */
    SHMALLOC_OWNER_DIED = 2, /**< the mutex is locked, but an owner before died holding it */
};

/** What a code means, in a few words. Static storage; never NULL. Any thread. */
SHMALLOC_API const char *shmalloc_strerror(int code);

/** The calling thread's last failure for people: file, expected, found, remedy. Valid until the
 *  thread's next call into the library. "" when nothing failed yet, or when 1,024 other threads
 *  that live have a message; never NULL. */
SHMALLOC_API const char *shmalloc_errmsg(void);

/** The library's version, as in SHMALLOC_VERSION of its headers. */
SHMALLOC_API const char *shmalloc_version(void);

/* ---- opening --------------------------------------------------------------------------------- */

enum shmalloc_flag {
    SHMALLOC_CREATE = 1,          /**< make the heap if the file does not exist (or is empty, by
                                       descriptor) */
    SHMALLOC_EXCLUSIVE = 2,       /**< with SHMALLOC_CREATE: fail with -EEXIST if it exists */
    SHMALLOC_READ_ONLY = 4,       /**< map without write permission; only reading calls work. A copy
                                       with holes on tmpfs takes storage when it is read: -ENOSPC if
                                       there is less, and SIGBUS if others take it afterwards; who
                                       opens it for writing first reserves it */
    SHMALLOC_HARDENED = 8,        /**< at creation: detect every double and foreign free at once */
    SHMALLOC_ACCEPT_UNCLEAN = 16, /**< go on although the answer would be SHMALLOC_EUNCLEAN */
    SHMALLOC_ANY_FILE_SYSTEM = 32, /**< go on although the answer would be SHMALLOC_EFILESYSTEM */
    SHMALLOC_PREFAULT = 64,       /**< bring all that the file stores into memory and this process's
                                       page tables at open, which then takes as long as that
                                       takes */
    SHMALLOC_HUGE_PAGES = 128,    /**< ask the kernel for pages of 2 MiB: at open, for what the file
                                       stores then; later, for what the file system gives (tmpfs
                                       mounted with huge=) */
};

/** How to open. Start from SHMALLOC_OPTIONS_INIT; fields marked [create] are ignored for a heap
 * that
 *  exists.
 *
 *  Later versions may add fields at the end of this struct and of the others that begin with their
 *  size, and 0 there will mean what is done now. So a program that was compiled with an older
 *  header need not be compiled anew; one that was compiled with a newer header works with this
 *  library as long as the fields which the library lacks are 0, else the answer is -EINVAL. */
typedef struct shmalloc_options {
    size_t struct_size;      /**< sizeof(shmalloc_options) as the program knows it: see below */
    unsigned flags;          /**< enum shmalloc_flag, or-ed */
    unsigned mode;           /**< [create] permission bits, whatever the umask; 0 means 0600 */
    uint64_t initial_size;   /**< [create] bytes to begin with; 0 means 1 MiB; rounded up to 1
                                  MiB */
    uint64_t max_size;       /**< [create] bytes the heap never exceeds; 0 means 1 TiB; up to 16
                                  TiB; rounded up to 1 MiB. A process reserves addresses for it: the
                                  less, the more heaps */
    const char *layout;      /**< the application's name for its data, up to 63 bytes; NULL: do not
                                  check */
    uint64_t layout_version; /**< and its version; compared when `layout` is given */
    void *base;              /**< [create] address that every process maps the heap at, so that raw
                                  pointers in it persist; multiple of 2 MiB; NULL means anywhere */
    unsigned arenas;         /**< [create] independent central heaps, 1..64; 0 means 4 */
} shmalloc_options;

#define SHMALLOC_OPTIONS_INIT { sizeof(shmalloc_options), 0, 0, 0, 0, NULL, 0, NULL, 0 }

/**
 * Open, or with SHMALLOC_CREATE create, the heap in the file `path`.
 *
 * A new heap is built under an unnamed file and linked into place when complete, so no process ever
 * sees half of one. The same file opened twice in one process shares one mapping; close each
 * handle.
 *
 * Symbolic links are followed, as open(2) does; only one that leads nowhere is -ENOENT also with
 * SHMALLOC_CREATE, and nothing is made at its end. Hard links are names of one heap.
 *
 * A heap that an older library made is converted by the first who opens it for writing, if it is
 * sound; older libraries refuse it from then on. Opened read-only it is SHMALLOC_EVERSION; while
 * programs of the older library use it, SHMALLOC_EBUSY.
 *
 * @param options  NULL opens an existing heap for reading and writing.
 * @return 0, or a negative code and no handle:
 *   -ENOENT, -EACCES, -EEXIST, -EISDIR, -ENOSPC, ...  from the system
 *   -EPERM                a seal or an attribute of the file or its folder forbids it, which
 *                         shmalloc_errmsg() names; or what the system does not tell, such as a
 *                         security module
 *   -EINVAL               an option is out of range
 *   SHMALLOC_ENOTHEAP, _EVERSION, _EFOREIGN, _ECORRUPT, _ELAYOUT   what the file is
 *   SHMALLOC_EUNCLEAN     the machine stopped (or the file was copied) while the heap was in use:
 *                         run shmalloc_recover(), or accept with SHMALLOC_ACCEPT_UNCLEAN
 *   SHMALLOC_EPROCESSES   128 processes are attached
 *   SHMALLOC_EFILESYSTEM  the file lies on a network, FUSE or overlay file system
 *   SHMALLOC_EPROC        /proc is not mounted or lacks a part (a chroot, subset=pid): without the
 *                         machine's boot id, the process's PID namespace and /proc/self/fd nothing
 *                         is created or opened
 *   SHMALLOC_EADDRESS     the fixed base is taken or the address space limit is too small
 *   SHMALLOC_EBUSY        an attaching process did not finish within 10 seconds, or programs of an
 *                         older library use the heap
 *
 * Ownership: the handle belongs to the process; shmalloc_close() ends it.
 * Threads:   any thread. Blocks while another process attaches.
 * Crash:     crash-atomic: a killed creator leaves no file, a killed opener is adopted.
 * Cost:      independent of the number of objects, but for a conversion; one fdatasync after an
 *            orderly close. With SHMALLOC_PREFAULT or SHMALLOC_HUGE_PAGES proportional to what the
 *            file stores. These two are wishes: open does not fail for them, shmalloc_get_stats()
 *            tells what was obtained.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_open(const char *path, const shmalloc_options *options, shmalloc_heap **out);

/**
 * The same for an open descriptor, such as a memfd that came over a socket. The descriptor stays
 * the caller's and may be closed after the call. An empty file is made a heap with SHMALLOC_CREATE;
 * its identifying first word is written last.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_open_fd(int fd, const shmalloc_options *options, shmalloc_heap **out);

/**
 * A heap in memory of this process alone: no file, nothing shared, no locks that outlive a death.
 * All calls work but shmalloc_sync() (-EINVAL). It is gone when it is closed or the process ends.
 *
 * Of the options, `initial_size`, `max_size` and `arenas` count, and the flags SHMALLOC_HARDENED
 * and SHMALLOC_HUGE_PAGES; flags and a `base` that only a file can have are -EINVAL, the rest is
 * ignored. Where address space is limited, the maximum size is half of the limit. Blocks may be
 * aligned to 1 GiB where it is not (1 MiB else).
 *
 * After fork() or _Fork() the child has a copy of its own and goes on with it. What other threads
 * of the parent had cached returns to the child's heap at its first call; a block that one of them
 * was just being given is lost to the child. A shmalloc_mutex is free in the child, and who first
 * locks one that was held is told: SHMALLOC_OWNER_DIED.
 *
 * Any number of threads: those beyond 1,023 share one cache, at the price of a lock.
 *
 * @return 0, or a negative code and no handle: -EINVAL, -ENOMEM, SHMALLOC_EADDRESS.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_open_private(const shmalloc_options *options, shmalloc_heap **out);

/**
 * End the use of the heap by this process (or of one of several handles of the same file).
 *
 * Cached blocks of all threads of the process go back; allocated blocks stay. The last process to
 * close syncs the data and marks the file clean, after which it is whole even if power fails.
 * No other thread of the process may be inside a call on the heap; one that calls later gets
 * SHMALLOC_ECLOSED for the last 64 handles closed. NULL does nothing.
 *
 * @return 0, or a negative code; the handle is gone in any case:
 *   -EIO, -ENOSPC, ...   the final sync failed: the file is exact while the machine is up
 * Durability: durable when the caller was the last process and 0 was returned.
 */
SHMALLOC_API int shmalloc_close(shmalloc_heap *heap);

/**
 * Remove the heap file `path`. With other names of the file (hard links) the heap stays.
 * @return 0; -ENOENT; -ELOOP for a symbolic link: neither link nor heap is removed,
 *         shmalloc_errmsg() has the heap's own name; SHMALLOC_ENOTHEAP for a file that is not a
 *         heap (it is left alone); SHMALLOC_EBUSY while any process has it open.
 */
SHMALLOC_API int shmalloc_destroy(const char *path);

/**
 * Decide about a heap that shmalloc_open() calls unclean: resolve what was in flight, run the full
 * check, and mark the heap sound if it is. Only the heap's own data are judged: blocks, roots, what
 * is free. What programs keep in their blocks may be of different moments all the same, in a copy
 * that was made while they worked, or after a power cut; whoever opens the heap next has to judge
 * that.
 * @return 0: it can be opened; SHMALLOC_ECORRUPT: it is damaged, shmalloc_errmsg() names the first
 *         violation; SHMALLOC_EBUSY: processes have it open; -EIO and others: the file could not be
 *         read or synced, and nothing was decided; codes of shmalloc_open(). A damaged heap can be
 *         read, not changed, until `shmalloc-inspect check --repair --yes` has mended it.
 * Cost: reads all metadata, about 1 % of the file.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_recover(const char *path);

/**
 * Give the heap another layout: the name (up to 63 bytes; NULL or "" for none) and version of the
 * application's data that shmalloc_open() compares with its options. For a program that opened a
 * heap without naming a layout, and converted what is in it.
 *
 * No other process may have the heap open, for it would go on with what the layout was:
 * SHMALLOC_EBUSY. Those that open it with SHMALLOC_READ_ONLY take part in no lock and are not seen:
 * they keep the handle they have. So do further handles of this process.
 *
 * @return 0; SHMALLOC_EBUSY; -EINVAL for a name that is too long; SHMALLOC_EREADONLY, _EPOISONED;
 *         what the system refused, -EIO say: then the layout may be the new one, but not durable.
 * Threads: any thread; waits for processes that attach or leave. Crash: crash-atomic. Durability:
 * durable when it returns 0.
 */
SHMALLOC_API int shmalloc_set_layout(shmalloc_heap *heap, const char *name, uint64_t version);

/** Raise the size the heap may grow to (bytes, rounded up to 1 MiB, at most 16 TiB).
 *  @return 0; -EINVAL when below the current maximum; SHMALLOC_EREADONLY. Visible; crash-atomic.
 *  Processes whose mapping is smaller get SHMALLOC_EADDRESS for blocks beyond it until they reopen.
 *  A mapping has room for sixteen times the maximum at open, up to 1 TiB, unless addresses are
 *  scarce or the base is fixed. */
SHMALLOC_API int shmalloc_set_max_size(shmalloc_heap *heap, uint64_t bytes);

/* ---- references ------------------------------------------------------------------------------ */

/** Address of `ref` in this process; NULL for 0 and for anything outside the heap. Stays valid
 * until
 *  the handle is closed, however the heap grows. Never fails otherwise; any thread; O(1). */
SHMALLOC_API void *shmalloc_ptr(const shmalloc_heap *heap, shmalloc_ref ref);

/** The same, and NULL unless all of `len` bytes from `ref` lie inside the heap. */
SHMALLOC_API void *shmalloc_ptr_range(const shmalloc_heap *heap, shmalloc_ref ref, uint64_t len);

/** The ref of an address in this process; 0 for NULL and for anything outside the heap. */
SHMALLOC_API shmalloc_ref shmalloc_ref_of(const shmalloc_heap *heap, const void *address);

/**
 * The heap, open in this process, that an address lies in; NULL when it lies in none. A file that
 * is open both for writing and read-only is two heaps at two addresses. The handle is one that
 * shmalloc_open() gave, and is not counted once more: close it as often as it was opened.
 *
 * Threads: any, also while others open and close heaps; what another thread closes after the answer
 * is for the program to order. Never fails. Cost: a lock of this process, and one comparison for
 * each open heap.
 */
SHMALLOC_API shmalloc_heap *shmalloc_heap_of(const void *address);

/* ---- the program's own words ----------------------------------------------------------------- */

/**
 * Store an 8-aligned word of 8 bytes of the program's own, in the order that a kill respects.
 *
 * The word is stored by one instruction: others, and who comes after a kill, see the old value or
 * the new one. Who loads the new value by shmalloc_load() sees all that the thread stored before.
 * After a kill that came when the word was stored, all of that is there; nothing that the program
 * stores later is, while the word is not. So make a block ready with plain stores, then link it.
 *
 * Threads: any; of two that store to one word at once, one value is lost, so use a mutex.
 * Crash: crash-atomic. Durability: none by itself. Cost: a store.
 */
static inline void shmalloc_store(uint64_t *word, uint64_t value)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST); /* a kill cuts a thread's stores at one point */
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

/** Load such a word, and then what its value stands for. Any thread. Cost: a load. */
static inline uint64_t shmalloc_load(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

/* ---- allocation: refs ------------------------------------------------------------------------ */

/**
 * Allocate a block of at least `size` bytes and store its ref in `*out`.
 *
 * @param size  Bytes; 0 counts as 1. The block is aligned to 8 bytes up to size 8, else to 16.
 *              Contents indeterminate.
 * @param out   Written only on success. If `out` points into this heap (8-aligned), the allocation
 *              and the store are one crash-atomic step: no kill leaks the block or leaves `*out`
 *              dangling. Otherwise a kill can leave one unreferenced block.
 *
 * @return 0, or a negative code, in which case nothing changed:
 *   -EINVAL              out is NULL, or in the heap and not 8-aligned
 *   -ENOSPC              the file system is full
 *   -EFBIG               RLIMIT_FSIZE or the file system's limit
 *   SHMALLOC_EFULL       no free run is long enough and the heap is at its maximum, or sealed
 *                        against growing; the message names the largest free run
 *   SHMALLOC_EREADONLY   the heap was opened read-only
 *   SHMALLOC_ETHREADS    1,024 threads use the heap
 *   SHMALLOC_EPROCESSES  a forked child could not attach: 128 processes have the heap open
 *   SHMALLOC_ECORRUPT    a check of the file's contents failed; the heap is poisoned
 *   SHMALLOC_EPOISONED   it was poisoned before
 *
 * Ownership: the block belongs to the heap until it is freed; no process's exit frees it.
 * Threads:   any thread of any process. May wait for a class lock or the page lock.
 * Crash:     crash-atomic, as said for `out`. Durability: none by itself.
 * Cost:      O(1) from the thread's cache; otherwise one lock and at most one search of free runs.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_ref_alloc(shmalloc_heap *heap, size_t size, shmalloc_ref *out);

/** shmalloc_ref_alloc() of zeroed bytes. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_ref_alloc_zeroed(shmalloc_heap *heap, size_t size, shmalloc_ref *out);

/** shmalloc_ref_alloc() at a multiple of `alignment` bytes from the start of the heap and, since
 * mappings
 *  are 2 MiB-aligned, in memory too. A power of two up to 1 MiB, else -EINVAL. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_ref_alloc_aligned(shmalloc_heap *heap, size_t alignment, size_t size,
                               shmalloc_ref *out);

/** shmalloc_ref_alloc() of zeroed bytes with a type tag, 1..0xfeff, that shmalloc_tag(),
 *  shmalloc_each_block() and shmalloc-inspect show. Costs 2 bytes for each slot of the slab and a
 *  slower free. 0 is no tag. 0xff00..0xffff are reserved for the library's own structures:
 * -EINVAL. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_ref_alloc_tagged(shmalloc_heap *heap, size_t size, uint16_t tag, shmalloc_ref *out);

/**
 * shmalloc_ref_alloc() of a block that holds a copy of `len` bytes. It is allocated, filled, then
 * linked: who finds the ref in `*out`, also after a kill, finds the bytes. So a structure is made
 * ready in a variable, and one call puts it into the heap.
 *
 * @param bytes  What is copied, from anywhere; NULL only with a `len` of 0, else -EINVAL. It must
 *               not change meanwhile.
 * @param out    As of shmalloc_ref_alloc(). What it held before is replaced, not freed.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_ref_dup(shmalloc_heap *heap, const void *bytes, size_t len, shmalloc_ref *out);

/** The tag of a block, 0 when it has none or is not a block (in the words of
 * shmalloc_ref_free()). */
SHMALLOC_API uint16_t shmalloc_tag(const shmalloc_heap *heap, shmalloc_ref ref);

/**
 * Free the block `*ref` and store 0 there.
 *
 * If `ref` points into this heap, unlinking and freeing are one crash-atomic step. A ref of 0 does
 * nothing.
 *
 * @return 0, or a negative code, in which case nothing changed, but for one case of
 * SHMALLOC_EDOUBLEFREE:
 *   SHMALLOC_EBADREF      not the first byte of a block of this heap; also of a block above 64 KiB
 *                         that was freed and that no thread keeps, whose pages are no block's,
 *                         always found
 *   SHMALLOC_EDOUBLEFREE  the block is free. Of a block above 64 KiB that the thread which freed it
 *                         keeps for its next requests (up to 1 MiB, see shmalloc_trim()) always
 *                         found, whoever frees it again. Of others in hardened heaps always found;
 *                         otherwise at once for the last block freed, and for others when the cache
 *                         is emptied: then it is counted and reported here although `*ref` was
 *                         freed: do not free it again
 *   -EINVAL, SHMALLOC_EREADONLY, _ECORRUPT, _EPOISONED   as for shmalloc_ref_alloc()
 *
 * What is not a block is found out without a lock, by a look at what the heap says of its page. So
 * there is one thing that cannot be answered: a ref into the free end of the file while another
 * process or thread cuts that off (shmalloc_trim(), or storage going back by itself). Such a look,
 * like any other there, may be a SIGBUS. A live block's page is never cut off.
 */
SHMALLOC_API int shmalloc_ref_free(shmalloc_heap *heap, shmalloc_ref *ref);

/**
 * Change the size of the block `*ref`; its first min(old, new) bytes stay. In place when the size
 * class stays or, for large blocks, when the pages behind are free; otherwise a new block, and
 * `*ref` changes. If `ref` points into this heap, the change is one crash-atomic step. A `*ref` of
 * 0 allocates. Tag and alignment above 16 are kept only in place. Codes of shmalloc_ref_alloc() and
 * shmalloc_ref_free(); on failure the old block is as it was.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_ref_realloc(shmalloc_heap *heap, shmalloc_ref *ref, size_t size);

/* ---- allocation: pointers -------------------------------------------------------------------- */
/* The malloc-shaped family, for libraries that take allocator hooks. NULL on failure, with the
 * cause in shmalloc_errmsg() and errno ENOMEM (EINVAL for a bad alignment). A kill between the
 * return and the program's own store leaves one unreferenced block. */

/** As malloc(3). */
SHMALLOC_API SHMALLOC_USE_RESULT
void *shmalloc_malloc(shmalloc_heap *heap, size_t size);
/** As calloc(3). */
SHMALLOC_API SHMALLOC_USE_RESULT
void *shmalloc_calloc(shmalloc_heap *heap, size_t count, size_t size);
/** As realloc(3), except that size 0 counts as 1. On failure the old block is as it was. */
SHMALLOC_API SHMALLOC_USE_RESULT
void *shmalloc_realloc(shmalloc_heap *heap, void *block, size_t size);
/** As aligned_alloc(3); any size; alignment a power of two up to 1 MiB. */
SHMALLOC_API SHMALLOC_USE_RESULT
void *shmalloc_aligned_alloc(shmalloc_heap *heap, size_t alignment, size_t size);
/** As free(3), but says what was wrong: the codes of shmalloc_ref_free(). */
SHMALLOC_API int shmalloc_free(shmalloc_heap *heap, void *block);
/** Bytes that may be used in a block; 0 for NULL and for what is not a block (in the words of
 * shmalloc_ref_free()). */
SHMALLOC_API size_t shmalloc_usable_size(const shmalloc_heap *heap, const void *block);

/* ---- named roots ----------------------------------------------------------------------------- */
/* Thousands of names of 1 to 255 bytes, each with a ref and an optional type id. All calls are
 * visible and crash-atomic. Codes beside those below: -EINVAL for a bad name, and those of
 * shmalloc_ref_alloc(). */

/** Bind `name` to the block `ref`, or to 0, and to `type` (0: none), replacing what it was bound
 * to.
 * SHMALLOC_EBADREF when
 *  `ref` is not the first byte of a block, or one that was freed, as far as shmalloc_ref_free()
 *  would find that at once or the calling thread has it cached. A block that is freed later stays
 *  bound: remove or replace the root first. `shmalloc-inspect check` names roots that were not. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_root_set(shmalloc_heap *heap, const char *name, uint64_t type, shmalloc_ref ref);

/** Look `name` up. `type` other than 0 must equal the root's, else SHMALLOC_ETYPE. SHMALLOC_ENOROOT
 *  when there is none; then shmalloc_errmsg() offers a name that is close to it, if one of the
 *  first 1,000 is. Works read-only. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_root_get(const shmalloc_heap *heap, const char *name, uint64_t type,
                      shmalloc_ref *out);

/** Unbind `name`. The block it named is not freed. SHMALLOC_ENOROOT when there is none. */
SHMALLOC_API int shmalloc_root_remove(shmalloc_heap *heap, const char *name);

/** A root, for shmalloc_root_each(). */
typedef struct shmalloc_root {
    const char *name; /**< valid during the callback */
    uint64_t type;    /**< 0 none */
    shmalloc_ref ref; /**< 0 none */
} shmalloc_root;

/** Call `visit` for a snapshot of all roots, in no particular order, holding no lock; a value other
 *  than 0 from it stops and is returned. Works read-only. */
SHMALLOC_API int shmalloc_root_each(const shmalloc_heap *heap,
                                    int (*visit)(const shmalloc_root *root, void *arg), void *arg);

/**
 * Find the root `name`, or allocate `size` zeroed bytes, let `init` fill them and publish them
 * under the name. Of several that create at once one wins; the others free theirs and get the
 * winner's. A process killed in here leaks nothing. A root that is bound to 0 is found: *out is 0
 * then. One whose block is smaller than `size`, as an earlier version of the program may have made
 * it, is refused: shmalloc_errmsg() names both sizes.
 *
 * @param init  May be NULL. Called with the block before anybody else can see it; a value other
 *              than 0 frees the block and is returned (use negative values).
 * @return 0 found, SHMALLOC_CREATED, or a negative code: SHMALLOC_ETYPE when found with another
 *         type id; SHMALLOC_ESIZE with a smaller block; SHMALLOC_EBADREF bound to what is no block,
 *         in the words of shmalloc_root_set().
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_root_get_or_create(shmalloc_heap *heap, const char *name, uint64_t type, size_t size,
                                int (*init)(shmalloc_heap *heap, void *block, void *arg), void *arg,
                                shmalloc_ref *out);

/* ---- who lives ------------------------------------------------------------------------------- */
/* For protocols of the program's own: what a thread claims, it marks with its id, and who finds the
 * mark of a dead one clears up. A shmalloc_mutex does this by itself. */

/**
 * The id of the calling thread's attachment to the heap, which begins with its first call that
 * changes the heap (this may be it) and ends with the thread, its process, or shmalloc_close().
 *
 * No other attachment ever gets the same id; a thread that comes back after a close, and a forked
 * child, have others. In a copy that a fork makes of a private heap the ids are the copy's. Only
 * after power loss, or a restore of an older copy, can ids be given again that were given before.
 *
 * @return the id, never 0; or 0 with shmalloc_errmsg(), for the reasons of shmalloc_ref_alloc(),
 *         and in a private heap for threads beyond 1,023.
 *
 * Threads: any. Cost: a comparison, but for the thread's first call.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
uint64_t shmalloc_self(shmalloc_heap *heap);

/**
 * Does the attachment `id` still exist? Nothing is timed, and a process that is stopped is alive.
 *
 * 0 is final: the thread will store nothing more to the heap under that id, and all that it stored
 * is visible. 1 is of the moment of the call, and may come for one that has just died: while
 * somebody brings back what the dead process held; for a thread that ended without its destructors
 * (a raw exit system call), until its process makes calls again; in a poisoned heap for threads
 * that ended, until their process ends.
 *
 * @param id  Of shmalloc_self() in any process. For 0, and what nobody was ever given, the answer
 *            is 0.
 * @return 1, 0, or a negative code when it cannot be told, which is no death:
 *   SHMALLOC_EFILESYSTEM  the file system does not tell (SHMALLOC_ANY_FILE_SYSTEM, or a reader)
 *   SHMALLOC_EADDRESS     the heap has become longer than this process has addresses for
 *   -EBADF and others     the file's locks cannot be looked at
 *   SHMALLOC_ECORRUPT, _ECLOSED
 *
 * Threads and processes: any, also a reader, and a forked child before its first call.
 * Cost: a system call for threads of other processes.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_is_alive(const shmalloc_heap *heap, uint64_t id);

/* ---- mutex ----------------------------------------------------------------------------------- */

/** A robust mutex that lives in the heap. Zeroed bytes are a valid, unlocked one, so blocks from
 *  shmalloc_ref_alloc_zeroed() need no initialisation. Valid again after reboot or copy. 64 bytes,
 *  8-aligned; free it only when nobody holds it or waits. */
typedef struct shmalloc_mutex {
    uint64_t opaque[8];
} shmalloc_mutex;

/**
 * Lock. Not recursive.
 *
 * After SHMALLOC_OWNER_DIED the dead owner's unfinished alloc, free or realloc is resolved; what it
 * was doing to *your* data you must judge, but for what it changed in a transaction that had locked
 * the mutex: that is whole, and the answer is 0. When your data are whole again, say so by
 * shmalloc_mutex_consistent(). Who unlocks without it hands the same answer to the next owner, and
 * so on: it is never lost, and never final. A thread that ended holding the mutex counts as dead.
 * So does one that held it when the heap was copied or the machine stopped: in the copy, and after
 * the reboot, the first owner gets SHMALLOC_OWNER_DIED.
 *
 * @return 0; SHMALLOC_OWNER_DIED; -EDEADLK: the caller holds it; -EINVAL: not in this heap;
 * SHMALLOC_EREADONLY.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_mutex_lock(shmalloc_heap *heap, shmalloc_mutex *mutex);

/** Lock unless it is held: then -EBUSY, and shmalloc_errmsg() says who holds it: process, thread,
 * since when. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_mutex_trylock(shmalloc_heap *heap, shmalloc_mutex *mutex);

/** Lock, waiting at most `timeout_ns` nanoseconds: then -ETIMEDOUT, and shmalloc_errmsg() says who
 * holds it. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_mutex_timedlock(shmalloc_heap *heap, shmalloc_mutex *mutex, uint64_t timeout_ns);

/** The holder says that what the mutex guards is whole again after a SHMALLOC_OWNER_DIED; without
 * one, nothing changes.
 *  Crash-atomic. SHMALLOC_ENOTOWNER when the calling thread does not hold it; -EINVAL: not in this
 *  heap. */
SHMALLOC_API int shmalloc_mutex_consistent(shmalloc_heap *heap, shmalloc_mutex *mutex);

/** Unlock. SHMALLOC_ENOTOWNER when the calling thread does not hold it; SHMALLOC_EINTX: its
 * transaction does, and
 *  unlocks it at its end; -EINVAL: not in this heap. */
SHMALLOC_API int shmalloc_mutex_unlock(shmalloc_heap *heap, shmalloc_mutex *mutex);

/* ---- waiting --------------------------------------------------------------------------------- */

/** For the timeouts of this section, in nanoseconds: wait without end. */
#define SHMALLOC_FOREVER UINT64_MAX

/**
 * Sleep while the 32-bit word in the heap is `expected`, until shmalloc_wake(), at most
 * `timeout_ns` nanoseconds.
 *
 * The protocol is: who changes the word stores the new value first and calls shmalloc_wake() then;
 * who waits calls this in a loop that looks at the word itself. So no wake-up is lost when either
 * is killed: a change that nobody was woken for is noticed all the same, within some 20 ms. A value
 * must not come back while somebody sleeps on it: let the word count. Of a 64-bit word, use the
 * half that changes.
 *
 * The answer 0 promises nothing. It also comes, now and then, for no reason, and after each end of
 * a thread or process that used the heap, which this call notices even when nobody else looks; so a
 * loop that asks whether a peer is alive and then calls this does not sleep for ever when the peer
 * dies in between.
 *
 * @param word  4-aligned, in the heap, behind what is freed. Nothing is stored to it.
 * @return 0; -ETIMEDOUT; -EINVAL: not an aligned word of this heap; -EFAULT: the file was cut off
 *         there; SHMALLOC_EREADONLY; SHMALLOC_EPOISONED, also when that happens meanwhile.
 *
 * Threads: any, of all processes that have the heap open; in a private heap those of the process.
 * No cancellation point.
 */
SHMALLOC_API int shmalloc_wait(shmalloc_heap *heap, const uint32_t *word, uint32_t expected,
                               uint64_t timeout_ns);

/** Wake at most `count` of those who sleep on the word (UINT32_MAX: all).
 *  @return how many were woken; the errors of shmalloc_wait(). A system call, also when nobody
 *  sleeps. */
SHMALLOC_API int shmalloc_wake(shmalloc_heap *heap, const uint32_t *word, uint32_t count);

/**
 * Sleep until the attachment `id` of shmalloc_self() has ended, at most `timeout_ns` nanoseconds.
 * Noticed within some 20 ms, by system calls of this thread; no other thread has to look.
 *
 * @return 0: as shmalloc_is_alive() says 0, for good; -ETIMEDOUT; the errors of
 * shmalloc_is_alive().
 *
 * Threads and processes: any, also a reader. No cancellation point.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_wait_death(const shmalloc_heap *heap, uint64_t id, uint64_t timeout_ns);

/** A condition variable that lives in the heap, for use with a shmalloc_mutex. Zeroed bytes are a
 * valid one. Valid
 *  again after reboot or copy. 32 bytes, 8-aligned; free it only when nobody waits. */
typedef struct shmalloc_cond {
    uint64_t opaque[4];
} shmalloc_cond;

/**
 * Unlock the mutex, which the caller holds, sleep until shmalloc_cond_signal() or _broadcast(), and
 * lock it again.
 *
 * As everywhere, 0 may come without a signal: call it in a loop that looks at what is waited for.
 * What is waited for changes under the mutex. Then no wake-up is lost: a waiter that is killed
 * takes none with it, and when a thread died after it changed what is waited for and before it
 * signalled, all waiters come back and look.
 *
 * @return with the mutex locked: 0; SHMALLOC_OWNER_DIED as from shmalloc_mutex_lock(); -ETIMEDOUT
 *         from shmalloc_cond_timedwait(). Without having slept, the mutex as it was: -EINVAL: one
 *         of both is not in this heap; SHMALLOC_ENOTOWNER; SHMALLOC_EREADONLY; SHMALLOC_EPOISONED.
 *         Any other code: the mutex could not be locked again, and is not held.
 *
 * No cancellation point.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_cond_wait(shmalloc_heap *heap, shmalloc_cond *cond, shmalloc_mutex *mutex);

/** shmalloc_cond_wait() that sleeps at most `timeout_ns` nanoseconds; to lock the mutex again may
 * take longer. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_cond_timedwait(shmalloc_heap *heap, shmalloc_cond *cond, shmalloc_mutex *mutex,
                            uint64_t timeout_ns);

/** Wake at least one of those who wait, if somebody does. The mutex need not be held. No system
 * call
 * when nobody
 *  waits. 0; -EINVAL: not in this heap; SHMALLOC_EREADONLY; SHMALLOC_EPOISONED. */
SHMALLOC_API int shmalloc_cond_signal(shmalloc_heap *heap, shmalloc_cond *cond);

/** Wake all who wait; otherwise as shmalloc_cond_signal(). */
SHMALLOC_API int shmalloc_cond_broadcast(shmalloc_heap *heap, shmalloc_cond *cond);
/* ---- readers without locks ------------------------------------------------------------------- */
/*
 * What replaces a reader-writer lock, which has no form that survives a death. Writers, under a
 * shmalloc_mutex, never change a block that others can reach: they fill a new one, store its ref,
 * and retire the old one. Readers take no lock:
 *
 *     do {
 *         shmalloc_read_begin(heap);
 *         shmalloc_ref ref = __atomic_load_n(&list->first, __ATOMIC_ACQUIRE);
 *         while (ref != 0 && shmalloc_read_valid(heap)) {     after a ref is loaded, before it is
 *     followed
 *             struct node *node = shmalloc_ptr(heap, ref);
 *             ... copy what is wanted out of *node ...
 *             ref = __atomic_load_n(&node->next, __ATOMIC_ACQUIRE);
 *         }
 *         rc = shmalloc_read_end(heap);
 *     } while (rc == SHMALLOC_EOUSTED);                        else what was copied is what was
 *     there
 *
 * A reader never waits and is never waited for. Instead, a section that takes so long that what it
 * may look at is to be freed is *ousted*: it can go on, but what it reads counts for nothing. So
 * memory that waits to be freed is bounded, also with a reader that was stopped: a thread has at
 * most 2,000 retired blocks, and 2 MiB of them.
 */

/**
 * Begin a read section of the calling thread. Sections may lie in each other; the outermost counts.
 *
 * Until it ends, no block that was linked when it began, or was linked since, is freed by
 * shmalloc_retire() without the section being told; nor is storage given back that it may look at.
 *
 * @return 0; or a negative code and no section: SHMALLOC_ECLOSED, _ECORRUPT, _EPOISONED, and those
 *         of a thread's first call: SHMALLOC_ETHREADS, _EPROCESSES, -ENOMEM.
 * Threads: any. In a forked child no section of its parent is open. A thread must not be cancelled
 * in one.
 * Crash:   a section of a dead thread is over.
 * Cost:    two stores, no fence, no atomic operation.
 */
SHMALLOC_API int shmalloc_read_begin(shmalloc_heap *heap);

/**
 * Does what the open section has loaded so far count? Ask after a ref is loaded and before it is
 * followed: a ref that was loaded from a block which was freed meanwhile may be anything.
 * @return 1; 0: it was ousted, or none is open: leave the loop, shmalloc_read_end() says so.
 */
SHMALLOC_API int shmalloc_read_valid(shmalloc_heap *heap);

/**
 * End the section that the calling thread began last.
 * @return 0: all that was copied is what was there; SHMALLOC_EOUSTED: it counts for nothing, do it
 *         again (in a section of another one that was ousted, this is so until that has ended);
 *         -EINVAL: no section is open; SHMALLOC_ECORRUPT. After three in a row, better do it under
 *         the lock of the writers.
 */
SHMALLOC_API int shmalloc_read_end(shmalloc_heap *heap);

/**
 * Free the block `*ref`, which others may be reading in sections, when none of them can do so any
 * more, and store 0 to *ref.
 *
 * If `ref` points into this heap, unlinking and retiring are one crash-atomic step: after a kill
 * the block is linked, or it will be freed. Other refs to the block must be gone before. A ref of 0
 * does nothing. The block counts as retired, not as allocated, from then on. A block of more than
 * 64 KiB is freed at once, and sections that are open then are ousted, the caller's own included.
 *
 * @return 0, or a negative code, in which case nothing changed:
 *   SHMALLOC_EBADREF, _EDOUBLEFREE   as for shmalloc_ref_free(); in hardened heaps also a block
 *                                    that is retired already
 *   -ENOSPC, SHMALLOC_EFULL          no room for the list of what is retired: 16 KiB for a thread's
 *                                    first
 *   -ENOTSUP                         the thread has retired all it may: this process lacks the
 *                                    system call membarrier(2), and processes with readers have it
 *   -EINVAL, SHMALLOC_EREADONLY, _ECORRUPT, _EPOISONED   as for shmalloc_ref_alloc()
 *
 * Threads: any; what may be done at once to one ref word is the program's to order, as with
 * shmalloc_ref_free().
 * Crash:   crash-atomic. What a dead thread had retired is freed by who adopts it.
 * Cost:    some nanoseconds; now and then a system call, and 1,000 frees.
 */
SHMALLOC_API int shmalloc_retire(shmalloc_heap *heap, shmalloc_ref *ref);

/* ---- transactions ---------------------------------------------------------------------------- */
/*
 * Several changes as one: after a kill at any instruction all of them are there or none is.
 *
 *     shmalloc_tx_begin(heap);
 *     shmalloc_tx_lock(heap, &from->mutex);            locked till the end
 *     shmalloc_tx_lock(heap, &to->mutex);
 *     shmalloc_tx_add(heap, &from->money, 8);          then it may be changed
 *     shmalloc_tx_add(heap, &to->money, 8);
 *     from->money -= amount, to->money += amount;
 *     shmalloc_tx_commit(heap);
 *
 * (Look at what each call returns, or write a function for shmalloc_tx_run(), which does it all
 * again after SHMALLOC_ECONFLICT.)
 *
 * A transaction belongs to the calling thread, and a thread has one at a time, in one heap: to
 * begin one inside it is to join it. Any other call of this library may be made meanwhile, but is
 * no part of it.
 *
 * Isolation is by mutexes: what is added must be guarded by one that the thread holds, best one of
 * the transaction, and must not be read by others without it, since it may be put back. What others
 * read without a lock is changed by shmalloc_tx_store(), which stores at the commit.
 *
 * When the thread, its process or all processes die inside, the transaction is rolled back, or
 * finished if it had committed: exactly once, by the next owner of a mutex that the thread held,
 * before it gets it, or by who finds the process dead. So a mutex whose owner died inside a
 * transaction that had locked it guards data that are whole: its next owner gets 0. A thread that
 * ends, a close and a process's end roll back, too. Durable is a commit when a later
 * shmalloc_sync() or the last orderly close says so; after power loss in the middle it may be torn.
 *
 * A forked child is in no transaction. In its copy of a private heap the parent's is rolled back.
 * Who leaves the part of a program that is a transaction by longjmp() still has it open; a signal
 * handler must not leave a call so.
 *
 * Codes of all of them: SHMALLOC_ENOTX without a transaction; SHMALLOC_EREADONLY, _ECLOSED,
 * _ECORRUPT, _EPOISONED; and when the log must grow (it holds what was added, and 24 bytes for each
 * call; storage for it is taken from the heap) SHMALLOC_EFULL, -ENOSPC and what else
 * shmalloc_ref_alloc() says. A call that fails changed nothing, and the transaction is as it was:
 * abort it, or go on without.
 */

/**
 * Begin a transaction, or join the one that is open in this thread and heap.
 * @return 0; SHMALLOC_EINTX: one is open in another heap; SHMALLOC_ETHREADS; -ENOMEM; the first of
 *         a thread takes 16 KiB of the heap: SHMALLOC_EFULL, -ENOSPC.
 * Cost: some nanoseconds.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_begin(shmalloc_heap *heap);

/**
 * End it so that all of it happened: words are stored, blocks freed, mutexes unlocked, in this
 * order. One that was joined ends with the outermost.
 * @return 0; what the inner one was aborted with (-ECANCELED, or what the function of
 *         shmalloc_tx_run() answered): it was rolled back, and is over; SHMALLOC_EPOISONED: the
 *         heap was found damaged meanwhile; it is over for this thread, what it left is for a
 *         repair.
 * Crash: crash-atomic. Others see the words one after the other, in the order of the calls, all
 * else when they get the mutexes.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_commit(shmalloc_heap *heap);

/** End it so that nothing of it happened, and unlock its mutexes. When it was joined, nothing more
 * can be committed: the
 *  outermost commit rolls back and answers -ECANCELED. */
SHMALLOC_API int shmalloc_tx_abort(shmalloc_heap *heap);

/**
 * Lock a mutex until the end of the transaction. One that it holds already, or that lies in a block
 * which it allocated, so that nobody else can know of it, is there without more ado.
 *
 * It waits only for a mutex whose address is higher than those of all that the transaction holds;
 * so transactions never wait for each other in a circle. Any other is tried.
 *
 * @return 0; SHMALLOC_ECONFLICT: it was tried, and is held: abort, and run it again
 *         (shmalloc_tx_run() does so), best with ascending addresses; SHMALLOC_OWNER_DIED: locked,
 *         as shmalloc_mutex_lock() says, and what shmalloc_mutex_consistent() says counts when the
 *         transaction commits; -EDEADLK: the thread holds it outside the transaction; -EINVAL: not
 *         in this heap, or inside what was added or freed before: lock first; -ENOLCK: it holds
 *         1,024.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_lock(shmalloc_heap *heap, shmalloc_mutex *mutex);

/**
 * Remember `len` bytes at `address` as they are, so that they can be put back; then change them. To
 * add the same bytes again costs next to nothing, and those of a block that the transaction
 * allocated need not be added.
 *
 * A mutex in there that the thread holds is left out. A mutex that others may hold must not be in
 * there, nor a part of one only.
 *
 * @return 0; -EINVAL: not in this heap.
 * Crash: what is put back in whole 8-aligned words is stored so.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_add(shmalloc_heap *heap, const void *address, size_t len);

/**
 * Allocate a block that is freed again if the transaction is rolled back, and store its ref in
 * `*out`, which is added if it lies in the heap. The contents are indeterminate. Until the end of
 * the transaction it is freed by shmalloc_tx_free() only: shmalloc_free(), shmalloc_ref_free() or a
 * resize of it would be undone as if the block were still the transaction's. Codes of
 * shmalloc_ref_alloc().
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_alloc(shmalloc_heap *heap, size_t size, shmalloc_ref *out);

/**
 * Free the block `*ref` when the transaction commits, and store 0 there now; the word is added if
 * it lies in the heap. A ref of 0 does nothing. Till the commit the block may still be used.
 * @return 0; codes of shmalloc_ref_free(); -EINVAL: the block has a mutex that the transaction
 * holds.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_free(shmalloc_heap *heap, shmalloc_ref *ref);

/** shmalloc_tx_free() of a block that others may be reading in sections: the commit retires it, as
 *  shmalloc_retire() does. To replace one: shmalloc_tx_alloc() the new one, fill it,
 *  shmalloc_tx_store() its ref, and retire a copy of the old ref. Codes of both. */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_retire(shmalloc_heap *heap, shmalloc_ref *ref);

/**
 * Store `value` in the 8-aligned `word` when the transaction commits; till then it is as it was. So
 * others that load it without a lock (acquire) see nothing that may be rolled back, and what it
 * leads to was stored before.
 * @return 0; -EINVAL: not a word of this heap.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_tx_store(shmalloc_heap *heap, uint64_t *word, uint64_t value);

/**
 * Run `function` in a transaction: begin, call it, and commit if its answer is not negative, else
 * abort. When it answers SHMALLOC_ECONFLICT (a call did, and it passed that on) wait for the mutex
 * that was refused, with nothing held, and run it again. So it must do nothing else than it can do
 * twice. Inside a transaction it joins that: its abort is that of the whole, and it is not run
 * again, but the outer one may be.
 *
 * @return what it answered; or why the transaction could not begin or commit; SHMALLOC_ENOTX: the
 *         function ended it; -EINVAL: no function.
 */
SHMALLOC_API SHMALLOC_USE_RESULT int shmalloc_tx_run(
    shmalloc_heap *heap, int (*function)(shmalloc_heap *heap, void *arg), void *arg);

/* ---- the heap as a whole --------------------------------------------------------------------- */

/**
 * Make `len` bytes from `ref` durable (msync); ref 0 and len 0 mean the whole heap. Durable, not
 * atomic: the kernel may write any page earlier. A failure is sticky: once a sync failed, every
 * later one returns -EIO, because the kernel may have dropped the pages.
 * @return 0; -EIO and other errnos; SHMALLOC_EBADREF for a range outside the heap;
 * SHMALLOC_EREADONLY; -EINVAL for a private heap.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_sync(shmalloc_heap *heap, shmalloc_ref ref, uint64_t len);

/**
 * Give unused memory back: the calling thread's cache to the heap, empty slabs and the large blocks
 * that threads of any process keep to the free runs, free runs of 64 KiB and more to the file
 * system, free chunks at the tail by shortening the file. What a seal or an attribute of the file
 * forbids is left out.
 *
 * A thread keeps blocks of more than 64 KiB and at most 1 MiB that it freed, for its next requests:
 * at most 12 blocks and 8 MiB, or 1/32 of the heap's maximum if that is less. Besides here they go
 * back one to two decay times after they were freed, if the thread makes calls; when it ends; and
 * when anybody finds no room. Hardened heaps and those that give storage back at once (0 ms) keep
 * none; nor is a block with a tag kept.
 *
 * @return bytes given back to the file system; SHMALLOC_EREADONLY, SHMALLOC_EPOISONED, or what the
 * system refused.
 */
SHMALLOC_API int64_t shmalloc_trim(shmalloc_heap *heap);

/** For shmalloc_set_give_back(): never by itself. */
#define SHMALLOC_NEVER UINT64_MAX

/**
 * Set when free memory goes back to the file system by itself: free runs of 64 KiB and more that
 * have been free for `decay_ms` milliseconds (0: at once; SHMALLOC_NEVER: only shmalloc_trim() does
 * it), as long as more than `retain` bytes of free storage are left. A new heap has 10,000 ms and 0
 * bytes. A large block that a thread keeps (shmalloc_trim()) becomes a free run first, after as
 * long again.
 *
 * Calls that take the long way do the work, at most once a second and 16 MiB at a time (with 0 ms:
 * after every free of a large block or empty slab), so a process that does nothing gives nothing
 * back. The last orderly shmalloc_close() does what is left of it: all runs go that were free that
 * long, if anything was freed since the closing process opened the heap. What was freed just before
 * stays: `shmalloc-inspect trim` gives it back. Stored in the heap; holds for all processes.
 * Visible; crash-atomic for each value.
 * @return 0; -EINVAL for a decay of more than 100 years; SHMALLOC_EREADONLY.
 */
SHMALLOC_API int shmalloc_set_give_back(shmalloc_heap *heap, uint64_t decay_ms, uint64_t retain);

/** Figures of a heap, bytes unless said otherwise. A moving heap gives a moving picture. Start from
 *  SHMALLOC_STATS_INIT. */
typedef struct shmalloc_stats {
    size_t struct_size;         /**< sizeof(shmalloc_stats) as the program knows it, which stays */
    uint64_t file_size;         /**< length of the file */
    uint64_t max_size;          /**< it may grow to */
    uint64_t metadata;          /**< fixed areas, page words and descriptors, the library's spans */
    uint64_t allocated;         /**< blocks that users have, rounded up to their slots or pages */
    uint64_t allocated_blocks;  /**< their number */
    uint64_t cached;            /**< free slots in thread caches, and freed large blocks that
                                     threads keep */
    uint64_t central_free;      /**< free slots in slabs */
    uint64_t free_pages;        /**< free runs */
    uint64_t free_reserved;     /**< part of free_pages that has blocks of the file system */
    uint64_t largest_free_run;  /**< largest block that fits without growing */
    uint64_t chunks;            /**< number of times the heap grew, plus one */
    uint64_t roots;             /**< number of named roots */
    uint64_t processes;         /**< number attached */
    uint64_t threads;           /**< number of threads with a cache */
    uint64_t generation;        /**< number of times the heap was attached from rest */
    uint64_t repairs;           /**< number of locks taken over from dead owners since the first
                                     attach */
    uint64_t lock_waits;        /**< number of times a thread waited for a lock since the first
                                     attach */
    uint64_t double_frees;      /**< number found when caches were emptied */
    uint64_t prefaulted;        /**< this process's open with SHMALLOC_PREFAULT brought in */
    uint64_t huge;              /**< this process maps in huge pages, if it asked for them */
    uint64_t retired;           /**< blocks that were retired and are not yet freed */
    uint64_t retired_blocks;    /**< their number */
} shmalloc_stats;

#define SHMALLOC_STATS_INIT                                                                    \
    { sizeof(shmalloc_stats), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0 }

/** Fill `*out`, which began as SHMALLOC_STATS_INIT, else -EINVAL. Works read-only. Walks the slabs.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_get_stats(const shmalloc_heap *heap, shmalloc_stats *out);

/** An allocated block, for shmalloc_each_block(). */
typedef struct shmalloc_block {
    shmalloc_ref ref;
    uint64_t size; /**< usable bytes */
    uint16_t tag;  /**< 0 none */
} shmalloc_block;

/**
 * Call `visit` for every allocated block in ascending order of refs, holding no lock; a value other
 * than 0 from it stops and is returned. Blocks allocated or freed meanwhile may or may not be seen.
 * Needs private memory for the list of cached slots. Works read-only.
 */
SHMALLOC_API int shmalloc_each_block(const shmalloc_heap *heap,
                                     int (*visit)(const shmalloc_block *block, void *arg),
                                     void *arg);

/**
 * Check all of the heap's own data against each other.
 * @return 0 sound; SHMALLOC_ECORRUPT with the first violation in shmalloc_errmsg(). Complete when
 *         no other thread allocates or frees meanwhile; otherwise caches in motion are left out.
 */
SHMALLOC_API SHMALLOC_USE_RESULT
int shmalloc_check(const shmalloc_heap *heap);

/* ---- what does not compile ------------------------------------------------------------------- */
/* Calls that store a ref take the address of a `shmalloc_ref`, or NULL; a block's address there, or
 * a `void *`, would have its first 8 bytes taken for a ref. Where C has _Generic it does not
 * compile, in C++ it does not anyway. Each call is a function all the same: `(shmalloc_ref_free)`
 * without the guard, `&shmalloc_ref_free` for a pointer to it. */

#if !defined(__cplusplus) && defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
/* NULL, as ((void *)0), gives the conditional expression the other type; a `void *` does not. */
#define SHMALLOC_NULL_ONLY(p) _Generic(1 ? (p) : (shmalloc_ref *)8, shmalloc_ref *: (p))
#define SHMALLOC_ADDRESS_OF_REF(p) \
    _Generic((p), shmalloc_ref *: (p), void *: SHMALLOC_NULL_ONLY(p))
#define shmalloc_ref_alloc(heap, size, out) \
    shmalloc_ref_alloc(heap, size, SHMALLOC_ADDRESS_OF_REF(out))
#define shmalloc_ref_alloc_zeroed(heap, size, out) \
    shmalloc_ref_alloc_zeroed(heap, size, SHMALLOC_ADDRESS_OF_REF(out))
#define shmalloc_ref_alloc_aligned(heap, alignment, size, out) \
    shmalloc_ref_alloc_aligned(heap, alignment, size, SHMALLOC_ADDRESS_OF_REF(out))
#define shmalloc_ref_alloc_tagged(heap, size, tag, out) \
    shmalloc_ref_alloc_tagged(heap, size, tag, SHMALLOC_ADDRESS_OF_REF(out))
#define shmalloc_ref_dup(heap, bytes, len, out) \
    shmalloc_ref_dup(heap, bytes, len, SHMALLOC_ADDRESS_OF_REF(out))
#define shmalloc_ref_realloc(heap, ref, size) \
    shmalloc_ref_realloc(heap, SHMALLOC_ADDRESS_OF_REF(ref), size)
#define shmalloc_ref_free(heap, ref) shmalloc_ref_free(heap, SHMALLOC_ADDRESS_OF_REF(ref))
#define shmalloc_retire(heap, ref) shmalloc_retire(heap, SHMALLOC_ADDRESS_OF_REF(ref))
#define shmalloc_tx_alloc(heap, size, out) \
    shmalloc_tx_alloc(heap, size, SHMALLOC_ADDRESS_OF_REF(out))
#define shmalloc_tx_free(heap, ref) shmalloc_tx_free(heap, SHMALLOC_ADDRESS_OF_REF(ref))
#define shmalloc_tx_retire(heap, ref) shmalloc_tx_retire(heap, SHMALLOC_ADDRESS_OF_REF(ref))
#endif

#ifdef __cplusplus
}
#endif

#endif
