// SPDX-License-Identifier: MIT
//
// adapter_metall.cpp - what adapter_metall.h and adapter_metall.c need of Metall, as C functions.
//
// Owns the one datastore of the process, with Metall's own defaults.
#include <metall/metall.hpp>

#include <cstddef>

static metall::manager *manager;

extern "C" {

// Also called by adapter_metall.c, which says what they mean.
int metall_open(const char *path);
void metall_close(void);
void *metall_allocate(std::size_t size);
void metall_deallocate(void *block);

int metall_open(const char *path)
try {
    manager = new metall::manager(metall::create_only, path);
    return 0;
} catch (const std::exception &) {
    return -1;
}

void metall_close(void)
{
    delete manager;
}

void *metall_allocate(std::size_t size)
{
    return manager->allocate(size);
}

void metall_deallocate(void *block)
{
    manager->deallocate(block);
}
}
