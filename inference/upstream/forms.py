"""A form with a file, as multipart/form-data: sent from where the file lies, a piece at a time."""

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

PIECE_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True)
class Form:
    """`open` answers a new handle on the file each time: one for each provider that is tried."""

    fields: Mapping[str, Sequence[str]]
    open: Callable[[], BinaryIO]
    filename: str
    content_type: str
    boundary: str = field(default_factory=lambda: secrets.token_hex(16))

    @contextmanager
    def opened(self) -> Iterator[tuple[int, Iterator[bytes]]]:
        """The length of the whole and its pieces, to be read while the file is open."""
        begin, end = self._begin(), f"\r\n--{self.boundary}--\r\n".encode()
        with self.open() as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            yield len(begin) + size + len(end), _pieces(begin, file, size, end)

    def _begin(self) -> bytes:
        """Everything before the file's content."""
        named = [(name, value) for name, values in self.fields.items() for value in values]
        head = f"--{self.boundary}\r\nContent-Disposition: form-data; name="
        fields = "".join(f'{head}"{_quoted(name)}"\r\n\r\n{value}\r\n' for name, value in named)
        about = f'"file"; filename="{_quoted(self.filename)}"\r\nContent-Type: {self.content_type}\r\n\r\n'
        return f"{fields}{head}{about}".encode("utf-8", "replace")


def _quoted(text: str) -> str:
    """As browsers write names."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _pieces(begin: bytes, file: BinaryIO, size: int, end: bytes) -> Iterator[bytes]:
    """Just as many bytes of the file as were announced; it was written a moment ago, and is read from memory."""
    yield begin
    while size > 0 and (piece := file.read(min(PIECE_BYTES, size))):
        size -= len(piece)
        yield piece
    if size:
        raise OSError("The file was cut while it was sent.")
    yield end
