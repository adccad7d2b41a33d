"""Tables that come with image sets (CSV, Excel): what they say of patients and sources."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator

from cxrjax.data.sources import Files
from cxrjax.errors import UserError

_MAX_UNPACKED = 512 * 2**20  # bytes a workbook may grow to while it is read


def read_table(files: Files, name: str) -> list[dict[str, str]]:
    """Rows of a CSV file or of an Excel workbook's first sheet, by its header.

    Args:
      files: where the table lies; which of the two it is is read from its bytes.
      name: its name among the files.
    Returns:
      Rows as {column: text}: column names in lower case with "_" as " ", surrounding blanks
      removed, empty cells left out.
    Raises:
      UserError: when it is neither.
    """
    try:
        data = files.read(name)
        rows = _excel(data) if data[:2] == b"PK" else _csv(data)
        header = [cell.strip().lower().replace("_", " ") for cell in next(rows, [])]
        cells = [[cell.strip() for cell in row] for row in rows]
    except Exception as error:  # workbooks fail in many ways
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{files.path}: {name} cannot be read as a table ({reason}); save it as CSV in UTF-8 "
            "or remove it."
        ) from error
    return [{name: cell for name, cell in zip(header, row, strict=False) if cell} for row in cells]


def _csv(data: bytes) -> Iterator[list[str]]:
    return csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))


def _excel(data: bytes) -> Iterator[list[str]]:
    import openpyxl

    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        # A member never unpacks to more than its header says, so the sum is a bound.
        if sum(info.file_size for info in packed.infolist()) > _MAX_UNPACKED:
            raise ValueError("it unpacks to an unreasonable size")
    workbook = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    try:
        sheet = workbook.worksheets[0]
        sheet.reset_dimensions()  # some writers leave a stale one, and rows would be cut off
        for row in sheet.iter_rows(values_only=True):
            yield ["" if cell is None else str(cell) for cell in row]
    finally:
        workbook.close()
