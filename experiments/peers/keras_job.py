"""Report F's whole job in Keras 3: DenseNet121, last 20 layers, Adamax, class weights, tf.data.

Run by experiments/report_f_job.py on a folder it wrote: images.npy uint8 [N, S, S], labels.npy
int32 [N], and train.npy, validation.npy, test.npy with the positions of each split. Prints
"epoch I/E" on standard output as each epoch ends, its validation included, and at last a JSON line.
Written as a user of Keras would for speed: the decoded images lie in memory, batches are formed
before they are converted, conversion runs in parallel and ahead of training, `fit` runs Keras' own
compiled step.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import keras_network
import numpy as np
import tensorflow as tf


class Clock(keras.callbacks.Callback):
    """Seconds of each epoch, and a line when it ends."""

    def __init__(self, epochs: int):
        super().__init__()
        self.epochs, self.seconds = epochs, []

    def on_epoch_begin(self, epoch, logs=None):
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._start)
        print(f"epoch {epoch + 1}/{self.epochs}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", help="Keras .h5 of the backbone without top")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--job", type=json.loads, required=True, help="as for keras_peer")
    arguments = parser.parse_args()
    job = arguments.job
    keras.utils.set_random_seed(0)
    model = keras_network.build(job, weights=arguments.weights)
    model.compile(
        keras_network.optimizer(job), keras_network.loss(job), weighted_metrics=["accuracy"]
    )
    labels = np.load(arguments.data / "labels.npy")
    splits = {
        name: np.load(arguments.data / f"{name}.npy") for name in ("train", "validation", "test")
    }
    images = np.load(arguments.data / "images.npy", mmap_mode="r")
    sets = {
        name: _pipeline(images[rows], labels[rows], job, shuffle=name == "train")
        for name, rows in splits.items()
    }
    counts = np.bincount(labels[splits["train"]], minlength=job["logits"])
    class_weight = dict(enumerate((counts.sum() / (len(counts) * counts)).tolist()))
    clock = Clock(arguments.epochs)
    history = model.fit(
        sets["train"],
        validation_data=sets["validation"],
        epochs=arguments.epochs,
        class_weight=class_weight,
        callbacks=[clock],
        verbose=0,
    )
    result = model.evaluate(sets["test"], verbose=0, return_dict=True)
    summary = {
        "epoch_seconds": clock.seconds,  # training and validation
        "n": {name: len(rows) for name, rows in splits.items()},
        "parameters": keras_network.parameters(model),
        "loss": history.history["loss"],
        "validation_loss": history.history["val_loss"],
        "test": result,
        "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
    }
    print(json.dumps(summary), flush=True)


def _pipeline(images, labels, job: dict, *, shuffle: bool):
    """Batches of ImageNet-normalised float images [B, S, S, 3]; grey goes to all channels."""

    def convert(batch, label):
        grey = tf.cast(batch, tf.float32)[..., None]
        colour = tf.repeat(grey, job["channels"], axis=-1)
        return keras.applications.densenet.preprocess_input(colour), label

    with tf.device("/cpu:0"):
        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).cache()
    if shuffle:
        dataset = dataset.shuffle(len(labels), seed=0)
    dataset = dataset.batch(job["batch_size"])
    dataset = dataset.map(convert, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.prefetch(tf.data.AUTOTUNE)


if __name__ == "__main__":
    sys.exit(main())
