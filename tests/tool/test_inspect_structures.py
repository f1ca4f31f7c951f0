#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""shmalloc-inspect on heaps with queues and vectors.

Usage: test_inspect_structures.py SHMALLOC-INSPECT HEAP_MAKER [unittest arguments]
"""

import json
import signal
import struct

import inspect_support as support
from inspect_support import CANNOT_TELL, DAMAGED, SOUND, Held, InspectTest, run, run_json


def run_named(command, path, *names):
    status, out, err = run(command, "--json", path, *names)
    assert err == "", err
    return status, json.loads(out)


class Transactions(InspectTest):
    def test_the_tool_rolls_a_dead_ones_maps_back(self):
        """It is linked statically, and nothing in it names what a map's pending entries need."""
        self.make("create", "map-transaction", "die", ends_by=-signal.SIGKILL)
        status, out, err = run("trim", self.heap)
        self.assertEqual((status, err), (SOUND, ""), out)
        status, answer = run_named("dump", self.heap, "map")
        items = [(item["key"], item["text"]) for item in answer["items"]]
        self.assertEqual((status, items), (SOUND, [("a", "before")]), answer)
        self.assertEqual(run_json("procs", self.heap)[1]["processes"], [])


class Structures(InspectTest):
    def setUp(self):
        super().setUp()
        self.make("create", "structures", "close")

    def test_they_are_listed(self):
        status, answer = run_json("structures", self.heap)
        self.assertEqual((status, answer["unused"]), (SOUND, 1))
        found = {s["root"]: s for s in answer["structures"]}
        self.assertEqual(found["jobs"]["type"], "queue")
        self.assertEqual(found["jobs"]["description"], "1024 cells, 2 messages, 1 taken")
        self.assertEqual(found["values"]["description"], "100 elements of 8 bytes, 2 segments")
        self.assertEqual([s["life"] for s in answer["structures"]], ["live", "live"])
        status, out, _ = run("structures", self.heap, "values")
        self.assertEqual(status, SOUND)
        self.assertIn("vector", out)
        self.assertNotIn("queue", out)

    def test_contents(self):
        status, answer = run_named("dump", self.heap, "jobs")
        self.assertEqual(status, SOUND)
        first, second, third = answer["items"]
        self.assertEqual((first["index"], first["text"], first["note"]), (0, "make coffee", "taken"))
        self.assertEqual((second["length"], second["bytes"], second["text"]), (300, "ab" * 300, None))
        self.assertEqual((third["bytes"], third["length"]), (None, 8))
        self.assertGreater(third["ref"], 0)
        status, answer = run_named("get", self.heap, "values", "17")
        self.assertEqual((status, [i["bytes"] for i in answer["items"]]), (SOUND, ["1100000000000000"]))
        ref = run_json("structures", self.heap)[1]["structures"][0]["ref"]
        self.assertEqual(run("dump", self.heap, hex(ref))[0], SOUND)
        self.assertIn("make coffee", run("dump", self.heap, "jobs")[1])

    def test_what_is_not_there(self):
        for args in (("dump",), ("get", "values"), ("dump", "none"), ("structures", "none"), ("get", "values", "100"),
                     ("get", "values", "x"), ("dump", "0x2000")):
            status, _, err = run(args[0], self.heap, *args[1:])
            self.assertEqual(status, CANNOT_TELL, args)
            self.assertNotEqual(err, "")

    def test_leaks_follow_them(self):
        status, answer = run_json("leaks", self.heap)
        self.assertEqual((status, answer["leaked"]["count"]), (SOUND, 0))

    def test_the_report_shows_them(self):
        page = self.heap + ".html"
        self.assertEqual(run("report", "-o", page, self.heap)[0], SOUND)
        with open(page, encoding="utf-8") as file:
            self.assertIn("1024 cells, 2 messages, 1 taken", file.read())

    def test_damage_is_found(self):
        ref = run_json("structures", self.heap)[1]["structures"][0]["ref"]
        self.patch(ref + 64, struct.pack("<Q", 1000))  # smf_queue.capacity
        status, answer = run_json("check", self.heap)
        self.assertEqual((status, [v["invariant"] for v in answer["violations"]]), (DAMAGED, ["Q2"]))
        self.assertEqual(run("dump", self.heap, "jobs")[0], DAMAGED)
        status, answer = run_json("structures", self.heap)
        self.assertIn("capacity", answer["structures"][0]["description"])

    def test_any_damage_ends(self):
        ref = run_json("structures", self.heap)[1]["structures"][0]["ref"]
        with open(self.heap, "rb") as file:
            good = file.read()
        for at in range(ref, ref + 1024, 24):
            for value in (0, 2**64 - 1, 2**40, 8192):
                self.patch(at, struct.pack("<Q", value))
                for command in (("check", self.heap), ("structures", self.heap), ("dump", self.heap, "jobs"),
                                ("dump", self.heap, "values")):
                    self.assertIn(run(*command)[0], (SOUND, DAMAGED, CANNOT_TELL))
                self.patch(at, good[at:at + 8])

    def test_in_use(self):
        with Held(self.heap, "create", "hold"):
            status, answer = run_json("structures", self.heap)
            self.assertEqual((status, answer["moving"], len(answer["structures"])), (SOUND, True, 2))


if __name__ == "__main__":
    support.main()
