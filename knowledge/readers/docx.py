"""Word documents, by way of HTML."""

import io
from collections.abc import Iterator

import mammoth

from knowledge.readers import Options, Part
from knowledge.readers.archive import opened
from knowledge.readers.html import markdown_of

CONTENT = r"wordprocessingml\.(?:document|template)\.main\+xml|ms-word\.(?:document|template)\.macroEnabled"
STYLES = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => h2:fresh"


def read(document: bytes, options: Options) -> Iterator[Part]:
    opened(document, "DOCX", "[Content_Types].xml", CONTENT)
    html = mammoth.convert_to_html(
        io.BytesIO(document), style_map=STYLES, include_embedded_style_map=False, convert_image=lambda image: []
    )
    yield Part(markdown_of(f"<body>{html.value}</body>"))
