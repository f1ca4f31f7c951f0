/* SPDX-License-Identifier: MIT */
/*
 * adapter_lmdb.c - a database of LMDB, written through the mapping and never synced: then a killed
 * process loses nothing, as with the heaps, and the disk costs nothing.
 *
 * Owns the one environment of the process.
 */
#include "adapter.h"

#include <unistd.h>

struct key {
    uint64_t process;
    uint64_t slot;
};

static MDB_env *environment;
static MDB_dbi database;

static void check(int rc, const char *what)
{
    if (rc)
        bench_die("%s failed: %s", what, mdb_strerror(rc));
}

void adapter_failed(const char *what)
{
    bench_die("%s failed", what);
}

static MDB_txn *begin(void)
{
    MDB_txn *txn;
    check(mdb_txn_begin(environment, NULL, 0, &txn), "mdb_txn_begin");
    return txn;
}

void adapter_open(const struct bench_options *options)
{
    check(mdb_env_create(&environment), "mdb_env_create");
    check(mdb_env_set_mapsize(environment, bench_file_size(options)), "mdb_env_set_mapsize");
    check(mdb_env_open(environment, options->heap, MDB_NOSUBDIR | MDB_WRITEMAP | MDB_NOSYNC, 0600),
          "mdb_env_open");
    MDB_txn *txn = begin();
    check(mdb_dbi_open(txn, NULL, 0, &database), "mdb_dbi_open");
    check(mdb_txn_commit(txn), "mdb_txn_commit");
}

void adapter_close(void)
{
    mdb_env_close(environment);
}

void adapter_put(const bench_slot *slot, size_t size, int fill)
{
    struct key key = {(uint64_t)getpid(), (uintptr_t)slot};
    MDB_val name = {sizeof(key), &key}, value = {size, NULL};
    MDB_txn *txn = begin();
    check(mdb_put(txn, database, &name, &value, MDB_RESERVE), "mdb_put");
    if (fill)
        memset(value.mv_data, 1, size);
    else
        bench_touch(value.mv_data, size);
    check(mdb_txn_commit(txn), "mdb_txn_commit");
}

void adapter_delete(const bench_slot *slot)
{
    struct key key = {(uint64_t)getpid(), (uintptr_t)slot};
    MDB_val name = {sizeof(key), &key};
    MDB_txn *txn = begin();
    check(mdb_del(txn, database, &name, NULL), "mdb_del");
    check(mdb_txn_commit(txn), "mdb_txn_commit");
}

bench_slot *adapter_slots(size_t count)
{
    return bench_pages(count * sizeof(bench_slot));
}

const char *adapter_library(void)
{
    return bench_library_of("mdb_put");
}
