"""The pool of rings under faults of the shim, without workers, and in C under ThreadSanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from fault_tools import on_faulty

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def test_f22_f23_f28_f38_whatever_the_kernel_refuses_for_a_while_a_list_is_whole() -> None:
    done = on_faulty(str(HERE / "pool_faults.py"))
    assert done.returncode == 0, done.stderr[-3000:]
    tried, raised = map(int, done.stdout.split())
    assert tried == 300
    assert 10 < raised < tried / 2  # the faults do hit


def test_f40_where_no_worker_can_be_made_the_thread_reads_by_itself() -> None:
    """A file in memory is read by a worker of the kernel's, which RLIMIT_NPROC forbids."""
    program = """
        import os, resource
        from trio_uring import RingPool
        fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
        os.write(fd, bytes(range(256)) * 40)
        pool = RingPool(1)
        if os.getuid() == 0:
            os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        with pool, pool.acquire() as ring:
            assert ring.read_many(fd, [(i * 100, 100) for i in range(100)]) == [
                bytes((i * 100 + j) % 256 for j in range(100)) for i in range(100)
            ]
            assert ring.write_many(fd, [(5, b"hello")]) == [5]
        print(os.pread(fd, 5, 5))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("b'hello'\n", "")


def test_threads_that_share_rings_race_nowhere(tmp_path: Path) -> None:
    """pool_stress.c: the shim's half of the pool, without an interpreter and its lock, under ThreadSanitizer."""
    program = tmp_path / "stress"
    flags = ["-std=gnu11", "-O1", "-g", "-fsanitize=thread", "-Wno-unused-function", f"-I{ROOT / 'ffi'}"]
    # Not with the other sanitizers, under which the tests themselves may run.
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"} | {"TSAN_OPTIONS": "halt_on_error=1"}
    command = ["gcc", *flags, str(HERE / "pool_stress.c"), "-o", str(program), "-luring", "-lpthread"]
    subprocess.run(command, check=True, env=environment)
    file = tmp_path / "file"
    file.write_bytes(b"".join(number.to_bytes(8, "little") * 64 for number in range(512)))
    done = subprocess.run(
        # Without a random layout of addresses, which newer kernels make too random for the sanitizer.
        ["setarch", "-R", str(program), str(file), "16", "3", "300"],
        capture_output=True, text=True, timeout=200, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-5000:]
    lists, refused = map(int, done.stdout.split())
    assert lists == 16 * 300
    assert refused > 0  # calls with a turn that was over, or into another thread's, and none got through
