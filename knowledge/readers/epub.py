"""Books: chapters in the order of their spine."""

import posixpath
from collections.abc import Iterator
from urllib.parse import unquote
from zipfile import ZipFile

from lxml import etree

from knowledge.readers import Options, Part, Refused
from knowledge.readers.archive import opened
from knowledge.readers.html import markdown_of

CONTAINER, ENCRYPTION = "META-INF/container.xml", "META-INF/encryption.xml"
_CHAPTERS = ("application/xhtml+xml", "text/html")


def read(document: bytes, options: Options) -> Iterator[Part]:
    archive = opened(document, "EPUB", CONTAINER, "rootfile", allows_entities=True)
    locked = _locked(archive)
    chapters = [name for name in _spine(archive) if name in archive.NameToInfo]
    if locked.intersection(chapters):
        raise Refused("The document is encrypted.")
    for name in chapters:
        yield Part(markdown_of(archive.read(name)), None, len(chapters))


def _spine(archive: ZipFile) -> list[str]:
    """The archive's names of what is read one after the other."""
    package = _parsed(archive, CONTAINER).xpath("string(//*[local-name()='rootfile']/@full-path)")
    if package not in archive.NameToInfo:
        raise Refused("The file is not an EPUB document.")
    root, folder = _parsed(archive, package), posixpath.dirname(package)
    names = {
        item.get("id"): posixpath.normpath(posixpath.join(folder, unquote(item.get("href", ""))))
        for item in root.xpath("//*[local-name()='manifest']/*[local-name()='item']")
        if item.get("media-type") in _CHAPTERS
    }
    order = root.xpath("//*[local-name()='spine']/*[local-name()='itemref']/@idref")
    return list(dict.fromkeys(names[id] for id in order if id in names))


def _locked(archive: ZipFile) -> set[str]:
    if ENCRYPTION not in archive.NameToInfo:
        return set()
    found = _parsed(archive, ENCRYPTION).xpath("//*[local-name()='CipherReference']/@URI")
    return {unquote(name) for name in found}


def _parsed(archive: ZipFile, name: str) -> etree._Element:
    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True)
    try:
        return etree.fromstring(archive.read(name), parser)
    except etree.XMLSyntaxError:
        raise Refused("The file is not an EPUB document.") from None
