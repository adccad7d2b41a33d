"""The audit of a data set: what is measured, and which of it is a finding.

A finding is what cannot be on sound data: copies, a patient on two sides, classes that a copy or
the film itself contradicts, and anything that tells the class although no disease can change it
(source, file format, size, rim of the film). What disease does change, such as exposure, is
reported with its figure and is no finding: on sound data it may tell the class as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrjax import bootstrap
from cxrjax.audit import doubts, predictability, statistics
from cxrjax.data.dataset import (
    Dataset,
    association,
    histograms,
    mean_square_contingency,
)
from cxrjax.data.sources import Source

# Lower ends of the 95 % intervals above which an association is a finding. Chance lies far below
# either, so hardly any sound set passes them; a fault worth a classifier's while passes them.
AUROC_ALARM = 0.55
CRAMERS_V_ALARM = 0.1  # a small effect by Cohen's convention
_RESAMPLES = 500
_EXAMPLES = 20  # names listed for each finding
# Families of statistics, and whether no disease can change them.
FAMILIES = {
    "resolution": True,
    "encoding": True,
    "borders": True,
    "exposure": False,
    "thumbnails_8x8": False,
}


def audit(data: Dataset, source: Source) -> dict[str, Any]:
    """Everything that is known of a data set without a classifier, as strict JSON.

    Args:
      data: the prepared data set.
      source: where it is from.
    Returns:
      `findings`, a list of {kind, text}; `duplicates`, `leaks`, `label_conflicts`, `sources`,
      `predictability` (by family: auroc {value, low, high, n} and alarm), `label_doubts`, `n`,
      `classes`.
    """
    store, copies = data.store, data.copies
    films = statistics.films(store)
    headers = statistics.headers(source, store)
    features = {
        "resolution": statistics.resolution(headers),
        "encoding": statistics.encoding(headers),
        "borders": statistics.borders(films),
        "exposure": statistics.exposure(histograms(store)),
        "thumbnails_8x8": statistics.thumbnails(films),
    }
    told = {}
    aurocs = predictability.scores(features, store.labels, data.classes, data.groups)
    for family, auroc in aurocs.items():
        loud = FAMILIES[family] and auroc["value"] is not None and auroc["low"] > AUROC_ALARM
        told[family] = {"auroc": auroc, "counts_as_finding": FAMILIES[family], "alarm": bool(loud)}
    report = {
        "classes": list(data.classes),
        "n": len(store.labels),
        "splits": {split: len(where) for split, where in data.splits.items()},
        "duplicates": {
            "pairs": data.audit["duplicate_pairs"],
            "exact": data.audit["exact_pairs"],
            "groups": data.audit["groups"],
            "largest_group": data.audit["largest_group"],
            "examples": [
                [store.names[i], store.names[j], round(float(c), 3)]
                for (i, j), c in zip(
                    copies.pairs[:_EXAMPLES], copies.correlation[:_EXAMPLES], strict=True
                )
            ],
        },
        "leaks": data.audit["leaks"],
        "label_conflicts": data.audit["label_conflicts"],
        "sources": by_source(data),
        "predictability": told,
        "label_doubts": doubts.find(films, data),
        "skipped": data.audit["skipped"],
    }
    return {"findings": findings(report)} | report


def by_source(data: Dataset) -> dict[str, Any]:
    """How far the source tells the class: Cramer's V with its interval, and the table.

    Over images whose source is known; None where sources do not vary. The interval is a bootstrap
    over groups.
    """
    store = data.store
    known = np.array([source is not None for source in store.sources], bool)
    sources = np.array([source for source in store.sources if source is not None], dtype=object)
    names, which = np.unique(sources.astype(str), return_inverse=True)
    labels = store.labels[known]
    table = np.zeros((len(names), len(data.classes)), int)
    np.add.at(table, (which, labels), 1)
    return {
        "cramers_v": _cramers_v(table, which, labels, data.groups[known]),
        "unknown": int((~known).sum()),
        "table": {
            str(names[i]): dict(zip(data.classes, table[i].tolist(), strict=True))
            for i in np.argsort(-table.sum(1), kind="stable")[:_EXAMPLES]
        },
    }


def _cramers_v(
    table: np.ndarray, rows: np.ndarray, columns: np.ndarray, groups: np.ndarray
) -> dict[str, Any]:
    """Cramer's V of a table as {value, low, high, n}, None where a variable does not vary.

    Chance adds to phi squared, and a resample of the groups adds as much once more as the sample
    had; what the resamples add on average is taken off the value once and off them twice. Of images
    that are a group each this is Bergsma's correction; films of one patient, which share source and
    class, add more than it knows.

    Args:
      table: int [R, C]; rows, columns: int [N], the examples in it; groups: int [N].
    """
    entry = {"value": None, "low": None, "high": None, "n": len(rows)}
    hospitals, classes = (int(table.any(axis=axis).sum()) for axis in (1, 0))
    if min(hospitals, classes) < 2:
        return entry
    cell = np.ravel_multi_index((rows, columns), table.shape)
    drawn = np.array(
        [
            mean_square_contingency(np.bincount(cell, weights, table.size).reshape(table.shape))
            for part in bootstrap.weights(groups, _RESAMPLES, seed=0)
            for weights in part
        ]
    )
    phi2 = mean_square_contingency(table)
    added = drawn.mean() - phi2
    value, *bounds = association(
        np.array([phi2 - added, *(bootstrap.interval(drawn) - 2 * added)]),
        hospitals,
        classes,
        len(np.unique(groups)),
    )
    if np.isnan(value):
        return entry
    return entry | {"value": float(value), "low": float(bounds[0]), "high": float(bounds[1])}


def findings(report: dict[str, Any]) -> list[dict[str, str]]:
    """What of a report counts against the data, as {kind, text}."""
    found = []

    def add(kind: str, text: str) -> None:
        found.append({"kind": kind, "text": text})

    copies, leaks = report["duplicates"], report["leaks"]
    if copies["pairs"]:
        add(
            "duplicates",
            f"{copies['pairs']} pairs of near-duplicates ({copies['exact']} exact) in "
            f"{copies['groups']} groups, the largest of {copies['largest_group']}",
        )
    if sum(leaks["pairs"].values()):
        crossing = ", ".join(f"{k} {v}" for k, v in leaks["pairs"].items() if v)
        add("leaks", f"near-duplicates on two sides of the splits: {crossing}")
    if sum(leaks["patients"].values()):
        crossing = ", ".join(f"{k} {v}" for k, v in leaks["patients"].items() if v)
        add("patients", f"patients on two sides of the splits: {crossing}")
    if report["label_conflicts"]["pairs"]:
        add(
            "label_conflicts",
            f"{report['label_conflicts']['pairs']} pairs of near-duplicates have different classes",
        )
    v = report["sources"]["cramers_v"]
    if v["value"] is not None and v["low"] > CRAMERS_V_ALARM:
        add("sources", f"the source tells the class: Cramer's V {interval(v)}")
    for family, told in report["predictability"].items():
        if told["alarm"]:
            add(family, f"{family} alone tell the class: AUROC {interval(told['auroc'])}")
    doubtful = report["label_doubts"]
    if doubtful["alarm"]:
        add(
            "label_doubts",
            f"labels contradict the lungs on {interval(doubtful['contradicted'])} of the clearest "
            "films: wrong labels, or a likeness that misleads a small classifier; look at them",
        )
    return found


def interval(metric: dict[str, Any]) -> str:
    """A figure as findings give it, e.g. `0.78 [0.77, 0.78] n=8346`."""
    return f"{metric['value']:.2f} [{metric['low']:.2f}, {metric['high']:.2f}] n={metric['n']}"
