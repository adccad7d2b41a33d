"""Small data sets in folders and archives, for tests."""

import io
import zipfile

import openpyxl
from PIL import Image


def png(level, size=8, mode="L"):
    file = io.BytesIO()
    Image.new("L", (size, size), level).convert(mode).save(file, "PNG")
    return file.getvalue()


def lay_out(root, files):
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return root


def pack(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as packed:
        for name, data in files.items():
            packed.writestr(name, data)
    return path


def xlsx(rows):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    file = io.BytesIO()
    book.save(file)
    return file.getvalue()


TWO = {"A/1.png": png(10), "A/2.png": png(20), "B/1.png": png(30)}


def summary(source):
    return [(r.name, source.classes[r.label], r.split) for r in source.records]
