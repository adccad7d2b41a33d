"""Whether maps agree: between methods, and between runs that differ in their seed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cxrjax import predictions, trained
from cxrjax.errors import UserError
from cxrjax.explain.maps import Explainer, resampled
from cxrjax.explain.scores import agreement, mean_interval
from cxrjax.models.grid import Grid
from cxrjax.trained import Trained

# What one method is compared with where no other is named: those that run the network once, by
# gradients with and without the negative ones, and by leaving channels out.
COMPANIONS = ("grad_cam", "layer_cam", "ablation_cam")


class Maps(NamedTuple):
    """Maps of some images, one each."""

    raw: np.ndarray  # float [N, h, w]
    grid: Grid


def alike(a: Maps, b: Maps) -> np.ndarray:
    """Rank correlation of maps of the same films, on the coarser grid of the two; float64 [N]."""
    coarser = min(a.grid, b.grid, key=lambda grid: grid.cells)
    return agreement(*(m.raw if m.grid == coarser else resampled(*m, coarser) for m in (a, b)))


def others(classes: np.ndarray) -> np.ndarray:
    """For each image another one of its class, int [N]; itself where it is the only one.

    Half a class away, as near-duplicates lie side by side.
    """
    found = np.arange(len(classes))
    for k in np.unique(classes):
        at = np.flatnonzero(classes == k)
        found[at] = np.roll(at, max(1, len(at) // 2))
    return found


def pairs(
    maps: Mapping[str, Maps], classes: np.ndarray, groups: np.ndarray
) -> list[dict[str, Any]]:
    """Agreement of every pair, beside what maps of different images have in common.

    Args:
      maps: by name, of the same images and classes; grids may differ.
      classes: int [N]; groups: int [N], drawn whole by the bootstrap.
    Returns:
      for each pair `first`, `second`, and as {value, low, high, n}: `same_image`, the mean rank
      correlation; `other_image`, that with the second's map of another image of the class; and
      `difference`, the one less the other.
    """
    other = others(classes)
    alone = other == np.arange(len(other))
    found = []
    for first, second in itertools.combinations(maps, 2):
        same = alike(maps[first], maps[second])
        another = maps[second]._replace(raw=maps[second].raw[other])
        across = np.where(alone, np.nan, alike(maps[first], another))
        values = {"same_image": same, "other_image": across, "difference": same - across}
        entries = {name: mean_interval(value, groups) for name, value in values.items()}
        found.append({"first": first, "second": second, **entries})
    return found


def between_methods(
    maps: Mapping[str, Maps],
    explainers: Sequence[Explainer],
    images: np.ndarray,
    classes: np.ndarray,
    groups: np.ndarray,
) -> list[dict[str, Any]]:
    """`pairs` of the methods whose maps are there and those that are still to be computed.

    Args:
      maps: by method.
      explainers: of the other methods.
    """
    more = {each.method: Maps(each.of_classes(images, classes), each.grid) for each in explainers}
    return pairs({**maps, **more}, classes, groups)


def open_runs(run: Trained, folders: Sequence[str], split: str) -> list[Trained]:
    """The finished runs that `run` is compared with.

    Raises:
      UserError: for a run named twice, of other classes, or of other images or another split of
        them; for the test split of a run that left it alone.
    """
    seen, found = {run.folder.resolve()}, []
    for folder in map(Path, folders):
        if folder.resolve() in seen:
            raise UserError(f"--against names {folder} twice or the run itself; name other runs.")
        seen.add(folder.resolve())
        other = trained.load(folder)
        if other.classes != run.classes:
            raise UserError(
                f"{folder} tells other classes apart ({', '.join(other.classes)}) than "
                f"{run.folder} ({', '.join(run.classes)}); name runs of one task for --against."
            )
        if (other.digest, other.fingerprint) != (run.digest, run.fingerprint):
            raise UserError(
                f"{folder} was trained on other images or another split of them than {run.folder}; "
                "name runs with the same data fields and data.split_seed for --against."
            )
        if split == "test" and not other.config.eval.test:
            raise predictions.untested(folder)
        found.append(other)
    return found


def between_runs(
    own: Explainer,
    maps: np.ndarray,
    explainers: Sequence[Explainer],
    names: Sequence[str],
    classes: np.ndarray,
    groups: np.ndarray,
) -> list[dict[str, Any]]:
    """`pairs` of the run that was explained and others, all pairs of them.

    Args:
      own, maps: of the run that was explained, float [N, h, w].
      explainers: of the other runs, see `open_runs`.
      names: of the images, N.
      classes: int [N], whose evidence is compared.
    """
    runs = [own.run, *(each.run for each in explainers)]
    labels = [run.folder.resolve().name for run in runs]
    if len(set(labels)) < len(labels):
        labels = [str(run.folder) for run in runs]
    found = {labels[0]: Maps(maps, own.grid)}
    for label, each in zip(labels[1:], explainers, strict=True):
        store = each.run.data().store  # its images may have another size
        place = {name: i for i, name in enumerate(store.names)}
        images = np.asarray(store.images[[place[name] for name in names]])
        found[label] = Maps(each.of_classes(images, classes), each.grid)
    return pairs(found, classes, groups)


def sentences(found: Sequence[dict[str, Any]], what: str) -> list[str]:
    """What may be said of `pairs` with the first of all: only what intervals support.

    Args:
      what: that are compared, "methods" or "runs".
    """
    said = []
    for pair in found:
        if pair["first"] != found[0]["first"]:
            continue
        start = f"Maps of the {what} {pair['first']} and {pair['second']}"
        same, other, difference = (
            pair[name] for name in ("same_image", "other_image", "difference")
        )
        if same["low"] is None or difference["low"] is None:
            said.append(f"{start}: too few with evidence (n={same['n']}) to say if they agree.")
            continue
        numbers = (
            f"rank correlation {same['value']:.2f} [{same['low']:.2f}, {same['high']:.2f}], "
            f"n={same['n']}, against {other['value']:.2f} for different images of a class"
        )
        if difference["low"] > 0:
            said.append(f"{start} agree on the single image: {numbers}.")
        elif difference["high"] < 0:
            said.append(f"{start} agree less on one image than on two: {numbers}.")
        else:
            said.append(f"{start} are not shown to agree on the single image: {numbers}.")
    return said
