"""`python -m cxrjax.data prepare|explore|phantom`: decode, look at, or write out a data set."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxrjax import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    return cli.guarded(_run, list(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    arguments, rest = _parser().parse_known_args(argv)
    return arguments.run(arguments, rest)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("cxrjax.data", __doc__, None)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser(
        "prepare", help="decode once, split and audit; prints a JSON summary"
    )
    prepare.set_defaults(run=_prepare)
    explore = commands.add_parser(
        "explore", help="class balance, pixel statistics, sample grid: figures and explore.json"
    )
    explore.add_argument("--out", required=True, metavar="DIR", help="folder for the figures")
    explore.set_defaults(run=_explore)
    for command in (prepare, explore):
        command.add_argument(
            "--config", required=True, metavar="FILE", help="e.g. configs/quickstart.py"
        )
        command.epilog = "Settings are overridden by --config.field=value."

    phantom = commands.add_parser(
        "phantom", help="write procedural chest phantoms as folders of PNG files, one per class"
    )
    phantom.add_argument("--out", required=True, metavar="DIR")
    phantom.add_argument("--count", type=int, default=400, help="images (default %(default)s)")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--size", type=int, default=224, help="pixels (default %(default)s)")
    for name, what in {
        "marker": "chance that a source marker follows the class",
        "duplicates": "fraction of near-copies of other images",
        "label-noise": "fraction of wrong labels",
    }.items():
        phantom.add_argument(f"--{name}", type=float, default=0.0, help=f"planted fault: {what}")
    phantom.set_defaults(run=_phantom)
    return parser


def _load(arguments: argparse.Namespace, rest: Sequence[str]):
    from cxrjax import config

    return config.load(arguments.config, cli.parse_overrides(rest))


def _prepare(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    settings = _load(arguments, rest)
    from cxrjax import log
    from cxrjax.data import dataset

    data = dataset.prepare(settings)
    summary = {
        "store": str(data.store.root),
        "classes": data.classes,
        "n": len(data.store.labels),
        "splits": {name: len(positions) for name, positions in data.splits.items()},
        "mean": data.mean,
        "std": data.std,
        "digest": data.digest,
        "audit": data.audit,
    }
    sys.stdout.write(log.json_line(summary))
    return 0


def _explore(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    settings = _load(arguments, rest)
    from cxrjax import log
    from cxrjax.data import dataset, explore
    from cxrjax.errors import writing

    data, out = dataset.prepare(settings), Path(arguments.out)
    written = explore.write_figures(data, out)
    with writing(out, "choose another --out"):
        log.write_json(out / "explore.json", explore.statistics(data) | {"audit": data.audit})
    for path in [*written, out / "explore.json"]:
        print(path)
    return 0


def _phantom(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from cxrjax import config
    from cxrjax.errors import UserError

    if rest:
        raise UserError(f"unknown argument {rest[0]}; phantom takes those named in --help.")
    settings: Any = config.default()
    settings.data.image_size = arguments.size
    for field in ("count", "seed", "marker", "duplicates", "label_noise"):
        settings.data.phantom[field] = getattr(arguments, field)
    config.validate(settings)

    from cxrjax.data.phantom import PhantomSource, write_folder

    source = PhantomSource(**settings.data.phantom.to_dict())
    write_folder(source, Path(arguments.out), arguments.size)
    print(json.dumps({"out": arguments.out, "n": len(source.records), "classes": source.classes}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
