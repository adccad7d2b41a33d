"""The sections that say how much of a run's accuracy is real: audit, mistakes, explanations."""

from __future__ import annotations

from typing import Any

import numpy as np

from cxrjax.report import elements as e
from cxrjax.report import performance
from cxrjax.report.elements import Html
from cxrjax.report.files import Found

_MISTAKES = 10  # listed by name
_VIEWS = {
    "intact": "as they are",
    "without_lungs": "without lungs",
    "flat_lungs": "lungs of one grey",
    "lungs_only": "lungs only",
    "borders_only": "borders only",
    "centre_only": "without borders",
    "blurred_8x8": "blurred to 8x8 pixels",
    "markers_inpainted": "without markers",
}
_FIGURES = {
    "shortcuts": "One film as the network saw it in each view, and how well it did",
    "duplicates": "Pairs of near-duplicate films",
    "predictability": "How well the class is told without a look at the lungs",
    "sources": "Classes by source of the films",
    "label_doubts": "Films whose label contradicts what the lungs look like",
}


def audit(found: Found) -> Html:
    """Leaks, confounding, findings and the shortcut audit."""
    known = found.result["audit"]
    return e.section(
        "audit",
        "Reasons to doubt",
        e.bullets(known.get("summary", ())),
        _leaks(known["leaks"]),
        _confounding(known.get("confounding")),
        _shortcuts(found),
        _data_audit(found),
        *(
            e.figure(found.pictures.get(f"audit/{name}"), alt, f"{alt}.")
            for name, alt in _FIGURES.items()
        ),
    )


def _leaks(leaks: dict[str, Any]) -> Html:
    kinds = {
        "pairs": "pairs of near-duplicates",
        "exact_pairs": "of them equal to the pixel",
        "patients": "patients",
    }
    sides = list(leaks["pairs"])
    rows = [[what, *leaks[kind].values()] for kind, what in kinds.items() if kind in leaks]
    head = ["", *(" and ".join(side.split("-")) for side in sides)]
    return e.table("Leaks: what two splits have in common", head, rows)


def _confounding(found: dict[str, Any] | None) -> Html:
    """The table of sources by class, where the data name any."""
    if not found:
        return Html()
    names, *_ = found["table"].values()
    rows = [[source, *counts.values()] for source, counts in found["table"].items()]
    return e.table(
        f"Confounding: images by source and class, Cramer's V {found['cramers_v']:.2f} "
        "(0 none, 1 the source tells the class)",
        ["source", *names],
        rows,
    )


def _shortcuts(found: Found) -> Html:
    title = e.tag("h3", "Shortcuts")
    shortcuts = found.result["audit"].get("shortcuts")
    if not found.tested:
        return e.join([title, performance.untested(found)])
    if not shortcuts:
        again = ("cxrjax.audit", "--workdir", found.folder)
        return e.join([title, e.missing("The shortcut score was not measured", *again)])
    views = shortcuts["views"]
    order = sorted(views, key=lambda name: [*_VIEWS, name].index(name))
    keys = {"accuracy": "accuracy", "auroc": "AUROC"}
    rows = [
        [_VIEWS.get(name, name), *(e.interval(views[name][key]) for key in keys)] for name in order
    ]
    hidden = "of one grey" if shortcuts.get("without") == "flat_lungs" else "black"
    origin = f"; lungs from {shortcuts['lungs']}" if "lungs" in shortcuts else ""
    return e.join(
        [
            title,
            e.paragraph(
                "Shortcut score: ",
                e.interval(shortcuts["score"]),
                f". It is what the AUROC keeps above chance when the lungs are {hidden}, over what "
                "it had: 0 nothing, 1 everything. What depends on lungs is of films on which they "
                "were found.",
            ),
            e.table(
                f"The network on test images of which parts were taken away{origin}",
                ["images", *keys.values()],
                rows,
            ),
        ]
    )


def _data_audit(found: Found) -> Html:
    title = e.tag("h3", "Audit of the data")
    if found.audit is None:
        run = ("--workdir", found.folder)
        data = ("--config", found.folder / "config.json", "--out", found.folder / "audit")
        words = ("cxrjax.audit", *(run if found.tested else data))
        return e.join([title, e.missing("The whole audit is not here", *words)])
    findings = [finding["text"] for finding in found.audit["findings"]]
    n = found.audit["n"]
    told = e.bullets(findings) or e.paragraph(f"Nothing was found in {n} images.")
    rows = [
        [
            family.replace("_", " "),
            e.interval(of["auroc"]),
            "no disease changes it" if of["counts_as_finding"] else "disease may change it",
        ]
        for family, of in found.audit.get("predictability", {}).items()
        if of["auroc"]["value"] is not None
    ]
    if not rows:
        return e.join([title, told])
    caption = "How well a few plain numbers of a film tell its class, without a network"
    return e.join([title, told, e.table(caption, ["numbers of", "AUROC", ""], rows)])


def images(found: Found) -> Html:
    """Test images, and the mistakes that the network was surest of."""
    if not found.tested:
        return e.section("images", "Test images", performance.untested(found))
    return e.section(
        "images",
        "Test images",
        e.figure(
            found.pictures.get("test_images"),
            "Test images with true class, predicted class and its probability, wrong ones framed",
            "Some of the test images, wrong ones first.",
        )
        or performance.evaluate_again(found, "figures/test_images.png is"),
        _mistakes(found),
    )


def _mistakes(found: Found) -> Html:
    if "test" not in found.splits:
        return performance.evaluate_again(found, "predictions.csv is")
    test, classes = found.splits["test"], found.result["classes"]
    told, confidence = test.probabilities.argmax(axis=1), test.probabilities.max(axis=1)
    wrong = np.flatnonzero(told != test.labels)
    if not len(wrong):
        return e.paragraph("No test image is wrong.")
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]
    rows = [
        [test.names[i], classes[test.labels[i]], classes[told[i]], f"{confidence[i]:.3f}"]
        for i in worst
    ]
    return e.table(
        f"The surest of {len(wrong)} mistakes in {len(told)} test images",
        ["file", "true class", "predicted", "probability as trained"],
        rows,
    )


def explanations(found: Found) -> Html:
    """Where the evidence lies."""
    title = "Why it says so"
    if found.explained is None:
        out = found.folder / "explained"
        words: tuple[object, ...] = ("cxrjax.explain", "--workdir", found.folder, "--out", out)
        if not found.tested:
            words += ("--split", "validation")
        show = e.command("cxrjax.report", "--workdir", found.folder, "--explained", out)
        return e.section(
            "explanations",
            title,
            e.missing("Explanations were not given", *words),
            e.paragraph("Then ", show, " shows them.", class_="missing"),
        )
    told = found.explained
    shown = [name for name in found.pictures if name.startswith("panel/")]
    which = "wrong images" if told["only"] == "misclassified" else "images"
    where = "at the input" if told["stage"] is None else f"of {told['stage']}"
    panels = [
        e.figure(
            found.pictures[name],
            f"Film {name.partition('-')[2]}, maps of evidence for each class, and the map of the "
            "predicted class over the film",
            "",
        )
        for name in shown
    ]
    return e.section(
        "explanations",
        title,
        e.paragraph(
            f"{told['n']} {which} of the {told['split']} split, method {told['method']}, maps "
            f"{where}. A map says where the network found evidence, not that it is right."
        ),
        e.bullets(told["sentences"]),
        e.figure(
            found.pictures.get("explained/lung_share"),
            "Histograms of the share of evidence inside the lungs, by class and by right and wrong",
            "Share of the evidence that lies inside the lungs.",
        ),
        e.figure(
            found.pictures.get("explained/misclassified"),
            "Wrong images under the map of the predicted class",
            "Mistakes, the most confident first. The colours of all overlays share one scale.",
        ),
        e.tag("h3", f"{len(shown)} of {found.panels} panels") if shown else "",
        *panels,
    )
