"""`python -m cxrjax.lungs train|evaluate`: weights of the lung segmentation, and their Dice."""

from __future__ import annotations

import argparse
import errno
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cxrjax import cli
from cxrjax.errors import UserError, writing

_MASKS = "folder or zip with images/ and masks/ of the same stems"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = cli.parser("cxrjax.lungs", __doc__, None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    train = commands.add_parser("train", help="train on phantoms, and on annotated films if given")
    train.add_argument("--masks", metavar="PATH", help=f"{_MASKS}; one half is trained on")
    train.add_argument("--out", metavar="FILE", help="default: the package's own weights")
    train.add_argument("--phantoms", type=int, default=1000, help="default %(default)s")
    train.add_argument("--steps", type=int, default=1500, help="default %(default)s")
    train.set_defaults(run=_train)
    evaluate = commands.add_parser("evaluate", help="Dice on the other half of annotated films")
    evaluate.add_argument("--masks", metavar="PATH", required=True, help=_MASKS)
    evaluate.add_argument("--weights", metavar="FILE", help="default: the package's own")
    evaluate.set_defaults(run=_evaluate)
    arguments = parser.parse_args(argv)

    from cxrjax import runtime

    runtime.start(runtime.cache_root("") / "compiled")
    return arguments.run(arguments)


def _train(arguments: argparse.Namespace) -> int:
    from cxrjax import log
    from cxrjax.lungs import segment, training

    for flag, least in (("phantoms", 4), ("steps", 1)):
        if (count := getattr(arguments, flag)) < least:
            raise UserError(f"--{flag} is {count}; give {least} or more.")
    out = Path(arguments.out) if arguments.out else segment.WEIGHTS
    _look_at(out)
    annotated = []
    if arguments.masks:
        half, _ = training.halves(training.annotated_films(Path(arguments.masks)))
        if not half.names:
            raise UserError(
                f"{arguments.masks} holds one film, or copies of one: no half is left to train on; "
                "give more films, or leave --masks out."
            )
        annotated = [half, half]  # twice their share: they are what is to be segmented
    drawn = training.phantoms(arguments.phantoms, seed=2**20)  # not those of the configs
    parts = [drawn, *annotated]
    params = training.train(parts, arguments.steps)
    held_back = training.phantoms(200, seed=2**20 + 1)
    found = training.mean_interval(training.dice(held_back, params))
    trained_on = f"{arguments.phantoms} phantoms"
    if arguments.masks:
        trained_on += f", {len(parts[1].names)} annotated films"
    segment.save(out, params, trained_on=trained_on)
    sys.stdout.write(log.json_line({"weights": str(out), "dice_on_phantoms": found}))
    return _report(arguments.masks, out) if arguments.masks else 0


def _look_at(out: Path) -> None:
    """Refuses a place where nothing can be written, before the work and not after it."""
    with writing(out, "choose another --out"):
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        with tempfile.TemporaryFile(dir=out.parent):
            pass


def _evaluate(arguments: argparse.Namespace) -> int:
    from cxrjax.lungs import segment

    return _report(arguments.masks, Path(arguments.weights or segment.WEIGHTS))


def _report(masks: str, weights: Path) -> int:
    from cxrjax import log
    from cxrjax.lungs import segment, training

    _, rest = training.halves(training.annotated_films(Path(masks)))
    each = training.dice(rest, segment.load(weights))
    worst = sorted(zip(each, rest.names, strict=True))[:5]
    report = {
        "dice": training.mean_interval(each),
        "share_below_0.9": float((each < 0.9).mean()),
        "worst": {name: round(float(value), 3) for value, name in worst},
    }
    sys.stdout.write(log.json_line(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
