# SPDX-License-Identifier: MIT
"""The parts of a run beside the timed rows. Each takes the session and returns the text of its tables."""
import concurrent.futures
import statistics

import tables
from peers import ALL, HEAPS, MALLOCS, OURS

SHMALLOC, LINKED = OURS
BOOST, PMDK, LMDB = HEAPS[:3]
MIXED = "--size 16-512"
GIB = 1 << 30


def interleave(session, section, points, rounds):
    """Run each point once in every round; {x: {allocator: {field: [median of each round]}}}.

    A point is (x, allocator, program, arguments, folder)."""
    results = {}
    for repetition in range(rounds):
        for index, (x, allocator, program, arguments, folder) in enumerate(points):
            done = repetition * len(points) + index
            if session.over():
                session.left_out.append(f"{section}: {rounds * len(points) - done} of {rounds * len(points)} "
                                        "measurements: no time left")
                return results
            session.progress(f"{section}: {done + 1} of {rounds * len(points)}, {allocator.name}")
            records = session.runner.run(allocator, program, arguments.split() + [
                "--repetition", str(repetition), "--seed", str(session.options.seed + repetition)], folder)
            if not records:
                continue
            fields = results.setdefault(x, {}).setdefault(allocator.name, {})
            for field, value in records[0].items():
                if isinstance(value, (int, float)):
                    fields.setdefault(field, []).append(statistics.median(r[field] for r in records))
    return results


def one_field(results, field, scale=1.0):
    return {x: {name: [value * scale for value in fields[field]] for name, fields in row.items()}
            for x, row in results.items()}


def size_name(size):
    for unit, name in ((GIB, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size // unit} {name}"
    return f"{size} B"


# ---- memory ----------------------------------------------------------------------------------------

def memory(session):
    count = 200000 if session.options.quick else 1000000
    cases = [(f"{count:,} blocks of 16..512 B", f"--blocks {count} {MIXED}"),
             (f"{count:,} blocks of 16 B", f"--blocks {count} --size 16")]
    points = [(title, allocator, "memory", "--workload footprint " + arguments, None)
              for title, arguments in cases for allocator in ALL]
    found = interleave(session, "memory", points, 1)
    used = one_field(found, "value")
    faults = one_field(found, "faults", 1e6 / count)
    empty = session.runner.run(SHMALLOC, "memory", "--workload footprint --blocks 1 --size 16".split())
    session.summary["memory"] = {"bytes_per_byte": used, "faults_per_million": faults,
                                 "empty_heap": empty[0]["used"] if empty else None}
    shown = tables.names_in(used)
    rows = [[title] + [f"{row[name][0]:.3f}" if name in row else "-" for name in shown]
            for title, row in used.items()]
    fault_rows = [[title] + [f"{row[name][0]:,.0f}" if name in row else "-" for name in shown]
                  for title, row in faults.items()]
    return "\n\n".join([
        tables.table(["memory per requested byte"] + shown, rows),
        tables.table(["page faults per million allocations, first use"] + shown, fault_rows),
        (f"A heap with one block takes {empty[0]['used'] / 1024:.0f} KiB of its file system. " if empty else "")
        + "PMDK has no figures here: it reserves its whole pool when it is created."])


def shift(session):
    live = 16 << 20 if session.options.quick else 32 << 20
    results = {}
    for allocator in ALL:
        session.progress(f"shift: {allocator.name}")
        records = session.runner.run(allocator, "memory", ["--workload", "shift", "--blocks", str(live)])
        if records:
            results[allocator.name] = [(record["churned"] / live, record["value"], record["low"])
                                       for record in records]
    session.summary["shift"] = results
    first = next(iter(results.values()))
    marks = [(first[0][0] * 0 if i == 0 else first[i - 1][0], f"{low}..{4 * low} B")
             for i, (_, _, low) in enumerate(first) if i == 0 or low != first[i - 1][2]]
    session.plot("curves", "shift", f"The sizes of {live >> 20} MiB of live blocks move up and down again",
                 "bytes allocated, in multiples of what lives", "memory per live byte",
                 {name: [(x, y) for x, y, _ in points] for name, points in results.items()}, marks)
    per_step = len(first) // len(marks)
    rows = [[text] + [f"{points[(step + 1) * per_step - 1][1]:.3f}" for points in results.values()]
            for step, (_, text) in enumerate(marks)]
    rows.append(["highest"] + [f"{max(y for x, y, _ in points if x >= 1):.3f}" for points in results.values()])
    return tables.table([f"memory per live byte of {live >> 20} MiB, when sizes move"] + list(results), rows)


def give_back(session):
    seconds = 3 if session.options.quick else 14
    arguments = ["--workload", "give-back", "--blocks", "200000", "--size", "16-512", "--sample-ms",
                 str(seconds * 1000)]
    session.progress(f"give-back: all at once, {seconds} s")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = {allocator.name: pool.submit(session.runner.run, allocator, "memory", arguments)
                   for allocator in ALL}
        results = {name: future.result() for name, future in waiting.items() if future.result()}
    session.summary["give_back"] = {
        name: [(record["seconds"], record["value"], record["asked"]) for record in records]
        for name, records in results.items()}
    session.plot("curves", "give-back", "50 MiB of blocks; the older 90 % are freed at 0 s", "seconds",
                 "part of the memory that is kept",
                 {name: [(record["seconds"], record["value"]) for record in records[1:-1]]
                  for name, records in results.items()})
    moments = [moment for moment in (0, 1, 2, 5, 10, 13) if moment < seconds]

    def at(records, moment):
        return max((record for record in records[1:-1] if record["seconds"] <= moment + 0.01),
                   key=lambda record: record["seconds"])["value"]
    rows = [[f"after {moment} s"] + [f"{at(records, moment):.2f}" for records in results.values()]
            for moment in moments]
    rows.append(["after asking for it"] + [f"{records[-1]['value']:.2f}" for records in results.values()])
    return tables.table(["part of the memory kept, 90 % freed"] + list(results), rows)


# ---- open and recovery -----------------------------------------------------------------------------

def pool_size(objects):
    """PMDK's pools do not grow: room for the objects, and some."""
    return f" --heap-size {max(128 << 20, objects * 640)}" if objects > 100000 else ""


def opening(session):
    most = 100000 if session.options.quick else 1000000
    samples = 5 if session.options.quick else 15
    cases = [("open-clean", "closed in order", 1000), ("open-clean", "closed in order", most),
             ("open-killed", "all killed", most)]
    points = []
    for folder in (session.options.heap_dir, session.options.disk_dir):
        for workload, state, objects in cases:
            for allocator in [SHMALLOC] + HEAPS:
                if allocator == LMDB and objects > 100000:
                    continue  # filling it takes too long
                if folder != session.options.heap_dir and (allocator != SHMALLOC or objects != most):
                    continue
                title = f"{objects:,} objects, {state}, {session.file_system(folder)}"
                points.append((title, allocator, "open",
                               f"--workload {workload} --objects {objects} {MIXED} --samples {samples}"
                               + (pool_size(objects) if allocator == PMDK else ""), folder))
    found = interleave(session, "open", points, 1)
    session.summary["open"] = found
    rows = []
    for title, row in found.items():
        for name, fields in row.items():
            rows.append([title, name] + [tables.number(fields[field][0]) for field in
                                         ("value", "sync", "syncs", "beyond_sync", "first_pair")])
    return tables.table(["open, us, medians", "", "open", "of that sync", "syncs", "beyond sync",
                         "first alloc + free"], rows)


def recover(session):
    window, samples = (600, 2) if session.options.quick else (1200, 5)
    cases = [(SHMALLOC, 1000, 0), (BOOST, 1000, 0), (LMDB, 1000, 0)]
    if not session.options.quick:
        cases[1:1] = [(SHMALLOC, 1000000, 0), (SHMALLOC, 1000, 64 * GIB)]
    rows, summary = [], []
    for allocator, objects, heap_size in cases:
        session.progress(f"recover: {allocator.name}, {objects} objects")
        records = session.runner.run(allocator, "recover", (
            f"--workload recover --objects {objects} --heap-size {heap_size} --blocks 2000 --size 16-2048 "
            f"--sample-ms {window} --samples {samples}").split())
        if not records:
            continue
        summary += records
        stuck = [record for record in records if record["stuck"]]
        title = f"{objects:,} objects" + (f", file of {size_name(heap_size)}" if heap_size else "")
        rows.append([title, allocator.name, str(len(records)),
                     tables.median_spread([record["quiet"] for record in records]),
                     f"for ever, after {len(records)} of {samples} kills" if stuck
                     else tables.median_spread([record["value"] for record in records])])
    session.summary["recover"] = summary
    return (tables.table(["a process is killed", "", "kills", "longest call before, us",
                          "longest call of the survivor, us"], rows)
            + f"\n\nLongest of all calls in {window / 1000:.1f} s; every call is timed. \"Before\" is what the machine "
              "does to a program when nobody dies.")


# ---- how the cost grows ----------------------------------------------------------------------------

def threads(session):
    counts = (1, 2, 4) if session.options.quick else (1, 2, 4, 8, 16)
    rounds = 1 if session.options.quick else 3
    batch = f"--workload batch-random --blocks 1000 {MIXED} --samples 3 --sample-ms 4 --threads"
    larson = f"--workload larson --blocks 1000 {MIXED} --samples 3 --sample-ms 4 --threads"
    allocators = OURS + MALLOCS + [BOOST]
    found = interleave(session, "threads", [((title, count), allocator, "allocate", f"{arguments} {count}", None)
                                            for title, arguments in (("batch", batch), ("larson", larson))
                                            for count in counts for allocator in allocators], rounds)
    out, panels = [], []
    for title in ("batch", "larson"):
        part = {count: found.get((title, count), {}) for count in counts}
        cpu = one_field(part, "cpu")
        rate = {count: {name: [count * 1e3 / value for value in fields["value"]]
                        for name, fields in row.items()} for count, row in part.items()}
        session.summary[f"threads_{title}"] = {"cpu": cpu, "million_pairs_per_second": rate}
        out += [tables.growth_table(f"threads, {title}: CPU ns per pair", cpu),
                tables.growth_table(f"threads, {title}: million pairs a second, all together", rate)]
        panels.append((f"{title}: CPU time", "CPU ns per pair", cpu))
        panels.append((f"{title}: throughput", "million pairs a second, all together", rate))
    session.plot_growth("threads", "Threads of one process", "threads", panels,
                        {count: str(count) for count in counts}, panels[:2])
    return "\n\n".join(out)


def heap_sizes(session):
    sizes = [1 << 20, 1 << 26, GIB] if session.options.quick else [1 << 20, 1 << 24, 1 << 28, 4 * GIB, 64 * GIB]
    rounds = 1 if session.options.quick else 3
    kinds = [("pair of 64 B", "ns", "allocate", "--workload pair --samples 3"),
             ("pair of 100 KiB, pages", "ns", "allocate", "--workload pair --size 102400 --samples 3"),
             ("longest call, blocks of 100 KiB", "us", "longest",
              "--workload longest --size 102400 --sample-ms 1200"),
             ("open after an orderly close", "us", "open", "--workload open-clean --samples 5"),
             ("open after all were killed", "us", "open", "--workload open-killed --samples 5")]
    points = [((title, size), allocator, program, f"{arguments} --heap-size {size}", None)
              for title, _, program, arguments in kinds for size in sizes
              for allocator in (SHMALLOC, BOOST)
              if allocator == SHMALLOC or size > 1 << 20]  # Boost's segment must hold what open writes
    return growth_by(session, "heap size", "Length of the file, almost all of it never touched",
                     "length of the file", kinds, sizes, points, rounds,
                     {size: size_name(size) for size in sizes})


def growth_by(session, section, title, xlabel, kinds, xs, points, rounds, ticks=None):
    """Interleave the points, whose x is (kind, x); a table and a panel for each kind."""
    found = interleave(session, section, points, rounds)
    out, panels = [], []
    for kind, unit, _, _ in kinds:
        part = one_field({x: found[(kind, x)] for x in xs if (kind, x) in found}, "value")
        named = {ticks[x] if ticks else f"{x:,}": row for x, row in part.items()}
        session.summary[f"{section}: {kind}"] = part
        out.append(tables.growth_table(f"{section}: {kind}, {unit}", named))
        panels.append((kind, unit, part))
    first_open = next(panel for panel in panels if panel[0].startswith("open"))
    session.plot_growth(section.replace(" ", "-"), title, xlabel, panels, ticks, [panels[0], first_open])
    return "\n\n".join(out)


def objects(session):
    counts = [1000, 10000, 100000] if session.options.quick else [10 ** n for n in range(3, 8)]
    most = {"Boost": 10 ** 6, "PMDK": 10 ** 6, "LMDB": 10 ** 5}
    kinds = [("pair of 64 B", "ns", "allocate", "--workload pair --samples 3"),
             ("batch of 1,000, random", "ns", "allocate",
              "--workload batch-random --blocks 1000 --size 16-64 --samples 3"),
             ("open after an orderly close", "us", "open", "--workload open-clean --size 16-64 --samples 5"),
             ("open after all were killed", "us", "open", "--workload open-killed --size 16-64 --samples 5")]
    points = [((title, count), allocator, program, f"{arguments} --objects {count}"
               + (pool_size(count) if allocator == PMDK else ""), None)
              for title, _, program, arguments in kinds for count in counts
              for allocator in [SHMALLOC] + HEAPS if count <= most.get(allocator.name, counts[-1])]
    return growth_by(session, "objects", "Objects that live in the heap", "objects", kinds, counts, points, 1)


def processes(session):
    counts = [1, 4, 16] if session.options.quick else [1, 2, 4, 8, 16, 32, 64]
    rounds = 1 if session.options.quick else 3
    kinds = [("pair of 64 B", "ns", "allocate", "--workload pair --samples 3"),
             ("batch of 1,000, random", "ns", "allocate",
              f"--workload batch-random --blocks 1000 {MIXED} --samples 3"),
             ("open", "us", "open", "--workload open-clean --samples 5"),
             ("longest call after a kill", "us", "recover",
              f"--workload recover --blocks 2000 --size 16-2048 --samples {1 if rounds == 1 else 2} "
              f"--sample-ms {300 if rounds == 1 else 1200}")]
    points = [((title, count), allocator, program, f"{arguments} --attached {count - 1}", None)
              for title, _, program, arguments in kinds[:3] for count in counts
              for allocator in (SHMALLOC, BOOST, LMDB)]
    found = growth_by(session, "processes", "Processes that have the heap open; one works, the others wait",
                      "processes", kinds[:3], counts, points, rounds, {count: str(count) for count in counts})
    title, unit, program, arguments = kinds[3]
    deaths = interleave(session, "processes", [
        (count, SHMALLOC, program, f"{arguments} --attached {max(count - 2, 0)}", None)
        for count in counts if count > 1], 1)
    session.summary[f"processes: {title}"] = deaths
    return found + "\n\n" + tables.growth_table(f"processes: {title}, {unit}", one_field(deaths, "value"))


def arenas(session):
    """Far more blocks than caches hold, of a class whose slabs have thousands of slots: the class locks are busy,
    the page lock is not."""
    counts = [1, 2, 4, 8]
    rounds = 1 if session.options.quick else 5
    workers = (4,) if session.options.quick else (2, 4, 8)
    points = [((count, worker), SHMALLOC, "allocate",
               f"--workload batch-fifo --blocks 200000 --size 16 --samples 5 --sample-ms 40 "
               f"--threads {worker} --arenas {count}", None) for count in counts for worker in workers]
    found = interleave(session, "arenas", points, rounds)
    rows, waits_by_count = [], {}
    for count in counts:
        cells = []
        for worker in workers:
            fields = found.get((count, worker), {}).get("shmalloc")
            if not fields:
                cells += ["-", "-"]
                continue
            waits = [waits * 1e6 / (pairs * worker)
                     for waits, pairs in zip(fields["lock_waits"], fields["pairs"])]
            waits_by_count.setdefault(worker, []).append((count, statistics.median(waits)))
            cells += [tables.median_spread(waits), tables.number(statistics.median(fields["cpu"]))]
        rows.append([str(count)] + cells)
    session.summary["arenas"] = waits_by_count
    header = ["arenas"]
    for worker in workers:
        header += [f"{worker} threads: lock waits per million pairs", "CPU ns per pair"]
    return tables.table(header, rows)


# Name, function; the name is what --only matches.
SECTIONS = [
    ("memory", memory), ("shift", shift), ("give-back", give_back), ("open", opening), ("recover", recover),
    ("threads", threads), ("heap size", heap_sizes), ("objects", objects), ("processes", processes),
    ("arenas", arenas),
]
# Of --quick: those that take seconds.
QUICK = ("memory", "shift", "open", "recover", "arenas")
