#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""test_hooks.py SHMALLOC-RUN LIBRARY HOOKS - programs run beside another preloaded library that allocates in each call.

HOOKS is hooks.c as a library. It is preloaded before LIBRARY and after it; what a program says is then what it says
without both.
"""
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

RUN, LIBRARY, HOOKS = [os.path.realpath(name) for name in sys.argv[1:4]]

SQL = "create table t(a, b); insert into t values(1, hex(zeroblob(3000))); select a, length(b) from t;"
PYTHON = """
import json, os, random, threading, zlib
def work(n):
    return zlib.crc32(json.dumps({str(i): "x" * (i % 900) for i in range(n)}, sort_keys=True).encode())
results = []
threads = [threading.Thread(target=lambda: results.append(work(300))) for _ in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(results, len(bytearray(3000000)), len(random.SystemRandom().randbytes(9)))
"""
FORKS = """
pid = os.fork()
if pid == 0:
    os._exit(work(50) & 7)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
# name: command; does it go on in a forked child? Then its heap cannot be in a file.
PROGRAMS = {
    "bash": (["bash", "-c", 'x=$(echo a | sed s/a/b/); for i in 1 2 3; do (echo "$i$x"); done; cat <<<"$HOME"'], True),
    "python3": ([sys.executable, "-S", "-c", PYTHON], False),
    "python3, forking": ([sys.executable, "-S", "-c", PYTHON + FORKS], True),
    "perl": (["perl", "-e", 'my %h; $h{$_ % 77} .= "x" x ($_ % 50) for 1..20000; print length($h{5}), " ", -s $0, "\\n"'],
             False),
    "git": (["sh", "-c", "git init -q r && cd r && echo a >f && git add f && "
                         "git -c user.name=a -c user.email=a@example.org commit -qm m && git log --format=%s && git fsck"],
            True),
    "sqlite3": (["sqlite3", "data", SQL], False),
}


class Hooks(unittest.TestCase):
    def run_in_folder(self, command, **variables):
        with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
            environment = {**os.environ, "LC_ALL": "C", "HOME": "/nowhere", **variables}
            if "SHMALLOC_HEAP" in variables:
                environment["SHMALLOC_HEAP"] = os.path.join(folder, "heap")
            done = subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
                                  text=True, timeout=60, check=False)
            return done.returncode, done.stdout, done.stderr

    def each(self, change):
        """Every program under what `change` makes of its command and environment, and without."""
        ran = 0
        for name, (command, forks) in PROGRAMS.items():
            if not shutil.which(command[0]) or not shutil.which(name.split(",")[0]):
                continue
            with self.subTest(program=name):
                changed, variables = change(command, forks)
                if changed:
                    self.assertEqual(self.run_in_folder(changed, **variables), self.run_in_folder(command))
                    ran += 1
        self.assertGreater(ran, 0)

    def test_the_hooks_alone(self):
        self.each(lambda command, forks: (command, {"LD_PRELOAD": HOOKS}))

    def test_hooks_after_the_library(self):
        self.each(lambda command, forks: ([RUN, "--strict", *command], {"LD_PRELOAD": HOOKS}))

    def test_hooks_before_the_library(self):
        self.each(lambda command, forks: (command, {"LD_PRELOAD": f"{HOOKS}:{LIBRARY}", "SHMALLOC_STRICT": "1"}))

    def test_hooks_and_heaps_in_files(self):
        self.each(lambda command, forks: (None if forks else [RUN, "--heap", "program.heap", *command],
                                          {"LD_PRELOAD": HOOKS}))
        self.each(lambda command, forks: (None if forks else command,
                                          {"LD_PRELOAD": f"{HOOKS}:{LIBRARY}", "SHMALLOC_HEAP": "set above"}))

    def test_a_getenv_of_the_programs_own(self):
        """As in shells, whose variables are not there when the library looks for its own."""
        with tempfile.TemporaryDirectory() as folder:
            source, program = os.path.join(folder, "own.c"), os.path.join(folder, "own")
            with open(source, "w", encoding="utf-8") as out:
                out.write("#include <stdlib.h>\nchar *getenv(const char *n) { (void)n; abort(); }\n"
                          "int unsetenv(const char *n) { (void)n; abort(); }\n"
                          "extern char **environ; int main(void) { int n = 0; for (char **e = environ; *e; e++) n++; return n; }\n")
            subprocess.run(["cc", "-rdynamic", "-o", program, source], check=True, capture_output=True)
            heap = os.path.join(folder, "heap")
            variables = {"A": "1", "SHMALLOC_HEAP": heap, "LD_PRELOAD": LIBRARY, "SHMALLOC_STRICT": "1"}
            done = subprocess.run([program], env=variables, capture_output=True, text=True, timeout=60, check=False)
            self.assertEqual((done.returncode, done.stderr), (3, ""), "SHMALLOC_HEAP alone is gone")
            self.assertTrue(os.path.exists(heap))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
