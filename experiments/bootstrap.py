"""How long the intervals take: 10,000 resamples of every metric, jitted against plain NumPy.

python experiments/bootstrap.py [--examples 4000] [--classes 4] [--json OUT]

Prints seconds of the first call (compilation included) and of later ones. Keep the machine free of
other work meanwhile.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from cxrjax import bootstrap, metrics, runtime

_PLAIN = 200  # resamples of the plain form, whose time is scaled up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=4000)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--json", metavar="OUT")
    arguments = parser.parse_args()
    runtime.start()
    n, k = arguments.examples, arguments.classes
    rng = np.random.default_rng(0)
    labels = rng.integers(0, k, n)
    scores = rng.uniform(size=(n, k))
    scores[np.arange(n), labels] += 0.5
    probabilities = scores / scores.sum(axis=1, keepdims=True)
    groups = np.arange(n)
    seconds = []
    for seed in range(6):
        start = time.perf_counter()
        bootstrap.statistics(labels, probabilities, groups, arguments.resamples, seed)
        seconds.append(time.perf_counter() - start)
    start = time.perf_counter()
    for _ in bootstrap.draws(groups, arguments.resamples, 0):
        pass
    drawing = time.perf_counter() - start
    start = time.perf_counter()
    metrics.evaluate(labels, probabilities, [str(c) for c in range(k)], groups)
    whole = time.perf_counter() - start
    start = time.perf_counter()
    for weights in bootstrap.weights(groups, _PLAIN, 0):
        metrics.plain_statistics(labels, probabilities, weights)
    plain = (time.perf_counter() - start) * arguments.resamples / _PLAIN
    found = {
        "examples": n,
        "classes": k,
        "resamples": arguments.resamples,
        "first_call_seconds": round(seconds[0], 3),
        "later_calls_seconds": [round(s, 3) for s in seconds[1:]],
        "median_seconds": round(float(np.median(seconds[1:])), 3),
        "of_which_drawing_seconds": round(drawing, 3),
        "evaluate_seconds": round(whole, 3),
        "plain_numpy_seconds": round(plain, 2),
        **runtime.describe(),
    }
    print(json.dumps(found, indent=2))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
