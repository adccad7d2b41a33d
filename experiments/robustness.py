"""What lowers the shortcut score of a classifier, at what cost, and how it does on other films.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python experiments/robustness.py [--recipes plain,lungs_box]
python experiments/robustness.py --quick        # phantoms, random weights: minutes

MobileNetV2 from ImageNet weights on the four classes, the last 20 layers trained, by each recipe:

- plain: films as they are;
- augmented: shifted, turned, magnified, of another tone, rimmed by a random grey;
- lungs_box: films cut to the square around the lungs;
- lungs_only: all but the lungs black as well;
- lungs_only_augmented: both, less the rim.

Of each a run on the ordinary split and its audit, then one run for each source of images that is
held out. The two shortcut scores are what the AUROC keeps above chance when the lungs are black and
when they are of one grey. Where all else is black already only the second means anything, so that
is the one to compare recipes by; it leaves more to go by, outline and mean grey of the lungs.

Choose a recipe by its accuracy on validation, which is in the JSON, and its shortcut score. Scores
and views can only be those of the test split. A run reads that once; the audit, for its views, once
more, and the ledger of looks holds both.

Everything is a run of cxrjax's own commands in --workdir; what is finished there is not run again,
and results are written after each run: those of all that is finished there, also of recipes and
sources that this call leaves out. Other settings for all runs: --config.field=value. Writes
results/robustness.json and .png, and the table in README.md.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import reproduction
from reproduction import HERE, UNKNOWN, cell

from cxrjax import cli, log, plotting
from cxrjax import config as config_lib
from cxrjax.errors import UserError
from cxrjax.run_folder import PLACES
from cxrjax.verdict import CONFOUNDED_ABOVE

CONFIG = HERE.parent / "configs" / "mobilenet4.py"
SIZE = {"data.image_size": 128}
_CHANGED = {
    "augment.shift": 0.1,
    "augment.rotation": 10,
    "augment.zoom": 0.15,
    "augment.gamma": 0.5,
    "cache.views": 4,  # so that frozen layers still run once for each image and view
}
# Geometry and tone leave black surroundings black, but where lungs reach the edge of a film: what
# is moved in repeats that edge. A rim of grey around black would be in no film.
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "augmented": {**_CHANGED, "augment.border": 0.1},
    "lungs_box": {"data.frame": "lungs_box"},
    "lungs_only": {"data.frame": "lungs_only"},
    "lungs_only_augmented": {"data.frame": "lungs_only", **_CHANGED},
}
# Of a run's result, as it stands there.
_KEPT = (
    *("verdict", "seconds", "epochs", "best_epoch", "n", "test_looks"),
    *("classes", "device", "versions"),
)
# Views that a shortcut score rests on, as the table and the figure call them.
SCORES = {"without_lungs": "lungs black", "flat_lungs": "lungs one grey"}


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quick", action="store_true", help="phantoms instead of X-rays")
    parser.add_argument(
        "--recipes",
        metavar="NAMES",
        default=",".join(RECIPES),
        help="with commas between them, of %(default)s (default: all)",
    )
    parser.add_argument("--epochs", type=int, help="of each run (default 10; quick: 2)")
    parser.add_argument(
        "--sources",
        metavar="NAMES",
        help="to hold out in turn, with commas between them, or none (default "
        "ieee8023,rsna-jpeg; quick: none, all phantoms are of one)",
    )
    parser.add_argument("--workdir", type=Path, help="default runs/robustness[-quick]")
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments, rest = _parser().parse_known_args(argv)
    quick = arguments.quick
    root = arguments.workdir or Path("runs", "robustness" + ("-quick" if quick else ""))
    epochs = arguments.epochs
    epochs = (2 if quick else 10) if epochs is None else epochs
    if epochs < 1:
        raise UserError("--epochs must be 1 or more.")
    named = arguments.recipes.split(",")
    if unknown := set(named) - set(RECIPES):
        raise UserError(f"--recipes holds {min(unknown)!r}; give some of {','.join(RECIPES)}.")
    asked = arguments.sources
    asked = ("none" if quick else "ieee8023,rsna-jpeg") if asked is None else asked
    sources = reproduction.sources(asked)
    shared = SIZE | (reproduction.PHANTOMS if quick else {})
    shared |= {"train.epochs": epochs} | cli.parse_overrides(rest)
    chosen = {name: own | shared for name, own in RECIPES.items() if name in named}

    for recipe, overrides in chosen.items():
        folder = _ordinary(root, recipe)
        _train(folder, overrides)
        if not _audited(folder):  # it is a look at the test split
            reproduction.run("audit", "--workdir", str(folder))
        written = _write(root, sources, quick)
    for source in sources:
        for recipe, overrides in chosen.items():
            folder = _without(root, recipe) / source
            _train(folder, overrides | {"data.hold_out_source": source})
            written = _write(root, sources, quick)
    content = reproduction.read(written[0])
    told = content["recipes"]
    log.say(table(told, content["sources"]))
    for recipe, of in told.items():
        log.say(f"{recipe}: {of['verdict']}")
    log.say(f"see {written[0]} and {written[1]}")
    return 0


def _train(folder: Path, overrides: Mapping[str, Any]) -> None:
    fields = reproduction.settings(overrides)
    reproduction.run("main", "--config", str(CONFIG), "--workdir", str(folder), *fields)


def _audited(folder: Path) -> bool:
    """Whether a run is finished and every view of its test split was measured."""
    if not (folder / "result.json").is_file():
        return False
    found = reproduction.read(folder / "result.json")["audit"].get("shortcuts") or {}
    return "flat_lungs" in found.get("scores", {}) and "lungs_only" in found["views"]


def _ordinary(root: Path, recipe: str) -> Path:
    return root / recipe / "ordinary"


def _without(root: Path, recipe: str) -> Path:
    """Holds a run for each source held out, by its name."""
    return root / recipe / "without_source"


def _write(root: Path, sources: Sequence[str], quick: bool) -> tuple[Path, Path]:
    """What all finished runs in `root` say, as JSON, figure and table.

    Args:
      sources: held out in this call, finished or not; others that are finished come after them.
    """
    told = {name: told_of(root, name) for name in RECIPES if _audited(_ordinary(root, name))}
    found = {source for of in told.values() for source in of["held_out"]}
    sources = [*sources, *sorted(found.difference(sources))]
    content = {"recipes": told, "sources": sources}
    picture = functools.partial(draw, told, sources)
    return reproduction.publish("robustness", content, picture, table(told, sources), quick)


def told_of(root: Path, recipe: str) -> dict[str, Any]:
    """What a recipe's ordinary run, its audit and those of its other runs that are finished say."""
    folder, without = _ordinary(root, recipe), _without(root, recipe)
    result = reproduction.read(folder / "result.json")
    shortcuts = result["audit"]["shortcuts"]
    finished = sorted(path.parent for path in without.rglob("result.json"))
    return {
        "overrides": _overrides(folder),
        **{key: result["test"][key] for key in ("accuracy", "macro_f1")},
        "validation": {key: result["validation"][key] for key in ("accuracy", "macro_f1")},
        "shortcut_scores": shortcuts["scores"],
        **{key: shortcuts[key] for key in ("views", "lungs")},
        "held_out": {
            run.relative_to(without).as_posix(): reproduction.held_out(run) for run in finished
        },
        **{key: result[key] for key in _KEPT},
    }


def _overrides(folder: Path) -> dict[str, Any]:
    """Fields in which a run's own config differs from `CONFIG`, but for where things lie."""
    usual = config_lib.fields(config_lib.load(str(CONFIG)))
    text = (folder / "config.json").read_text(encoding="utf-8")
    own = config_lib.fields(config_lib.from_json(text, str(folder / "config.json")))
    return {
        field: value
        for field, value in own.items()
        if value != usual[field] and field not in PLACES
    }


def table(told: Mapping[str, Mapping[str, Any]], sources: Sequence[str]) -> str:
    """The recipes in Markdown, a row each; `-` for what was not run or means nothing."""
    columns = [
        "recipe",
        "accuracy",
        *(f"shortcut score ({what})" for what in SCORES.values()),
        "lungs-only AUROC",
        *(f"recall on {source}" for source in sources),
    ]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for recipe, of in told.items():
        cells = [
            recipe,
            cell(of["accuracy"]),
            *(cell(of["shortcut_scores"].get(view), "-") for view in SCORES),
            cell(of["views"]["lungs_only"]["auroc"]),
            *(_recalls(of["held_out"].get(source)) for source in sources),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _recalls(held_out: Mapping[str, Any] | None) -> str:
    """E.g. `COVID .70 [.65, .74] n=90 (validation .92 [.90, .95] n=250)` for each class there."""
    if held_out is None:
        return "-"
    seen = held_out["recall_on_validation"]
    found = held_out["recall"].items()
    return "; ".join(
        f"{name} {cell(there)} (validation {cell(seen[name])})" for name, there in found
    )


def draw(told: Mapping[str, Mapping[str, Any]], sources: Sequence[str], path: Path) -> None:
    """Accuracy against shortcut score, a point for each recipe; recall on sources held out."""
    rows = list(
        dict.fromkeys(
            (source, name)
            for source in sources
            for of in told.values()
            for name in of["held_out"].get(source, {}).get("recall", {})
        )
    )
    heights = [3.2] + ([0.7 + (0.15 + 0.13 * len(told)) * len(rows)] if rows else [])
    figure = plotting.new_figure(sum(heights))
    panels = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for k, (recipe, of) in enumerate(told.items()):
        for view in SCORES:
            filled = view == "flat_lungs"
            style = {"mfc": None if filled else "white", "label": recipe if filled else None}
            _point(panels[0], of["shortcut_scores"].get(view, UNKNOWN), of["accuracy"], k, style)
    panels[0].axvline(CONFOUNDED_ABOVE, color="0.7", lw=1, ls="--")
    x = "shortcut score: filled, lungs one grey; hollow, lungs black; 95 % intervals"
    plotting.dress(panels[0], "Accuracy and shortcut score by recipe", x, "test accuracy")
    if rows:
        for k, of in enumerate(told.values()):
            parts = {source: of["held_out"].get(source, {}).get("recall", {}) for source in sources}
            entries = {f"{s}: {name}": parts[s].get(name, UNKNOWN) for s, name in rows}
            shift = 0.3 - 0.6 * k / max(1, len(told) - 1)
            plotting.interval_rows(panels[1], entries, k, shift=shift)
        panels[1].grid(axis="x", alpha=0.3)
        plotting.dress(
            panels[1], "Sources held out, recipes as above", "recall there, 95 % intervals"
        )
    plotting.save(figure, path)


def _point(
    axes: Any, x: Mapping[str, Any], y: Mapping[str, Any], k: int, style: Mapping[str, Any]
) -> None:
    """Two figures as one mark with both intervals, in the look of the k-th recipe."""
    (right, left_right), (up, down_up) = plotting.reach([x]), plotting.reach([y])
    axes.errorbar(
        right,
        up,
        xerr=left_right,
        yerr=down_up,
        color=plotting.COLOURS[k],
        marker=plotting.MARKERS[k],
        ms=5,
        lw=0,
        elinewidth=1,
        **style,
    )


if __name__ == "__main__":
    sys.exit(main())
