"""Confines itself, then becomes the command given: python confined.py [OPTION]... -- COMMAND ARGUMENT...

A program for the tests in this directory; knows prctl(2), seccomp(2) and setrlimit(2), and nothing of
trio_uring.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import platform
import resource
from typing import Final

PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
SECCOMP_RET_ALLOW: Final = 0x7FFF0000
SECCOMP_RET_ERRNO: Final = 0x00050000
BPF_LOAD_WORD: Final = 0x20
BPF_JUMP_EQUAL: Final = 0x15
BPF_RETURN: Final = 0x06

# System call numbers; io_uring's are the same on every architecture.
CALLS: Final = {
    "io_uring_setup": 425,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "eventfd2": {"x86_64": 290, "aarch64": 19}.get(platform.machine(), -1),
}

libc = ctypes.CDLL(None, use_errno=True)


class Instruction(ctypes.Structure):
    """struct sock_filter: one instruction of classic BPF."""

    _fields_ = (
        ("code", ctypes.c_uint16),
        ("jump_true", ctypes.c_uint8),
        ("jump_false", ctypes.c_uint8),
        ("k", ctypes.c_uint32),
    )


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(Instruction)))


def prctl(option: int, *arguments: object) -> None:
    """prctl(2); raises OSError."""
    if libc.prctl(option, *arguments, *[0] * (4 - len(arguments))) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl({option}): {os.strerror(code)}")


def refuse(rules: dict[int, int]) -> None:
    """Makes system calls fail from here on: number to errno."""
    program = [(BPF_LOAD_WORD, 0, 0, 0)]  # struct seccomp_data begins with the number
    for number, code in rules.items():
        program += [(BPF_JUMP_EQUAL, 0, 1, number), (BPF_RETURN, 0, 0, SECCOMP_RET_ERRNO | code)]
    program.append((BPF_RETURN, 0, 0, SECCOMP_RET_ALLOW))
    instructions = (Instruction * len(program))(*(Instruction(*each) for each in program))
    prctl(PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1))
    prctl(
        PR_SET_SECCOMP,
        ctypes.c_ulong(SECCOMP_MODE_FILTER),
        ctypes.byref(Program(len(program), instructions)),
    )


def drop_capabilities() -> None:
    """Gives up every capability at the next execve(2), also for root; other users have none."""
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability))
        except OSError as error:
            if error.errno == errno.EPERM and os.geteuid() != 0:
                return
            if error.errno != errno.EINVAL:  # EINVAL: beyond the last one of this kernel
                raise


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--refuse", action="append", default=[], metavar="CALL=ERRNO")
    parser.add_argument("--unprivileged", action="store_true")
    parser.add_argument("--memlock", type=int, metavar="BYTES")
    parser.add_argument("--nofile", type=int, metavar="NUMBER")
    parser.add_argument("command", nargs="+")
    arguments = parser.parse_args()
    if arguments.memlock is not None:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (arguments.memlock, arguments.memlock))
    if arguments.nofile is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (arguments.nofile, arguments.nofile))
    if arguments.unprivileged:
        drop_capabilities()
    rules = dict(rule.split("=") for rule in arguments.refuse)
    if rules:
        refuse({CALLS[call]: getattr(errno, name) for call, name in rules.items()})
    os.execvp(arguments.command[0], arguments.command)


if __name__ == "__main__":
    main()
