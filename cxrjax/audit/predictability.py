"""How well a small classifier tells the class from a few numbers of each film, cross-validated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cxrjax import metrics

_FOLDS = 5
_MOST = 4000  # images looked at; with so many the interval is narrow enough
_RESAMPLES = 500
_INVERSE_PENALTY = 0.01  # strong: hundreds of features, hundreds of images
_FEW = 30  # features up to which squares are added: a class may lie in the middle


Folds = list[tuple[np.ndarray, np.ndarray]]  # positions to train on, and held out


def scores(
    families: Mapping[str, np.ndarray],
    labels: np.ndarray,
    classes: tuple[str, ...],
    groups: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """AUROC (one-vs-rest, macro) of predictions on held-out folds, with its 95 % interval.

    A logistic regression on standardised features, five folds, groups whole, the same for every
    family; the interval by a bootstrap over groups. Of large sets 4,000 images are drawn at random.

    Args:
      families: float [N, F] each, the features that one classifier is given.
      labels: int [N], positions in `classes`.
      groups: int [N], equal for films that show one patient or are copies.
    Returns:
      For each family {value, low, high, n}; None for the first three where the features do not
      vary or a class is too small to be held out.
    """
    chosen = np.random.default_rng(0).permutation(len(labels))[:_MOST]
    labels, groups = labels[chosen], groups[chosen]
    folds = divide(labels, len(classes), groups)
    told = {}
    for family, features in families.items():
        features = np.asarray(features, np.float64)[chosen]
        features = features[:, np.ptp(features, axis=0) > 0] if len(features) else features
        told[family] = {"value": None, "low": None, "high": None, "n": len(labels)}
        if folds and features.shape[1]:
            probabilities = held_out(features, labels, len(classes), folds)
            told[family] = metrics.evaluate(
                labels, probabilities, classes, groups, resamples=_RESAMPLES
            )["auroc"]
    return told


def divide(labels: np.ndarray, n_classes: int, groups: np.ndarray) -> Folds:
    """Five folds of whole groups with like shares of each class.

    None at all, an empty list, when a class has fewer groups than there are folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if min(len(np.unique(groups[labels == c])) for c in range(n_classes)) < _FOLDS:
        return []
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    return list(folds.split(labels[:, None], labels, groups))


def held_out(features: np.ndarray, labels: np.ndarray, n_classes: int, folds: Folds) -> np.ndarray:
    """Probabilities [N, K] of each image by a classifier that has not seen its fold."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probabilities = np.zeros((len(labels), n_classes))
    if features.shape[1] <= _FEW:
        scaled = StandardScaler().fit_transform(features)
        features = np.concatenate([scaled, np.clip(scaled, -4, 4) ** 2], axis=1)
    for train, test in folds:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=_INVERSE_PENALTY))
        model.fit(features[train], labels[train])
        probabilities[test[:, None], model[-1].classes_[None]] = model.predict_proba(features[test])
    return probabilities
