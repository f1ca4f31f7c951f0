#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""check --repair of shmalloc-inspect: dry run, repair, refusal, kills, full disks, heaps in use.

Usage: test_inspect_repair.py SHMALLOC-INSPECT HEAP_MAKER KILL_AT [unittest arguments]

What a repair makes of each damage is the matter of tests/unit/test_repair.c; here it is what the tool does
around it.
"""

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import unittest

import inspect_support as support
from inspect_support import (BUCKETS, CANNOT_TELL, DAMAGED, POISON, ROOTS_AT, SOUND, Held, InspectTest,
                             run, run_in_terminal, run_json, terminal_env)

# Bytes of the file, from src/format/layout.h
PAGE_HEAP_AT = 216  # smf_header.areas.page_heap
SETS = 2024         # smf_page_heap.set
DIRECTORY_AT = 208  # smf_header.areas.directory
CHECKSUM = 536      # smf_header.checksum
SIZE = 4096         # smf_state.size
SYNC_FAILED = 4144  # smf_state.sync_failed
KILLED = 100        # what kill_at says
ECORRUPT = -20005


class RepairTest(InspectTest):
    """A heap of some blocks and roots whose processes all died."""

    def setUp(self):
        super().setUp()
        self.make("create", "fill=2000", "roots=9", "die", ends_by=-signal.SIGKILL)
        self.backup = self.heap + ".before-repair"

    def damage(self):
        """Sets of free spans that lead nowhere, a chain of roots that is cut, and what finding it does."""
        sets = self.word(PAGE_HEAP_AT) + SETS
        for i in range(256):
            self.patch(sets + 8 * i, struct.pack("<Q", 3))
        roots = self.word(ROOTS_AT) + BUCKETS
        bucket = next(i for i in range(512) if self.word(roots + 8 * i))
        self.patch(roots + 8 * bucket, struct.pack("<Q", 77777))
        self.patch(POISON, struct.pack("<q", -ECORRUPT))

    def damage_beyond_repair(self):
        """Names and identity in the header are overwritten: its checksum is of something else."""
        self.patch(40, b"0123456789abcdef")

    def content(self, path=None):
        with open(path or self.heap, "rb") as file:
            return file.read()

    def holdings(self):
        """Blocks and roots."""
        blocks = run_json("blocks", self.heap, "--limit", "all")[1]["blocks"]
        roots = run_json("roots", self.heap)[1]["roots"]
        return (sorted((b["ref"], b["size"], b["tag"]) for b in blocks),
                sorted((r["name"], r["ref"], r["type"]) for r in roots))

    def repair(self, *options, path=None):
        return run_json("check", path or self.heap, "--repair", *options)

    def is_of_use(self):
        self.make("create", "fill=2000", "roots=20", "close")
        self.assertEqual(run_json("check", self.heap)[0], SOUND)


class Repairs(RepairTest):
    def test_dry_run_writes_nothing(self):
        self.damage()
        before, listed = self.content(), os.listdir(self.dir)
        status, out, err = run("check", "--repair", self.heap)
        self.assertEqual((status, err), (DAMAGED, ""))
        self.assertEqual((self.content(), os.listdir(self.dir)), (before, listed))
        self.assertRegex(out, r"(?m)^   1\. H2  0x000000001028  ")
        self.assertRegex(out, r"(?m)^ *\d+\. P3  0x[0-9a-f]{12}  the set of free spans")
        self.assertRegex(out, r"root \"root \d\", which no chain has, is bound again")
        self.assertIn("Nothing was written.", out)
        self.assertIn("check --repair --yes " + self.heap, out)
        status, answer = self.repair()
        self.assertEqual(status, DAMAGED)
        self.assertEqual((answer["repair"]["applied"], answer["repair"]["backup"]), (False, None))
        self.assertEqual(answer["repair"]["obstacles"], [])
        self.assertEqual(len(answer["repair"]["steps"]), len(re.findall(r"(?m)^ *\d+\. ", out)))

    def test_a_copy_of_a_heap_in_use_is_closed_in_order(self):
        copy = os.path.join(self.dir, "copy")
        with Held(self.heap, "create", "hold"):
            shutil.copyfile(self.heap, copy)
        before = self.content(copy)
        self.assertIn("--repair --yes " + copy, run("check", copy)[1])
        self.assertIn("--repair --yes " + copy, run("check", "--repair", copy)[1])
        status, answer = self.repair(path=copy)
        self.assertEqual((status, answer["repair"]["unclean"], answer["repair"]["applied"]), (SOUND, True, False))
        self.assertEqual(self.content(copy), before)
        status, out, err = run("check", "--repair", "--yes", copy)
        self.assertEqual((status, err), (SOUND, ""))
        self.assertIn("may be used again", out)
        self.assertEqual(os.listdir(self.dir).count("copy.before-repair"), 0)
        self.assertEqual(run_json("info", copy)[1]["state"], "clean")
        status, answer = self.repair(path=copy)
        self.assertEqual((status, answer["repair"]["unclean"]), (SOUND, False))
        self.assertNotIn("cannot be opened", run("check", "--repair", copy)[1])
        self.make("create", "fill=10", "close", heap=copy)

    def test_a_failed_sync_in_a_heap_that_was_closed_in_order(self):
        self.make("create", "close")
        self.patch(SYNC_FAILED, struct.pack("<Q", 23))
        status, check = run_json("check", self.heap)
        self.assertEqual((status, [v["invariant"] for v in check["violations"]]), (DAMAGED, ["H3"]))
        self.assertEqual(self.repair("--yes")[0], SOUND)
        self.is_of_use()

    def test_a_failed_sync_ends_with_a_copy(self):
        self.patch(SYNC_FAILED, struct.pack("<Q", 5))
        status, _, err = run("check", "--repair", "--yes", self.heap) # nothing is wrong with it
        self.assertEqual((status, err), (SOUND, ""))
        copy = os.path.join(self.dir, "copy")
        shutil.copyfile(self.heap, copy)
        status, answer = self.repair("--yes", path=copy)
        self.assertEqual((status, answer["repair"]["unclean"], answer["repair"]["applied"]), (SOUND, True, True))
        info = run_json("info", copy)[1]
        self.assertEqual((info["state"], info["sync_failed"]), ("clean", 0))
        self.make("create", "fill=10", "close", heap=copy)

    def test_repair_brings_all_back(self):
        before = self.holdings()
        self.damage()
        damaged = self.content()
        self.assertNotEqual(run("roots", self.heap)[0], SOUND)
        status, answer = self.repair("--yes")
        self.assertEqual((status, answer["violations"]), (SOUND, []))
        self.assertTrue(answer["repair"]["applied"])
        self.assertEqual(answer["repair"]["backup"], self.backup)
        self.assertEqual(self.content(self.backup), damaged)
        self.assertEqual(os.stat(self.backup).st_mode, os.stat(self.heap).st_mode)
        self.assertEqual(self.holdings(), before)
        self.assertEqual(run_json("info", self.heap)[1]["state"], "clean")
        self.is_of_use()

    def test_text_of_a_repair(self):
        self.damage()
        status, out, err = run("check", "--repair", "--yes", self.heap)
        self.assertEqual((status, err), (SOUND, ""))
        for words in ("saved as " + self.backup, "repaired: ", "steps were carried out", "sound: "):
            self.assertIn(words, out)

    def test_sound_heap_is_left_alone(self):
        before = self.content()
        for options in ((), ("--yes",)):
            status, answer = self.repair(*options)
            self.assertEqual((status, answer["repair"]["steps"]), (SOUND, []))
            self.assertIn("nothing to repair", run("check", "--repair", *options, self.heap)[1])
        self.assertEqual(self.content(), before)
        self.assertFalse(os.path.exists(self.backup))

    def test_poison_alone(self):
        self.patch(POISON, struct.pack("<q", -ECORRUPT))
        self.assertEqual(self.repair("--yes")[0], SOUND)
        self.is_of_use()

    def test_what_is_beyond_repair(self):
        self.damage_beyond_repair()
        before = self.content()
        for options in ((), ("--yes",)):
            status, answer = self.repair(*options)
            self.assertEqual(status, DAMAGED)
            self.assertIn("checksum", answer["error"]["message"])
            status, out, err = run("check", "--repair", *options, self.heap)
            self.assertEqual(status, DAMAGED)
            self.assertIn("restore", err)
        self.assertEqual(self.content(), before)
        self.assertFalse(os.path.exists(self.backup))

    def test_cut_file_with_a_block_behind_the_cut(self):
        os.truncate(self.heap, os.path.getsize(self.heap) // 2)
        before = self.content()
        status, answer = self.repair("--yes")
        self.assertEqual(status, DAMAGED)
        self.assertTrue(any("is lost" in o["text"] for o in answer["repair"]["obstacles"]), answer)
        status, out, err = run("check", "--repair", self.heap)
        self.assertIn("beyond repair", out)
        self.assertEqual(self.content(), before)

    def test_cut_file_with_nothing_behind_the_cut(self):
        free = os.path.join(self.dir, "free")
        self.make("create", "fill=30", "close", heap=free)
        size = os.path.getsize(free)
        self.heap = free
        before = self.holdings()
        os.truncate(free, size - 100000)
        self.assertEqual(self.repair("--yes")[0], SOUND)
        self.assertEqual(os.path.getsize(free), size)
        self.assertEqual(self.holdings(), before)
        self.is_of_use()

    def test_header_gets_its_bytes_again(self):
        """Any one byte, and all that follows from the number of arenas."""
        good = self.content()[:CHECKSUM + 8]
        chance = random.Random(5)
        for at in [0, 8, 12, 100, 104, 160, *chance.sample(range(CHECKSUM + 8), 10)]:
            byte = good[at] ^ chance.randrange(1, 256)
            self.patch(at, bytes([byte]))
            self.assertEqual(self.repair("--yes")[0], SOUND, "byte %d is %#x" % (at, byte))
            self.assertEqual(self.content()[:CHECKSUM + 8], good)
        self.patch(184, b"\xff" * 72)
        self.assertEqual(self.repair("--yes")[0], SOUND)
        self.assertEqual(self.content()[:CHECKSUM + 8], good)

    def test_size_and_directory_are_found(self):
        before, size, at = self.holdings(), self.word(SIZE), self.word(DIRECTORY_AT)
        entries = [self.word(at + 8 * i) for i in range(3)]
        for place, value in ((SIZE, size + (1 << 20)), (SIZE, size - (1 << 20)), (SIZE, 1 << 63), (SIZE + 8, 1),
                             (SIZE + 8, 2000), (SIZE + 16, 5), (SIZE + 24, 99), (at, 0), (at + 8, 0),
                             (at + 8, entries[2]), (at + 16, (1 << 64) - 1)):
            self.patch(place, struct.pack("<Q", value))
            status, answer = self.repair("--yes")
            self.assertEqual(status, SOUND, (place, value, answer))
            self.assertEqual((self.word(SIZE), [self.word(at + 8 * i) for i in range(3)]), (size, entries))
            self.assertEqual(self.holdings(), before)

    def test_hardened_heap(self):
        self.heap = os.path.join(self.dir, "hard")
        self.make("hardened", "fill=2000", "roots=9", "die", ends_by=-signal.SIGKILL)
        before = self.holdings()
        self.damage()
        self.assertEqual(self.repair("--yes")[0], SOUND)
        self.assertEqual(self.holdings(), before)
        self.is_of_use()


class Copies(RepairTest):
    def test_no_file_is_overwritten(self):
        self.damage()
        with open(self.backup, "w", encoding="utf-8") as file:
            file.write("mine")
        before = self.content()
        status, answer = self.repair("--yes", "--backup", self.backup)
        self.assertEqual(status, CANNOT_TELL)
        self.assertIn("nothing was changed", answer["error"]["message"])
        self.assertEqual((self.content(), self.content(self.backup)), (before, b"mine"))
        status, answer = self.repair("--yes")
        self.assertEqual((status, answer["repair"]["backup"]), (SOUND, self.backup + "-2"))
        self.assertEqual((self.content(self.backup + "-2"), self.content(self.backup)), (before, b"mine"))

    def test_place_of_the_copy(self):
        self.damage()
        before, other = self.content(), os.path.join(self.dir, "other")
        self.assertEqual(self.repair("-y", "-b", other)[0], SOUND)
        self.assertEqual(self.content(other), before)
        self.assertFalse(os.path.exists(self.backup))

    def test_holes_stay_holes(self):
        os.truncate(self.heap, os.path.getsize(self.heap) + (1 << 30))
        self.damage()
        status, answer = self.repair("--yes")
        self.assertEqual(status, SOUND, answer)
        copy = os.stat(self.backup)
        self.assertGreater(copy.st_size, 1 << 30)
        self.assertLess(copy.st_blocks * 512, 64 << 20)

    def disk(self, size):
        """A file system of its own."""
        place = os.path.join(self.dir, "disk")
        os.mkdir(place)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=" + size, "none", place], capture_output=True)
        if done.returncode != 0:
            self.skipTest("cannot mount: " + done.stderr.decode())
        self.addCleanup(subprocess.run, ["umount", place], check=True)
        return place

    def test_storage_that_was_not_written_stays(self):
        """The copy is put back, the disk is filled, and every byte of every block can be written."""
        place = self.disk("64m")
        self.heap = os.path.join(place, "heap")
        self.backup = self.heap + ".before-repair"
        self.make("create", "fill=2000", "die", ends_by=-signal.SIGKILL)
        self.patch(POISON, struct.pack("<q", -ECORRUPT))
        stored = os.stat(self.heap).st_blocks
        blocks = self.holdings()[0]
        self.assertEqual(self.repair("--yes")[0], SOUND)
        self.assertGreaterEqual(os.stat(self.backup).st_blocks, stored)
        os.rename(self.backup, self.heap)
        with open(os.path.join(place, "other"), "wb", 0) as file:
            with self.assertRaisesRegex(OSError, "No space left"):
                while file.write(bytes(65536)) == 65536:
                    pass
                file.write(bytes(65536))
        writing = ("import json, mmap, sys\n"
                   "file = open(sys.argv[1], 'r+b')\n"
                   "heap = mmap.mmap(file.fileno(), 0)\n"
                   "for ref, size, tag in json.load(sys.stdin):\n"
                   "    heap[ref:ref + size] = bytes([255]) * size\n")
        done = subprocess.run([sys.executable, "-c", writing, self.heap], input=json.dumps(blocks), text=True)
        self.assertEqual(done.returncode, 0)

    def test_full_disk(self):
        """The copy does not fit: nothing changes, and no part of it stays."""
        place = self.disk("256k")
        self.damage()
        before = self.content()
        status, answer = self.repair("--yes", "--backup", os.path.join(place, "copy"))
        self.assertEqual(status, CANNOT_TELL)
        self.assertIn("No space left on device", answer["error"]["message"])
        self.assertIn("nothing was changed", answer["error"]["message"])
        self.assertEqual((self.content(), os.listdir(place)), (before, []))
        self.assertEqual(self.repair("--yes")[0], SOUND)

    def test_no_such_directory(self):
        self.damage()
        before = self.content()
        status, answer = self.repair("--yes", "--backup", os.path.join(self.dir, "none", "copy"))
        self.assertEqual(status, CANNOT_TELL)
        self.assertEqual(self.content(), before)


class Refusals(RepairTest):
    def test_heap_in_use(self):
        with Held(self.heap, "create", "hold") as held:
            before = self.content()
            for options in ((), ("--yes",)):
                status, answer = self.repair(*options)
                self.assertEqual(status, CANNOT_TELL)
                self.assertIn("is in use by process %d (heap_maker)" % held.process.pid,
                              answer["error"]["message"])
            self.assertEqual(self.content(), before)
        self.assertFalse(os.path.exists(self.backup))

    def test_options_go_together(self):
        for options in (("--yes",), ("--backup", "x"), ("-y",)):
            status, out, err = run("check", *options, self.heap)
            self.assertEqual((status, out), (CANNOT_TELL, ""))
            self.assertIn("--repair", err)

    def test_what_is_no_heap(self):
        path = os.path.join(self.dir, "text")
        with open(path, "w", encoding="utf-8") as file:
            file.write("no heap at all\n" * 1000)
        before = self.content(path)
        for target in (path, self.dir, os.path.join(self.dir, "none"), "/dev/null"):
            status, answer = self.repair("--yes", path=target)
            self.assertEqual(status, CANNOT_TELL, target)
            self.assertIn("error", answer)
        self.assertEqual(self.content(path), before)

    def test_check_names_the_way_out(self):
        self.damage()
        self.assertIn("check --repair " + self.heap, run("check", self.heap)[1])

    def test_colours_and_keys(self):
        self.damage()
        self.assertIn("\x1b[33m", run_in_terminal("check", "--repair", self.heap, env=terminal_env()))
        self.assertNotIn("\x1b", run("check", "--repair", self.heap, env=terminal_env())[1])
        known = set(re.findall(r"[a-z_]+", run("check", "--help")[1].split("JSON keys")[1]))
        for options in ((), ("--yes",)):
            answer = self.repair(*options)[1]
            self.assertLessEqual(set(answer) | set(answer["repair"]), known)


class Kills(RepairTest):
    def setUp(self):
        super().setUp()
        self.before = self.holdings()
        self.damage()
        self.damaged = os.path.join(self.dir, "damaged")
        shutil.copyfile(self.heap, self.damaged)

    def start_over(self):
        shutil.copyfile(self.damaged, self.heap)
        for name in os.listdir(self.dir):
            if ".before-repair" in name:
                os.unlink(os.path.join(self.dir, name))

    def must_come_back(self, what):
        """The heap is under repair, or repaired; and in the end it is sound, with all it held."""
        for name in os.listdir(self.dir): # a copy is whole or not there
            if ".before-repair" in name:
                self.assertEqual(self.content(os.path.join(self.dir, name)), self.content(self.damaged), what)
        status, answer = self.repair("--yes")
        self.assertEqual(status, SOUND, (what, answer))
        self.assertEqual(self.holdings(), self.before, what)

    def test_killed_at_each_write(self):
        n, step = 1, 0
        while True:
            self.start_over()
            status = self.run_killed(n)
            if status != KILLED:
                break
            self.must_come_back("killed at call %d" % n)
            step += 1
            n += 1 if n < 20 else 37 # the words of one stage are alike
        self.assertEqual(status, SOUND)
        self.assertGreater(step, 20)
        self.is_of_use()

    def test_killed_at_the_end(self):
        """The last calls, where the marks change and the heap is taken into use."""
        calls = 1
        while True: # how many there are
            self.start_over()
            if self.run_killed(calls) != KILLED:
                break
            calls *= 2
        low, high = calls // 2, calls
        while high - low > 1:
            middle = (low + high) // 2
            self.start_over()
            low, high = (middle, high) if self.run_killed(middle) == KILLED else (low, middle)
        for n in range(max(1, low - 14), low + 1):
            self.start_over()
            self.assertEqual(self.run_killed(n), KILLED)
            self.must_come_back("killed at call %d of %d" % (n, low))
        self.is_of_use()

    def run_killed(self, n):
        # Under ptrace nobody can look for leaks.
        env = dict(os.environ, ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0")
        return subprocess.run([support.KILL_AT, str(n), support.INSPECT, "check", "--repair", "--yes", self.heap],
                              env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=60).returncode

    def test_killed_at_any_time(self):
        seed = int(os.environ.get("SHMALLOC_TEST_SEED", random.getrandbits(32)))
        print("seed: SHMALLOC_TEST_SEED=%d" % seed)
        chance = random.Random(seed)
        for turn in range(15):
            self.start_over()
            process = subprocess.Popen([support.INSPECT, "check", "--repair", "--yes", self.heap],
                                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
            time.sleep(chance.random() * 0.05)
            process.kill()
            process.wait(timeout=60)
            self.must_come_back("turn %d" % turn)


if __name__ == "__main__":
    support.main("KILL_AT")
