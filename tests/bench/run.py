#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Run the benchmark programs beside other allocators and print tables.

Everything is interleaved: one round runs every workload once for every allocator, each time in a new
process, and there are many short rounds; so a slow phase of the machine hits all of them alike. In
each round the allocators come in another order. A process takes several samples and contributes
their median; the tables show the median of the rounds and the lowest and highest round, and ratios are
those of the same round.

malloc's other implementations are loaded with LD_PRELOAD under a program that calls malloc and free. Each
record names the shared object that really served it; an allocator that is not installed is left out and
named at the end. All records go to bench.json, plots to bench-NAME.png.
"""
import argparse
import datetime
import glob
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time

import sections
import tables
import traces
from peers import ALL, HEAPS, OURS, Runner

LEGEND = ("shmalloc: shmalloc_malloc and shmalloc_free. shmalloc linked: shmalloc_ref_alloc and shmalloc_ref_free with "
          "the ref word in the heap, each call one crash-atomic step. Boost: Boost.Interprocess's "
          "managed_mapped_file. PMDK: pmemobj_alloc and pmemobj_free with the id in the pool, told not to flush "
          "caches. LMDB: a put and a delete, each a transaction, no sync. One worker: CPU time. Several: "
          "wall-clock time for a pair of each, so a workload that scales shows the figure of one. Lower is better.")
ROOM = 2 << 30  # bytes that the largest heaps and a margin need

SIZES = [("16 B", "16"), ("64 B", "64"), ("256 B", "256"), ("1 KiB", "1024"), ("4 KiB", "4096"),
         ("16 KiB", "16384"), ("64 KiB", "65536")]
MIXED = ("16..512 B", "16-512")
QUICK_SIZES = ("16 B", "64 B", "1 KiB", "64 KiB")


class Row:
    """A timed workload: one row of the tables."""

    def __init__(self, title, arguments, program="allocate", quick=True, shared=False):
        self.title = title
        self.arguments = arguments.split()
        self.program = program
        self.quick = quick
        self.shared = shared  # blocks go from one process to another

    def can(self, allocator):
        if self.shared:
            return allocator in OURS or allocator.name == "Boost"
        return allocator.processes or "--processes" not in self.arguments


def timed_rows(trace_folder):
    """The rows in the order of the tables; traces are unpacked into the folder."""
    cpus = len(os.sched_getaffinity(0))
    rows = [Row(f"pair {title}", f"--workload pair --size {size}", quick=title in QUICK_SIZES)
            for title, size in SIZES]
    rows += [Row(f"batch {order} {title}", f"--workload batch-{order} --blocks 10000 --size {size}",
                 quick=order == "random" or title != "16..512 B")
             for title, size in (SIZES[1], MIXED) for order in ("lifo", "fifo", "random")]
    rows += [Row(f"larson {count} thread{'s' * (count > 1)}",
                 f"--workload larson --blocks 1000 --size 16-512 --threads {count}", quick=count < 3)
             for count in sorted({1, 2, max(cpus, 4)})]
    rows += [Row("handoff, 2 threads", "--workload handoff --size 16-512 --threads 2")]
    for path in sorted(glob.glob(os.path.join(trace_folder, "*.trace"))):
        name = os.path.basename(path).removesuffix(".trace")
        rows.append(Row(f"trace {name}", f"--workload trace-{name} --trace {path}", "replay"))
    rows += [Row("pair 64 B, 2 processes", "--workload pair --size 64 --processes 2"),
             Row("batch lifo 64 B, 2 processes", "--workload batch-lifo --blocks 10000 --size 64 --processes 2",
                 quick=False),
             Row("batch random 16..512 B, 2 processes",
                 "--workload batch-random --blocks 10000 --size 16-512 --processes 2"),
             Row("handoff, 2 processes", "--workload handoff-shared --size 16-512 --processes 2", shared=True)]
    return rows


class Session:
    """One run: what was asked for, what was found, what was left out and why."""

    def __init__(self, options):
        self.options = options
        self.runner = Runner(options.binaries, options.heap_dir)
        self.summary = {}
        self.left_out = []
        self.plotted = []
        self.columns = []  # of the picture of how the cost grows
        self.start = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.shown = ""
        try:
            import plots  # not at the top: all but the plots works without matplotlib
            self.plots = plots
        except ImportError:
            self.plots = None
            self.left_out.append("plots: python3-matplotlib is not installed")

    def elapsed(self):
        return time.monotonic() - self.start

    def over(self):
        """Is the time for everything over?"""
        return self.elapsed() > (45 if self.options.quick else self.options.minutes * 60)

    def progress(self, text):
        """One line that changes on a terminal; else a line whenever the part before the colon does."""
        minutes, seconds = divmod(int(self.elapsed()), 60)
        if self.terminal:
            print(f"\r\033[K{minutes}:{seconds:02} {text[:100]}", end="", file=sys.stderr, flush=True)
        elif text.split(":")[0] != self.shown:
            print(f"... {minutes}:{seconds:02} {text}", file=sys.stderr, flush=True)
        self.shown = text.split(":")[0]

    def end_progress(self):
        if self.terminal:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def plot(self, kind, *arguments):
        if self.plots:
            self.plotted.append(getattr(self.plots, kind)(self.options.out, *arguments))

    def plot_growth(self, name, title, xlabel, panels, ticks, chosen):
        """`chosen` of the panels also go to the picture of all growth."""
        self.plot("growth", name, title, xlabel, panels, ticks)
        self.columns.append((xlabel, chosen, ticks))

    def file_system(self, path):
        return file_system(path)


class Timed:
    """Medians of the rounds of the timed rows: {title: {allocator: [one of each round]}}."""

    def __init__(self):
        self.wall = {}
        self.cpu = {}  # of rows with several workers

    def add(self, row, allocator, records):
        def median(field):
            return statistics.median(record[field] for record in records)
        self.wall.setdefault(row.title, {}).setdefault(allocator.name, []).append(median("value"))
        if records[0]["threads"] + records[0]["processes"] > 2:
            self.cpu.setdefault(row.title, {}).setdefault(allocator.name, []).append(median("cpu"))

    def drop_failed(self):
        """Whoever failed in a round has no figure to compare there; rows without ours say nothing."""
        for results in (self.wall, self.cpu):
            for title, row in list(results.items()):
                rounds = max(map(len, row.values()))
                results[title] = row = {name: values for name, values in row.items() if len(values) == rounds}
                if any(name not in row for name in tables.OUR_NAMES):
                    del results[title]


def run_row(session, row, repetition, timed):
    """One row in one round, each allocator in a process of its own."""
    options = session.options
    samples, sample_ms = (3, 2) if options.quick else (5, 4)
    turn = repetition % len(ALL)
    for allocator in ALL[turn:] + ALL[:turn]:
        if not row.can(allocator):
            continue
        records = session.runner.run(allocator, row.program, row.arguments + [
            "--samples", str(samples), "--sample-ms", str(sample_ms),
            "--repetition", str(repetition), "--seed", str(options.seed + repetition)])
        if records:
            timed.add(row, allocator, records)


def run_timed(session, rows):
    """Rounds until all are done, or the time for them is over."""
    options = session.options
    rounds, seconds = (5, 22) if options.quick else (15, 330)
    if options.rounds:
        rounds, seconds = options.rounds, float("inf")
    timed = Timed()
    for repetition in range(rounds):
        settle(options.settle)
        for index, row in enumerate(rows):
            if session.elapsed() > seconds:
                session.left_out.append(f"timed rows from round {repetition + 1} of {rounds}, row {index + 1} of "
                                        f"{len(rows)}: no time left")
                return timed
            session.progress(f"round {repetition + 1} of {rounds}: {row.title} ({index + 1} of {len(rows)})")
            run_row(session, row, repetition, timed)
    return timed


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


def machine(session, load_before):
    options = session.options
    return {
        "cpu": cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "date": datetime.date.today().isoformat(),
        "heap_file_system": file_system(options.heap_dir),
        "load_before": load_before,
        "load_after": os.getloadavg()[0],
        "seconds": round(session.elapsed()),
        "seed": options.seed,
        "quick": options.quick,
        "allocators": {name: package_of(library) for name, library in session.runner.libraries.items()
                       if name not in tables.OUR_NAMES},
    }


def is_busy(load):
    return load > 1.5 * len(os.sched_getaffinity(0))


def describe(facts):
    return (f"{facts['cpu']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, {facts['date']}; "
            f"heap on {facts['heap_file_system']}; load {facts['load_before']:.2f} before, "
            f"{facts['load_after']:.2f} after; seed {facts['seed']}; "
            + ", ".join(facts["allocators"].values())
            + ("\n\nThe machine was busy with other things: wall-clock times of several workers, and everything "
               "about waiting, say little. The aims are judged by CPU time where several work."
               if is_busy(facts["load_before"]) else ""))


# ---- main ---------------------------------------------------------------------------------------

def timed_text(session, rows, busy):
    timed = run_timed(session, rows)
    timed.drop_failed()
    heaps = [allocator.name for allocator in HEAPS]
    # On a busy machine the wall clock says when the scheduler had time for the second worker.
    found = tables.aims({**timed.wall, **timed.cpu} if busy else timed.wall)
    session.summary.update(timed=timed.wall, timed_cpu=timed.cpu, aims=found)
    session.plot("speed", timed.wall)
    text = [tables.timed_table("ns per pair, median", timed.wall, tables.MALLOC_NAMES)]
    heap_rows = {title: {name: values for name, values in row.items() if name not in tables.MALLOC_NAMES}
                 for title, row in timed.wall.items() if any(name in row for name in heaps)}
    if heap_rows:
        text.append(tables.timed_table("ns per pair, heaps in files", heap_rows, heaps))
    if timed.cpu:
        text.append(tables.timed_table("CPU ns per pair, several workers", timed.cpu, tables.MALLOC_NAMES + heaps))
    text.append(tables.spread_table("ns per pair, lowest..highest round", timed.wall))
    return text, [tables.aims_table(found)] if found else []


def run_sections(session, wanted):
    """The text of each section; one that would begin too late is left out."""
    text = []
    for name, function in sections.SECTIONS:
        if not wanted.search(name):
            continue
        if session.options.quick and name not in sections.QUICK and not session.options.only:
            session.left_out.append(f"{name}: not with --quick")
        elif session.over():
            session.left_out.append(f"{name}: no time left")
        else:
            text.append(function(session))
    if session.columns:
        session.plot("overview", session.columns)
    return text


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    here = os.path.dirname(os.path.abspath(__file__))
    names = ", ".join(f'"{name}"' for name, _ in sections.SECTIONS)
    parser.add_argument("--binaries", default=here, help="folder of the compiled programs")
    parser.add_argument("--out", help="folder for bench.json, bench.md and plots (default: --binaries)")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--rounds", type=int, help="number of rounds of the timed workloads")
    parser.add_argument("--minutes", type=float, default=14, help="leave out what would begin later (14)")
    parser.add_argument("--only", default="", metavar="REGEX",
                        help=f"run what matches: a row's title, or a section: {names}")
    parser.add_argument("--trace", action="append", default=[], metavar="FILE",
                        help="also play this trace, made with --record")
    parser.add_argument("--settle", type=float, metavar="SECONDS", default=0,
                        help="before each round, wait so long at most for an idle machine")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--heap-dir", default="/dev/shm", help="folder on tmpfs for heap files")
    parser.add_argument("--disk-dir", help="folder on a disk for the open rows (default: --out)")
    options = parser.parse_args()
    options.out = options.out or options.binaries
    options.disk_dir = options.disk_dir or options.out
    options.traces = sorted(glob.glob(os.path.join(here, "traces", "*.trace.xz"))) + options.trace
    return options


def check_room(folder):
    status = os.statvfs(folder)
    if status.f_bavail * status.f_frsize < ROOM:
        sys.exit(f"{folder} has less than {ROOM >> 20} MiB free; choose another with --heap-dir or --disk-dir")


def unpack_traces(paths, folder):
    for path in paths:
        traces.unpack(path, os.path.join(folder, os.path.basename(path).removesuffix(".xz")))


def main():
    options = parse_arguments()
    for folder in (options.heap_dir, options.disk_dir):
        check_room(folder)
    load_before = os.getloadavg()[0]
    session = Session(options)
    wanted = re.compile(options.only)
    text, aims = [], []
    with tempfile.TemporaryDirectory(prefix="shmalloc-bench-") as trace_folder:
        unpack_traces(options.traces, trace_folder)
        rows = [row for row in timed_rows(trace_folder)
                if wanted.search(row.title) and (row.quick or options.only or not options.quick)]
        if rows:
            text, aims = timed_text(session, rows, is_busy(load_before))
    text += run_sections(session, wanted)
    session.end_progress()
    session.left_out += [f"{name}: {why}" for name, why in session.runner.missing.items()]
    facts = machine(session, load_before)
    if session.left_out:
        aims.append("Left out: " + "; ".join(session.left_out))
    page = "\n\n".join([describe(facts), LEGEND] + text + aims) + "\n"
    print(page)
    with open(os.path.join(options.out, "bench.md"), "w", encoding="utf-8") as out:
        out.write(page)
    with open(os.path.join(options.out, "bench.json"), "w", encoding="utf-8") as out:
        json.dump({"machine": facts, "left_out": session.left_out,
                   "summary": with_string_keys(session.summary), "records": session.runner.records}, out, indent=1)
    for path in session.plotted + [os.path.join(options.out, "bench.json")]:
        print(path)
    if session.runner.failed:
        sys.exit("\n".join(["A program failed:"] + session.runner.failed))


def with_string_keys(value):
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(key): with_string_keys(one) for key, one in value.items()}
    return value


if __name__ == "__main__":
    main()
