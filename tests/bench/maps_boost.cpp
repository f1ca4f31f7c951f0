// SPDX-License-Identifier: MIT
//
// maps_boost.cpp - boost::unordered_map in a managed_mapped_file, under one interprocess_mutex,
// without which processes cannot
// share it.
#include <array>
#include <boost/container_hash/hash.hpp>
#include <boost/interprocess/allocators/allocator.hpp>
#include <boost/interprocess/managed_mapped_file.hpp>
#include <boost/interprocess/sync/interprocess_mutex.hpp>
#include <boost/interprocess/sync/scoped_lock.hpp>
#include <boost/unordered_map.hpp>
#include <cstring>
#include <functional>

#include "maps.h"

namespace ipc = boost::interprocess;

using key = std::array<char, MAPS_KEY>;
using value = std::array<char, MAPS_VALUE>;
using pair = std::pair<const key, value>;
using allocator = ipc::allocator<pair, ipc::managed_mapped_file::segment_manager>;

struct hash {
    std::size_t operator()(const key &k) const
    {
        std::uint64_t a, b;
        std::memcpy(&a, k.data(), 8);
        std::memcpy(&b, k.data() + 8, 8);
        return a ^ b * 0x9e3779b97f4a7c15ull;
    }
};

using map = boost::unordered_map<key, value, hash, std::equal_to<key>, allocator>;

static ipc::managed_mapped_file *segment;
static ipc::interprocess_mutex *mutex;
static map *entries;

static int open_map(const char *path, int make, std::uint64_t keys)
try {
    if (make)
        std::remove(path);
    segment = new ipc::managed_mapped_file(ipc::open_or_create, path, keys * 400 + (64u << 20));
    mutex = segment->find_or_construct<ipc::interprocess_mutex>("mutex")();
    entries = segment->find_or_construct<map>("map")(16u, hash(), std::equal_to<key>(),
                                                     allocator(segment->get_segment_manager()));
    return 0;
} catch (const std::exception &) {
    return -1;
}

static int put(const char *k, const char *v)
try {
    key at;
    value what;
    std::memcpy(at.data(), k, MAPS_KEY);
    std::memcpy(what.data(), v, MAPS_VALUE);
    ipc::scoped_lock<ipc::interprocess_mutex> lock(*mutex);
    (*entries)[at] = what;
    return 0;
} catch (const std::exception &) {
    return -1;
}

static int get(const char *k, char *v)
{
    key at;
    std::memcpy(at.data(), k, MAPS_KEY);
    ipc::scoped_lock<ipc::interprocess_mutex> lock(*mutex);
    auto found = entries->find(at);
    if (found == entries->end())
        return 0;
    std::memcpy(v, found->second.data(), MAPS_VALUE);
    return 1;
}

static void close_map()
{
    delete segment;
    segment = nullptr;
}

extern "C" const maps_peer maps_boost = {"boost", 1, open_map, put, get, nullptr, close_map};
