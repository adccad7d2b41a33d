"""What is said of a run at its end: its figures, and beside them the reasons to doubt them."""

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
    if score is not None and score["n"] != accuracy["n"]:  # lungs were not found on all films
        shown += f" n={score['n']}"
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
    text = f"{value:z.2f}"  # z: what rounds to 0 has no sign
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def summary(result: Mapping[str, Any]) -> str:
    """The lines printed at the end: figures with intervals, and the verdict."""
    epochs = f"best epoch {result['best_epoch']} of {result['epochs']}"
    if "validation" in result.get("trained_on", ()):
        epochs = f"{result['epochs']} epochs on training and validation images, the last one kept"
    lines = [f"{result['model']}, {epochs}"]
    for split in ("validation", "test"):
        if (part := result.get(split)) is None:
            continue
        lines.append(
            f"{split:10} n={part['accuracy']['n']}: accuracy {_wide(part['accuracy'])}, "
            f"macro F1 {_wide(part['macro_f1'])}, AUROC {_wide(part['auroc'])} (95 %)"
            + (" on images trained on" if part.get("trained_on") else "")
        )
    lines += _per_class(result["test" if "test" in result else "validation"])
    lines += [f"audit      {finding}" for finding in result["audit"]["summary"]]
    lines.append(f"verdict    {line(result)}")
    return "\n".join(lines)


def _per_class(part: Mapping[str, Any]) -> list[str]:
    """Table of a split: precision, recall with interval, F1, support, confusion matrix."""
    classes = part["classes"]
    width = max(map(len, classes))
    lines = [f"{'':{width}} precision  recall                F1     support  predicted as"]
    for name, row in zip(classes, part["confusion_matrix"], strict=True):
        scores = part["per_class"][name]
        precision, recall, f1 = (scores[key] for key in ("precision", "recall", "f1"))
        lines.append(
            f"{name:{width}} {_plain(precision):9}  {_wide(recall):20}  {_plain(f1):5}  "
            f"{scores['support']:7}  {' '.join(f'{count:5}' for count in row)}"
        )
    return lines


def _plain(metric: Mapping[str, Any]) -> str:
    return "-" if metric["value"] is None else f"{metric['value']:.3f}"


def _wide(metric: Mapping[str, Any]) -> str:
    if metric["value"] is None:
        return "undefined"
    return f"{metric['value']:.3f} [{metric['low']:.3f}, {metric['high']:.3f}]"
