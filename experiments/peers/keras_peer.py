"""Keras 3 as a peer of `python -m cxrjax.bench`: the same job, window by window.

KERAS_BACKEND chooses tensorflow or jax. On TensorFlow the step is the one `fit` runs
(`make_train_function`), without its callbacks, fed by a tf.data iterator over a ready float batch,
and forward is the model in a tf.function. On JAX both are the jitted stateless functions of Keras'
own guide, state donated. Keras' default jit_compile is kept; KERAS_PEER_JIT=1 asks TensorFlow for
XLA. No layout or threading option is set: both take NHWC and every core they may use.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
# Several processes share a GPU's memory in turn.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from cxrjax.bench.serve import Prepared, peak_memory, serve, stepped


def prepare(job: dict[str, Any]) -> Prepared:
    import keras
    import keras_network
    import numpy as np

    if job["precision"] == "bfloat16":
        keras.mixed_precision.set_global_policy("mixed_bfloat16")
    keras.utils.set_random_seed(0)
    model = keras_network.build(job)
    n, side = job["batch_size"], job["image_size"]
    rng = np.random.default_rng(0)
    images = rng.normal(size=(n, side, side, job["channels"])).astype(np.float32)
    labels = rng.integers(0, max(job["logits"], 2), (n, 1)).astype(np.int32)
    start = time.perf_counter()
    make = {"tensorflow": _tensorflow_run, "jax": _jax_run}[keras.backend.backend()]
    run = make(job, model, images, labels)
    run(1)
    facts: dict[str, Any] = {
        "compile_seconds": time.perf_counter() - start,  # with the first step
        "parameters": keras_network.parameters(model),
        "jit_compile": getattr(model, "jit_compile", None),
        "versions": _versions(keras.backend.backend()),
    }
    facts["steps"], window = stepped(job, run, n)
    return Prepared(facts, window, lambda: {"peak_memory": _peak_memory()})


def _tensorflow_run(job, model, images, labels) -> Callable[[int], None]:
    import keras_network
    import tensorflow as tf

    jit = True if os.environ.get("KERAS_PEER_JIT") == "1" else "auto"
    model.compile(keras_network.optimizer(job), keras_network.loss(job), jit_compile=jit)
    if job["row"] == "forward":
        # What `predict` runs, without its iterator and the joining of its results.
        evaluate = tf.function(
            lambda batch: model(batch, training=False), jit_compile=bool(model.jit_compile)
        )
        ready = tf.constant(images)

        def predict(steps: int) -> None:
            [evaluate(ready) for _ in range(steps)][-1].numpy()

        return predict
    batches = iter(tf.data.Dataset.from_tensors((images, labels)).repeat().prefetch(2))
    model.make_train_function()

    def train(steps: int) -> None:
        logs = [model.train_function(batches) for _ in range(steps)][-1]
        float(logs["loss"])

    return train


def _jax_run(job, model, images, labels) -> Callable[[int], None]:
    import jax
    import keras_network

    images, labels = jax.device_put((images, labels))
    optimizer, loss = keras_network.optimizer(job), keras_network.loss(job)
    optimizer.build(model.trainable_variables)
    trained = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    moments = [v.value for v in optimizer.variables]
    if job["row"] == "forward":
        evaluate = jax.jit(lambda *state: model.stateless_call(*state, images, training=False)[0])

        def predict(steps: int) -> None:
            jax.block_until_ready([evaluate(trained, others) for _ in range(steps)][-1])

        return predict

    def loss_of(trained, others, images, labels):
        logits, others, penalties = model.stateless_call(
            trained, others, images, training=True, return_losses=True
        )
        return loss(labels, logits) + sum(penalties), others

    def step(state, images, labels):
        trained, others, moments = state
        grads_of = jax.value_and_grad(loss_of, has_aux=True)
        (value, others), grads = grads_of(trained, others, images, labels)
        trained, moments = optimizer.stateless_apply(moments, grads, trained)
        return (trained, others, moments), value

    train_step = jax.jit(step, donate_argnums=0)
    state = (trained, others, moments)

    def train(steps: int) -> None:
        nonlocal state
        value = None
        for _ in range(steps):
            state, value = train_step(state, images, labels)
        jax.block_until_ready((state, value))

    return train


def _versions(backend: str) -> dict[str, str]:
    import importlib

    return {name: importlib.import_module(name).__version__ for name in ("keras", "numpy", backend)}


def _peak_memory() -> dict[str, Any]:
    if os.environ.get("KERAS_BACKEND") == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in statistics:
            return {"bytes": statistics["peak_bytes_in_use"], "of": "device (memory_stats)"}
    else:
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            peak = tf.config.experimental.get_memory_info("GPU:0")["peak"]
            return {"bytes": peak, "of": "device (get_memory_info)"}
    return peak_memory()


if __name__ == "__main__":
    sys.exit(serve(prepare))
