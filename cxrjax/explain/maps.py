"""From a network and images to probabilities and maps, one compiled call for a batch."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import log, losses, step
from cxrjax.data.batches import filled
from cxrjax.errors import UserError
from cxrjax.explain import methods, targets
from cxrjax.models import classifier
from cxrjax.models.backbone import fold
from cxrjax.models.grid import Grid, pixels
from cxrjax.trained import Trained


def explain(
    recipe: step.Recipe,
    method: str,
    stage: str | None,
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    wanted: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Probabilities and raw maps of a batch.

    The backbone up to `stage` runs once whatever the number of targets, and only what lies behind
    it is differentiated.

    Args:
      recipe, method, stage: static; `stage` None means the features.
      images: uint8 [B, H, W].
      wanted: float32 [T, n_logits], see `targets`; or [B, T, n_logits], each image's own.
    Returns:
      probabilities float32 [B, K] and raw signed maps float32 [B, T, h, w], at the size of the
      stage's maps or, for methods at the input, of the images.
    """
    model = classifier.merge(recipe.graphdef, params, batch_stats)
    fold(model.backbone)
    pixels = images[..., None].astype(jnp.float32)

    def forward(x):
        return step.normalize(x, recipe.mean, recipe.std)

    if method in methods.AT_INPUT:
        start, run = pixels, methods.AT_INPUT[method]

        def logits_of(x):
            return model.classify(model.features(forward(x)))
    else:
        run = methods.CAMS[method]
        stages = model.backbone.stages(model.cast(forward(pixels)))
        after = stage or next(reversed(stages))
        start = stages[after]

        def logits_of(x):
            return model.classify(model.features(x, after=after))

    def one(coefficients):
        mine = jnp.broadcast_to(coefficients, (len(images), wanted.shape[-1]))

        def score(x):
            logits = logits_of(x)
            # Methods that score changed copies give the whole batch, several times over.
            return (logits * jnp.tile(mine, (len(logits) // len(mine), 1))).sum(-1)

        return run(score, start)

    maps = jax.vmap(one, in_axes=wanted.ndim - 2, out_axes=1)(wanted)
    return losses.probabilities(logits_of(start)), maps


class Explained(NamedTuple):
    """Images of one split with their maps."""

    positions: np.ndarray  # int [N] into the store
    images: np.ndarray  # uint8 [N, S, S]
    labels: np.ndarray  # int [N]
    groups: np.ndarray  # int [N], equal for images that are not independent
    probabilities: np.ndarray  # float32 [N, K]
    raw: np.ndarray  # float32 [N, K, h, w]
    grid: Grid  # of the maps
    names: tuple[str, ...]

    @property
    def predicted(self) -> np.ndarray:
        return self.probabilities.argmax(1)

    @property
    def right(self) -> np.ndarray:
        return self.predicted == self.labels

    @property
    def raw_of_predicted(self) -> np.ndarray:
        """Maps of the predicted class as they are, float32 [N, h, w]."""
        return self.raw[np.arange(len(self.raw)), self.predicted]

    def of_predicted(self) -> np.ndarray:
        """Maps of the predicted class at the size of the images, float32 [N, S, S]."""
        return enlarge(self.raw_of_predicted, self.grid)

    def take(self, chosen: np.ndarray) -> Explained:
        """Those where `chosen`, bool [N], is True."""
        return Explained(
            self.positions[chosen],
            self.images[chosen],
            self.labels[chosen],
            self.groups[chosen],
            self.probabilities[chosen],
            self.raw[chosen],
            self.grid,
            tuple(self.names[i] for i in np.flatnonzero(chosen)),
        )


class Explainer:
    """One method at one stage of a trained network, compiled at its first call."""

    def __init__(self, run: Trained, method: str = "grad_cam", stage: str | None = None):
        """
        Raises:
          UserError: for an unknown method or stage.
        """
        if method not in methods.METHODS:
            raise UserError(
                f"there is no method {method!r}; choose one of {', '.join(methods.METHODS)}."
            )
        model = classifier.merge(run.recipe.graphdef, run.params, run.batch_stats)
        names = [name for name, _ in model.backbone.chain()]
        # The features are the maps of the registry's CAM layer.
        if stage is not None and stage not in names:
            raise UserError(
                f"{run.spec.name} has no stage {stage!r}; choose one of {', '.join(names)}."
            )
        self.run, self.method = run, method
        self.grid = pixels(run.image_size)  # of its maps
        if method in methods.CAMS:
            self.grid = model.backbone.grids(run.image_size)[stage or names[-1]]
        self.n_logits = int(run.params["head"]["logits"]["kernel"].shape[-1])
        self._call: Callable = jax.jit(functools.partial(explain, run.recipe, method, stage))

    def __call__(
        self, images: np.ndarray, wanted: np.ndarray | None = None, batch_size: int = 32
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities [N, K] and raw maps [N, T, h, w] of images uint8 [N, S, S].

        Args:
          wanted: float32 [T, n_logits], or [N, T, n_logits] with targets of its own for each
            image; None: a target for each class.
          batch_size: divided by 16 for methods at the input, which take 16 passes for each image.
        """
        wanted = targets.default(self.n_logits) if wanted is None else wanted
        if self.method in methods.AT_INPUT:
            batch_size = max(1, batch_size // 16)
        size = min(batch_size, len(images))
        found = []
        with log.progress_bar(total=len(images), what=self.method, unit="images") as bar:
            for at in range(0, len(images), size):
                part = np.asarray(images[at : at + size])
                n = len(part)
                part = filled(part, size)
                mine = wanted if wanted.ndim == 2 else filled(wanted[at : at + size], size)
                both = self._call(self.run.params, self.run.batch_stats, part, mine)
                found.append([np.asarray(each)[:n] for each in both])
                bar.update(n)
        probabilities, maps = zip(*found, strict=True)
        return np.concatenate(probabilities), np.concatenate(maps)

    def of_classes(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """The raw map of one class for each image: the others' are not computed.

        Args:
          images: uint8 [N, S, S].
          classes: int [N].
        Returns:
          float32 [N, h, w].
        """
        return self(images, targets.default(self.n_logits)[classes][:, None])[1][:, 0]

    def with_weights(self, run: Trained) -> Explainer:
        """The same for other weights of the same network; what is compiled is shared."""
        other = copy.copy(self)
        other.run = run
        return other


def enlarge(maps: np.ndarray, grid: Grid) -> np.ndarray:
    """Maps [..., cells, cells] as float32 [..., S, S], each cell at the pixel that it looks at.

    Linear between the cells' centres; beyond the outermost ones their value.
    """
    return resampled(maps, grid, pixels(grid.side))


def resampled(maps: np.ndarray, grid: Grid, to: Grid) -> np.ndarray:
    """Maps at the places of other cells, of images of the same films that may have another side.

    As `enlarge` where these lie closer; where they lie further apart, the mean weighted by a
    triangle as much wider.

    Args:
      maps: float [..., grid.cells, grid.cells].
    Returns:
      float32 [..., to.cells, to.cells].
    """
    centres = (to.offset + to.stride * np.arange(to.cells) + 0.5) / to.side  # shares of the side
    places = (centres * grid.side - 0.5 - grid.offset) / grid.stride
    distances = np.clip(places, 0, grid.cells - 1)[:, None] - np.arange(grid.cells)
    width = max(1.0, to.stride / to.side * grid.side / grid.stride)
    weights = np.maximum(1 - np.abs(distances) / width, 0)
    weights = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return weights @ maps.astype(np.float32) @ weights.T
