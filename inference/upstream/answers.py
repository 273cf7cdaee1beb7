"""What an answer must hold to be one: JSON in, checked rows out. Whatever else raises UnreadableAnswer."""

import math
import sys
from array import array
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json

from inference.errors import UnreadableAnswer

Payload = dict[str, Any]


def parsed(raw: bytes) -> Any:
    """JSON of an answer."""
    try:
        return from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise UnreadableAnswer from error


def objects(rows: Any) -> list[Payload]:
    """A list of JSON objects."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnreadableAnswer
    return rows


def vectors(data: Any, count: int, size: int | None) -> list[Payload]:
    """`count` rows in the order of their `index`; each `embedding` has as many finite numbers as `size`, or any."""
    rows = objects(data)
    if len(rows) != count:
        raise UnreadableAnswer
    if all("index" in row for row in rows):
        rows = _by_index(rows)
    for row in rows:
        vector = row.get("embedding")
        if (
            not isinstance(vector, list)
            or not vector
            or len(vector) != (size or len(vector))
            or not _are_finite(vector)
        ):
            raise UnreadableAnswer
        size = len(vector)
    return rows


def ranks(results: Any, count: int) -> list[Payload]:
    """Rows with an `index` below `count`, none twice, and a finite `relevance_score`."""
    rows = objects(results)
    indexes = [row.get("index") for row in rows]
    if not all(_is_index(index, count) for index in indexes) or len(set(indexes)) != len(rows):
        raise UnreadableAnswer
    if not _are_finite([row.get("relevance_score") for row in rows]):
        raise UnreadableAnswer
    return rows


def packed(vector: list[float]) -> str:
    """The base64 of a vector as little-endian 32-bit floats; not of numbers that are too large for those."""
    numbers = array("f", vector)
    if not _are_finite(numbers):
        raise UnreadableAnswer
    if sys.byteorder == "big":
        numbers.byteswap()
    return b64encode(numbers.tobytes()).decode()


def text(raw: bytes) -> str:
    """A text; some servers send JSON with a `text`, whatever format they are asked for."""
    if raw.startswith(b"{"):
        try:
            answer = from_json(raw)
        except ValueError:
            answer = None
        if isinstance(answer, dict) and isinstance(answer.get("text"), str):
            return str(answer["text"])
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise UnreadableAnswer from None


def _by_index(rows: list[Payload]) -> list[Payload]:
    """The rows in the order of their `index`, each number once."""
    found = {row["index"]: row for row in rows if _is_index(row["index"], len(rows))}
    if len(found) != len(rows):
        raise UnreadableAnswer
    return [found[index] for index in range(len(rows))]


def _is_index(value: Any, count: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count


def _are_finite(numbers: Sequence[Any]) -> bool:
    """Whether all are finite numbers; one sum tells, and costs little for a million of them."""
    try:
        return math.isfinite(sum(numbers)) or all(map(math.isfinite, numbers))
    except (TypeError, OverflowError):
        return False
