"""The one line of a run: its accuracy, and beside it the reasons to doubt it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A network that keeps more than this of what it knows, where no lung is to be seen, uses something
# else. Not less: with 400 test images the score of a sound one is 0 give or take .1.
CONFOUNDED_ABOVE = 0.15


def line(result: Mapping[str, Any]) -> str:
    """E.g. `accuracy .93 [.91, .95] n=1365; leaks 0; shortcut score .42: CONFOUNDED`.

    Args:
      result: the content of result.json; `audit` holds `leaks`, and `shortcuts` where they were
        looked for; `trained_on` names the splits trained on; `test` may be missing.
    """
    seen = "validation" in result.get("trained_on", ())
    if "test" not in result:
        accuracy, told = result["validation"]["accuracy"], ", images trained on" if seen else ""
        shown = f"accuracy on validation {interval(accuracy)} n={accuracy['n']}{told}"
        return f"{shown}; test split not read (eval.test is False): NOT TESTED"
    accuracy, found = result["test"]["accuracy"], result["audit"].get("shortcuts")
    score = found["score"] if found else None
    leaks = leaks_into_test(result["audit"])
    shown = "not measured" if score is None else short(score["value"])
    return (
        f"accuracy {interval(accuracy)} n={accuracy['n']}; "
        f"{'trained on validation images too; ' if seen else ''}leaks {leaks}; "
        f"shortcut score {shown}: {word(leaks, score)}"
    )


def word(leaks: int, score: Mapping[str, Any] | None) -> str:
    """LEAKING, CONFOUNDED (the score's interval lies above .15), SOUND (below), or UNCERTAIN.

    UNCERTAIN also where it lies below -.15: what remains without lungs then points at the wrong
    classes, and may be worth something under other names.

    Args:
      leaks: see `leaks_into_test`.
      score: the shortcut score {value, low, high, n}; None, or None within, where it is unknown.
    """
    known = score is not None and score["value"] is not None
    found = ["LEAKING"] if leaks else []
    if known and score["low"] > CONFOUNDED_ABOVE:  # type: ignore[index]
        found.append("CONFOUNDED")
    if found:
        return " and ".join(found)
    sound = known and -CONFOUNDED_ABOVE <= score["high"] <= CONFOUNDED_ABOVE  # type: ignore[index]
    return "SOUND" if sound else "UNCERTAIN"


def leaks_into_test(audit: Mapping[str, Any]) -> int:
    """Near-duplicate pairs and patients that the test split shares with another one."""
    counts = audit["leaks"]
    return sum(
        number
        for kind in ("pairs", "patients")
        for sides, number in counts[kind].items()
        if "test" in sides
    )


def interval(metric: Mapping[str, Any]) -> str:
    """A figure with its interval, e.g. `.93 [.91, .95]`."""
    if metric["value"] is None:
        return "undefined"
    return f"{short(metric['value'])} [{short(metric['low'])}, {short(metric['high'])}]"


def short(value: float | None) -> str:
    """Two digits, the nought before the point left out: .93, 1.00, -.05; or undefined."""
    if value is None:
        return "undefined"
    text = f"{value:.2f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text
