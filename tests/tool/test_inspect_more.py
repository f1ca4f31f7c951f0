#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Runs map, classes, blocks and leaks of shmalloc-inspect and compares them with what is known.

Usage: test_inspect_more.py SHMALLOC-INSPECT HEAP_MAKER [unittest arguments]

Graphs for leaks are written into the blocks of a closed heap: what programs keep in their blocks is
not the library's, so the heap stays sound.
"""

import collections
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import time
import unittest

import inspect_support as support
from inspect_support import (BUCKETS, CANNOT_TELL, DAMAGED, END_OF_AREAS_AT, KEPT_BYTES, POISON, ROOTS_AT, SOUND,
                             THREAD_BYTES, Held, InspectTest, fnv, run, run_in_terminal, run_json, terminal_env)

COMMANDS = ("map", "classes", "blocks", "leaks")
FIXED_BASE = 104  # smf_header.fixed_base
CHECKSUM = 536    # smf_header.checksum


class Trim(InspectTest):
    def test_at_rest(self):
        self.make("create", "fill=30000", "pile=10000", "close")
        before = os.stat(self.heap)
        blocks = run_json("info", self.heap)[1]["memory"]["allocated"]
        status, answer = run_json("trim", self.heap)
        self.assertEqual(status, SOUND)
        self.assertEqual(answer["before"], {"length": before.st_size, "storage": before.st_blocks * 512})
        after = os.stat(self.heap)
        self.assertEqual(answer["after"], {"length": after.st_size, "storage": after.st_blocks * 512})
        self.assertGreater(answer["given_back"], 0)
        self.assertLess(after.st_blocks, before.st_blocks)
        self.assertEqual(run_json("check", self.heap)[0], SOUND)
        self.assertEqual(run_json("info", self.heap)[1]["memory"]["allocated"], blocks)
        status, out, err = run("trim", self.heap)
        self.assertEqual((status, err), (SOUND, ""))
        self.assertRegex(out, r"^nothing to give back: .* stored before, .* now\.\n$")
        self.make("create", "fill=10", "close")

    def test_after_a_death(self):
        self.make("create", "fill=3000", "keep=12", "die", ends_by=-signal.SIGKILL)
        self.assertGreater(run_json("trim", self.heap)[1]["given_back"], 500000)
        self.assertEqual(run_json("info", self.heap)[1]["state"], "clean")
        self.assertEqual(run_json("check", self.heap)[0], SOUND)

    def test_refusals(self):
        with Held(self.heap, "create", "fill=100", "hold"):
            status, _, err = run("trim", self.heap)
            self.assertEqual(status, CANNOT_TELL)
            self.assertIn("is in use by process", err)
            shutil.copyfile(self.heap, self.heap + ".copy")
        status, _, err = run("trim", self.heap + ".copy")
        self.assertEqual(status, CANNOT_TELL)
        self.assertIn("recover", err)
        for path, word in ((self.heap + ".none", "No such file"), (self.dir, "directory")):
            status, _, err = run("trim", path)
            self.assertEqual(status, CANNOT_TELL)
            self.assertIn(word, err)
        with open(self.heap + ".text", "w") as file:
            file.write("no heap\n")
        self.assertEqual(run("trim", self.heap + ".text")[0], CANNOT_TELL)
        self.patch(POISON, struct.pack("<Q", 20005))
        self.assertEqual(run("trim", self.heap)[0], DAMAGED)


class Copy(InspectTest):
    def setUp(self):
        super().setUp()
        self.out = os.path.join(self.dir, "out")

    def copy(self, **expected):
        if os.path.exists(self.out):
            os.unlink(self.out)
        status, answer = run_json("copy", self.heap, "-o", self.out)
        self.assertEqual((status, answer.get("error")), (SOUND, None))
        stored = os.stat(self.out)
        self.assertEqual((answer["output"], answer["length"], answer["storage"]),
                         (self.out, stored.st_size, stored.st_blocks * 512))
        self.assertEqual(run_json("info", self.out)[1]["state"], "clean")
        self.assertEqual(run_json("check", self.out)[0], SOUND)
        for key, value in expected.items():
            self.assertEqual(answer[key], value)
        return answer

    def blocks(self, path):
        return run_json("blocks", path, "--limit", "all")[1]["blocks"]

    def test_at_rest(self):
        self.make("create", "fill=3000", "roots=9", "keep=12", "close")
        with open(self.heap, "rb") as file:
            before = file.read()
        self.copy(in_use=False, locked_us=0)
        with open(self.heap, "rb") as file:
            self.assertEqual(file.read(), before, "the heap was written to")
        self.assertEqual(self.blocks(self.out), self.blocks(self.heap))
        self.assertEqual(run_json("roots", self.out)[1]["roots"], run_json("roots", self.heap)[1]["roots"])
        self.make("create", "fill=100", "close", heap=self.out)

    def test_after_a_death(self):
        self.make("create", "fill=3000", "roots=9", "keep=12", "die", ends_by=-signal.SIGKILL)
        self.copy(in_use=False)
        self.assertEqual(self.blocks(self.out), self.blocks(self.heap))
        self.assertEqual(run_json("info", self.heap)[1]["state"], "died")

    def test_in_use_and_still(self):
        with Held(self.heap, "create", "fill=3000", "roots=9", "keep=12", "hold"):
            self.copy(in_use=True)
            self.assertEqual(self.blocks(self.out), self.blocks(self.heap))
            self.assertEqual(run_json("roots", self.out)[1]["roots"], run_json("roots", self.heap)[1]["roots"])
            os.unlink(self.out)
            status, out, err = run("copy", "-o", self.out, self.heap)
            self.assertEqual((status, err), (SOUND, ""))
            self.assertIn("may be torn", out)
        self.make("create", "fill=100", "close", heap=self.out)

    def test_beside_processes_at_full_speed(self):
        for kind in ("create", "hardened"):
            self.make(kind, "fill=1000", "roots=3", "close")
            with Held(self.heap, "create", "weave") as one, Held(self.heap, "create", "churn") as other:
                for _ in range(12):
                    self.copy(in_use=True)
                    self.make("create", "fill=300", "close", heap=self.out)
                self.assertEqual((one.process.poll(), other.process.poll()), (None, None))
            os.unlink(self.heap)

    def test_killed_in_the_middle(self):
        self.make("create", "fill=20000", "close")
        with Held(self.heap, "create", "weave") as held:
            for delay in range(30):
                process = subprocess.Popen([support.INSPECT, "copy", "-o", self.out, self.heap], stdout=subprocess.DEVNULL)
                time.sleep(delay * 0.004)
                process.kill()
                process.wait()
                self.assertIn(sorted(os.listdir(self.dir)), (["heap"], ["heap", "out"]))
                if os.path.exists(self.out):
                    self.assertEqual(run_json("check", self.out)[0], SOUND)
                    os.unlink(self.out)
            self.assertIsNone(held.process.poll())
            self.assertEqual(run_json("check", self.heap)[0], SOUND)

    def test_refusals(self):
        self.make("create", "fill=100", "close")
        with open(self.out, "w") as file:
            file.write("mine\n")
        cases = [(("-o", self.out, self.heap), "exists"), ((self.heap,), "--output"),
                 (("-o", self.out + "/x", self.heap), "Not a directory"),
                 (("-o", self.dir + "/none/x", self.heap), "No such file"),
                 (("-o", self.out + "2", self.dir), "directory"), (("-o", self.out + "2", self.out), "not a shmalloc heap"),
                 (("-o", self.out + "2", self.heap + "3"), "No such file")]
        for args, word in cases:
            status, out, err = run("copy", *args)
            self.assertEqual((status, out), (CANNOT_TELL, ""))
            self.assertIn(word, err)
        self.patch(POISON, struct.pack("<Q", 20005))
        self.assertEqual(run("copy", "-o", self.out + "2", self.heap)[0], DAMAGED)
        self.assertEqual(sorted(os.listdir(self.dir)), ["heap", "out"])

    @unittest.skipIf(os.getuid() != 0, "needs a file system of its own")
    def test_full_disk(self):
        small = os.path.join(self.dir, "small")
        os.mkdir(small)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", small], capture_output=True).returncode:
            self.skipTest("no mounts here")
        try:
            self.make("create", "fill=3000", "close")
            with Held(self.heap, "create", "hold"):
                status, _, err = run("copy", "-o", small + "/out", self.heap)
            self.assertEqual(status, CANNOT_TELL)
            self.assertIn("No space left", err)
            status, _, err = run("copy", "-o", small + "/out", self.heap)
            self.assertEqual(status, CANNOT_TELL)
            self.assertIn("No space left", err)
            self.assertEqual(os.listdir(small), [])
        finally:
            subprocess.run(["umount", small])


class RelativePointers(InspectTest):
    def test_they_are_followed_when_asked_for(self):
        self.make("create", "roots=1", "fill=20", "close")
        root = run_json("roots", self.heap)[1]["roots"][0]["ref"]
        leaked = run_json("leaks", self.heap, "--samples", "100")[1]["samples"]
        refs = sorted(block["ref"] for block in leaked)
        self.assertGreater(len(refs), 5)
        places = [root] + [ref for ref in refs if ref % 16 == 0][:4]
        for place, target in zip(places, places[1:]):  # a chain, each from a place of its own
            self.patch(place, struct.pack("<q", target - place))
        self.assertEqual(run_json("leaks", self.heap)[1]["leaked"]["count"], len(refs))
        status, answer = run_json("leaks", self.heap, "--relative", "--samples", "100")
        self.assertEqual(sorted(block["ref"] for block in answer["samples"]), sorted(set(refs) - set(places)))


class LeaksInUse(InspectTest):
    """What is linked at every instant is not leaked, however fast it changes; what is leaked is found."""

    def test_nothing_is_leaked(self):
        self.make("create", "close")
        looks = []
        with Held(self.heap, "create", "weave"), Held(self.heap, "create", "weave"):
            for _ in range(25):
                status, answer = run_json("leaks", self.heap)
                self.assertEqual((status, answer["leaked"]["count"]), (SOUND, 0), answer)
                self.assertTrue(answer["moving"])
                looks.append((answer["looks"], answer["left_out"]))
            status, out, _ = run("leaks", self.heap)
            self.assertIn("The heap moves: what is said here is what ", out)
        self.assertTrue(any(left_out for _, left_out in looks), "one look would have done: %s" % looks)

    def test_what_is_leaked_is_found(self):
        self.make("create", "fill=100", "close")
        leaked = run_json("leaks", self.heap)[1]["leaked"]
        self.assertGreater(leaked["count"], 10)
        with Held(self.heap, "create", "weave"):
            for _ in range(5):
                status, answer = run_json("leaks", self.heap)
                self.assertEqual((status, answer["leaked"]), (DAMAGED, leaked))


class Agreement(InspectTest):
    """The commands say the same as info, and as what the maker did."""

    def look(self):
        for command in ("info", "map", "classes", "blocks"):
            options = ("--limit", "all") if command == "blocks" else ()
            status, answer = run_json(command, self.heap, *options)
            self.assertEqual(status, SOUND)
            setattr(self, command, answer)

    def compare(self):
        self.look()
        memory, totals, total = self.info["memory"], self.map["totals"], self.classes["total"]
        size = self.info["size"]["heap"]
        # the picture has every page once
        self.assertEqual(self.map["size"], size)
        self.assertEqual(sum(v for k, v in totals.items() if k != "slab_levels"), size)
        self.assertEqual(sum(totals["slab_levels"]), totals["slab"])
        self.assertEqual(totals["unknown"], 0)
        at = 0
        for part in self.map["runs"]:
            self.assertEqual(part["ref"], at)
            at += part["bytes"]
        self.assertEqual(at, size)
        self.assertEqual(sum(c["bytes"] for c in self.map["chunks"]), size)
        self.assertEqual(len(self.map["chunks"]), self.info["size"]["chunks"])
        for before, after in zip(self.map["runs"], self.map["runs"][1:]):
            key = lambda r: (r["kind"], r.get("arena"), r.get("slot_size"), r.get("purpose"))
            self.assertNotEqual(key(before), key(after))
        # what the library took pages for
        purposes = {line["purpose"]: line["bytes"] for line in self.map["purposes"]}
        for purpose, size in purposes.items():
            self.assertEqual(sum(r["bytes"] for r in self.map["runs"] if r.get("purpose") == purpose), size)
        self.assertLessEqual(set(purposes), {"thread-slot", "stack"})
        self.assertGreaterEqual(purposes.get("thread-slot", 0), self.info["threads"] * THREAD_BYTES)
        self.assertEqual(purposes.get("thread-slot", 0) % THREAD_BYTES, 0)
        self.assertLess(sum(purposes.values()), totals["metadata"])
        # free pages, the same three times
        self.assertEqual(totals["free"] + totals["hole"], memory["free"])
        self.assertEqual(totals["free"], memory["free_reserved"])
        runs = self.classes["free_runs"]
        self.assertEqual((runs["bytes"], runs["reserved"], runs["largest"]),
                         (memory["free"], memory["free_reserved"], memory["largest_free_run"]))
        # slots
        slabs = [r for r in self.map["runs"] if r["kind"] == "slab"]
        for key in ("slots", "used", "cached"):
            self.assertEqual(sum(r[key] for r in slabs), total[key])
        self.assertEqual(total["slots"], total["used"] + total["cached"] + total["free"])
        for line in self.classes["classes"]:
            self.assertEqual(line["waste"], line["bytes"] - line["used"] * line["slot_size"])
        used = sum(c["used"] * c["slot_size"] for c in self.classes["classes"])
        cached = sum(c["cached"] * c["slot_size"] for c in self.classes["classes"])
        free = sum(c["free"] * c["slot_size"] for c in self.classes["classes"])
        large = self.classes["large"]
        self.assertEqual((used + large["bytes"], cached + large["kept_bytes"], free),
                         (memory["allocated"], memory["cached"], memory["central_free"]))
        self.assertEqual(total["used"] + large["blocks"], memory["allocated_blocks"])
        self.assertEqual((totals["large"], totals["kept"]), (large["bytes"], large["kept_bytes"]))
        # arenas add up
        lines = collections.Counter()
        library = self.info["identity"]["arenas"]
        for line in run_json("classes", self.heap, "--arenas")[1]["classes"]:
            if line["arena"] < library:
                lines[line["slot_size"]] += line["used"]
        for line in self.classes["classes"]:
            self.assertEqual(lines[line["slot_size"]], line["used"])
        # blocks
        self.assertEqual(self.blocks["total"], {"count": memory["allocated_blocks"],
                                                "bytes": memory["allocated"]})
        self.assertEqual(len(self.blocks["blocks"]), memory["allocated_blocks"])
        self.assertEqual(self.blocks["left_out"], 0)
        for key in ("by_size", "by_tag"):
            for name in ("count", "bytes"):
                self.assertEqual(sum(line[name] for line in self.blocks[key]),
                                 self.blocks["total"][name])

    def test_closed(self):
        self.make("create", "fill=3000", "roots=7", "close")
        self.compare()
        # what fill=3000 does: of each three blocks one is freed
        self.assertEqual(self.blocks["total"]["count"], 2000 + 7)
        tagged = sum(line["count"] for line in self.blocks["by_tag"] if line["tag"])
        self.assertGreater(tagged, 200)

    def test_empty(self):
        self.make("create", "close")
        self.compare()
        self.assertEqual(self.blocks["blocks"], [])
        for command in COMMANDS:
            status, out, err = run(command, self.heap)
            self.assertEqual((status, err), (SOUND, ""))

    def test_hardened(self):
        self.make("hardened", "fill=3000", "close")
        self.compare()

    def test_everybody_died(self):
        self.make("create", "fill=3000", "die", ends_by=-signal.SIGKILL)
        self.compare()
        self.assertGreater(self.classes["total"]["cached"], 0)

    def test_held_open(self):
        with Held(self.heap, "create", "fill=3000", "hold"):
            self.compare()
            self.assertTrue(self.map["moving"] and self.classes["moving"] and self.blocks["moving"])

    def test_stopped_inside_a_lock(self):
        with Held(self.heap, "create", "fill=1000", "stop-in-lock"):
            self.compare()

    def test_a_stack_of_its_own_pages(self):
        self.make("create", "pile=1000", "die", ends_by=-signal.SIGKILL)
        self.compare()
        purposes = {line["purpose"]: line["bytes"] for line in self.map["purposes"]}
        self.assertEqual(purposes["thread-slot"], THREAD_BYTES)
        self.assertGreater(purposes["stack"], 0)
        self.assertRegex(run("map", self.heap)[1], r" longer stacks +\d+.0 KiB\n")

    def must_keep(self, count):
        size = count * KEPT_BYTES
        self.compare()
        self.assertEqual(self.classes["large"],
                         {"blocks": 0, "bytes": 0, "kept_blocks": count, "kept_bytes": size})
        self.assertEqual((self.map["totals"]["kept"], self.map["totals"]["large"]), (size, 0))
        kept = [r for r in self.map["runs"] if r["kind"] == "kept"]
        self.assertEqual([(r["bytes"], r["spans"]) for r in kept], [(size, count)])
        self.assertEqual((self.info["memory"]["cached"], self.info["memory"]["allocated"]), (size, 0))
        self.assertEqual(self.blocks["blocks"], [])

    def test_kept_blocks(self):
        with Held(self.heap, "create", "keep=3", "hold"):
            self.must_keep(3)
            status, out, _ = run("map", "--all", self.heap)
            cells = "".join(re.findall(r"(?m)^0x[0-9a-f]+  (\S+)$", out))
            self.assertEqual((status, cells.count("K"), cells.count("L")), (SOUND, 39, 0))
            self.assertRegex(out, r"K  large blocks, cached +312.0 KiB")
            self.assertRegex(out, r" thread slots +32.0 KiB")
            self.assertIn("312.0 KiB in 3 blocks that threads freed and keep", run("classes", self.heap)[1])
            status, answer = run_json("leaks", self.heap)
            self.assertEqual((status, answer["blocks"]["count"]), (SOUND, 0))
        self.look()
        self.assertEqual((self.classes["large"]["kept_blocks"], self.map["totals"]["kept"]), (0, 0))

    def test_kept_blocks_of_the_dead(self):
        self.make("create", "keep=2", "die", ends_by=-signal.SIGKILL)
        self.must_keep(2)


class Blocks(InspectTest):
    def setUp(self):
        super().setUp()
        self.make("create", "fill=2000", "close")
        self.all = run_json("blocks", self.heap, "--limit", "all")[1]["blocks"]

    def list(self, *options):
        status, answer = run_json("blocks", self.heap, "--limit", "all", *options)
        self.assertEqual(status, SOUND)
        self.assertEqual(answer["total"]["count"], len(answer["blocks"]))
        return answer["blocks"]

    def test_filters(self):
        keep = lambda f: [b for b in self.all if f(b)]
        self.assertEqual(self.list("--min-size", "1K"), keep(lambda b: b["size"] >= 1024))
        self.assertEqual(self.list("--max-size=100"), keep(lambda b: b["size"] <= 100))
        self.assertEqual(self.list("--min-size=128", "--max-size=128"),
                         keep(lambda b: b["size"] == 128))
        self.assertEqual(self.list("--tag", "0"), keep(lambda b: b["tag"] == 0))
        tag = max(b["tag"] for b in self.all)
        self.assertEqual(self.list("--tag", str(tag)), keep(lambda b: b["tag"] == tag))
        self.assertGreater(len(self.list("--tag", str(tag))), 0)
        self.assertEqual(self.list("--min-size=1G"), [])

    def test_order_and_limit(self):
        refs = [b["ref"] for b in self.all]
        self.assertEqual(refs, sorted(refs))
        self.assertEqual(self.list("--sort", "size"),
                         sorted(self.all, key=lambda b: (-b["size"], b["ref"])))
        self.assertEqual(self.list("--sort", "tag"),
                         sorted(self.all, key=lambda b: (b["tag"], b["ref"])))
        for options in ((), ("--sort", "size"), ("--sort", "ref")):
            answer = run_json("blocks", self.heap, "--limit", "3", *options)[1]
            self.assertEqual(answer["blocks"], self.list(*options)[:3])
            self.assertEqual(answer["left_out"], len(self.all) - 3)
        self.assertEqual(run_json("blocks", self.heap, "--limit=0")[1]["blocks"], [])
        self.assertEqual(len(run_json("blocks", self.heap)[1]["blocks"]), 20)

    def test_kinds(self):
        for block in self.all:
            self.assertEqual(block["kind"], "large" if block["size"] > 65536 else "slab")
            self.assertEqual("arena" in block, block["kind"] == "slab")

    def test_bad_values(self):
        for args in (("blocks", "--limit", "x"), ("blocks", "--min-size", "-1"),
                     ("blocks", "--min-size", "1X"), ("blocks", "--tag", "65536"),
                     ("blocks", "--max-size", "99999999999999999999"), ("blocks", "--sort", "age"),
                     ("map", "--width", "39"), ("map", "--width", "201"), ("map", "--width", ""),
                     ("leaks", "--samples", "many"), ("blocks", "--width", "80")):
            status, out, err = run(*args, self.heap)
            self.assertEqual((status, out), (CANNOT_TELL, ""), args)
            self.assertTrue(err.startswith("shmalloc-inspect: "), args)


class Map(InspectTest):
    def rows(self, *options, env=None):
        status, out, err = run("map", *options, self.heap, env=env)
        self.assertEqual((status, err), (SOUND, ""))
        self.lines = out.splitlines()
        return re.findall(r"(?m)^0x([0-9a-f]+)  (\S+)$", out)

    def test_widths(self):
        self.make("create", "fill=4000", "close")
        for width in (40, 41, 60, 80, 133, 160, 200):
            rows = self.rows("--width", str(width))
            self.assertLessEqual(max(len(line) for line in self.lines if "/" not in line), width)
            self.assertLessEqual(len(rows), 24)
            self.assertEqual(len(set(len(cells) for _, cells in rows[:-1])), 1)
            self.assertEqual(len(rows[0][1]) % 8, 0)
            self.assertGreater(len(rows[0][1]), (width - 12) * 3 / 4)
        env = dict(os.environ, COLUMNS="60")
        self.assertEqual(self.rows(env=env), self.rows("--width", "60"))
        self.assertEqual(self.rows(env=dict(os.environ, COLUMNS="5")), self.rows("--width", "40"))

    def test_every_page(self):
        self.make("create", "fill=4000", "close")
        answer = run_json("map", self.heap)[1]
        rows = self.rows("--all")
        cells = "".join(row for _, row in rows)
        self.assertEqual(len(cells), answer["size"] // 8192)
        for sign, kind in (("#", "metadata"), ("L", "large"), ("K", "kept"), ("-", "free"), (".", "hole")):
            self.assertEqual(cells.count(sign) * 8192, answer["totals"][kind], kind)
        for level in range(5):
            self.assertEqual(cells.count(str(level)) * 8192, answer["totals"]["slab_levels"][level])
        for i, (ref, _) in enumerate(rows):
            self.assertEqual(int(ref, 16), i * len(rows[0][1]) * 8192)

    def test_long_heap_is_bounded(self):
        self.make("create", "fill=20000", "close")
        self.assertLessEqual(len(self.rows("--width", "40")), 24)

    def test_colours(self):
        self.make("create", "fill=100", "close")
        self.assertIn("\x1b[34m#", run_in_terminal("map", self.heap, env=terminal_env()))
        for env in (terminal_env(NO_COLOR="1"), terminal_env(TERM="dumb")):
            self.assertNotIn("\x1b", run_in_terminal("map", self.heap, env=env))


class Leaks(InspectTest):
    """A root, N blocks of zeros, and refs written into them."""

    def setUp(self):
        super().setUp()
        self.make("create", "roots=1", "fill=300", "close")
        blocks = run_json("blocks", self.heap, "--limit", "all")[1]["blocks"]
        self.root = run_json("roots", self.heap)[1]["roots"][0]["ref"]
        with open(self.heap, "r+b") as file:
            for block in blocks:
                file.seek(block["ref"])
                file.write(bytes(block["size"]))
        self.others = [b for b in blocks if b["ref"] != self.root]
        # each has room for two words
        self.nodes = [b["ref"] for b in self.others if b["size"] >= 64]
        self.size = {b["ref"]: b["size"] for b in blocks}

    def link(self, source, target, at=0):
        self.patch(source + at, struct.pack("<Q", target))

    def search(self, *options):
        status, answer = run_json("leaks", self.heap, "--samples", "100000", *options)
        self.assertEqual(status, DAMAGED if answer["leaked"]["count"] else SOUND)
        self.assertEqual(answer["blocks"]["count"], len(self.size))
        self.assertEqual(answer["blocks"]["bytes"], sum(self.size.values()))
        for key in ("count", "bytes"):
            self.assertEqual(answer["reachable"][key] + answer["leaked"][key],
                             answer["blocks"][key])
            for sums in ("by_size", "by_tag"):
                self.assertEqual(sum(line[key] for line in answer[sums]), answer["leaked"][key])
        leaked = {sample["ref"] for sample in answer["samples"]}
        self.assertEqual(len(leaked), answer["leaked"]["count"])
        self.assertEqual(sum(s["start"] for s in answer["samples"]), answer["starts"])
        return leaked, answer

    def test_everything_but_the_root_leaks(self):
        leaked, answer = self.search()
        self.assertEqual(leaked, {b["ref"] for b in self.others})
        self.assertEqual(answer["starts"], len(leaked))
        sizes = collections.Counter(b["size"] for b in self.others)
        self.assertEqual({l["size"]: l["count"] for l in answer["by_size"]}, dict(sizes))
        tags = collections.Counter(b["tag"] for b in self.others)
        self.assertEqual({l["tag"]: l["count"] for l in answer["by_tag"]}, dict(tags))
        self.assertEqual([s["tag"] for s in sorted(answer["samples"], key=lambda s: s["ref"])],
                         [b["tag"] for b in self.others])

    def test_a_chain_through_all(self):
        # backwards, then forwards, refs at changing places; small blocks hang on the last word
        order = self.nodes[::2][::-1] + self.nodes[1::2]
        previous = self.root
        for i, ref in enumerate(order):
            self.link(previous, ref, at=8 * (i % 4))
            previous = ref
        small = [b["ref"] for b in self.others if b["size"] < 64]
        leaked, answer = self.search()
        self.assertEqual(leaked, set(small))
        for ref, keeper in zip(small, self.nodes):
            self.link(keeper, ref, at=self.size[keeper] - 8)
        leaked, answer = self.search()
        self.assertEqual((leaked, answer["status"], answer["starts"]), (set(), "sound", 0))
        status, out, err = run("leaks", self.heap)
        self.assertEqual((status, err), (SOUND, ""))
        self.assertTrue(out.startswith("no leaks: all of "))

    def test_a_lost_tail(self):
        a, b, c, d = self.nodes[:4]
        self.link(self.root, a)
        self.link(b, c)
        self.link(c, d)
        self.link(d, b, at=8)      # a ring: no start
        leaked, answer = self.search()
        self.assertEqual(leaked, {x["ref"] for x in self.others} - {a})
        self.assertEqual(answer["starts"], len(leaked) - 3)
        self.assertTrue(all(s["start"] for s in answer["samples"][:-3]))
        self.link(c, c, at=16)     # itself does not count
        self.link(d, 0, at=8)
        self.assertEqual(self.search()[1]["starts"], len(leaked) - 2)

    def test_interior(self):
        a, b, c = self.nodes[:3]
        self.link(self.root, a + 24)
        self.link(a, b + 3)                  # need not be aligned
        self.link(b, c + self.size[c])       # just behind c: not c
        self.assertEqual(len(self.search()[0]), len(self.others))
        leaked = self.search("--interior")[0]
        self.assertFalse(leaked & {a, b})
        if c + self.size[c] not in self.size:
            self.assertIn(c, leaked)

    def test_unaligned_words_are_not_refs(self):
        self.patch(self.root + 4, struct.pack("<Q", self.nodes[0]))
        self.assertIn(self.nodes[0], self.search("--interior")[0])

    def test_refs_that_point_nowhere(self):
        for at, word in enumerate((1, 8191, 8192, 2**63, 2**64 - 1, os.stat(self.heap).st_size)):
            self.link(self.root, word, at=8 * at)
        self.assertEqual(len(self.search("--interior")[0]), len(self.others))

    def test_fixed_base(self):
        base_at = 0x7e0000000000
        a, b, c = self.nodes[:3]
        self.link(self.root, base_at + a)
        self.link(a, b)                      # refs count as well
        self.link(b, base_at + c + 8)
        self.assertIn(a, self.search()[0])
        with open(self.heap, "r+b") as file:
            header = bytearray(file.read(544))
            header[FIXED_BASE:FIXED_BASE + 8] = struct.pack("<Q", base_at)
            header[CHECKSUM:] = struct.pack("<Q", fnv(header[:CHECKSUM]))
            file.seek(0)
            file.write(header)
        leaked = self.search()[0]
        self.assertFalse(leaked & {a, b})
        self.assertIn(c, leaked)
        self.assertNotIn(c, self.search("--interior")[0])

    def test_text(self):
        status, out, err = run("leaks", "--samples", "4", self.heap)
        self.assertEqual((status, err), (DAMAGED, ""))
        self.assertIn("leaked: %d blocks" % len(self.others), out)
        self.assertEqual(len(re.findall(r"(?m)^0x[0-9a-f]{12}  ", out)), 4)
        self.assertIn("and %d blocks" % (len(self.others) - 4), out)
        self.assertIn("conservative", out)
        self.assertNotIn("running programs", out)
        self.assertNotIn("REF", run("leaks", "--samples=0", self.heap)[1])

    def test_held_blocks_count_as_leaked(self):
        with Held(self.heap, "create", "hold"):
            status, out, _ = run("leaks", self.heap)
            self.assertEqual(status, DAMAGED)
            self.assertIn("running programs", out)
            self.assertTrue(run_json("leaks", self.heap)[1]["moving"])


class Motion(InspectTest):
    def test_churning(self):
        with Held(self.heap, "create", "fill=1000", "roots=2", "churn") as held:
            for _ in range(10):
                for command in ("map", "classes", "blocks"):
                    self.assertEqual(run_json(command, self.heap)[0], SOUND, command)
                self.assertEqual(run_json("leaks", self.heap)[0], DAMAGED)
            for command in COMMANDS:
                self.assertIn("in use", run(command, self.heap)[1], command)
            held.stop()
            for command in ("map", "classes", "blocks"):
                self.assertEqual(run_json(command, self.heap)[0], SOUND, command)
            info = run_json("info", self.heap)[1]["memory"]
            self.assertEqual(run_json("blocks", self.heap)[1]["total"]["count"],
                             info["allocated_blocks"])

    def test_nothing_is_written_to_the_file(self):
        self.make("create", "fill=500", "die", ends_by=-signal.SIGKILL)
        with open(self.heap, "rb") as file:
            before = file.read()
        stamp = os.stat(self.heap).st_mtime_ns
        os.chmod(self.heap, 0o400)
        for command in COMMANDS:
            run(command, self.heap)
        with open(self.heap, "rb") as file:
            self.assertEqual(file.read(), before)
        self.assertEqual(os.stat(self.heap).st_mtime_ns, stamp)


class Damage(InspectTest):
    def test_poisoned(self):
        self.make("create", "fill=300", "close")
        self.patch(POISON, struct.pack("<Q", 20005))
        for command in ("map", "classes", "blocks"):
            status, answer = run_json(command, self.heap)
            self.assertEqual(status, DAMAGED)
            self.assertIn("poisoned", run(command, self.heap)[1])
        self.assertGreater(len(answer["blocks"]), 0)

    def test_pages_that_nothing_claims(self):
        self.make("create", "fill=300", "close")
        answer = run_json("map", self.heap)[1]
        # a class whose slabs begin with no page of bitmap
        slab = [r["ref"] for r in answer["runs"] if r.get("slot_size", 0) >= 32][0]
        pages = answer["chunks"][0]["bytes"] // 8192
        self.assertLess(slab // 8192, pages)
        descriptor = self.word(END_OF_AREAS_AT) + 2 * pages + 64 * (slab // 8192)
        self.patch(descriptor + 12, b"\x00")  # its kind
        status, answer = run_json("map", self.heap)
        self.assertEqual(status, DAMAGED)
        self.assertGreaterEqual(answer["totals"]["unknown"], 8192)
        self.assertIn("?", run("map", "--all", self.heap)[1])
        self.assertEqual(sum(r["bytes"] for r in answer["runs"]), answer["size"])

    def test_damaged_roots(self):
        self.make("create", "roots=20", "close")
        buckets = self.word(ROOTS_AT) + BUCKETS
        for at in range(buckets, buckets + 512 * 8, 8):
            if self.word(at):
                self.patch(at, struct.pack("<Q", 3))
                break
        status, answer = run_json("leaks", self.heap)
        self.assertEqual((status, answer["error"]["code"]), (DAMAGED, -20005))
        self.assertNotIn("leaked", answer)

    def test_every_truncation_ends(self):
        self.make("create", "fill=300", "close")
        size = os.stat(self.heap).st_size
        while size > 0:
            size = size * 2 // 3
            os.truncate(self.heap, size)
            for command in COMMANDS:
                self.assertIn(run(command, self.heap)[0], (DAMAGED, CANNOT_TELL))

    def test_random_damage_ends(self):
        self.make("create", "fill=300", "roots=3", "die", ends_by=-signal.SIGKILL)
        with open(self.heap, "rb") as file:
            data = file.read()
        numbers = random.Random(7)
        last = self.word(END_OF_AREAS_AT) + 16384
        for _ in range(25):
            damaged = bytearray(data)
            for _ in range(300):
                damaged[numbers.randrange(544, last)] = numbers.choice((0, 1, 3, 0x7f, 0xff))
            self.write(damaged)
            for command in COMMANDS:
                for options in ((), ("--json",)):
                    status, out, _ = run(command, *options, self.heap)
                    self.assertIn(status, (SOUND, DAMAGED, CANNOT_TELL))
                    if options:
                        json.loads(out)


class NoHeaps(InspectTest):
    def must_be_unknown(self, path, fragment):
        for command in COMMANDS:
            status, answer = run_json(command, path)
            self.assertEqual(status, CANNOT_TELL)
            self.assertIn(fragment, answer["error"]["message"])
            status, out, err = run(command, path)
            self.assertEqual((status, out), (CANNOT_TELL, ""))
            self.assertIn(fragment, err)

    def test_what_is_no_heap(self):
        self.must_be_unknown(os.path.join(self.dir, "missing"), "No such file")
        self.must_be_unknown(self.dir, "directory")
        self.write(b"just a text\n")
        self.must_be_unknown(self.heap, "not a shmalloc heap")

    def test_foreign(self):
        self.make("create", "close")
        with open(self.heap, "r+b") as file:
            header = bytearray(file.read(544))
            header[68:72] = struct.pack("<I", 9999)
            header[CHECKSUM:] = struct.pack("<Q", fnv(header[:CHECKSUM]))
            file.seek(0)
            file.write(header)
        self.must_be_unknown(self.heap, "machine")


class Help(InspectTest):
    def test_help_teaches(self):
        for command in COMMANDS:
            status, out, err = run(command, "--help")
            self.assertEqual((status, err), (0, ""))
            self.assertTrue(out.startswith("Usage: shmalloc-inspect " + command))
            self.assertIn("JSON keys", out)
            self.assertLessEqual(max(len(line) for line in out.splitlines()), 90)
            self.assertIn(command, run("--help")[1])

    def test_json_keys_are_those_of_the_help(self):
        self.make("create", "fill=1000", "roots=2", "keep=1", "die", ends_by=-signal.SIGKILL)
        for command, options in (("map", ()), ("classes", ("--arenas",)), ("blocks", ()),
                                 ("leaks", ())):
            known = set(re.findall(r"[a-z_]+", run(command, "--help")[1].split("JSON keys")[1]))
            seen = set()

            def look(value):
                if isinstance(value, dict):
                    seen.update(value)
                    value = list(value.values())
                for inner in value if isinstance(value, list) else ():
                    look(inner)
            look(run_json(command, self.heap, *options)[1])
            self.assertLessEqual(seen, known, command)


if __name__ == "__main__":
    support.main()
