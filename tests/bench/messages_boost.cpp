/* SPDX-License-Identifier: MIT */
/* messages_boost.cpp - boost::interprocess::message_queue for messages.c. */
#include <boost/interprocess/ipc/message_queue.hpp>
#include <cstdio>
#include <unistd.h>

using boost::interprocess::message_queue;

static message_queue *queues[2];

extern "C" {
void boost_queues_open(unsigned capacity, unsigned length);
void boost_queue_send(int which, const void *message, unsigned length);
void boost_queue_receive(int which, void *message, unsigned length);
}

/* Before the fork: both processes use the same mappings. Their names go at once. */
void boost_queues_open(unsigned capacity, unsigned length)
{
    for (int i = 0; i < 2; i++) {
        char name[64];
        std::snprintf(name, sizeof(name), "shmalloc-bench-%d-%d", static_cast<int>(getpid()), i);
        message_queue::remove(name);
        queues[i] = new message_queue(boost::interprocess::create_only, name, capacity, length);
        message_queue::remove(name);
    }
}

void boost_queue_send(int which, const void *message, unsigned length)
{
    queues[which]->send(message, length, 0);
}

void boost_queue_receive(int which, void *message, unsigned length)
{
    unsigned priority;
    message_queue::size_type got;
    queues[which]->receive(message, length, got, priority);
}
