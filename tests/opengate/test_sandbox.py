"""What reads a stranger's file has little time, little memory and no network."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from opengate import sandbox


def lines(do, *, file=b"", seconds=10, memory_bytes=512 * 1024**2, max_bytes=1_000_000, **options):
    return sandbox.lines(
        "tests.opengate.children",
        {"do": do, **options},
        io.BytesIO(file),
        seconds=seconds,
        memory_bytes=memory_bytes,
        max_bytes=max_bytes,
    )


def answer(do, **options):
    *_, last = [line for line in lines(do, **options) if line is not None]
    return json.loads(last)


@pytest.fixture
def port():
    """Of somebody on this machine who would answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("do", ["python_socket", "name_lookup"])
def test_there_is_no_network(do, port):
    assert answer(do, port=port) == "PermissionError: There is no network for whoever reads a stranger's file."


@pytest.mark.skipif(os.uname().machine not in sandbox._SYSTEM_CALLS, reason="the filter knows no calls of this machine")
def test_there_is_none_for_native_code_either(port):
    assert answer("native_socket", port=port) == "PermissionError: [Errno 13] Permission denied"


@pytest.mark.skipif(os.uname().machine not in sandbox._SYSTEM_CALLS, reason="the filter knows no calls of this machine")
def test_there_is_no_way_around_the_filter_of_system_calls():
    _, socket, io_uring_setup = sandbox._SYSTEM_CALLS[os.uname().machine]
    for number in (io_uring_setup, 0x40000000 + socket):  # the second set of numbers on x86-64
        assert answer("native_call", number=number) == "PermissionError: [Errno 13] Permission denied"


def test_files_have_a_limit():
    assert answer("open_files", count=100) == 100
    assert str(answer("open_files", count=200)).startswith("OSError: [Errno 24]")


def test_the_file_is_its_standard_input():
    assert answer("read_input", file="Élève".encode()) == "Élève"


def test_memory_has_a_limit():
    assert answer("take_memory", length=100 * 1024**2) == 100 * 1024**2
    assert answer("take_memory", length=1024**3) == "MemoryError: "


def test_nothing_is_written_to_the_disk(tmp_path):
    assert answer("write_file", path=str(tmp_path / "x")) == "OSError: [Errno 27] File too large"


def test_our_secrets_are_not_in_its_environment(monkeypatch):
    monkeypatch.setenv("OPENGATE_SECRET_KEY", "x" * 50)
    own = {"PYTHONDONTWRITEBYTECODE", "OMP_THREAD_LIMIT", "LC_CTYPE"}
    assert set(answer("environment")) <= {*sandbox.KEPT_VARIABLES, *own}


def test_it_starts_without_django():
    assert answer("modules") == []


def test_processor_time_has_a_limit():
    with pytest.raises(sandbox.OutOfTime):
        list(lines("compute", seconds=1))


def test_waiting_has_a_limit_and_ends_with_all_processes(monkeypatch):
    monkeypatch.setattr(sandbox, "GRACE_SECONDS", 0.5)
    with closing(lines("sleep_with_a_child", seconds=1)) as come:
        grandchild = int(next(line for line in come if line))
        assert is_running(grandchild)
        with pytest.raises(sandbox.OutOfTime):
            list(come)
    wait_until_gone(grandchild)


def test_whoever_waits_hears_of_it_each_second():
    with closing(lines("sleep_with_a_child")) as come:
        next(line for line in come if line)
        began = time.monotonic()
        assert [next(come), next(come)] == [None, None]
        assert 1.8 < time.monotonic() - began < 4


def test_whoever_leaves_ends_it():
    come = lines("sleep_with_a_child")
    grandchild = int(next(line for line in come if line))
    come.close()
    wait_until_gone(grandchild)


STARTS_ONE = """
import io
from opengate import sandbox
how = {"seconds": 60, "memory_bytes": 2**29, "max_bytes": 1000}
print(*sandbox.lines("tests.opengate.children", {"do": "sleep_with_a_child"}, io.BytesIO(), **how))
"""


def test_it_ends_with_whoever_started_it():
    worker = subprocess.Popen([sys.executable, "-c", STARTS_ONE], cwd=sandbox.ROOT)
    child, grandchild = child_of(worker.pid), None
    try:
        grandchild = child_of(child)
        worker.kill()
        worker.wait()
        wait_until_gone(child)
    finally:
        for pid in (worker.pid, child, grandchild):
            if pid is not None and is_running(pid):
                os.kill(pid, signal.SIGKILL)


def child_of(pid):
    """Its first child, as soon as there is one."""
    deadline = time.monotonic() + 5
    while True:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            if found := children.read_text().split():
                return int(found[0])
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_it_says_has_a_bound():
    assert len(answer("talk", length=900_000)) == 900_000
    with pytest.raises(sandbox.TooMuch):
        list(lines("talk", length=1_100_000))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid):
    deadline = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)
