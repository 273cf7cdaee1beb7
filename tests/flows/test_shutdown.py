"""A web process that is told to end settles what it had begun."""

import threading

from tests.server import Server
from tests.upstream import event, finish, story


def test_a_stream_under_way_may_finish(gateway, router, ada, key_of, chat, upstream, records, inflight):
    upstream.reply(chunks=story(), gap=0.15)
    server = Server("uvicorn").start()
    with (
        server.client(key_of(ada)) as client,
        client.stream(
            "POST", "/v1/chat/completions", json={"model": "model", "messages": [], "stream": True}
        ) as response,
    ):
        lines = response.iter_lines()
        assert "Hello" in next(lines)
        ending = threading.Thread(target=server.stop)
        ending.start()
        assert "data: [DONE]" in list(lines)
        ending.join()
    (record,) = records()
    assert (record.outcome, record.total_tokens) == ("finished", 21)
    assert inflight(router) == 0


def test_a_stream_that_outlives_the_grace_is_cut_and_counted(gateway, router, ada, key_of, upstream, records, inflight):
    upstream.reply(chunks=[*story()[:2], event(finish())], then="stall")
    server = Server("uvicorn").start()
    with (
        server.client(key_of(ada)) as client,
        client.stream(
            "POST", "/v1/chat/completions", json={"model": "model", "messages": [], "stream": True}
        ) as response,
    ):
        lines = response.iter_lines()
        assert "Hello" in next(lines)
        server.stop()
        *_, last, _ = lines
        assert last.startswith('data: {"detail":"The server is stopping')
    assert server.process is not None
    assert server.process.returncode == 0
    (record,) = records()
    assert (record.status, record.completion_tokens, record.tokens_estimated) == (200, 3, True)
    assert inflight(router) == 0
    assert upstream.received[0].left.wait(1)
