"""Numbers about maps: where the evidence lies, and whether the map depends on the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cxrjax import bootstrap
from cxrjax.models.grid import Grid

_BAND = 0.08  # of the side: the border in which markers and labels lie
_RESAMPLES = 2000


def share_inside(maps: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Share of the positive evidence inside a region ("energy", Wang et al. 2020, Score-CAM).

    Args:
      maps: float [N, S, S], raw; what is negative counts as nothing.
      regions: bool [N, S, S] or [S, S].
    Returns:
      float64 [N]; NaN for a map without positive evidence.
    """
    evidence = np.maximum(maps, 0).astype(np.float64)
    whole = evidence.sum((1, 2))
    inside = np.where(regions, evidence, 0).sum((1, 2))
    return np.divide(inside, whole, out=np.full(len(maps), np.nan), where=whole > 0)


def pointing(raw: np.ndarray, grid: Grid, regions: np.ndarray) -> np.ndarray:
    """Whether the largest value lies inside (Zhang et al. 2018, the pointing game).

    It lies at the centre of its cell: an enlarged map is as large all the way to the edge beyond
    an outermost cell. A centre between pixels is inside where half of those around it are.

    Args:
      raw: float [N, h, w], whose cells lie on `grid`.
      regions: bool [N, S, S].
    Returns:
      float64 [N] of 0 and 1; NaN for a map without positive evidence or an empty region.
    """
    flat = raw.reshape(len(raw), -1)
    peak = np.stack(np.unravel_index(flat.argmax(1), raw.shape[1:]))
    centre = grid.offset + grid.stride * peak
    around = [np.clip(f(centre).astype(int), 0, grid.side - 1) for f in (np.floor, np.ceil)]
    each = [regions[np.arange(len(raw)), y[0], x[1]] for y in around for x in around]
    hit = (np.mean(each, axis=0) >= 0.5).astype(np.float64)
    hit[(flat.max(1) <= 0) | ~regions.any((1, 2))] = np.nan
    return hit


def border(size: int) -> np.ndarray:
    """The band along the edges, bool [size, size]."""
    width = max(1, round(_BAND * size))
    band = np.ones((size, size), bool)
    band[width:-width, width:-width] = False
    return band


def agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Rank correlation (Spearman) of two maps of each image, between methods or seeds.

    Args:
      a, b: float [N, h, w].
    Returns:
      float64 [N]; NaN where a map is flat.
    """
    from scipy.stats import rankdata

    ranks = [rankdata(m.reshape(len(m), -1), axis=1) for m in (a, b)]
    x, y = (r - r.mean(1, keepdims=True) for r in ranks)
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    return np.divide((x * y).sum(1), size, out=np.full(len(a), np.nan), where=size > 0)


def mean_interval(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Mean with its 95 % bootstrap interval; whole groups are drawn.

    Args:
      values: float [N]; NaN is left out.
      groups: int [N], equal for images that are not independent.
    Returns:
      {value, low, high, n}; None where nothing is known, no interval from a single group. Where
      all values are 0 or 1 the mean is a share of hits, see `bootstrap.share`.
    """
    known = np.isfinite(values)
    values, groups = values[known], groups[known]
    if not len(values):
        return {"value": None, "low": None, "high": None, "n": 0}
    hits = np.isin(values, (0, 1)).all()
    found = (bootstrap.rate if hits else bootstrap.mean)(values, groups, _RESAMPLES, seed)
    return found if len(np.unique(groups)) > 1 else found | {"low": None, "high": None}


def by_group(
    values: np.ndarray,
    labels: np.ndarray,
    right: np.ndarray,
    groups: np.ndarray,
    classes: Sequence[str],
) -> dict[str, Any]:
    """`mean_interval` of all, of each true class, and of right and wrong predictions."""
    parts = {"all": np.ones(len(values), bool), "right": right, "wrong": ~right}
    parts |= {f"class {name}": labels == k for k, name in enumerate(classes)}
    return {name: mean_interval(values[part], groups[part]) for name, part in parts.items()}


def sentences(share: dict[str, Any], expected: dict[str, Any], region: str) -> list[str]:
    """What may be said of a share: only what its intervals support.

    Args:
      share: as `by_group` gives it.
      expected: the share a map spread evenly would have, as `mean_interval` gives it.
      region: e.g. "inside the lungs".
    """

    def text(entry):
        return f"{entry['value']:.2f} [{entry['low']:.2f}, {entry['high']:.2f}], n={entry['n']}"

    whole, said = share["all"], []
    if whole["low"] is None or expected["value"] is None:
        return [f"Too few maps with evidence (n={whole['n']}) to say how much lies {region}."]
    even = expected["value"]
    if whole["low"] > even:
        said.append(f"More evidence lies {region} ({text(whole)}) than in an even map: {even:.2f}.")
    elif whole["high"] < even:
        said.append(f"Less evidence lies {region} ({text(whole)}) than in an even map: {even:.2f}.")
    else:
        said.append(
            f"Whether evidence prefers to lie {region} is not shown ({text(whole)}; an even map "
            f"has {even:.2f})."
        )
    right, wrong = share["right"], share["wrong"]
    if None not in (right["low"], wrong["low"]):
        if right["low"] > wrong["high"] or right["high"] < wrong["low"]:
            more, less = sorted(("right", "wrong"), key=lambda name: -share[name]["value"])
            said.append(
                f"It is more where the prediction is {more} ({text(share[more])}) than where it is "
                f"{less} ({text(share[less])})."
            )
        else:
            said.append(
                f"No difference between right ({text(right)}) and wrong ({text(wrong)}) is shown."
            )
    return said
