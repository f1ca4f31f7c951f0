#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run the benchmark programs beside other allocators and print tables.

Everything is interleaved: one round runs every workload once for every allocator, each time in a new
process, and there are many short rounds; so a slow phase of the machine hits all of them alike. In
each round the allocators come in another order. A process takes several samples and contributes
their median; the tables show the median of the rounds and the lowest and highest round.

The other allocators are loaded with LD_PRELOAD under a program that calls malloc and free. Each
record names the shared object that really served it; an allocator that is not installed is left
out. All records go to bench.json.
"""
import argparse
import datetime
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

# Name in the tables, adapter, shared objects to preload (the first that loads).
ALLOCATORS = [
    ("shmalloc", "shmalloc", []),
    ("shmalloc linked", "shmalloc_link", []),
    ("glibc", "malloc", []),
    ("jemalloc", "malloc", ["libjemalloc.so.2"]),
    ("mimalloc", "malloc", ["libmimalloc.so.2", "libmimalloc.so.2.0"]),
    ("tcmalloc", "malloc", ["libtcmalloc_minimal.so.4"]),
]
OURS = ("shmalloc", "shmalloc linked")
LEGEND = ("shmalloc: shmalloc_malloc and shmalloc_mfree. shmalloc linked: shmalloc_alloc and shmalloc_free with "
          "the ref word in the heap, each call one crash-atomic step. One worker: CPU time. Two: wall-clock "
          "time for a pair of each, so a workload that scales shows the figure of one. Lower is better.")
ROOM = 1 << 30  # bytes that the largest heap and a margin need

SIZES = [("16 B", "16"), ("64 B", "64"), ("256 B", "256"), ("1 KiB", "1024"), ("4 KiB", "4096"),
         ("16 KiB", "16384"), ("64 KiB", "65536")]
MIXED = ("16..512 B", "16-512")

# Title and arguments of every timed workload, one table row each.
TIMED = (
    [(f"pair {title}", f"pair --size {size}") for title, size in SIZES]
    + [(f"batch {order} {title}", f"batch-{order} --blocks 10000 --size {size}")
       for title, size in (SIZES[1], MIXED) for order in ("lifo", "fifo", "random")]
    + [(f"larson {count} thread{'s' * (count > 1)}",
        f"larson --blocks 1000 --size 16-512 --threads {count}") for count in (1, 2)]
    + [("handoff 2 threads", "handoff --size 16-512 --threads 2")]
    + [("pair 64 B, 2 processes", "pair --size 64 --processes 2"),
       ("batch lifo 64 B, 2 processes", "batch-lifo --blocks 10000 --size 64 --processes 2"),
       ("batch random 16..512 B, 2 processes",
        "batch-random --blocks 10000 --size 16-512 --processes 2")]
)

# Title and arguments of the memory rows.
MEMORY = [
    ("1,000,000 blocks of 16..512 B", "--blocks 1000000 --size 16-512"),
    ("1,000,000 blocks of 16 B", "--blocks 1000000 --size 16"),
]
EMPTY = "--blocks 1 --size 16"


class Bench:
    """Where the programs are, where heaps go, and all records so far."""

    def __init__(self, options):
        self.options = options
        self.records = []
        self.missing = set()
        self.libraries = {}

    def program(self, name, arguments, folder=None, preload=None):
        """Run one program; its records. The heap file lives in a new folder under `folder`."""
        command = [os.path.join(self.options.programs, name)] + arguments
        environment = dict(os.environ)
        environment.pop("LD_PRELOAD", None)
        if preload:
            environment["LD_PRELOAD"] = preload
        heap_folder = tempfile.mkdtemp(prefix="shmalloc-bench-", dir=folder) if folder else None
        try:
            if folder:
                command += ["--heap", os.path.join(heap_folder, "heap")]
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, text=True, timeout=300)
        finally:
            if heap_folder:
                shutil.rmtree(heap_folder)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\nended with status {done.returncode}: {done.stderr}")
        records = [json.loads(line) for line in done.stdout.splitlines()]
        self.records += records
        return records

    def allocator(self, program, allocator, arguments):
        """Run a program that was compiled for an adapter; [] if the allocator is not installed."""
        name, adapter, libraries = allocator
        folder = self.options.heap_dir if name in OURS else None
        arguments = arguments + ["--allocator", name]
        for preload in libraries or [None]:
            if (name, preload) in self.missing:
                continue
            records = self.program(f"{program}_{adapter}", arguments, folder, preload)
            served_by = os.path.basename(records[0]["library"])
            if not preload or served_by.startswith(preload):
                self.libraries[name] = os.path.realpath(records[0]["library"])
                return records
            del self.records[-len(records):]
            self.missing.add((name, preload))
        return []


def run_timed(bench, rows):
    """{title: {allocator: [median of each round]}}"""
    options = bench.options
    rounds, samples, sample_ms = (5, 3, 2) if options.quick else (15, 5, 4)
    rounds = options.rounds or rounds
    results = {title: {} for title, _ in rows}
    for repetition in range(rounds):
        settle(options.settle)
        progress(f"round {repetition + 1} of {rounds}")
        turn = repetition % len(ALLOCATORS)
        for title, workload in rows:
            for allocator in ALLOCATORS[turn:] + ALLOCATORS[:turn]:
                records = bench.allocator("allocate", allocator, ["--workload"] + workload.split() + [
                    "--samples", str(samples), "--sample-ms", str(sample_ms),
                    "--repetition", str(repetition), "--seed", str(options.seed + repetition)])
                if records:
                    value = statistics.median(record["value"] for record in records)
                    results[title].setdefault(allocator[0], []).append(value)
    return results


def run_memory(bench):
    """{title: {allocator: bytes per requested byte}}, and the bytes of an empty heap"""
    progress("memory")
    results = {}
    for title, arguments in MEMORY:
        results[title] = {}
        for allocator in ALLOCATORS:
            if allocator[0] == "shmalloc linked":
                continue  # the same heap
            records = bench.allocator("footprint", allocator,
                                      ["--workload", "footprint"] + arguments.split())
            if records:
                results[title][allocator[0]] = records[0]["value"]
    empty = bench.allocator("footprint", ALLOCATORS[0], ["--workload", "empty"] + EMPTY.split())
    return results, empty[0]["used"]


def run_open(bench):
    """[(title, file system, records)]"""
    counts = (1000, 1000000) if bench.options.quick else (1000, 100000, 1000000)
    samples = "7" if bench.options.quick else "21"
    cases = [("open-clean", count) for count in counts] + [("open-killed", counts[-1])]
    results = []
    for folder in (bench.options.heap_dir, bench.options.disk_dir):
        for workload, count in cases:
            progress(f"{workload}, {count} objects, {folder}")
            records = bench.program("open", [
                "--workload", workload, "--allocator", "shmalloc", "--blocks", str(count),
                "--size", "16-512", "--samples", samples], folder)
            state = "closed in order" if workload == "open-clean" else "writer killed"
            results.append((f"{count:,} objects, {state}", file_system(folder), records))
    return results


def idle_share(seconds):
    """Part of the machine's CPU time in the next `seconds` that nobody used."""
    def sample():
        with open("/proc/stat", encoding="utf-8") as stat:
            fields = [int(field) for field in stat.readline().split()[1:9]]
        return fields[3], sum(fields)
    idle_before, all_before = sample()
    time.sleep(seconds)
    idle_after, all_after = sample()
    return (idle_after - idle_before) / max(all_after - all_before, 1)


def settle(limit):
    """Wait until others leave the machine alone, at most `limit` seconds."""
    end = time.monotonic() + limit
    while time.monotonic() < end and idle_share(0.5) < 0.95:
        pass


def progress(text):
    print(f"... {text}", file=sys.stderr, flush=True)


# ---- the machine --------------------------------------------------------------------------------

def file_system(path):
    """Type of the file system that holds `path`, from the longest mount point above it."""
    path, best, kind = os.path.realpath(path), "", "?"
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, point, fs_type = line.split()[:3]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, fs_type
    return kind


def cpu_model():
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        found = re.search(r"^model name\s*: (.*)$", info.read(), re.MULTILINE)
    return found.group(1) if found else platform.machine()


def package_of(library):
    """"package version" where dpkg knows, else the file's name."""
    try:
        owner = subprocess.run(["dpkg-query", "-S", "*/" + os.path.basename(library)],
                               capture_output=True, text=True, check=True).stdout.split(":")[0]
        return subprocess.run(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", owner],
                              capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return os.path.basename(library)


def machine(bench, load_before):
    options = bench.options
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "date": datetime.date.today().isoformat(),
        "heap_file_system": file_system(options.heap_dir),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "seed": options.seed,
        "quick": options.quick,
        "allocators": {name: package_of(library) for name, library in bench.libraries.items()
                       if name not in OURS},
        "missing": sorted({name for name, _ in bench.missing} - set(bench.libraries)),
    }


def describe(facts):
    text = (f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, {facts['date']}; "
            f"heap on {facts['heap_file_system']}; load {facts['load_before']:.2f} before, "
            f"{facts['load_after']:.2f} after; seed {facts['seed']}; "
            + ", ".join(facts["allocators"].values()))
    if facts["missing"]:
        text += "; not installed: " + ", ".join(facts["missing"])
    return text


# ---- tables -------------------------------------------------------------------------------------

def table(header, rows):
    """A Markdown table that is aligned for reading as plain text too."""
    lines = [header] + rows
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    def render(cells):
        first = cells[0].ljust(widths[0])
        rest = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:])]
        return "| " + " | ".join([first] + rest) + " |"
    rule = "| " + " | ".join(["-" * widths[0]] + ["-" * (width - 1) + ":" for width in widths[1:]]) + " |"
    return "\n".join([render(header), rule] + [render(row) for row in rows])


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def timed_tables(results):
    """Medians with ratios, then spreads."""
    names = [name for name, _, _ in ALLOCATORS if any(name in row for row in results.values())]
    peers = [name for name in names if name not in OURS]
    medians = {title: {name: statistics.median(values) for name, values in row.items()}
               for title, row in results.items()}
    ratios = {title: [row["shmalloc"] / row[peer] for peer in peers]
              + [row["shmalloc"] / min(row[peer] for peer in peers)] for title, row in medians.items()}
    main = [[title] + [number(row[name]) for name in names] + [f"{r:.2f}" for r in ratios[title]]
            for title, row in medians.items()]
    means = [geometric_mean(column) for column in zip(*ratios.values())]
    main.append(["geometric mean"] + [""] * len(names) + [f"{mean:.2f}" for mean in means])
    spread = [[title] + [f"{number(min(row[name]))}..{number(max(row[name]))}" for name in names]
              for title, row in results.items()]
    header = ["ns per pair, median"] + names
    return (table(header + ["/ " + peer for peer in peers] + ["/ best"], main),
            table(["ns per pair, lowest..highest"] + names, spread))


def memory_table(results, empty):
    names = [name for name, _, _ in ALLOCATORS if any(name in row for row in results.values())]
    rows = [[title] + [f"{row[name]:.3f}" if name in row else "-" for name in names]
            for title, row in results.items()]
    return (table(["memory per requested byte"] + names, rows)
            + f"\n\nA heap with one block takes {empty / 1024:.0f} KiB of its file system.")


def open_table(results):
    rows = []
    for title, kind, records in results:
        def cell(field):
            values = [record[field] for record in records]
            return (f"{number(statistics.median(values))} "
                    f"({number(min(values))}..{number(max(values))})")
        rows.append([title, kind, cell("value"), cell("sync"),
                     str(max(record["syncs"] for record in records)),
                     cell("beyond_sync"), cell("first_pair")])
    return table(["open, us: median (lowest..highest)", "heap on", "open", "of that sync", "syncs",
                  "beyond sync", "first alloc + free"], rows)


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = os.path.dirname(os.path.abspath(__file__))
    parser.add_argument("--programs", default=here, help="folder of the compiled programs")
    parser.add_argument("--out", help="folder for bench.json and bench.md (default: --programs)")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--rounds", type=int, help="number of rounds of the timed workloads")
    parser.add_argument("--only", default="", help="run what matches this regular expression: a row's "
                        "title, \"memory\" or \"open\"")
    parser.add_argument("--settle", type=float, metavar="SECONDS", default=0,
                        help="before each round, wait so long at most for an idle machine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heap-dir", default="/dev/shm", help="folder on tmpfs for heap files")
    parser.add_argument("--disk-dir", help="folder on a disk for the open rows (default: --out)")
    options = parser.parse_args()
    options.out = options.out or options.programs
    options.disk_dir = options.disk_dir or options.out
    return options


def check_room(folder):
    status = os.statvfs(folder)
    if status.f_bavail * status.f_frsize < ROOM:
        sys.exit(f"{folder} has less than {ROOM >> 20} MiB free; choose another with --heap-dir or --disk-dir")


def main():
    options = parse_arguments()
    for folder in (options.heap_dir, options.disk_dir):
        check_room(folder)
    load_before = os.getloadavg()[0]
    bench = Bench(options)
    wanted = re.compile(options.only)
    rows = [row for row in TIMED if wanted.search(row[0])]
    tables, summary = [], {}
    if rows:
        summary["timed"] = run_timed(bench, rows)
        tables += timed_tables(summary["timed"])
    if wanted.search("memory"):
        summary["memory"], summary["empty_heap_bytes"] = run_memory(bench)
        tables.append(memory_table(summary["memory"], summary["empty_heap_bytes"]))
    if wanted.search("open"):
        tables.append(open_table(run_open(bench)))
    facts = machine(bench, load_before)
    text = "\n\n".join([describe(facts), LEGEND] + tables) + "\n"
    print(text)
    with open(os.path.join(options.out, "bench.md"), "w", encoding="utf-8") as out:
        out.write(text)
    with open(os.path.join(options.out, "bench.json"), "w", encoding="utf-8") as out:
        json.dump({"machine": facts, "summary": summary, "records": bench.records}, out, indent=1)
    print(f"All records: {os.path.join(options.out, 'bench.json')}")


if __name__ == "__main__":
    main()
