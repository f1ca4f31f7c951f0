#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""test_programs.py SHMALLOC-RUN [NAME...] - real programs do under shmalloc-run what they do without it.

Each program runs twice, plainly and under shmalloc-run, in folders of the same contents; its output, exit status and
the files that it leaves must be the same. Servers run under shmalloc-run only, on sockets in a temporary folder, and
are asked by clients of their own. What was not run, because it is not installed, is said.
"""
import glob
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

RUN = os.path.realpath(sys.argv[1])

THREADED_PYTHON = """
import concurrent.futures, json, multiprocessing, os, random, re, sqlite3, subprocess, threading, zlib
random.seed(7)
def work(n):
    d = {str(i): ["x" * (i % 50), i, {"k": bytearray(i % 900)}] for i in range(n)}
    return zlib.crc32(repr(sorted(d.items())).encode())
with concurrent.futures.ThreadPoolExecutor(8) as pool:
    print(list(pool.map(work, [500 + i for i in range(24)])))
with multiprocessing.get_context("fork").Pool(3) as pool:
    print(pool.map(work, [300 + i for i in range(12)]))
for i in range(10):
    pid = os.fork()
    if pid == 0:
        os._exit(work(200) & 7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
for i in range(300):
    t = threading.Thread(target=work, args=(5,)); t.start(); t.join()
print(subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, text=True).stdout)
c = sqlite3.connect(":memory:")
c.execute("create table t(a, b)")
c.executemany("insert into t values(?, ?)", [(i % 97, "v" * (i % 40)) for i in range(20000)])
print(c.execute("select a, count(*), sum(length(b)) from t group by a order by 2, 3, 1 limit 5").fetchall())
print(len(re.sub(r"(a|b)+", "-", "xabbay" * 5000)))
"""
PERL = r"""
my %h; for my $i (0 .. 20000) { push @{$h{"k" . ($i * 7919 % 9001)}}, "v$i" x (1 + $i % 7); }
my $s = ""; for my $k (sort keys %h) { $s .= join(",", @{$h{$k}}) . "\n"; } $s =~ s/v(\d)/<$1>/g;
print length($s), " ", unpack("%32C*", $s), "\n";
for (1 .. 5) { my $pid = fork(); if (!$pid) { my @a = map { "x" x $_ } 1 .. 500; exit(@a % 7); } waitpid($pid, 0); print $? >> 8, "\n"; }
print `echo from a shell`;
"""
SQL = """
CREATE TABLE t(a INTEGER PRIMARY KEY, b TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
INSERT INTO t SELECT i, printf('%d-%s', i * 7919 % 9001, hex(i)) FROM n;
CREATE INDEX tb ON t(b);
SELECT count(*), sum(length(b)) FROM t WHERE b LIKE '1%';
SELECT length(group_concat(b)) FROM t;
PRAGMA integrity_check;
"""
NODE = """
const {Worker, isMainThread, parentPort} = require('worker_threads');
const work = n => { const m = new Map(); for (let i = 0; i < n; i++) m.set('k' + i, Buffer.alloc(i % 500, i & 255));
  return require('zlib').gzipSync(Buffer.concat([...m.values()])).length; };
if (isMainThread) { const done = []; for (let i = 0; i < 3; i++) new Worker(__filename).on('message', x => {
  done.push(x); if (done.length == 3) console.log(done, work(2000),
    require('child_process').execFileSync('echo', ['hi']).toString()); }); }
else parentPort.postMessage(work(1500));
"""
CXX = """
#include <iostream>
#include <map>
#include <regex>
#include <string>
int main() { std::map<std::string, int> m; std::regex r("a+b?"); for (int i = 0; i < 9; i++) m[std::to_string(i)] = i;
  for (auto &p : m) std::cout << p.first << std::regex_match("aab", r) << "\\n"; }
"""
GIT = """
export GIT_AUTHOR_DATE='1000000000 +0000' GIT_COMMITTER_DATE='1000000000 +0000' GIT_CONFIG_GLOBAL=/dev/null
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
git init -q -b work r && cd r
for i in 1 2 3 4 5 6 7 8; do
    seq 1 $((i * 300)) >numbers; seq $i 3 $((i * 900)) >others$i; git add -A; git commit -qm "step $i"
done
git checkout -qb side HEAD~3 && echo more >more && git add more && git commit -qm side
git merge -q -m merged work && git -c pack.threads=2 repack -adq --window=20 && git fsck --full 2>&1
git log --stat | cksum; git diff HEAD~2 | cksum; git blame numbers | cksum; git rev-parse HEAD
"""
# What a configure script does: hundreds of short processes, pipes, here documents, subshells, a compiler.
CONFIGURE = r"""
exec 2>&1
x=$(echo a b c | sed 's/b/B/'); echo "$x"
for f in malloc free printf strlcpy_not_there fork pthread_create regcomp nosuchfunction; do
    cat >conftest.c <<END
char $f(); int main(void) { return $f() != 0; }
END
    if gcc -w -fno-builtin -o conftest conftest.c -pthread >conftest.log 2>&1; then echo "checking for $f... yes"
    else echo "checking for $f... no"; fi
done
for i in $(seq 1 25); do (v=$(echo "$i" | tr 0-9 a-j); test -n "$v" && echo "$v" | cat | cat) done
awk 'BEGIN { for (i = 0; i < 20000; i++) a[i % 700] = a[i % 700] "x"; n = 0; for (k in a) n += length(a[k]); print n }'
find / -maxdepth 2 -name 'e*' 2>/dev/null | sort | head -n 20 | xargs -n 3 basename -a | wc -l
expr 6 \* 7; printf '%s\n' one two three | while read -r w; do echo "$w" | rev 2>/dev/null || echo "$w"; done
rm -f conftest*
"""
MAKE = "all: a b c d\n%: ; @sh -c 'echo made $@' > $@; cat $@\n"
GDB = ["-nx", "-batch", "-ex", "break work", "-ex", "run", "-ex", "bt", "-ex", "print *p", "-ex", "ptype p",
       "-ex", "kill", "./debugged"]
DEBUGGED = """
#include <stdlib.h>
struct node { int value; struct node *next; };
int work(struct node *p) { return p->value; }
int main(void) { struct node *p = calloc(1, sizeof *p); p->value = 42; return work(p) != 42; }
"""


def shell(text):
    return ["bash", "-c", text]


# name: tools that it needs, files, command
PROGRAMS = {
    "python3": (["python3"], {"work.py": THREADED_PYTHON}, ["python3", "work.py"]),
    "python3 with every object by malloc": (["python3"], {"work.py": THREADED_PYTHON},
                                            ["env", "PYTHONMALLOC=malloc", "python3", "work.py"]),
    "perl": (["perl"], {"work.pl": PERL}, ["perl", "work.pl"]),
    "git": (["git"], {}, shell(GIT + "rm -rf ../r")),
    "sqlite3": (["sqlite3"], {"work.sql": SQL}, ["sqlite3", "data", ".read work.sql"]),
    "gcc": (["gcc"], {"work.c": DEBUGGED}, ["gcc", "-O2", "-c", "-o", "work.o", "work.c"]),
    "g++, and what it made": (["g++"], {"work.cc": CXX}, shell("g++ -O1 -o work work.cc && ./work && rm work")),
    "a configure script": (["bash", "gcc", "awk"], {}, shell(CONFIGURE)),
    "dash": (["dash"], {}, ["dash", "-c", "i=0; while [ $i -lt 150 ]; do x=$(echo $i); i=$((i + 1)); done; echo $x"]),
    "make": (["make"], {"Makefile": MAKE}, ["make", "-s"]),
    "sort and tar": (["sort", "tar", "gzip"], {},
                     shell("seq 1 60000 | sort -R --random-source=/bin/sh | sort -n --parallel=2 >s; tar c s | gzip -n "
                           "| gunzip | tar t; cksum s")),
    "gdb": (["gdb", "gcc"], {"debugged.c": DEBUGGED}, shell(
        "gcc -g -O0 -o debugged debugged.c && gdb " + " ".join(f"'{word}'" for word in GDB) +
        " 2>/dev/null | sed -E 's/0x[0-9a-f]+/ADDRESS/g; s/process [0-9]+/process/g'; rm debugged")),
    "node": (["node"], {"work.js": NODE}, ["node", "work.js"]),
    "openssl": (["openssl"], {}, shell("seq 1 50000 | openssl dgst -sha256; openssl prime -generate -bits 9 >/dev/null; "
                                       "openssl ciphers ALL | cksum")),
}


def missing(tools):
    return [tool for tool in tools if not shutil.which(tool)]


def run_in(files, command):
    """Output, status and what is left in the folder."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            with open(os.path.join(folder, name), "w", encoding="utf-8") as out:
                out.write(text)
        environment = dict(os.environ, LC_ALL="C", HOME=folder)
        done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=300, check=False)
        left = {}
        for top, _, names in os.walk(folder):
            for name in names:
                with open(os.path.join(top, name), "rb") as data:
                    left[os.path.relpath(os.path.join(top, name), folder)] = hashlib.sha256(data.read()).hexdigest()
        return {"status": done.returncode, "output": done.stdout, "errors": done.stderr, "files": left}


def compare(name):
    _, files, command = PROGRAMS[name]
    plain, ours = run_in(files, command), run_in(files, [RUN] + command)
    if plain["status"] != 0:
        print(plain["errors"].decode(errors="replace"))
        return f"fails without shmalloc-run, with status {plain['status']}"
    for part in ("status", "output", "files"):
        if plain[part] != ours[part]:
            print(ours["errors"].decode(errors="replace")[-3000:])
            return f"{part} without: {plain[part]!r:.2000}\nunder shmalloc-run: {ours[part]!r:.2000}"
    return None


# ---- servers ----

class Server:
    """A server of this test's own, ended by its process id."""

    def __init__(self, command, folder, ready):
        self.process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        end = time.monotonic() + 120
        while subprocess.run(ready, cwd=folder, capture_output=True, check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise AssertionError(f"{command} is not ready: {self.process.communicate()[0]!r:.3000}")
            time.sleep(0.05)

    def stop(self, with_signal):
        self.process.send_signal(with_signal)
        output = self.process.communicate(timeout=120)[0]
        assert self.process.returncode == 0, f"status {self.process.returncode}: {output!r:.3000}"


def served(pid):
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return "libshmalloc-preload.so" in maps.read()


def redis():
    """A data set that is saved by a child while the parent changes it; a plain server reads the same from the file."""
    with tempfile.TemporaryDirectory() as folder:
        client = ["redis-cli", "-s", os.path.join(folder, "socket")]

        def ask(*words, text=None):
            return subprocess.run(client + list(words), input=text, capture_output=True, text=True, timeout=120,
                                  check=True).stdout

        def start(prefix):
            return Server(prefix + ["redis-server", "--port", "0", "--unixsocket", os.path.join(folder, "socket"),
                                    "--save", "", "--dir", folder], folder, client + ["ping"])
        server = start([RUN])
        try:
            assert served(server.process.pid), "the server runs on another malloc"
            ask(text="".join(f"SET key{i} {'v' * (i % 700)}\nSADD set{i % 50} member{i}\nLPUSH list{i % 30} {i}\n"
                             for i in range(20000)))
            subprocess.run(["redis-benchmark", "-s", os.path.join(folder, "socket"), "-q", "-n", "20000", "-r", "10000",
                            "-P", "8", "-t", "set,lpush,hset,zadd,mset"], capture_output=True, timeout=200, check=True)
            for _ in range(3):
                ask("bgsave")
                ask(text="".join(f"APPEND key{i} more\n" for i in range(3000)))
                while "rdb_bgsave_in_progress:1" in ask("info", "persistence"):
                    time.sleep(0.02)
                assert "rdb_last_bgsave_status:ok" in ask("info", "persistence")
            digest = ask("debug", "digest")
            ask("save")
        finally:
            server.stop(signal.SIGTERM)
        server = start([])
        try:
            assert ask("debug", "digest") == digest, "the plain server reads something else"
        finally:
            server.stop(signal.SIGTERM)


def postgresql_folder():
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin"))
    return found[-1] if found else "/usr/bin"


def postgresql():
    """initdb and a server, whose every connection is a forked process, under pgbench; the sums must agree."""
    bin_folder = postgresql_folder()
    with tempfile.TemporaryDirectory() as folder:
        user = []
        if os.geteuid() == 0:  # the server refuses to run as root
            user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
            shutil.chown(folder, "nobody", "nogroup")
        tool, data = {n: os.path.join(bin_folder, n) for n in ("initdb", "postgres", "pgbench", "psql")}, folder + "/db"

        def do(*command):
            return subprocess.run(user + [RUN] + list(command), cwd=folder, capture_output=True, text=True, timeout=250,
                                  check=True).stdout
        do(tool["initdb"], "-D", data, "-A", "trust", "-U", "tester", "--no-sync")
        where = ["-h", folder, "-U", "tester"]
        server = Server(user + [RUN, tool["postgres"], "-D", data, "-k", folder, "-c", "listen_addresses=",
                                "-c", "fsync=off"], folder,
                        [tool["psql"]] + where + ["-c", "select 1", "postgres"])
        try:
            assert served(server.process.pid), "the server runs on another malloc"
            do(tool["pgbench"], "-i", "-q", *where, "postgres")
            do(tool["pgbench"], "-c", "3", "-j", "2", "-t", "100", *where, "postgres")
            sums = do(tool["psql"], "-At", *where, "-c", "select (select sum(abalance) from pgbench_accounts) = "
                      "(select sum(delta) from pgbench_history), count(*) from pgbench_history", "postgres")
            assert sums == "t|300\n", sums
        finally:
            server.stop(signal.SIGINT)


SERVERS = {
    "redis-server": (["redis-server", "redis-cli", "redis-benchmark"], redis),
    "PostgreSQL": ([os.path.join(postgresql_folder(), "initdb"), os.path.join(postgresql_folder(), "pgbench")],
                   postgresql),
}


def attempt(function, *arguments):
    try:
        return function(*arguments)
    except (AssertionError, subprocess.SubprocessError) as why:
        return f"{why} {getattr(why, 'stderr', '') or ''}"


def main():
    wanted, ran, left_out, failed = sys.argv[2:], [], [], []
    for name, (tools, *rest) in list(PROGRAMS.items()) + list(SERVERS.items()):
        if wanted and name not in wanted:
            continue
        if missing(tools):
            left_out.append(f"{name} (no {', '.join(missing(tools))})")
            continue
        start = time.monotonic()
        why = attempt(rest[0]) if name in SERVERS else attempt(compare, name)
        print(f"{name}: {'differs: ' + why if why else 'the same'}, {time.monotonic() - start:.1f} s", flush=True)
        (failed if why else ran).append(name)
    print(f"ran: {', '.join(ran)}\nnot run: {', '.join(left_out) or 'none'}\nfailed: {', '.join(failed) or 'none'}")
    return 1 if failed or not ran else 0


if __name__ == "__main__":
    sys.exit(main())
