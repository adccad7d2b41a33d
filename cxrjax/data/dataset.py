"""From configuration to data set: images decoded once, splits, pixel statistics, data audit."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.config import Config
from cxrjax.data import duplicates, ledger, splits
from cxrjax.data.folder import open_folder
from cxrjax.data.framing import WHOLE, Framed
from cxrjax.data.images import BrokenImage
from cxrjax.data.kept import kept
from cxrjax.data.phantom import PhantomSource
from cxrjax.data.radiography import open_radiography
from cxrjax.data.sources import FileSource, Record, Source, choose_classes, why_missing
from cxrjax.data.store import FORMAT, Store, open_store
from cxrjax.errors import UserError
from cxrjax.runtime import cache_root
from cxrjax.threads import in_order

_EXAMPLES = 20  # names listed in the audit


@dataclass(frozen=True)
class Dataset:
    """Decoded images and everything a run needs to know about them."""

    store: Store
    splits: dict[str, np.ndarray]  # train, validation, test: int32 sorted positions in the store
    copies: duplicates.Duplicates  # near-duplicates, as positions in the store
    groups: np.ndarray  # int32 [N], equal for near-duplicates and films of one patient
    mean: float  # pixel mean over train and validation, on the [0, 1] scale
    std: float  # pixel standard deviation likewise
    audit: dict[str, Any]  # strict JSON
    digest: str  # SHA-256 of split membership
    fingerprint: str  # of the source, whatever the image size

    @property
    def classes(self) -> tuple[str, ...]:
        return self.store.classes


def prepare(config: Config) -> Dataset:
    """Opens, decodes (once, then cached), divides and audits the data set of a configuration.

    Args:
      config: the whole configuration.
    Raises:
      UserError: for missing or broken data, classes too small for the splits, a full disk.
    """
    settings: Any = config.data
    source, cache = _ReadOnce(open_source(settings)), cache_root(settings.cache)
    framed = source if settings.frame == WHOLE else Framed(source, settings.frame, cache)
    store = open_store(framed, settings.image_size, cache, settings.skip_broken)
    n = len(store.labels)
    found = find_duplicates(source, store, whole=settings.frame == WHOLE)
    groups = duplicates.group(n, found.pairs, store.patients)
    kept_together = groups
    if not settings.group_duplicates:
        kept_together = duplicates.group(n, found.pairs[:0], store.patients)
    given = store.given_split
    if settings.hold_out_source:
        given = splits.holding_out(settings.hold_out_source, store.sources, kept_together)
    divided = splits.make_splits(
        store.labels,
        kept_together,
        given,
        store.names,
        test_fraction=settings.test_fraction,
        validation_fraction=settings.validation_fraction,
        draw=settings.draw,
        seed=settings.split_seed,
        classes=store.classes,
        may_lack=("test",) if settings.hold_out_source else (),
    )
    seen = np.concatenate([divided["train"], divided["validation"]])
    mean, std = moments(histograms(store)[seen].sum(0))
    return Dataset(
        store=store,
        splits=divided,
        copies=found,
        groups=groups,
        mean=mean,
        std=std,
        audit=_audit(store, divided, groups, found),
        digest=splits.digest(divided, store.names),
        fingerprint=source.fingerprint(),
    )


def training_splits(config: Config) -> tuple[str, ...]:
    """Names of the splits whose images a run is trained on."""
    return ("train", "validation") if config.train.on_validation else ("train",)


def training_positions(dataset: Dataset, config: Config) -> np.ndarray:
    """Positions in the store of the images a run is trained on, int32 [N], sorted."""
    return np.sort(np.concatenate([dataset.splits[name] for name in training_splits(config)]))


def open_source(settings: Any) -> Source:
    """The images that `config.data` names, restricted to `classes` in their order.

    Raises:
      UserError: when there are no such data or classes.
    """
    if settings.name == "phantom":
        phantom = settings.phantom
        source = PhantomSource(
            phantom.count, phantom.seed, phantom.marker, phantom.duplicates, phantom.label_noise
        )
        return SelectedClasses(source, settings.classes) if settings.classes else source
    opener = {"radiography": open_radiography, "folder": open_folder}[settings.name]
    return opener(located(settings), tuple(settings.classes))


def located(settings: Any) -> Path:
    """Where the images of `config.data` lie; of phantoms, which lie nowhere, an empty path.

    Raises:
      UserError: when no place is named, or nothing is there.
    """
    location = os.path.expanduser(settings.dir or os.environ.get("CXRJAX_DATA", ""))
    if settings.name != "phantom" and (missing := why_missing(location)):
        raise UserError(
            f"{missing}: download the COVID-19 Radiography Database from Kaggle (or take any "
            "folder with one subfolder of images per class) and name it by --config.data.dir=PATH "
            "or CXRJAX_DATA; configs/quickstart.py runs without data."
        )
    return Path(location)


class SelectedClasses:
    """The phantom set restricted to some classes, in a chosen order."""

    def __init__(self, source: Source, classes: Sequence[str]):
        self.classes = choose_classes(source.classes, classes, "the phantom set")
        self._source = source
        new_label = {source.classes.index(name): i for i, name in enumerate(classes)}
        kept = [i for i, record in enumerate(source.records) if record.label in new_label]
        self._kept = kept
        self.records: tuple[Record, ...] = tuple(
            replace(source.records[i], label=new_label[source.records[i].label]) for i in kept
        )

    def __str__(self) -> str:
        return str(self._source)

    def fingerprint(self) -> str:
        return "-".join([self._source.fingerprint(), *self.classes])

    def read(self, i: int, size: int) -> np.ndarray:
        return self._source.read(self._kept[i], size)

    def read_mask(self, i: int, size: int) -> np.ndarray | None:
        return self._source.read_mask(self._kept[i], size)


class _ReadOnce:
    """A source that remembers what reading files gave: its fingerprint, and each film it decoded
    at the small size at which copies are sought, whatever the size it was asked for."""

    def __init__(self, source: Source):
        self.classes, self.records = source.classes, source.records
        self.read_mask = source.read_mask
        self.fingerprint = functools.cache(source.fingerprint)
        self._source = source
        self._small: dict[int, np.ndarray] = {}

    def __str__(self) -> str:
        return str(self._source)

    def read(self, i: int, size: int) -> np.ndarray:
        if size == duplicates.THUMBNAIL and i in self._small:
            return self._small[i]
        # Drawn films look their own way at each size.
        if i in self._small or not isinstance(self._source, FileSource):
            return self._source.read(i, size)
        film, self._small[i] = self._source.read_sizes(i, (size, duplicates.THUMBNAIL))
        return film


def find_duplicates(source: Source, store: Store, *, whole: bool = True) -> duplicates.Duplicates:
    """Near-duplicates among the store's images; kept beside the stores.

    They are sought among whole films of one size, whatever the store holds, lest the image size of
    a run or how its films are cut decide on borderline pairs and so on who is in the test split.

    Args:
      source: where the store's images come from, whole.
      whole: whether the store's images are.
    Returns:
      Pairs of positions in the store; `exact` ones have equal pixels at that size.
    Raises:
      UserError: when an image has become unreadable or the cache cannot be written.
    """
    size = duplicates.THUMBNAIL

    def compute() -> dict[str, np.ndarray]:
        ready = whole and store.images.shape[1] == size
        images = store.images if ready else _read(source, store, size)
        return duplicates.find_duplicates(images)._asdict()

    # Names tell which images were kept where broken ones were skipped.
    described = json.dumps([source.fingerprint(), FORMAT, store.names, size, duplicates.ALGORITHM])
    key = hashlib.sha256(described.encode()).hexdigest()[:20]
    path = store.root.parent / f"duplicates-{key}.npz"
    return duplicates.Duplicates(**kept(path, duplicates.Duplicates._fields, compute))


def _read(source: Source, store: Store, size: int) -> np.ndarray:
    """uint8 [N, size, size]: the store's images, read from their source once more."""
    position = {record.name: i for i, record in enumerate(source.records)}
    wanted = [position[name] for name in store.names]
    images = np.empty((len(wanted), size, size), np.uint8)
    decoded = in_order(
        lambda k: source.read(wanted[k], size),
        len(wanted),
        what="looking for duplicates",
        unit="images",
    )
    try:
        for k, image in enumerate(decoded):
            images[k] = image
    except BrokenImage as broken:
        raise UserError(
            f"{broken.name} of {source} was readable before and no longer is ({broken.reason}); "
            "mend it and start again."
        ) from broken
    return images


def histograms(store: Store) -> np.ndarray:
    """int64 [N, 256]: how often each grey level occurs in each image; kept beside the store."""

    def compute() -> dict[str, np.ndarray]:
        def count(i: int) -> np.ndarray:
            return np.bincount(store.images[i].ravel(), minlength=256)

        counts = list(in_order(count, len(store.images)))
        return {"counts": np.array(counts, np.int32).reshape(-1, 256)}

    return kept(store.root / "histograms-1.npz", ("counts",), compute)["counts"].astype(np.int64)


def moments(histogram: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation on the [0, 1] scale of pixels counted by grey level [256]."""
    levels = np.arange(256) / 255
    mean = float(np.average(levels, weights=histogram))
    return mean, float(np.sqrt(np.average((levels - mean) ** 2, weights=histogram)))


def record_test_look(dataset: Dataset, what: str) -> ledger.Looks:
    """Notes in the ledger that the test split was read; returns how often, this time included.

    The ledger lies beside the stores and is keyed by the data and who is in which split, so that
    other runs and other image sizes on the same test split count too.

    Args:
      what: who looked, e.g. the working folder.
    Raises:
      UserError: when the ledger cannot be written.
    """
    folder = dataset.store.root.parent
    return ledger.record(folder, dataset.fingerprint, dataset.digest, what)


def test_looks(dataset: Dataset) -> ledger.Looks:
    """How often the test split was read so far; nothing is noted."""
    folder = dataset.store.root.parent
    return ledger.count(folder, dataset.fingerprint, dataset.digest)


def cramers_v(table: np.ndarray) -> float | None:
    """Association of rows and columns of counts, 0 (none) to 1 (one tells the other).

    Bias-corrected (Bergsma 2013, doi:10.1016/j.jkss.2012.10.002): small tables of unrelated
    variables give 0 rather than something above it. None when a variable does not vary.
    """
    table = np.asarray(table, float)
    rows, columns = (int(table.any(axis=axis).sum()) for axis in (1, 0))
    n = table.sum()
    if min(rows, columns) < 2 or n < 2:
        return None
    by_chance = (rows - 1) * (columns - 1) / (n - 1)
    found = association(mean_square_contingency(table) - by_chance, rows, columns, n)
    return None if np.isnan(found) else float(found)


def mean_square_contingency(table: np.ndarray) -> float:
    """Pearson's phi squared: chi squared over the number of counts, of a table with some."""
    n = table.sum()
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / n
    filled = expected > 0
    return float(((table - expected)[filled] ** 2 / expected[filled]).sum() / n)


def association(phi2: Any, rows: int, columns: int, n: float) -> np.ndarray:
    """Cramer's V of phi squared less what chance adds to it; NaN where a table is too small.

    Args:
      phi2: float [...], may lie below 0.
      rows, columns: of the table, all with counts.
      n: of independent examples.
    """
    smaller = min(k - (k - 1) ** 2 / (n - 1) for k in (rows, columns)) - 1
    if smaller <= 0:
        return np.full(np.shape(phi2), np.nan)
    return np.minimum(1.0, np.sqrt(np.maximum(0.0, phi2) / smaller))


def _audit(
    store: Store,
    divided: dict[str, np.ndarray],
    groups: np.ndarray,
    found: duplicates.Duplicates,
) -> dict[str, Any]:
    sizes = np.bincount(groups, minlength=1)
    labels = np.asarray(store.labels)
    conflicts = found.pairs[labels[found.pairs[:, 0]] != labels[found.pairs[:, 1]]]
    audit = {
        "duplicate_pairs": len(found.pairs),
        "exact_pairs": int(found.exact.sum()),
        "groups": int((sizes > 1).sum()),
        "largest_group": int(sizes.max()),
        "label_conflicts": {
            "pairs": len(conflicts),
            "images": len(np.unique(conflicts)),
            "examples": [[store.names[i], store.names[j]] for i, j in conflicts[:_EXAMPLES]],
        },
        "leaks": splits.leaks(divided, found.pairs, store.patients, found.exact),
        "confounding": _confounding(store),
        "skipped": [list(entry) for entry in store.skipped],
    }
    return audit | {"summary": _summary(audit)}


def _confounding(store: Store) -> dict[str, Any] | None:
    """How far the source of an image tells its class, over images whose source is known.

    The table holds the largest sources, images by class.
    """
    names = sorted({source for source in store.sources if source is not None})
    table = np.zeros((len(names), len(store.classes)), int)
    for source, label in zip(store.sources, store.labels, strict=True):
        if source is not None:
            table[names.index(source), label] += 1
    if (value := cramers_v(table)) is None:
        return None
    return {
        "cramers_v": round(value, 4),
        "n": int(table.sum()),
        "unknown": sum(source is None for source in store.sources),
        "table": {
            names[i]: dict(zip(store.classes, table[i].tolist(), strict=True))
            for i in np.argsort(-table.sum(1), kind="stable")[:_EXAMPLES]
        },
    }


def _summary(audit: dict[str, Any]) -> list[str]:
    """The findings as short lines for a terminal or a report."""
    leaks, conflicts, confounding = audit["leaks"], audit["label_conflicts"], audit["confounding"]
    crossing = sum(leaks["pairs"].values())
    into_test = leaks["pairs"]["train-test"] + leaks["pairs"]["validation-test"]
    lines = [
        f"{audit['duplicate_pairs']} near-duplicate pairs ({audit['exact_pairs']} exact, largest "
        f"group {audit['largest_group']}); {crossing} cross the splits, {into_test} of them into "
        "the test set"
    ]
    if any(leaks["patients"].values()):
        lines.append(f"{sum(leaks['patients'].values())} patients are in two splits")
    if conflicts["pairs"]:
        lines.append(f"{conflicts['pairs']} near-duplicate pairs carry different classes")
    if confounding is None:
        lines.append("confounding of class and source: unknown, the data name no varying sources")
    else:
        lines.append(
            f"confounding of class and source: Cramer's V {confounding['cramers_v']:.2f} over "
            f"{confounding['n']} images of known source (0 none, 1 complete)"
        )
    if audit["skipped"]:
        lines.append(f"{len(audit['skipped'])} unreadable images left out")
    return lines
