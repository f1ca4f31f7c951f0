/* SPDX-License-Identifier: MIT */
/*
 * bank.c - transfers between accounts as transactions: whoever is killed, the sum stays the same.
 *
 *     bank HEAP KILLS
 *
 * Tellers are processes that transfer as fast as they can, from accounts that may be overdrawn: all
 * together have 0 at any time. Again and again a teller is killed at some instruction and replaced,
 * and the accounts are added up while the others go on.
 */
#include <shmalloc/shmalloc.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#define TELLERS 4
#define ACCOUNTS 16

struct account {
    shmalloc_mutex mutex;
    int64_t money, transfers; /* from it */
};

/* A transaction. It locks in the order of the addresses, so that no lock is refused. */
static int transfer(shmalloc_heap *heap, void *accounts)
{
    struct account *from = (struct account *)accounts + rand() % ACCOUNTS;
    struct account *to = (struct account *)accounts + rand() % ACCOUNTS;
    int amount = rand() % 100, rc;
    if ((rc = shmalloc_tx_lock(heap, from < to ? &from->mutex : &to->mutex)) < 0 ||
        (rc = shmalloc_tx_lock(heap, from < to ? &to->mutex : &from->mutex)) < 0 ||
        (rc = shmalloc_tx_add(heap, from, sizeof(*from))) < 0)
        return rc;
    from->money -= amount;
    from->transfers++;
    if ((rc = shmalloc_tx_add(heap, to, sizeof(*to))) < 0)
        return rc; /* and what was taken is put back */
    to->money += amount;
    return 0;
}

/* A transaction, which changes nothing. 0: no money is lost or made; 1: some is. */
static int add_up(shmalloc_heap *heap, void *accounts)
{
    int rc = 0;
    int64_t money = 0;
    for (struct account *a = accounts; rc >= 0 && a < (struct account *)accounts + ACCOUNTS; a++) {
        rc = shmalloc_tx_lock(heap, &a->mutex);
        money += a->money;
    }
    return rc < 0 ? rc : money != 0;
}

static pid_t start_teller(shmalloc_heap *heap, struct account *accounts)
{
    pid_t bank = getpid(), pid = fork();
    if (pid != 0)
        return pid;
    srand((unsigned)getpid());
    while (getppid() == bank && shmalloc_tx_run(heap, transfer, accounts) >= 0)
        continue;
    _exit(1);
}

int main(int argc, char **argv)
{
    int kills = argc == 3 ? atoi(argv[2]) : 0, status, wrong = 0;
    if (kills < 1)
        return fputs("usage: bank HEAP KILLS\n", stderr), 2;
    shmalloc_options options = SHMALLOC_OPTIONS_INIT;
    options.flags = SHMALLOC_CREATE;
    shmalloc_heap *heap;
    shmalloc_ref ref;
    if (shmalloc_open(argv[1], &options, &heap) < 0 ||
        shmalloc_root_get_or_create(heap, "accounts", 0, ACCOUNTS * sizeof(struct account), NULL,
                                    NULL, &ref) < 0)
        return fprintf(stderr, "%s\n", shmalloc_errmsg()), 1;
    struct account *accounts = shmalloc_ptr(heap, ref);
    pid_t tellers[TELLERS];
    for (int i = 0; i < kills + TELLERS && wrong == 0; i++) { /* kill the oldest, start another */
        pid_t *teller = &tellers[i % TELLERS];
        usleep((useconds_t)rand() % 3000);
        if (i >= TELLERS && (kill(*teller, SIGKILL) < 0 || waitpid(*teller, &status, 0) < 0 ||
                             !WIFSIGNALED(status)))
            return fputs("a teller gave up\n", stderr), 1;
        if (i < kills && (*teller = start_teller(heap, accounts)) < 0)
            return perror("fork"), 1;
        wrong = shmalloc_tx_run(heap, add_up, accounts);
    }
    if (wrong)
        return printf("%s\n", wrong < 0 ? shmalloc_errmsg() : "the accounts are WRONG"), 1;
    printf("%d tellers killed, the accounts are right\n", kills);
    fprintf(stderr, "%lld transfers from the first\n", (long long)accounts->transfers);
    return shmalloc_close(heap) < 0;
}
