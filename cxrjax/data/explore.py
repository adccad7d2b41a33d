"""What is in a data set: balance, pixel statistics and intensities, as numbers and as figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cxrjax.data.dataset import Dataset, histograms, moments
from cxrjax.data.splits import SPLITS
from cxrjax.errors import writing
from cxrjax.plotting import COLOURS, WIDTH, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 32  # of the intensity histograms: finer ones show a codec's unused grey levels as a comb
_SAMPLES = 8  # images per class in the sample grid


def statistics(dataset: Dataset) -> dict[str, Any]:
    """Numbers behind the figures, as strict JSON.

    Returns:
      `classes`, `n`, `image_size` (pixels), `stored_bytes`; `splits`: for each split `n`, `classes`
      (images per class), `mean` and `std` of its pixels on the [0, 1] scale, and `intensity` (per
      class, the share of pixels in each of 32 equal bins); `train_and_validation`: `mean`, `std`
      (the normalisation by data set); `sources`: images per source and class, None for unknown
      written as "unknown"; `given_parts`: images per part as the data came.
    """
    store, counts = dataset.store, histograms(dataset.store)
    labels = np.asarray(store.labels)
    report: dict[str, Any] = {
        "classes": list(dataset.classes),
        "n": len(labels),
        "image_size": int(store.images.shape[1]),
        "stored_bytes": int(store.images.nbytes),
        "splits": {},
        "train_and_validation": {"mean": dataset.mean, "std": dataset.std},
        "sources": _table(store.sources, labels, dataset.classes),
        "given_parts": _table(store.given_split, labels, dataset.classes),
    }
    for split in SPLITS:
        positions = dataset.splits[split]
        mean, std = moments(counts[positions].sum(0))
        of_class = {
            name: positions[labels[positions] == label]
            for label, name in enumerate(dataset.classes)
        }
        report["splits"][split] = {
            "n": len(positions),
            "classes": {name: len(where) for name, where in of_class.items()},
            "mean": mean,
            "std": std,
            "intensity": {name: _shares(counts[where].sum(0)) for name, where in of_class.items()},
        }
    return report


def write_figures(dataset: Dataset, folder: Path) -> list[Path]:
    """Draws class_balance, intensity, samples and mean_image as PNG into `folder`.

    Raises:
      UserError: when the folder cannot be written.
    """
    report = statistics(dataset)
    drawn = {
        "class_balance.png": _class_balance(report),
        "intensity.png": _intensity(report),
        "samples.png": _samples(dataset),
        "mean_image.png": _mean_images(dataset),
    }
    with writing(folder, "choose another --out"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in drawn.items():
            save(figure, folder / name)
    return [folder / name for name in drawn]


def _table(
    values: tuple[str | None, ...], labels: np.ndarray, classes: tuple[str, ...]
) -> dict[str, dict[str, int]]:
    of = np.array(["unknown" if value is None else value for value in values])
    return {
        str(value): {
            name: int(((of == value) & (labels == label)).sum())
            for label, name in enumerate(classes)
        }
        for value in np.unique(of)
    }


def _shares(histogram: np.ndarray) -> list[float]:
    binned = histogram.reshape(_BINS, -1).sum(1)
    return np.round(binned / max(binned.sum(), 1), 6).tolist()


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _class_balance(report: dict[str, Any]) -> Figure:
    classes, splits = report["classes"], report["splits"]
    figure = new_figure(1.3 + 0.75 * len(classes))
    axes = figure.add_subplot()
    for k, split in enumerate(SPLITS):
        counts = [splits[split]["classes"][name] for name in classes]
        rows = np.arange(len(classes)) + (k - 1) * 0.27
        bars = axes.barh(rows, counts, 0.25, color=COLOURS[k])
        bars.set_label(f"{split} (n = {splits[split]['n']:,})")
        axes.bar_label(
            bars,
            [f"{n:,}  ({n / max(splits[split]['n'], 1):.0%})" for n in counts],
            padding=3,
            fontsize=8,
        )
    axes.set_yticks(np.arange(len(classes)), classes)
    axes.invert_yaxis()
    axes.margins(x=0.2)  # room for the numbers
    axes.set_xlabel("images (share of the split)")
    _plain(axes)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    return figure


def _intensity(report: dict[str, Any]) -> Figure:
    figure = new_figure(3.4)
    levels = (np.arange(_BINS) + 0.5) / _BINS
    panels = figure.subplots(1, len(SPLITS), sharex=True, sharey=True)
    for axes, split in zip(panels, SPLITS, strict=True):
        part = report["splits"][split]
        for k, name in enumerate(report["classes"]):
            density = np.array(part["intensity"][name]) * _BINS
            axes.plot(
                levels,
                density,
                color=COLOURS[k % len(COLOURS)],
                lw=1.3,
                ls=("-", "--", ":")[k // len(COLOURS) % 3],
                label=name if split == "train" else None,
            )
        axes.set_title(
            f"{split}, n = {part['n']:,}\nmean {part['mean']:.3f}, SD {part['std']:.3f}", fontsize=9
        )
        axes.set_xlabel("grey level (0 black, 1 white)")
        _plain(axes)
    # Black borders and burnt-in marks are spikes that would flatten everything else.
    inner = [s[1:-1] for p in report["splits"].values() for s in p["intensity"].values()]
    panels[0].set_ylim(0, 1.15 * _BINS * max(map(max, inner)))
    panels[0].set_xlim(0, 1)
    panels[0].set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    panels[0].set_ylabel("density of pixels\n(spikes at the ends cut off)", fontsize=9)
    figure.legend(loc="outside lower center", ncols=min(4, len(report["classes"])), frameon=False)
    return figure


def _samples(dataset: Dataset) -> Figure:
    """Images of the training split, evenly spaced over each class: no look at the test set."""
    rows = len(dataset.classes)
    side = WIDTH / _SAMPLES
    figure = new_figure(rows * (side + 0.22) + 0.1)
    strips = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    train, labels = dataset.splits["train"], np.asarray(dataset.store.labels)
    for label, strip in enumerate(strips):
        ours = train[labels[train] == label]
        chosen = ours[np.linspace(0, len(ours) - 1, min(_SAMPLES, len(ours))).astype(int)]
        strip.suptitle(
            f"{dataset.classes[label]} ({len(ours):,} in train)", fontsize=9, x=0, ha="left"
        )
        for column, axes in enumerate(strip.subplots(1, _SAMPLES)):
            axes.axis("off")
            if column < len(chosen):
                axes.imshow(dataset.store.images[chosen[column]], cmap="gray", vmin=0, vmax=255)
    return figure


def _mean_images(dataset: Dataset) -> Figure:
    columns = min(4, len(dataset.classes))
    rows = -(-len(dataset.classes) // columns)
    figure = new_figure(rows * (WIDTH / max(columns, 3) + 0.35))
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    train, labels = dataset.splits["train"], np.asarray(dataset.store.labels)
    shown = None
    for label, axes in enumerate(panels):
        axes.axis("off")
        if label < len(dataset.classes):
            ours = train[labels[train] == label]
            shown = axes.imshow(_mean(dataset.store.images, ours), cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{dataset.classes[label]}\nmean of {len(ours):,} (train)", fontsize=9)
    if shown is not None:
        figure.colorbar(
            shown, ax=panels.tolist(), shrink=0.8, label="mean grey level", fraction=0.03
        )
    return figure


def _mean(images: np.ndarray, positions: np.ndarray) -> np.ndarray:
    total = np.zeros(images.shape[1:], np.float64)
    for start in range(0, len(positions), 256):  # never more than a few megabytes in memory
        total += images[positions[start : start + 256]].sum(0, dtype=np.int64)
    return total / max(len(positions), 1) / 255
