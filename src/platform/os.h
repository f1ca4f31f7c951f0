/* SPDX-License-Identifier: MIT */
/*
 * os.h - the only module that talks to the kernel.
 *
 * Every function returns 0 or a negated errno unless it says otherwise, and sets no detail message:
 * callers know what the call was for.
 */
#ifndef SMI_OS_H
#define SMI_OS_H

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* What two processes on one heap must have in common. */
struct smi_platform {
    uint32_t machine;           /* ELF e_machine */
    uint32_t os_page_bytes;
    uint32_t mutex_bytes;       /* sizeof(pthread_mutex_t) */
    uint64_t mutex_fingerprint; /* hash of a fresh robust process-shared mutex */
};
int smi_os_platform(struct smi_platform *out);
uint32_t smi_os_page_bytes(void);

/* A robust, process-shared, error-checking mutex in so many words of 8 bytes. */
#define SMI_MUTEX_WORDS 6
int smi_os_mutex_init(void *mutex);

/* pthread_mutex_lock that gives up at a time of smi_os_clock: ETIMEDOUT. */
int smi_os_mutex_lock_until(void *mutex, uint64_t deadline);

/* Sleep while *word is `expected`, until a wake or a time of smi_os_clock. 0: woken, maybe for no
 * reason; -EAGAIN: it is another; -ETIMEDOUT; -EINTR; -EFAULT: nothing is there. `is_private`: the
 * memory is no file's. No cancellation point. */
int smi_os_futex_wait(const uint32_t *word, uint32_t expected, uint64_t until, int is_private);
/* Wake at most `count` who sleep on it; how many were. */
int smi_os_futex_wake(const uint32_t *word, uint32_t count, int is_private);

/* What a file is. */
struct smi_file_info {
    uint64_t size, device, inode;
    uint64_t blocks; /* bytes of storage */
    uint32_t mode;   /* st_mode */
    uint64_t links;  /* 0: unlinked */
};
int smi_os_stat(int fd, struct smi_file_info *out);
/* The same by name: of what a symbolic link leads to, or of the link. */
int smi_os_stat_path(const char *path, int follow, struct smi_file_info *out);

/* What forbids changes of a file whatever the permissions: attributes (chattr(1)) and the seals of
 * a memfd (fcntl(2)). */
enum smi_guard {
    SMI_IMMUTABLE = 1,
    SMI_APPEND_ONLY = 2,
    SMI_SEAL_WRITE = 4,
    SMI_SEAL_FUTURE_WRITE = 8, /* what is mapped already may be written to */
    SMI_SEAL_GROW = 16,
    SMI_SEAL_SHRINK = 32,
};
/* Of what `fd` is; -1: of the file `path`. What cannot be told is left out. */
unsigned smi_os_guards(int fd, const char *path);
/* Of the directory of `path`. */
unsigned smi_os_guards_of_directory(const char *path);

/* Is `path` a symbolic link? 0 also when it cannot be told. */
int smi_os_is_link(const char *path);

/* The name of the file's file system if it is one that cannot keep several processes' mappings and
 * locks coherent (network, FUSE, overlay); NULL otherwise. */
const char *smi_os_unfit_file_system(int fd);

/* Bytes that are free for `fd`, where even reading a hole through a mapping takes storage (tmpfs);
 * else, and where there is no limit, UINT64_MAX. */
uint64_t smi_os_free_for_reading(int fd);

/* Open an existing file; returns the descriptor (close-on-exec). This one and all others that the
 * library opens are above 2, whatever the program has closed. */
int smi_os_open(const char *path, int read_only);
/* A new open file description of what `fd` is; returns the descriptor. SHMALLOC_EPROC: by /proc,
 * which is missing. */
int smi_os_reopen(int fd, int read_only);
void smi_os_close(int fd);
/* A program may close a descriptor that the library keeps, and open something on its number, which
 * may be the same file. So a kept description of a regular file has a mark by which it is known:
 * the offset, which nothing here uses. */
int smi_os_mark(int fd, uint32_t mark);
int smi_os_has_mark(int fd, uint32_t mark);
/* An unnamed file in the directory of `path`; returns the descriptor. `temp_name` (PATH_MAX bytes)
 * is "" if it really has no name, else the name that smi_os_publish or smi_os_discard takes
 * away. */
int smi_os_create_unnamed(const char *path, uint32_t mode, char *temp_name);
/* Give it the name `path`; -EEXIST if that exists. Either way `temp_name` is gone afterwards. */
int smi_os_publish(int fd, const char *path, const char *temp_name);
void smi_os_discard(const char *temp_name);
int smi_os_unlink(const char *path);

/* All `len` bytes, or fewer at the end of the file (then the rest of `buf` is zero); bytes read. */
int64_t smi_os_read(int fd, void *buf, size_t len, uint64_t offset);
int smi_os_write(int fd, const void *buf, size_t len, uint64_t offset);
int smi_os_truncate(int fd, uint64_t size);
/* Put storage behind a range of the file, keeping its contents. */
int smi_os_reserve(int fd, uint64_t offset, uint64_t len);
/* Take storage away from a range, which then reads as zeros. */
int smi_os_punch(int fd, uint64_t offset, uint64_t len);
int smi_os_sync_file(int fd);
/* The directory that holds `path`, so that a new name in it stays. */
int smi_os_sync_directory(const char *path);
/* The next bytes of a file that are no hole: [*at, *end) with *at moved on to them; *at == size
 * when there are none below `size`. */
int smi_os_next_data(int fd, uint64_t size, uint64_t *at, uint64_t *end);
/* Bring to the disk what the kernel has in memory of a file, and forget it as far as nobody maps
 * it. */
void smi_os_forget(int fd);
int smi_os_sync_range(void *address, uint64_t len);

/* Reserve `len` bytes of addresses, 2 MiB-aligned (at `fixed` if not NULL), and map the file over
 * all of them, also beyond its end. -EADDRINUSE, -ENOMEM. */
int smi_os_map(int fd, uint64_t len, int read_only, void *fixed, void **out);
/* Reserve `len` bytes of addresses for memory of this process alone, at a multiple of `alignment`
 * (a power of two); none of it can be touched, and no core dump has it, before smi_os_allow.
 * Nothing is charged. */
void *smi_os_reserve_private(uint64_t len, uint64_t alignment);
uint64_t smi_os_address_limit(void); /* bytes of addresses a process may have; UINT64_MAX: no
                                        limit */
int smi_os_allow(void *address, uint64_t len);
/* The same for zeros that can be read at once, but not counted as data (RLIMIT_DATA) before
 * smi_os_allow. */
void *smi_os_reserve_zeros(uint64_t len);
/* Take the memory behind a range of it away; it reads as zeros. */
int smi_os_empty(void *address, uint64_t len);
void smi_os_unmap(void *address, uint64_t len);
/* Bring pages of a mapping in, as reading them, or storing to them, would. -EINVAL before Linux
 * 5.14, -EFAULT beyond the file's end. */
int smi_os_populate(void *address, uint64_t len, int write);
/* Prefer huge pages in a mapping from now on; put the small ones of a range together now. -EINVAL
 * where there are none. */
int smi_os_want_huge(void *address, uint64_t len);
int smi_os_collapse(void *address, uint64_t len);
/* Bytes in [address, address + len) that this process maps in huge pages. Reads all of
 * /proc/self/smaps. */
uint64_t smi_os_huge_bytes(const void *address, uint64_t len);
/* Private zeroed memory, nothing charged until touched. The first `wiped` bytes are zero again in a
 * child, however it is forked. */
void *smi_os_private(size_t len, size_t wiped);

/* OFD locks. try: 0 got it, -EAGAIN held by another description. */
int smi_os_lock_byte(int fd, uint64_t byte);
int smi_os_unlock_byte(int fd, uint64_t byte);
/* Does another description hold a lock in [byte, byte + count)? 0 or 1. */
int smi_os_is_locked(int fd, uint64_t byte, uint64_t count);
/* Hold an OFD lock on `byte` of the file for as long as this process (not a forked child) lives: on
 * `own`, a description that nothing else has, pinned by a mapping of one page that children do not
 * inherit; so it can be closed then. *out is that mapping; smi_os_unmap(*out, 4096) ends it.
 * -EAGAIN: held by another. */
int smi_os_hold_byte(int own, uint64_t byte, void **out);

/* Both SHMALLOC_EPROC where /proc does not tell, or tells something else than Linux does. */
int smi_os_boot_id(uint8_t out[16]);
int smi_os_pid_namespace(uint64_t *out); /* inode */
uint64_t smi_os_start_time(pid_t pid, pid_t tid); /* clock ticks since boot, 0 unknown */
/* Page faults of a process so far: served from memory, and from a disk. */
int smi_os_faults(pid_t pid, uint64_t *minor, uint64_t *major);
unsigned smi_os_threads(void); /* of this process, 0 unknown; one that was just joined may still be
                                  counted */
uint32_t smi_os_process_id(void);
uint32_t smi_os_user_id(void);
uint32_t smi_os_thread_id(void);
int smi_os_thread_exists(pid_t tid, uint64_t start_time); /* in this process; 0: whenever it
                                                             began */
/* Does the C library know the calling thread by its real id? Not in a child of a raw clone(2),
 * where its mutexes would take the child for its parent. */
int smi_os_thread_known(void);
/* This process's name and the time it started; "" and 0 unknown. */
void smi_os_describe_self(char name[16], uint64_t *start_time);
void smi_os_random(void *buf, size_t len);
uint64_t smi_os_now(void);  /* nanoseconds since 1970 */
uint64_t smi_os_clock(void); /* CLOCK_MONOTONIC, nanoseconds */
uint64_t smi_os_tick(void); /* the same, coarse and cheap */
void smi_os_sleep(uint64_t ns);

/* Let the other hyperthread work for a moment, `times` as long. */
void smi_os_relax(int times);

/* membarrier(2): once a process has joined, each smi_os_barrier() of any process is a full fence in
 * all of its threads, between two of their instructions. It is one of the caller, too. -ENOSYS,
 * -EPERM and others where there is none. */
int smi_os_barrier_join(void);
int smi_os_barrier(void);

/* Write a text for people; whether somebody reads it is not told. */
void smi_os_say(int fd, const char *text, size_t len);
/* Another descriptor of the same, out of the way of the program's own and gone after exec; or a
 * negated errno. */
int smi_os_keep(int fd);
uint64_t smi_os_peak(void); /* bytes that this process had in memory at most */

/* Cancellation points inside the library must not end a thread half way. Returns the state
 * before. */
int smi_os_cancel_off(void);
void smi_os_cancel_restore(int state);

/* pthread_atfork, during which no signal handler of this thread runs: one that forks would wait for
 * the C library's list of such handlers, which the interrupted call keeps locked. */
void smi_os_at_fork(void (*before)(void), void (*in_parent)(void), void (*in_child)(void));

/* Does the C library know that the process has one thread only? 0: it may have several. */
int smi_os_only_thread(void);

/* Unlock a mutex and clear `depth`, which says that this thread has it, with no signal handler
 * between the two. */
void smi_os_unlock_counted(pthread_mutex_t *mutex, unsigned *depth);

/* The absolute form of a path, to be freed; NULL when it cannot be had. */
char *smi_os_absolute(const char *path);

#endif
