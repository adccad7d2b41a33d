"""The audit in a word: what leaks, and what a classifier still knows without the lungs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A network that keeps more than this of what it knows, where no lung is to be seen, uses something
# else. Not less: with 400 test images the score of a sound one is 0 give or take .1.
CONFOUNDED_ABOVE = 0.15


def leaks(audit: Mapping[str, Any]) -> int:
    """Near-duplicate pairs and patients that reach into the test split from another."""
    counts = audit["leaks"]
    into_test = ("train-test", "validation-test")
    return sum(counts[kind][between] for kind in ("pairs", "patients") for between in into_test)


def word(leaks: int, score: Mapping[str, Any] | None) -> str:
    """LEAKING, CONFOUNDED (the score's interval lies above .15), SOUND (below), or UNCERTAIN.

    Args:
      leaks: see `leaks`.
      score: the shortcut score {value, low, high, n}; None, or None within, where it is unknown.
    """
    known = score is not None and score["value"] is not None
    found = ["LEAKING"] if leaks else []
    if known and score["low"] > CONFOUNDED_ABOVE:  # type: ignore[index]
        found.append("CONFOUNDED")
    if found:
        return " and ".join(found)
    return "SOUND" if known and score["high"] <= CONFOUNDED_ABOVE else "UNCERTAIN"  # type: ignore[index]


def line(accuracy: Mapping[str, Any], audit: Mapping[str, Any]) -> str:
    """E.g. `accuracy .93 [.91, .95] n=1365; leaks 0; shortcut score .42: CONFOUNDED`.

    Args:
      accuracy: {value, low, high, n} of the test split.
      audit: of the run's result: `leaks`, and `shortcuts` where they were looked for.
    """
    value, low, high = (_short(accuracy[key]) for key in ("value", "low", "high"))
    score = (audit.get("shortcuts") or {}).get("score")
    shown = _short(score["value"]) if score else "unknown"
    crossing = leaks(audit)
    return (
        f"accuracy {value} [{low}, {high}] n={accuracy['n']}; leaks {crossing}; "
        f"shortcut score {shown}: {word(crossing, score)}"
    )


def _short(number: float | None) -> str:
    """Two digits, .93 for 0.93."""
    if number is None:
        return "unknown"
    text = f"{number:.2f}"
    return text[1:] if text.startswith("0.") else text
