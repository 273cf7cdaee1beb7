"""Spreadsheets: a table for each sheet, of values as they were last computed."""

import io
from collections.abc import Iterator
from datetime import datetime, time
from typing import Any

from openpyxl.reader.excel import load_workbook

from knowledge.readers import Options, Part, Refused
from knowledge.readers.archive import opened
from knowledge.readers.markdown import blocks, heading, table

CONTENT = r"spreadsheetml\.(?:sheet|template)\.main\+xml|ms-excel\.(?:sheet|template)\.macroEnabled"
EMPTY_CELLS = 20  # so many empty ones may stand beside each that counts


def read(document: bytes, options: Options) -> Iterator[Part]:
    opened(document, "XLSX", "[Content_Types].xml", CONTENT)
    workbook = load_workbook(io.BytesIO(document), read_only=True, data_only=True, keep_links=False)
    sheets = workbook.worksheets
    if len(sheets) > options.max_pages:
        raise Refused(f"The document has {len(sheets)} sheets; at most {options.max_pages} are read.")
    cells = _Cells(options.max_cells)
    for number, sheet in enumerate(sheets, 1):
        sheet.reset_dimensions()  # those of the file may be lies
        rows = table(list(cells.of(sheet)))
        yield Part(blocks([heading(sheet.title, 1), rows]) if rows else "", number, len(sheets))


class _Cells:
    """Counts the cells of all sheets."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.full = 0
        self.all = 0

    def of(self, sheet: Any) -> Iterator[list[str]]:
        for row in sheet.iter_rows(values_only=True):
            self.full += sum(value is not None for value in row)
            self.all += len(row)
            if self.full > self.limit or self.all > self.limit * EMPTY_CELLS:
                raise Refused(f"The spreadsheet has more than {self.limit} cells.")
            values = [_written(value) for value in row]
            while values and not values[-1]:
                values.pop()
            if values:
                yield values


def _written(value: object) -> str:
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat(" ", "minutes")
    if isinstance(value, float):
        return f"{value:.15g}"
    return "" if value is None else str(value)
