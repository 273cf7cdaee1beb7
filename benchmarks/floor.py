#!/usr/bin/env python3
"""The least a proxy in Python can cost on this machine: the floor that a gateway is compared with.

Callbacks only: no ASGI, no task per request, no authentication, no limits, no accounting. A request
is parsed (httptools), sent to the provider over a kept-alive connection, and the answer's bytes are
passed on as they come, framing included. Run it as one more target of load.py, in the same run as
the gateway: cpu_ms_per_request of the gateway over that of the floor is the gateway's own share.

    python floor.py --port 8700 --upstream 127.0.0.1:9100
    load.py --target floor,url=http://127.0.0.1:8700/v1,pids=port:8700 --target gateway,...
"""

from __future__ import annotations

import argparse
import asyncio

import httptools

try:
    import uvloop
except ImportError:
    uvloop = None


class Upstream(asyncio.Protocol):
    idle: list[Upstream] = []

    def __init__(self):
        self.transport = self.client = self.parser = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        client = self.client
        if client is not None:
            if client.transport is not None:
                client.transport.write(data)
            self.parser.feed_data(data)

    def on_message_complete(self):
        self.client.upstream = None
        self.client = None
        self.idle.append(self)

    def connection_lost(self, exc):
        self.transport = None
        if self.client is not None and self.client.transport is not None:
            self.client.transport.close()


class Client(asyncio.Protocol):
    address = ("127.0.0.1", 9100)

    def connection_made(self, transport):
        self.transport = transport
        self.upstream = None
        self.begin()

    def begin(self):
        self.parser = httptools.HttpRequestParser(self)
        self.body, self.path = [], b""

    def connection_lost(self, exc):
        self.transport = None
        if self.upstream is not None:  # the reader left: stop the provider too
            self.upstream.client = None
            self.upstream.transport.abort()

    def data_received(self, data):
        self.parser.feed_data(data)

    def on_url(self, url):
        self.path = url

    def on_body(self, data):
        self.body.append(data)

    def on_message_complete(self):
        body = b"".join(self.body)
        message = (
            b"POST %s HTTP/1.1\r\nHost: upstream\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (self.path, len(body), body)
        )
        self.begin()
        while Upstream.idle:
            upstream = Upstream.idle.pop()
            if upstream.transport is not None and not upstream.transport.is_closing():
                return self.forward(upstream, message)
        asyncio.get_running_loop().create_task(self.dial(message))

    async def dial(self, message):
        _, upstream = await asyncio.get_running_loop().create_connection(Upstream, *self.address)
        self.forward(upstream, message)

    def forward(self, upstream, message):
        if self.transport is None:
            Upstream.idle.append(upstream)
            return
        upstream.client, self.upstream = self, upstream
        upstream.parser = httptools.HttpResponseParser(upstream)
        upstream.transport.write(message)


async def main(options):
    host, _, port = options.upstream.rpartition(":")
    Client.address = (host, int(port))
    server = await asyncio.get_running_loop().create_server(Client, "127.0.0.1", options.port, backlog=2048)
    print(f"floor on http://127.0.0.1:{options.port}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=8700)
    parser.add_argument("--upstream", default="127.0.0.1:9100")
    (uvloop.run if uvloop else asyncio.run)(main(parser.parse_args()))
