"""Records and arrays of trials as a sweep leaves them, for the tests of what reads them."""

import itertools

import numpy as np


def key(number):
    return f"{number:016x}"


def entry(value, half=0.04, n=400):
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def record(number=0, values=None, accuracy=0.8, loss=0.5, seed=0, status="finished", best_epoch=7):
    done = status == "finished"
    return {
        "key": key(number),
        "values": {"train.learning_rate": 0.001} if values is None else values,
        "seed": seed,
        "status": status,
        "epochs": best_epoch + 5,
        "best_epoch": best_epoch,
        "validation": {"loss": loss, "accuracy": entry(accuracy)} if done else None,
        "seconds": 12.3,
        "how": "stacked of 9",
    }


def grid(fields, seeds=1, diverged=(), seed=0):
    """A record for each point of a product of values, with accuracies drawn at random."""
    rng = np.random.default_rng(seed)
    points = [
        dict(zip(fields, point, strict=True)) for point in itertools.product(*fields.values())
    ]
    found = []
    for values, of in itertools.product(points, range(seeds)):
        number = len(found)
        status = "diverged" if number in diverged else "finished"
        best = int(rng.integers(1, 30))
        accuracy = round(float(rng.uniform(0.6, 0.9)), 4)
        found.append(record(number, values, accuracy, 1.2 - accuracy, of, status, best))
    return found


def arrays(of, n=5, classes=2):
    """History and probabilities for a record."""
    rng = np.random.default_rng(int(of["key"], 16))
    epochs = np.arange(1, of["epochs"] + 1)
    noise = rng.normal(0, 0.01, [4, len(epochs)])
    top = of["validation"]["accuracy"]["value"] if of["validation"] else 0.5
    fall = np.exp(-epochs / 6)
    turn = 0.002 * (epochs - of["best_epoch"]) ** 2
    history = np.stack([0.2 + fall, 0.95 - 0.4 * fall, 1.2 - top + turn / 4, top - 0.3 * fall])
    probabilities = rng.dirichlet(np.ones(classes), n).astype(np.float32)
    return {"history": (history + noise).T, "probabilities": probabilities}
