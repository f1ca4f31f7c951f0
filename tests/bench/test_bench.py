#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run each benchmark program for a moment, and feed damaged traces to the player. No time is judged.

Arguments: the folder of the compiled programs, and "preload" where the recorder can be loaded.
"""
import json
import os
import random
import struct
import subprocess
import sys
import tempfile

import traces

PROGRAMS = sys.argv[1]
RECORDABLE = sys.argv[2:] == ["preload"]
SEED = 20240901
ADAPTERS = ("malloc", "shmalloc", "shmalloc_link")
SHORT = "--samples 1 --sample-ms 1".split()
COMMON = {"workload", "allocator", "library", "unit", "size_min", "size_max", "blocks", "threads", "processes",
          "repetition", "seed", "value"}
TIMED = ["pair", "batch-lifo --blocks 100", "batch-fifo --blocks 100", "batch-random --blocks 100 --size 16-512",
         "larson --blocks 50 --threads 2", "handoff --threads 2", "pair --processes 2",
         "pair --objects 100 --attached 2"]
SHARED = ["handoff-shared --processes 2", "batch-lifo --blocks 100 --arenas 2 --heap-size 16777216"]


def start(program, arguments, folder):
    heap = os.path.join(tempfile.mkdtemp(dir=folder), "heap")
    # The programs end with blocks that live.
    environment = dict(os.environ, ASAN_OPTIONS=os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0")
    return subprocess.run([os.path.join(PROGRAMS, program)] + arguments + ["--heap", heap], timeout=120,
                          env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, check=False)


def run(program, arguments, folder, fields=()):
    """The records, which must be sound JSON with a positive value."""
    done = start(program, arguments, folder)
    assert done.returncode == 0, f"{program} {arguments}: status {done.returncode}: {done.stderr}"
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert records, f"{program} {arguments}: no record"
    for record in records:
        assert COMMON | set(fields) <= set(record), f"{program}: {record}"
        assert record["value"] > 0, f"{program}: {record}"
    return records


def test_timed(folder):
    for adapter in ADAPTERS:
        for workload in TIMED + (SHARED if adapter != "malloc" else []):
            records = run(f"allocate_{adapter}", ["--workload"] + workload.split() + SHORT, folder,
                          ("pairs", "cpu", "faults", "lock_waits"))
            assert len(records) == 1


def test_memory(folder):
    for adapter in ("malloc", "shmalloc"):
        program = f"memory_{adapter}"
        run(program, "--workload footprint --blocks 20000 --size 16-512".split(), folder, ("faults", "used"))
        points = run(program, "--workload shift --blocks 4000000".split(), folder, ("churned", "low"))
        assert len(points) == 72, len(points)
        points = run(program, "--workload give-back --blocks 20000 --size 16-512 --sample-ms 50".split(), folder,
                     ("seconds", "asked"))
        assert points[-1]["asked"] == 1


def test_open_and_recover(folder):
    run("longest_shmalloc", "--workload longest --sample-ms 20".split(), folder)
    for workload in ("open-clean", "open-killed"):
        records = run("open_shmalloc", f"--workload {workload} --objects 1000 --samples 2".split(), folder,
                      ("sync", "syncs", "beyond_sync", "first_pair"))
        assert len(records) == 2
    records = run("recover_shmalloc", ("--workload recover --objects 1000 --blocks 200 --samples 2 "
                                       "--sample-ms 1200").split(), folder, ("quiet", "stuck"))
    assert all(record["stuck"] == 0 for record in records), records


def replay(adapter, trace, folder):
    path = os.path.join(folder, "trace")
    with open(path, "wb") as out:
        out.write(trace)
    return start(f"replay_{adapter}", ["--workload", "replay", "--trace", path] + SHORT, folder)


def made_trace():
    """A trace with all kinds of operations, through the encoder."""
    encoder = traces.Encoder()
    encoder.add(0, 0x1000, 24)
    encoder.add(0, 0x2000, 70000)
    encoder.add(0x1000, 0x3000, 300)
    encoder.add(0x2000, 0, 0)
    encoder.add(0, 0x2000, 5)
    encoder.add(0x9999, 0, 0)  # unknown: left out
    assert encoder.count == 5 and encoder.slots == 2
    return traces.pack(bytes(encoder.out), encoder.count, encoder.slots)


def test_replay(folder):
    for adapter in ADAPTERS:
        done = replay(adapter, made_trace(), folder)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["value"] > 0
    for name in sorted(os.listdir(os.path.join(os.path.dirname(os.path.abspath(__file__)), "traces"))):
        path = os.path.join(folder, "real")
        traces.unpack(os.path.join(os.path.dirname(os.path.abspath(__file__)), "traces", name), path)
        run("replay_shmalloc", ["--workload", "replay", "--trace", path] + SHORT, folder, ("pairs",))


def refused(trace, reason, folder):
    done = replay("malloc", trace, folder)
    assert done.returncode == 1, f"status {done.returncode} for a trace that should be refused: {reason}"
    assert reason in done.stderr, f"{done.stderr!r} instead of {reason!r}"


def operation(kind, value):
    return traces.leb128(value << 2 | kind)


def test_damaged_traces(folder):
    good = made_trace()
    refused(b"", "not a trace", folder)
    refused(b"X" + good[1:], "not a trace", folder)
    refused(good[:-1], "cut off", folder)
    refused(good + b"\0", "longer than its header says", folder)
    refused(good[:-1] + bytes([good[-1] ^ 1]), "checksum", folder)
    allocate = operation(traces.ALLOCATE, 8)
    # Sound checksums from here on: what the decoder itself must see.
    refused(traces.pack(allocate, 1000000, 1), "more operations or slots", folder)
    refused(traces.pack(allocate, 1, 0), "more operations or slots", folder)
    refused(traces.pack(allocate, 0, 0), "more operations or slots", folder)
    refused(traces.pack(allocate * 2, 2, 1), "more blocks live", folder)
    refused(traces.pack(allocate * 2, 1, 1), "bytes follow", folder)
    refused(traces.pack(operation(traces.ALLOCATE, 0), 1, 1), "size is out of range", folder)
    refused(traces.pack(operation(traces.ALLOCATE, 1 << 31), 1, 1), "size is out of range", folder)
    refused(traces.pack(operation(traces.FREE, 0), 1, 1), "freed that does not live", folder)
    refused(traces.pack(allocate + operation(traces.FREE, 2), 2, 2), "freed that does not live", folder)
    refused(traces.pack(allocate + operation(traces.FREE, 1), 2, 2), "freed that does not live", folder)
    refused(traces.pack(allocate + operation(traces.FREE, 0) * 2, 3, 1), "freed that does not live", folder)
    refused(traces.pack(allocate + operation(traces.RESIZE, 2) + b"\x08", 2, 2), "resized that does not", folder)
    refused(traces.pack(allocate + operation(traces.RESIZE, 0) + b"\0", 2, 1), "size is out of range", folder)
    refused(traces.pack(allocate + operation(traces.RESIZE, 0), 2, 1), "size is out of range", folder)
    refused(traces.pack(allocate + b"\x03", 2, 1), "no known kind", folder)
    refused(traces.pack(b"\xff\xff\xff\xff\xff\x01", 1, 1), "too long", folder)
    refused(traces.pack(b"\x80", 1, 1), "end early", folder)


def test_random_damage(folder):
    """Any bytes give a status, never a signal."""
    source = random.Random(SEED)
    good = made_trace()
    for _ in range(60):
        body = bytearray(good[24:])
        for _ in range(source.randint(1, 4)):
            body[source.randrange(len(body))] = source.randrange(256)
        count, slots = struct.unpack_from("<2I", good, 8)
        done = replay("malloc", traces.pack(bytes(body), count, slots), folder)
        # A size may have become large, but a gigabyte at most, and its bytes are not written.
        assert done.returncode in (0, 1), f"status {done.returncode} for {bytes(body)!r}, seed {SEED}"


def test_recorder(folder):
    raw = os.path.join(folder, "raw")
    environment = dict(os.environ, LD_PRELOAD=os.path.join(PROGRAMS, "recorder.so"), BENCH_RECORD=raw,
                       BENCH_RECORD_LIMIT="5000")
    subprocess.run(["ls", "/"], env=environment, stdout=subprocess.DEVNULL, check=True, timeout=60)
    with open(raw, "rb") as recorded:
        trace = traces.encode(recorded.read())
    operations, slots = traces.counts(trace)
    assert 10 < operations <= 5000 and 0 < slots <= operations, (operations, slots)
    done = replay("malloc", trace, folder)
    assert done.returncode == 0, done.stderr


def main():
    tests = [test_timed, test_memory, test_open_and_recover, test_replay, test_damaged_traces, test_random_damage]
    if RECORDABLE:
        tests.append(test_recorder)
    for test in tests:
        with tempfile.TemporaryDirectory(prefix="shmalloc-test-", dir=os.environ.get("SHMALLOC_TEST_DIR")) as folder:
            test(folder)
        print(f"{test.__name__}: passed", flush=True)


if __name__ == "__main__":
    main()
