"""The pure functions that are jitted once: one training step and one evaluation step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cxrjax import losses, optim
from cxrjax.data import augment
from cxrjax.data.batches import Batch
from cxrjax.models import classifier
from cxrjax.models.backbone import fold
from cxrjax.models.layers import Grey
from cxrjax.models.lowering import global_average_pool

_DROPOUT_STREAM = 2**31 - 1  # no epoch has this number, so augmentation never shares a key


class Settings(NamedTuple):
    """Numbers that a compiled step takes as arguments: one program serves all their values."""

    learning_rate: jax.Array  # float32 []
    dropout: jax.Array  # float32 [], of the head
    l2: jax.Array  # float32 [], see `_l2_penalty`
    class_weights: jax.Array  # float32 [K]
    seed: jax.Array  # int32 [], of augmentation and dropout
    steps_per_epoch: jax.Array  # int32 []
    # float32 [] each; None is off, and the step is compiled without it.
    warmup_steps: jax.Array | None = None  # this and the next: see `optim.rate_factor`
    decay_steps: jax.Array | None = None
    backbone_rate: jax.Array | None = None  # see `learning_rates`
    label_smoothing: jax.Array | None = None  # see `losses.cross_entropy`
    ema: jax.Array | None = None  # see `_averaged`


class TrainState(NamedTuple):
    """All that changes while training, and its settings: plain nested dicts of arrays."""

    params: Any  # trainable
    frozen: optim.Params  # no gradient, no optimizer memory
    batch_stats: dict[str, Any]
    opt_state: optax.OptState
    step: jax.Array  # int32 [], steps taken since the start
    totals: dict[str, jax.Array]  # sums over the epoch so far, see `no_totals`
    settings: Settings
    average: tuple[Any, dict[str, Any]] | None = None  # of params and batch_stats, see `_averaged`

    @property
    def evaluated(self) -> tuple[Any, dict[str, Any]]:
        """(params, batch_stats) that are validated and kept: averaged, where an average is on."""
        return self.average or (self.params, self.batch_stats)

    def held(self) -> dict[str, Any]:
        """The state as checkpoints have it: dicts in which what is off has no name, so that those
        of versions without the option stay readable. `restored` undoes it."""
        return _held(self) | {"settings": _held(self.settings)}

    @classmethod
    def restored(cls, held: dict[str, Any]) -> TrainState:
        """The state of what `held` returned."""
        return cls(**{**held, "settings": Settings(**held["settings"])})


def _held(fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields._asdict().items() if value is not None}


class Program:
    """A jitted (state, *batch) -> (state, losses); the state passed in is used up.

    All of it but its frozen weights: they are only read, and the next state has the same arrays.
    Handed through the program and back they cost DenseNet121's last 20 layers an eighth of a step.
    """

    def __init__(self, take: Callable[..., tuple[TrainState, jax.Array]]):
        """Args: take: pure; returns its state's frozen weights as they are."""

        def train(state: TrainState, frozen: Any, *batch: Any) -> tuple[TrainState, jax.Array]:
            after, losses = take(state._replace(frozen=frozen), *batch)
            return after._replace(frozen=None), losses

        self._jitted = jax.jit(train, donate_argnums=0)

    def __call__(self, state: TrainState, *batch: Any) -> tuple[TrainState, jax.Array]:
        after, losses = self._jitted(state._replace(frozen=None), state.frozen, *batch)
        return after._replace(frozen=state.frozen), losses

    def lower(self, state: TrainState, *batch: Any) -> Any:
        """As `lower` of what `jax.jit` returns; what is compiled from it a call finds."""
        return self._jitted.lower(state._replace(frozen=None), state.frozen, *batch)


class Recipe(NamedTuple):
    """All that is static: a step is compiled for one recipe."""

    graphdef: Any  # of the classifier
    n_classes: int
    mean: tuple[float, ...]  # per channel of the network's input, on the [0, 1] scale of pixels
    std: tuple[float, ...]
    train_layers: frozenset[str]  # backbone layers whose batch norm uses batch statistics
    shift: float  # this and what follows up to gamma: see `augment.augment`
    rotation: float
    zoom: float
    border: float = 0.0
    gamma: float = 0.0
    stage: str | None = None  # the last that is frozen; `maps` of a batch are its output
    remat: bool = False  # see `keep_products`


def no_totals(n_classes: int) -> dict[str, jax.Array]:
    """Zeroed sums: loss [], and correct and support [K] by true class, all float32."""
    zeros = jnp.zeros([n_classes], jnp.float32)
    # Two arrays, not one twice: the state is donated, and a buffer cannot be donated twice.
    return {"loss": jnp.zeros([], jnp.float32), "correct": zeros, "support": zeros + 0}


def normalize(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> Grey:
    """Grey pixels [B, H, W, 1] on the 0..255 scale to network input of C channels.

    Every channel stands for the same grey value x, then its own (x / 255 - mean) / std.

    Args:
      mean, std: C numbers each, on the [0, 1] scale.
    """
    # The shared part is near mean 0, deviation 1, which bfloat16 can hold; the rest is small.
    m, s = sum(mean) / len(mean), sum(std) / len(std)
    return Grey(
        pixels=images.astype(jnp.float32) * (1 / (255 * s)) - m / s,
        scale=tuple(s / own for own in std),
        offset=tuple((m - own) / deviation for own, deviation in zip(mean, std, strict=True)),
    )


def train_step(
    recipe: Recipe, tx: optax.GradientTransformation, state: TrainState, batch: Batch
) -> tuple[TrainState, jax.Array]:
    """One optimizer step.

    Args:
      recipe, tx: static; tx is of learning rate 1, see `optim.optimizer`.
      state: donated by the caller's jit.
      batch: see `data.batches.Batch`.
    Returns:
      the next state, and the batch's loss (float32 [], penalty included).
    """
    settings = state.settings
    epoch = state.step // settings.steps_per_epoch
    inputs = _inputs(recipe, batch, (settings.seed, epoch))
    dropout_key = jax.random.fold_in(
        jax.random.fold_in(jax.random.key(settings.seed), _DROPOUT_STREAM), state.step
    )
    weight = settings.class_weights[batch["label"]] * batch["mask"]

    def loss_of(params):
        model = classifier.merge(
            recipe.graphdef, optim.combine(params, state.frozen), state.batch_stats
        )
        after = recipe.stage if "maps" in batch else None
        maps = model.features(inputs, train_layers=recipe.train_layers, after=after)
        logits = model.classify(maps, train=True, key=dropout_key, rate=settings.dropout)
        per_example = losses.cross_entropy(logits, batch["label"], settings.label_smoothing)
        # As Keras averages: class weights scale the sum, the divisor is the number of examples.
        data_loss = jnp.sum(per_example * weight) / jnp.maximum(jnp.sum(batch["mask"]), 1)
        return data_loss + _l2_penalty(settings.l2, params["head"]), (
            logits,
            data_loss,
            classifier.batch_stats(model),
        )

    if recipe.remat:
        loss_of = jax.checkpoint(loss_of, policy=keep_products)
    (loss, (logits, data_loss, batch_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(
        state.params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    scaled = jax.tree.map(
        lambda rate, part: jax.tree.map(lambda update: rate * update, part),
        learning_rates(settings, state.step),
        updates,
    )
    params = optax.apply_updates(state.params, scaled)
    next_state = TrainState(
        params=params,
        frozen=state.frozen,
        batch_stats=batch_stats,
        opt_state=opt_state,
        step=state.step + 1,
        totals=_add_totals(recipe, state.totals, logits, data_loss, batch),
        settings=settings,
        average=_averaged(state, params, batch_stats, opt_state),
    )
    return next_state, loss


def learning_rates(settings: Settings, step: jax.Array) -> dict[str, jax.Array]:
    """Learning rate of the head and of the backbone, float32 [] each, at a step.

    The backbone's may be a fraction of the head's: discriminative fine-tuning (Howard & Ruder 2018,
    arXiv 1801.06146) with two groups of layers.

    Args:
      step: int32 [], steps taken before.
    """
    rate = settings.learning_rate
    if settings.warmup_steps is not None or settings.decay_steps is not None:
        rate = rate * optim.rate_factor(step, settings.warmup_steps, settings.decay_steps)
    backbone = rate if settings.backbone_rate is None else rate * settings.backbone_rate
    return {"backbone": backbone, "head": rate}


def _averaged(state: TrainState, params: Any, batch_stats: Any, opt_state: Any) -> Any:
    """Exponential moving average of (params, batch_stats) over the steps of the optimizer.

    Step i of t weighs d^(t - i), over the sum of these weights: what the first weights were counts
    for nothing, as in the bias correction of Adam's moments (Kingma & Ba 2015, section 3).

    Args:
      state: before the step; params, batch_stats, opt_state: after it.
    """
    decay, steps, stepped = state.settings.ema, state.step + 1, True
    if decay is None:
        return None
    if isinstance(opt_state, optax.MultiStepsState):  # nothing moves until the last batch of a step
        steps, stepped = opt_state.gradient_step, opt_state.mini_step == 0
    share = jnp.where(stepped, (decay - 1) / jnp.expm1(steps * jnp.log(decay)), 0.0)
    # In this form what does not change, as statistics of frozen layers, stays as it is exactly.
    return jax.tree.map(
        lambda old, new: old + share * (new - old), state.average, (params, batch_stats)
    )


def keep_products(primitive: Any, *_: Any, **__: Any) -> bool:
    """What the backward pass keeps of the forward pass when memory is short; see `jax.checkpoint`.

    Results of convolutions and matrix products, and sums (statistics of a batch, which are small).
    Normalised, activated and concatenated copies are made anew, as in the memory-efficient DenseNet
    (Pleiss et al. 2017, arXiv 1707.06990).
    """
    return primitive.name in ("conv_general_dilated", "dot_general", "reduce_sum")


def _inputs(
    recipe: Recipe, batch: Batch, look: tuple[jax.Array, jax.Array] | None = None
) -> Grey | jax.Array:
    """The network's input: stored maps where the batch holds some, else its normalised images.

    Args:
      look: (seed, epoch), int32 [] each, of the augmentation; None leaves the images as they are.
    """
    if "maps" in batch:
        return batch["maps"]
    images = batch["image"]  # type: ignore[typeddict-item]
    if look is not None:
        images = augment.augment(
            augment.example_keys(*look, batch["index"]),
            images,
            shift=recipe.shift,
            rotation_degrees=recipe.rotation,
            zoom=recipe.zoom,
            border=recipe.border,
            gamma=recipe.gamma,
        )
    return normalize(images, recipe.mean, recipe.std)


def _l2_penalty(factor: jax.Array, head: dict[str, Any]) -> jax.Array | float:
    """Keras' l2 regulariser: factor times the sum of squares, on the head's dense kernel only."""
    if "dense" not in head:
        return 0.0
    return factor * jnp.sum(jnp.square(head["dense"]["kernel"]))


def _add_totals(recipe, totals, logits, data_loss, batch):
    chosen = jnp.argmax(losses.probabilities(logits), axis=-1)
    truth = jax.nn.one_hot(batch["label"], recipe.n_classes) * batch["mask"][:, None]
    hit = (chosen == batch["label"]).astype(jnp.float32)[:, None]
    return {
        "loss": totals["loss"] + data_loss * jnp.sum(batch["mask"]),
        "correct": totals["correct"] + jnp.sum(truth * hit, axis=0),
        "support": totals["support"] + jnp.sum(truth, axis=0),
    }


def eval_step(
    recipe: Recipe,
    params: optim.Params,
    frozen: optim.Params,
    batch_stats: dict[str, Any],
    batch: Batch,
) -> tuple[jax.Array, jax.Array]:
    """Inference on one batch: no augmentation, no dropout, stored batch statistics.

    Returns:
      probabilities float32 [B, K] and unweighted cross-entropy float32 [B]; rows where the batch's
      mask is False are to be dropped by the caller.
    """
    model = classifier.merge(recipe.graphdef, optim.combine(params, frozen), batch_stats)
    fold(model.backbone)
    after = recipe.stage if "maps" in batch else None
    logits = model.classify(model.features(_inputs(recipe, batch), after=after))
    return losses.probabilities(logits), losses.cross_entropy(logits, batch["label"])


def prefix_step(
    recipe: Recipe,
    dtype: str,
    augmented: bool,
    params: optim.Params,
    frozen: optim.Params,
    batch_stats: dict[str, Any],
    batch: Batch,
    seed: jax.Array,
    epoch: jax.Array,
) -> jax.Array:
    """Output of the frozen stages, up to `recipe.stage`, for one batch of images.

    Args:
      recipe, dtype, augmented: static; dtype is that of the result.
      params, frozen, batch_stats: the whole network's.
      seed, epoch: int32 [], whose augmentation the images get, if any.
    Returns:
      [B, h, w, C]; pooled to [B, 1, 1, C] where the stage is the last, since the head pools first.
    """
    model = classifier.merge(recipe.graphdef, optim.combine(params, frozen), batch_stats)
    fold(model.backbone, recipe.train_layers)
    inputs = model.cast(_inputs(recipe, batch, (seed, epoch) if augmented else None))
    maps = model.backbone.stages(inputs)
    chosen = maps[recipe.stage]
    if recipe.stage == next(reversed(maps)):
        chosen = global_average_pool(chosen)[:, None, None]
    return chosen.astype(dtype)
