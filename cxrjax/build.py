"""From configuration and data set to network, recipe, first state and input path."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cxrjax import optim, runtime, step, trained
from cxrjax.config import Config
from cxrjax.data.dataset import Dataset, training_positions
from cxrjax.data.resident import ResidentInput, fits, take
from cxrjax.data.tfdata import TfDataInput
from cxrjax.errors import UserError
from cxrjax.models import classifier, download, registry, weights


class Variables(NamedTuple):
    """Initial arrays of a network, and where they came from."""

    trainable: optim.Params
    frozen: optim.Params
    batch_stats: dict[str, Any]
    source: dict[str, Any] | None  # path, sha256 of the pretrained file
    start: dict[str, Any] | None = None  # the run they are taken from, see `Trained.provenance`

    @property
    def origin(self) -> str | None:
        """SHA-256 of the arrays that were not drawn, see `origin`."""
        return (self.start or self.source or {}).get("sha256")


def check(config: Config, workdir: Path | None = None) -> Path | None:
    """Checks what can be told of a network without data; returns its weight file, or None.

    Args:
      workdir: the run's own folder; once it holds a checkpoint, `train.start_from` is needed no
        more.
    Raises:
      UserError: for an unknown network, images too small for it, or weights that are not found.
    """
    spec = registry.spec(config.model.name)
    if config.data.image_size < spec.smallest:
        raise UserError(
            f"config field data.image_size is {config.data.image_size}; {spec.name} needs at least "
            f"{spec.smallest} pixels."
        )
    if config.train.start_from:
        trained.check_start(config, workdir)
        return None
    cache = runtime.cache_root(config.data.cache) / "weights"
    return weights.find(spec, config.model.weights, cache)


def origin(config: Config) -> str | None:
    """What tells apart the arrays a network starts with, where they come from a file or a run.

    Raises:
      UserError: see `check`.
    """
    if (path := check(config)) is not None:
        return download.digest(path, "sha256")
    return trained.load(config.train.start_from).weights_digest if config.train.start_from else None


def network(
    config: Config, data: Dataset, workdir: Path | None = None
) -> tuple[Any, step.Recipe, Variables]:
    """The network with its weights, and the recipe its steps are compiled for.

    Args:
      workdir: see `check`.
    """
    start = trained.start(config, data, workdir)
    tensors, source = {}, start.contract.get("pretrained") if start else None
    if (path := check(config, workdir)) is not None:
        tensors, source = weights.load_tensors(path)
    contract = (source or {}).get("contract")
    spec = registry.spec(config.model.name).with_contract(contract)
    model = classifier.build(
        config.model,
        len(data.classes),
        contract=contract,
        seed=config.seed,
        dtype=jnp.dtype(config.train.precision),
    )
    graphdef, params, batch_stats = classifier.split(model)
    if start is not None:
        params, batch_stats = unbound((start.params, start.batch_stats))
    elif source is not None:
        try:
            params, batch_stats = weights.assign(params, batch_stats, tensors)
        except UserError as error:
            found = weights.recognised(tensors)
            of = f", which is of {found}" if found not in (None, spec.name) else ""
            raise UserError(f"weight file {path}{of}: {error}") from error
    layers = classifier.trainable_layer_names(model, config.model.trainable_layers)
    trainable, frozen = optim.partition(params, layers)
    mean, std = spec.mean, spec.std
    if start is not None:
        mean, std = start.recipe.mean, start.recipe.std
    elif config.input.normalize == "dataset":
        mean, std = _moments(data, spec.channels)
    recipe = step.Recipe(
        graphdef=graphdef,
        n_classes=len(data.classes),
        mean=mean,
        std=std,
        train_layers=layers,
        shift=config.augment.shift,
        rotation=config.augment.rotation,
        zoom=config.augment.zoom,
        border=config.augment.border,
        gamma=config.augment.gamma,
        stage=classifier.last_frozen_stage(model, layers),
        remat=config.train.remat,
    )
    begun = None
    if start is not None:  # on resuming it is the run's own checkpoint
        own = start.folder == workdir
        begun = start.contract.get("start_from") if own else start.provenance
    return model, recipe, Variables(trainable, frozen, batch_stats, source, begun)


def _moments(data: Dataset, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if data.std < 1e-9:  # of equal pixels it is 0 but for rounding
        raise UserError(
            "config field input.normalize: dataset divides by the deviation of all pixels of "
            "train and validation, which are of one and the same grey; mend the images, or set "
            "input.normalize=backbone."
        )
    return (data.mean,) * channels, (data.std,) * channels


def check_steps(config: Config, data: Dataset) -> None:
    """Refuses a run that is over before the first step of its optimizer.

    Raises:
      UserError: when train.accumulate exceeds the batches of all epochs, or of those after which
        train.patience may end it.
    """
    train, steps = config.train, _steps_per_epoch(config, data)
    waits = 0 < train.patience < train.epochs
    epochs = train.patience + 1 if waits else train.epochs
    if train.accumulate > steps * epochs:
        waited = f" before train.patience ({train.patience}) may end it" if waits else ""
        raise UserError(
            f"config field train.accumulate is {train.accumulate}, and the whole training has "
            f"{steps * epochs} batches ({steps} in each epoch){waited}, so nothing would be "
            "trained; lower it, or train.batch_size, or raise "
            f"{'train.patience and train.epochs' if waits else 'train.epochs'}."
        )


def _steps_per_epoch(config: Config, data: Dataset) -> int:
    return -(-len(training_positions(data, config)) // config.train.batch_size)


def settings(config: Config, data: Dataset) -> step.Settings:
    """The numbers of a run that its compiled steps take as arguments."""
    train, n_classes = config.train, len(data.classes)
    labels = data.store.labels[training_positions(data, config)]
    weights = optim.class_weights(train.class_weights, labels, n_classes)
    steps = _steps_per_epoch(config, data)

    def switched(on: bool, value: float) -> Any:
        return jnp.float32(value) if on else None

    return step.Settings(
        learning_rate=jnp.float32(train.learning_rate),
        dropout=jnp.float32(config.model.head.dropout),
        l2=jnp.float32(config.model.head.l2),
        class_weights=jnp.asarray(weights, jnp.float32),
        seed=jnp.int32(config.seed),
        steps_per_epoch=jnp.int32(steps),
        warmup_steps=switched(train.warmup > 0, train.warmup * steps),
        decay_steps=switched(train.schedule == "cosine", train.epochs * steps),
        backbone_rate=switched(train.backbone_rate != 1, train.backbone_rate),
        label_smoothing=switched(train.label_smoothing > 0, train.label_smoothing),
        ema=switched(train.ema > 0, train.ema),
    )


def train_program(config: Config, recipe: step.Recipe) -> tuple[Any, step.Program]:
    """(optimizer, jitted (state, batch) -> (state, loss)); the state passed in is used up."""
    train = config.train
    tx = optim.optimizer(train.optimizer, train.momentum, train.accumulate)
    return tx, step.Program(functools.partial(step.train_step, recipe, tx))


def scan_program(recipe: step.Recipe, tx: Any, field: str) -> step.Program:
    """Jitted (state, rows, labels, index [n, B], mask [n, B], view) -> (state, losses [n]).

    The n steps are one program over a resident set; the state passed in is used up. Every n
    compiles anew.

    Args:
      field: of the batch that `rows` fill, see `ResidentInput`.
    """

    def run(state, rows, labels, index, mask, view):
        def one(state, chosen):
            index, mask = chosen
            batch = take(field, rows, labels, index, mask, view)
            return step.train_step(recipe, tx, state, batch)

        return jax.lax.scan(one, state, (index, mask))

    return step.Program(run)


def init_state(
    variables: Variables, recipe: step.Recipe, tx: Any, settings: step.Settings
) -> step.TrainState:
    """The state before the first step, on the device."""
    trainable, batch_stats = copy_arrays((variables.trainable, variables.batch_stats))
    return step.TrainState(
        params=trainable,
        frozen=jax.device_put(variables.frozen),
        batch_stats=batch_stats,
        opt_state=tx.init(trainable),
        step=jnp.zeros([], jnp.int32),
        totals=step.no_totals(recipe.n_classes),
        settings=settings,
        average=None if settings.ema is None else copy_arrays((trainable, batch_stats)),
    )


def make_input(config: Config, data: Dataset) -> ResidentInput | TfDataInput:
    """The resident path where the set fits (or is asked for), else the tf.data path."""
    kind = config.input.path
    if kind == "auto":
        kind = "resident" if fits(data.store.images.nbytes) else "tfdata"
    make = {"resident": ResidentInput, "tfdata": TfDataInput}[kind]
    return make(data.store.images, data.store.labels)


def unbound(tree: Any) -> Any:
    """The arrays of a checkpoint, bound to no device: mixed with others, bound ones have every
    step compiled once more."""
    return copy_arrays(jax.device_get(tree))


def copy_arrays(tree: Any) -> Any:
    """Fresh device buffers: what is donated to the step must not be shared."""
    return jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), tree)
