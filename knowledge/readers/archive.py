"""Office documents and books are archives: what is in them, and how much, before a library opens them."""

import io
import re
import zipfile
import zlib
from xml.parsers import expat

from knowledge.readers import Refused

MAX_BYTES = 300 * 1024 * 1024
MAX_ENTRIES = 10_000
MAX_RATIO = 200  # of what is unpacked to what is packed; deflate itself reaches 1,030
RATIO_MATTERS_FROM_BYTES = 20 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
_OLD_OFFICE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"  # what Office wraps an encrypted document in, too
_ENCRYPTED_FLAG = 0x1
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_TOO_MUCH = "The document has too much in it."


def opened(document: bytes, name: str, part: str, content: str, *, allows_entities: bool = False) -> zipfile.ZipFile:
    """The archive, once all in it is counted; `part` of it must match the pattern `content`, else it is no `name`.

    Raises Refused. XML that declares entities is refused: no such format has any, and a few lines of them unfold to
    gigabytes. Only whoever reads no part as XML that unfolds them may allow them.
    """
    no_such = Refused(f"The file is not {_article(name)} {name} document.")
    if document.startswith(_OLD_OFFICE) and "EncryptedPackage".encode("utf-16-le") in document:
        raise Refused("The document is protected by a password.")
    try:
        archive = zipfile.ZipFile(io.BytesIO(document))
        _count(archive, len(document), no_such, allows_entities)
        head = archive.read(part).decode("utf-8", "replace") if part in archive.NameToInfo else ""
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError):
        raise no_such from None
    if re.search(content, head) is None:
        raise no_such
    return archive


def _count(archive: zipfile.ZipFile, packed_bytes: int, no_such: Refused, allows_entities: bool) -> None:
    """Unpack everything once, keeping nothing: sizes in a directory may be lies."""
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > MAX_BYTES:
        raise Refused(_TOO_MUCH)
    unpacked = 0
    for entry in entries:
        if entry.flag_bits & _ENCRYPTED_FLAG:
            raise Refused("The document is protected by a password.")
        if entry.compress_type not in _PACKINGS:
            raise no_such
        prolog = None if allows_entities else _Prolog(is_xml=entry.filename.lower().endswith((".xml", ".rels")))
        with archive.open(entry) as file:
            while chunk := file.read(_CHUNK_BYTES):
                unpacked += len(chunk)
                if unpacked > MAX_BYTES or (
                    unpacked > RATIO_MATTERS_FROM_BYTES and unpacked > MAX_RATIO * packed_bytes
                ):
                    raise Refused(_TOO_MUCH)
                if prolog is not None and not prolog.accepts(chunk):
                    raise no_such


class _Prolog:
    """Looks at a part of an archive until its first element begins."""

    def __init__(self, *, is_xml: bool) -> None:
        self.is_xml = is_xml
        self.has_entities = False
        self.is_over = False
        self.parser = expat.ParserCreate()
        self.parser.EntityDeclHandler = self._entity
        self.parser.StartElementHandler = self._element

    def accepts(self, chunk: bytes) -> bool:
        """False as soon as an entity is declared, or what is named XML does not begin like it."""
        if self.is_over:
            return True
        try:
            self.parser.Parse(chunk)
        except expat.ExpatError:
            began, self.is_over = self.is_over, True
            return (began or not self.is_xml) and not self.has_entities
        return not self.has_entities

    def _entity(self, *arguments: object) -> None:
        self.has_entities = self.is_over = True

    def _element(self, *arguments: object) -> None:
        self.is_over = True
        self.parser.StartElementHandler = None


def _article(name: str) -> str:
    return "an" if name[0] in "AEIOUX" else "a"
