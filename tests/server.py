"""The gateway as a process of its own, on a loopback port, on the database of the tests."""

import os
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import quote

import httpx
import psutil  # type: ignore[import-untyped]
from django.db import connection

ROOT = Path(__file__).parent.parent
# Nothing here speaks TLS, and a client that reads all certificates takes 30 ms to make.
NO_CERTIFICATES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

USUAL = os.environ.get("OPENGATE_TEST_SERVER", "uvicorn")  # the server of all tests that name none
APPLICATION = "opengate.asgi:application"
# Where daphne and granian differ from `manage.py serve`. What this module knows of that is all that tests know.
LACKING = {  # what a test that `needs` it is skipped without
    "daphne": {
        "streamed bodies": "daphne keeps a body until all of it is there, and then tells the application",
        "raw forms": "daphne reads forms itself, and answers those that it cannot read with an empty 400",
    },
}
LONGEST_HEADER = 15_000 if USUAL == "daphne" else 60_000  # bytes
SERVER_NAME = "granian" if USUAL == "granian" else None  # what it says in `Server` whether one wants it or not
# To a body that cannot be read: the application hears that its caller is gone, and granian that it says nothing.
UNREADABLE = ("400", "422", "500") if USUAL == "granian" else ("400", "422")


def is_refused_form(response: httpx.Response) -> bool:
    """Whether the server itself refused what came as a form."""
    is_lacking = "raw forms" in LACKING.get(USUAL, {})
    return is_lacking and response.status_code == 400 and not response.content


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
    """Web processes on one port, usually one. `kind` is uvicorn, which is `manage.py serve`, or daphne or granian, as
    they are by themselves; a test that names one is about what only that one does."""

    def __init__(self, kind: str | None = None, *, workers: str = "1", **extra: str) -> None:
        self.workers = workers
        self.kind = kind or USUAL
        # An upload waits for a worker, which most tests have none of.
        usual = {"OPENGATE_DATABASE_POOL": "10", "OPENGATE_LOG_LEVEL": "WARNING", "OPENGATE_UPLOAD_WAIT_SECONDS": "0.1"}
        self.extra = usual | extra
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self.log: IO[bytes] | None = None  # where it writes; None: where the tests do

    def spawn(self, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        if self.kind != "uvicorn":
            return self._popen(["-m", *self._foreign(variables), APPLICATION], variables)
        if self.workers != "1":
            command = ["manage.py", "serve", "--workers", self.workers, "--grace", "2", "--port", str(self.port)]
            return self._popen(command, variables)
        # The web process itself, without the parent that `manage.py serve` is otherwise.
        with socket.create_server(("127.0.0.1", self.port), backlog=1024) as listener:
            number = listener.fileno()
            command = ["manage.py", "serve", "--grace", "2", "--listener", str(number)]
            return self._popen(command, variables, pass_fds=(number,))

    def _popen(self, command: list[str], variables: dict[str, str], **how: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables, stderr=self.log, **how)

    def _foreign(self, variables: dict[str, str]) -> list[str]:
        """daphne and granian as docs/deploy.md starts them."""
        if self.kind == "daphne":
            return ["daphne", "--verbosity", "0", "--no-server-name", "--port", str(self.port)]
        patience = int(variables.get("OPENGATE_REQUEST_PATIENCE_SECONDS", "30"))
        options = ["--interface", "asgi", "--loop", "uvloop", "--backlog", "4096", "--backpressure", "8192"]
        options += ["--http1-buffer-size", "65536", "--http1-header-read-timeout", str(patience * 1000)]
        options += ["--log-level", "warning", "--port", str(self.port), "--workers", self.workers]
        return ["granian", *options]

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
        """With granian's child, which would go on without its parent."""
        assert self.process is not None
        children = self._children()
        self.process.kill()
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.wait(5)

    @property
    def pid(self) -> int:
        """Of the process that answers."""
        assert self.process is not None
        return next((child.pid for child in self._children()), self.process.pid)

    def _children(self) -> list[psutil.Process]:
        assert self.process is not None
        is_there = self.kind == "granian" and self.process.poll() is None
        return psutil.Process(self.process.pid).children() if is_there else []

    def client(self, key: str | None = None, **how: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, verify=NO_CERTIFICATES, **how)
