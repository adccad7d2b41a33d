"""The networks and heads of cxrjax, built as a user of Keras 3 would."""

from __future__ import annotations

import math
from typing import Any

import keras

_BACKBONES = {
    "densenet121": keras.applications.DenseNet121,
    "resnet50v2": keras.applications.ResNet50V2,
    "mobilenetv2": keras.applications.MobileNetV2,
    "inceptionv3": keras.applications.InceptionV3,
}
_BASELINE_WIDTHS = (1, 2, 4, 4)
_NOT_PARAMETERS = ("moving_", "seed_generator")  # names of other variables that are not trained


def build(job: dict[str, Any], weights: str | None = None) -> keras.Model:
    """Images float [B, S, S, C] to logits [B, K], with the job's layers frozen."""
    shape = (job["image_size"], job["image_size"], job["channels"])
    if job["network"] == "baseline":
        backbone = _baseline(shape, job["filters"])
    else:
        make = _BACKBONES[job["network"]]
        backbone = make(include_top=False, weights=weights, input_shape=shape)
    n = job["trainable_layers"]
    for layer in backbone.layers[: len(backbone.layers) - n if n >= 0 else 0]:
        layer.trainable = False
    x = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, _logits(x, job))


def head(features: int, job: dict[str, Any]) -> keras.Model:
    """What `build` puts behind the pool: [B, features] to logits [B, K]."""
    inputs = keras.Input((features,))
    return keras.Model(inputs, _logits(inputs, job))


def _logits(x: Any, job: dict[str, Any]) -> Any:
    head = job["head"]
    if head["batch_norm"]:
        x = keras.layers.BatchNormalization()(x)
    if head["dense"]:
        l2 = keras.regularizers.L2(head["l2"]) if head["l2"] else None
        x = keras.layers.Dense(head["dense"], activation="relu", kernel_regularizer=l2)(x)
    if head["dropout"]:
        x = keras.layers.Dropout(head["dropout"])(x)
    return keras.layers.Dense(job["logits"], dtype="float32")(x)


def _baseline(shape: tuple[int, int, int], filters: int) -> keras.Model:
    """As cxrjax/models/baseline.py: the pool stands before the batch norm."""
    x = inputs = keras.Input(shape, name="input_layer")
    for block, width in enumerate(_BASELINE_WIDTHS, start=1):
        x = keras.layers.Conv2D(filters * width, 3, padding="same", use_bias=False)(x)
        if block < len(_BASELINE_WIDTHS):
            x = keras.layers.MaxPooling2D()(x)
        x = keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.ReLU()(x)
    return keras.Model(inputs, x)


def optimizer(job: dict[str, Any]) -> keras.optimizers.Optimizer:
    rate = job["learning_rate"]
    if job["optimizer"] == "sgd":
        return keras.optimizers.SGD(rate, momentum=job["momentum"])
    return {"adam": keras.optimizers.Adam, "adamax": keras.optimizers.Adamax}[job["optimizer"]](
        rate
    )


def loss(job: dict[str, Any]) -> keras.losses.Loss:
    if job["logits"] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=True)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def parameters(model: keras.Model) -> dict[str, int]:
    """Scalars trained, and frozen ones without the running statistics of batch norm."""
    frozen = [w for w in model.non_trainable_weights if not w.name.startswith(_NOT_PARAMETERS)]
    return {
        kind: sum(math.prod(variable.shape) for variable in variables)
        for kind, variables in (("trainable", model.trainable_weights), ("frozen", frozen))
    }
