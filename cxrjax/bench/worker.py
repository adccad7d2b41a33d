"""`python -m cxrjax.bench.worker`: the process that runs one row of ours; see `serve`."""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import config as config_lib
from cxrjax import runtime
from cxrjax.bench.job import class_names
from cxrjax.bench.serve import Prepared, peak_memory, serve, stepped
from cxrjax.config import Config
from cxrjax.errors import UserError

_SYNTHETIC_IMAGES = 4  # per class: enough to draw batches and class weights from


def prepare(job: dict[str, Any]) -> Prepared:
    """Compiles and warms up a row.

    Raises:
      UserError: for missing data or weights, or too little device memory.
    """
    runtime.start()
    import jax

    rows = {
        "peak": _peak,
        "synthetic": functools.partial(_train, make_batches=_one_batch),
        "resident": functools.partial(_train, make_batches=_input_batches),
        "tfdata": functools.partial(_train, make_batches=_input_batches),
        "end_to_end": _end_to_end,
        "forward": _forward,
    }
    config = config_lib.from_json(job["config"])
    if job["row"] != "end_to_end":
        config.model.weights = "none"  # which numbers are multiplied does not change the time
    try:
        facts, window = rows[job["row"]](job, config)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"the device has too little memory for batches of {job['batch_size']}; lower "
            "--config.train.batch_size or --config.eval.batch_size."
        ) from error
    return Prepared(facts | _machine(), window, lambda: {"peak_memory": _peak_memory()})


# ------------------------------------------------------------------ rows


def _train(
    job: dict[str, Any], config: Config, make_batches: Callable[..., Iterator[Any]]
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """The jitted train step over a stream of batches; a window ends when the device is done."""
    import jax

    from cxrjax import build
    from cxrjax.data import dataset

    config.input.path = job["row"] if job["row"] in ("resident", "tfdata") else "auto"
    data = _stand_in(config) if job["row"] == "synthetic" else dataset.prepare(config)
    _, recipe, variables = build.network(config, data)
    tx, train_step = build.train_program(config, recipe)
    state = build.init_state(variables, recipe, tx)
    batches = make_batches(config, data)
    step, facts = _compiled(train_step, (state, next(batches)), job["batch_size"])
    facts |= _sizes(variables)

    def run(steps: int) -> None:
        nonlocal state
        loss = None
        for batch in itertools.islice(batches, steps):
            state, loss = step(state, batch)
        jax.block_until_ready((state, loss))

    facts["steps"], window = stepped(job, run, job["batch_size"])
    return facts, window


def _forward(
    job: dict[str, Any], config: Config
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    import jax

    from cxrjax import build
    from cxrjax import step as step_lib

    data = _stand_in(config)
    _, recipe, variables = build.network(config, data)
    arrays = build.copy_arrays((variables.trainable, variables.frozen, variables.batch_stats))
    batch = next(_one_batch(config, data, config.eval.batch_size))
    evaluate = jax.jit(functools.partial(step_lib.eval_step, recipe))
    step, facts = _compiled(evaluate, (*arrays, batch), job["batch_size"])
    facts |= _sizes(variables)

    def run(steps: int) -> None:
        result = None
        for _ in range(steps):
            result = step(*arrays, batch)
        jax.block_until_ready(result)

    facts["steps"], window = stepped(job, run, job["batch_size"])
    return facts, window


def _end_to_end(
    job: dict[str, Any], config: Config
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """The real loop, run beforehand: each window is one of its epochs, the first left out.

    An epoch's time is that of its training part, as in metrics.jsonl. The test split is not read.
    """
    from cxrjax.data import dataset
    from cxrjax.loop import Training
    from cxrjax.run_folder import RunFolder

    config.train.epochs = job["windows"] + 1
    config.train.patience = 0
    data = dataset.prepare(config)
    with tempfile.TemporaryDirectory() as root:
        folder = RunFolder(Path(root, "run"), config)
        with contextlib.closing(folder):
            training = Training(config, data, folder)
            with contextlib.closing(training.checkpoints):
                training.fit()
                training.checkpoints.wait()
    history = training.note["history"]
    of = {
        split: [line["seconds"] for line in history if line["split"] == split]
        for split in ("train", "validation")
    }
    images = len(data.splits["train"])
    facts = {
        "steps": -(-images // config.train.batch_size),
        "input": training.input.name,
        "first_epoch_seconds": of["train"][0],  # with compilation
        "validation_seconds": float(np.median(of["validation"][1:])),
    }
    windows = iter(of["train"][1:])
    return facts, lambda: (next(windows), images)


def _peak(
    job: dict[str, Any], config: Config
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """A square matrix product in the compute dtype; a window's "images" are its operations."""
    import jax
    import jax.numpy as jnp

    n = 2048 if jax.default_backend() == "cpu" else 8192
    dtype = jnp.dtype(config.train.precision)
    # Not zeros, on which a GPU draws less power and runs faster.
    left, right = (
        jnp.asarray(np.random.default_rng(seed).normal(size=(n, n)), dtype) for seed in (0, 1)
    )
    product = jax.jit(jnp.matmul)

    def run(steps: int) -> None:
        jax.block_until_ready([product(left, right) for _ in range(steps)][-1])

    _, window = stepped(job | {"window_seconds": 0.3, "steps": 0}, run, 2 * n**3)
    return {"size": n, "dtype": dtype.name}, window


# ------------------------------------------------------------------ parts


def _compiled(program: Any, arguments: tuple, batch_size: int) -> tuple[Any, dict[str, Any]]:
    """The program compiled for `arguments`, its compile seconds and XLA's count of operations."""
    start = time.perf_counter()
    lowered = program.lower(*arguments)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    return compiled, {
        "compile_seconds": seconds,  # tracing included
        "flop_per_image": _flop(compiled, batch_size),
        # Where a back end hides operations in calls of its libraries, this count is the larger.
        "flop_per_image_as_written": _flop(lowered, batch_size),
    }


def _flop(stage: Any, batch_size: int) -> float | None:
    try:
        costs = stage.cost_analysis()
    except NotImplementedError:
        return None
    costs = costs[0] if isinstance(costs, list) else costs
    flop = (costs or {}).get("flops", -1.0)
    return float(flop) / batch_size if flop > 0 else None


def _stand_in(config: Config) -> Any:
    """A `Dataset` of random images, made from the configuration alone."""
    from cxrjax.data.dataset import Dataset
    from cxrjax.data.store import Store

    classes = class_names(config)
    n, side = _SYNTHETIC_IMAGES * len(classes), config.data.image_size
    nothing = (None,) * n
    images: Any = np.random.default_rng(0).integers(0, 256, (n, side, side), np.uint8)
    store = Store(
        root=Path(),
        key="",
        classes=classes,
        names=tuple(map(str, range(n))),
        labels=np.arange(n, dtype=np.int32) % len(classes),
        given_split=nothing,
        patients=nothing,
        sources=nothing,
        images=images,
        masks=None,
        has_mask=np.zeros(n, bool),
        skipped=(),
    )
    positions = np.arange(n, dtype=np.int32)
    return Dataset(
        store=store,
        splits=dict.fromkeys(("train", "validation", "test"), positions),
        groups=positions,
        mean=0.5,
        std=0.25,
        audit={},
        digest="",
        fingerprint="",
    )


def _one_batch(config: Config, data: Any, batch_size: int | None = None) -> Iterator[Any]:
    """The same batch of random images for ever, on the device."""
    from cxrjax.data.batches import evaluation_plan
    from cxrjax.data.resident import ResidentInput

    n = batch_size or config.train.batch_size
    positions = np.resize(data.splits["train"], n)
    source = ResidentInput(data.store.images, data.store.labels)
    return itertools.repeat(next(source.batches(evaluation_plan(positions, n))))


def _input_batches(config: Config, data: Any) -> Iterator[Any]:
    """The batches of one training epoch after another, as the loop draws them."""
    from cxrjax import build
    from cxrjax.data.batches import training_plan

    source = build.make_input(config, data)
    positions = data.splits["train"]
    for epoch in itertools.count():
        yield from source.batches(
            training_plan(positions, config.train.batch_size, config.seed, epoch)
        )


def _sizes(variables: Any) -> dict[str, Any]:
    """Parameters, and how many layers of the backbone that have some are trained.

    The torch peer knows no layers of Keras' counting; it trains as many of its own.
    """
    from cxrjax import optim

    return {
        "parameters": {
            "trainable": optim.count(variables.trainable),
            "frozen": optim.count(variables.frozen),
        },
        "parameter_layers": len(variables.trainable["backbone"]),
    }


def _peak_memory() -> dict[str, Any]:
    import jax

    statistics = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return {"bytes": statistics["peak_bytes_in_use"], "of": "device (memory_stats)"}
    return peak_memory()


def _machine() -> dict[str, Any]:
    import jax

    return {"platform": jax.default_backend(), **runtime.describe()}


if __name__ == "__main__":
    sys.exit(serve(prepare, UserError))
