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


def telling(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Dotted field to short name, of the fields that vary; of all where none does."""
    names = short(fields(records))
    return {field: names[field] for field in varied(records) or names}


def levels(records: Iterable[Mapping[str, Any]], field: str) -> list[Any]:
    """The different values of a field: numbers by size, others in the order in which they come."""
    found = {text(v): v for r in records if (v := r["values"].get(field)) is not None}
    values = list(found.values())
    return sorted(values) if all(map(is_number, values)) else values


def is_number(value: Any) -> bool:
    """Whether it has a place on a numeric axis."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def short(names: Sequence[str]) -> dict[str, str]:
    """A short name for each dotted field: as many of its last parts as set it apart.

    A field called name stands for what it names: `model.name` is short for the model.
    """
    plain = {name: name.removesuffix(".name") for name in names}
    found = {}
    for name, whole in plain.items():
        parts, tail = whole.split("."), whole
        for size in range(1, len(parts) + 1):
            tail = ".".join(parts[-size:])
            if sum(f".{other}".endswith(f".{tail}") for other in plain.values()) == 1:
                break
        found[name] = tail.replace("_", " ")
    return found


def text(value: Any) -> str:
    """A value as short as it can be: 0.001, 1e-4, lists with commas."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value))
    if isinstance(value, float):
        plain = f"{value:e}" if 0 < abs(value) < 1e-3 else f"{value:g}"
        digits, mark, power = plain.partition("e")
        if mark:
            return f"{digits.rstrip('0').rstrip('.')}e{int(power)}"
        return plain
    return str(value)


def point(values: Mapping[str, Any], names: Mapping[str, str], seed: int | None = None) -> str:
    """A point in words, such as `learning rate 0.001, dropout 0.3, seed 2`.

    Args:
      names: dotted field to short name, of the fields to be told.
      seed: told where given.
    """
    told = []
    for field, name in names.items():
        if field in values:
            speaks = field.endswith((".name", ".optimizer"))  # adam needs no "optimizer" before it
            told.append(text(values[field]) if speaks else f"{name} {text(values[field])}")
    return ", ".join(told + ([f"seed {seed}"] if seed is not None else [])) or "the only point"
