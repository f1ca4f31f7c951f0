/* SPDX-License-Identifier: MIT */
/*
 * map.c - shmalloc_map: making and opening maps, and the calls that change them. map_read.c has
 * those that do not.
 *
 * A change locks the stripe that the key's hash leads to, and mends first what a dead owner left
 * there. Then it is a store to one word of a bucket: see map_stripe.c.
 */
#include "structures/map.h"

#include <errno.h>

#include "names/mutex.h"
#include "platform/os.h"
#include "structures/map_tx.h"

_Static_assert(SHMALLOC_MAP_TYPE == SMF_TAG_MAP, "one number");

/* ---- one call ---- */

struct smi_thread *smi_map_enter(const shmalloc_map *map, int *rc)
{
    if (!map || !map->heap || map->ref == 0) {
        *rc = smi_error(-EINVAL, "the map is not open; shmalloc_map_open() opens one");
        return NULL;
    }
    struct smi_thread *t = smi_structure_thread(map->heap, rc);
    struct smi_use use = {map->heap, smi_at(map->heap, map->ref), map->ref,
                          map->opaque[SMI_MAP_LIFE]};
    *rc = t ? smi_structure_enter(&use, t) : *rc;
    return t && *rc == 0 ? t : NULL;
}

int smi_map_check_key(const shmalloc_map *map, const void *key, size_t klen)
{
    if (SMI_UNLIKELY(!key))
        return smi_error(-EINVAL, "%s: no key", map->heap->path);
    if (SMI_UNLIKELY(klen - 1 >= SHMALLOC_MAP_KEY_MAX))
        return smi_error(-ENAMETOOLONG, "%s: key of a map: expected 1 to %u bytes, found %zu",
                         map->heap->path, SHMALLOC_MAP_KEY_MAX, klen);
    return 0;
}

static int check_value(const shmalloc_map *map, const void *value, size_t vlen)
{
    if (SMI_UNLIKELY(!value && vlen != 0))
        return smi_error(-EINVAL, "%s: no value", map->heap->path);
    if (SMI_UNLIKELY(vlen > SHMALLOC_MAP_VALUE_MAX))
        return smi_error(
            -EMSGSIZE,
            "%s: value of a map: expected at most %u bytes, found %zu; put what is longer into "
            "a block of its own, and its ref into the map",
            map->heap->path, SHMALLOC_MAP_VALUE_MAX, vlen);
    return 0;
}

/* As smi_mutex_lock(), without end; what is usual in line. */
static int lock_stripe(struct smi_thread *t, struct smf_user_mutex *m)
{
    int rc = smi_mutex_is_current(t->heap, m) ? smi_mutex_lock_at_once(t, m, 0) : EBUSY;
    if (SMI_LIKELY(rc == 0))
        return 0;
    return rc == EOWNERDEAD || rc == ECANCELED
               ? smi_mutex_inherit(t, m, rc, 0)
               : smi_mutex_lock(t, (shmalloc_mutex *)m, UINT64_MAX, 0);
}

int smi_map_lock(const shmalloc_map *map, struct smi_thread *t, uint64_t hash,
                 struct smi_stripe *out)
{
    struct smf_stripe *s = smi_map_stripe(map, hash);
    *out = (struct smi_stripe){map->heap, t, s};
    struct smi_tx *x = smi_tx_of(t);
    int rc = SMI_UNLIKELY(x != NULL) ? smi_tx_lock(x, (shmalloc_mutex *)&s->mutex)
                                     : lock_stripe(t, &s->mutex);
    if (rc < 0)
        return rc;
    int mended = SMI_UNLIKELY(s->in_dest | s->split) ? smi_stripe_repair(out) : 0;
    if (SMI_UNLIKELY(rc > 0) && mended == 0 &&
        !x) /* what a transaction holds tells its next owner once more */
        mended = smi_mutex_consistent(t, (shmalloc_mutex *)&s->mutex);
    if (SMI_UNLIKELY(mended < 0))
        smi_map_unlock(out);
    return mended;
}

void smi_map_unlock(const struct smi_stripe *m)
{
    if (SMI_LIKELY(!smi_tx_of(m->t)))
        smi_mutex_unlock(m->t, (shmalloc_mutex *)&m->s->mutex);
}

/* ---- making and opening ---- */

static int options_of(shmalloc_heap *heap, const shmalloc_map_options *options, uint64_t *stripes,
                      uint64_t *flags)
{
    static const shmalloc_map_options usual = SHMALLOC_MAP_OPTIONS_INIT;
    if (!heap)
        return smi_error(-EINVAL, "no heap");
    if (!options)
        options = &usual;
    if (options->size < sizeof(*options))
        return smi_error(
            -EINVAL, "%s: options of a map: size %zu, expected %zu; use SHMALLOC_MAP_OPTIONS_INIT",
            heap->path, options->size, sizeof(*options));
    *stripes = options->stripes ? options->stripes : 64;
    *flags = options->flags;
    if (*stripes > SMF_MAP_STRIPES_MAX || (*stripes & (*stripes - 1)) != 0)
        return smi_error(-EINVAL,
                         "%s: stripes of a map: expected a power of two up to %u, found %llu",
                         heap->path, SMF_MAP_STRIPES_MAX, (unsigned long long)*stripes);
    if (*flags & ~(uint64_t)SHMALLOC_MAP_NESTED)
        return smi_error(-EINVAL, "%s: flags of a map: %#llx is none", heap->path,
                         (unsigned long long)*flags);
    return 0;
}

/* An empty map that nobody else sees. */
static int build(shmalloc_heap *heap, uint64_t stripes, uint64_t flags, struct smi_thread **t,
                 struct smf_map **out)
{
    struct smf_structure *head;
    int rc = smi_structure_begin(heap, SMF_TAG_MAP, t, &head);
    if (rc < 0)
        return rc;
    struct smf_map *map = *out = (struct smf_map *)head;
    map->stripes = stripes;
    map->options = flags & SHMALLOC_MAP_NESTED ? SMF_MAP_NESTED : 0;
    smi_os_random(map->seed, sizeof(map->seed));
    rc = smi_part_take(*t, stripes * sizeof(struct smf_stripe), 64, 1, &map->table);
    return rc < 0 ? smi_structure_drop(*t, rc) : 0;
}

/* The handle of a structure that was found to be a live map. */
static int handle_of(const struct smi_use *use, shmalloc_map *map)
{
    const struct smf_map *m = (const struct smf_map *)use->head;
    uint64_t stripes = SMI_LOAD(&m->stripes), table = SMI_LOAD(&m->table);
    if (stripes == 0 || stripes > SMF_MAP_STRIPES_MAX || (stripes & (stripes - 1)) != 0 ||
        table % 64 != 0 || !smi_in_heap(use->heap, table, stripes * sizeof(struct smf_stripe)))
        return smi_error(
            SHMALLOC_ECORRUPT,
            "%s: map at %#llx: %llu stripes at %#llx cannot be; shmalloc-inspect check tells "
            "more",
            use->heap->path, (unsigned long long)use->ref, (unsigned long long)stripes,
            (unsigned long long)table);
    *map = (shmalloc_map){.heap = use->heap, .ref = use->ref};
    map->opaque[SMI_MAP_LIFE] = use->life;
    map->opaque[SMI_MAP_TABLE] = table;
    map->opaque[SMI_MAP_MASK] = stripes - 1;
    map->opaque[SMI_MAP_SEED0] = SMI_LOAD(&m->seed[0]);
    map->opaque[SMI_MAP_SEED1] = SMI_LOAD(&m->seed[1]);
    return 0;
}

int shmalloc_map_create(shmalloc_heap *heap, const shmalloc_map_options *options, shmalloc_ref *ref)
{
    uint64_t stripes = 0, flags = 0;
    struct smi_thread *t = NULL;
    struct smf_map *map = NULL;
    int rc = options_of(heap, options, &stripes, &flags);
    if (rc == 0 && !ref)
        rc = smi_error(-EINVAL, "%s: no place for the ref", heap->path);
    if (rc == 0)
        rc = build(heap, stripes, flags, &t, &map);
    return rc < 0 ? rc : smi_structure_publish(t, &map->head, ref);
}

int shmalloc_map_open(shmalloc_heap *heap, shmalloc_ref ref, shmalloc_map *map)
{
    struct smi_use use;
    if (!heap || !map)
        return smi_error(-EINVAL, "no heap, or no place for the map");
    int rc = smi_structure_open(heap, ref, SMF_TAG_MAP, &use);
    return rc < 0 ? rc : handle_of(&use, map);
}

int shmalloc_map_open_root(shmalloc_heap *heap, const char *name,
                           const shmalloc_map_options *options, shmalloc_map *map)
{
    uint64_t stripes = 0, flags = 0, ref;
    struct smi_use use;
    struct smi_thread *t = NULL;
    struct smf_map *made = NULL;
    int rc = options_of(heap, options, &stripes, &flags);
    if (rc < 0)
        return rc;
    if (!map)
        return smi_error(-EINVAL, "%s: no place for the map", heap->path);
    rc = smi_structure_open_root(heap, name, SMF_TAG_MAP, &use);
    if (rc != SHMALLOC_ENOROOT || !options)
        return rc < 0 ? rc : handle_of(&use, map);
    rc = build(heap, stripes, flags, &t, &made);
    if (rc == 0)
        rc = smi_structure_bind(t, &made->head, name, &ref);
    if (rc < 0)
        return rc;
    int opened = shmalloc_map_open(heap, ref, map);
    return opened < 0 ? opened : rc;
}

int shmalloc_map_free(shmalloc_heap *heap, shmalloc_ref *ref)
{
    return smi_structure_free(heap, ref, SMF_TAG_MAP);
}

int shmalloc_map_free_root(shmalloc_heap *heap, const char *name)
{
    return smi_structure_remove(heap, name, SMF_TAG_MAP);
}

/* ---- changes ---- */

/* What a call is to do with what it finds. */
struct change {
    enum {
        PUT,
        PUT_NEW,
        PUT_IF,
        ADD,
        REMOVE
    } what;
    const void *expected; /* PUT_IF */
    size_t elen;
    int64_t delta, now; /* ADD */
};

static int is_there(const struct smi_place *place)
{
    return place->word && !(place->meta & SMF_MAP_ABSENT);
}

/* The pair takes the place of what is there. 1: there was no such key, 0. */
static int store(struct smi_stripe *m, const struct smi_pair *pair, struct smi_place *place)
{
    struct smi_tx *x = smi_tx_of(m->t);
    struct smi_fresh fresh;
    if (SMI_UNLIKELY(x != NULL))
        return smi_map_tx_store(m, x, pair, place, 0);
    int rc = place->word ? 0 : smi_stripe_make_hole(m, pair, place);
    if (rc == 0)
        rc = smi_stripe_build(m, pair, &fresh);
    if (rc < 0)
        return rc;
    if (place->word)
        return smi_stripe_replace(m, place->word, pair, &fresh);
    rc = smi_stripe_insert(m, place->hole, pair, &fresh);
    if (rc < 0)
        return rc;
    smi_stripe_grow(m);
    return 1;
}

static int put_if(struct smi_stripe *m, const struct smi_pair *pair, struct smi_place *place,
                  const struct change *change)
{
    if (is_there(place) != (change->expected != NULL))
        return 0;
    if (change->expected &&
        (smi_map_vlen(place->meta) != change->elen ||
         memcmp(smi_map_value(place->entry, place->meta), change->expected, change->elen) != 0))
        return 0;
    int rc = store(m, pair, place);
    return rc < 0 ? rc : 1;
}

static int add(struct smi_stripe *m, struct smi_pair *pair, struct smi_place *place,
               struct change *change)
{
    change->now = change->delta;
    pair->value = &change->now;
    pair->vlen = sizeof(change->now);
    if (!is_there(place))
        return store(m, pair, place);
    if (smi_map_vlen(place->meta) != sizeof(int64_t))
        return smi_error(-EINVAL, "%s: the value is no counter: expected 8 bytes, found %llu",
                         m->heap->path, (unsigned long long)smi_map_vlen(place->meta));
    int64_t *counter = (int64_t *)(void *)smi_map_value(place->entry, place->meta);
    if (__builtin_add_overflow(SMI_LOAD(counter), change->delta, &change->now))
        return smi_error(-ERANGE, "%s: the counter is %lld, and %lld more does not fit",
                         m->heap->path, (long long)SMI_LOAD(counter), (long long)change->delta);
    if (smi_tx_of(m->t))
        return store(m, pair, place);
    SMI_STORE(counter, change->now); /* one store: all of the change */
    return 0;
}

static int remove_key(struct smi_stripe *m, const struct smi_pair *pair, struct smi_place *place)
{
    struct smi_tx *x = smi_tx_of(m->t);
    if (!is_there(place))
        return 0;
    int rc =
        x ? smi_map_tx_store(m, x, pair, place, SMF_MAP_ABSENT) : smi_stripe_erase(m, place->word);
    return rc < 0 ? rc : 1;
}

static int apply(struct smi_stripe *m, struct smi_pair *pair, struct smi_place *place,
                 struct change *change)
{
    switch (change->what) {
    case PUT:
        return store(m, pair, place);
    case PUT_NEW:
        return is_there(place) ? 0 : store(m, pair, place);
    case PUT_IF:
        return put_if(m, pair, place, change);
    case ADD:
        return add(m, pair, place, change);
    case REMOVE:
        break;
    }
    return remove_key(m, pair, place);
}

static int change_locked(const shmalloc_map *map, struct smi_thread *t, struct smi_pair *pair,
                         struct change *change)
{
    struct smi_stripe m;
    struct smi_place place;
    int rc = smi_map_lock(map, t, pair->hash, &m);
    if (rc < 0)
        return rc;
    rc = smi_stripe_find(&m, pair, &place);
    if (rc == 0 && place.word && (place.meta & SMF_MAP_PENDING) &&
        !smi_map_is_mine(smi_tx_of(t), place.entry, place.meta))
        rc = smi_stripe_damaged(&m, "an entry is pending whose transaction is over");
    if (rc == 0)
        rc = apply(&m, pair, &place, change);
    smi_map_unlock(&m);
    return rc;
}

static int change_key(const shmalloc_map *map, struct smi_pair *pair, struct change *change)
{
    int rc;
    struct smi_thread *t = smi_map_enter(map, &rc);
    if (!t)
        return rc;
    rc = smi_map_check_key(map, pair->key, pair->klen);
    if (rc == 0)
        rc = check_value(map, pair->value, pair->vlen);
    if (rc == 0) {
        pair->hash = smi_map_hash_of(map, pair->key, pair->klen);
        int state = smi_os_cancel_off();
        rc = change_locked(map, t, pair, change);
        smi_os_cancel_restore(state);
    }
    smi_structure_leave(t);
    return rc;
}

static int put(const shmalloc_map *map, const void *key, size_t klen, const void *value,
               size_t vlen, struct change *change)
{
    struct smi_pair pair = {.key = key, .klen = klen, .value = value, .vlen = vlen};
    return change_key(map, &pair, change);
}

int shmalloc_map_put(const shmalloc_map *map, const void *key, size_t klen, const void *value,
                     size_t vlen)
{
    return put(map, key, klen, value, vlen, &(struct change){.what = PUT});
}

int shmalloc_map_put_new(const shmalloc_map *map, const void *key, size_t klen, const void *value,
                         size_t vlen)
{
    return put(map, key, klen, value, vlen, &(struct change){.what = PUT_NEW});
}

int shmalloc_map_put_if(const shmalloc_map *map, const void *key, size_t klen, const void *expected,
                        size_t elen, const void *value, size_t vlen)
{
    return put(map, key, klen, value, vlen,
               &(struct change){.what = PUT_IF, .expected = expected, .elen = elen});
}

int shmalloc_map_add(const shmalloc_map *map, const void *key, size_t klen, int64_t delta,
                     int64_t *now)
{
    struct change change = {.what = ADD, .delta = delta};
    int rc = put(map, key, klen, NULL, 0, &change);
    if (rc >= 0 && now)
        *now = change.now;
    return rc;
}

int shmalloc_map_remove(const shmalloc_map *map, const void *key, size_t klen)
{
    return put(map, key, klen, NULL, 0, &(struct change){.what = REMOVE});
}
