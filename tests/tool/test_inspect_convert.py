#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""shmalloc-inspect on heaps of an older file format, which tests/unit/old/old_heaps.h describes.

Usage: test_inspect_convert.py SHMALLOC-INSPECT HEAP_MAKER OLD_HEAPS.PACK [unittest arguments]
"""

import os
import struct
import subprocess
import unittest

import inspect_support as support
from inspect_support import CANNOT_TELL, DAMAGED, POISON, SOUND, InspectTest, fnv, run, run_json

# Bytes of the file, from src/format/layout.h
VERSION = 8           # smf_header.format_version
PLATFORM = (64, 84)   # smf_header.os_page_bytes to mutex_bytes
RUNTIME_AT = 184      # smf_header.areas.runtime
PAGE_HEAP_AT = 216    # smf_header.areas.page_heap
CHECKSUM = 536        # smf_header.checksum
SETS = 2024           # smf_page_heap.set
ECORRUPT = -20005


def number(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at


def unpack(data):
    """Name and bytes of a stored heap."""
    name, _, data = data.partition(b"\0")
    size, at = number(data, 0)
    out = bytearray()
    while True:
        count, at = number(data, at)
        out += data[at:at + count]
        at += count
        if len(out) == size:
            return name.decode(), out
        count, at = number(data, at)
        back, at = number(data, at)
        while count > 0:
            piece = out[-back:][:count]
            piece *= max(1, min(count // len(piece), size // len(piece)))
            out += piece
            count -= len(piece)


def stored_heaps():
    with open(support.PACK, "rb") as file:
        data = file.read()
    heaps = {}
    while data:
        length, = struct.unpack_from("<I", data)
        name, heap = unpack(data[4:4 + length])
        heaps[name] = heap
        data = data[4 + length:]
    return heaps


class OlderHeaps(InspectTest):
    @classmethod
    def setUpClass(cls):
        cls.heaps = stored_heaps()

    def put(self, name):
        """As if made on this machine, and in this file since it was started."""
        data = bytearray(self.heaps[name])
        if os.path.exists(self.heap):
            os.unlink(self.heap)
        self.make("create", "close")
        with open(self.heap, "rb") as file:
            ours = file.read(1 << 16)
        begin, end = PLATFORM
        data[begin:end] = ours[begin:end]
        data[CHECKSUM:CHECKSUM + 8] = struct.pack("<Q", fnv(data[:CHECKSUM]))
        runtime, = struct.unpack_from("<Q", ours, RUNTIME_AT)
        data[runtime:runtime + 40] = ours[runtime:runtime + 40]
        data[runtime + 48:runtime + 56] = bytes(8)  # bytes behind the file: holes stay holes
        with open(self.heap, "r+b") as file:
            file.truncate(0)
            file.truncate(len(data))
            for at in range(0, len(data), 4096):
                if any(data[at:at + 4096]):
                    file.seek(at)
                    file.write(data[at:at + 4096])

    def version(self):
        return self.word(VERSION) & 0xffffffff

    def blocks(self):
        blocks = run_json("blocks", self.heap, "--limit", "all")[1]["blocks"]
        return sorted((b["ref"], b["size"], b["tag"]) for b in blocks)

    def test_each_is_looked_at_and_converted(self):
        for name in self.heaps:
            with self.subTest(name):
                self.put(name)
                before = self.blocks()
                self.assertEqual(run_json("check", self.heap)[1]["violations"], [])
                status, answer = run_json("check", self.heap, "--repair")
                self.assertEqual((status, answer["repair"]["steps"]), (SOUND, []))
                self.assertEqual(self.version(), 2)
                self.assertEqual(run_json("check", self.heap, "--repair", "--yes")[0], SOUND)
                self.assertEqual(self.version(), 3)
                after = self.blocks()
                self.assertLessEqual(set(after), set(before))
                if name.startswith("closed"):
                    self.assertEqual(after, before)

    def test_check_names_the_command(self):
        self.put("closed")
        for options in ([], ["--repair"]):
            status, out, err = run("check", *options, self.heap)
            self.assertEqual((status, err), (SOUND, ""))
            self.assertIn("version 2", out)
            self.assertIn("shmalloc-inspect check --repair --yes " + self.heap, out)
        self.assertEqual(self.version(), 2)
        self.assertEqual(run("check", "--repair", "--yes", self.heap)[0], SOUND)
        self.assertNotIn("version", run("check", self.heap)[1])

    def test_a_damaged_one_is_repaired_and_converted(self):
        for name in ("closed", "killed with threads", "killed with long stacks", "killed in a realloc",
                     "killed, hardened, in a realloc"):
            with self.subTest(name):
                self.put(name)
                self.assertEqual(run_json("check", self.heap, "--repair", "--yes")[0], SOUND)
                expected = self.blocks()  # when nothing is damaged
                self.put(name)
                sets = self.word(PAGE_HEAP_AT) + SETS
                for i in range(256):
                    self.patch(sets + 8 * i, struct.pack("<Q", 3))
                self.patch(POISON, struct.pack("<q", -ECORRUPT))
                self.assertEqual(run_json("check", self.heap)[0], DAMAGED)
                self.assertEqual(self.version(), 2)
                self.assertEqual(run_json("check", self.heap, "--repair", "--yes")[0], SOUND)
                self.assertEqual(self.version(), 3)
                self.assertEqual(self.blocks(), expected)
                os.unlink(self.heap + ".before-repair")

    def test_one_that_is_in_use_is_left_alone(self):
        self.put("killed with threads")
        with open(self.heap, "r+b") as file:
            holder = subprocess.Popen(["python3", "-c", LOCK, str(file.fileno())], pass_fds=[file.fileno()],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.assertEqual(holder.stdout.readline(), b"locked\n")
            self.assertEqual(run("check", "--repair", "--yes", self.heap)[0], CANNOT_TELL)
            self.assertEqual(self.version(), 2)
            holder.communicate(timeout=60)


# Holds the lock of process 0, as the library does: F_OFD_SETLK of one byte.
LOCK = """
import fcntl, struct, sys
flock = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, (1 << 62) + 4096, 1, 0)
fcntl.fcntl(int(sys.argv[1]), 37, flock)
print("locked", flush=True)
sys.stdin.read()
"""


if __name__ == "__main__":
    support.main("PACK")
