"""A child that tries what it may not, and writes what came of it: `{"do": …}` names a function of this module."""

import ctypes
import json
import os
import socket
import subprocess
import sys
import time


def python_socket(port):
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        return "connected"


def name_lookup(port):
    return socket.getaddrinfo("localhost", port)


def native_socket(port):
    """As a library in C would do it, of which Python hears nothing."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    address = b"\x02\x00" + port.to_bytes(2, "big") + socket.inet_aton("127.0.0.1") + bytes(8)
    if libc.connect(descriptor, address, len(address)) == 0:
        return "connected"
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def native_call(number):
    """A system call by its number."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return "done"


def open_files(count):
    return len([open(os.devnull) for _ in range(count)])


def take_memory(length):
    return len(bytearray(length))


def write_file(path):
    with open(path, "w") as file:
        file.write("x")
    return "written"


def environment():
    return sorted(os.environ)


def modules():
    return [name for name in ("django", "celery", "opengate") if name in sys.modules]


def compute():
    while True:
        pass


def sleep_with_a_child():
    child = subprocess.Popen(["sleep", "60"])
    print(json.dumps(child.pid), flush=True)
    time.sleep(60)


def talk(length):
    return "x" * length


def read_input():
    return sys.stdin.read()


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    try:
        answer = globals()[options.pop("do")](**options)
    except Exception as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
