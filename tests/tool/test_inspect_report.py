#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""report, top and selftest of shmalloc-inspect, its completion and its manual pages.

Usage: test_inspect_report.py SHMALLOC-INSPECT HEAP_MAKER SOURCE_DIR [unittest arguments]
"""

import fcntl
import html.parser
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import termios
import time
import unittest

import inspect_support as support
from inspect_support import CANNOT_TELL, DAMAGED, POISON, SOUND, run

VOID_TAGS = {"meta", "rect"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed in order; collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], set(), [], ""
        self.feed(text)
        self.close()
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


class ReportTest(support.InspectTest):
    def setUp(self):
        super().setUp()
        self.out = os.path.join(self.dir, "out.html")

    def churn(self):
        """A process that allocates and frees until the test ends."""
        process = subprocess.Popen([support.MAKER, self.heap, "create", "fill=1000", "churn"],
                                   stdout=subprocess.PIPE)
        def end():
            process.kill()
            process.wait()
            process.stdout.close()
        self.addCleanup(end)
        self.assertEqual(process.stdout.readline(), b"ready\n")
        return process

    def page(self):
        with open(self.out, encoding="utf-8") as file:
            return file.read()

    def keys_are_documented(self, command, answer):
        known = set(re.findall(r"[a-z_]+", run(command, "--help")[1].split("JSON keys")[1]))
        def look(value):
            for inner in value.values() if isinstance(value, dict) else value:
                if isinstance(inner, (dict, list)):
                    look(inner)
            if isinstance(value, dict):
                self.assertLessEqual(set(value), known)
        look(answer)


class Report(ReportTest):
    def test_without_standard_streams(self):
        self.make("create", "fill=30", "close")
        subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", support.INSPECT, "report", "-o", self.out, self.heap],
                       check=True, timeout=60)
        self.assertTrue(self.page().endswith("</html>\n"))
        Page(self.page())

    def test_page_is_whole_by_itself(self):
        self.make("create", "fill=3000", "roots=7", "close")
        status, out, err = run("report", "-o", self.out, self.heap)
        self.assertEqual((status, err), (SOUND, ""))
        self.assertIn("the heap is sound", out)
        page = Page(self.page())
        for word in ("sound", "Pages", "Size classes", "Type tags", "Fragmentation", "Free runs",
                     "No process has the heap open", "root 6", "maker version 7", "closed in order"):
            self.assertIn(word, page.text)
        self.assertLessEqual({"svg", "rect", "table", "style"}, page.tags)
        self.assertFalse({"script", "link", "img", "iframe"} & page.tags)
        self.assertFalse({"src", "href", "xlink:href"} & {name for name, _ in page.attributes})
        self.assertNotRegex(self.page(), r"https?:|url\(|@import")

    def test_numbers_are_those_of_info(self):
        self.make("create", "fill=3000", "close")
        info = json.loads(run("info", "--json", self.heap)[1])
        run("report", "-o", self.out, self.heap)
        text = self.page()
        self.assertIn("<b>%s</b><span>blocks" % format(info["memory"]["allocated_blocks"], ","), text)
        rows = re.findall(r"<tr><td>(?:\d+|large)</td><td class=\"wide\">\d*</td><td>([\d,]+)</td>", text)
        self.assertEqual(sum(int(n.replace(",", "")) for n in rows), info["memory"]["allocated_blocks"])

    def test_text_from_the_file_is_escaped(self):
        self.heap = os.path.join(self.dir, "<script>alert('1')</script>&\"".replace("/", "|"))
        self.make("create", "odd-names", "close")
        self.assertEqual(run("report", "-o", self.out, self.heap)[0], SOUND)
        page = Page(self.page())
        self.assertNotIn("script", page.tags)
        self.assertIn("<script>alert('1')<|script>&\"", page.text)
        self.assertIn("gr\u00fc\u00df", page.text)
        self.assertNotRegex(self.page(), r"[\x00-\x08\x0b-\x1f\x7f]")

    def test_damaged_heap(self):
        self.make("create", "fill=300", "close")
        with open(self.heap, "r+b") as file:
            file.seek(POISON)
            file.write(struct.pack("<Q", 20005))
        status, out, _ = run("report", "-o", self.out, self.heap)
        self.assertEqual(status, DAMAGED)
        self.assertIn("1 violation", out)
        text = Page(self.page()).text
        for word in ("damaged: 1 violation", "H2", "poisoned"):
            self.assertIn(word, text)

    def test_every_truncation_ends(self):
        self.make("create", "fill=300", "close")
        size = os.stat(self.heap).st_size
        while size > 1000:
            size = size * 2 // 3
            os.truncate(self.heap, size)
            self.assertIn(run("report", "-o", self.out, self.heap)[0], (DAMAGED, CANNOT_TELL))
            if os.path.exists(self.out):
                Page(self.page())

    def test_heap_in_use_and_dead_processes(self):
        process = self.churn()
        self.assertEqual(run("report", "-o", self.out, self.heap)[0], SOUND)
        text = Page(self.page()).text
        for word in ("moving picture", "heap_maker", "alive", "thread"):
            self.assertIn(word, text)
        process.kill()
        process.wait()
        self.assertEqual(run("report", "-o", self.out, self.heap)[0], SOUND)
        self.assertIn("Every process ended without closing it", Page(self.page()).text)

    def test_kept_blocks(self):
        with support.Held(self.heap, "create", "keep=3", "hold"):
            self.assertEqual(run("report", "-o", self.out, self.heap)[0], SOUND)
        text = Page(self.page()).text
        for word in ("keeps 3 large blocks, 312.0 KiB", "312.0 KiB in 3 large blocks that threads freed and keep",
                     "thread slots 32.0 KiB"):
            self.assertIn(word, text)
        self.assertRegex(self.page(), r"<dt>slabs</dt><dd>0 bytes, of which 0 bytes ")
        self.assertIn('<tr><td>large</td><td class="wide"></td><td>0</td><td class="wide">3</td>', self.page())
        self.assertIn('<rect class="cached"', self.page())
        self.assertNotIn('<rect class="large"', self.page())

    def test_output(self):
        self.make("create", "close")
        status, out, _ = run("report", "-o", "-", self.heap)
        self.assertEqual(status, SOUND)
        Page(out)
        status, out, _ = run("report", "--json", "--output", self.out, self.heap)
        answer = json.loads(out)
        self.assertEqual((status, answer["bytes"]), (SOUND, os.stat(self.out).st_size))
        self.keys_are_documented("report", answer)
        self.assertEqual(run("report", self.heap)[0], CANNOT_TELL)
        other = os.path.join(self.dir, "other.heap")
        shutil.copy(self.heap, other)
        for heap in (self.heap, other):
            status, _, err = run("report", "-o", heap, self.heap)
            self.assertEqual((status, "that is a shmalloc heap; name another file" in err), (CANNOT_TELL, True))
            self.assertEqual(run("check", heap)[0], SOUND)
        for path in ("/dev/full", os.path.join(self.dir, "missing", "out.html"), self.dir):
            status, _, err = run("report", "-o", path, self.heap)
            self.assertEqual((status, "cannot be written" in err), (CANNOT_TELL, True))
        self.assertEqual(run("report", "-o", self.out, self.dir)[0], CANNOT_TELL)


class Terminal:
    """The tool with a terminal of its own."""

    def __init__(self, *args, rows=24, columns=80):
        self.parent, self.child = pty.openpty()
        fcntl.ioctl(self.child, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(self.child)
        env = dict(os.environ, TERM="xterm")
        self.process = subprocess.Popen([support.INSPECT, *args], stdin=self.child, stdout=self.child,
                                        stderr=self.child, env=env)
        self.text = ""

    def wait_for(self, word):
        deadline = time.monotonic() + 20
        start = len(self.text)
        while word not in self.text[start:]:
            assert time.monotonic() < deadline, (word, self.text[start:])
            if select.select([self.parent], [], [], 0.1)[0]:
                self.text += os.read(self.parent, 65536).decode("utf-8", "replace")

    def end(self):
        """Exit status, when the terminal is as it was before."""
        status = self.process.wait(timeout=20)
        while select.select([self.parent], [], [], 0)[0]:
            self.text += os.read(self.parent, 65536).decode("utf-8", "replace")
        same = termios.tcgetattr(self.child) == self.before
        os.close(self.child)
        os.close(self.parent)
        assert same and self.text.rstrip().endswith("\033[?7h\033[?25h\033[?1049l"), self.text[-80:]
        return status


class Top(ReportTest):
    def test_plain(self):
        self.churn()
        status, out, err = run("top", "-d", "0.3", "-n", "3", self.heap)
        self.assertEqual((status, err), (SOUND, ""))
        self.assertNotIn("\033", out)
        blocks = out.strip().split("\n" + self.heap)
        self.assertEqual(len(blocks), 3)
        self.assertIn("spans      -/s taken", blocks[0])
        self.assertRegex(blocks[2], r"spans      [1-9][\d,]*/s taken, [1-9][\d,]*/s given")
        self.assertIn("heap_maker", blocks[2])
        self.assertRegex(blocks[2], r"used by 1 process, 2 threads")

    def test_figures_are_those_of_info(self):
        self.make("create", "fill=3000", "roots=3", "close")
        status, out, _ = run("top", "--json", "-d", "0.1", self.heap)
        answer, info = json.loads(out), json.loads(run("info", "--json", self.heap)[1])
        self.assertEqual(status, SOUND)
        for key in ("allocated", "cached", "central_free", "free"):
            self.assertEqual(answer["memory"][key], info["memory"][key], key)
        self.assertEqual(answer["size"]["heap"], info["size"]["heap"])
        self.assertEqual({rate for rate in answer["rates"].values()}, {0.0})
        self.keys_are_documented("top", answer)

    def test_who_allocates(self):
        self.churn()
        answer = json.loads(run("top", "--json", "-d", "0.5", self.heap)[1])
        self.assertEqual(len(answer["threads"]), 2)
        self.assertGreater(sum(thread["large_blocks"] for thread in answer["threads"]), 0)
        self.keys_are_documented("top", answer)

    def test_figures_of_the_dead(self):
        self.make("create", "fill=3000", "die", ends_by=-signal.SIGKILL)
        answer = json.loads(run("top", "--json", "-d", "0.1", self.heap)[1])
        info = json.loads(run("info", "--json", self.heap)[1])
        for key in ("allocated", "cached", "central_free", "free"):
            self.assertEqual(answer["memory"][key], info["memory"][key], key)
        self.assertEqual([thread["alive"] for thread in answer["threads"]], [False])
        self.keys_are_documented("top", answer)

    def test_kept_blocks(self):
        with support.Held(self.heap, "create", "fill=1000", "keep=3", "hold"):
            answer = json.loads(run("top", "--json", "-d", "0.1", self.heap)[1])
            info = json.loads(run("info", "--json", self.heap)[1])
        for key in ("allocated", "cached", "central_free", "free"):
            self.assertEqual(answer["memory"][key], info["memory"][key], key)
        [thread] = answer["threads"]
        self.assertGreaterEqual(thread["kept_blocks"], 3)
        self.assertGreaterEqual(thread["kept_bytes"], 3 * support.KEPT_BYTES)
        self.assertEqual(thread["cached_bytes"] + thread["kept_bytes"], info["memory"]["cached"])
        self.keys_are_documented("top", answer)

    def test_keys_and_signals_leave_the_terminal_as_it_was(self):
        self.churn()
        terminal = Terminal("top", "-d", "3600", self.heap)
        terminal.wait_for("heap_maker")
        os.write(terminal.parent, b" ")
        terminal.wait_for("heap_maker")
        os.write(terminal.parent, b"q")
        self.assertEqual(terminal.end(), SOUND)
        self.assertTrue(terminal.text.startswith("\033[?1049h"))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            terminal = Terminal("top", "-d", "3600", self.heap)
            terminal.wait_for("heap_maker")
            terminal.process.send_signal(number)
            self.assertEqual(terminal.end(), SOUND)
        terminal = Terminal("top", "-d", "3600", self.heap)
        terminal.wait_for("heap_maker")
        terminal.process.send_signal(signal.SIGABRT)
        self.assertEqual(terminal.end(), -signal.SIGABRT)

    def test_fits_the_window(self):
        self.churn()
        for rows, columns in ((24, 80), (10, 40), (60, 200)):
            terminal = Terminal("top", "-n", "1", self.heap, rows=rows, columns=columns)
            terminal.wait_for("\033[J")
            terminal.end()
            if rows >= 24:
                frame = terminal.text.split("\033[H")[1].split("\033[J")[0]
                self.assertLess(frame.count("\n"), rows)

    def test_removed_and_replaced(self):
        self.make("create", "fill=300", "close")
        terminal = Terminal("top", "-d", "0.1", self.heap)
        terminal.wait_for("not in use")
        os.unlink(self.heap)
        terminal.wait_for("It is looked for again")
        with open(self.heap, "w", encoding="ascii") as file:
            file.write("no heap\n")
        terminal.wait_for("not a shmalloc heap")
        os.unlink(self.heap)
        self.churn()
        terminal.wait_for("heap_maker")
        os.write(terminal.parent, b"q")
        self.assertEqual(terminal.end(), SOUND)

    def test_shrinking_under_it(self):
        self.make("create", "fill=3000", "close")
        terminal = Terminal("top", "-d", "0.1", self.heap)
        terminal.wait_for("not in use")
        os.truncate(self.heap, 70000)
        terminal.wait_for("cut short")
        os.write(terminal.parent, b"q")
        self.assertEqual(terminal.end(), DAMAGED)

    def test_bad_arguments(self):
        self.make("create", "close")
        for args in (("-d", "0"), ("-d", "x"), ("-d", "nan"), ("-d", "1e9"), ("-n", "0"),
                     ("-n", "-1"), ("-n", "many"), ("-n",)):
            status, out, err = run("top", self.heap, *args)
            self.assertEqual((status, out), (CANNOT_TELL, ""), args)
            self.assertTrue(err.startswith("shmalloc-inspect: "), args)
        self.assertEqual(run("top", self.dir)[0], CANNOT_TELL)
        self.assertEqual(run("top", "--json", self.dir)[0], CANNOT_TELL)


class SelfTest(ReportTest):
    def test_this_machine(self):
        status, out, err = run("selftest", self.dir)
        self.assertEqual((status, err), (SOUND, ""), out)
        for name in ("robust mutexes", "liveness", "wipe on fork", "reserve", "punch", "growth"):
            self.assertRegex(out, r"(?m)^ok +%s " % name)
        self.assertEqual(os.listdir(self.dir), [])
        self.assertLessEqual(max(map(len, out.splitlines()[1:])), 80)

    def test_json(self):
        status, out, _ = run("selftest", "--json", self.dir)
        answer = json.loads(out)
        self.assertEqual((status, answer["status"], answer["file"]), (SOUND, "sound", self.dir))
        self.assertEqual({c["result"] for c in answer["checks"] if c["needed"]}, {"ok"})
        self.assertEqual(answer["kernel"], os.uname().release)
        self.keys_are_documented("selftest", answer)

    def test_default_folder(self):
        status, out, _ = run("selftest", cwd=self.dir)
        self.assertEqual((status, out.split()[0]), (SOUND, "."))

    def test_folder_that_cannot_be_used(self):
        for path in (os.path.join(self.dir, "missing"), "/proc"):
            status, out, err = run("selftest", path)
            self.assertEqual((status, out), (CANNOT_TELL, ""))
            self.assertIn("no file can be made", err)
            status, out, err = run("selftest", "--json", path)
            self.assertEqual((status, json.loads(out)["status"], err), (CANNOT_TELL, "unknown", ""))


class Papers(ReportTest):
    def complete(self, *words):
        """What bash offers for the last of `words`."""
        script = os.path.join(support.SOURCE, "tools/inspect/shmalloc-inspect.bash-completion")
        text = ('compopt() { :; }; . "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
                '_shmalloc_inspect; printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "-c", text, "bash", script, support.INSPECT, *words],
                              capture_output=True, cwd=self.dir, timeout=60, check=True)
        self.assertEqual(done.stderr, b"")
        return done.stdout.decode().split("\n")[:-1]

    @unittest.skipIf(not shutil.which("bash"), "no bash")
    def test_completion(self):
        with open(os.path.join(self.dir, "my heap"), "wb"):
            pass
        self.assertLessEqual({"info", "check", "report", "top", "selftest"}, set(self.complete("")))
        self.assertEqual(self.complete("sel"), ["selftest"])
        self.assertEqual(self.complete("--v"), ["--version"])
        self.assertEqual(self.complete("info", "my"), ["my heap"])
        self.assertLessEqual({"--json", "--help", "-d", "-n", "--delay", "--count"},
                             set(self.complete("top", "-")))
        self.assertEqual(self.complete("report", "--o"), ["--output"])
        self.assertEqual(self.complete("top", "-n", ""), [""])

    def test_help_names_every_option(self):
        for command, words in (("report", ("-o PAGE", "--output")), ("selftest", ("[DIR]", "FAILED")),
                               ("top", ("--delay", "--count", "q quits"))):
            status, out, err = run(command, "--help")
            self.assertEqual((status, err), (0, ""))
            for word in words:
                self.assertIn(word, out)
            self.assertLessEqual(max(map(len, out.splitlines())), 90)

    def source(self, path):
        with open(os.path.join(support.SOURCE, path), encoding="utf-8") as file:
            return file.read()

    def calls(self, header):
        """Names of the functions that a public header declares."""
        declared = re.findall(r"SHMALLOC_API\s[^;(]*?\b(shmalloc_\w+)\(", header)
        self.assertEqual(len(declared), len(re.findall(r"^SHMALLOC_API\s", header, re.MULTILINE)))
        return declared

    def test_manual_names_every_call_and_code(self):
        header = self.source("include/shmalloc/shmalloc.h")
        words = set(re.findall(r"\w+", self.source("tools/man/shmalloc.3")))
        calls = self.calls(header)
        codes = re.findall(r"(SHMALLOC_E[A-Z]+) = -", header)
        self.assertGreater(len(calls), 30)
        self.assertEqual({*calls, *codes} - words, set())

    def test_manual_names_every_call_on_structures(self):
        words = set(re.findall(r"\w+", self.source("tools/man/shmalloc-structures.3")))
        for name in ("queue", "vector", "map"):
            calls = self.calls(self.source(f"include/shmalloc/{name}.h"))
            self.assertGreater(len(calls), 10)
            self.assertEqual(set(calls) - words, set())


if __name__ == "__main__":
    support.main("SOURCE")
