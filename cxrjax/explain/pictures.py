"""Pictures of maps: overlays, panels, a sheet of mistakes, histograms of a share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from cxrjax import log
from cxrjax.plotting import (
    COLOURS,
    WIDTH,
    cut,
    dress,
    interval_band,
    interval_rows,
    legend_below,
    new_figure,
    save,
    wrapped,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OPACITY = 0.6  # of the strongest evidence
_IN_A_PANEL = 6  # classes
_ON_A_SHEET = 500  # taller pictures than that of these, few programs open


def overlay(image: np.ndarray, evidence: np.ndarray, top: float) -> np.ndarray:
    """A map over its image; no evidence leaves the image as it is.

    Args:
      image: uint8 [S, S].
      evidence: float [S, S], what is below 0 is not shown.
      top: the value of full colour, the same for all that are to be compared; 0 shows nothing.
    Returns:
      uint8 [S, S, 3].
    """
    from matplotlib import colormaps

    strength = np.clip(evidence / top, 0, 1) if top > 0 else np.zeros(image.shape)
    colour = colormaps["inferno"](strength)[..., :3] * 255
    opacity = _OPACITY * strength[..., None]
    mixed = (1 - opacity) * image[..., None] + opacity * colour
    return np.rint(mixed).astype(np.uint8)


def shortened(stem: str) -> str:
    """The start of a file's name, in bytes as file systems count: most allow 255, some 143."""
    return os.fsencode(stem)[:80].decode(errors="ignore")


def save_overlay(path: Path, image: np.ndarray, evidence: np.ndarray, top: float) -> None:
    """Writes `overlay` as a PNG."""
    with log.replacing(path, "wb") as file:
        Image.fromarray(overlay(image, evidence, top)).save(file, format="PNG")


def panel(
    path: Path,
    image: np.ndarray,
    evidence: np.ndarray,
    top: float,
    probabilities: np.ndarray,
    classes: Sequence[str],
    label: int,
    name: str,
) -> None:
    """The image, the map for each class, and the predicted class's map over the image.

    Of more than six classes, the true, the predicted and the most probable ones are shown.

    Args:
      image: uint8 [S, S].
      evidence: float [K, S, S], positive parts.
      top: of the colour scale, which all panels of a run share.
      probabilities: float [K].
      label: the true class.
    """
    predicted = int(probabilities.argmax())
    order = sorted(
        range(len(classes)), key=lambda c: (c not in (label, predicted), -probabilities[c])
    )
    chosen = sorted(order[:_IN_A_PANEL])
    k = len(chosen)
    room = 6.3 / (k + 2) - 0.06  # inches: what the scale leaves of the width, for each picture
    mark = "✓" if predicted == label else "✗"
    titles = [
        wrapped(f"true: {classes[label]}", room, 7),
        *(f"{wrapped(classes[c], room, 7)}\n{probabilities[c]:.1%}" for c in chosen),
        wrapped(f"{mark} {classes[predicted]}", room, 7),
    ]
    more = max(0, *(title.count("\n") - 1 for title in titles))  # lines beyond two
    figure = new_figure(WIDTH / (k + 3) + 0.7 + 0.12 * more)
    axes = figure.subplots(1, k + 2)
    axes[0].imshow(image, cmap="gray", vmin=0, vmax=255)
    shown = None
    for c, ax in zip(chosen, axes[1:-1], strict=True):
        shown = ax.imshow(evidence[c], cmap="inferno", vmin=0, vmax=top or 1)
    axes[-1].imshow(overlay(image, evidence[predicted], top))
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=7)
        ax.set_xticks([])
        ax.set_yticks([])
    assert shown is not None
    bar = figure.colorbar(shown, ax=axes.tolist(), shrink=0.5, aspect=12)
    bar.set_label("evidence, one scale\nfor all panels", fontsize=6)
    bar.ax.tick_params(labelsize=6)
    left = len(classes) - k
    note = f" ({left} of {len(classes)} classes are not shown)" if left else ""
    figure.suptitle(cut(PurePosixPath(name).name, 4, 7) + note, fontsize=7)
    save(figure, path)


def mistakes(
    path: Path,
    images: np.ndarray,
    evidence: np.ndarray,
    top: float,
    probabilities: np.ndarray,
    classes: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str],
) -> None:
    """All wrong images under the map of the class predicted, the most confident first.

    Beyond 500, fewer where long names need room, the rest is left out and the title says so.

    Args:
      images: uint8 [N, S, S], those that are wrong.
      evidence: float [N, S, S], for the predicted class.
      probabilities: float [N, K].
      labels: int [N].
    """
    columns = 5
    order = np.argsort(-probabilities.max(1), kind="stable")[:_ON_A_SHEET]
    room, told = WIDTH / columns - 0.06, probabilities.argmax(1)
    titles = [
        f"{wrapped(f'{classes[told[i]]} {probabilities[i, told[i]]:.0%}', room, 6)}\n"
        + wrapped(f"true: {classes[int(labels[i])]}", room, 6)
        for i in order
    ]
    more = max([0, *(title.count("\n") - 1 for title in titles)])  # lines beyond two
    usual = WIDTH / columns + 0.45  # inches: the height of a row
    height = usual + 0.1 * more
    order = order[: columns * int(_ON_A_SHEET / columns * usual / height)]
    rows = max(1, -(-len(order) // columns))
    figure = new_figure(0.4 + rows * height)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, i, title in zip(axes, order, titles, strict=False):
        ax.imshow(overlay(images[i], evidence[i], top))
        ax.set_title(title, fontsize=6)
        ax.text(
            0.5,
            -0.02,
            PurePosixPath(names[int(i)]).name[-30:],
            fontsize=4,
            ha="center",
            va="top",
            transform=ax.transAxes,
        )
    shown = "" if len(order) == len(images) else f" ({len(order)} shown)"
    title = f"{len(images)} misclassified{shown}, the most confident first; one scale of colours"
    figure.suptitle(title, fontsize=9)
    save(figure, path)


def share_histogram(
    path: Path,
    share: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
    classes: Sequence[str],
    what: str,
) -> None:
    """Histograms of a share by true class, and by right and wrong.

    Args:
      share: float [N], 0 to 1; NaN (no evidence) is left out.
      labels: int [N].
      right: bool [N].
      what: of the axis, e.g. "evidence inside the lungs".
    """
    figure = new_figure(2.7)
    by_class, by_right = figure.subplots(1, 2, sharey=False)
    bins = np.linspace(0, 1, 21).tolist()
    parts = [(name, labels == c) for c, name in enumerate(classes)]
    halves = [("right", right), ("wrong", ~right)]
    for ax, groups in ((by_class, parts), (by_right, halves)):
        for i, (name, chosen) in enumerate(groups):
            seen = share[chosen & np.isfinite(share)]
            ax.hist(
                seen,
                bins=bins,
                histtype="step",
                color=COLOURS[i % len(COLOURS)],
                ls=("-", "--", ":", "-.")[(i + i // len(COLOURS)) % 4],
                label=f"{name.replace('_', ' ')} (n = {len(seen)})",
            )
        ax.set_xlabel(f"share of {what}", fontsize=8)
        ax.set_ylabel("images", fontsize=8)
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        names = [name for name, _ in groups]
        if len(names) > 5 or any(cut(name, 1.2, 7) != name for name in names):
            legend_below(ax, WIDTH / 2)
        else:
            ax.legend(fontsize=7, frameon=False)
    save(figure, path)


def checks(path: Path, found: dict[str, Any], method: str) -> None:
    """What the checks found: curves, weights at random, agreement; a panel for each.

    Args:
      found: as `checks.write` returns it, not empty.
      method: the one whose maps were checked.
    """
    drawn = []
    if "faithfulness" in found:
        drawn += [
            lambda ax, side=side: _curves(ax, found["faithfulness"], side)
            for side in ("deletion", "insertion")
        ]
    if "randomisation" in found:
        drawn.append(lambda ax: _randomisation(ax, found["randomisation"]))
    drawn += [
        lambda ax, what=what: _agreement(ax, found["agreement"][what], what)
        for what in found.get("agreement", {})
    ]
    rows = -(-len(drawn) // 2)
    figure = new_figure(0.3 + 2.7 * rows)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for ax, draw in zip(axes, drawn, strict=False):
        draw(ax)
    for ax in axes[len(drawn) :]:
        ax.axis("off")
    figure.suptitle(f"{method}; bands and bars: 95 % intervals".replace("_", " "), fontsize=9)
    save(figure, path)


def _curves(ax: Axes, found: dict[str, Any], side: str) -> None:
    for k, (way, sides) in enumerate(found["curves"].items()):
        style = dict(color=COLOURS[k], ls=("-", "--", ":")[k], lw=1.4)
        interval_band(ax, found["share"], sides[side], way, style)
    ax.set_ylim(0, 1.02)
    share = {"deletion": "share of pixels removed", "insertion": "share of pixels kept"}[side]
    n = found["area"]["map"][side]["n"]
    dress(ax, f"{side.capitalize()}, n = {n}", share, "probability of the class")


def _randomisation(ax: Axes, found: dict[str, Any]) -> None:
    interval_rows(ax, found["layers"])
    ax.axvline(found["limit"], color="0.45", lw=1, ls="--", label="limit for the last row")
    ax.set_xlim(0, 1.02)
    verdict = {True: "passed", False: "FAILED", None: "undecided"}[found["passed"]]
    dress(ax, f"Weights random down to ...: {verdict}", "size of the rank correlation")


def _agreement(ax: Axes, found: Sequence[dict[str, Any]], what: str) -> None:
    for k, (key, label) in enumerate((("same_image", "same"), ("other_image", "another"))):
        rows = {f"{pair['first']},\n{pair['second']}": pair[key] for pair in found}
        interval_rows(ax, rows, k, f"{label} image", 0.15 - 0.3 * k)
    ax.axvline(0, color="0.45", lw=1, ls="--")
    dress(ax, f"Agreement of {what}", "rank correlation")
