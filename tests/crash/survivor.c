/* SPDX-License-Identifier: MIT */
/* survivor.c - taking a survivor's part, and carrying on; see survivor.h. */
#include "survivor.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "image.h"
#include "handle/lock.h"
#include "platform/os.h"
#include "life/context.h"

/* Words of the world that survivor n uses; operations use those below. */
static unsigned word_of(unsigned n)
{
    return 40 + 6 * n;
}

enum { NEWCOMERS_WORD = 63 };

/* ---- coming ---- */

static struct world *find_world(shmalloc_heap *heap)
{
    shmalloc_ref ref;
    must_work(shmalloc_root_get(heap, "world", 0, &ref));
    return shmalloc_ptr(heap, ref);
}

/* What every survivor does when it comes: a block that it keeps and a few cached slots, of classes
 * that operations do not use, so that these find the heap as they expect it. */
static void come(struct stage *s, unsigned n)
{
    s->heap = heap_open(s->path);
    s->world = find_world(s->heap);
    shmalloc_ref *word = &s->world->word[word_of(n)];
    must_work(shmalloc_ref_alloc(s->heap, 1000, word));
    pattern_fill(shmalloc_ptr(s->heap, *word), 0, 1000, n);
    s->world->valid[word_of(n)] = 1000;
    must_work(shmalloc_ref_alloc(s->heap, 5000, word + 1));
    must_work(shmalloc_ref_free(s->heap, word + 1));
    must(s->heap->process_index == (int)n + 1 && smi_current->slot_index == n + 1,
         "survivor %u came as process %d, thread slot %u", n, s->heap->process_index,
         smi_current->slot_index);
}

static char base_path[SURVIVORS][256];
static struct smi_image bases[2 * SURVIVORS] = { /* of plain heaps, of hardened heaps */
    {.fd = -1}, {.fd = -1}, {.fd = -1}, {.fd = -1}, {.fd = -1}, {.fd = -1}};

static struct smi_image *base_of(const struct op *op, unsigned n)
{
    return &bases[(op->traits & OP_HARDENED ? SURVIVORS : 0) + n];
}

/* ---- taking a part ---- */

/* Offsets of things in any copy of the heap. */
struct places {
    struct smf_areas areas;
    uint32_t lock_count;
    uint64_t mutex, cond_mutex;
};

static struct places places_in(const struct stage *s)
{
    return (struct places){s->heap->header->areas, s->heap->lock_count,
                           shmalloc_ref_of(s->heap, &s->world->mutex),
                           shmalloc_ref_of(s->heap, &s->world->cond_mutex)};
}

static uint8_t *read_file(const char *path, uint64_t *size)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    must(fd >= 0 && fstat(fd, &st) == 0, "%s: %s", path, strerror(errno));
    uint8_t *bytes = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    must(bytes != MAP_FAILED, "mmap: %s", strerror(errno));
    close(fd);
    *size = (uint64_t)st.st_size;
    return bytes;
}

/* What the kernel does to a robust mutex when its owner dies: the bit that tells of waiters stays.
 * All owners are dead: survivors hold nothing when they stop. */
static void bury_owner(uint64_t mutex[SMF_MUTEX_WORDS])
{
    uint32_t futex = (uint32_t)mutex[0];
    if (futex & FUTEX_TID_MASK)
        mutex[0] = (mutex[0] & ~0xffffffffull) | (futex & FUTEX_WAITERS) | FUTEX_OWNER_DIED;
}

static void bury_owners(uint8_t *bytes, const struct places *at)
{
    struct smf_lock *locks = (void *)(bytes + at->areas.locks);
    for (uint32_t i = 0; i < at->lock_count; i++)
        bury_owner(locks[i].mutex);
    bury_owner(((struct smf_user_mutex *)(void *)(bytes + at->mutex))->mutex);
    bury_owner(((struct smf_user_mutex *)(void *)(bytes + at->cond_mutex))->mutex);
}

/* What the image says of survivors that are played: which processes they are, and which threads. */
static void name_players(uint8_t *bytes, const struct stage *s, const struct places *at,
                         unsigned first, unsigned count)
{
    struct smf_process *entries = (void *)(bytes + at->areas.processes);
    for (unsigned i = first + 1; i < first + 1 + count; i++) {
        const struct smf_thread *now = smi_thread_slot(s->heap, i);
        struct smf_thread *slot = (void *)(bytes + s->heap->threads[i]);
        must(entries[i].state == 1 && slot->owner == i + 1 && slot->serial == now->serial &&
                 memcmp(slot->stacks, now->stacks, sizeof(slot->stacks)) == 0,
             "survivor %u is played otherwise than it was", i - 1);
        entries[i] = s->heap->processes[i];
        slot->tid = now->tid;
        slot->start_time = now->start_time;
    }
}

static void overwrite(const struct stage *s, const uint8_t *bytes, uint64_t size)
{
    struct stat st;
    int fd = s->heap->fd;
    must(fstat(fd, &st) == 0 && ((uint64_t)st.st_size == size || ftruncate(fd, (off_t)size) == 0),
         "%s: %s", s->path, strerror(errno));
    for (uint64_t at = 0; at < size; at += 4096)
        if (memcmp(s->heap->base + at, bytes + at, 4096) != 0)
            must(pwrite(fd, bytes + at, 4096, (off_t)at) == 4096, "%s: %s", s->path,
                 strerror(errno));
}

/* The heap's bytes become the image's; `count` survivors from `first` on are played. */
static void become(struct stage *s, const char *image, unsigned first, unsigned count)
{
    struct places at = places_in(s);
    uint64_t size;
    uint8_t *bytes = read_file(image, &size);
    struct smf_runtime *runtime = (void *)(bytes + at.areas.runtime);
    runtime->device = s->heap->device;
    runtime->inode = s->heap->inode;
    bury_owners(bytes, &at);
    name_players(bytes, s, &at, first, count);
    overwrite(s, bytes, size);
    munmap(bytes, size);
}

/* Hold, on a description of nobody's, the bytes of these processes: they seem to live. */
static void seem_to_live(int fd, uint32_t first, uint32_t count)
{
    struct flock lock = {.l_type = F_WRLCK,
                         .l_whence = SEEK_SET,
                         .l_start = (off_t)(SMF_LOCK_BYTES + first),
                         .l_len = count};
    must(count == 0 || fcntl(fd, F_OFD_SETLK, &lock) == 0, "cannot lock: %s", strerror(errno));
}

static void die(int fd)
{
    struct flock lock = {.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = (off_t)SMF_LOCK_BYTES,
                         .l_len = SMF_PROCESSES};
    must(fcntl(fd, F_OFD_SETLK, &lock) == 0, "cannot unlock: %s", strerror(errno));
}

/* A file in which survivor `part` can come. Returns the description on which those before it seem
 * to live. */
static int prepare_file(const struct survival *survival)
{
    image_write(base_of(survival->op, survival->part), survival->path);
    int others = open(survival->path, O_RDWR | O_CLOEXEC);
    must(others >= 0, "%s: %s", survival->path, strerror(errno));
    seem_to_live(others, 0, survival->part + 1);
    return others;
}

/* The dead die; survivors from `first` on seem to live. */
static void let_die(int others, unsigned first)
{
    die(others);
    seem_to_live(others, first + 1, SURVIVORS - first);
}

/* Be survivor `part` at the instant after the death. */
static int take_part(struct stage *s, const struct survival *survival)
{
    int others = prepare_file(survival);
    s->path = survival->path;
    come(s, survival->part);
    become(s, survival->image, survival->part, 1);
    let_die(others, survival->part + 1);
    return others;
}

/* ---- carrying on ---- */

static uint32_t futex_of(const struct smf_lock *lock)
{
    return (uint32_t)lock->mutex[0];
}

static unsigned dead_locks(shmalloc_heap *heap, uint32_t *out)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < heap->lock_count && count < 8; i++)
        if (futex_of(&heap->locks[i]) & FUTEX_OWNER_DIED)
            out[count++] = i;
    return count;
}

static unsigned factorial(unsigned n)
{
    return n < 2 ? 1 : n * factorial(n - 1);
}

unsigned survivor_orders(const char *image, uint64_t turn, struct order out[ORDERS_MAX])
{
    uint64_t size;
    unsigned dead = 0, count = 0;
    uint8_t *bytes = read_file(image, &size);
    const struct smf_header *header = (const void *)bytes;
    const struct smf_lock *locks = (const void *)(bytes + header->areas.locks);
    for (uint32_t i = 0; i < header->lock_count; i++)
        dead += (futex_of(&locks[i]) & (FUTEX_TID_MASK | FUTEX_OWNER_DIED)) != 0;
    must(dead <= 8, "%u locks are held", dead);
    unsigned all = factorial(dead), most = all < ORDERS_MAX - 2 ? all : ORDERS_MAX - 2;
    for (; dead > 0 && count < most; count++)
        out[count] = (struct order){FIRST_LOCKS, count * all / most};
    if (futex_of(&locks[SMF_LOCK_RECOVER]) & (FUTEX_TID_MASK | FUTEX_OWNER_DIED))
        out[count++] = (struct order){FIRST_THREAD, 0};
    out[count++] = (struct order){(enum first)(1 + turn % (FIRSTS - 1)), 0};
    munmap(bytes, size);
    return count;
}

/* All dead locks have been taken over, and nobody else works: nothing is half done under any. */
static void must_be_at_rest(const shmalloc_heap *heap)
{
    right(heap->page_heap->log_count == 0 && heap->roots->log_count == 0 &&
              heap->roots->scratch == 0,
          "page heap or roots are not at rest");
    for (uint32_t i = 0; i < (heap->arena_count + 1) * SMF_CLASSES; i++)
        right(heap->central[i].log_count == 0 && heap->central[i].pending == 0,
              "class %u is not at rest", i);
}

static void take_locks(shmalloc_heap *heap, unsigned permutation)
{
    uint32_t lock[8];
    unsigned count = dead_locks(heap, lock);
    for (; count > 0; count--) {
        unsigned i = permutation % count;
        works(smi_lock_acquire(heap, lock[i]));
        smi_lock_release(heap, lock[i]);
        lock[i] = lock[count - 1];
        permutation /= count;
    }
}

/* Any long path, as if the last look had been long ago. */
static void look(struct stage *s)
{
    s->heap->looked_at = 0;
    find_world(s->heap);
}

static void use_words(struct stage *s, unsigned n, size_t size)
{
    shmalloc_ref *word = &s->world->word[word_of(n) + 2];
    for (unsigned i = 0; i < 3; i++)
        works(shmalloc_ref_alloc(s->heap, size, &word[i]));
    for (unsigned i = 0; i < 3; i++)
        works(shmalloc_ref_free(s->heap, &word[i]));
}

static void use_dead_classes(struct stage *s, unsigned n)
{
    uint32_t lock[8];
    unsigned count = dead_locks(s->heap, lock);
    for (unsigned i = 0; i < count; i++) {
        uint32_t k = lock[i] - SMF_LOCK_CLASS_FIRST;
        if (lock[i] >= SMF_LOCK_CLASS_FIRST && k < SMF_CLASSES) /* of the only arena for users */
            use_words(s, n, smi_classes[k].size);
    }
    use_words(s, n, 100);
}

static void use_roots(struct stage *s, unsigned n)
{
    char name[100]; /* longer than those of operations */
    snprintf(name, sizeof(name), "of survivor %u %064u", n, n);
    works(shmalloc_root_set(s->heap, name, 0, 0));
    works(shmalloc_root_remove(s->heap, name));
}

/* Free what the dead process had, in the middle of linking it perhaps, as its mutex allows; and
 * what it has cached then goes to others. */
static void plunder(struct stage *s, struct loot *loot)
{
    for (unsigned i = 0; i < word_of(0); i++) {
        shmalloc_ref *word = &s->world->word[i];
        size_t used = strlen(loot->words),
               size = shmalloc_usable_size(s->heap, shmalloc_ptr(s->heap, *word));
        if (*word == 0)
            continue;
        right(loot->count < sizeof(loot->block) / sizeof(loot->block[0]), "too many words");
        judge_word_line(s->heap, s->world, i, loot->words + used, sizeof(loot->words) - used);
        loot->block[loot->count++] = (shmalloc_block){*word, size, shmalloc_tag(s->heap, *word)};
        s->world->valid[i] = 0;
        works(shmalloc_ref_free(s->heap, word));
        works(shmalloc_ref_alloc(s->heap, size, word));
        works(shmalloc_ref_free(s->heap, word));
    }
    for (unsigned i = 1; i < loot->count; i++) /* ascending */
        for (unsigned k = i; k > 0 && loot->block[k - 1].ref > loot->block[k].ref; k--) {
            shmalloc_block other = loot->block[k];
            loot->block[k] = loot->block[k - 1];
            loot->block[k - 1] = other;
        }
}

/* Lock and unlock world.mutex: what it answers. */
static int pass_mutex(struct stage *s, struct loot *loot)
{
    int rc = shmalloc_mutex_lock(s->heap, &s->world->mutex);
    works(rc);
    if (loot && rc == SHMALLOC_OWNER_DIED)
        plunder(s, loot);
    if (rc == SHMALLOC_OWNER_DIED)
        works(shmalloc_mutex_consistent(s->heap, &s->world->mutex));
    works(shmalloc_mutex_unlock(s->heap, &s->world->mutex));
    return rc;
}

struct claim {
    struct stage *stage;
    int answer;
};

/* A thread that claims the slot of the dead one, is in the middle of a linked step, and must not be
 * disturbed. */
static void *claim(void *arg)
{
    struct claim *claim = arg;
    shmalloc_heap *heap = claim->stage->heap;
    shmalloc_ref ref = 0;
    works(shmalloc_ref_alloc(heap, 100, &ref));
    struct smf_link *link = &smi_current->slot->link,
                    before = {.op = SMF_LINK_GIVE, .dest = ref, .old = ref};
    *link = before;
    claim->answer = pass_mutex(claim->stage, NULL);
    right(memcmp(link, &before, sizeof(before)) == 0,
          "the link record of a new owner of the slot was resolved");
    link->op = SMF_LINK_NONE;
    works(shmalloc_ref_free(heap, &ref));
    return NULL;
}

static int claim_slot_at_once(struct stage *s)
{
    struct claim arg = {s, -1};
    pthread_t thread;
    look(s);
    right(pthread_create(&thread, NULL, claim, &arg) == 0, "no thread");
    pthread_join(thread, NULL);
    return arg.answer;
}

static void *call_first(void *arg)
{
    struct stage *s = arg;
    shmalloc_ref ref = 0;
    works(shmalloc_ref_alloc(s->heap, 3000, &ref));
    memset(shmalloc_ptr(s->heap, ref), 0x77, 3000);
    use_words(s, s->heap->process_index - 1u, 70000);
    works(shmalloc_ref_free(s->heap, &ref));
    return NULL;
}

static void start_thread(struct stage *s)
{
    pthread_t thread;
    right(pthread_create(&thread, NULL, call_first, s) == 0, "no thread");
    pthread_join(thread, NULL);
}

/* Answers what the mutex said first, -1 when it was not asked. */
static int begin_with(struct stage *s, unsigned n, struct order order, struct loot *loot)
{
    int answer = -1;
    if (order.first == FIRST_LOCKS)
        take_locks(s->heap, order.permutation);
    else if (order.first == FIRST_MUTEX)
        answer = pass_mutex(s, loot);
    else if (order.first == FIRST_LOOK)
        look(s);
    else if (order.first == FIRST_SMALL)
        use_dead_classes(s, n);
    else if (order.first == FIRST_LARGE)
        use_words(s, n, 70000);
    else if (order.first == FIRST_ROOT)
        use_roots(s, n);
    else if (order.first == FIRST_THREAD)
        start_thread(s);
    else if (order.first == FIRST_CLAIM)
        answer = claim_slot_at_once(s);
    return answer;
}

/* The same when nobody else works. */
static int begin_alone(struct stage *s, unsigned n, struct order order, struct loot *loot)
{
    int answer = begin_with(s, n, order, loot);
    if (order.first == FIRST_LOCKS)
        must_be_at_rest(s->heap);
    return answer;
}

static void work(struct stage *s, unsigned n)
{
    use_dead_classes(s, n);
    use_words(s, n, 70000);
    use_roots(s, n);
    pass_mutex(s, NULL);
    judge_use_cond(s->heap, s->world);
}

static void must_have_own_block(struct stage *s, unsigned n)
{
    right(pattern_check(shmalloc_ptr(s->heap, s->world->word[word_of(n)]), 1000, n) == 1000,
          "the survivor's own block changed");
}

static int lives(uint32_t living, uint64_t process)
{
    return process < 32 && (living >> process & 1);
}

/* After adoption: only who lives is in the tables, and no lock shows a dead owner. */
static void must_be_alone_with(shmalloc_heap *heap, uint32_t living)
{
    for (uint32_t i = 0; i < SMF_PROCESSES; i++)
        right((heap->processes[i].state != 0) == lives(living, i),
              "entry %u of the process table is %u", i, heap->processes[i].state);
    for (uint32_t i = 0; i < SMF_THREADS; i++) {
        const struct smf_thread *slot = smi_thread_slot(heap, i);
        right(!slot || slot->owner == 0 || lives(living, slot->owner - 1),
              "thread slot %u has owner %llu", i, (unsigned long long)slot->owner);
    }
    for (uint32_t i = 0; i < heap->lock_count; i++)
        right(futex_of(&heap->locks[i]) == 0, "lock %u is %#x", i, futex_of(&heap->locks[i]));
}

/* ---- judging ---- */

/* After all work: describe, then the last others die as well, and everything is given back. */
static void conclude(struct stage *s, const struct survival *survival, int others, uint32_t living,
                     const struct loot *loot)
{
    unsigned n = survival->part;
    must_be_alone_with(s->heap, living);
    must_have_own_block(s, n);
    works(shmalloc_check(s->heap));
    judge_describe(s->heap, s->world, loot);
    die(others);
    look(s);
    must_be_alone_with(s->heap, 1u << s->heap->process_index);
    judge_use_and_empty(s->heap);
    works(shmalloc_close(s->heap));
    judge_closed(s->path, "emptied and closed");
}

/* Entries of part `part` and those after it. */
static uint32_t living_from(unsigned part)
{
    return ((1u << (SURVIVORS - part)) - 1) << (part + 1);
}

/* What the mutex has to answer: an owner that is not named yet, or any more, left nothing half
 * done, nor did one whose transaction held it. */
static int answer_of_mutex(const struct stage *s)
{
    const struct smf_user_mutex *mutex = (const void *)&s->world->mutex;
    return (mutex->owner & SMF_LEFT) || (mutex->owner != 0 && !(mutex->owner & SMF_OWNER_TX))
               ? SHMALLOC_OWNER_DIED
               : 0;
}

static void judge_alone(const void *arg)
{
    const struct survival *survival = arg;
    static struct loot loot;
    struct stage s = {0};
    int others = take_part(&s, survival);
    int guarded = op_holds_mutex(survival->op) && !(survival->op->traits & OP_ORPHANS);
    int expected = answer_of_mutex(&s);
    int answer = begin_alone(&s, survival->part, survival->order, guarded ? &loot : NULL);
    if (answer < 0)
        answer = pass_mutex(&s, NULL);
    right(answer == expected, "the mutex answers %d, expected %d", answer, expected);
    if (survival->part == 0) /* a repair takes the mutex and gives it back, perhaps more than
                                once */
        smi_say("mutex answers %d\n", answer);
    work(&s, survival->part);
    look(&s);
    conclude(&s, survival, others, living_from(survival->part), &loot);
}

void survivor_judge(const struct survival *survival, struct smi_findings *out)
{
    judge_in_child(out, judge_alone, survival);
}

/* ---- two at once ---- */

/* Shared by the processes of survivor_judge_two(). */
struct both {
    uint32_t come; /* 1: part 0 has come; 2: part 1, too, and the image is there; 3: go; 4: part 0
                      has ended */
    const struct survival *survival;
    int others;
};

static int play_first(void *arg)
{
    struct both *both = arg;
    struct stage s = {.path = both->survival->path};
    come(&s, 0);
    signal_word(&both->come);
    await_word(&both->come, 3);
    begin_with(&s, 0, (struct order){(both->survival->order.first + 1) % FIRSTS, 0}, NULL);
    work(&s, 0);
    look(&s);
    must_have_own_block(&s, 0);
    return 0;
}

static int play_second(void *arg)
{
    struct both *both = arg;
    struct survival survival = *both->survival;
    struct stage s = {.path = survival.path};
    survival.part = 1;
    await_word(&both->come, 1);
    come(&s, 1);
    become(&s, survival.image, 0, 2);
    let_die(both->others, 2);
    signal_word(&both->come);
    await_word(&both->come, 3);
    begin_with(&s, 1, survival.order, NULL);
    work(&s, 1);
    await_word(&both->come, 4);
    look(&s);
    conclude(&s, &survival, both->others, living_from(1), NULL);
    return 0;
}

static int come_newly(void *arg)
{
    struct both *both = arg;
    struct stage s = {.path = both->survival->path};
    s.heap = heap_open(s.path);
    s.world = find_world(s.heap);
    works(shmalloc_ref_alloc(s.heap, 100, &s.world->word[NEWCOMERS_WORD]));
    works(shmalloc_ref_free(s.heap, &s.world->word[NEWCOMERS_WORD]));
    works(shmalloc_close(s.heap));
    return 0;
}

static void judge_two(const void *arg)
{
    struct both *both = shared_memory(sizeof(*both));
    both->survival = arg;
    both->others = prepare_file(arg);
    pid_t first = start_child(play_first, both), second = start_child(play_second, both);
    await_word(&both->come, 2);
    signal_word(&both->come);
    pid_t newcomer = start_child(come_newly, both);
    int statuses[3] = {wait_child(first), wait_child(newcomer), 0};
    signal_word(&both->come);
    statuses[2] = wait_child(second);
    right(statuses[0] == 0 && statuses[1] == 0 && statuses[2] == 0,
          "the first ended with %d, a newcomer with %d, "
          "the second with %d",
          statuses[0], statuses[1], statuses[2]);
}

void survivor_judge_two(const struct survival *survival, struct smi_findings *out)
{
    judge_in_child(out, judge_two, survival);
}

/* ---- the repair, stepped through ---- */

static struct survival next_repair;

void survivor_will_repair(const struct survival *survival)
{
    next_repair = *survival;
}

static void prepare_repair(struct stage *s)
{
    take_part(s, &next_repair);
}

static void repair(struct stage *s)
{
    begin_alone(s, next_repair.part, next_repair.order, NULL);
    look(s);
}

const struct op repairing = {"repair", OP_STALE, prepare_repair, repair};

/* ---- the real ones ---- */

static pid_t pids[SURVIVORS];
static const struct fixture *place;

/* By a signal that is blocked: so it can come early, and nothing else makes the process go on. */
static void wait_for_leave_to_go_on(void)
{
    sigset_t set;
    int signal;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal_word(&control->settled);
    while (sigwait(&set, &signal) != 0)
        ;
}

static int survive(void *arg)
{
    unsigned n = (unsigned)(uintptr_t)arg;
    struct stage s = {.path = place->path};
    await_word(&control->settled, n + 1);
    image_copy(s.path, base_path[n]);
    come(&s, n);
    wait_for_leave_to_go_on();
    begin_with(&s, n, (struct order){(enum first)(n + 1), 0}, NULL);
    work(&s, n);
    look(&s);
    must_have_own_block(&s, n);
    return 0;
}

void survivors_start(const struct fixture *f)
{
    place = f;
    control->survivors = SURVIVORS;
    control->settled = 0;
    for (unsigned n = 0; n < SURVIVORS; n++) {
        char name[32];
        snprintf(name, sizeof(name), "base-%u", n);
        snprintf(base_path[n], sizeof(base_path[n]), "%s", fixture_path(f, name));
        pids[n] = start_child(survive, (void *)(uintptr_t)n);
    }
}

void survivors_remember(const struct op *op)
{
    for (unsigned n = 0; n < SURVIVORS; n++) {
        struct smi_image *base = base_of(op, n);
        smi_image_forget(base);
        base->path = base_path[n];
        image_look(base);
    }
}

void survivors_end(void)
{
    for (unsigned n = 0; n < SURVIVORS; n++)
        kill_child(pids[n]);
}

int survivors_carry_on(void)
{
    int failed = 0;
    for (unsigned n = 0; n < SURVIVORS; n++)
        kill(pids[n], SIGUSR1);
    for (unsigned n = 0; n < SURVIVORS; n++)
        failed |= wait_child_within(pids[n], 20000) != 0;
    return failed;
}
