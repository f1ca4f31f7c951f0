// SPDX-License-Identifier: MIT
//
// adapter_boost.cpp - what adapter_boost.h and adapter_boost.c need of Boost.Interprocess, as C
// functions.
//
// Owns the one segment of the process: rbtree_best_fit under one interprocess_mutex, Boost's
// default.
#include <boost/interprocess/managed_mapped_file.hpp>

#include <cstdint>
#include <new>

namespace ipc = boost::interprocess;

static ipc::managed_mapped_file *segment;

extern "C" {

// Also called by adapter_boost.c, which says what they mean.
int boost_open(const char *path, std::size_t size);
void boost_close(void);
std::uint64_t *boost_words(std::size_t count);
void *boost_allocate(std::size_t size);
void boost_deallocate(void *block);
std::uint64_t boost_handle(void *block);
void *boost_address(std::uint64_t handle);

int boost_open(const char *path, std::size_t size)
try {
    segment = new ipc::managed_mapped_file(ipc::open_or_create, path, size);
    return 0;
} catch (const std::exception &) {
    return -1;
}

void boost_close(void)
{
    delete segment;
}

std::uint64_t *boost_words(std::size_t count)
try {
    return segment->find_or_construct<std::uint64_t>("words")[count](std::uint64_t(0));
} catch (const std::exception &) {
    return nullptr;
}

void *boost_allocate(std::size_t size)
{
    return segment->allocate(size, std::nothrow);
}

void boost_deallocate(void *block)
{
    segment->deallocate(block);
}

std::uint64_t boost_handle(void *block)
{
    return std::uint64_t(segment->get_handle_from_address(block));
}

void *boost_address(std::uint64_t handle)
{
    return segment->get_address_from_handle(ipc::managed_mapped_file::handle_t(handle));
}
}
