"""Divides images into train, validation and test: stratified, groups whole, the same every time."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from cxrjax.errors import UserError

SPLITS = ("train", "validation", "test")
Splits = dict[str, np.ndarray]


def make_splits(
    labels: np.ndarray,
    groups: np.ndarray,
    given_split: Sequence[str | None],
    names: Sequence[str],
    *,
    test_fraction: float,
    validation_fraction: float,
    draw: Sequence[int] = (),
    seed: int = 0,
    classes: Sequence[str] = (),
    may_lack: Sequence[str] = (),
) -> Splits:
    """Positions of each split; a pure function of names, labels, groups and seed, not of the order.

    Parts given by the data (folders named train, validation, test) are kept as they are. A missing
    test or validation part is carved out of the training part, never out of another: first the
    test set, `test_fraction` of each class in the training part, then validation,
    `validation_fraction` of what is left. Groups go to one side whole and count for their most
    frequent class; those that a given part shares are carved out last.

    Args:
      labels: int [N].
      groups: int [N], equal for images that must stay together.
      given_split: N times 'train', 'validation', 'test' or None (then: part of train); images of
        any other part are left out.
      names: N different names; with the seed, they alone decide who goes where.
      draw: empty, or image counts (train, validation, test) of a draw balanced over the classes,
        which leaves out groups of mixed class.
      classes: names of the labels, for messages.
      may_lack: the splits that may lack classes.
    Returns:
      int32 sorted positions under the keys train, validation, test.
    Raises:
      UserError: when a class is too small for a part in each split, or too small for the draw.
    """
    labels, groups = np.asarray(labels), np.asarray(groups)
    parts = np.array([part or "train" for part in given_split], dtype=object)
    _check_training_part(parts)
    kinds = {k: classes[k] if len(classes) else str(k) for k in map(int, np.unique(labels))}
    wanted = _per_class(draw, len(kinds)) if len(draw) else None
    fractions = {"test": test_fraction, "validation": validation_fraction, "train": 0.0}
    mixed = _mixed_groups(labels, groups) if wanted else np.zeros(len(labels), bool)
    chosen: Splits = {}
    for split in ("test", "validation", "train"):  # train last: it keeps what is left
        given = parts == split
        carve = split != "train" and not given.any()
        pool = np.flatnonzero((parts == "train" if carve else given) & ~mixed)
        if wanted is None and not carve:
            chosen[split] = pool.astype(np.int32)
            continue
        units = _units(pool, labels, groups, names, seed)
        units = _shared_last(units, groups, parts) if carve else units
        quota = wanted[split] if wanted else None
        chosen[split] = _of_each_class(units, kinds, split, quota, fractions[split])
        if carve:
            parts[chosen[split]] = "taken"
    splits = {split: chosen[split] for split in SPLITS}
    _check_every_class(splits, labels, kinds, may_lack)
    return splits


def holding_out(
    source: str, sources: Sequence[str | None], groups: np.ndarray
) -> tuple[str | None, ...]:
    """Given parts by which all images of one source are the test split, and no others.

    Images of other sources in a group with one of them (copies, the same patient) are left out.

    Returns:
      for each image 'test', 'left out' or None, for `make_splits`.
    Raises:
      UserError: when no image is of that source.
    """
    held_out = np.array([name == source for name in sources], bool)
    if not held_out.any():
        known = sorted({name for name in sources if name is not None})
        near = difflib.get_close_matches(source, known, 1)
        hint = (
            f"did you mean {near[0]!r}" if near else f"known are {', '.join(known[:8]) or 'none'}"
        )
        raise UserError(
            f"config field data.hold_out_source is {source!r}, from which no image comes; {hint}."
        )
    near_it = np.isin(groups, groups[held_out])
    if near_it.all():
        raise UserError(
            f"config field data.hold_out_source is {source!r}, from which all images come, or "
            "copies of them; without others there is nothing to train on."
        )
    return tuple(
        "test" if out else "left out" if near else None
        for out, near in zip(held_out, near_it, strict=True)
    )


def leaks(
    splits: Mapping[str, np.ndarray],
    pairs: np.ndarray,
    patients: Sequence[str | None],
    exact: np.ndarray | None = None,
) -> dict[str, Any]:
    """Counts what crosses from one split into another.

    Args:
      pairs: int [P, 2], near-duplicates.
      patients: a name or None per image.
      exact: bool [P], pairs of equal pixels.
    Returns:
      `pairs` and `exact_pairs` (near-duplicates and, among them, equal pixels), `patients` (in both
      splits), each as {"train-validation": n, "train-test": n, "validation-test": n}, and `images`
      (how many images have a near-duplicate in another split).
    """
    side = np.full(len(patients), "", dtype=object)
    for split, positions in splits.items():
        side[positions] = split
    pairs = np.reshape(pairs, (-1, 2)).astype(int)
    exact = np.zeros(len(pairs), bool) if exact is None else np.asarray(exact, bool)
    a, b = side[pairs[:, 0]], side[pairs[:, 1]]
    crosses = (a != b) & (a != "") & (b != "")
    members = {
        split: {patients[i] for i in positions} - {None} for split, positions in splits.items()
    }
    counts: dict[str, Any] = {"pairs": {}, "exact_pairs": {}, "patients": {}}
    for one, other in combinations(SPLITS, 2):
        between = ((a == one) & (b == other)) | ((a == other) & (b == one))
        counts["pairs"][f"{one}-{other}"] = int(between.sum())
        counts["exact_pairs"][f"{one}-{other}"] = int((between & exact).sum())
        counts["patients"][f"{one}-{other}"] = len(members[one] & members[other])
    counts["images"] = len(np.unique(pairs[crosses]))
    return counts


def digest(splits: Mapping[str, np.ndarray], names: Sequence[str]) -> str:
    """SHA-256 of who is in which split, by name: equal for equal splits in whatever order."""
    lines = sorted(f"{names[i]}\t{split}\n" for split, where in splits.items() for i in where)
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


Unit = tuple[np.ndarray, int]  # positions of a group's members, their class


def _units(
    pool: np.ndarray, labels: np.ndarray, groups: np.ndarray, names: Sequence[str], seed: int
) -> list[Unit]:
    """The groups within `pool` in an order that only names and seed decide."""
    members: dict[int, list[int]] = {}
    for i in pool:
        members.setdefault(int(groups[i]), []).append(int(i))
    units = {}
    for positions in members.values():
        name = min(names[i] for i in positions)
        key = hashlib.sha256(f"{seed}\t{name}".encode(errors="surrogateescape")).digest()
        count = Counter(int(labels[i]) for i in positions)
        majority = min(count, key=lambda label: (-count[label], label))
        units[key] = (np.array(positions), majority)
    return [units[key] for key in sorted(units)]


def _shared_last(units: list[Unit], groups: np.ndarray, parts: np.ndarray) -> list[Unit]:
    """The same units, those of which a given part holds members, too, behind the others."""
    shared = np.isin(groups, groups[~np.isin(parts, ("train", "taken"))])
    return sorted(units, key=lambda unit: shared[unit[0][0]])  # stable; a group is so as a whole


def _of_each_class(
    units: list[Unit], kinds: Mapping[int, str], split: str, quota: int | None, fraction: float
) -> np.ndarray:
    """Sorted positions, int32: of each class exactly the quota or, without one, a fraction."""
    takes = []
    for label, kind in kinds.items():
        ours = [unit for unit in units if unit[1] == label]
        size = sum(len(positions) for positions, _ in ours)
        count = int(fraction * size + 0.5) if quota is None else quota
        takes += _take(ours, count, split, kind, exactly=quota is not None)
    return np.sort(np.array(takes, np.int32))


_AFTER = {"test": 2, "validation": 1, "train": 0}  # splits that are filled later, each by a group


def _take(units: list[Unit], quota: int, split: str, kind: str, *, exactly: bool) -> list[int]:
    """Whole groups in order as long as they fit; unless exactly the quota is wanted, at least one
    group, and one is left for each split filled later."""
    taken: list[int] = []
    spare = len(units) - (0 if exactly else _AFTER[split])
    for positions, _ in units:
        if len(taken) + len(positions) <= quota and spare > 0:
            taken.extend(positions)
            spare -= 1
    if not taken and not exactly and units:
        taken.extend(min((positions for positions, _ in units), key=len))
    if exactly and len(taken) != quota:
        available = sum(len(positions) for positions, _ in units)
        raise UserError(
            f"config field data.draw asks for {quota} images for {split}, class {kind}, "
            f"but {available} are left (in {len(units)} groups of near-duplicates or patients, "
            f"kept whole) and give {len(taken)}; ask for fewer."
        )
    return taken


def _per_class(draw: Sequence[int], classes: int) -> dict[str, int]:
    for split, count in zip(SPLITS, draw, strict=True):
        if count % classes:
            raise UserError(
                f"config field data.draw asks for {count} images for {split}, which cannot be "
                f"divided evenly among {classes} classes; ask for a multiple of {classes}."
            )
    return {split: count // classes for split, count in zip(SPLITS, draw, strict=True)}


def _mixed_groups(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """bool [N]: whether the image's group holds several classes."""
    _, group = np.unique(groups, return_inverse=True)
    low, high = np.full(len(labels), np.iinfo(np.int64).max), np.full(len(labels), -1)
    np.minimum.at(low, group, labels)
    np.maximum.at(high, group, labels)
    return (low != high)[group]


def _check_training_part(parts: np.ndarray) -> None:
    if not (parts == "train").any():
        raise UserError(
            f"the data are divided into {' and '.join(sorted(set(parts)))}, without a train part; "
            "add one, or put all images outside such folders to have them divided here."
        )


def _check_every_class(
    splits: Splits, labels: np.ndarray, kinds: Mapping[int, str], excused: Sequence[str]
) -> None:
    for split, positions in splits.items():
        for label, kind in kinds.items():
            if split not in excused and not (labels[positions] == label).any():
                total = int((labels == label).sum())
                raise UserError(
                    f"the {split} split has no image of class {kind}, of which there are {total}; "
                    "each class needs an image in each split that is no copy of those in another, "
                    "so add images, leave the class out by config.data.classes or change the "
                    "fractions."
                )
