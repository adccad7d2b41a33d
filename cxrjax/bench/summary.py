"""Medians, spreads and ratios of windows, and the table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Rows that the others are told in terms of.
BASES = {
    "synthetic": ("cached", "resident", "tfdata", "end_to_end"),
    "cached": ("end_to_end",),
}


def spread(rates: Sequence[float]) -> dict[str, Any]:
    """Median, extremes and interquartile range of images per second, and all windows in order."""
    low, median, high = np.percentile(rates, (25, 50, 75))
    return {
        "median": float(median),
        "min": float(min(rates)),
        "max": float(max(rates)),
        "iqr": float(high - low),
        "windows": [round(float(rate), 4) for rate in rates],
    }


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Median and range of ours over theirs, window by window."""
    each = np.asarray(ours) / np.asarray(theirs)
    return {"median": float(np.median(each)), "min": float(each.min()), "max": float(each.max())}


def table(result: Mapping[str, Any]) -> str:
    """The benchmark as text: machine, a line per row, a line per peer, ours over synthetic."""
    peak = result["peak"]
    lines = [
        f"{result['model']}, {result['image_size']} pixels, {result['precision']}, "
        f"trainable_layers {result['trainable_layers']}, on {result['device']}, "
        f"{result['threads']} threads; peak {peak['flop_per_second'] / 1e9:,.0f} GFLOP/s "
        f"({peak['dtype']} matrix product)",
        f"{'row':16} {'batch':>5} {'images/s':>9} {'min - max':>19} {'IQR':>7} {'compile s':>9} "
        f"{'peak MB':>8} {'GFLOP/image':>11} {'of peak':>7}",
    ]
    for row in result["rows"]:
        lines.append(_line(row["row"], row))
        for peer, figures in row["peers"].items():
            lines.append(_line(f"  {peer}", figures | {"batch_size": row["batch_size"]}))
            ratio = figures["ratio"]
            lines.append(
                f"  ours / {peer}: {ratio['median']:.2f} [{ratio['min']:.2f}, {ratio['max']:.2f}]"
            )
    rows = {row["row"]: row for row in result["rows"]}
    for base, others in BASES.items():
        for name in others:
            if name in rows and base in rows:
                lines.append(f"{name} / {base}: {_ratio(rows[name], rows[base])}")
    memory = [row["peak_memory"]["of"] for row in result["rows"]]
    return "\n".join([*lines, f"peak memory is of the {' and '.join(sorted(set(memory)))}"])


def _ratio(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """Of windows taken in turn where there are some, else of the medians of both rows."""
    if over := row.get("over", {}).get(base["row"]):
        return f"{over['median']:.3f} [{over['min']:.3f}, {over['max']:.3f}], in turn"
    rates = [of["images_per_second"]["median"] for of in (row, base)]
    return f"{rates[0] / rates[1]:.3f}"


def _line(name: str, figures: Mapping[str, Any]) -> str:
    rate = figures["images_per_second"]
    extremes = f"{rate['min']:.2f} - {rate['max']:.2f}"
    return (
        f"{name:16} {figures['batch_size']:5} {rate['median']:9.2f} {extremes:>19} "
        f"{rate['iqr']:7.2f} {_number(figures.get('compile_seconds'), 9, 1)} "
        f"{_number(figures['peak_memory']['bytes'] / 1e6, 8, 0)} "
        f"{_giga(figures.get('flop_per_image')):>11} "
        f"{_number(figures.get('share_of_peak'), 7, 3)}"
    )


def _giga(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e9:.4g}"


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
