"""The splitter of events, cut at any place."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import UnreadableAnswer
from inference.streaming import Reading, Splitter, encode
from tests.upstream import chunk

texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)


@given(st.lists(texts, min_size=1, max_size=8), st.data(), st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_are_the_same_wherever_the_bytes_are_cut(words, data, line_end):
    events = [json.dumps(chunk(word), ensure_ascii=False).encode() for word in words]
    whole = b"".join(b"data: %s%s%s" % (event, line_end.encode(), line_end.encode()) for event in events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    pieces = [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    splitter = Splitter()
    found = [event for piece in pieces for event in splitter.feed(piece)] + splitter.end()
    assert found == events


@given(st.lists(texts, max_size=8))
def test_the_text_of_a_stream_is_measured_as_its_bytes(words):
    reading = Reading()
    for number, word in enumerate(words):
        reading.read(json.dumps(chunk(word), ensure_ascii=bool(number % 2)).encode())
    assert reading.text_bytes == sum(len(word.encode()) for word in words)


def test_several_data_lines_are_one_event_and_go_on_as_such():
    (data,) = Splitter().feed(b"data: a\ndata: b\n\n")
    assert data == b"a\nb"
    assert encode(data) == b"data: a\ndata: b\n\n"


def test_an_event_longer_than_the_limit_is_refused(settings):
    splitter = Splitter()
    for _ in range(settings.UPSTREAM_MAX_EVENT_BYTES // 65536):
        assert splitter.feed(b"x" * 65536) == []
    with pytest.raises(UnreadableAnswer):
        splitter.feed(b"x")
