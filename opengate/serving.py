"""One web process: uvicorn's server, with bounds for what comes in and an end that loses no call.

It listens on a socket that its parent (`opengate.processes`) has bound and shares with its siblings, and ends in one of
three ways: it *drains* (the whole service stops), *retires* (a sibling takes over), or ends *now*.
"""

import asyncio
import faulthandler
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from logging import getLogger
from typing import Any, cast

import uvicorn
from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from opengate import draining
from opengate.bodies import WHEN_GONE
from opengate.quick_settings import settings

MAX_HEADERS = 256
MAX_PIPELINED = 32  # requests of one connection that wait for the answer of the one before
UNREAD_SECONDS = 5.0  # for the rest of a body whose request is answered, before the connection is closed
CUT_SECONDS = 5.0  # for a call that is cut to say so and to settle
FLUSH_SECONDS = 1.0
MOST_FILES = 65_536
LEAST_CONNECTIONS = 16
CLOSE = (b"connection", b"close")
UNUSUAL = frozenset({b"connection", b"transfer-encoding"})
PLAIN_NAMES = re.compile(rb"[a-z0-9-]+")  # of headers, one after another

logger = getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How a web process serves; times in seconds."""

    drain_delay: float
    grace: float
    keep_alive: int
    max_header_bytes: int
    backlog: int


class Ending(IntEnum):
    """Why a process ends; a greater one overrules."""

    NOT = 0
    RETIRE = 1
    DRAIN = 2
    NOW = 3


# What the parent sends. SIGTERM may come twice, from it and from a service manager that tells all processes.
ENDINGS = {
    signal.SIGHUP: Ending.RETIRE,
    signal.SIGTERM: Ending.DRAIN,
    signal.SIGINT: Ending.DRAIN,
    signal.SIGQUIT: Ending.NOW,
}


def raise_file_limit() -> None:
    """Open as many files as we may: a stream takes two, and the usual soft limit of 1,024 ends at five hundred."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):  # some systems take no such limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(listener: int, heart: int | None, options: Options) -> None:
    """Serve on the socket of that descriptor until a signal comes.

    A byte goes to `heart` each second that the event loop runs; the first says that the process is ready.
    """
    faulthandler.register(signal.SIGUSR2, all_threads=True)  # where it hangs, should it hang
    raise_file_limit()
    config = uvicorn.Config(
        "opengate.asgi:application",
        loop="uvloop",
        http=_protocol(options.max_header_bytes),
        ws="none",
        lifespan="on",
        log_config=None,  # as all of ours: LOGGING
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the application looks at them, under any server
        timeout_keep_alive=options.keep_alive,
        backlog=options.backlog,
    )
    os.set_inheritable(listener, False)
    WebServer(config, options, heart).run([socket.socket(fileno=listener)])


class WebServer(uvicorn.Server):
    """uvicorn's server with our ends."""

    def __init__(self, config: uvicorn.Config, options: Options, heart: int | None) -> None:
        super().__init__(config)
        self._options = options
        self._heart = heart
        self._ending = Ending.NOT
        self._since = 0.0  # that it is on its way to that end
        self._listens = True
        self._says_close = False
        if heart is not None:
            os.set_blocking(heart, False)
            os.set_inheritable(heart, False)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in ENDINGS:
            signal.signal(number, self._on_signal)
        yield

    def _on_signal(self, number: int, frame: object) -> None:
        ending = ENDINGS[signal.Signals(number)]
        if ending > self._ending:
            self._ending, self._since = ending, time.monotonic()
            if ending == Ending.DRAIN:
                draining.begin()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; true ends the process."""
        await super().on_tick(counter)
        if counter % 10 == 0:
            self._beat()
        if self._ending == Ending.RETIRE:
            return self._has_retired()
        if self._ending == Ending.DRAIN:
            return self._has_drained()
        return self._ending == Ending.NOW

    def _beat(self) -> None:
        if self._heart is None:
            return
        try:
            os.write(self._heart, b".")
        except BlockingIOError:
            pass  # the parent has enough to read
        except BrokenPipeError:  # it is gone: the next one wants our port
            self._stop_listening()

    def _has_drained(self) -> bool:
        """Calls are taken for the delay, then refused while those that are open have their grace."""
        self._say_close()
        late = time.monotonic() - self._since - self._options.drain_delay
        if late < 0:
            return False
        draining.refuse_calls()
        return late > self._options.grace or not self._is_busy()

    def _has_retired(self) -> bool:
        """Siblings take new connections. Ours end by themselves: with their next answer, or when long unused.

        To close one that rests would lose the call that may be on its way to us.
        """
        if self._listens:
            self._stop_listening()
            self._say_close()
            return False  # what was accepted a moment ago is a connection only then
        late = time.monotonic() - self._since
        return not self.server_state.connections or late > self._options.keep_alive + self._options.grace

    def _is_busy(self) -> bool:
        connections = self.server_state.connections
        return bool(self.server_state.tasks) or any(
            connection.transport.get_write_buffer_size() for connection in connections
        )

    def _stop_listening(self) -> None:
        self._listens = False
        for server in self.servers:
            server.close()

    def _say_close(self) -> None:
        """Each answer that has not begun says that it is the last of its connection; uvicorn then closes it.

        An answer that has begun did not say so, and its caller may use the connection again: for one more answer.
        """
        if self._says_close:
            return
        self._says_close = True
        self.config.encoded_headers = [*self.config.encoded_headers, CLOSE]
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        for connection in self.server_state.connections:
            cycle: Any = connection.cycle  # type: ignore[union-attr]
            if cycle is not None and not cycle.response_started:
                cycle.keep_alive = False

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Cut what is still open, send what is still to be sent, and let the application settle and flush."""
        draining.refuse_calls()
        self._stop_listening()
        for listener in sockets or []:
            listener.close()
        tasks = list(self.server_state.tasks)
        if tasks:
            logger.warning("%d open calls were cut, as the process ends.", len(tasks))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=CUT_SECONDS)
        for connection in list(self.server_state.connections):
            connection.transport.close()
        deadline = time.monotonic() + FLUSH_SECONDS
        while self.server_state.connections and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await self.lifespan.shutdown()


class HeadTooLarge(Exception):
    """More headers than we read."""


class TooManyPipelined(Exception):
    """More requests than we keep, of a caller who does not wait for answers."""


class Cycle(RequestResponseCycle):
    """An exchange that checks all headers of a usual answer at once. uvicorn's own looks for each fault in each,
    which is a twentieth of a call."""

    async def send(self, message: Any) -> None:
        if message["type"] != "http.response.start" or not self._has_begun(message):
            await super().send(message)

    def _has_begun(self, message: Any) -> bool:
        """Write the head of an answer of known length, with nothing unusual about it; any other is uvicorn's."""
        if self.response_started or self.disconnected or self.flow.write_paused or not self.keep_alive:
            return False
        headers = [*self.default_headers, *message.get("headers", ())]
        names, values = [name for name, _ in headers], [value for _, value in headers]
        if self.access_log or names.count(b"content-length") != 1 or not UNUSUAL.isdisjoint(names):
            return False
        if not PLAIN_NAMES.fullmatch(b"".join(names)) or HEADER_VALUE_RE.search(b"".join(values)):
            return False
        self.response_started, self.waiting_for_100_continue = True, False
        self.chunked_encoding, self.expected_content_length = False, int(values[names.index(b"content-length")])
        lines = [b"%b: %b\r\n" % header for header in headers]
        self.transport.write(b"".join((STATUS_LINE[message["status"]], *lines, b"\r\n")))
        return True


class Protocol(HttpToolsProtocol):
    """Bounds what uvicorn leaves open: how long a request's line and headers are, how long they take to come, and how
    long the rest of a body may come that nobody reads any more."""

    max_header_bytes: int
    max_connections: int

    _in_head = False
    _head_bytes = 0  # of what the parser has told us
    _unfinished_bytes = 0  # of what came, while the head has no end: one header may be endless
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _answering: RequestResponseCycle | None = None
    _when_gone: set[Callable[[], object]]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse_connection()
            return
        # A connection that says nothing is an unused one.
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > self.max_header_bytes:
                self._refuse_head()
                return
        # What begins no request, as an empty line or the end of an unread body, holds the connection no longer either.
        is_idle = self.cycle is None or self.cycle.response_complete
        if (self._in_head or is_idle) and self._head_timer is None:
            self._head_timer = self.loop.call_later(settings.REQUEST_PATIENCE_SECONDS, self.timeout_keep_alive_handler)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._unfinished_bytes, self._in_head = 0, 0, True

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if not self._in_head:
            return  # behind a body; uvicorn would put it among the headers of a request that already runs
        if len(self.headers) >= MAX_HEADERS:
            self._head_bytes = self.max_header_bytes
            self._count(1)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        if len(self.pipeline) >= MAX_PIPELINED:
            raise TooManyPipelined
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False  # the parser takes what follows for another protocol

    def _unsupported_upgrade_warning(self) -> None:
        """The request is answered as any other, and its connection closed; that is no matter for the log."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        cycle.__class__ = Cycle  # uvicorn makes them
        self._when_gone = set()
        cast(dict[str, Any], cycle.scope)[WHEN_GONE] = self._when_gone
        super()._start_asgi_task(cycle, app)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._stop_unread_timer()
        if self.cycle is self._answering:
            self.flow.resume_reading()  # that a caller leaves is only read

    def on_response_complete(self) -> None:
        """Refused before its body was read: the caller has a moment to send the rest and read the answer."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing():
            self._stop_unread_timer()
            self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._stop_unread_timer()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True  # uvicorn tells that to the last request alone
            self._answering.message_event.set()
        if self._answering is not None:
            cast(dict[str, Any], self._answering.scope).pop(WHEN_GONE, None)  # from now on uvicorn tells it
            for call in tuple(self._when_gone):
                call()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """The parser failed, or we made it. A request before the faulty one has its own answer, the last."""
        before = self._answering
        if before is not None and not before.response_complete and not before.more_body:
            before.keep_alive = False
            self.pipeline.clear()
        elif self._head_bytes > self.max_header_bytes:
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        detail = f"Request headers are too large (max: {self.max_header_bytes} bytes)."
        body = to_json({"detail": detail})
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[431] + head + body)
        self.transport.close()

    def _refuse_connection(self) -> None:
        """As many are open as there may be."""
        self.transport.write(STATUS_LINE[503] + b"content-length: 0\r\nretry-after: 2\r\nconnection: close\r\n\r\n")
        self.transport.close()

    def _count(self, length: int) -> None:
        self._head_bytes += length
        if self._head_bytes > self.max_header_bytes:
            raise HeadTooLarge

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _protocol(max_header_bytes: int) -> type[Protocol]:
    bounds = {"max_header_bytes": max_header_bytes, "max_connections": most_connections()}
    return type("BoundedProtocol", (Protocol,), bounds)


def most_connections() -> int:
    """Half of the files that we may open: each call may need another one, for its provider."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(soft // 2, LEAST_CONNECTIONS)
