"""Throughput of every network and way of training, ours against the peers that users would pick.

python experiments/throughput.py                                   # CPU: against Keras-TensorFlow
python experiments/throughput.py --peer-python torch=/opt/torch/bin/python --budget-seconds 500

Random images and weights, batch and precision by device (CPU: 32, float32, against Keras on
TensorFlow; GPU: 256, bfloat16, against PyTorch). DenseNet121, MobileNetV2 and InceptionV3 carry
report F's head and Adamax, ResNet50V2 and the baseline CNN report B's and Adam. Modes: full (all
layers trained), last20, head, forward (the evaluation step); when asked for by --modes also
last20_cached and head_cached. 224 pixels, the baseline 128.

Each cell runs in processes of its own, windows of ours and of each peer in turn. Results go to
experiments/results/throughput-<device>.json as each cell ends, and a plot beside it. Run again to
go on: finished cells are kept unless --again, failed ones are tried anew. What fails when measured
again keeps its earlier figures.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cxrjax import cli, log, plotting
from cxrjax import config as config_lib
from cxrjax.bench import job as jobs
from cxrjax.bench import session
from cxrjax.bench.processes import ProcessFailed
from cxrjax.errors import UserError
from cxrjax.models import registry

RESULTS = Path(__file__).resolve().parent / "results"
MODELS = ("densenet121", "resnet50v2", "mobilenetv2", "inceptionv3", "baseline")
# Trainable layers. The cached modes start behind the frozen ones, from stored maps, as training
# without augmentation does; their peers are those of last20 and head, on images.
MODES = {"full": -1, "last20": 20, "head": 0, "forward": -1, "last20_cached": 20, "head_cached": 0}
_DEFAULT_MODES = "full,last20,head,forward"
_REPORT_B = ("resnet50v2", "baseline")


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS), metavar="LIST")
    parser.add_argument("--modes", default=_DEFAULT_MODES, metavar="LIST")
    parser.add_argument("--peers", metavar="LIST", help="'none' for ours alone; default by device")
    parser.add_argument("--batch-size", type=int, metavar="N", help="default by device")
    parser.add_argument("--precision", choices=config_lib.PRECISIONS, help="default by device")
    parser.add_argument("--image-size", type=int, metavar="N", help="default: each network's own")
    parser.add_argument("--windows", type=int, default=5, metavar="N")
    parser.add_argument("--steps", type=int, default=0, metavar="N", help="of a window; 0: by time")
    parser.add_argument("--quick", action="store_true", help="3 windows of half a second")
    parser.add_argument(
        "--budget-seconds", type=float, default=float("inf"), help="start no cell after that long"
    )
    parser.add_argument(
        "--cell-seconds", type=float, default=3600, help="give up a process silent for longer"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU cores for all")
    parser.add_argument("--peer-python", action="append", default=[], metavar="PEER=PATH")
    parser.add_argument("--again", action="store_true", help="measure finished cells anew")
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    return parser


def _run(argv: Sequence[str]) -> int:
    begun = time.perf_counter()
    arguments = _parser().parse_args(argv)
    if arguments.windows < 1 or arguments.steps < 0:
        raise UserError("--windows must be 1 or more and --steps 0 or more.")
    models = jobs.choose(arguments.models, MODELS, "--models")
    modes = jobs.choose(arguments.modes, tuple(MODES), "--modes")
    if arguments.threads is not None:
        jobs.use_threads(arguments.threads)
    settings = session.Settings(
        steps=arguments.steps,
        windows=3 if arguments.quick else arguments.windows,
        window_seconds=0.5 if arguments.quick else 2.0,
        patience_seconds=arguments.cell_seconds,
        python=dict(map(jobs.peer_python, arguments.peer_python)),
        go_on=True,
    )
    peak = session.measured_peak(config_lib.default(), settings)
    on_cpu = peak["platform"] == "cpu"
    peers = _peers(arguments.peers, "keras-tensorflow" if on_cpu else "torch")
    batch = arguments.batch_size or (32 if on_cpu else 256)
    precision = arguments.precision or ("float32" if on_cpu else "bfloat16")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"throughput-{_slug(peak)}.json"
    table = _load(path) | {name: peak[name] for name in ("device", "platform", "versions")}
    table |= {"threads": jobs.threads(), "peak": {peak["dtype"]: peak}}
    for model, mode in cells(models, modes):
        config = configure(model, mode, batch, precision, arguments.image_size)
        key = f"{model}/{mode}/{config.data.image_size}px/batch{batch}/{precision}"
        done = {} if arguments.again else table["cells"].get(key, {})
        missing = [peer for peer in peers if "ratio" not in done.get("peers", {}).get(peer, {})]
        if "images_per_second" in done and not missing:
            log.say(f"{key}: kept as it stands in {path}; --again measures it anew")
        elif time.perf_counter() - begun > arguments.budget_seconds:
            log.say(f"{key}: not started, the time is up")
        else:
            if precision not in table["peak"]:
                table["peak"][precision] = session.measured_peak(config, settings)
            cell = _cell(config, mode, missing, settings, table["peak"][precision])
            if "error" not in cell:
                cell["peers"] = done.get("peers", {}) | cell["peers"]
            put(table, key, cell)
            log.write_json(path, table)
    log.write_json(path, table)
    plot(table, path.with_suffix(".png"))
    print(path)
    return 0


def cells(models: Sequence[str], modes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Every (model, mode); the baseline CNN has fewer than 20 layers."""
    for model in models:
        for mode in modes:
            if model != "baseline" or "last20" not in mode:
                yield model, mode


def configure(
    model: str, mode: str, batch: int, precision: str, image_size: int | None = None
) -> Any:
    """The configuration of a cell.

    Raises:
      UserError: for a network that is not there yet.
    """
    config: Any = config_lib.default()
    config.model.name = model
    config.model.trainable_layers = MODES[mode]
    config.data.image_size = image_size or (128 if model == "baseline" else 224)
    config.train.batch_size = config.eval.batch_size = batch
    config.train.precision = precision
    config.model.head.dropout = 0.3
    if model in _REPORT_B:
        config.data.name, config.data.classes = "radiography", ("Normal", "COVID")
        config.model.head.dense = 0 if model == "baseline" else 128
    else:
        config.model.head.batch_norm = True
        config.model.head.dense = 256
        config.model.head.l2 = 0.01
        config.train.optimizer = "adamax"
        config.train.learning_rate = 1e-4
        config.train.class_weights = "balanced"
    config.cache.dtype = precision
    config_lib.validate(config)
    return config


def _cell(
    config: Any, mode: str, peers: Sequence[str], settings: session.Settings, peak: dict[str, Any]
) -> dict[str, Any]:
    """The figures of a cell, or its error."""
    row = "cached" if mode.endswith("cached") else "synthetic"
    row = "forward" if mode == "forward" else row
    try:
        registry.spec(config.model.name)
        return session.measure_row(config, row, peers, settings, peak)
    except (UserError, ProcessFailed) as error:
        return {"error": str(error), "log": getattr(error, "log", "")}


def put(table: dict[str, Any], key: str, cell: dict[str, Any]) -> None:
    """Takes a cell into the table; neither ours nor a peer that failed replaces figures."""
    earlier = table["cells"].get(key, {})
    kept = "error" in cell and "images_per_second" in earlier
    log.say(f"{key}: {_told(cell)}{'; its earlier figures are kept' if kept else ''}")
    if kept:
        return
    for peer, figures in earlier.get("peers", {}).items():
        if "ratio" in figures and "error" in cell.get("peers", {}).get(peer, {}):
            cell["peers"][peer] = figures
    table["cells"][key] = cell


def _peers(text: str | None, default: str) -> tuple[str, ...]:
    if text == "none":
        return ()
    return jobs.choose(default if text is None else text, jobs.PEERS, "--peers")


def _load(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"cells": {}, "peak": {}}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); delete it or choose --out."
        ) from error


def _slug(peak: dict[str, Any]) -> str:
    """The device in the name of a file: "cpu-2-cores-avx2-jax-0.12.0", "nvidia-h100-80gb-hbm3".

    On a CPU its vectors decide, and the release of JAX, which brings the library of convolutions.
    """
    kind = peak["device"].split(" (")[0].lower()
    if peak["platform"] == "cpu":
        kind = f"cpu {jobs.threads()} cores {_vectors()} jax {peak['versions']['jax']}"
    return re.sub(r"[^a-z0-9.]+", "-", kind).strip("-")


def _vectors() -> str:
    """The processor's widest vector instructions, where Linux tells them, else its family."""
    try:
        known = Path("/proc/cpuinfo").read_text()
    except OSError:
        known = ""
    return next((name for name in ("avx512", "avx2") if name in known), platform.machine())


def _told(cell: dict[str, Any]) -> str:
    if "error" in cell:
        return f"failed: {cell['error']}"
    parts = [f"{cell['images_per_second']['median']:.1f} images/s"]
    for peer, figures in cell["peers"].items():
        if "error" in figures:
            parts.append(f"{peer} failed: {figures['error']}")
            continue
        ratio, theirs = figures["ratio"], figures["images_per_second"]["median"]
        parts.append(
            f"{peer} {theirs:.1f}, ratio {ratio['median']:.2f} [{ratio['min']:.2f}, "
            f"{ratio['max']:.2f}]"
        )
    return ", ".join(parts)


# ------------------------------------------------------------------ plot


def plot(table: dict[str, Any], path: Path) -> None:
    """A panel per mode: images per second of every network, ours beside the peers; whiskers are
    the extremes over windows, figures beside a peer's point ours over the peer."""
    cells_of = {mode: [] for mode in MODES}
    for key, cell in table["cells"].items():
        model, mode, rest = key.split("/", 2)
        if "images_per_second" in cell:
            cells_of[mode].append((f"{model}\n{rest.replace('/', ', ')}", cell))
    cells_of = {mode: found for mode, found in cells_of.items() if found}
    if not cells_of:
        return
    figure = plotting.new_figure(0.6 + 1.9 * len(cells_of))
    for panel, (mode, found) in enumerate(cells_of.items(), start=1):
        axes = figure.add_subplot(len(cells_of), 1, panel)
        _panel(axes, mode, found)
    figure.axes[0].legend(fontsize=6)
    figure.suptitle(f"{table['device']}, {table['threads']} threads", fontsize=9)
    plotting.save(figure, path)


def _panel(axes: Any, mode: str, found: list[tuple[str, dict[str, Any]]]) -> None:
    names = ["cxrjax", *jobs.PEERS]
    present = [n for n in names if n == "cxrjax" or any(_figures(c, n) for _, c in found)]
    for i, name in enumerate(present):
        colour = plotting.COLOURS[names.index(name)]
        shown = [(x, figures) for x, (_, c) in enumerate(found) if (figures := _figures(c, name))]
        for x, figures in shown:
            rate, at = figures["images_per_second"], x + 0.2 * (i - (len(present) - 1) / 2)
            low, high = rate["median"] - rate["min"], rate["max"] - rate["median"]
            label = name if (x, figures) == shown[0] else None
            axes.errorbar(
                at, rate["median"], [[low], [high]], fmt="o", ms=4, color=colour, label=label
            )
            if "ratio" in figures:
                text = f"  {figures['ratio']['median']:.2f}x"
                axes.text(at, rate["median"], text, va="center", fontsize=6)
    axes.set_yscale("log")
    axes.set_xlim(-0.5, len(found) - 0.5)
    axes.set_xticks(range(len(found)), [label for label, _ in found], fontsize=6)
    axes.tick_params(axis="y", which="both", labelsize=6)
    axes.set_ylabel("images/s", fontsize=7)
    axes.set_title(mode, fontsize=8)
    axes.grid(axis="y", which="both", alpha=0.3)


def _figures(cell: dict[str, Any], name: str) -> dict[str, Any] | None:
    """Of ours or of a peer, None when it was not measured or failed."""
    figures = cell if name == "cxrjax" else cell["peers"].get(name, {})
    return figures if "images_per_second" in figures else None


if __name__ == "__main__":
    sys.exit(main())
