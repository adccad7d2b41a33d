"""Figures of the audit: pairs of copies, what tells the class, sources, shortcuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.audit import data_audit, shortcuts
from cxrjax.data.duplicates import Duplicates
from cxrjax.data.store import Store
from cxrjax.plotting import COLOURS, WIDTH, new_figure, save

_PAIRS = 6
_SOURCES = 12
_DOUBTS = 12


def duplicates(store: Store, found: Duplicates, path: Path) -> None:
    """Six pairs of near-duplicates side by side, pairs of different classes first."""
    labels = store.labels[found.pairs]
    order = np.lexsort([found.correlation, labels[:, 0] == labels[:, 1]])[:_PAIRS]
    figure = new_figure(0.6 + len(order) / 3 * (WIDTH / 6 + 0.55))
    panels = figure.subplots(-(-len(order) // 3), 6, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for k, p in enumerate(order):
        for side in (0, 1):
            i, axes = found.pairs[p, side], panels[2 * k + side]
            axes.imshow(store.images[i], cmap="gray", vmin=0, vmax=255)
            title = store.classes[store.labels[i]].replace("_", " ")
            differ = labels[p, 0] != labels[p, 1]
            axes.set_title(
                f"{title}\nr = {found.correlation[p]:.2f}" if side else f"{title}\n",
                fontsize=7,
                color=COLOURS[1] if differ else "black",
            )
    figure.suptitle(f"{len(order)} of {len(found.pairs):,} pairs of near-duplicates", fontsize=9)
    save(figure, path)


def predictability(report: dict[str, Any], path: Path) -> None:
    """AUROC of each family of statistics, with its interval and the level of alarm."""
    told = {k: v for k, v in report["predictability"].items() if v["auroc"]["value"] is not None}
    figure = new_figure(1.1 + 0.35 * len(told))
    axes = figure.add_subplot()
    for row, entry in enumerate(told.values()):
        auroc = entry["auroc"]
        colour = (
            COLOURS[1] if entry["alarm"] else COLOURS[0] if entry["counts_as_finding"] else "0.5"
        )
        axes.plot([auroc["low"], auroc["high"]], [row, row], color=colour, lw=3)
        axes.plot(auroc["value"], row, "o", color=colour)
        axes.annotate(
            f"{auroc['value']:.2f}  n = {auroc['n']:,}" + ("  finding" if entry["alarm"] else ""),
            (auroc["high"], row),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    axes.axvline(0.5, color="0.7", lw=1)
    axes.axvline(data_audit.AUROC_ALARM, color=COLOURS[1], lw=1, ls="--")
    names = [f + ("" if told[f]["counts_as_finding"] else " (reported only)") for f in told]
    axes.set_yticks(range(len(told)), [name.replace("_", " ") for name in names])
    axes.set_ylim(len(told) - 0.5, -0.5)
    axes.set_xlim(0.4, 1.2)
    axes.set_xticks([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    axes.set_xlabel("AUROC of the class from these statistics alone, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def sources(report: dict[str, Any], path: Path) -> None:
    """Images of each source by class."""
    table = report["sources"]["table"]
    names = list(table)[:_SOURCES]
    counts = np.array([[table[name][c] for c in report["classes"]] for name in names])
    figure = new_figure(1.4 + 0.32 * len(names))
    axes = figure.add_subplot()
    axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", aspect="auto")
    for (row, column), count in np.ndenumerate(counts):
        dark = count > 0.55 * counts[row].sum()
        axes.text(
            column,
            row,
            f"{count:,}",
            ha="center",
            va="center",
            fontsize=8,
            color="w" if dark else "k",
        )
    axes.set_yticks(
        range(len(names)), [n if len(n) < 31 else f"…{n[-29:]}" for n in names], fontsize=7
    )
    axes.set_xticks(range(len(report["classes"])), [c.replace("_", " ") for c in report["classes"]])
    v = report["sources"]["cramers_v"]
    shown = f"{v['value']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" if v["value"] is not None else "-"
    axes.set_title(
        f"Class by source, n = {v['n']:,}: Cramer's V {shown}; shade: share of the source",
        fontsize=9,
    )
    save(figure, path)


def label_doubts(store: Store, found: dict[str, Any], path: Path) -> None:
    """The films whose labels a small classifier of the lungs contradicts most surely."""
    examples = found["examples"][:_DOUBTS]
    rows = -(-len(examples) // 6)
    figure = new_figure(0.5 + rows * (WIDTH / 6 + 0.5))
    panels = figure.subplots(rows, 6, squeeze=False).ravel()
    for axes in panels:
        axes.axis("off")
    for axes, example in zip(panels, examples, strict=False):
        axes.imshow(store.images[store.names.index(example["name"])], cmap="gray")
        title = f"label {example['label']}\n{example['looks_like']} {example['probability']:.2f}?"
        axes.set_title(title.replace("_", " "), fontsize=6)
    share = found["contradicted"]
    figure.suptitle(
        f"Labels contradict the lungs on {share['value']:.0%} of the {share['n']:,} clearest films",
        fontsize=9,
    )
    save(figure, path)


def shortcut_views(found: dict[str, Any], image: np.ndarray, mask: np.ndarray, path: Path) -> None:
    """AUROC and accuracy of every view, under an example of it.

    Args:
      found: see `shortcuts.measure`.
      image: uint8 [S, S]; mask: bool [S, S].
    """
    views = list(found["views"])
    figure = new_figure(3.6)
    parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.6))
    above, below = parts
    for name, axes in zip(views, above.subplots(1, len(views)), strict=True):
        change = shortcuts.VIEWS.get(name, lambda image, mask: image)
        axes.imshow(change(image, mask), cmap="gray", vmin=0, vmax=255)
        axes.set_title(name.replace("_", " "), fontsize=7)
        axes.axis("off")
    axes = below.add_subplot()
    for k, metric in enumerate(("auroc", "accuracy")):
        for column, name in enumerate(views):
            entry = found["views"][name][metric]
            if entry["value"] is None:
                continue
            x = column + 0.2 * k - 0.1
            axes.plot([x, x], [entry["low"], entry["high"]], color=COLOURS[k], lw=2)
            axes.plot(
                x,
                entry["value"],
                "os"[k],
                color=COLOURS[k],
                ms=4,
                label=metric if not column else None,
            )
    axes.axhline(0.5, color="0.7", lw=1)
    axes.text(len(views) - 0.5, 0.51, "AUROC of chance", ha="right", fontsize=6, color="0.4")
    axes.set_xticks(range(len(views)), [name.replace("_", " ") for name in views], fontsize=7)
    axes.set_xlim(-0.5, len(views) - 0.5)
    axes.set_ylim(0, 1.02)
    axes.legend(frameon=False, fontsize=8, loc="lower left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    score = found["score"]
    shown = "undefined"
    if score["value"] is not None:
        shown = f"{score['value']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
    axes.set_title(f"Test split; shortcut score {shown}, n = {score['n']:,}", fontsize=9)
    save(figure, path)
