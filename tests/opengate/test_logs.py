"""What formatters make of records that hold what nobody may read."""

import io
import json
import logging
import sys
import time
from contextvars import copy_context

import pytest
from django.db import IntegrityError, OperationalError
from django.test import RequestFactory

from opengate import work
from opengate.logs import Handler, JSONLines, Lines


def record(message, *args, name="test", error=None):
    made = logging.LogRecord(name, logging.ERROR, __file__, 1, message, args, None)
    if error is not None:
        try:
            raise error
        except Exception:
            made.exc_info = sys.exc_info()
    return made


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("key sk-eyJhbGciOi.J9 fails", "key *** fails"),
        ("Bearer abcdefgh12345678, then", "***, then"),
        ("{'Authorization': 'Custom words of a key'}", "{'***"),
        ("to redis://me:s3cret-word@host:6379/0", "to redis://***@host:6379/0"),
        ("ada.lovelace+x@mail.example.org was here", "*** was here"),
        ("password='correct-horse' of", "*** of"),
        ("client_secret='two words' of", "client_*** of"),
        ("/users/ada%40example.org/", "/users/***/"),
        ("prompt_tokens=12 total_tokens: 3", "prompt_tokens=12 total_tokens: 3"),
    ],
)
def test_what_looks_like_a_secret_is_hidden(written, read):
    assert json.loads(JSONLines().format(record(written)))["message"] == read


@pytest.mark.parametrize("long", ["a" * 60_000, "://" + "a" * 60_000, "%41" * 20_000, "a@" * 30_000, "token" * 12_000])
def test_a_long_path_is_read_once_and_cut(long):
    """Anybody may ask for one, and while a pattern runs nothing else does: 60,000 letters once took 28 seconds."""
    began = time.process_time()
    line = Lines().format(record("Not Found: /%s", long))
    assert time.process_time() - began < 1
    assert len(line) < 9000


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("zebras"), "ValueError"),
        (KeyError("zebras"), "KeyError"),
        (IntegrityError("zebras"), "django.db.utils.IntegrityError"),
        (FileNotFoundError(2, "No such file", "zebras"), "FileNotFoundError: No such file"),
        (OperationalError("connection refused"), "django.db.utils.OperationalError: connection refused"),
        (AttributeError("no attribute 'x'"), "AttributeError: no attribute 'x'"),
        (ExceptionGroup("zebras", [ValueError("zebras")]), "Traceback (most recent call last):\nValueError"),
    ],
)
def test_of_an_exception_only_safe_words_are_told(error, told):
    written = json.loads(JSONLines().format(record("Failed.", error=error)))["exception"]
    assert written.endswith(told)
    assert "zebras" not in written


def test_a_callers_line_break_makes_no_line():
    line = Lines().format(record("Not Found: %s", "/x\n2026-01-01T00:00:00Z ERROR forged: \x1b[31m"))
    assert line.isprintable()


def test_libraries_that_put_the_exception_into_the_message_are_cut_short():
    lost = record("Task exception was never retrieved\nfuture: ValueError('zebras')", name="asyncio")
    told = {"name": "some.task", "id": "1", "description": "raised unexpected", "exc": "ValueError('zebras')"}
    task = record("Task %(name)s[%(id)s] %(description)s: %(exc)s", told, name="celery.app.trace")
    assert "zebras" not in Lines().format(lost) + Lines().format(task)
    assert "some.task[1] raised unexpected" in Lines().format(task)


def test_a_record_that_cannot_be_written_is_not_shown_as_it_is():
    class Broken(logging.Formatter):
        def format(self, record):
            raise ValueError("zebras")

    written = io.StringIO()
    handler = Handler(written)
    handler.setFormatter(Broken())
    handler.handle(record("zebras"))
    assert "A record of test is left out (ValueError)" in written.getvalue()
    assert "zebras" not in written.getvalue()


def test_a_record_knows_the_request_it_belongs_to():
    def said():
        work.begin(work.Work(request_id="0123", user_id=7))
        return json.loads(JSONLines().format(record("Said.")))

    written = copy_context().run(said)
    assert (written["request_id"], written["user_id"], written["level"]) == ("0123", 7, "ERROR")
    assert written["time"].endswith("Z")


def test_the_path_of_a_refused_request_is_told_by_its_pattern_alone():
    refused = record("%s: %s", "Not Found", "/my/secret/words")
    refused.name, refused.request = "django.request", RequestFactory().get("/my/secret/words")
    told = Lines().format(refused)
    assert "django.request: Not Found: (no route)" in told
    assert "secret" not in told
