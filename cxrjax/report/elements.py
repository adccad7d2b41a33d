"""The parts of a page: text enters HTML only through here, and is escaped."""

from __future__ import annotations

import base64
import html
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cxrjax.report.pictures import Picture

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Html(str):
    """Text that is HTML already. Any other value is escaped when it becomes part of it."""


class Cell(Html):
    """A whole `td`."""


def text(value: object) -> Html:
    """A value as HTML text.

    Names come from files and folders of anybody: bytes that are no UTF-8 are shown as such, control
    characters and those that turn the direction of writing are replaced.
    """
    if isinstance(value, Html):
        return value
    plain = str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    return Html(html.escape(_UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", plain)))


def join(parts: Iterable[object], between: str = "\n") -> Html:
    """Values one after the other."""
    return Html(between.join(map(text, parts)))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element; `class_` stands for class, an attribute that is None is left out."""
    told = "".join(
        f' {key.rstrip("_")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{told}>{join(content, '')}</{name}>")


def paragraph(*content: object, class_: str | None = None) -> Html:
    """A paragraph."""
    return tag("p", *content, class_=class_)


def bullets(items: Iterable[object]) -> Html:
    """A list; nothing where it is empty."""
    rows = [tag("li", item) for item in items]
    return tag("ul", *rows) if rows else Html()


def command(*words: object) -> Html:
    """A command line to be copied: `python -m` and the words, quoted for a shell."""
    return tag("code", shlex.join(["python", "-m", *map(str, words)]))


def missing(what: str, *words: object) -> Html:
    """The sentence in the place of what is not there.

    Args:
      what: e.g. "The audit is not here".
      words: the command that makes it, see `command`.
    """
    return paragraph(f"{what}; ", command(*words), " makes it.", class_="missing")


def percent(share: float) -> str:
    """A share as `79 %`, not torn apart at the end of a line.

    Only all is `100 %` and only none `0 %`: what rounds to them has decimals, or a bound.
    """
    texts = [f"{100 * share:.{places}f}" for places in range(3)]
    whole = share in (0, 1)
    text = next((text for text in texts if whole or float(text) not in (0, 100)), "")
    return f"{text or ('> 99.99' if share > 0.5 else '< 0.01')}\N{NO-BREAK SPACE}%"


def interval(entry: Mapping[str, Any], *, n: bool = True) -> Html:
    """A figure {value, low, high, n} as `0.787 [0.691, 0.877] n = 80`."""
    if entry["value"] is None:
        return Html("undefined")
    bounds = "" if entry["low"] is None else f" [{entry['low']:.3f}, {entry['high']:.3f}]"
    count = Html(f" <small>n = {int(entry['n'])}</small>") if n else ""
    return join([f"{entry['value']:.3f}", tag("span", bounds, class_="range"), count], "")


def table(
    caption: object, head: Sequence[object], rows: Iterable[Sequence[object]], class_: str = ""
) -> Html:
    """A table whose first column names the rows; wide ones scroll on a narrow screen.

    Args:
      head: of each column; all empty: no head.
      rows: values, or a `Cell` that is taken as it stands.
    """
    top = tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head)))
    body = []
    for first, *rest in rows:
        cells = [cell if isinstance(cell, Cell) else tag("td", cell) for cell in rest]
        body.append(tag("tr", tag("th", first, scope="row"), *cells))
    inner = tag("table", tag("caption", caption), top if any(head) else "", tag("tbody", *body))
    return tag("div", inner, class_=f"table {class_}".strip(), tabindex="0")


def matrix(caption: object, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Html:
    """A confusion matrix: counts and shares of their row, the darker the more."""
    rows = []
    for name, row in zip(classes, counts, strict=True):
        whole = sum(row)
        cells = [_cell(count, count / whole if whole else 0.0) for count in row]
        rows.append([name, *cells, whole])
    head = ["true class", *(join(["→ ", name], "") for name in classes), "images"]
    return table(caption, head, rows, "matrix")


def _cell(count: int, share: float) -> Cell:
    shade = f"background:rgb(0 114 178 / {0.5 * share:.2f})"
    return Cell(tag("td", count, Html(f" <small>{percent(share)}</small>"), style=shade))


def figure(picture: Picture | None, alt: str, caption: object) -> Html:
    """A picture inside the page; nothing where there is none.

    Args:
      alt: what it shows, for those who do not see it.
      caption: below it; may be empty.
    """
    if picture is None:
        return Html()
    data = base64.b64encode(picture.data).decode("ascii")
    image = (
        f'<img src="data:image/png;base64,{data}" width="{picture.width}" '
        f'height="{picture.height}" alt="{text(alt)}">'
    )
    note = " Only its upper part is shown." if picture.cut else ""
    below = tag("figcaption", caption, note) if caption or note else ""
    return tag("figure", Html(image), below)


def section(name: str, title: str, *content: object) -> Html:
    """A part of the page with its heading."""
    return tag("section", tag("h2", title), join(content), id=name)


def document(title: str, style: str, *content: object) -> str:
    """The whole page. Its policy forbids a browser to load anything."""
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            Html('<meta name="color-scheme" content="light dark">'),
            tag("title", title),
            tag("style", Html(style)),
        ]
    )
    body = tag("body", tag("main", join(content)))
    return f"<!doctype html>\n{tag('html', tag('head', head), body, lang='en')}\n"
