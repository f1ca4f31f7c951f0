#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Record what a program asks malloc for, as a trace that run.py --trace plays.

    ./tools/bench --record build/mine.trace.xz PROGRAM ARGUMENT...
    ./tools/bench --trace build/mine.trace.xz --only mine

The program must use glibc's malloc and be linked dynamically. Its children are not recorded. With
--standard, the traces in traces/ are made anew: STANDARD says of what.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import traces

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(HERE, "..", "..")

PERL = """
my %lengths;
open my $text, "<", "/usr/share/common-licenses/GPL-3";
while (<$text>) { $lengths{lc $_} .= length($_) . "," for split /\\W+/; }
for my $word (sort { length $lengths{$b} <=> length $lengths{$a} } keys %lengths) {
    $lengths{$word} = join "-", reverse split /,/, $lengths{$word};
}"""

PYTHON = """
import ast, inspect, json, textwrap
ast.dump(ast.parse(inspect.getsource(textwrap)))
json.loads(json.dumps([{"a": i, "b": [str(j) for j in range(20)]} for i in range(200)]))"""

SQL = """
create table t (a integer primary key, b text, c);
create index i on t (b);
insert into t with recursive n (x) as (select 1 union all select x + 1 from n where x < 3000)
    select x, printf('row %d of text', x * 7919 % 3000), x * x from n;
select count(*) from t where b like '%9%';
update t set c = c || b where a % 3 = 0;
select b, sum(c) from t group by substr(b, 1, 6) order by 2 limit 5;
delete from t where a % 2 = 0;
vacuum;"""

# Name and command of the traces in traces/; for cc1 only its arguments.
STANDARD = [
    ("perl", ["perl", "-e", PERL]),
    ("python3", ["/usr/bin/python3", "-c", PYTHON]),
    ("sqlite3", ["sqlite3", ":memory:", SQL]),
    ("cc1", ["-quiet", "-O2", "-D_GNU_SOURCE", os.path.join(HERE, "trace.c"), "-o", "/dev/null"]),
    ("git", ["git", "-C", SOURCE, "--no-pager", "log", "--stat", "-n", "60"]),
]


def record(recorder, limit, command):
    """The bytes that recorder.c wrote while `command` ran."""
    with tempfile.TemporaryDirectory() as folder:
        raw = os.path.join(folder, "raw")
        environment = dict(os.environ, LD_PRELOAD=os.path.abspath(recorder), BENCH_RECORD=raw,
                           BENCH_RECORD_LIMIT=str(limit),
                           PYTHONMALLOC="malloc")  # Python's own takes memory in pieces of 256 KiB
        status = subprocess.run(command, env=environment, check=False).returncode
        if status:
            print(f"{command[0]} ended with status {status}; what it did until then is kept", file=sys.stderr)
        if not os.path.exists(raw):
            sys.exit(f"{command[0]} was not recorded: is it linked statically?")
        with open(raw, "rb") as recorded:
            return recorded.read()


def compiler_proper():
    """gcc's cc1, which does the work, and where its headers are."""
    def ask(question):
        return subprocess.run(["gcc", question], capture_output=True, text=True, check=True).stdout.strip()
    return [ask("-print-prog-name=cc1"), "-imultiarch", ask("-print-multiarch")]


def save(options, path, command):
    trace = traces.encode(record(options.recorder, options.limit, command))
    traces.write(path, trace)
    operations, slots = traces.counts(trace)
    print(f"{path}: {operations} operations, at most {slots} blocks at once, {os.path.getsize(path)} bytes",
          file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recorder", default=os.path.join(HERE, "recorder.so"), help="the compiled recorder.c")
    parser.add_argument("--limit", type=int, default=80000, help="number of operations after which to stop")
    parser.add_argument("--standard", metavar="FOLDER", help="record the standard programs there")
    parser.add_argument("out", nargs="?", help="file to write, NAME.trace.xz")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="program and its arguments")
    options = parser.parse_args()
    if options.standard:
        for name, command in STANDARD:
            if name == "cc1":
                command = compiler_proper() + command
            save(options, os.path.join(options.standard, name + ".trace.xz"), command)
    elif options.command:
        save(options, options.out, options.command)
    else:
        parser.error("which program?")


if __name__ == "__main__":
    main()
