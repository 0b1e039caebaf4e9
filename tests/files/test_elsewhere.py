"""File systems that have to ask somebody: the loop's thread never waits for that (F53), nor for an overlay that copies (F54).

The somebody is a FUSE daemon that answers when a task of the same run says so. Whoever waited for it in the loop's thread would
wait for ever. NFS asks its server at the same places of the kernel.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from trio_uring._files import opening
from trio_uring._ring.ring import ffi, lib

HERE = Path(__file__).parent
PATIENCE = 60  # seconds, after which a program is taken to hang

# In a namespace of its own: `top` is an empty folder, and `main` a function of a task that may use a FUSE file system at `top`.
PROGRAM = """
import errno, os, sys
sys.path.insert(0, {here!r})
import mounts, pathlib, socket, trio, trio.testing, trio_uring
from trio_uring import UringBackend

backend = {{"sq2cq4": UringBackend(sq_entries=2, cq_entries=4)}}.get(sys.argv[1], sys.argv[1])
top = pathlib.Path(sys.argv[2])
mounts.private_mounts()
CONTENT = mounts.CONTENT
asked = []
held = None  # an operation that is to be answered when `answer` is set
answer = trio.Event()

async def lets_answer(control):
    while request := await control.recv(1):
        asked.append(request[0])
        if request[0] == held:
            await answer.wait()
        await control.send(b"g")

async def whole(main, control):
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lets_answer, trio.socket.from_stdlib_socket(control))
        await main()
        nursery.cancel_scope.cancel()

{body}

with mounts.fuse(top, {known}) as control:
    with control.dup() as ours:
        ours.setblocking(False)
        trio.run(whole, main, ours, io_backend=backend)
os._exit(0)  # a thread may have a file open of which nobody tells any more
"""


def printed(*arguments: str) -> str:
    """What a Python program prints, which has to succeed. With its daemon it makes up a group, and hangs as one."""
    command = [sys.executable, *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as program:
        try:
            out, err = program.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    assert program.returncode == 0, out + err
    return out


def on_fuse(backend: str, top: Path, body: str, known: bool = True) -> str:
    """Run a program on a FUSE file system whose names the kernel may keep, or not; what it prints."""
    program = PROGRAM.format(here=str(HERE), body=textwrap.dedent(body), known=known)
    return printed("-u", "-c", program, backend, str(top))


@pytest.fixture(params=["uring", "sq2cq4", "epoll"])
def named(request: pytest.FixtureRequest) -> str:
    """A backend, as a program takes it."""
    return str(request.param)


CALLS: dict[str, str] = {
    "open_file": """
        async with await trio.open_file(top / "file", "rb") as file:
            assert await file.read(5) == CONTENT[:5]
            assert await file.seek(-3, os.SEEK_END) == len(CONTENT) - 3
            assert await file.read() == CONTENT[-3:]
            await file.seek(0)
            assert b"".join([line async for line in file]) == CONTENT
        """,
    "text": """
        async with await trio.open_file(top / "file", encoding="latin-1", newline="") as file:
            assert await file.read() == CONTENT.decode("latin-1")
        """,
    "for update": """
        async with await trio.open_file(top / "file", "r+b") as file:
            await file.write(b"new")
            await file.flush()
            assert await file.truncate(2) == 2
        assert (await trio.Path(top / "file").read_bytes()) == b"ne"
        """,
    "made": """
        async with await trio.open_file(top / "made", "w") as file:
            await file.write("text")
        async with await trio.open_file(top / "made", "a") as file:
            await file.write("more")
        assert await trio.Path(top / "made").read_text() == "textmore"
        """,
    "wrapped": """
        real = await trio.to_thread.run_sync(open, top / "file", "ab")
        async with trio.wrap_file(real) as file:
            await file.write(b"end")
            await file.flush()
        """,
    "paths": """
        path = trio.Path(top)
        assert (await (path / "file").stat()).st_size == len(CONTENT)
        assert await (path / "file").exists() and not await (path / "none").exists()
        await (path / "made").write_bytes(b"x" * 5000)
        assert await (path / "made").read_bytes() == b"x" * 5000
        await (path / "touched").touch()
        await (path / "folder").mkdir()
        assert await (path / "folder").is_dir()
        await (path / "folder").rmdir()
        await (path / "made").unlink()
        assert not await (path / "made").exists()
        """,
    "positional": """
        fd = await trio.to_thread.run_sync(os.open, top / "file", os.O_RDWR)
        assert await trio_uring.read_at(fd, 10, 5) == CONTENT[5:15]
        assert await trio_uring.read_at(fd, 10, 5) == CONTENT[5:15]  # cached
        buffer = bytearray(7)
        assert await trio_uring.readinto_at(fd, buffer, 1) == 7 and buffer == CONTENT[1:8]
        assert await trio_uring.read_many(fd, [(0, 3), (9000, 4)]) == [CONTENT[:3], CONTENT[9000:9004]]
        assert await trio_uring.readinto_many(fd, [(2, buffer)]) == [7]
        assert await trio_uring.write_at(fd, b"abc", 0) == 3
        assert await trio_uring.writev_at(fd, [b"d", b"ef"], 3) == 3
        await trio_uring.fsync(fd)
        assert (await trio_uring.statx(fd)).size == len(CONTENT)
        assert await trio_uring.read_at(fd, 7, 0) == b"abcdef" + CONTENT[6:7]
        await trio.to_thread.run_sync(os.close, fd)
        """,
    "direct": """
        fd = await trio.to_thread.run_sync(os.open, top / "file", os.O_RDONLY | os.O_DIRECT)
        assert await trio_uring.read_at(fd, 4096, 4096) == CONTENT[4096:8192]
        assert await trio_uring.read_many(fd, [(0, 512)]) == [CONTENT[:512]]
        await trio.to_thread.run_sync(os.close, fd)
        """,
    "copies": """
        fd = await trio.to_thread.run_sync(os.open, top / "file", os.O_RDONLY)
        reader, writer = os.pipe()
        assert await trio_uring.splice(fd, writer, 100, offset_source=0) == 100
        a, b = socket.socketpair()
        a.setblocking(False)
        assert await trio_uring.sendfile(trio.socket.from_stdlib_socket(a), fd, 0, 100) == 100
        assert b.recv(1000) == CONTENT[:100] == os.read(reader, 1000)
        target = await trio.to_thread.run_sync(os.open, top / "copy", os.O_RDWR | os.O_CREAT)
        assert await trio_uring.copy_file(fd, target) == len(CONTENT)
        assert await trio_uring.read_at(target, len(CONTENT), 0) == CONTENT
        for each in (fd, target):
            await trio.to_thread.run_sync(os.close, each)
        a.close()
        """,
    "anyio": """
        import anyio
        async with await anyio.open_file(top / "file", "rb") as file:
            assert await file.read() == CONTENT
        assert await anyio.Path(top / "file").read_bytes() == CONTENT
        """,
}


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_f53_whoever_is_asked_is_never_waited_for_in_the_loop(known: bool, named: str, tmp_path: Path) -> None:
    """Where the kernel knows the name, it asks as late as in the submission; where not, before that."""
    body = ["async def main():"]
    for name, call in CALLS.items():
        body.append("    await trio.to_thread.run_sync((top / 'file').write_bytes, CONTENT)")
        body.append("    del asked[:]")
        body += [f"    {line}" for line in textwrap.dedent(call).splitlines()]
        body.append(f"    print({name!r}, bool(asked))")
    told = on_fuse(named, tmp_path, "\n".join(body), known)
    assert told.splitlines() == [f"{name} True" for name in CALLS]


def test_f53_a_descriptor_that_nobody_takes_is_not_closed_in_the_loop(tmp_path: Path) -> None:
    """F9: the close asks the daemon (FLUSH), and may not be waited for."""
    told = on_fuse(
        "uring",
        tmp_path,
        """
        from trio_uring._loop.operation import close_descriptor

        async def main():
            global held
            fd = await trio.to_thread.run_sync(os.open, top / "file", os.O_RDONLY)
            held = mounts.FLUSH
            close_descriptor(fd)
            while mounts.FLUSH not in asked:
                await trio.sleep(0.001)
            answer.set()
            print("goes on")
        """,
    )
    assert told == "goes on\n"


@pytest.mark.parametrize("backend", ["uring", "sq2cq4"])
def test_f41_a_local_file_finds_a_worker_while_thirty_wait_for_a_daemon(backend: str, tmp_path: Path) -> None:
    """As many workers as Trio has threads, whatever the size of the queue; the kernel by itself has four for each processor."""
    for name in ("elsewhere", "here"):
        (tmp_path / name).mkdir()
    told = on_fuse(
        backend,
        tmp_path / "elsewhere",
        f"""
        async def main():
            global held
            await trio.to_thread.run_sync(os.stat, top / "file")
            held = mounts.GETATTR
            async with trio.open_nursery() as nursery:
                for _ in range(30):
                    nursery.start_soon(trio.Path(top / "file").stat)
                await trio.testing.wait_all_tasks_blocked()
                while mounts.GETATTR not in asked[-1:]:
                    await trio.sleep(0.001)
                await trio.Path({str(tmp_path / "here" / "folder")!r}).mkdir()
                answer.set()
            print("goes on")
        """,
    )
    assert told == "goes on\n"


# ------------------------------------------------------------------ where a file is


def where(body: str, top: Path) -> Any:
    """What an expression answers in a namespace of its own, in which `lib`, `mounts` and `top` are there."""
    program = f"""
import sys, os, pathlib
sys.path.insert(0, {str(HERE)!r})
import mounts
from trio_uring._ring.ring import ffi, lib
top = pathlib.Path({str(top)!r})
mounts.private_mounts()
def of_path(path):
    os.stat(path)  # known to the kernel
    return max(lib.tu_where(-1, os.fsencode(path)), 0) & 7
def of_fd(path, flags=os.O_RDONLY):
    fd = os.open(path, flags)
    try:
        return lib.tu_where(fd, ffi.NULL) & 7
    finally:
        os.close(fd)
{textwrap.dedent(body)}
"""
    return printed("-c", program).split()


def test_where_files_are(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    for path, kind in ((tmp_path / "file", 0o100000), (tmp_path, 0o040000), (tmp_path / "fifo", 0o010000)):
        os.stat(path)
        assert lib.tu_where(-1, os.fsencode(path)) == kind | lib.TU_LOCAL
    memory = os.memfd_create("memory")
    reader, writer = os.pipe()
    try:
        assert lib.tu_where(memory, ffi.NULL) == 0o100000 | lib.TU_LOCAL | lib.TU_MEMORY
        assert lib.tu_where(reader, ffi.NULL) & 0o170000 == 0o010000
        assert lib.tu_where(os.open("/proc/version", os.O_RDONLY), ffi.NULL) == 0o100000
    finally:
        for fd in (memory, reader, writer):
            os.close(fd)
    assert lib.tu_where(10**6, ffi.NULL) < 0
    assert opening.where_is(str(tmp_path / "none")) in (-11, -2)
    with pytest.raises(ValueError, match="null byte"):
        opening.where_is("a\0b")


def test_where_mounts_are(tmp_path: Path) -> None:
    """Each kind of file system by itself, and a mount that has taken the place of another."""
    for name in ("memory", "layers"):
        (tmp_path / name).mkdir()
    told = where(
        """
        mounts.mount("tmpfs", top / "memory")
        (top / "memory" / "file").write_text("x")
        print(of_path(top / "memory" / "file"), of_fd(top / "memory" / "file"))
        mounts._call("umount2", os.fsencode(top / "memory"), 2)
        mounts.mount("proc", top / "memory")
        print(of_path(top / "memory" / "version"), of_fd(top / "memory" / "version"))
        merged = mounts.overlay(top / "layers")
        (top / "layers" / "lower" / "file").write_text("x")
        print(of_path(merged / "file"), of_fd(merged / "file"))
        """,
        tmp_path,
    )
    memory, copies = str(lib.TU_LOCAL | lib.TU_MEMORY), str(lib.TU_LOCAL | lib.TU_COPIES_UP)
    assert told == [memory, memory, "0", "0", copies, copies]


def test_f53_an_overlay_over_what_is_elsewhere_is_elsewhere(tmp_path: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    told = where(
        """
        import threading
        with mounts.fuse(top / "lower") as control:
            def answers():
                while control.recv(1):
                    control.send(b"g")
            threading.Thread(target=answers, daemon=True).start()
            mounts.mount("overlay", top / "merged", f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work", "overlay")
            os.stat(top / "merged" / "file")
            where = lib.tu_where(-1, os.fsencode(top / "merged"))
            print(where & 7)
            mounts._call("umount2", os.fsencode(top / "merged"), 2)
        """,
        tmp_path,
    )
    assert told == ["0"]


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_f54_what_is_opened_for_writing_on_an_overlay_is_opened_by_a_worker(flags: int) -> None:
    overlay = 0o100000 | lib.TU_LOCAL | lib.TU_COPIES_UP
    assert opening._may_wait(overlay, flags) == (flags != os.O_RDONLY)
    assert not opening._may_wait(0o100000 | lib.TU_LOCAL, flags)
    assert opening._may_wait(0o100000, flags)
    assert opening._may_wait(-11, flags)
    assert not opening._may_wait(-2, flags)


def test_f54_the_loops_thread_copies_nothing_up(tmp_path: Path) -> None:
    """By its own processor time: a copy of 64 MiB takes ten times as much as all the rest."""
    (tmp_path / "lower").mkdir()
    told = where(
        """
        import time, trio, trio_uring
        for name in ("one", "two"):
            with open(top / "lower" / name, "wb") as file:
                for _ in range(64):
                    file.write(os.urandom(1 << 20))
        merged = mounts.overlay(top)
        for name in ("one", "two"):
            os.stat(merged / name)

        async def main():
            await trio.Path(merged).exists()
            before = time.thread_time()
            async with await trio.open_file(merged / "one", "r+b") as file:
                await file.write(b"changed")
            ours = time.thread_time() - before
            before = time.thread_time()
            os.close(os.open(merged / "two", os.O_RDWR))
            print(ours < (time.thread_time() - before) / 2, (top / "upper" / "one").read_bytes()[:7].decode())

        trio.run(main, io_backend="uring")
        """,
        tmp_path,
    )
    assert told == ["True", "changed"]
