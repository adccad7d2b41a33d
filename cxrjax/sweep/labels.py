"""How the hyper-parameters of trials are named and written in tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def fields(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The dotted fields of the grid, in its order."""
    return list(dict.fromkeys(field for record in records for field in record["values"]))


def varied(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that take more than one value, in the grid's order."""
    return [field for field in fields(records) if len(levels(records, field)) > 1]


def levels(records: Iterable[Mapping[str, Any]], field: str) -> list[Any]:
    """The different values of a field: numbers by size, others in the order in which they come."""
    found = {text(v): v for r in records if (v := r["values"].get(field)) is not None}
    values = list(found.values())
    return sorted(values) if all(map(is_number, values)) else values


def is_number(value: Any) -> bool:
    """Whether it has a place on a numeric axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def short(names: Sequence[str]) -> dict[str, str]:
    """A short name for each dotted field: as many of its last parts as set it apart."""
    found = {}
    for name in names:
        parts, tail = name.split("."), name
        for size in range(1, len(parts) + 1):
            tail = ".".join(parts[-size:])
            if sum(other == tail or other.endswith("." + tail) for other in names) == 1:
                break
        found[name] = tail.replace("_", " ")
    return found


def text(value: Any) -> str:
    """A value as short as it can be: 1e-04 as 0.0001, 1e-05 as 1e-5, lists with commas."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        plain = f"{value:g}"
        return plain.replace("e-0", "e-").replace("e+0", "e")
    return str(value)
