"""`python -m cxrjax.bench.worker`: the process that runs one row of ours; see `serve`."""

from __future__ import annotations

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax import config as config_lib
from cxrjax import runtime
from cxrjax.bench import feed
from cxrjax.bench.job import NEED_DATA
from cxrjax.bench.serve import Prepared, peak_memory, serve, stepped
from cxrjax.config import Config
from cxrjax.errors import UserError


def prepare(job: dict[str, Any]) -> Prepared:
    """Compiles and warms up a row.

    Raises:
      UserError: for missing data or weights, or too little device memory.
    """
    runtime.start()
    import jax

    rows = {
        "peak": _peak,
        **dict.fromkeys(("synthetic", "cached", "resident", "tfdata"), _train),
        "end_to_end": _end_to_end,
        "forward": _forward,
    }
    config = config_lib.from_json(job["config"])
    if job["row"] != "end_to_end":
        # Which numbers are multiplied does not change the time.
        config.model.weights, config.train.start_from = "none", ""
    try:
        facts, window = rows[job["row"]](job, config)
    except jax.errors.JaxRuntimeError as error:
        if not runtime.out_of_memory(error):
            raise
        raise UserError(
            f"the device has too little memory for batches of {job['batch_size']}; lower "
            "--config.train.batch_size or --config.eval.batch_size."
        ) from error
    return Prepared(facts | _machine(), window, lambda: {"peak_memory": _peak_memory()})


# ------------------------------------------------------------------ rows


def _train(
    job: dict[str, Any], config: Config
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """The jitted train step over a stream of batches; a window ends when the device is done."""
    import jax

    from cxrjax import build
    from cxrjax.data import dataset

    row = job["row"]
    config.input.path = row if row in ("resident", "tfdata") else "auto"
    data = dataset.prepare(config) if row in NEED_DATA else feed.data_set(config)
    _, recipe, variables = build.network(config, data)
    tx, train_step = build.train_program(config, recipe)
    state = build.init_state(variables, recipe, tx, build.settings(config, data))
    if row == "resident" and runtime.steps_per_dispatch() > 1:
        facts, window = _scan(job, config, data, recipe, tx, state)
        return facts | _sizes(variables), window
    if row == "cached":
        batches = feed.one_cached_batch(config, recipe, variables)
    else:
        make = feed.input_batches if row in NEED_DATA else feed.one_batch
        batches = make(config, data)
    facts = _compile(train_step, (state, next(batches)), job["batch_size"])

    def run(steps: int) -> None:
        nonlocal state
        loss = None
        for batch in itertools.islice(batches, steps):
            state, loss = train_step(state, batch)
        jax.block_until_ready((state, loss))

    facts["steps"], window = stepped(job, run, job["batch_size"])
    return facts | _sizes(variables), window


def _scan(
    job: dict[str, Any], config: Config, data: Any, recipe: Any, tx: Any, state: Any
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """Many steps in one program over the resident set, as the loop takes them on an accelerator."""
    import jax

    from cxrjax import build
    from cxrjax.data.resident import ResidentInput

    source = ResidentInput(data.store.images, data.store.labels)
    plans = feed.plans(config, data)
    first = next(plans)
    at_once = min(runtime.steps_per_dispatch(), first.steps, job["steps"] or first.steps)

    def parts() -> Iterator[tuple]:
        for plan in itertools.chain([first], plans):
            # A shorter rest would be a program of its own.
            for start in range(0, plan.steps - at_once + 1, at_once):
                part = slice(start, start + at_once)
                yield jax.device_put((plan.index[part], plan.mask[part], np.int32(plan.view)))

    chosen = parts()
    program = build.scan_program(recipe, tx, source.field)
    arrays = (source.rows, source.labels)
    facts = _compile(program, (state, *arrays, *next(chosen)), job["batch_size"])

    def run(dispatches: int) -> None:
        nonlocal state
        losses = None
        for part in itertools.islice(chosen, dispatches):
            state, losses = program(state, *arrays, *part)
        jax.block_until_ready((state, losses))

    in_dispatches = job | {"steps": job["steps"] // at_once}
    dispatches, window = stepped(in_dispatches, run, at_once * job["batch_size"])
    # XLA counts the body of a loop once or as often as it runs: not to be relied on.
    del facts["flop_per_image"], facts["flop_per_image_as_written"]
    return facts | {"steps": dispatches * at_once, "steps_per_dispatch": at_once}, window


def _forward(
    job: dict[str, Any], config: Config
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    import jax

    from cxrjax import build
    from cxrjax import step as step_lib

    data = feed.data_set(config)
    _, recipe, variables = build.network(config, data)
    arrays = build.copy_arrays((variables.trainable, variables.frozen, variables.batch_stats))
    batch = next(feed.one_batch(config, data, config.eval.batch_size))
    evaluate = jax.jit(functools.partial(step_lib.eval_step, recipe))
    facts = _compile(evaluate, (*arrays, batch), job["batch_size"])

    def run(steps: int) -> None:
        result = None
        for _ in range(steps):
            result = evaluate(*arrays, batch)
        jax.block_until_ready(result)

    facts["steps"], window = stepped(job, run, job["batch_size"])
    return facts | _sizes(variables), window


def _end_to_end(
    job: dict[str, Any], config: Config
) -> tuple[dict[str, Any], Callable[[], tuple[float, int]]]:
    """The real loop, an epoch a window; the first, with compilation, is over before.

    A window's time is that of the training part, as in metrics.jsonl, and of the epoch's checkpoint
    until it is on disk, which a run mostly writes beside the next epoch. The test split is not
    read. The run lies in the job's "workdir", which its giver removes.
    """
    from cxrjax.data import dataset
    from cxrjax.loop import Training
    from cxrjax.run_folder import RunFolder
    from cxrjax.stop_signals import StopSignals

    config.train.patience = 0
    data = dataset.prepare(config)
    training = Training(config, data, RunFolder(Path(job["workdir"], "run"), config))
    training._prepare(StopSignals())  # of all its epochs
    images, written = len(training.train_positions), 0.0
    config.train.epochs = 0  # one more for each window
    begin = training.save

    def save(*, wait: bool = True) -> None:
        nonlocal written
        start = time.perf_counter()
        begin()
        training.checkpoints.wait()
        written = time.perf_counter() - start

    training.save = save

    def window() -> tuple[float, int]:
        config.train.epochs += 1
        training.note["finished"] = False
        training.fit()
        return training.note["history"][-2]["seconds"] + written, images

    facts = {
        "steps": -(-images // config.train.batch_size),
        "input": training.input.name,
        "first_epoch_seconds": window()[0],
    }
    return facts, window


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
        result = left
        for _ in range(steps):
            result = product(left, right)  # the one before is freed
        jax.block_until_ready(result)

    _, window = stepped(job | {"window_seconds": 0.3, "steps": 0}, run, 2 * n**3)
    return {"size": n, "dtype": dtype.name}, window


# ------------------------------------------------------------------ parts


def _compile(program: Any, arguments: tuple, batch_size: int) -> dict[str, Any]:
    """Compiles what a call with `arguments` runs; seconds it took, and XLA's count of operations.

    Of the compiled program, but as written where oneDNN hides its convolutions from the count.
    """
    start = time.perf_counter()
    lowered = program.lower(*arguments)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    as_written = _flop(lowered, batch_size)
    return {
        "compile_seconds": seconds,  # tracing included
        "flop_per_image": as_written if runtime.has_onednn() else _flop(compiled, batch_size),
        "flop_per_image_as_written": as_written,
    }


def _flop(stage: Any, batch_size: int) -> float | None:
    """Operations per image; None on a GPU, where XLA does not see into cuDNN's convolutions."""
    import jax

    if jax.default_backend() != "cpu":
        return None
    try:
        costs = stage.cost_analysis()
    except NotImplementedError:
        return None
    costs = costs[0] if isinstance(costs, list) else costs
    flop = (costs or {}).get("flops", -1.0)
    return float(flop) / batch_size if flop > 0 else None


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
