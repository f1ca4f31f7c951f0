#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""test_run.py SHMALLOC-RUN BATTERY OWN_HEAP ENDS LATE INSPECT - options, exit statuses, messages, and heaps in files.

INSPECT may be "": then nothing looks into the heap files.
"""
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

RUN, BATTERY, OWN_HEAP, ENDS, LATE, INSPECT = [os.path.realpath(name) if name else "" for name in sys.argv[1:7]]


class Run(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.addCleanup(shutil.rmtree, self.folder)
        self.heap = os.path.join(self.folder, "program.heap")

    def run_it(self, *words, **more):
        environment = {**os.environ, "LC_ALL": "C", **more.pop("env", {})}
        return subprocess.run([RUN, *words], capture_output=True, text=True, timeout=120, cwd=self.folder,
                              env=environment, check=False, **more)

    def script(self, text, mode=0o755, name="script"):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as out:
            out.write(text)
        os.chmod(path, mode)
        return path

    # ---- statuses and messages ----

    def test_the_status_is_the_programs(self):
        for status in (0, 1, 3, 125):
            self.assertEqual(self.run_it("sh", "-c", f"exit {status}").returncode, status)
        self.assertEqual(self.run_it("sh", "-c", "kill -TERM $$").returncode, -15)

    def test_the_process_is_the_program(self):
        process = subprocess.Popen([RUN, "sh", "-c", "echo $$"], stdout=subprocess.PIPE, text=True)
        self.assertEqual(process.communicate(timeout=60)[0], f"{process.pid}\n")

    def test_what_cannot_be_run(self):
        done = self.run_it("no-such-program")
        self.assertEqual((done.returncode, done.stderr),
                         (127, "shmalloc-run: no-such-program: No such file or directory\n"))
        done = self.run_it(self.script("#!/bin/sh\n", 0o644))
        self.assertEqual(done.returncode, 126)
        self.assertIn("Permission denied", done.stderr)

    def test_usage(self):
        self.assertEqual(self.run_it().returncode, 125)
        self.assertIn("which program?", self.run_it().stderr)
        done = self.run_it("--no-such-option", "true")
        self.assertEqual(done.returncode, 125)
        self.assertIn("--help", done.stderr)
        self.assertEqual(self.run_it("--heap", self.heap, "--huge-pages", "true").returncode, 125)

    def test_help_and_version(self):
        done = self.run_it("--help")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        for word in ("--heap FILE", "--huge-pages", "--stats", "--strict", "SHMALLOC_HEAP", "126", "Examples"):
            self.assertIn(word, done.stdout)
        self.assertLessEqual(max(map(len, done.stdout.splitlines())), 85)
        self.assertRegex(self.run_it("--version").stdout, r"^shmalloc-run \d+\.\d+\.\d+\n$")

    def test_options_after_the_program_are_the_programs(self):
        self.assertEqual(self.run_it("echo", "--stats", "--help").stdout, "--stats --help\n")

    def test_only_the_heap_of_an_earlier_run_is_replaced(self):
        self.assertEqual(self.run_it("--heap", self.heap, "true").returncode, 0)
        self.assertEqual(self.run_it("--heap", self.heap, "true").returncode, 0)
        done = self.run_it("true", env={"SHMALLOC_HEAP": self.heap})
        self.assertEqual(done.returncode, 125)
        self.assertIn("remove it, or name it to shmalloc-run --heap", done.stderr)
        other = os.path.join(self.folder, "other.heap")
        subprocess.run([OWN_HEAP, other], check=True)
        with open(other, "rb") as file:
            before = file.read()
        done = self.run_it("--heap", other, "true")
        self.assertEqual(done.returncode, 125)
        self.assertIn("give another name", done.stderr)
        with open(other, "rb") as file:
            self.assertEqual(file.read(), before)

    def test_the_earlier_heap_stays_when_nothing_will_run(self):
        self.assertEqual(self.run_it("--heap", self.heap, "sort", "/dev/null").returncode, 0)
        with open(self.heap, "rb") as file:
            before = file.read()
        folder = os.path.join(self.folder, "folder")
        os.mkdir(folder)
        no_interpreter = self.script("#!/no/such/interpreter\n", name="no_interpreter")
        source, program = self.script("int main(void) { return 0; }\n"), os.path.join(self.folder, "no_linker")
        subprocess.run(["cc", "-x", "c", "-Wl,--dynamic-linker=/no/such/linker", "-o", program, source], check=True,
                       capture_output=True)
        for name, status, why in (
                ("sotr", 127, "No such file or directory"), ("./sotr", 127, "No such file or directory"),
                ("", 127, "No such file or directory"), (no_interpreter, 127, "No such file or directory"),
                (program, 127, "No such file or directory"), (folder, 126, "Permission denied"),
                (self.script("#!/bin/sh\n", 0o644), 126, "Permission denied")):
            done = self.run_it("--heap", self.heap, name, "/dev/null")
            self.assertEqual((done.returncode, done.stderr), (status, f"shmalloc-run: {name}: {why}\n"))
            with open(self.heap, "rb") as file:
                self.assertEqual(file.read(), before, name)

    def test_programs_are_found_as_execvp_finds_them(self):
        first, second = os.path.join(self.folder, "first"), os.path.join(self.folder, "second")
        for folder, mode, status in ((first, 0o644, 3), (second, 0o755, 4)):
            os.mkdir(folder)
            self.script(f"#!/bin/sh\nexit {status}\n", mode, os.path.join(folder, "tool"))
        path = os.environ["PATH"]
        self.assertEqual(self.run_it("tool", env={"PATH": f"{first}:{second}:{path}"}).returncode, 4)
        self.assertEqual(self.run_it("tool", env={"PATH": f"{first}:{path}"}).returncode, 126)
        self.script("exit 5\n", name="no_first_line")
        self.assertEqual(self.run_it("--heap", self.heap, "no_first_line", env={"PATH": f":{path}"}).returncode, 5)

    def test_a_script_that_runs_another_program_is_warned_about(self):
        script = self.script("#!/usr/bin/env sh\nexit 3\n")
        done = self.run_it("--heap", self.heap, script)
        self.assertEqual(done.returncode, 3)
        self.assertIn("is a script", done.stderr)
        self.assertEqual(self.run_it(script).stderr, "")

    def test_an_earlier_preload_stays(self):
        done = self.run_it("sh", "-c", "echo $LD_PRELOAD", env={"LD_PRELOAD": "libm.so.6"})
        self.assertRegex(done.stdout, r"libshmalloc-preload\.so:libm\.so\.6\n$")

    # ---- what cannot be served ----

    def test_a_setuid_program_is_warned_about(self):
        other = os.path.join(self.folder, "echo")
        shutil.copy(shutil.which("echo"), other)
        os.chmod(other, 0o755 | (stat.S_ISGID if os.geteuid() else stat.S_ISUID))
        if os.geteuid() == 0:
            os.chown(other, 65534, 65534)
            os.chmod(other, 0o4755)
            done = self.run_it(other, "hello")
            self.assertEqual(done.stdout, "hello\n")
            self.assertIn("set-user-ID", done.stderr)
        self.assertEqual(self.run_it(shutil.which("echo")).stderr, "")

    def test_a_static_program_is_warned_about(self):
        source, program = self.script("int main(void) { return 4; }\n"), os.path.join(self.folder, "static")
        subprocess.run(["cc", "-x", "c", "-static", "-o", program, source], check=True, capture_output=True)
        for command in ([program], [self.script(f"#!{program}\n")]):
            done = self.run_it(*command)
            self.assertEqual(done.returncode, 4)
            self.assertIn("is linked statically", done.stderr)
        self.assertEqual(self.run_it("--heap", self.heap, "true").returncode, 0)
        done = self.run_it("--heap", self.heap, program)
        self.assertEqual(done.returncode, 4)
        self.assertIn("is left as it is, for the program would not use it", done.stderr)
        self.assertTrue(os.path.exists(self.heap))

    def test_a_program_with_a_sanitizer_is_warned_about(self):
        """The program is no such one; it names what their libraries begin with, as those do."""
        for name, known in (("__asan_init", "AddressSanitizer"), ("__tsan_init", "ThreadSanitizer"),
                            ("__msan_init", "MemorySanitizer"), ("__hwasan_init", "HWAddressSanitizer"),
                            ("__lsan_init", "LeakSanitizer"), ("__ubsan_init", None)):
            source = self.script(f"void {name}(void) {{ }}\nint main(void) {{ {name}(); return 4; }}\n")
            program = os.path.join(self.folder, "sanitized")
            subprocess.run(["cc", "-x", "c", "-rdynamic", "-o", program, source], check=True, capture_output=True)
            done = self.run_it(program)
            self.assertEqual(done.returncode, 4)
            if known:
                self.assertIn(f"{program} is built with {known}: that has a malloc of its own", done.stderr)
            else:
                self.assertEqual(done.stderr, "")
        done = subprocess.run(["cc", "-x", "c", "-fsanitize=address", "-o", program, source], check=False,
                              capture_output=True)
        if done.returncode == 0:  # the compiler has it: what becomes of such a program is its library's affair
            self.assertIn("is built with AddressSanitizer", self.run_it(program).stderr)

    # ---- options ----

    def test_statistics(self):
        done = self.run_it("--stats", BATTERY, "sizes")
        self.assertEqual(done.returncode, 0)
        self.assertRegex(done.stderr, r"^shmalloc: battery\[\d+\]: \d+ bytes in \d+ blocks allocated, .* KiB resident\n$")
        # GNU programs close their stderr before they end
        self.assertRegex(self.run_it("--stats", "ls", "/").stderr, r"^shmalloc: ls\[")
        self.assertEqual(self.run_it(BATTERY, "sizes").stderr, "")
        # others open a file on the number of the descriptor that was kept for that
        log = os.path.join(self.folder, "log")
        take = ("import os, sys; fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)\n"
                "for number in range(200, 210): os.dup2(fd, number)")
        self.assertEqual(self.run_it("--stats", sys.executable, "-c", take, log).stderr, "")
        self.assertEqual(os.path.getsize(log), 0)

    def test_strict(self):
        self.assertEqual(self.run_it(BATTERY, "foreign").returncode, 0)
        done = self.run_it("--strict", BATTERY, "foreign")
        self.assertEqual(done.returncode, -6)
        self.assertIn("not the first byte of a block", done.stderr)
        self.assertEqual(self.run_it("--strict", BATTERY, "sizes", "resized").returncode, 0)

    def test_huge_pages(self):
        done = self.run_it("--huge-pages", BATTERY, "sizes", "zeroed", "forks")
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_limit_on_addresses(self):
        for limit, parts in ((200000, "zeroed too_much short_threads"), (4000000, "sizes too_much zeroed")):
            done = subprocess.run(["bash", "-c", f"ulimit -v {limit}; exec {RUN} {BATTERY} {parts}"],
                                  capture_output=True, text=True, timeout=120, check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""))

    # ---- heaps in files ----

    def inspect(self, *words):
        if not INSPECT:
            return None
        return subprocess.run([INSPECT, *words, self.heap], capture_output=True, text=True, timeout=60, check=False)

    def assert_sound(self):
        done = self.inspect("check")
        if done:
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_heap_in_a_file(self):
        done = self.run_it("--heap", self.heap, BATTERY, "sizes", "zero_size", "too_much", "zeroed", "resized",
                           "errno_kept", "short_threads", "destructors", "loads_libraries", "constructor_block",
                           "signals")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assert_sound()
        self.assertEqual(self.run_it("--heap", "program.heap", BATTERY, "sizes").returncode, 0)
        self.assert_sound()

    def test_it_can_be_looked_at_meanwhile(self):
        process = subprocess.Popen([RUN, "--heap", self.heap, "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b"x")
        process.stdin.flush()
        self.assertEqual(process.stdout.read(1), b"x")
        self.assert_sound()
        done = self.inspect("info")
        if done:
            self.assertIn("in use", done.stdout)
        self.assertEqual(self.run_it("--heap", self.heap, "true").returncode, 125, "it is in use")
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 0)

    # how a program ends: the state of its heap. There is no end of the process to be seen in some, and others would leave
    # a thread's changes half done.
    ENDS = {"return": "clean", "exit": "clean", "handlers": "clean", "joined": "clean", "child": "clean",
            "thread": "died", "_exit": "died", "quick_exit": "died"}

    def test_how_programs_end(self):
        for way, state in self.ENDS.items():
            for late in ({}, {"LD_PRELOAD": LATE}) if way != "child" else ({},):  # LATE allocates in the child
                with self.subTest(way=way, late=bool(late)):
                    done = self.run_it("--heap", self.heap, ENDS, way, env=late)
                    self.assertEqual((done.returncode, done.stderr), (4, ""))
                    goes_on = late and way not in ("_exit", "quick_exit")
                    self.assertEqual(done.stdout, "late\n" if goes_on else "")
                    found = self.inspect("info", "--json")
                    if found:
                        self.assertEqual(json.loads(found.stdout)["state"], state)
                    self.assert_sound()

    def test_a_heap_in_a_file_and_its_statistics(self):
        done = self.run_it("--stats", "--heap", self.heap, ENDS, "exit")
        self.assertRegex(done.stderr, r"^shmalloc: ends\[\d+\]: \d+ bytes in [1-9]\d* blocks allocated, ")

    def test_children_that_execute(self):
        done = self.run_it("--heap", self.heap, BATTERY, "executes")
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_child_that_goes_on_is_stopped(self):
        done = self.run_it("--heap", self.heap, BATTERY, "forks")
        self.assertEqual(done.returncode, 1)
        self.assertIn("a forked child went on to allocate", done.stderr)
        self.assert_sound()

    def test_other_files_are_left_alone(self):
        with open(self.heap, "w", encoding="utf-8") as out:
            out.write("a letter to somebody")
        done = self.run_it("--heap", self.heap, "true")
        self.assertEqual(done.returncode, 125)
        self.assertIn("not a shmalloc heap", done.stderr)
        with open(self.heap, encoding="utf-8") as letter:
            self.assertEqual(letter.read(), "a letter to somebody")
        done = self.run_it("--heap", os.path.join(self.folder, "no/such/folder"), "true")
        self.assertEqual(done.returncode, 125)
        self.assertIn("No such file", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
