"""Hosts with a network of their own: namespaces on one switch, in which processes run as on machines apart."""

import asyncio
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.flows.worker import Worker
from tests.listener import Listener
from tests.server import ROOT, Server

_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_libc = ctypes.CDLL(None, use_errno=True)
Address = tuple[str, int] | str  # a unix socket


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def may_be_made() -> bool:
    """Whether this machine lets us make networks."""
    if os.geteuid() or shutil.which("ip") is None:
        return False
    name = f"og{os.getpid()}try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "del", name)
    return made


class Host:
    """A namespace with one address; without a switch it is one itself."""

    def __init__(self, name: str, address: str = "", switch: "Host | None" = None) -> None:
        self.name, self.address, self.switch = name, address, switch
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        if switch is None:
            ip("-n", name, "link", "add", "bridge", "type", "bridge")
            ip("-n", name, "link", "set", "bridge", "up")
            return
        ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", name, "netns", switch.name)
        ip("-n", switch.name, "link", "set", name, "master", "bridge", "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")

    def unplug(self) -> None:
        """Nobody reaches it any more, nor it anybody; and nobody is told."""
        assert self.switch is not None
        ip("-n", self.switch.name, "link", "set", self.name, "nomaster")

    def plug(self) -> None:
        assert self.switch is not None
        ip("-n", self.switch.name, "link", "set", self.name, "master", "bridge")

    def remove(self) -> None:
        ip("netns", "del", self.name)

    def enter(self) -> None:
        """What this thread connects to and listens on from now on is in this host's network."""
        with open(f"/run/netns/{self.name}") as namespace:
            if _libc.setns(namespace.fileno(), _NEW_NETWORK):
                raise OSError(ctypes.get_errno(), "setns")

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *words]


class Relay(Listener):
    """Passes what comes to an address in one network on to an address in another."""

    def __init__(self, listen: tuple[str, int], connect: Address, at: Host | None = None, to: Host | None = None):
        self._connect, self._to = connect, to
        self._listener = _in_thread(lambda: _listener(listen, at))
        self.port: int = self._listener.getsockname()[1]
        super().__init__()

    async def _listen(self) -> asyncio.Server:
        if self._to is not None:
            self._to.enter()
        return await asyncio.start_server(self._serve, sock=self._listener)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            if isinstance(self._connect, str):
                there = await asyncio.open_unix_connection(self._connect)
            else:
                there = await asyncio.open_connection(*self._connect)
            await asyncio.gather(_pass(reader, there[1]), _pass(there[0], writer))
        writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


def _listener(address: tuple[str, int], at: Host | None) -> socket.socket:
    if at is not None:
        at.enter()
    return socket.create_server(address, backlog=1024)


def _in_thread(work: Callable[[], Any]) -> Any:
    """What `work` answers, from a thread that nobody else uses: it may enter a host."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(work()))
    thread.start()
    thread.join()
    return answers[0]


class HostedServer(Server):
    """A web server on a host; its callers come from another host, through a port of this machine's loopback."""

    def __init__(self, host: Host, callers: Host, **extra: str) -> None:
        super().__init__("uvicorn", **extra)
        self.host = host
        self.relay = Relay(("127.0.0.1", 0), (host.address, self.port), to=callers)
        self.url = f"http://127.0.0.1:{self.relay.port}"

    def spawn(self, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        serve = [sys.executable, "manage.py", "serve", "--workers", "1", "--grace", "2"]
        command = self.host.command(*serve, "--host", self.host.address, "--port", str(self.port))
        return subprocess.Popen(command, cwd=ROOT, env=variables)

    def stop(self) -> None:
        super().stop()
        self.relay.close()


class HostedWorker(Worker):
    def __init__(self, host: Host, folder: Path, **extra: str) -> None:
        super().__init__(folder, **extra)
        self.prefix = host.command()
