"""Rows of a reproduction: our figure with its interval beside the report's.

What the scripts that train runs share: running cxrjax's commands one after the other, reading what
they left behind, and writing it as JSON, as a figure and as a table into experiments/README.md.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cxrjax import log, plotting
from cxrjax.errors import UserError
from cxrjax.verdict import interval

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"

Metric = Mapping[str, Any]  # value, low, high (95 % interval), n
UNKNOWN = {"value": None, "low": None, "high": None}
# In place of the radiography set's four classes; random weights, since there may be no others.
PHANTOMS = {
    "data.name": "phantom",
    "data.classes": "",
    "data.image_size": 96,
    "data.phantom.count": 400,
    "model.weights": "none",
}


@dataclass(frozen=True)
class Row:
    """One figure of a report and what it is here, by the report's protocol and corrected."""

    what: str  # the network
    figure: str  # e.g. "recall COVID"
    report: float | None  # as printed there
    as_report: Metric | None
    corrected: Metric | None


def run(module: str, *arguments: str) -> None:
    """Runs `python -m cxrjax.MODULE` and shows what it prints; finished runs end at once.

    Raises:
      UserError: when it fails; what it was is above.
      KeyboardInterrupt: when it was interrupted, its state saved.
    """
    command = [sys.executable, "-m", f"cxrjax.{module}", *arguments]
    log.say("+ python " + " ".join(command[1:]))
    # The checkout's own package, wherever this is called from; paths stay the caller's.
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, check=False).returncode
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise UserError(f"cxrjax.{module} failed with exit code {code}; its message is above.")


def read(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def settings(overrides: Mapping[str, Any]) -> list[str]:
    """Arguments of a command line for fields of a config."""
    return [f"--config.{field}={value}" for field, value in overrides.items()]


def sources(asked: str) -> list[str]:
    """The sources to hold out that --sources names.

    Raises:
      UserError: for an empty name.
    """
    names = [] if asked == "none" else asked.split(",")
    if "" in names:
        raise UserError(f"--sources {asked!r} holds an empty name; give NAME,NAME or none.")
    return names


def share(correct: int, n: int) -> dict[str, Any]:
    """A share with Wilson's interval, for counts whose images are not known one by one.

    Args:
      correct: how many of n.
    """
    from scipy.stats import binomtest

    found = binomtest(correct, n).proportion_ci(method="wilson")
    return {"value": correct / n, "low": float(found.low), "high": float(found.high), "n": n}


def trained(folder: Path) -> tuple[dict[str, Any], float]:
    """Accuracy and loss on the training images in the last epoch of a run.

    Both are taken while the weights move, under augmentation and dropout, as Keras' `fit` prints
    them; the interval is Wilson's.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["split"] == "train"][-1]
    result = read(folder / "result.json")
    n = sum(result["n"][split] for split in result["trained_on"])
    return share(round(last["accuracy"] * n), n), last["loss"]


def held_out(folder: Path) -> dict[str, Any]:
    """Recall of the classes that the source a run held out has, and on its own validation split.

    Args:
      folder: of a run with `data.hold_out_source`, finished.
    """
    result = read(folder / "result.json")
    parts = {split: result[split]["per_class"] for split in ("test", "validation")}
    there = [name for name, figures in parts["test"].items() if figures["support"]]
    return {
        "n": result["n"]["test"],
        "recall": {name: parts["test"][name]["recall"] for name in there},
        "recall_on_validation": {name: parts["validation"][name]["recall"] for name in there},
        "verdict": result["verdict"],
    }


def write(
    name: str, title: str, rows: Sequence[Row], more: Mapping[str, Any], quick: bool
) -> tuple[Path, Path]:
    """Writes results/NAME.json and .png, and the table of that name in experiments/README.md.

    Args:
      title: of the figure and of the table.
      more: what belongs to the rows: verdicts, findings, commands, device.
      quick: see `publish`.
    """
    content = {"rows": [asdict(row) for row in rows], **more}
    return publish(name, content, functools.partial(draw, title, rows), table(rows), quick)


def results_file(name: str, quick: bool) -> Path:
    """The JSON that `publish` writes."""
    return HERE / "results" / f"{name}{'-quick' if quick else ''}.json"


def publish(
    name: str,
    content: Mapping[str, Any],
    picture: Callable[[Path], None],
    text: str,
    quick: bool,
) -> tuple[Path, Path]:
    """Writes results/NAME.json and .png, and the table of that name in experiments/README.md.

    Args:
      picture: writes the PNG.
      text: the table, in Markdown.
      quick: written as NAME-quick, and the README is left alone: phantoms reproduce nothing.
    """
    data = results_file(name, quick)
    image = data.with_suffix(".png")
    data.parent.mkdir(exist_ok=True)
    log.write_json(data, content)
    picture(image)
    if not quick:
        _into_readme(name, text)
    return data, image


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| network | figure | report | as the report did it | corrected |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        told = "" if row.report is None else f"{row.report:.2f}".removeprefix("0")
        ours = [cell(metric) for metric in (row.as_report, row.corrected)]
        lines.append(f"| {row.what} | {row.figure} | {told} | {ours[0]} | {ours[1]} |")
    return "\n".join(lines)


def cell(metric: Metric | None, absent: str = "") -> str:
    """A figure with its interval and n as it stands in a table; `absent` where there is none."""
    return absent if metric is None else f"{interval(metric)} n={metric['n']}"


def _into_readme(name: str, text: str) -> None:
    """Replaces what stands between the two marks of that name."""
    page = README.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise UserError(f"{README} has no lines {begin.strip()} and {end}; put them back.")
    with log.replacing(README) as file:
        file.write(f"{before}{begin}\n{text}\n\n{end}{after}")


def draw(title: str, rows: Sequence[Row], path: Path) -> None:
    """Every row as a line: the report's figure as a mark, both of ours with their intervals."""
    figure = plotting.new_figure(0.9 + 0.28 * len(rows))
    axes = figure.subplots()
    names = [f"{row.what}: {row.figure}" for row in rows]
    columns = {"as the report did it": "as_report", "corrected": "corrected"}
    for k, (told, column) in enumerate(columns.items()):
        entries = [getattr(row, column) or UNKNOWN for row in rows]
        shown = dict(zip(names, entries, strict=True))
        plotting.interval_rows(axes, shown, k, told, 0.15 - 0.3 * k)
    places = [len(rows) - 1 - i for i in range(len(rows))]
    printed = [
        (row.report, y) for row, y in zip(rows, places, strict=True) if row.report is not None
    ]
    if printed:
        marks = {"marker": "|", "s": 90, "color": "black", "label": "report"}
        axes.scatter(*zip(*printed, strict=True), **marks)
    axes.grid(axis="x", alpha=0.3)
    plotting.dress(axes, title, "")
    plotting.save(figure, path)
