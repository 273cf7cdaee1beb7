"""The gateway as a process of its own, on a loopback port, on the database of the tests."""

import os
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import httpx
from django.db import connection

ROOT = Path(__file__).parent.parent
# Nothing here speaks TLS, and a client that reads all certificates takes 30 ms to make.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(**extra: str) -> dict[str, str]:
    """The environment of a process that shares the tests' database and Redis."""
    settings = connection.settings_dict
    host = settings["HOST"] or settings["OPTIONS"].get("host", "")
    where = f"{quote(settings['USER'])}:{quote(settings['PASSWORD'])}@{quote(host, safe='')}"
    port = f":{settings['PORT']}" if settings["PORT"] else ""
    return os.environ | {"DATABASE_URL": f"postgresql://{where}{port}/{settings['NAME']}"} | extra


class Server:
    """Web processes on one port, usually one; `kind` is uvicorn or daphne, which has no more."""

    def __init__(self, kind: str | None = None, *, workers: str = "1", **extra: str) -> None:
        self.workers = workers
        self.kind = kind or os.environ.get("OPENGATE_TEST_SERVER", "uvicorn")
        # An upload waits for a worker, which most tests have none of.
        usual = {"OPENGATE_DATABASE_POOL": "10", "OPENGATE_LOG_LEVEL": "WARNING", "OPENGATE_UPLOAD_WAIT_SECONDS": "0.1"}
        self.extra = usual | extra
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log: IO[bytes] | None = None  # where it writes; None: where the tests do

    def spawn(self, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        if self.kind == "daphne":
            command = [sys.executable, "-m", "daphne", "-v", "0", "-p", str(self.port), "opengate.asgi:application"]
            return subprocess.Popen(command, cwd=ROOT, env=variables, stderr=self.log)
        if self.workers != "1":
            command = [sys.executable, "manage.py", "serve", "--workers", self.workers, "--grace", "2"]
            command += ["--port", str(self.port)]
            return subprocess.Popen(command, cwd=ROOT, env=variables, stderr=self.log)
        # The web process itself, without the parent that `manage.py serve` is otherwise.
        with socket.create_server(("127.0.0.1", self.port), backlog=1024) as listener:
            number = listener.fileno()
            command = [sys.executable, "manage.py", "serve", "--grace", "2", "--listener", str(number)]
            return subprocess.Popen(command, cwd=ROOT, env=variables, pass_fds=(number,), stderr=self.log)

    def start(self) -> Self:
        self.process = self.spawn(environment(**self.extra))
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=5, verify=NO_CERTIFICATES).status_code == 200:
                    return self
            except httpx.HTTPError:
                time.sleep(0.05)
        raise RuntimeError(f"The server on port {self.port} did not start.")

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(5)

    def client(self, key: str | None = None, **how: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, verify=NO_CERTIFICATES, **how)
