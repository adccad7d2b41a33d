"""A grid search in Keras 3 on TensorFlow: the loop over points that a user would write.

Run by experiments/sweep_job.py on a folder it wrote (images.npy uint8 [N, S, S], labels.npy int32
[N], train.npy and validation.npy with the positions of each split) and a JSON list of points, each
{"values": {dotted field: value}, "job": as for keras_peer, with mean, std, augment, patience and
class_weights beside}. For each point a network is built (a frozen backbone loads its weights),
compiled and fitted with early stopping, best weights restored, validation after every epoch.

Prints "epoch I/E" as each epoch ends and a JSON line per point: its position in the list, values,
seconds in all (building and tracing included), seconds of each epoch with its validation, best
epoch, counted from 1, and validation accuracy and loss there.

Written for speed: decoded images lie in memory, batches are formed before they are converted,
conversion runs in parallel and ahead of training, converted validation batches are kept, images are
augmented as one grey channel. Keras' own layers augment, in the pipeline or in front of the network
(--augment). With --views K the user thought of storing features himself: the frozen backbone runs
once over K augmented views of each training image, a head alone is fitted for each point on a view
of each image drawn anew, and a first line {"prepare_seconds": ...} tells what the features took.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_network
import numpy as np
import tensorflow as tf
from keras_job import Clock


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--jobs", type=Path, required=True, help="JSON list of all points")
    parser.add_argument("--weights", help="Keras .h5 of the backbone without top")
    parser.add_argument("--points", default="", help="positions, e.g. 0,5,13; default: all")
    parser.add_argument("--epochs", type=int, required=True, help="at most so many each")
    parser.add_argument("--augment", choices=("pipeline", "model"), default="pipeline")
    parser.add_argument("--views", type=int, default=0, help="fit heads on stored features")
    arguments = parser.parse_args()
    points = json.loads(arguments.jobs.read_text())
    chosen = [int(i) for i in arguments.points.split(",") if i] or range(len(points))
    images = np.load(arguments.data / "images.npy", mmap_mode="r")
    labels = np.load(arguments.data / "labels.npy")
    splits = {}
    for name in ("train", "validation"):
        rows = np.load(arguments.data / f"{name}.npy")
        splits[name] = (images[rows], labels[rows])
    if arguments.views:
        keras.utils.set_random_seed(0)  # a trunk without weights, and the views
        start = time.perf_counter()
        splits = _features(points[chosen[0]]["job"], splits, arguments)
        print(json.dumps({"prepare_seconds": time.perf_counter() - start}), flush=True)
    for i in chosen:
        keras.utils.clear_session(free_memory=True)
        keras.utils.set_random_seed(0)
        start = time.perf_counter()
        told = fit(points[i]["job"], splits, arguments)
        seconds = time.perf_counter() - start
        line = {"point": i, "values": points[i]["values"], "seconds": seconds} | told
        print(json.dumps(line | {"versions": _versions()}), flush=True)


def fit(job: dict[str, Any], splits: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Trains one point from the beginning; see the module for what is returned."""
    if options.views:
        model, pipeline = keras_network.head(splits["train"][0].shape[-1], job), _stored
    else:
        model, pipeline = keras_network.build(job, weights=options.weights), _pipeline
        if options.augment == "model":
            model = _augmenting(model, job)
    binary = job["logits"] == 1
    accuracy = (
        keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)  # of a logit
        if binary
        else keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    )
    model.compile(keras_network.optimizer(job), keras_network.loss(job), metrics=[accuracy])
    clock, callbacks = Clock(options.epochs), []
    if job["patience"]:
        callbacks.append(
            keras.callbacks.EarlyStopping(patience=job["patience"], restore_best_weights=True)
        )
    history = model.fit(
        pipeline(*splits["train"], job, options.augment, train=True),
        validation_data=pipeline(*splits["validation"], job, options.augment, train=False),
        epochs=options.epochs,
        class_weight=_class_weight(splits["train"][1], job),
        callbacks=[*callbacks, clock],  # the clock last: what the others do is of the epoch
        verbose=0,
    ).history
    best = int(np.argmin(np.nan_to_num(history["val_loss"], nan=np.inf)))
    return {
        "epoch_seconds": clock.seconds,
        "epochs": len(clock.seconds),
        "best_epoch": best + 1,
        "validation": {
            "loss": history["val_loss"][best],
            "accuracy": history["val_accuracy"][best],
        },
        "parameters": keras_network.parameters(model),
    }


def _augmentation(job: dict[str, Any]) -> list[keras.Layer]:
    """Shift, rotation and zoom as cxrjax/data/augment.py draws them, each a layer of Keras."""
    amount, how = job["augment"], {"fill_mode": "nearest", "interpolation": "bilinear"}
    layers = []
    if shift := amount["shift"]:
        layers.append(keras.layers.RandomTranslation(shift, shift, **how))
    if degrees := amount["rotation"]:
        layers.append(keras.layers.RandomRotation(degrees / 360, **how))
    if zoom := amount["zoom"]:
        layers.append(keras.layers.RandomZoom((-zoom, zoom), **how))
    return layers


def _augmenting(model: keras.Model, job: dict[str, Any]) -> keras.Model:
    """Grey images float [B, S, S, 1] in 0..255, augmented while training, into the model."""
    x = inputs = keras.Input((job["image_size"], job["image_size"], 1))
    for layer in _augmentation(job):
        x = layer(x)
    if job["channels"] > 1:
        x = keras.layers.Concatenate()([x] * job["channels"])
    mean, std = np.asarray(job["mean"]), np.asarray(job["std"])
    x = keras.layers.Rescaling((1 / (255 * std)).tolist(), (-mean / std).tolist())(x)
    return keras.Model(inputs, model(x))


def _pipeline(images, labels, job: dict[str, Any], augment: str, *, train: bool):
    """Batches of float images [B, S, S, C], or of grey ones where the model augments."""
    layers = _augmentation(job) if train and augment == "pipeline" else []
    convert = _converter(job, layers, normalize=augment != "model")
    if job["logits"] == 1:
        labels = labels[:, None]
    with tf.device("/cpu:0"):
        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).cache()
    if train:
        dataset = dataset.shuffle(len(labels), seed=0)
    dataset = dataset.batch(job["batch_size"]).map(
        lambda batch, label: (convert(batch), label), num_parallel_calls=tf.data.AUTOTUNE
    )
    if not train:
        dataset = dataset.cache()
    return dataset.prefetch(tf.data.AUTOTUNE)


def _converter(job: dict[str, Any], layers: list[keras.Layer], *, normalize: bool = True):
    """uint8 [B, S, S] to float [B, S, S, C], or to grey ones in 0..255 where not normalised."""
    mean = tf.constant(job["mean"], tf.float32)
    std = tf.constant(job["std"], tf.float32)

    def convert(batch):
        grey = tf.cast(batch, tf.float32)[..., None]
        for layer in layers:
            grey = layer(grey, training=True)
        return (grey / 255 - mean) / std if normalize else grey

    return convert


def _features(job: dict[str, Any], splits: dict[str, Any], options: argparse.Namespace) -> dict:
    """Pooled features [n, views, F] instead of images; one view of validation images."""
    network = keras_network.build(job, weights=options.weights)
    pool = next(x for x in network.layers if isinstance(x, keras.layers.GlobalAveragePooling2D))
    trunk = keras.Model(network.input, pool.output)
    kept = {}
    for name, (images, labels) in splits.items():
        views, layers = (options.views, _augmentation(job)) if name == "train" else (1, [])
        plain = tf.data.Dataset.from_tensor_slices(images).batch(64)
        dataset = plain.map(_converter(job, layers), num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.prefetch(tf.data.AUTOTUNE)
        kept[name] = (
            np.stack([trunk.predict(dataset, verbose=0) for _ in range(views)], axis=1),
            labels,
        )
    return kept


def _stored(features, labels, job: dict[str, Any], augment: str, *, train: bool):
    """Batches [B, F] of one stored view of each image, drawn anew."""
    views = features.shape[1]

    def choose(batch, label):
        view = tf.random.uniform(tf.shape(batch)[:1], maxval=views, dtype=tf.int32)
        return tf.gather(batch, view, axis=1, batch_dims=1), label

    if job["logits"] == 1:
        labels = labels[:, None]
    with tf.device("/cpu:0"):
        dataset = tf.data.Dataset.from_tensor_slices((features, labels))
    if train:
        dataset = dataset.shuffle(len(labels), seed=0)
    dataset = dataset.batch(job["batch_size"]).map(choose, num_parallel_calls=tf.data.AUTOTUNE)
    if not train:
        dataset = dataset.cache()
    return dataset.prefetch(tf.data.AUTOTUNE)


def _class_weight(labels: np.ndarray, job: dict[str, Any]) -> dict[int, float] | None:
    if job["class_weights"] == "none":
        return None
    counts = np.bincount(labels)
    return dict(enumerate((counts.sum() / (len(counts) * counts)).tolist()))


def _versions() -> dict[str, str]:
    return {"keras": keras.__version__, "tensorflow": tf.__version__}


if __name__ == "__main__":
    sys.exit(main())
