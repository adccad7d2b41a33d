"""Command line: converts pretrained weights to cxrjax .npz files, and lists the networks."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxrjax import cli


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m cxrjax.convert SOURCE OUT --model NAME` or `--list`; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = cli.parser(
        "cxrjax.convert",
        "Checks a weight file against a network, name by name, and writes it as .npz with the\n"
        "SHA-256 of every tensor and, of PyTorch's, the input it was trained on.",
        None,
    )
    parser.add_argument(
        "source",
        nargs="?",
        help="Keras .h5, .weights.h5 or .keras; PyTorch .pth or .pt of torchvision, "
        "torchxrayvision or CheXNet (read without torch, nothing in it is executed); cxrjax .npz",
    )
    parser.add_argument("out", nargs="?", help="the .npz file to write")
    parser.add_argument("--model", help="network the weights are for (default: told from the file)")
    parser.add_argument("--list", action="store_true", help="list the networks and their weights")
    arguments = parser.parse_args(argv)
    if arguments.list:
        return _list()
    if arguments.out is None:
        parser.error("SOURCE and OUT are needed, or --list")
    return _convert(arguments.source, arguments.out, arguments.model)


def _list() -> int:
    from cxrjax.models import registry

    rows = [("name", "input", "parameters", "preprocessing", "CAM layer", "citation", "weights")]
    for name in registry.names():
        entry = registry.spec(name)
        rows.append(
            (
                name,
                f"{entry.input_size}x{entry.input_size}x{entry.channels}",
                f"{entry.parameters:,}" if entry.parameters else "by config",
                entry.preprocessing,
                entry.cam_layer,
                entry.citation,
                entry.weights_url or "none",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
    return 0


def _convert(source: str, out: str, name: str | None) -> int:
    from cxrjax import config, runtime
    from cxrjax.errors import UserError
    from cxrjax.models import registry

    if name is not None:
        registry.spec(name)
    if not out.endswith(".npz"):
        raise UserError(f"the output file {out} must end in .npz.")
    runtime.start()
    from cxrjax.models import classifier, weights

    tensors, metadata = weights.load_tensors(source, name)
    contract = metadata["contract"]
    name = name or (contract["model"] if contract else weights.recognised(tensors))
    if name is None:
        raise UserError(
            f"{source} does not tell which network it is of; give --model "
            f"{' or '.join(registry.names())}."
        )
    settings = config.default()
    settings.update_from_flattened_dict({"model.name": name})
    model = classifier.build(settings.model, n_classes=2, contract=contract)
    _, params, batch_stats = classifier.split(model)
    try:
        tensors = weights.backbone_tensors(*weights.assign(params, batch_stats, tensors))
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    weights.save_npz(out, tensors, {**metadata["source"], "model": name, "contract": contract})
    count = sum(value.size for value in tensors.values())
    print(f"{out}: {len(tensors)} tensors, {count:,} parameters of {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
