# SPDX-License-Identifier: MIT
"""What the tests of shmalloc-inspect share: running the tool, and heaps in every state to run it on."""

import json
import os
import pty
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import unittest

INSPECT = MAKER = None
SOUND, DAMAGED, CANNOT_TELL = 0, 1, 2

# Bytes of the file, from src/format/layout.h
ROOTS_AT = 224        # smf_header.areas.roots
THREADS_AT = 232      # smf_header.areas.threads
END_OF_AREAS_AT = 248  # smf_header.areas.end, where the page words of chunk 0 begin
POISON = 4096 + 40    # smf_state.poison
BUCKETS = 4384 - 512 * 8  # smf_roots.bucket
LINK = 64             # smf_thread.link
BINS = 192            # smf_thread.bins
SPANS = 960           # smf_thread.spans
SECTION = 1088        # smf_thread.section_epoch
OUSTED = 1096         # smf_thread.ousted
TX_STATE = 1152       # smf_thread.tx_state
TX_LOG = 1160         # smf_thread.tx_log
LOG_BYTES = 704       # smf_log, behind which the first entry begins
OPEN = 2**64 - 1      # SMF_OPEN
THREAD_BYTES = 4 * 8192  # SMF_THREAD_PAGES
KEPT_BYTES = 13 * 8192   # of a block of heap_maker's keep=N


def run(*args, **more):
    """The tool's exit status, standard output and standard error."""
    done = subprocess.run([INSPECT, *args], stdin=subprocess.DEVNULL, capture_output=True,
                          timeout=60, **more)
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


def is_dangling(answer):
    """Is nothing wrong in the heap but that roots name no block?"""
    roots = answer.get("roots") if answer["command"] == "roots" else None
    dangling = any(root["dangling"] for root in roots) if roots else answer.get("dangling")
    violations = [v for v in answer.get("violations", ()) if v["invariant"] != "U1"] if answer["command"] == "check" else \
        answer.get("violations")
    return bool(dangling and not violations and "error" not in answer)


def run_json(command, path, *options):
    status, out, err = run(command, "--json", *options, path)
    assert err == "", err
    answer = json.loads(out)
    assert answer["schema"] == 1 and answer["command"] == command and answer["file"] == path
    found = "damaged"
    if command == "leaks" and answer.get("leaked", {}).get("count"):
        found = "leaks"
    elif is_dangling(answer):
        found = "dangling"
    words = ("sound", found, "unknown")
    assert answer["status"] == words[status], answer
    return status, answer


def run_in_terminal(*args, env=None):
    """What the tool writes when its output is a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen([INSPECT, *args], stdin=subprocess.DEVNULL, stdout=child, stderr=child,
                               env=env)
    os.close(child)
    text = b""
    while True:
        try:
            part = os.read(parent, 4096)
        except OSError:  # the terminal's other end is closed
            break
        if not part:
            break
        text += part
    os.close(parent)
    process.wait(timeout=60)
    return text.decode("utf-8")


def terminal_env(**more):
    env = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    env["TERM"] = "xterm"
    env.update(more)
    return env


def fnv(data):
    value = 0xcbf29ce484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return value


class Held:
    """A heap_maker that has said "ready" and waits until this block ends."""

    def __init__(self, path, *steps):
        self.args = [MAKER, path, *steps]

    def __enter__(self):
        self.process = subprocess.Popen(self.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.words = self.process.stdout.readline().decode().split()
        assert self.words and self.words[0] == "ready", self.words
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        if self.process.poll() is None and ("churn" in self.args or "weave" in self.args):
            self.process.kill()
        self.status = self.process.wait(timeout=60)
        self.process.stdout.close()

    def stop(self):
        """It has stopped when this returns: a signal sent is not a process stopped."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)


class InspectTest(unittest.TestCase):
    def setUp(self):
        base = os.environ.get("SHMALLOC_TEST_DIR")
        if not base and os.access("/dev/shm", os.W_OK):
            base = "/dev/shm"
        self.dir = tempfile.mkdtemp(prefix="shmalloc-inspect-", dir=base)
        self.addCleanup(shutil.rmtree, self.dir)
        self.heap = os.path.join(self.dir, "heap")

    def make(self, *steps, heap=None, ends_by=0):
        done = subprocess.run([MAKER, heap or self.heap, *steps], stdin=subprocess.DEVNULL,
                              timeout=60)
        self.assertEqual(done.returncode, ends_by)

    def write(self, data):
        with open(self.heap, "wb") as file:
            file.write(data)

    def patch(self, at, data):
        with open(self.heap, "r+b") as file:
            file.seek(at)
            file.write(data)

    def word(self, at):
        with open(self.heap, "rb") as file:
            file.seek(at)
            return struct.unpack("<Q", file.read(8))[0]


def main(*more):
    """Run the tests of the calling script; returns nothing. `more` names attributes for further arguments."""
    arguments = list(map(os.path.abspath, sys.argv[1:3 + len(more)]))
    for name, value in zip(("INSPECT", "MAKER", *more), arguments):
        globals()[name] = value
    unittest.main("__main__", argv=sys.argv[:1] + sys.argv[3 + len(more):])
