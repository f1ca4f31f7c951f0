#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs shmalloc-inspect on heaps in every state and on what is no heap.

Usage: test_inspect.py SHMALLOC-INSPECT HEAP_MAKER [unittest arguments]
"""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import time
import unittest

import inspect_support as support
from inspect_support import (BINS, BUCKETS, CANNOT_TELL, DAMAGED, END_OF_AREAS_AT, KEPT_BYTES, LINK,
                             LOG_BYTES, OPEN, OUSTED, POISON, ROOTS_AT, SECTION, SOUND, SPANS, THREADS_AT,
                             TX_LOG, TX_STATE, Held, InspectTest, fnv, run,
                             run_in_terminal, run_json, terminal_env)

COMMANDS = ("info", "check", "roots", "procs", "mutexes")
GENERATION = 4128  # smf_state.generation


class SoundHeaps(InspectTest):
    def test_closed_heap(self):
        self.make("create", "fill=2000", "roots=7", "close")
        status, info = run_json("info", self.heap)
        self.assertEqual(status, SOUND)
        self.assertEqual(info["state"], "clean")
        self.assertFalse(info["moving"])
        self.assertEqual(info["identity"]["layout"], "maker")
        self.assertEqual(info["identity"]["layout_version"], 7)
        self.assertRegex(info["identity"]["uuid"], r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
        self.assertEqual(info["processes"], 0)
        self.assertEqual(info["roots"], 7)
        self.assertEqual(info["memory"]["cached"], 0)
        self.assertGreater(info["memory"]["allocated_blocks"], 1000)
        self.assertEqual(info["size"]["file"], os.stat(self.heap).st_size)
        status, check = run_json("check", self.heap)
        self.assertEqual((status, check["violations"]), (SOUND, []))
        self.assertEqual(check["checked"]["blocks"], info["memory"]["allocated_blocks"])
        self.assertEqual(check["checked"]["roots"], 7)
        status, procs = run_json("procs", self.heap)
        self.assertEqual((status, procs["processes"]), (SOUND, []))

    def test_hardened_heap(self):
        self.make("hardened", "fill=2000", "close")
        self.assertTrue(run_json("info", self.heap)[1]["identity"]["hardened"])
        self.assertEqual(run_json("check", self.heap)[0], SOUND)

    def test_roots(self):
        self.make("create", "roots=3", "odd-names", "close")
        status, answer = run_json("roots", self.heap)
        self.assertEqual(status, SOUND)
        roots = {root["name"]: root for root in answer["roots"]}
        self.assertEqual(len(roots), 8)
        self.assertEqual(roots["root 2"]["type"], "0x2")
        self.assertEqual(roots["root 2"]["size"], 48)
        self.assertGreater(roots["root 2"]["ref"], 8192)
        self.assertEqual(roots["grüß"]["type"], "0xfeedfacecafebeef")
        self.assertIsNone(roots["grüß"]["size"])
        self.assertIn("bad\ufffd\ufffd", roots)
        self.assertIn("esc\x1b[31mred", roots)
        self.assertEqual([r["name"] for r in answer["roots"]][-1], "\u202eturned")  # sorted by bytes

    def test_names_cannot_play_with_the_terminal(self):
        self.make("create", "odd-names", "close")
        _, out, _ = run("roots", self.heap)
        self.assertNotIn("\x1b", out)
        self.assertNotIn("\x07", out)
        self.assertNotIn("\u202e", out)
        self.assertIn("esc\\x1b[31mred", out)
        self.assertIn("bad\\xff\\xfe", out)
        self.assertIn("grüß", out)

    def test_text_of_each_command(self):
        self.make("create", "fill=100", "roots=1", "close")
        for command, expected in (("info", "clean: closed in order"), ("check", "sound: "),
                                  ("roots", "root 0"), ("procs", "no process has the heap open")):
            status, out, err = run(command, self.heap)
            self.assertEqual((status, err), (SOUND, ""), command)
            self.assertIn(expected, out)

    def test_nothing_is_written_to_the_file(self):
        self.make("create", "fill=500", "die", ends_by=-signal.SIGKILL)
        with open(self.heap, "rb") as file:
            before = file.read()
        stamp = os.stat(self.heap).st_mtime_ns
        for command in COMMANDS:
            self.assertEqual(run(command, self.heap)[0], SOUND)
        with open(self.heap, "rb") as file:
            self.assertEqual(file.read(), before)
        self.assertEqual(os.stat(self.heap).st_mtime_ns, stamp)


class HeapsInUse(InspectTest):
    def test_held_open(self):
        with Held(self.heap, "create", "fill=1000", "hold") as held:
            status, info = run_json("info", self.heap)
            self.assertEqual((status, info["state"], info["moving"]), (SOUND, "in-use", True))
            self.assertEqual((info["processes"], info["threads"]), (1, 1))
            status, check = run_json("check", self.heap)
            self.assertEqual((status, check["moving"], check["left_out"]), (SOUND, False, 0))
            status, procs = run_json("procs", self.heap)
            self.assertEqual(status, SOUND)
            [process] = procs["processes"]
            self.assertEqual(process["pid"], held.process.pid)
            self.assertEqual(process["name"], "heap_maker")
            self.assertEqual(process["uid"], os.getuid())
            self.assertEqual((process["alive"], process["activity"]), (True, "running"))
            self.assertEqual(process["threads"][0]["tid"], held.process.pid)
            self.assertGreater(process["threads"][0]["cached_slots"], 0)
            self.assertEqual(process["threads"][0]["locks"], [])
            self.assertLess(abs(process["attached_at"] / 1e9 - time.time()), 100)
            for command in ("info", "check", "procs"):
                self.assertIn("in use", run(command, self.heap)[1], command)
        self.assertEqual(held.status, 0)
        self.assertEqual(run_json("info", self.heap)[1]["state"], "clean")

    def test_what_threads_have(self):
        with Held(self.heap, "create", "fill=1000", "keep=2", "hold"):
            # there are open stacks to be read
            slot = self.word(self.word(THREADS_AT))
            bins = [self.word(slot + BINS + 8 * k) for k in range(89)]
            self.assertIn(OPEN, [self.word(bin & ~63) for bin in bins if bin])
            [thread] = run_json("procs", self.heap)[1]["processes"][0]["threads"]
            self.assertGreaterEqual(thread["kept_blocks"], 2)
            self.assertGreaterEqual(thread["kept_bytes"], 2 * KEPT_BYTES)
            self.assertGreater(thread["cached_slots"], 0)
            cached = run_json("info", self.heap)[1]["memory"]["cached"]
            self.assertEqual(thread["cached_bytes"] + thread["kept_bytes"], cached)
            self.assertRegex(run("procs", self.heap)[1],
                             r"cached slots, .*, keeps %d large blocks, " % thread["kept_blocks"])

    def test_entry_of_a_block_that_others_have(self):
        self.make("create", "keep=2", "die", ends_by=-signal.SIGKILL)
        slot = self.word(self.word(THREADS_AT))
        size = os.stat(self.heap).st_size
        first, second = (self.word(slot + SPANS + 8 * i) for i in range(2))
        self.assertEqual((first & 8191, second & 8191), (13, 13))
        for entry in (0, second, first + 1, first + 8192, 13, size | 13, 2**64 - 1):
            self.patch(slot + SPANS, struct.pack("<Q", entry))  # no mark of a block names it
            [thread] = run_json("procs", self.heap)[1]["processes"][0]["threads"]
            self.assertEqual((thread["kept_blocks"], thread["kept_bytes"]), (1, KEPT_BYTES), hex(entry))

    def test_steps_under_way(self):
        self.make("create", "fill=40", "die", ends_by=-signal.SIGKILL)
        slot = self.word(self.word(THREADS_AT))
        word = 1 << 19  # of the program
        steps = [(0, 0, "none", ""), (1, 0, "take", ", allocating"), (1, 8, "take", ", reallocating"),
                 (2, 8, "give", ", freeing"), (word | 4, 8, "short-take", ", allocating"),
                 (word | 5, 0, "short-give", ", freeing"), (word | 6, 0, "short-exchange", ", reallocating")]
        steps += [(op, 8, "unknown", ", in an unknown step") for op in (word | 1, word | 7, word)]
        steps += [(3, 8, "move", ", sending or receiving a ref")]
        for op, old, key, text in steps:
            self.patch(slot + LINK, struct.pack("<6Q", op, word, 0, 0, 0, old))
            status, answer = run_json("procs", self.heap)
            [thread] = answer["processes"][0]["threads"]
            self.assertEqual((status, thread["step"]), (SOUND, key))
            self.assertRegex(run("procs", self.heap)[1], r"(?m)cached slots, [\d.]+ \w+%s$" % text)

    def thread(self):
        """What procs says of the only thread, in JSON and in text."""
        status, answer = run_json("procs", self.heap)
        self.assertEqual(status, SOUND)
        [thread] = answer["processes"][0]["threads"]
        [line] = [line for line in run("procs", self.heap)[1].splitlines() if line.startswith("      thread ")]
        return thread, line

    def test_no_transaction_and_no_section(self):
        with Held(self.heap, "create", "fill=10", "hold"):
            thread, line = self.thread()
            self.assertEqual(thread["transaction"], {"state": "none", "entries": 0, "log_bytes": 0})
            self.assertEqual((thread["section"], thread["section_over"]), (0, False))
            self.assertEqual((thread["retired_blocks"], thread["retired_bytes"]), (0, 0))
            self.assertRegex(line, r"cached slots, [\d.]+ \w+$")
            self.assertEqual(run_json("info", self.heap)[1]["transactions"], 0)
            self.assertNotIn("in flight", run("info", self.heap)[1])

    def test_open_transaction(self):
        with Held(self.heap, "create", "transaction", "hold"):
            self.assertEqual(self.thread()[0]["transaction"]["state"], "open")
            self.assertEqual(run_json("info", self.heap)[1]["transactions"], 1)
        os.remove(self.heap)
        self.make("create", "transaction", "die", ends_by=-signal.SIGKILL)
        slot = self.word(self.word(THREADS_AT))
        log, state = self.word(slot + TX_LOG), self.word(slot + TX_STATE)
        bytes_used = self.word(log) - LOG_BYTES  # all is in the first chunk
        thread, line = self.thread()
        entries = thread["transaction"]["entries"]
        self.assertGreaterEqual(entries, 4)
        self.assertEqual(thread["transaction"], {"state": "open", "entries": entries, "log_bytes": bytes_used})
        self.assertTrue(line.endswith(", in an open transaction of %d entries, %d bytes of log" %
                                      (entries, bytes_used)), line)
        self.assertRegex(run("info", self.heap)[1], r"(?m)^  in flight   1 transaction$")
        self.patch(slot + TX_STATE, struct.pack("<Q", state + 1))
        self.assertEqual(self.thread()[0]["transaction"]["state"], "committed")
        self.assertIn(", in a committed transaction of %d entries" % entries, self.thread()[1])
        self.patch(slot + TX_STATE, struct.pack("<Q", state))
        self.make("create", "close")  # who comes next rolls it back
        self.assertEqual(run_json("info", self.heap)[1]["transactions"], 0)
        self.assertEqual(run_json("check", self.heap)[0], SOUND)

    def test_transaction_that_cannot_be(self):
        self.make("create", "transaction", "die", ends_by=-signal.SIGKILL)
        slot = self.word(self.word(THREADS_AT))
        log, size = self.word(slot + TX_LOG), os.stat(self.heap).st_size
        whole = self.thread()[0]["transaction"]
        wrong = [(slot + TX_LOG, value) for value in (0, 8, log + 8, log + 8192, slot, size, 2**64 - 1)]
        wrong += [(log, value) for value in (1, 8, LOG_BYTES + 8, self.word(log) + 8, 1 << 20, 1 << 48, 39 << 48,
                                             40 << 48, 2**64 - 8, 2**64 - 1)]
        wrong += [(log + LOG_BYTES, value) for value in (0, 2**32 - 1, 2**64 - 1)]
        for at, value in wrong:
            before = self.word(at)
            self.patch(at, struct.pack("<Q", value))
            transaction = self.thread()[0]["transaction"]
            self.assertEqual(transaction["state"], "open")
            self.assertTrue(transaction.get("log_error"), (at - log, hex(value)))
            self.assertIn("(%s)" % transaction["log_error"], self.thread()[1])
            self.assertLessEqual(transaction["entries"], whole["entries"])
            self.patch(at, struct.pack("<Q", before))
        self.patch(slot + TX_STATE, struct.pack("<Q", self.word(slot + TX_STATE) | 3))
        self.assertEqual(self.thread()[0]["transaction"], {**whole, "state": "unknown"})
        self.assertIn(", in a transaction in an unknown state of ", self.thread()[1])

    def test_section_and_what_is_retired(self):
        self.make("create", "retire=3", "die", ends_by=-signal.SIGKILL)
        slot = self.word(self.word(THREADS_AT))
        thread, line = self.thread()
        self.assertGreater(thread["section"], 0)
        self.assertEqual((thread["section"], thread["section_over"]), (self.word(slot + SECTION), False))
        self.assertEqual((thread["retired_blocks"], thread["retired_bytes"]), (3, 3 * 48))
        memory = run_json("info", self.heap)[1]["memory"]
        self.assertEqual((memory["retired_blocks"], memory["retired"]), (3, 3 * 48))
        self.assertRegex(line, r", in a read section, retired 3 blocks, 144 bytes$")
        self.patch(slot + OUSTED, struct.pack("<Q", thread["section"]))
        self.assertTrue(self.thread()[0]["section_over"])
        self.assertIn(", in a read section that is over, retired 3 blocks", self.thread()[1])

    def test_churning(self):
        with Held(self.heap, "create", "fill=1000", "churn") as held:
            moved = 0
            for _ in range(15):
                status, check = run_json("check", self.heap)
                self.assertEqual((status, check["violations"]), (SOUND, []))
                self.assertLessEqual(check["readings"], 16)
                moved += check["moving"]
                self.assertEqual(run_json("info", self.heap)[0], SOUND)
                self.assertEqual(run_json("roots", self.heap)[0], SOUND)
                self.assertEqual(len(run_json("procs", self.heap)[1]["processes"]), 1)
            self.assertGreater(moved, 0)
            self.assertIn("The heap is in use", run("check", self.heap)[1])
            held.stop()
            for _ in range(2):
                status, check = run_json("check", self.heap)
                self.assertEqual((status, check["violations"]), (SOUND, []))
            self.assertEqual(run_json("procs", self.heap)[1]["processes"][0]["activity"], "stopped")
        status, info = run_json("info", self.heap)
        self.assertEqual((status, info["state"]), (SOUND, "died"))
        self.assertEqual(run_json("check", self.heap)[0], SOUND)

    def test_stopped_at_any_time(self):
        with Held(self.heap, "create", "churn") as held:
            for i in range(40):
                time.sleep(0.0005 * (i % 7))
                held.stop()
                status, check = run_json("check", self.heap)
                held.process.send_signal(signal.SIGCONT)
                self.assertEqual((status, check["violations"]), (SOUND, []))

    def test_stopped_inside_a_lock(self):
        with Held(self.heap, "create", "fill=1000", "stop-in-lock") as held:
            child = int(held.words[1])
            status, check = run_json("check", self.heap)
            self.assertEqual((status, check["violations"]), (SOUND, []))
            self.assertEqual((check["moving"], check["in_flight"]), (False, 1))
            self.assertIn("1 step was in flight", run("check", self.heap)[1])
            self.assertEqual(run_json("info", self.heap)[0], SOUND)
            self.assertEqual(run_json("roots", self.heap)[0], SOUND)
            procs = {p["pid"]: p for p in run_json("procs", self.heap)[1]["processes"]}
            self.assertEqual(procs[child]["activity"], "stopped")
            [thread] = procs[child]["threads"]
            self.assertEqual(len(thread["locks"]), 1)
            self.assertRegex(thread["locks"][0], r"^class 208 of arena \d$")
            self.assertRegex(run("procs", self.heap)[1], r"holds class 208 of arena \d")
        self.assertEqual(held.status, 0)

    def mutexes_at_rest(self):
        """Of the heap in which threads soon wait for each other."""
        for _ in range(2000):
            status, answer = run_json("mutexes", self.heap)
            self.assertEqual(status, SOUND)
            if sum(len(m["waiters"]) for m in answer["mutexes"]) + len(answer["waits"]) == 3:
                return answer
            time.sleep(0.01)
        self.fail("three threads do not wait: %r" % answer)

    def test_mutexes(self):
        with Held(self.heap, "create", "deadlock") as held:
            answer = self.mutexes_at_rest()
            self.assertEqual(len(answer["mutexes"]), 3)
            for m in answer["mutexes"]:
                self.assertEqual((m["holder"]["pid"], m["holder"]["alive"]), (held.process.pid, True))
                self.assertEqual(m["holder"]["name"], "heap_maker")
            circle = [m for m in answer["mutexes"] if m["deadlock"]]
            self.assertEqual(len(circle), 2)
            self.assertEqual([m["waiters"][0]["tid"] for m in circle], [m["holder"]["tid"] for m in reversed(circle)])
            [left] = [m for m in answer["mutexes"] if m["inconsistent"]]
            self.assertEqual((left["holder"]["tid"], left["waiters"]), (held.process.pid, []))
            [wait] = answer["waits"]
            self.assertEqual(wait["pid"], held.process.pid)
            text = run("mutexes", self.heap)[1]
            self.assertRegex(text, r"held by process %d \(heap_maker\), thread \d+" % held.process.pid)
            self.assertIn("inconsistent since an owner's death", text)
            self.assertEqual(text.count("deadlock"), 2)
            self.assertIn("a condition or word: process", text)
        dead = run_json("mutexes", self.heap)[1]
        self.assertEqual([m["holder"]["alive"] for m in dead["mutexes"]], [False] * 3)
        self.assertIn("held by dead process", run("mutexes", self.heap)[1])
        self.make("create", "close")  # who adopts and closes leaves the mutexes to who locks them
        self.assertRegex(run("mutexes", self.heap)[1], "held by a thread that ended|no mutex is held")

    def test_everybody_died(self):
        self.make("create", "fill=1000", "die", ends_by=-signal.SIGKILL)
        status, info = run_json("info", self.heap)
        self.assertEqual((status, info["state"], info["moving"]), (SOUND, "died", False))
        self.assertGreater(info["memory"]["cached"], 0)
        self.assertEqual(run_json("check", self.heap)[0], SOUND)
        [process] = run_json("procs", self.heap)[1]["processes"]
        self.assertFalse(process["alive"])
        self.assertIn("dead", run("procs", self.heap)[1])
        # The next attach was killed between two stores: that of the new generation, and that of its copy.
        self.patch(GENERATION, struct.pack("<Q", self.word(GENERATION) + 1))
        self.assertEqual(run_json("info", self.heap)[1]["state"], "died")
        self.assertNotIn("cannot be opened", run("check", self.heap)[1])
        self.make("create", "close")

    def test_without_the_machines_boot_id(self):
        def hidden(*args):
            done = subprocess.run(["unshare", "-m", "sh", "-c", "mount --bind /dev/null /proc/sys/kernel/random/boot_id "
                                   "&& exec \"$@\"", "sh", *args], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
            return done.returncode, done.stdout.decode(), done.stderr.decode()

        if shutil.which("unshare") is None or hidden("true")[0] != 0:
            self.skipTest("no mounts of our own here")
        copy = os.path.join(self.dir, "copy")
        self.make("create", "fill=1000", "die", ends_by=-signal.SIGKILL)
        shutil.copyfile(self.heap, copy)
        with open(self.heap, "rb") as file:
            before = file.read()
        for path, state in ((self.heap, "unknown"), (copy, "unclean")):
            status, out, err = hidden(support.INSPECT, "info", "--json", path)
            self.assertEqual((status, json.loads(out)["state"], err), (SOUND, state, ""))
            status, out, _ = hidden(support.INSPECT, "check", "--repair", "--json", path)
            self.assertEqual((status, json.loads(out)["repair"]["unclean"]), (SOUND, None if path == self.heap else True))
        self.assertIn("boot id", hidden(support.INSPECT, "info", self.heap)[1])
        for command in (["check"], ["check", "--repair"], ["procs"]):
            out = hidden(support.INSPECT, *command, self.heap)[1]
            self.assertIn("cannot be told", out)
            self.assertNotIn("It cannot be opened yet", out)
        status, _, err = hidden(support.INSPECT, "check", "--repair", "--yes", self.heap)
        self.assertEqual(status, CANNOT_TELL)
        self.assertIn("boot id", err)
        with open(self.heap, "rb") as file:
            self.assertEqual(file.read(), before)
        with Held(self.heap, "create", "hold"):
            self.assertEqual(json.loads(hidden(support.INSPECT, "info", "--json", self.heap)[1])["state"], "in-use")
        self.make("create", "close")
        self.assertEqual(json.loads(hidden(support.INSPECT, "info", "--json", self.heap)[1])["state"], "clean")

    def test_copy_of_a_heap_in_use(self):
        copy = os.path.join(self.dir, "copy")
        with Held(self.heap, "create", "fill=1000", "hold"):
            shutil.copyfile(self.heap, copy)
        status, info = run_json("info", copy)
        self.assertEqual((status, info["state"]), (SOUND, "unclean"))
        self.assertEqual(run_json("procs", copy)[1]["processes"], [])
        self.assertEqual(run_json("check", copy)[0], SOUND)

    def test_heap_that_may_only_be_read(self):
        self.make("create", "fill=100", "close")
        os.chmod(self.heap, 0o400)
        for command in COMMANDS:
            self.assertEqual(run(command, self.heap)[0], SOUND)


class DanglingRoots(InspectTest):
    """Roots whose block was freed: the heap is sound, and they are named."""

    def look(self, live):
        status, check = run_json("check", self.heap)
        self.assertEqual((status, check["status"], check["dangling"]), (DAMAGED, "dangling", 1))
        self.assertEqual([v["invariant"] for v in check["violations"]], ["U1"])
        self.assertIn('"freed"', check["violations"][0]["text"])
        status, out, err = run("check", self.heap)
        self.assertEqual((status, err), (DAMAGED, ""))
        self.assertRegex(out, r'(?m)^U1  0x[0-9a-f]{12}  root "freed" names 0x[0-9a-f]+, where no block')
        self.assertRegex(out, r"(?m)^sound, but 1 root names no block: ")
        status, roots = run_json("roots", self.heap)
        self.assertEqual((status, roots["status"], roots["moving"]), (DAMAGED, "dangling", live))
        self.assertEqual({r["name"]: r["dangling"] for r in roots["roots"]},
                         {"freed": True, "root 0": False, "root 1": False})
        status, out, _ = run("roots", self.heap)
        self.assertEqual(status, DAMAGED)
        self.assertRegex(out, r"(?m)^0x[0-9a-f]{12} +no block +0x7  freed$")
        self.assertIn("1 root names a place where no block begins", out)
        status, report = run_json("report", self.heap, "-o", os.path.join(self.dir, "page.html"))
        self.assertEqual((status, report["dangling"], report["violations"]), (DAMAGED, 1, 0))

    def test_at_rest(self):
        self.make("create", "fill=100", "roots=2", "dangle", "close")
        self.look(live=False)
        # there is nothing to repair
        status, answer = run_json("check", self.heap, "--repair")
        self.assertEqual((status, answer["repair"]["steps"], answer["repair"]["obstacles"]), (SOUND, [], []))
        self.make("create", "close")

    def test_in_use(self):
        with Held(self.heap, "create", "fill=100", "roots=2", "dangle", "hold"):
            self.look(live=True)


class DamagedHeaps(InspectTest):
    def test_each_violation_with_its_place(self):
        self.make("create", "fill=1000", "roots=3", "close")
        self.patch(POISON, struct.pack("<Q", 20005))
        status, check = run_json("check", self.heap)
        self.assertEqual(status, DAMAGED)
        self.assertEqual([(v["invariant"], v["ref"]) for v in check["violations"]], [("H2", POISON)])
        self.patch(self.word(END_OF_AREAS_AT) + 2, b"\x07\x00")  # the word of page 1
        status, check = run_json("check", self.heap)
        self.assertEqual({(v["invariant"], v["ref"]) for v in check["violations"]},
                         {("H2", POISON), ("P4", 8192)})
        status, out, _ = run("check", self.heap)
        self.assertEqual(status, DAMAGED)
        self.assertRegex(out, r"(?m)^P4  0x000000002000  page 1 holds metadata")
        self.assertRegex(out, r"(?m)^damaged: 2 violations in ")
        status, info = run_json("info", self.heap)
        self.assertEqual((status, info["poisoned"]), (DAMAGED, -20005))
        self.assertIn("poisoned", run("info", self.heap)[1])

    def test_truncated(self):
        self.make("create", "fill=1000", "close")
        os.truncate(self.heap, os.stat(self.heap).st_size - 4096)
        status, check = run_json("check", self.heap)
        self.assertEqual(status, DAMAGED)
        self.assertEqual(check["violations"][0]["invariant"], "H1")
        self.assertIn("cut short", check["violations"][0]["text"])
        for command in ("info", "roots", "procs"):
            status, answer = run_json(command, self.heap)
            self.assertEqual((status, answer["error"]["code"]), (DAMAGED, -20005))
            self.assertIn("cut short", answer["error"]["message"])
            status, out, err = run(command, self.heap)
            self.assertEqual(status, DAMAGED)
            self.assertIn("cut short", err)

    def test_flipped_header(self):
        self.make("create", "close")
        self.patch(45, b"\xff")
        for command in COMMANDS:
            self.assertEqual(run_json(command, self.heap)[0], DAMAGED)
        self.assertIn("identity", run_json("info", self.heap)[1])

    def test_every_truncation_ends(self):
        self.make("create", "fill=300", "close")
        size = os.stat(self.heap).st_size
        while size > 0:
            size = size * 2 // 3
            os.truncate(self.heap, size)
            for command in COMMANDS:
                self.assertIn(run(command, self.heap)[0], (DAMAGED, CANNOT_TELL))

    def test_damaged_roots_are_still_listed(self):
        self.make("create", "roots=20", "close")
        buckets = self.word(ROOTS_AT) + BUCKETS
        for at in range(buckets, buckets + 512 * 8, 8):
            if self.word(at):
                self.patch(at, struct.pack("<Q", 3))
                break
        status, answer = run_json("roots", self.heap)
        self.assertEqual((status, answer["error"]["code"]), (DAMAGED, -20005))
        self.assertGreaterEqual(len(answer["roots"]), 17)


class NoHeaps(InspectTest):
    def must_be_unknown(self, path, *fragments):
        for command in COMMANDS:
            status, answer = run_json(command, path)
            self.assertEqual(status, CANNOT_TELL)
            status, out, err = run(command, path)
            self.assertEqual(status, CANNOT_TELL)
            for fragment in fragments:
                self.assertIn(fragment, answer["error"]["message"])
                self.assertIn(fragment, err)

    def test_what_is_no_heap(self):
        self.must_be_unknown(os.path.join(self.dir, "missing"), "No such file")
        self.must_be_unknown(self.dir, "directory")
        self.must_be_unknown("/dev/null", "not a regular file")
        self.write(b"")
        self.must_be_unknown(self.heap, "not a shmalloc heap", "0 bytes")
        self.write(b"just a text\n")
        self.must_be_unknown(self.heap, "not a shmalloc heap", "12 bytes")
        self.write(bytes(100000))
        self.must_be_unknown(self.heap, "not a shmalloc heap")
        self.write(b"SHMALLOC")
        self.must_be_unknown(self.heap, "not a shmalloc heap", "has 8 bytes", "copy")

    def test_pipe_does_not_block(self):
        os.mkfifo(self.heap)
        self.must_be_unknown(self.heap, "not a regular file")

    @unittest.skipIf(os.getuid() == 0, "root may read everything")
    def test_unreadable(self):
        self.make("create", "close")
        os.chmod(self.heap, 0)
        self.must_be_unknown(self.heap, "Permission denied")

    def test_foreign_and_newer(self):
        self.make("create", "close")
        for at, value, fragment in ((68, struct.pack("<I", 9999), "machine"),
                                    (8, struct.pack("<I", 99), "version 99"),
                                    (12, struct.pack(">I", 0x01020304), "byte order")):
            with open(self.heap, "r+b") as file:
                header = bytearray(file.read(544))
                changed = header[:]
                changed[at:at + len(value)] = value
                changed[536:] = struct.pack("<Q", fnv(changed[:536]))
                file.seek(0)
                file.write(changed)
                file.flush()
                self.must_be_unknown(self.heap, fragment)
                self.assertIn("identity", run_json("info", self.heap)[1])
                file.seek(0)
                file.write(header)



class CommandLine(InspectTest):
    def test_help_teaches(self):
        status, out, err = run("--help")
        self.assertEqual((status, err), (0, ""))
        for word in (*COMMANDS, "--json", "Exit status", "0  sound", "1  damaged", "2  cannot tell"):
            self.assertIn(word, out)
        for command in COMMANDS:
            for args in ((command, "--help"), ("--help", command), (command, "-h", "some-file")):
                status, out, err = run(*args)
                self.assertEqual((status, err), (0, ""))
                self.assertTrue(out.startswith("Usage: shmalloc-inspect " + command))
                self.assertIn("JSON keys", out)
        for width in (len(line) for line in run("--help")[1].splitlines()):
            self.assertLessEqual(width, 90)

    def test_json_keys_are_those_of_the_help(self):
        self.make("create", "fill=100", "roots=2", "die", ends_by=-signal.SIGKILL)
        for command in COMMANDS:
            text = run(command, "--help")[1].split("JSON keys")[1]
            known = set(re.findall(r"[a-z_]+", text))
            def look(value):
                if isinstance(value, dict):
                    for key, inner in value.items():
                        self.assertIn(key, known, command)
                        look(inner)
                elif isinstance(value, list):
                    for inner in value:
                        look(inner)
            look(run_json(command, self.heap)[1])

    def test_version(self):
        self.assertRegex(run("--version")[1], r"^shmalloc-inspect \d+\.\d+\.\d+\n$")

    def test_bad_usage(self):
        for args in ((), ("info",), ("nonsense", "file"), ("info", "a", "b"), ("--nonsense",),
                     ("info", "--nonsense", "file"), ("info", "-x", "file")):
            status, out, err = run(*args)
            self.assertEqual((status, out), (CANNOT_TELL, ""), args)
            self.assertTrue(err.startswith("shmalloc-inspect: "), args)
        self.assertIn("info check roots procs mutexes", run("nonsense", "file")[2])

    def test_options_in_any_place(self):
        self.make("create", "close")
        for args in (("info", "--json", self.heap), ("--json", "info", self.heap),
                     ("info", self.heap, "--json")):
            self.assertEqual(json.loads(run(*args)[1])["command"], "info")
        self.assertEqual(run("info", "--", self.heap)[0], SOUND)

    def test_colours_only_on_a_terminal(self):
        self.make("create", "fill=10", "close")
        self.assertIn("\x1b[32m", run_in_terminal("check", self.heap, env=terminal_env()))
        self.assertNotIn("\x1b", run("check", self.heap, env=terminal_env())[1])
        self.assertNotIn("\x1b", run_in_terminal("check", self.heap, env=terminal_env(NO_COLOR="1")))
        self.assertNotIn("\x1b", run_in_terminal("check", self.heap, env=terminal_env(TERM="dumb")))
        self.assertNotIn("\x1b", run_in_terminal("check", "--json", self.heap, env=terminal_env()))

    def test_full_disk_is_no_success(self):
        self.make("create", "close")
        with open("/dev/full", "wb") as full:
            done = subprocess.run([support.INSPECT, "info", self.heap], stdout=full, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, CANNOT_TELL)
        self.assertIn(b"standard output", done.stderr)


if __name__ == "__main__":
    support.main()
