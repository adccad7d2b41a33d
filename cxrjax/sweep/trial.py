"""One trial while it runs: its history, its best epoch, whether it goes on, and its record."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cxrjax import bootstrap
from cxrjax.sweep.grid import Point
from cxrjax.sweep.trials import DIVERGED, FINISHED


class Trial:
    """Early stopping on validation loss as a single run has it, for one point."""

    def __init__(self, point: Point):
        self.point = point
        self.history: list[tuple[float, float, float, float]] = []  # train, validation: loss, acc.
        self.best_loss, self.best_epoch, self._stale = math.inf, 0, 0
        self.best: np.ndarray | None = None  # float32 [N, K], validation probabilities
        self.seconds = 0.0
        self.status: str | None = None  # None: goes on

    def end_epoch(
        self,
        totals: dict[str, np.ndarray],
        labels: np.ndarray,
        probabilities: np.ndarray,
        losses: np.ndarray,
    ) -> None:
        """Takes in one epoch.

        Args:
          totals: of the training split: loss [], correct [K], support [K].
          labels: int [N], of the validation split.
          probabilities, losses: float32 [N, K] and [N], on it.
        """
        support = totals["support"].sum()
        loss = float(losses.mean(dtype=np.float64))
        train_loss = float(totals["loss"] / support)
        accuracy = float((probabilities.argmax(axis=1) == labels).mean())
        self.history.append((train_loss, float(totals["correct"].sum() / support), loss, accuracy))
        if not math.isfinite(loss) or not math.isfinite(train_loss):
            self.status = DIVERGED
            return
        if loss < self.best_loss:
            self.best_loss, self.best_epoch, self._stale = loss, len(self.history), 0
            self.best = np.array(probabilities)
        else:
            self._stale += 1
        train = self.point.config.train
        if len(self.history) >= train.epochs or 0 < train.patience <= self._stale:
            self.status = FINISHED

    def record(
        self,
        labels: np.ndarray,
        groups: np.ndarray,
        how: str,
        data: str,
        start: str | None = None,
    ) -> dict[str, Any]:
        """Its line of the ledger.

        Args:
          labels, groups: int [N], of the validation split; groups are resampled whole.
          how: in which company it ran.
          data: digest of images and split.
          start: that of what its network started with, see `build.origin`.
        """
        validation = None
        if self.status == FINISHED and self.best is not None:
            hit = self.best.argmax(axis=1) == labels
            resamples = self.point.config.eval.resamples
            accuracy = bootstrap.rate(hit, groups, resamples, self.point.config.seed)
            validation = {"loss": self.best_loss, "accuracy": accuracy}
        return {
            "key": self.point.key,
            "values": self.point.values,
            "seed": self.point.seed,
            "status": self.status,
            "epochs": len(self.history),
            "best_epoch": self.best_epoch,
            "validation": validation,
            "seconds": round(self.seconds, 3),
            "how": how,
            "data": data,
        } | ({"start": start} if start else {})

    def arrays(self) -> dict[str, np.ndarray]:
        """What is kept beside the ledger: history [epochs, 4] and probabilities [N, K]."""
        kept = {"history": np.asarray(self.history, np.float64).reshape(-1, 4)}
        return kept if self.best is None else kept | {"probabilities": self.best}
