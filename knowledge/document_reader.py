"""Reads one document from standard input and writes its pages, as Markdown, to standard output; a program of its own.

Documents come from strangers, and much of what reads them is native code: `knowledge.parsing` starts it in a sandbox.
It writes a line of JSON for each page, slide, sheet or chapter as soon as it is read, and one at the end:

    {"page": 1, "of": 12, "markdown": "…"}    `page` is null where the format has none, `of` where nobody knows
    {"done": true}                            or {"refused": "A sentence for whoever sent it."}, which ends it anywhere

    python -m knowledge.document_reader OPTIONS < document     OPTIONS: JSON, see `readers.Options`
"""

import json
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any, BinaryIO

from knowledge.kinds import Kind
from knowledge.readers import Options, Part, Refused
from knowledge.readers.markdown import clean

MAX_CHARACTERS = 50_000_000
READERS = {  # imported when needed: a text waits for no library
    Kind.PDF: "pdf",
    Kind.HTML: "html",
    Kind.MARKDOWN: "text",
    Kind.TEXT: "text",
    Kind.DOCX: "docx",
    Kind.PPTX: "pptx",
    Kind.XLSX: "xlsx",
    Kind.ODT: "odt",
    Kind.EPUB: "epub",
    Kind.EMAIL: "mail",
}


def read(document: bytes, options: Options) -> Iterator[Part]:
    """The document's parts, clean; one without text keeps its place. Raises Refused, and whatever a library raises."""
    if not document:
        raise Refused("The file is empty.")
    reader = import_module(f"knowledge.readers.{READERS[Kind(options.kind)]}")
    characters, has_text = 0, False
    for part in reader.read(document, options):
        markdown = clean(part.markdown)
        characters += len(markdown)
        if characters > MAX_CHARACTERS:
            raise Refused("The document has too much in it.")
        has_text = has_text or bool(markdown)
        yield Part(markdown, part.page, part.of)
    if not has_text:
        raise Refused("The document has no text.")


def main() -> None:
    output = sys.stdout.buffer
    try:
        options = Options(**json.loads(sys.argv[1]))
        for part in read(sys.stdin.buffer.read(), options):
            _write(output, {"page": part.page, "of": part.of, "markdown": part.markdown})
        _write(output, {"done": True})
    except Refused as refused:
        _write(output, {"refused": str(refused)})
    except MemoryError:
        _write(output, {"refused": "The document needs more memory than there is for it."})
    except Exception:  # whatever a library makes of a broken file
        _write(output, {"refused": "Parsing document failed."})


def _write(output: BinaryIO, answer: dict[str, Any]) -> None:
    output.write(json.dumps(answer, ensure_ascii=False).encode() + b"\n")
    output.flush()


if __name__ == "__main__":
    main()
