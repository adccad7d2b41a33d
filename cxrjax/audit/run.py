"""The two audits as the command runs them: files written, findings in words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cxrjax import log, predictions, trained, verdict
from cxrjax.audit import data_audit, figures, shortcuts
from cxrjax.config import Config
from cxrjax.data import dataset
from cxrjax.data.dataset import Dataset
from cxrjax.data.ledger import Looks
from cxrjax.errors import UserError, writing


def data_set(config: Config, folder: Path) -> tuple[dict[str, Any], Dataset]:
    """Audits a configuration's data set and draws its figures into `folder`.

    Returns:
      `data_audit.audit`'s report, with `seconds`: to prepare the data (decode, find copies, split;
      nothing where that is cached) and in total; and the data set.
    """
    start = time.perf_counter()
    data = dataset.prepare(config)
    prepared = time.perf_counter() - start
    source = dataset.open_source(config.data)
    report = data_audit.audit(data, source)
    with writing(folder, "choose another --out"):
        if len(data.copies.pairs):
            figures.duplicates(data.store, data.copies, folder / "duplicates.png")
        if any(told["auroc"]["value"] is not None for told in report["predictability"].values()):
            figures.predictability(report, folder / "predictability.png")
        if report["sources"]["cramers_v"]["value"] is not None:
            figures.sources(report, folder / "sources.png")
        if report["label_doubts"]["examples"]:
            figures.label_doubts(data.store, report["label_doubts"], folder / "label_doubts.png")
    seconds = {"prepare": prepared, "total": time.perf_counter() - start}
    return report | {"seconds": {k: round(s, 2) for k, s in seconds.items()}}, data


def trained_run(workdir: Path, config: Config, data: Dataset, folder: Path) -> dict[str, Any]:
    """Audits a finished run's network on the test split; its result.json gets verdict and looks.

    Returns:
      `shortcuts`, see `shortcuts.measure`, `verdict`, `test_looks` and `test_looks_elsewhere` (in
      other splits), and `findings` as those of the data.
    Raises:
      UserError: when the run is not finished or was trained on other data.
    """
    run = trained.load(workdir)
    if (run.digest, run.fingerprint) != (data.digest, data.fingerprint):
        raise UserError(
            f"{workdir} was trained on other data or another split than those found now; point "
            "--config.data.dir at the original data."
        )
    result = result_of(workdir)
    looks = dataset.record_test_look(data, f"audit of {workdir}")
    result["test_looks"] = looks.here
    found = shortcuts.of_split(
        run.predict,
        data,
        data.splits["test"],
        without=shortcuts.deprived(run.frame),
        resamples=config.eval.resamples,
    )
    image, mask = shortcuts.example(data, data.splits["test"])
    with writing(folder, "choose another --out"):
        figures.shortcut_views(found, image, mask, folder / "shortcuts.png")
    result["audit"]["shortcuts"] = found
    result["verdict"] = verdict.line(result)
    with writing(workdir, "make it writable"):
        log.write_json(workdir / "result.json", result)
    score, findings = found["score"], []
    if "CONFOUNDED" in verdict.word(0, score):
        shown = data_audit.interval(score)
        text = f"the network tells the classes without lungs: shortcut score {shown}"
        findings.append({"kind": "shortcuts", "text": text})
    return {
        "shortcuts": found,
        "findings": findings,
        "verdict": result["verdict"],
        "test_looks": looks.here,
        "test_looks_elsewhere": looks.elsewhere,
    }


def summary(report: dict[str, Any]) -> str:
    """The lines printed at the end: findings, or that there are none; then the verdict on a run."""
    n = report["n"]
    lines = [f"finding: {finding['text']}" for finding in report["findings"]]
    if not lines:
        lines = [f"nothing found in {n} images"]
    if "verdict" in report:
        looks = Looks(report["test_looks"], report["test_looks_elsewhere"])
        lines += [report["verdict"], str(looks)]
    return "\n".join(lines)


def result_of(workdir: Path) -> dict[str, Any]:
    """The content of a run's result.json.

    Raises:
      UserError: when the run is not finished, its file is damaged, or it left the test split alone.
    """
    result = predictions.result_of(workdir)
    if "test" not in result:
        raise predictions.untested(workdir)
    with predictions.understood(workdir):
        verdict.line(result)  # what cannot be told afterwards costs no look
    return result
