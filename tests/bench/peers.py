# SPDX-License-Identifier: MIT
"""The allocators that are compared, and how a benchmark program is run for one of them."""
import collections
import json
import os
import shutil
import signal
import subprocess
import tempfile

# name: in the tables; adapter: of the programs; preload: shared objects, the first that loads is taken;
# heap: it lives in a file; processes: several can have that open; missing: what to install
Allocator = collections.namedtuple("Allocator", "name adapter preload heap processes missing")

OURS = [
    Allocator("shmalloc", "shmalloc", [], True, True, ""),
    Allocator("shmalloc linked", "shmalloc_link", [], True, True, ""),
]
MALLOCS = [
    Allocator("glibc", "malloc", [], False, True, ""),
    Allocator("jemalloc", "malloc", ["libjemalloc.so.2"], False, True, "libjemalloc2"),
    Allocator("mimalloc", "malloc", ["libmimalloc.so.2", "libmimalloc.so.2.0"], False, True, "libmimalloc2.0"),
    Allocator("tcmalloc", "malloc", ["libtcmalloc_minimal.so.4"], False, True, "libtcmalloc-minimal4"),
]
HEAPS = [
    Allocator("Boost", "boost", [], True, True, "libboost-dev and a C++ compiler"),
    Allocator("PMDK", "pmdk", [], True, False, "libpmemobj-dev"),
    Allocator("LMDB", "lmdb", [], True, True, "liblmdb-dev"),
    Allocator("Ralloc", "ralloc", [], True, False, "Ralloc, built with SHM_SIMULATING, in CPATH and LIBRARY_PATH"),
    Allocator("Metall", "metall", [], True, False, "Metall's headers in CPATH, and Boost's"),
]
ALL = OURS + MALLOCS + HEAPS

# PMDK shall neither sync nor flush caches: like the others it then keeps its promise for kills only.
ENVIRONMENT = {"PMEM_IS_PMEM_FORCE": "1", "PMEM_NO_FLUSH": "1"}


def run_group(command, environment, timeout):
    """Status (None: out of time), output and errors; no process that it started is left when it fails."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, *process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return process.returncode, out, err


class Runner:
    """Where the programs are, where heaps go, and all records so far."""

    def __init__(self, programs, heap_dir):
        self.programs = programs
        self.heap_dir = heap_dir
        self.records = []
        self.libraries = {}
        self.missing = {}  # name of an allocator: why it is left out
        self.failed = []  # programs that ended in an error, or not at all
        self.unloadable = set()

    def offers(self, allocator, program):
        """Is the program compiled for the allocator? Notes what is missing altogether."""
        def there(name):
            return os.path.exists(os.path.join(self.programs, f"{name}_{allocator.adapter}"))
        if not there("allocate"):
            self.missing[allocator.name] = f"needs {allocator.missing}"
        return there(program) and allocator.name not in self.missing

    def execute(self, allocator, program, arguments, folder, preload, timeout):
        """The records of one run; the heap file lives in a new folder under `folder`."""
        command = [os.path.join(self.programs, f"{program}_{allocator.adapter}"), "--allocator",
                   allocator.name] + arguments
        environment = dict(os.environ, **ENVIRONMENT)
        environment.pop("LD_PRELOAD", None)
        if preload:
            environment["LD_PRELOAD"] = preload
        heap_folder = tempfile.mkdtemp(prefix="shmalloc-bench-", dir=folder) if allocator.heap else None
        try:
            if heap_folder:
                command += ["--heap", os.path.join(heap_folder, "heap")]
            status, out, err = run_group(command, environment, timeout)
        finally:
            if heap_folder:
                shutil.rmtree(heap_folder)
        if status != 0:
            self.failed.append(f"{' '.join(command)}: "
                               + (f"not done in {timeout} s" if status is None else f"status {status}: {err.strip()}"))
            return []
        return [json.loads(line) for line in out.splitlines()]

    def run(self, allocator, program, arguments, folder=None, timeout=300):
        """Run a program; [] if the allocator is not there, cannot do it, or failed."""
        if not self.offers(allocator, program):
            return []
        for preload in allocator.preload or [None]:
            if preload in self.unloadable:
                continue
            records = self.execute(allocator, program, arguments, folder or self.heap_dir, preload, timeout)
            if not records:
                return []
            library = records[0]["library"]
            if not preload or os.path.basename(library).startswith(preload):
                self.libraries[allocator.name] = os.path.realpath(library)
                self.records += records
                return records
            self.unloadable.add(preload)
        self.missing[allocator.name] = f"needs {allocator.missing}"
        return []
