/* SPDX-License-Identifier: MIT */
/* maps.h - a hash map under comparison; keys have 16 bytes, values MAPS_VALUE. */
#ifndef BENCH_MAPS_H
#define BENCH_MAPS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MAPS_KEY = 16,
    MAPS_VALUE = 100
};

struct maps_peer {
    const char *name;
    int is_shared; /* between processes, by a file */
    /* 0, or -1. `make`: nothing is there yet. Each process opens by itself. */
    int (*open)(const char *path, int make, uint64_t keys);
    int (*put)(const char *key, const char *value);
    int (*get)(const char *key, char *value); /* 1 found, 0 */
    void (*pause)(void); /* others come: end what is open; may be NULL */
    void (*close)(void);
};

extern const struct maps_peer maps_boost;

#ifdef __cplusplus
}
#endif

#endif
