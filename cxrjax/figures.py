"""Figures of a run: learning curves, confusion matrix, test images with their predictions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from cxrjax.plotting import COLOURS, SMALL, WIDTH, legend_below, new_figure, save, wrapped

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_RIGHT, _WRONG = COLOURS[0], COLOURS[1]
_COLUMNS, _ROWS = 4, 3  # of the grid of test images


def curves(history: Sequence[Mapping[str, Any]], best_epoch: int, path: Path) -> None:
    """Loss, accuracy and per-class recall over epochs, the best epoch marked.

    Args:
      history: the lines of metrics.jsonl: epoch, split ("train" or "validation"), loss in nats,
        accuracy, recall by class; None or NaN leaves a gap; `trained_on` where validation images
        were.
      best_epoch: the one whose weights were kept.
      path: of the PNG, replaced in one step.
    """
    figure = new_figure(3.1)
    loss, accuracy, recall = figure.subplots(1, 3)
    seen = any(line.get("trained_on") for line in history)
    for k, split in enumerate(("train", "validation")):
        lines = [line for line in history if line["split"] == split]
        epochs = [line["epoch"] for line in lines]
        for axes, name in ((loss, "loss"), (accuracy, "accuracy")):
            told = ", trained on" if seen and split == "validation" else ""
            _line(axes, epochs, [line[name] for line in lines], k, split + told)
    validation = [line for line in history if line["split"] == "validation"]
    epochs = [line["epoch"] for line in validation]
    for k, name in enumerate(validation[0]["recall"] if validation else ()):
        _line(recall, epochs, [line["recall"].get(name) for line in validation], k, name)
    for axes, title, unit in (
        (loss, "Loss", "cross-entropy (nats)"),
        (accuracy, "Accuracy", "share correct"),
        (recall, "Recall by class, validation", "share of the class found"),
    ):
        axes.axvline(best_epoch, color="0.45", lw=1, ls="--", zorder=0)
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.set_ylabel(unit, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.set_xlim(0.5, max([best_epoch, *(line["epoch"] for line in history)]) + 0.5)
        axes.spines[["top", "right"]].set_visible(False)
        legend_below(axes, WIDTH / 3, spare=2)
    loss.set_ylim(0, loss.get_ylim()[1] * 1.02)  # room for a marker at the top
    for axes in (accuracy, recall):
        axes.set_ylim(-0.02, 1.02)
    why = "the last: validation images were trained on" if seen else "the lowest validation loss"
    figure.suptitle(f"Dashed: epoch {best_epoch}, {why}", fontsize=9)
    save(figure, path)


def confusion_matrix(matrix: np.ndarray, classes: Sequence[str], title: str, path: Path) -> None:
    """Counts with row percentages; the shade is the percentage.

    Args:
      matrix: int [K, K], rows true, columns predicted.
      classes: the K names.
      title: what was evaluated, e.g. "test split"; n is added.
      path: of the PNG, replaced in one step.
    """
    matrix = np.asarray(matrix)
    support = matrix.sum(axis=1, keepdims=True)
    share = matrix / np.maximum(support, 1)
    k = len(classes)
    figure = new_figure(1.7 + 0.8 * k, 2.6 + 0.95 * k)
    axes = figure.add_subplot()
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(matrix):
        percentage = f"\n{share[row, column]:.1%}" if support[row] else "\n–"
        axes.text(
            column,
            row,
            f"{count:,}{percentage}",
            ha="center",
            va="center",
            fontsize=10,
            fontweight="bold" if row == column else "normal",
            color="white" if share[row, column] > 0.55 else "black",
        )
    names = [name.replace("_", " ") for name in classes]
    slanted = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if k > 2 else {}
    axes.set_xticks(range(k), names, fontsize=9, **slanted)
    axes.set_yticks(
        range(k), [f"{c}\nn = {n:,}" for c, n in zip(names, support[:, 0], strict=True)], fontsize=9
    )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"{title}, n = {matrix.sum():,}", fontsize=10)
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the true class")
    bar.ax.yaxis.set_major_formatter("{x:.0%}")
    save(figure, path)


def test_images(
    images: np.ndarray,
    positions: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    path: Path,
) -> None:
    """A grid of test images with true and predicted class: half of them wrong, where so many are.

    Args:
      images: uint8 [N, H, W], the whole store; only those shown are read.
      positions: int [n], where the examples lie in `images`.
      labels: int [n].
      probabilities: float [n, K].
      classes: the K names.
      names: of the n images.
      path: of the PNG, replaced in one step.
    """
    predicted = np.asarray(probabilities).argmax(axis=1)
    labels = np.asarray(labels)
    wrong, right = _sample(labels, predicted)
    chosen = [*wrong, *right]
    rows = max(1, math.ceil(len(chosen) / _COLUMNS))
    titles = [
        _title(classes[int(labels[i])], classes[int(predicted[i])], float(probabilities[i].max()))
        for i in chosen
    ]
    more = max([0, *(title.count("\n") - 1 for title in titles)])  # lines beyond two
    figure = new_figure(0.6 + rows * (WIDTH / _COLUMNS + 0.55 + 0.13 * more))
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in panels[len(chosen) :]:
        axes.axis("off")
    for axes, i, title in zip(panels, chosen, titles, strict=False):
        name = PurePosixPath(names[int(i)]).name
        _image(axes, images[positions[i]], bool(labels[i] == predicted[i]), title, name)
    mistakes = int((predicted != labels).sum())
    figure.suptitle(
        f"Test split, n = {len(labels):,}: {len(wrong)} of {mistakes:,} wrong (✗, thick frame), "
        f"{len(right)} of {len(labels) - mistakes:,} right (✓)\n"
        "after ✗ or ✓: predicted class and its probability",
        fontsize=9,
    )
    save(figure, path)


def _sample(labels: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples to show, wrong and right: half of each while there are enough, classes in turn."""
    # Shuffled, as neighbours in a split may be of one patient; seeded, for the same figure again.
    order = np.random.default_rng(0).permutation(len(labels))
    hit = (predicted == labels)[order]
    parts = order[~hit], order[hit]
    total = _COLUMNS * _ROWS
    chosen = []
    for part, other in (parts, parts[::-1]):
        size = max(total // 2, total - len(other))
        of_class = labels[part][:, None] == np.unique(labels)
        turn = (of_class.cumsum(axis=0) * of_class).sum(axis=1)  # first of its class, second, ...
        shown = part[np.argsort(turn, kind="stable")[:size]]
        chosen.append(shown[np.argsort(labels[shown], kind="stable")])
    return chosen[0], chosen[1]


def _title(true: str, predicted: str, probability: float) -> str:
    """Of a test image: a line for the true and one for the predicted class, if they are short."""
    correct = true == predicted
    lines = (f"true: {true}", f"{'✓' if correct else '✗'} {predicted} {probability:.0%}")
    room, weight = WIDTH / _COLUMNS - 0.15, "normal" if correct else "bold"
    return "\n".join(wrapped(line, room, SMALL, weight) for line in lines)


def _image(axes: Axes, image: np.ndarray, correct: bool, title: str, name: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_xlabel(name if len(name) < 31 else f"…{name[-29:]}", fontsize=6, color="0.35")
    for spine in axes.spines.values():
        spine.set(color=_RIGHT if correct else _WRONG, linewidth=1 if correct else 4)
    axes.set_title(
        title,
        fontsize=SMALL,
        loc="left",
        color="black" if correct else _WRONG,
        fontweight="normal" if correct else "bold",
    )


def _line(
    axes: Axes, epochs: Sequence[int], values: Sequence[float | None], k: int, label: str
) -> None:
    axes.plot(
        epochs,
        [np.nan if value is None else value for value in values],
        color=COLOURS[k % len(COLOURS)],
        marker=_MARKERS[k % len(_MARKERS)],
        ls=("-", "--")[k // len(COLOURS) % 2],
        lw=1.3,
        ms=3.5,
        markevery=max(1, len(epochs) // 12),
        label=label.replace("_", " "),
    )
