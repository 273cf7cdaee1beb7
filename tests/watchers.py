"""A collector of traces and a Sentry on a loopback port: what they get over real HTTP, parsed."""

import gzip
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


class Span:
    """A span as it was sent; ids in hex."""

    def __init__(self, sent: Any, resource: dict[str, Any]) -> None:
        self.name: str = sent.name
        self.kind: int = sent.kind
        self.trace: str = sent.trace_id.hex()
        self.id: str = sent.span_id.hex()
        self.parent: str = sent.parent_span_id.hex()
        self.began: int = sent.start_time_unix_nano
        self.ended: int = sent.end_time_unix_nano
        self.failed: bool = sent.status.code == 2
        self.attributes = _values(sent.attributes)
        self.resource = resource


def _values(sent: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in sent}


class Watchers:
    """Takes `/v1/traces` and `/api/…/envelope/`; while `hangs` is set, nobody gets an answer."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.events: list[dict[str, Any]] = []
        self.raw = b""
        self.hanging = 0
        self.answers = threading.Event()
        self.answers.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def dsn(self) -> str:
        return self.url.replace("http://", "http://0123456789abcdef@") + "/7"

    def reset(self) -> None:
        self.spans.clear()
        self.events.clear()

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def wait(self, is_so: Callable[[], Any]) -> Any:
        """What the function answers, once that is anything."""
        deadline = time.monotonic() + 15
        while not (found := is_so()):
            assert time.monotonic() < deadline, [span.name for span in self.spans]
            time.sleep(0.02)
        return found

    def span(self, name: str, **attributes: Any) -> Span:
        """The one of this name, once it is there."""
        return self.wait(lambda: next((one for one in list(self.spans) if one.name == name), None))

    def take(self, path: str, body: bytes) -> None:
        self.raw += body
        if path == "/v1/traces":
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _values(group.resource.attributes)
                self.spans += [Span(one, resource) for scope in group.scope_spans for one in scope.spans]
        else:
            lines = body.split(b"\n")
            self.events += [
                json.loads(lines[at + 1]) for at, line in enumerate(lines[:-1]) if b'"type":"event"' in line[:200]
            ]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        watchers = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if not watchers.answers.is_set():
                    watchers.hanging += 1
                    watchers.answers.wait(60)
                watchers.take(self.path, body)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                pass

        return Handler
