"""The files of `python -m cxrjax.explain`: pictures, a JSON line per image, a summary."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from cxrjax import log, predictions
from cxrjax.data import dataset
from cxrjax.errors import MALFORMED
from cxrjax.explain import checks, methods, pictures, regions, scores
from cxrjax.explain.maps import Explained, enlarge
from cxrjax.lungs import Segmentation
from cxrjax.trained import Trained

_AT_ONCE = 512  # images whose maps are enlarged together: a megabyte each, of 224 pixels
_PICTURES = ("misclassified.png", "lung_share.png", "checks.png")


def write(
    run: Trained,
    out: Path,
    *,
    split: str,
    only_wrong: bool,
    method: str,
    stage: str | None,
    panels: int,
    plan: checks.Plan,
    segment: Segmentation | None = None,
) -> dict[str, Any]:
    """Explains a split and writes everything into `out`, which exists and holds `panels/`.

    Pictures of an earlier call that this one does not draw are deleted, after all else.

    Args:
      panels: how many at most, the most confident mistakes first.
      plan: how the maps are checked.
      segment: lungs of images whose data set has none.
    Returns:
      what summary.json holds.
    Raises:
      UserError: for the test split of a run that left it alone; see `checks.prepare`.
    """
    if split == "test" and not run.config.eval.test:
        raise predictions.untested(run.folder)
    checker = checks.prepare(run, plan, method, stage, split)
    data = run.data()
    looks = dataset.test_looks(data)
    if split == "test":
        looks = dataset.record_test_look(data, f"explain {run.folder}")
    found = _explained(data, split, checker)
    wrong = found.take(~found.right)
    if only_wrong:
        found = wrong
    summary: dict[str, Any] = {
        "split": split,
        "only": "misclassified" if only_wrong else "all",
        "method": method,
        "stage": None if method in methods.AT_INPUT else stage or run.spec.cam_layer,
        "weights_digest": run.weights_digest,
        "n": len(found.labels),
        "test_looks": looks.here,
        "test_looks_elsewhere": looks.elsewhere,
    }
    seen = _seen(run, split)
    if not len(found.labels):
        log.write_text(out / "explanations.jsonl", "")
        _clear(out, ())
        said = [*seen, f"No image of the {split} split is wrong."]
        return summary | {"panels": [], "scores": {}, "sentences": said}
    shares = _shares(run, data, found, segment)
    _lines(out / "explanations.jsonl", run, found, shares)
    drawn = _draw(out, run, found, wrong, shares, panels)
    summary["panels"] = [path.name for path in drawn if path.parent != out]
    summary |= _summary(run, found, shares)
    summary["checks"], said = checks.write(checker, found, out)
    _clear(out, [*drawn, *([out / "checks.png"] if summary["checks"] else [])])
    return summary | {"sentences": [*seen, *summary["sentences"], *said]}


def _seen(run: Trained, split: str) -> list[str]:
    """What is said before all else of images that the run was trained on."""
    trained_on = split in dataset.training_splits(run.config)
    return [f"The images of the {split} split were trained on."] if trained_on else []


def _explained(data: dataset.Dataset, split: str, checker: checks.Checker) -> Explained:
    positions = data.splits[split]
    images = np.asarray(data.store.images[positions])
    probabilities, raw = checker.own(images)
    names = tuple(data.store.names[i] for i in positions)
    labels, groups = data.store.labels[positions], data.groups[positions]
    return Explained(positions, images, labels, groups, probabilities, raw, checker.own.grid, names)


def _shares(
    run: Trained,
    data: dataset.Dataset,
    found: Explained,
    segment: Segmentation | None,
) -> dict[str, np.ndarray]:
    """By score, float [N]; NaN where it does not apply. N is at least 1."""
    part = np.arange(len(found.labels)) // _AT_ONCE
    parts = [_shares_of(run, data, found.take(part == k), segment) for k in np.unique(part)]
    return {name: np.concatenate([of[name] for of in parts]) for name in parts[0]}


def _shares_of(
    run: Trained,
    data: dataset.Dataset,
    found: Explained,
    segment: Segmentation | None,
) -> dict[str, np.ndarray]:
    """`_shares` of as many images as there is room for.

    The share of an even map is NaN as well where that of the map is: means of the two compare only
    over the same films.
    """
    maps = found.of_predicted()
    shares: dict[str, np.ndarray] = {}

    def add(name: str, region: np.ndarray) -> None:
        share = scores.share_inside(maps, region)
        known = region.any((1, 2)) & np.isfinite(share)
        shares[name] = np.where(known, share, np.nan)
        shares[f"{name}_even"] = np.where(known, region.mean((1, 2)), np.nan)

    add("lungs", regions.lungs(data, found.positions, segment))
    add("border", np.broadcast_to(scores.border(maps.shape[-1]), maps.shape))
    lesion = regions.lesions(run.config, data, found.positions)
    if lesion is not None:
        add("lesion", lesion)
        shares["lesion_pointing"] = scores.pointing(found.raw_of_predicted, found.grid, lesion)
    return shares


def _lines(path: Path, run: Trained, found: Explained, shares: dict[str, np.ndarray]) -> None:
    lines = []
    for i, name in enumerate(found.names):
        raw = found.raw[i, found.predicted[i]]
        line = {
            "name": name,
            "label": run.classes[found.labels[i]],
            "class": run.classes[found.predicted[i]],
            "probabilities": dict(
                zip(run.classes, map(float, found.probabilities[i]), strict=True)
            ),
            "map": {
                "min": float(raw.min()),
                "max": float(raw.max()),
                "positive_sum": float(np.maximum(raw, 0).sum()),
                "negative_sum": float(np.minimum(raw, 0).sum()),
            },
            "share": {score: float(values[i]) for score, values in shares.items()},
        }
        lines.append(log.json_line(line))
    log.write_text(path, "".join(lines))


def _draw(
    out: Path,
    run: Trained,
    found: Explained,
    wrong: Explained,
    shares: dict[str, np.ndarray],
    panels: int,
) -> list[Path]:
    """Returns what it drew, panels in the order of their rank."""
    drawn = []
    top = float(np.maximum(found.raw, 0).max())  # one scale for everything drawn
    confidence = found.probabilities.max(1)
    order = np.lexsort((-confidence, found.right))[:panels]
    for rank, i in log.progress(enumerate(order), total=len(order), what="panels", unit="img"):
        stem = pictures.shortened(PurePosixPath(found.names[i]).stem)
        drawn.append(out / "panels" / f"{rank:03}-{stem}.png")
        pictures.panel(
            drawn[-1],
            found.images[i],
            np.maximum(enlarge(found.raw[i], found.grid), 0),
            top,
            found.probabilities[i],
            run.classes,
            int(found.labels[i]),
            found.names[i],
        )
    if len(wrong.labels):
        drawn.append(out / "misclassified.png")
        pictures.mistakes(
            drawn[-1],
            wrong.images,
            wrong.of_predicted(),
            top,
            wrong.probabilities,
            run.classes,
            wrong.labels,
            wrong.names,
        )
    if np.isfinite(shares["lungs"]).any():
        drawn.append(out / "lung_share.png")
        pictures.share_histogram(
            drawn[-1],
            shares["lungs"],
            found.labels,
            found.right,
            run.classes,
            "evidence inside the lungs",
        )
    return drawn


def _clear(out: Path, drawn: Collection[Path]) -> None:
    """Deletes what an earlier call drew, by its summary.json, and this one did not."""
    try:
        panels = json.loads((out / "summary.json").read_text(encoding="utf-8"))["panels"]
        names = (Path(str(name)).name for name in panels)
        listed = {out / "panels" / name for name in names if name.endswith(".png")}
    except (OSError, *MALFORMED):  # none, or of an older version: a report shows its own alone
        listed = set()
    for path in {*listed, *(out / name for name in _PICTURES)} - {*drawn}:
        path.unlink(missing_ok=True)


def _summary(run: Trained, found: Explained, shares: dict[str, np.ndarray]) -> dict[str, Any]:
    by = {
        name: scores.by_group(values, found.labels, found.right, found.groups, run.classes)
        for name, values in shares.items()
    }
    said = []
    places = {"lungs": "inside the lungs", "border": "along the border", "lesion": "in the lesion"}
    for name, place in places.items():
        if name in by:
            said += scores.sentences(by[name], by[f"{name}_even"]["all"], place)
    return {"scores": by, "sentences": said}
