"""The sections that say how good a run is, and how sure."""

from __future__ import annotations

from typing import Any

from cxrjax import verdict
from cxrjax.report import elements as e
from cxrjax.report.elements import Html
from cxrjax.report.files import Found

SPLITS = ("validation", "test")
_METRICS = {
    "accuracy": ("accuracy", "share of images given the right class"),
    "balanced_accuracy": ("balanced accuracy", "mean of the classes' sensitivities"),
    "macro_f1": ("macro F1", "mean of the classes' F1"),
    "auroc": ("AUROC", "each class against the rest, mean; .5 is chance"),
    "average_precision": ("average precision", "area under precision and recall, mean"),
    "log_loss": ("log loss", "lower is better"),
    "brier": ("Brier score", "lower is better"),
    "ece": ("calibration error (ECE)", "gap of confidence and share right; lower is better"),
}
_CLASS_METRICS = {
    "recall": "sensitivity (recall)",
    "specificity": "specificity",
    "precision": "precision (PPV)",
    "f1": "F1",
    "auroc": "AUROC",
}


def untested(found: Found) -> Html:
    """The sentence in the place of test figures; nothing where there are some."""
    if found.tested:
        return Html()
    return e.paragraph(
        "The test split was not read; once all else is decided, ",
        e.command("cxrjax.main", "--workdir", found.folder, "--config.eval.test=True"),
        " reads it.",
        class_="missing",
    )


def evaluate_again(found: Found, what: str) -> Html:
    """The sentence in the place of a file that the evaluation of a run writes."""
    looks = ", which reads the test split once more" if found.tested else ""
    return e.paragraph(
        f"{what} not here; delete result.json and run ",
        e.command("cxrjax.main", "--workdir", found.folder),
        f": it repeats the evaluation{looks}.",
        class_="missing",
    )


def verdict_box(found: Found) -> Html:
    """The verdict as `cxrjax.main` prints it, and what it means."""
    line = verdict.line(found.result)
    sentences = _tested(found) if found.tested else [_not_tested(found)]
    word = line.rpartition(": ")[2]
    calm = "sound" if word == "SOUND" else "doubt"
    return e.tag(
        "section",
        e.paragraph(e.tag("strong", line), class_="line"),
        *map(e.paragraph, sentences),
        id="verdict",
        class_=calm,
    )


def _not_tested(found: Found) -> str:
    seen = "validation" in found.result.get("trained_on", ())
    why = "which were trained on" if seen else "by which the best epoch was chosen"
    return (
        f"These are figures of the validation images, {why}: they flatter. No test image has been "
        "looked at, so how good the run is on new images is not known."
    )


def _tested(found: Found) -> list[str]:
    test, audit = found.result["test"], found.result["audit"]
    accuracy = test["accuracy"]
    common, share = _commonest(test)
    value, low, high = (e.percent(accuracy[key]) for key in ("value", "low", "high"))
    said = [
        f"Of {accuracy['n']} test images {value} got the right class; for others drawn alike {low} "
        f"to {high} are plausible ({e.percent(0.95)} interval). Always answering {common} would be "
        f"right for {e.percent(share)}."
    ]
    if leaks := verdict.leaks_into_test(audit):
        said.append(
            f"{leaks} near-duplicate pairs or patients are both in the test split and in another: "
            "part of the accuracy may be memory, and new patients may get less."
        )
    said.append(_shortcut((audit.get("shortcuts") or {}).get("score")))
    if findings := (found.audit or {}).get("findings"):
        said.append(
            f"The audit of the data has {len(findings)} finding{'s' * (len(findings) > 1)}, "
            "listed below."
        )
    return said


def _commonest(part: dict[str, Any]) -> tuple[str, float]:
    support = {name: of["support"] for name, of in part["per_class"].items()}
    name = max(support, key=support.__getitem__)
    return name, support[name] / max(sum(support.values()), 1)


def _shortcut(score: dict[str, Any] | None) -> str:
    """What the shortcut score allows to say."""
    if score is None:
        return "What the network still knows without lungs was not measured: it may use shortcuts."
    if not score["n"]:
        return (
            "On no test image lungs were found, so what the network still knows without them was "
            "not measured: it may use shortcuts."
        )
    if score["value"] is None:
        return "The network is too close to chance to tell what it looks at."
    left = f"shortcut score {verdict.interval(score)}; 0 is nothing, 1 is all"
    if score["low"] > verdict.CONFOUNDED_ABOVE:
        return (
            f"With the lungs hidden the network keeps much of what it knows ({left}): it "
            "answers at least in part by something else, such as a marker, the border or the "
            "source of a film. Its accuracy need not hold in another hospital."
        )
    if score["high"] < -verdict.CONFOUNDED_ABOVE:
        return (
            "With the lungs hidden what is left of its answers points at the wrong classes "
            f"({left}): it may be worth something under other names, so a shortcut is not excluded."
        )
    if score["high"] <= verdict.CONFOUNDED_ABOVE:
        return (
            f"With the lungs hidden hardly anything of what it knows is left ({left}): no "
            "shortcut outside the lungs was found. That is no proof that it is right for the right "
            "reason, nor that it works elsewhere."
        )
    return (
        f"With the lungs hidden something of what it knows may be left ({left}): the test "
        f"images do not settle whether that is above {verdict.short(verdict.CONFOUNDED_ABOVE)}."
    )


def metrics(found: Found) -> Html:
    """The table of metrics with intervals."""
    there = [split for split in SPLITS if split in found.result]
    rows = [
        [
            e.join([name, Html(f" <small>{e.text(what)}</small>")], ""),
            *(e.interval(found.result[split][key]) for split in there),
        ]
        for key, (name, what) in _METRICS.items()
        if key in found.result[there[0]]
    ]
    head = ["", *(split + _seen(found, split) for split in there)]
    part = found.result[found.shown]
    drawn = ""
    if "resamples" in part:
        drawn = (
            f" by a bootstrap of {part['resamples']} resamples, which draws groups of near-copies "
            f"and patients whole ({part['groups']} in {part['n']} {found.shown} images)"
        )
    return e.section(
        "metrics",
        "How good",
        e.table("Value, 95 % interval in brackets, number of images", head, rows),
        e.paragraph(
            f"Intervals hold 95 %{drawn}. They tell of the choice of test images only, not of "
            "another training, another hospital or wrong labels."
        ),
        untested(found),
    )


def _seen(found: Found, split: str) -> str:
    return " (images trained on)" if found.result[split].get("trained_on") else ""


def classes(found: Found) -> Html:
    """The tables of figures per class."""
    return e.section(
        "classes",
        "Class by class",
        *(_classes(found, split) for split in reversed(SPLITS) if split in found.result),
        e.paragraph(
            "Precision depends on how frequent a class is among these images, which need not be "
            "how frequent it is among patients."
        ),
    )


def _classes(found: Found, split: str) -> Html:
    part = found.result[split]
    first = part["per_class"][part["classes"][0]]
    shown = {key: name for key, name in _CLASS_METRICS.items() if key in first}
    rows = [
        [
            name,
            part["per_class"][name]["support"],
            *(e.interval(part["per_class"][name][key], n=False) for key in shown),
        ]
        for name in part["classes"]
    ]
    return e.table(
        f"{split} split{_seen(found, split)}", ["class", "images", *shown.values()], rows, "dense"
    )


def confusion(found: Found) -> Html:
    """The confusion matrices."""
    return e.section(
        "confusion",
        "What is taken for what",
        *(
            e.matrix(
                f"{split} split{_seen(found, split)}: rows are true, columns predicted; shares are "
                "of the row",
                found.result[split]["classes"],
                found.result[split]["confusion_matrix"],
            )
            for split in reversed(SPLITS)
            if split in found.result
        ),
    )


def curves(found: Found) -> Html:
    """The learning curves."""
    result = found.result
    chosen = f"{result['epochs']} epochs; the weights of epoch {result['best_epoch']} are kept"
    if "validation" in result.get("trained_on", ()):
        chosen = f"{result['epochs']} epochs on training and validation images; the last is kept"
    picture = found.pictures.get("curves")
    return e.section(
        "curves",
        "Learning curves",
        e.figure(
            picture,
            "Loss and accuracy of training and validation images by epoch",
            f"{chosen}. {_losses(found)}".rstrip(),
        )
        or evaluate_again(found, "figures/curves.png is"),
    )


def _losses(found: Found) -> str:
    """How the two losses differ, as the run's configuration has it."""
    if (config := found.config) is None:
        return ""
    train = config.train
    switches = {
        "class weights": train.class_weights != "none",
        "augmentation": any(config.augment.values()),
        "dropout": config.model.head.dropout > 0,
        "label smoothing": train.label_smoothing > 0,
    }
    *most, last = [name for name, on in switches.items() if on] or [""]
    carried = f", with {' and '.join(filter(None, [', '.join(most), last]))}" if last else ""
    averaged = "averaged " if train.ema > 0 else ""
    return (
        f"The training loss is taken while the weights change{carried}; the validation loss is "
        f"that of the {averaged}weights at the end of an epoch{', without them' if last else ''}."
    )
