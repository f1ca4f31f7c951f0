// SPDX-License-Identifier: MIT
// operators.cc - every form of new and delete, on whichever malloc this program runs.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#define must(condition)                                                              \
    do {                                                                             \
        if (!(condition)) {                                                          \
            std::fprintf(stderr, "operators.cc:%d: %s\n", __LINE__, #condition);     \
            std::_Exit(1);                                                           \
        }                                                                            \
    } while (0)

struct alignas(256) Wide {
    char bytes[300];
};

static volatile std::size_t too_much = PTRDIFF_MAX;
static int handler_calls;

static void give_up()
{
    if (++handler_calls == 3)
        std::set_new_handler(nullptr);
}

static void all_forms()
{
    for (std::size_t size : {0, 1, 8, 24, 500, 5000, 200000}) {
        ::operator delete(::operator new(size));
        ::operator delete(::operator new(size), size);
        ::operator delete[](::operator new[](size));
        ::operator delete[](::operator new[](size), size);
        ::operator delete(::operator new(size, std::nothrow), std::nothrow);
        ::operator delete[](::operator new[](size, std::nothrow), std::nothrow);
        for (std::size_t n = 32; n <= 1 << 20; n *= 2) {
            std::align_val_t alignment{n};
            void *block = ::operator new(size, alignment);
            must(reinterpret_cast<std::uintptr_t>(block) % n == 0);
            ::operator delete(block, alignment);
            ::operator delete(::operator new(size, alignment), size, alignment);
            ::operator delete[](::operator new[](size, alignment), size, alignment);
            ::operator delete(::operator new(size, alignment, std::nothrow), alignment,
                              std::nothrow);
        }
    }
    std::unique_ptr<Wide[]> wide(new Wide[3]);
    must(reinterpret_cast<std::uintptr_t>(wide.get()) % 256 == 0);
}

static void failures()
{
    must(::operator new(too_much, std::nothrow) == nullptr);
    bool thrown = false;
    try {
        ::operator delete(::operator new(too_much));
    } catch (const std::bad_alloc &) {
        thrown = true;
    }
    must(thrown);
    std::set_new_handler(give_up);
    must(::operator new(too_much, std::nothrow) == nullptr && handler_calls == 3);
}

static thread_local std::map<int, std::string> kept; // destroyed at the thread's end

static void containers()
{
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++)
        threads.emplace_back([t] {
            std::map<std::string, std::shared_ptr<std::vector<int>>> m;
            for (int i = 0; i < 3000; i++) {
                m["a key that is longer than fits inside " + std::to_string(i % 500)] =
                    std::make_shared<std::vector<int>>(i % 100, t);
                kept[i % 50] = std::string(static_cast<std::size_t>(i % 90), 'x');
            }
            for (auto &pair : m)
                for (int value : *pair.second)
                    must(value == t);
            try {
                throw std::string("an exception allocates");
            } catch (const std::string &text) {
                must(text.size() == 22);
            }
        });
    for (auto &thread : threads)
        thread.join();
}

static std::string *leaked = new std::string(1000, 'l'); // before main

int main()
{
    all_forms();
    failures();
    for (int i = 0; i < 20; i++)
        containers();
    must(leaked->size() == 1000);
    delete leaked;
    std::puts("operators: pass");
}
