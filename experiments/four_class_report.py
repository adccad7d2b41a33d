"""The four-class report, done again: its three backbones, its final DenseNet121, PCR beside it.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python experiments/four_class_report.py
python experiments/four_class_report.py --quick        # phantoms, random weights: minutes

DenseNet121, MobileNetV2 and InceptionV3 with the last 20 layers trained, then DenseNet121 for more
epochs ("final"), each twice:

- as the report did it: 80 % to train on, at random, copies of a film on both sides; the other 20 %
  choose the epoch, and the accuracy on them is the one reported.
- corrected: groups of near-duplicates stay together, validation images come out of the 80 %, and
  the test split is read once, at the end of each run; a shortcut score beside the accuracy.

Then what the corrected DenseNet121 makes of each source of images that it was not trained on, the
backbones compared pair by pair, and the decision against PCR. Everything is a run of cxrjax's own
commands in --workdir; what is finished there is not run again, and told even where this call
leaves it out. Other settings for all runs: --config.field=value. Writes
results/four_class_report.json and .png, and the table in README.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import reproduction
from reproduction import HERE, Row

from cxrjax import cli, log
from cxrjax.errors import UserError
from cxrjax.verdict import interval

NETWORKS = {"densenet4": "DenseNet121", "mobilenet4": "MobileNetV2", "inception4": "InceptionV3"}
FINAL = "densenet4_final"
# Figures 5 and 7 of the report. It prints one table for MobileNetV2 and InceptionV3.
CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
PRINTED = {
    "densenet4": (0.89, 0.88, (0.77, 0.83, 0.98, 0.80)),
    "mobilenet4": (0.86, 0.84, (0.65, 0.85, 0.95, 0.80)),
    "inception4": (0.86, 0.84, (0.65, 0.85, 0.95, 0.80)),
    FINAL: (0.92, 0.91, (0.89, 0.89, 0.96, 0.85)),
}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "report": {
        "data.group_duplicates": False,
        "data.test_fraction": 0.01,  # the least there can be; nobody looks at it
        "data.validation_fraction": 0.202,
        "eval.test": False,
    },
    "corrected": {},
}
_FEWEST = 100  # images of a source that is held out


def main(argv: Sequence[str] | None = None) -> int:
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="phantoms instead of X-rays")
    parser.add_argument(
        "--networks",
        default=",".join(NETWORKS),
        help="of %(default)s (default: all); densenet4 is always among them",
    )
    parser.add_argument("--epochs", type=int, help="of a backbone (default 10; quick: 2)")
    parser.add_argument(
        "--final-epochs", type=int, help="of the final one (default 30; quick: 4); 0: none"
    )
    parser.add_argument(
        "--sources",
        metavar="NAMES",
        help="to hold out in turn, with commas between them, or none (default: every source of at "
        "least 100 images without which no class is gone)",
    )
    parser.add_argument("--workdir", type=Path, help="default runs/four_class_report[-quick]")
    arguments, rest = parser.parse_known_args(argv)
    name = "four_class_report-quick" if arguments.quick else "four_class_report"
    root = arguments.workdir or Path("runs", name)
    epochs = arguments.epochs
    epochs = (2 if arguments.quick else 10) if epochs is None else epochs
    longer = arguments.final_epochs
    longer = (4 if arguments.quick else 30) if longer is None else longer
    if epochs < 1 or longer < 0:
        raise UserError("--epochs must be 1 or more, --final-epochs 0 or more.")
    asked = arguments.sources
    sources = None if asked is None else reproduction.sources(asked)
    named = ["densenet4", *arguments.networks.split(",")]
    if unknown := set(named) - set(NETWORKS):
        raise UserError(f"--networks holds {min(unknown)!r}; give some of {','.join(NETWORKS)}.")
    keys = [key for key in PRINTED if key in named or (key == FINAL and longer)]
    shared = (reproduction.PHANTOMS if arguments.quick else {}) | cli.parse_overrides(rest)

    for key in keys:
        own = shared | {"train.epochs": longer if key == FINAL else epochs}
        for protocol, changes in PROTOCOLS.items():
            _train(key, root / protocol / key, changes | own)
    keys = [key for key in PRINTED if all(_finished(root / p / key) for p in PROTOCOLS)]
    final = root / "corrected" / (FINAL if FINAL in keys else "densenet4")
    if sources is None:
        sources = spare_sources(reproduction.read(final / "result.json"))
    own = shared | {"train.epochs": epochs}
    for source in sources:
        folder = root / "without_source" / source
        _train("densenet4", folder, own | {"data.hold_out_source": source})
    without = root / "without_source"
    told = {path.parent.relative_to(without).as_posix() for path in without.rglob("result.json")}
    sources = [*sources, *sorted(told.difference(sources))]
    runs = [str(root / "corrected" / key) for key in keys]
    if len(runs) > 1:
        reproduction.run("compare", *runs, "--out", str(root / "comparison"))
    disease = ["--disease", "ground_glass"] if arguments.quick else []
    reproduction.run("decide", "--workdir", str(final), *disease)
    return _finish(root, keys, sources, arguments.quick)


def _train(key: str, folder: Path, overrides: Mapping[str, Any]) -> None:
    config = str(HERE.parent / "configs" / f"{key.partition('_')[0]}.py")
    fields = reproduction.settings(overrides)
    reproduction.run("main", "--config", config, "--workdir", str(folder), *fields)


def _finished(folder: Path) -> bool:
    return (folder / "result.json").is_file()


def spare_sources(result: Mapping[str, Any]) -> list[str]:
    """Sources of at least 100 images without which every class still has some to train on."""
    confounding = result["audit"].get("confounding") or {}
    found = confounding.get("table", {})
    per_class = _images_of(result, found)
    return [
        source
        for source, counts in found.items()
        if sum(counts.values()) >= _FEWEST
        and all(per_class[name] - count >= _FEWEST for name, count in counts.items())
    ]


def _images_of(result: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, int]:
    """Images of each class in the whole set, at least: of known source, or in two of its splits."""
    known = {name: sum(counts[name] for counts in table.values()) for name in result["classes"]}
    seen = {
        name: sum(result[split]["per_class"][name]["support"] for split in ("validation", "test"))
        for name in result["classes"]
    }
    return {name: max(known[name], seen[name]) for name in result["classes"]}


def _finish(root: Path, keys: Sequence[str], sources: Sequence[str], quick: bool) -> int:
    results = {
        protocol: {key: reproduction.read(root / protocol / key / "result.json") for key in keys}
        for protocol in PROTOCOLS
    }
    best = FINAL if FINAL in keys else "densenet4"
    pairs = []
    if len(keys) > 1:
        pairs = reproduction.read(root / "comparison" / "comparison.json")["pairs"]
    decision = reproduction.read(root / "corrected" / best / "decision.json")
    final = results["corrected"][best]
    more = {
        "verdicts": {key: result["verdict"] for key, result in results["corrected"].items()},
        "copies_on_both_sides": {
            protocol: {key: _crossing(result, protocol) for key, result in of.items()}
            for protocol, of in results.items()
        },
        "shortcuts": final["audit"].get("shortcuts"),
        "sources_held_out": {
            source: reproduction.held_out(root / "without_source" / source) for source in sources
        },
        "pairs": pairs,
        "decision": {key: decision[key] for key in ("disease", "report", "corrected", "xray")},
        "epochs": {p: {k: r["epochs"] for k, r in of.items()} for p, of in results.items()},
        "seconds": {p: {k: r["seconds"] for k, r in of.items()} for p, of in results.items()},
        "n": {protocol: of[best]["n"] for protocol, of in results.items()},
        **{key: final[key] for key in ("device", "versions", "test_looks")},
    }
    rows = [row for key in keys for row in rows_of(key, results)]
    title = "Four-class report: 95 % intervals of ours"
    written = reproduction.write("four_class_report", title, rows, more, quick)
    log.say(reproduction.table(rows))
    for key, told in more["verdicts"].items():
        log.say(f"{key}: {told}")
    for source, told in more["sources_held_out"].items():
        recalls = ", ".join(f"{name} {interval(recall)}" for name, recall in told["recall"].items())
        log.say(f"without {source}: recall there {recalls}, n={told['n']}")
    log.say("\n".join(pair["finding"] for pair in more["pairs"]))
    log.say(f"see {written[0]} and {written[1]}")
    return 0


def _crossing(result: Mapping[str, Any], protocol: str) -> int:
    """Pairs of near-duplicates with one film trained on and one in the split that is reported."""
    reported = "validation" if protocol == "report" else "test"
    return result["audit"]["leaks"]["pairs"][f"train-{reported}"]


def rows_of(key: str, results: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Accuracy, macro F1 and the recall of each class of one network.

    Args:
      results: content of result.json by protocol and key; of "report" the validation split is
        taken, since that is the one it tunes and reports on.
    """
    what = NETWORKS[key.partition("_")[0]] + (", final" if key == FINAL else "")
    printed_accuracy, printed_f1, printed_recall = PRINTED[key]
    told = dict(zip(CLASSES, printed_recall, strict=True))
    there = results["report"][key]["validation"]
    here = results["corrected"][key]["test"]
    rows = [
        Row(what, "accuracy", printed_accuracy, there["accuracy"], here["accuracy"]),
        Row(what, "macro F1", printed_f1, there["macro_f1"], here["macro_f1"]),
    ]
    for name in results["corrected"][key]["classes"]:
        recalls = [part["per_class"][name]["recall"] for part in (there, here)]
        rows.append(Row(what, f"recall {name}", told.get(name), *recalls))
    return rows


if __name__ == "__main__":
    sys.exit(main())
