"""What a page is made of: the files of a finished run, read and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cxrjax import config as config_lib
from cxrjax import predictions
from cxrjax.config import Config
from cxrjax.data.ledger import Looks
from cxrjax.errors import MALFORMED, UserError, reason
from cxrjax.predictions import Run, Split
from cxrjax.report import pictures
from cxrjax.report.pictures import Picture

PANELS = 12  # shown at most: explain sorts the most confident mistakes to the front
_FIGURES = ("curves", "test_images", "calibration", "decision")
_AUDIT_FIGURES = ("duplicates", "predictability", "sources", "label_doubts", "shortcuts")
_PARTS = {  # what a page can do without: file, remedy
    "calibration": ("calibration.json", "it belongs to the run's results: train it again"),
    "decision": (
        "decision.json",
        "delete it, or make it anew by python -m cxrjax.decide --workdir {run}",
    ),
    "audit": (
        "audit/audit.json",
        "delete it, or make it anew by python -m cxrjax.audit --workdir {run}",
    ),
    "explained": (
        "summary.json",
        "make it anew by python -m cxrjax.explain --workdir {run} --out {explained}",
    ),
}
# Of a probability: what precision or device may change between two passes. It tells runs apart
# whose files are of a version that kept no digest of the weights.
_SAME = 0.1


@dataclass(frozen=True)
class Found:
    """What a finished run left behind; None or nothing where a file is absent."""

    folder: Path
    result: dict[str, Any]
    splits: dict[str, Split]
    looks: Looks
    config: Config | None
    calibration: dict[str, Any] | None
    decision: dict[str, Any] | None
    audit: dict[str, Any] | None  # audit.json
    explained: dict[str, Any] | None  # summary.json
    explained_in: Path | None
    panels: int  # how many there are, shown or not
    pictures: dict[str, Picture]  # by name, "audit/NAME", "explained/NAME" and "panel/NAME"

    @property
    def tested(self) -> bool:
        """Whether there are figures of the test split."""
        return "test" in self.result

    @property
    def shown(self) -> str:
        """The split whose figures count: test, or validation where that is all there is."""
        return "test" if self.tested else "validation"


def gather(folder: Path, explained: Path | None) -> Found:
    """Reads a run.

    Args:
      folder: of a finished run, tested or not.
      explained: what `python -m cxrjax.explain` wrote of it.
    Raises:
      UserError: when the run is not finished, a file is damaged, or the explanations are none or
        those of another run.
    """
    if (folder / "predictions.csv").exists():
        run = predictions.read(folder, untested_too=True)
    else:
        result = predictions.result_of(folder)
        run = Run(folder, result, tuple(result.get("classes", ())), {})
    settings = folder / "config.json"
    paths = {name: folder / "figures" / f"{name}.png" for name in _FIGURES}
    paths |= {
        f"audit/{name}": folder / "audit" / "figures" / f"{name}.png" for name in _AUDIT_FIGURES
    }
    summary, panels = None, []
    if explained is not None:
        summary, panels = _explained(explained, run)
        for name in ("misclassified", "lung_share"):
            paths[f"explained/{name}"] = explained / f"{name}.png"
        paths |= {f"panel/{path.stem}": path for path in panels[:PANELS]}
    return Found(
        folder=folder,
        result=run.result,
        splits=run.splits,
        looks=predictions.looks(folder, run.result),
        config=config_lib.load(str(settings)) if settings.is_file() else None,
        calibration=_part("calibration", folder),
        decision=_part("decision", folder),
        audit=_part("audit", folder),
        explained=summary,
        explained_in=explained,
        panels=len(panels),
        pictures=pictures.load(paths),
    )


def blamed(found: Found, error: Exception, make: Callable[[Found], object]) -> UserError:
    """What to raise where `make(found)` met `error`: it names the file at fault."""
    bare = replace(found, **dict.fromkeys(_PARTS))
    if _error(make, bare) is None:
        for name in _PARTS:
            alone = replace(bare, **{name: getattr(found, name)})
            if (own := _error(make, alone)) is not None:
                return _unreadable(name, found.folder, found.explained_in, own)
    return predictions.damaged(found.folder, error)


def _error(make: Callable[[Found], object], found: Found) -> Exception | None:
    try:
        make(found)
    except MALFORMED as error:
        return error
    return None


def _unreadable(name: str, folder: Path, explained: Path | None, error: Exception) -> UserError:
    _, remedy = _PARTS[name]
    mend = remedy.format(run=folder, explained=explained)
    return UserError(f"{_path(name, folder, explained)} cannot be read ({reason(error)}); {mend}.")


def _path(name: str, folder: Path, explained: Path | None) -> Path:
    return (explained if explained and name == "explained" else folder) / _PARTS[name][0]


def _part(name: str, folder: Path, explained: Path | None = None) -> dict[str, Any] | None:
    """The object in a JSON file; None where there is no such file."""
    path = _path(name, folder, explained)
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, *MALFORMED) as error:
        raise _unreadable(name, folder, explained, error) from error
    return found


def _explained(folder: Path, run: Run) -> tuple[dict[str, Any], list[Path]]:
    """summary.json and the panels of a folder of explanations, in the order of their rank."""
    summary = _part("explained", run.folder, folder)
    if summary is None:
        raise UserError(
            f"{folder} holds no explanations (summary.json is missing); name the --out of "
            f"python -m cxrjax.explain --workdir {run.folder}."
        )
    told, own = summary.get("weights_digest"), run.result.get("weights_digest")
    if told and own:
        if told != own:
            raise _of_another(folder, run)
    else:
        _refuse_other_run(folder, run.splits.get(str(summary.get("split"))), run)
    panels, written = sorted((folder / "panels").glob("*.png")), summary.get("panels")
    if isinstance(written, list):  # else of a version that did not list them
        panels = [path for path in panels if path.name in written]
    return summary, panels


def _of_another(folder: Path, run: Run, where: str = "") -> UserError:
    return UserError(
        f"{folder} explains another run than {run.folder}{where}; make it anew by "
        f"python -m cxrjax.explain --workdir {run.folder} --out {folder}."
    )


def _refuse_other_run(folder: Path, split: Split | None, run: Run) -> None:
    """Compares what was explained with what the run predicted, where it predicted that split."""
    if split is None:
        return
    known = dict(zip(split.names, split.probabilities, strict=True))
    path = folder / "explanations.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        told = {
            line["name"]: [float(line["probabilities"].get(c, 2)) for c in run.classes]
            for line in lines
        }
    except (OSError, *MALFORMED) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}); make it anew.") from error
    for name, row in told.items():
        if name not in known or abs(known[name] - row).max() > _SAME:
            raise _of_another(folder, run, f" (see {name})")
