"""The one line of a run: its accuracy, and beside it the reasons to doubt it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def line(result: Mapping[str, Any]) -> str:
    """E.g. `accuracy .93 [.91, .95] n=1365; leaks 0; shortcut score .42: CONFOUNDED`.

    Leaks are the near-duplicate pairs and patients that cross into the test split. The shortcut
    score is what the shortcut audit has put into `result["audit"]["shortcut"]`: `score` as {value,
    low, high, n} and `word`, a finding in a word or "".

    Args:
      result: the content of result.json.
    """
    accuracy = result["test"]["accuracy"]
    leaks = leaks_into_test(result["audit"])
    return "; ".join(
        [
            f"accuracy {interval(accuracy)} n={accuracy['n']}",
            f"leaks {leaks}{': LEAKY' if leaks else ''}",
            _shortcut(result["audit"].get("shortcut")),
        ]
    )


def leaks_into_test(audit: Mapping[str, Any]) -> int:
    """Near-duplicate pairs and patients that the test split shares with another one."""
    counts = audit["leaks"]
    return sum(
        number
        for kind in ("pairs", "patients")
        for sides, number in counts[kind].items()
        if "test" in sides
    )


def _shortcut(found: Mapping[str, Any] | None) -> str:
    if not found or found["score"]["value"] is None:
        return "shortcut score not measured"
    word = f": {found['word']}" if found.get("word") else ""
    return f"shortcut score {short(found['score']['value'])}{word}"


def interval(metric: Mapping[str, Any]) -> str:
    """A figure with its interval, e.g. `.93 [.91, .95]`."""
    if metric["value"] is None:
        return "undefined"
    return f"{short(metric['value'])} [{short(metric['low'])}, {short(metric['high'])}]"


def short(value: float) -> str:
    """Two digits, the nought before the point left out: .93, 1.00, -.05."""
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
