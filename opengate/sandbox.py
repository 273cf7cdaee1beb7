"""Files of strangers are read in a child process: little time and memory, no network, nothing of our environment.

The child starts with this very file, and confines itself before the module that reads is imported. So it stands on the
standard library alone, and is run by its path: as a part of its package it would bring Django along.

    python -P opengate/sandbox.py LIMITS MODULE OPTIONS < file     LIMITS: JSON, the parameters of `confine`
"""

import ctypes
import errno
import json
import os
import resource
import runpy
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

ROOT = Path(__file__).resolve().parent.parent
GRACE_SECONDS = 2
KEPT_VARIABLES = ("PATH", "TESSDATA_PREFIX", "LD_LIBRARY_PATH")
OPEN_FILES = 128

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_SYSTEM_CALLS = {  # its number for a filter, and those of socket and io_uring_setup
    "x86_64": (0xC000003E, 41, 425),
    "aarch64": (0xC00000B7, 198, 425),
}


class OutOfTime(Exception):
    """The child took longer than it may, by the clock or by its processor's."""


class TooMuch(Exception):
    """The child wrote more than is read."""


# The parent's side


def command(module: str, options: Mapping[str, Any], *, seconds: int, memory_bytes: int) -> list[str]:
    """The command line of a child that runs `module` with its options as JSON."""
    limits = json.dumps({"seconds": seconds, "memory_bytes": memory_bytes})
    return [sys.executable, "-P", str(Path(__file__).resolve()), limits, module, json.dumps(options)]


def surroundings() -> dict[str, Any]:
    """How such a child is started: the keyword arguments of `subprocess.Popen`."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {
        "stderr": subprocess.DEVNULL,
        "cwd": ROOT,
        "env": {**kept, "PYTHONDONTWRITEBYTECODE": "1"},
        "start_new_session": True,  # so that its own children end with it
    }


def end(pid: int) -> None:
    """Kill the child with its own children; the caller then waits for it."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def lines(
    module: str, options: Mapping[str, Any], file: BinaryIO, *, seconds: int, memory_bytes: int, max_bytes: int
) -> Generator[bytes | None]:
    """The lines that a child writes about the file, and None whenever a second passes without one.

    Raises OutOfTime, or TooMuch beyond `max_bytes`. A child that crashes or is killed ends the lines early: the last
    one should say that it is the last. Close the iterator if you leave before its end.
    """
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        process = subprocess.Popen(
            command(module, options, seconds=seconds, memory_bytes=memory_bytes),
            stdin=copy,
            stdout=subprocess.PIPE,
            **surroundings(),
        )
    assert process.stdout is not None
    try:
        yield from _received(process.stdout, deadline, max_bytes)
    finally:
        end(process.pid)
        process.wait()
        process.stdout.close()
    if process.returncode == -signal.SIGXCPU:
        raise OutOfTime


def _received(output: Any, deadline: float, max_bytes: int) -> Generator[bytes | None]:
    parts: list[bytes] = []  # of a line whose end has not come yet
    length, told = 0, time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while (now := time.monotonic()) < deadline:
            if now - told >= 1:
                told = now
                yield None
                continue
            if not selector.select(min(told + 1, deadline) - now):
                continue
            chunk = os.read(output.fileno(), 64 * 1024)
            if not chunk:
                return
            length += len(chunk)
            if length > max_bytes:
                raise TooMuch
            first, *others = chunk.split(b"\n")
            parts.append(first)
            for other in others:
                told = time.monotonic()
                yield b"".join(parts)
                parts = [other]
    raise OutOfTime


# The child's side


def confine(seconds: int, memory_bytes: int) -> None:
    """From here on this process, and those it starts, have little: limits hold, and there is no network.

    Where the kernel lets us, it refuses sockets (those of our own servers on this machine, too) and gives the process
    an empty network of its own; everywhere, Python refuses them.
    """
    for limit, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, memory_bytes, memory_bytes),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_FSIZE, 0, 0),
        (resource.RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES),
    ):
        resource.setrlimit(limit, (soft, hard))
    os.environ["OMP_THREAD_LIMIT"] = "1"
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # it is Linux that has these
        libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # Root needs no user namespace, and would lose in it the right to read what belongs to others.
        if libc.unshare(_CLONE_NEWNET) != 0:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        _filter_system_calls(libc)
    sys.addaudithook(_refuse_sockets)


class _Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte), ("k", ctypes.c_uint)]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction))]


def _filter_system_calls(libc: ctypes.CDLL) -> None:
    """A seccomp filter without which native code could still reach what listens on this machine's Unix sockets."""
    known = _SYSTEM_CALLS.get(os.uname().machine)
    if known is None or sys.maxsize < 2**32:
        return
    architecture, socket, io_uring_setup = known
    load, equals, at_least, answer = 0x20, 0x15, 0x35, 0x06
    instructions = (
        (load, 0, 0, 4),  # the architecture
        (equals, 1, 0, architecture),
        (answer, 0, 0, 0x80000000),  # another one has other numbers: end the process
        (load, 0, 0, 0),  # the number of the call
        (equals, 3, 0, socket),
        (equals, 2, 0, io_uring_setup),
        (at_least, 1, 0, 0x40000000),  # a second set of numbers on x86-64
        (answer, 0, 0, 0x7FFF0000),  # allow
        (answer, 0, 0, 0x00050000 | errno.EACCES),
    )
    program = _Program(
        len(instructions), (_Instruction * len(instructions))(*(_Instruction(*values) for values in instructions))
    )
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(program), 0, 0)


def _refuse_sockets(event: str, arguments: tuple[Any, ...]) -> None:
    if event.startswith("socket."):
        raise PermissionError("There is no network for whoever reads a stranger's file.")


def _run() -> None:
    limits, module, options = sys.argv[1:]
    confine(**json.loads(limits))
    sys.path.insert(0, str(ROOT))
    sys.argv[1:] = [options]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _run()
