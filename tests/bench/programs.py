#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Time and peak memory of real programs under several allocators.

Each program runs a workload that it makes itself, the same for every allocator, which is put under it with
LD_PRELOAD; the C library's own needs none. One round runs every program once under every allocator, in another
order each time, so that a slow phase of the machine hits all of them alike. Figures are medians of the rounds:
CPU time (user and system, with all children), wall-clock time, and the largest resident set of a process.

Tables give the figures of each allocator divided by those of the C library, and geometric means over all programs.
What is not installed is named and left out. Everything is written to programs.json.

    tests/bench/programs.py --preload build/src/libshmalloc-preload.so [--rounds N] [--only REGEX] [--out FOLDER]
"""
import argparse
import datetime
import json
import math
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

PEERS = [  # name in the tables, shared objects to preload: the first that loads
    ("glibc", []),
    ("jemalloc", ["libjemalloc.so.2"]),
    ("mimalloc", ["libmimalloc.so.2", "libmimalloc.so.2.0"]),
    ("tcmalloc", ["libtcmalloc_minimal.so.4"]),
]

PYTHON = """
import json, collections, re
words = [("w%d" % (i * 7919 % 50021)) * (1 + i % 5) for i in range(300000)]
count = collections.Counter(words)
table = {w: {"n": n, "list": list(range(n % 20)), "text": w[::-1] * 3} for w, n in count.items()}
text = json.dumps(table)
again = json.loads(text)
found = re.findall(r"w\\d+5", text)
objects = [bytearray(i % 3000) for i in range(60000)]
del objects[::2]
objects += [bytes(i % 700) for i in range(60000)]
print(len(text), len(again), len(found), sum(map(len, objects)))
"""
PERL = r"""
my (%h, @l); for my $i (0 .. 400000) { my $k = "k" . ($i * 7919 % 90001); push @{$h{$k}}, "v$i" x (1 + $i % 7); }
for my $k (sort keys %h) { push @l, join(",", @{$h{$k}}) if @{$h{$k}} > 3; }
my $s = 0; for (@l) { $s += length; s/v(\d+)/<$1>/g; $s += length; } print scalar(@l), " $s\n";
"""
NODE = """
const m = new Map();
for (let i = 0; i < 300000; i++) m.set('k' + (i * 7919 % 90001), {n: i, t: 'x'.repeat(i % 50), a: [i, i + 1]});
const s = JSON.stringify([...m]); const b = [];
for (let i = 0; i < 20000; i++) b.push(Buffer.alloc(i % 9000, i & 255));
console.log(s.length, JSON.parse(s).length, b.reduce((a, x) => a + x.length, 0));
"""
SQL = """
CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT, c REAL);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)
INSERT INTO t SELECT i, printf('%d-%s', i * 7919 % 90001, hex(i)), i * 0.5 FROM n;
CREATE INDEX tb ON t(b);
SELECT count(*), sum(c) FROM t WHERE b LIKE '1%';
SELECT count(*) FROM (SELECT x.a FROM t x JOIN t y ON x.b = y.b WHERE x.a < 60000);
SELECT length(group_concat(b)) FROM t;
SELECT count(DISTINCT substr(b, 1, 4)) FROM t;
"""
CPLUSPLUS = """
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <regex>
#include <string>
#include <unordered_map>
#include <vector>
int main(int argc, char **argv) {
    std::map<std::string, std::vector<std::function<int(int)>>> m;
    std::unordered_map<std::string, std::regex> r;
    for (int i = 0; i < argc; i++) {
        m[argv[i]].push_back([i](int x) { return x + i; });
        r.emplace(argv[i], std::regex(argv[i]));
    }
    for (auto &p : m) std::cout << p.first << std::regex_match(p.first, r[p.first]) << p.second[0](1) << std::endl;
}
"""
CHURN = """
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include <iostream>
int main() {
    std::map<std::string, std::shared_ptr<std::vector<int>>> m;
    std::deque<std::string> q;
    unsigned long sum = 0;
    for (unsigned i = 0; i < 1500000; i++) {
        std::string key = "a key that is longer than fits inside, number " + std::to_string(i * 7919u % 60013u);
        auto &v = m[key];
        if (!v) v = std::make_shared<std::vector<int>>(i % 40);
        sum += v->size();
        q.push_back(std::move(key));
        if (q.size() > 20000) { m.erase(q.front()); q.pop_front(); }
    }
    std::cout << sum << std::endl;
}
"""
# Starts a program and says what it cost. Small itself, because a new process counts what its maker had in memory.
LAUNCHER = """
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) { /* RESULT LIBRARY PROGRAM... */
    int status;
    struct rusage u;
    if (argc < 4) return 2;
    pid_t pid = fork();
    if (pid == 0) {
        if (*argv[2]) setenv("LD_PRELOAD", argv[2], 1);
        execvp(argv[3], argv + 3);
        _exit(127);
    }
    wait4(pid, &status, 0, &u);
    FILE *out = fopen(argv[1], "w");
    fprintf(out, "%d %f %ld", status, u.ru_utime.tv_sec + u.ru_utime.tv_usec / 1e6 + u.ru_stime.tv_sec +
            u.ru_stime.tv_usec / 1e6, u.ru_maxrss);
    return fclose(out) != 0;
}
"""
SHELL = """
f() { local x; x=$(echo "$1" | tr a-z A-Z); echo "$x" "${#x}"; }
i=0; while [ $i -lt 150 ]; do f "some words $i" >>out; i=$((i + 1)); done
sort out | uniq | wc -l
"""


class Missing(Exception):
    pass


def tool(name, *places):
    found = shutil.which(name)
    for place in places:
        found = found or shutil.which(name, path=place)
    if not found:
        raise Missing(f"{name} is not installed")
    return os.path.realpath(found) if name == "python3" else found


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as out:
        out.write(text)
    return path


def tables(sql):
    """SQL for an in-memory database that a shell of sqlite reads."""
    return "PRAGMA temp_store=MEMORY;\n" + sql


# ---- workloads: each makes what it needs once, and gives a command or a function that runs it ----

def python(folder):
    # Objects of up to 512 bytes come from Python's own arenas; that is how people run it.
    return ["/usr/bin/python3" if os.path.exists("/usr/bin/python3") else tool("python3"),
            write(folder, "work.py", PYTHON)]


def python_malloc(folder):
    return ["env", "PYTHONMALLOC=malloc"] + python(folder)


def perl(folder):
    return [tool("perl"), write(folder, "work.pl", PERL)]


def node(folder):
    return [tool("node"), write(folder, "work.js", NODE)]


def sqlite(folder):
    return [tool("sqlite3"), ":memory:", ".read " + write(folder, "work.sql", tables(SQL))]


def compile_with(compiler):
    def make(folder):
        return [tool(compiler), "-O1", "-c", "-o", os.path.join(folder, compiler + ".o"),
                write(folder, "work.cc", CPLUSPLUS)]
    return make


def churn(folder):
    source, program = write(folder, "churn.cc", CHURN), os.path.join(folder, "churn")
    subprocess.run([tool("g++"), "-O2", "-o", program, source], check=True)
    return [program]


def git(folder):
    name, repository = tool("git"), os.path.join(folder, "repository")
    subprocess.run([name, "init", "-q", repository], check=True)
    stream, mark = [], 0
    for i in range(400):
        text = "".join(f"line {j} of {i * j % 977}\n" for j in range(200))
        stream.append(f"commit refs/heads/work\ncommitter A <a@example.org> {1000000000 + i} +0000\n"
                      f"data 5\nwork\n\nM 100644 inline f{i % 40}.txt\ndata {len(text)}\n{text}\n")
        mark += 1
    subprocess.run([name, "-C", repository, "fast-import", "--quiet"], input="".join(stream), text=True, check=True)
    return ["sh", "-c", f"{name} -C {repository} log -p --stat work | wc -l; "
                        f"{name} -C {repository} -c pack.threads=2 repack -adfq --window=50; "
                        f"{name} -C {repository} fsck --full"]


def gdb(folder):
    source = write(folder, "debugged.cc", CPLUSPLUS)
    program = os.path.join(folder, "debugged")
    subprocess.run([tool("g++"), "-g", "-O0", "-o", program, source], check=True)
    return [tool("gdb"), "-nx", "-batch", "-ex", "info functions regex", "-ex", "info types vector",
            "-ex", "break main", "-ex", "run", "-ex", "bt", "-ex", "info locals", program]


def sort(folder):
    path = write(folder, "lines", "".join(f"{i * 7919 % 1000003} {i}\n" for i in range(600000)))
    return [tool("sort"), "-S", "64M", "--parallel=2", "-o", os.path.join(folder, "sorted"), path]


def shell(folder):
    return [tool("bash"), "-c", f"cd {folder} && rm -f out; " + SHELL]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(ready, process, seconds=60):
    end = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args[0]} did not start")
        time.sleep(0.02)


def redis(folder):
    server, client, benchmark = tool("redis-server"), tool("redis-cli"), tool("redis-benchmark")

    def run(launcher, log):
        path, dump = os.path.join(folder, "redis.sock"), os.path.join(folder, "dump.rdb")
        if os.path.exists(dump):  # of the run before; the server would load it
            os.unlink(dump)
        process = subprocess.Popen(launcher + [server, "--port", "0", "--unixsocket", path, "--save", "", "--dir", folder],
                                   stdout=log, stderr=log, cwd=folder)
        ask = [client, "-s", path]
        wait_until(lambda: os.path.exists(path) and subprocess.run(ask + ["ping"], capture_output=True).returncode == 0,
                   process)
        subprocess.run([benchmark, "-s", path, "-q", "-n", "60000", "-r", "100000", "-P", "16", "-d", "200",
                        "-t", "set,get,lpush,sadd,hset,zadd,mset"], stdout=log, stderr=log, check=True)
        subprocess.run(ask + ["bgsave"], stdout=log, check=True)
        while b"rdb_bgsave_in_progress:1" in subprocess.run(ask + ["info", "persistence"], capture_output=True).stdout:
            time.sleep(0.02)
        subprocess.run(ask + ["shutdown", "nosave"], stdout=log, stderr=log, check=False)
        return process
    return run


def postgresql(folder):
    import glob
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    place = found[-1] if found else ""
    names = {name: tool(name, place) for name in ("initdb", "postgres", "pgbench", "psql")}
    os.chmod(folder, 0o755)

    def run(launcher, log):
        data = tempfile.mkdtemp(dir=folder)
        user = []
        if os.geteuid() == 0:  # the server refuses to run as root
            user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(data, "nobody", "nogroup")
        common = dict(stdout=log, stderr=log, cwd=data)
        script = (f"{names['initdb']} -D {data}/db -A trust -U tester --no-sync && "
                  f"exec {names['postgres']} -D {data}/db -k {data} -c listen_addresses= -c fsync=off")
        process = subprocess.Popen(launcher + user + ["sh", "-c", script], **common)
        ask = ["-h", data, "-U", "tester", "postgres"]
        wait_until(lambda: subprocess.run([names["psql"], "-c", "select 1"] + ask, capture_output=True).returncode == 0,
                   process)
        subprocess.run([names["pgbench"], "-i", "-q", "-s", "2"] + ask, check=True, **common)
        subprocess.run([names["pgbench"], "-c", "4", "-t", "400"] + ask, check=True, **common)
        with open(f"{data}/db/postmaster.pid", encoding="utf-8") as first:
            os.kill(int(first.readline()), signal.SIGINT)
        return process
    return run


WORKLOADS = [
    ("python3", python), ("python3, malloc only", python_malloc), ("perl", perl), ("g++", compile_with("g++")),
    ("clang++", compile_with("clang++")), ("C++ churn", churn), ("git", git), ("sqlite3", sqlite), ("gdb", gdb),
    ("sort", sort), ("bash", shell), ("node", node), ("redis-server", redis), ("postgresql", postgresql),
]


# ---- measuring ----

def loads(library):
    tried = subprocess.run(["true"], env=dict(os.environ, LD_PRELOAD=library), capture_output=True, check=False)
    return tried.returncode == 0 and not tried.stderr


def run_once(launcher, work, library, folder):
    """One process tree under an allocator: CPU seconds, wall-clock seconds, KiB."""
    result = os.path.join(folder, "result")
    launcher = [launcher, result, library or ""]
    with open(os.path.join(folder, "log"), "wb") as log:
        start = time.monotonic()
        process = work(launcher, log) if callable(work) else subprocess.Popen(
            launcher + work, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=folder)
        process.wait()
        wall = time.monotonic() - start
    with open(result, encoding="utf-8") as line:
        status, cpu, peak = line.read().split()
    if int(status) != 0:
        with open(os.path.join(folder, "log"), encoding="utf-8", errors="replace") as log:
            sys.stderr.write(log.read()[-2000:])
        raise RuntimeError(f"{work if not callable(work) else 'server'} with {library}: status {status}")
    return {"cpu_s": float(cpu), "wall_s": wall, "peak_kib": int(peak)}


def geometric_mean(numbers):
    return math.exp(sum(map(math.log, numbers)) / len(numbers))


def table(medians, names, key, title):
    programs = list(medians)
    lines = [f"{title}, glibc = 1", f"| program | glibc | {' | '.join(names[1:])} |",
             "| --- |" + " ---: |" * len(names)]
    sums = {name: [] for name in names}
    for program in programs:
        base = medians[program]["glibc"][key]
        cells = [f"{base:.2f} s" if key != "peak_kib" else f"{base / 1024:.1f} MiB"]
        for name in names:
            ratio = medians[program][name][key] / base
            sums[name].append(ratio)
            if name != "glibc":
                cells.append(f"{ratio:.2f}")
        lines.append(f"| {program} | {' | '.join(cells)} |")
    means = {name: geometric_mean(values) for name, values in sums.items()}
    lines.append("| geometric mean | 1 | " + " | ".join(f"{means[n]:.3f}" for n in names[1:]) + " |")
    return "\n".join(lines), means


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], epilog="See the beginning of the file.")
    parser.add_argument("--preload", required=True, help="path of libshmalloc-preload.so")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="programs whose names match this expression")
    parser.add_argument("--out", default=".", help="folder for programs.json and programs.md")
    return parser.parse_args()


def main():
    options = arguments()
    if not loads(os.path.realpath(options.preload)):
        sys.exit(f"{options.preload} cannot be loaded")
    allocators = [("shmalloc", os.path.realpath(options.preload))]
    for name, libraries in PEERS:
        found = next((library for library in libraries if loads(library)), None)
        if not libraries or found:
            allocators.append((name, found))
        else:
            print(f"{name}: not installed, left out")
    names = ["glibc", "shmalloc"] + [n for n, _ in allocators if n not in ("glibc", "shmalloc")]
    records = []
    os.environ["LC_ALL"] = "C"
    os.environ.pop("LD_PRELOAD", None)
    with tempfile.TemporaryDirectory() as top:
        launcher, work = os.path.join(top, "launcher"), {}
        subprocess.run(["cc", "-O1", "-o", launcher, write(top, "launcher.c", LAUNCHER)], check=True)
        for name, make in WORKLOADS:
            if not re.search(options.only, name):
                continue
            folder = os.path.join(top, re.sub(r"\W+", "-", name))
            os.mkdir(folder)
            try:
                work[name] = (make(folder), folder)
            except Missing as why:
                print(f"{name}: left out, {why}")
        os.chmod(top, 0o755)
        for turn in range(options.rounds):
            for name, (what, folder) in work.items():
                order = allocators[turn % len(allocators):] + allocators[:turn % len(allocators)]
                for allocator, library in order:
                    record = run_once(launcher, what, library, folder)
                    records.append({"program": name, "allocator": allocator, "round": turn, **record})
            print(f"round {turn + 1} of {options.rounds}", file=sys.stderr, flush=True)
    medians = {}
    for name in work:
        medians[name] = {}
        for allocator in names:
            mine = [r for r in records if r["program"] == name and r["allocator"] == allocator]
            medians[name][allocator] = {key: statistics.median(r[key] for r in mine)
                                        for key in ("cpu_s", "wall_s", "peak_kib")}
    texts, means = [], {}
    for key, title in (("cpu_s", "CPU time"), ("wall_s", "Wall-clock time"), ("peak_kib", "Peak memory")):
        text, means[key] = table(medians, names, key, title)
        texts.append(text)
    os.makedirs(options.out, exist_ok=True)
    write(options.out, "programs.md", "\n\n".join(texts) + "\n")
    with open(os.path.join(options.out, "programs.json"), "w", encoding="utf-8") as out:
        json.dump({"when": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
                   "machine": platform.platform(), "cpus": os.cpu_count(), "geometric_means": means,
                   "medians": medians, "records": records}, out, indent=1)
    print("\n\n".join(texts))


if __name__ == "__main__":
    main()
