"""`python -m cxrjax.decide --workdir DIR`: what a run is worth against PCR, and to whom."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrjax import cli, verdict
from cxrjax.errors import UserError, writing

if TYPE_CHECKING:
    from cxrjax.predictions import Run

_EPILOG = """\
Writes decision.json and figures/decision.png into the run folder. Value, costs and PCR's
specificity are illustrations, set your own: they decide the answer. PCR's sensitivity is the one
the four-class report cites. Without --prevalence the test split's own is taken, which says
nothing of any hospital.
example:
  python -m cxrjax.decide --workdir runs/densenet4 --prevalence .05 --value 500 --pcr-cost 40
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted.
"""
_COUNTS = {  # flag: default, range, what
    "--value": (100.0, (0, 1e9), "V: worth of finding a true case early"),
    "--cost-weight": (1.0, (0, 1e9), "A: importance of cost"),
    "--false-positive-cost": (20.0, (0, 1e9), "F: cost of a false alarm"),
    "--xray-cost": (5.0, (0, 1e9), "C of an X-ray read by the run"),
    "--pcr-cost": (20.0, (0, 1e9), "C of a PCR test"),
    "--pcr-sensitivity": (0.985, (0, 1), "S of PCR"),
    "--pcr-specificity": (0.99, (0, 1), "of PCR"),
    "--prevalence": (None, (0, 1), "P: share of the disease among those tested"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(
        "cxrjax.decide",
        "Net benefit of a run against PCR, as the four-class report has it and "
        "corrected, and its decision curve.",
        _EPILOG,
    )
    parser.add_argument("--workdir", metavar="DIR", required=True, help="a finished run")
    parser.add_argument(
        "--disease", metavar="CLASS", help="the class to be found (default: the one named COVID)"
    )
    for flag, (default, _, what) in _COUNTS.items():
        told = "that of the test split" if default is None else f"{default:g}"
        parser.add_argument(
            flag, type=float, default=default, metavar="X", help=f"{what} (default {told})"
        )
    parser.add_argument(
        "--resamples", type=int, default=10_000, metavar="N", help="default %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, default %(default)s")
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    for flag, (_, (low, high), _) in _COUNTS.items():
        value = getattr(arguments, flag[2:].replace("-", "_"))
        if value is not None and not low <= value <= high:
            raise UserError(f"{flag} is {value:g}; it must lie in [{low:g}, {high:g}].")
    if arguments.resamples < 100:
        raise UserError(f"--resamples is {arguments.resamples}; give 100 or more.")
    if arguments.seed < 0:
        raise UserError(f"--seed is {arguments.seed}; give 0 or more.")

    from cxrjax import decision_report, evaluation_figures, log, predictions

    folder = Path(arguments.workdir)
    run = predictions.read(folder)
    disease = _disease(run, arguments.disease)
    looks = predictions.looks(folder, run.result)
    found = decision_report.make(run, disease, arguments)
    found |= {"test_looks": looks.here, "test_looks_elsewhere": looks.elsewhere}
    with writing(folder, "free some room or copy the run elsewhere"):
        (folder / "figures").mkdir(exist_ok=True)
        log.write_json(folder / "decision.json", found)
        evaluation_figures.decision(found, folder / "figures" / "decision.png")
    print(page(found))
    print(f"{looks}; decision.json and figures/decision.png are in {folder}")
    return 0


def _disease(run: Run, asked: str | None) -> int:
    name = asked or "COVID"
    found = [k for k, of in enumerate(run.classes) if of == name] or [
        k for k, of in enumerate(run.classes) if of.lower() == name.lower()
    ]
    if len(found) == 1:
        return found[0]
    what = "several classes are" if found else "no class is"
    choices = ", ".join([run.classes[k] for k in found] or run.classes)
    raise UserError(f"{run.folder}: {what} named {name}; name one by --disease: {choices}.")


def page(found: dict[str, Any]) -> str:
    """The decision page as lines of text."""
    report, corrected, xray = found["report"], found["corrected"], found["xray"]
    assumed = found["assumptions"]
    sign = ">" if report["xray_preferable"] else "<="
    lines = [
        f"disease {found['disease']}, prevalence P = {assumed['prevalence']:.3g}; V = "
        f"{assumed['value']:g}, A = {assumed['cost_weight']:g}, F = "
        f"{assumed['false_positive_cost']:g}; C: X-ray {assumed['xray_cost']:g}, PCR "
        f"{assumed['pcr_cost']:g} (illustrations unless you set them)",
        f"X-ray: sensitivity {verdict.interval(xray['sensitivity'])} n="
        f"{xray['sensitivity']['n']}, specificity {verdict.interval(xray['specificity'])} n="
        f"{xray['specificity']['n']}; at P: PPV {verdict.interval(xray['ppv'])}, NPV "
        f"{verdict.interval(xray['npv'])}",
        f"PCR: sensitivity {assumed['pcr_sensitivity']:g}, specificity "
        f"{assumed['pcr_specificity']:g}; at P: PPV {verdict.short(found['pcr']['ppv'])}, NPV "
        f"{verdict.short(found['pcr']['npv'])}",
        f"as the report has it, P S V - A C with S = accuracy {report['sensitivity']:.3f}: X-ray "
        f"{report['xray']:.2f}, PCR {report['pcr']:.2f}; P V (S_xray - S_pcr) = "
        f"{report['left']:.3g} {sign} A (C_xray - C_pcr) = {report['right']:.3g}; "
        f"{_turn(report['break_even_prevalence'])}",
        "corrected, P S V - (1 - P) (1 - specificity) F - A C with the recall as S: X-ray "
        f"{_wide(corrected['xray'])}, PCR {corrected['pcr']:.2f}, difference "
        f"{_wide(corrected['difference'])}: {corrected['finding']}; "
        f"{_turn(corrected['break_even_prevalence'])}",
        f"decision curve: {_useful(found['decision_curve'])}",
    ]
    return "\n".join(lines)


def _wide(metric: dict[str, Any]) -> str:
    return f"{metric['value']:.2f} [{metric['low']:.2f}, {metric['high']:.2f}]"


def _turn(prevalence: float | None) -> str:
    if prevalence is None:
        return "the answer is the same at every prevalence"
    return f"both are worth the same at a prevalence of {prevalence:.3g}"


def _useful(curve: dict[str, Any]) -> str:
    """Between which thresholds the model beats treating all and none, beyond the interval."""
    inside = [t for t, useful in zip(curve["threshold"], curve["useful"], strict=True) if useful]
    if not inside:
        return "at no threshold better than both treating all and treating none"
    return (
        "better than treating all and treating none, beyond the 95 % interval, at "
        f"{len(inside)} of {len(curve['threshold'])} thresholds, from {min(inside):.2f} to "
        f"{max(inside):.2f}"
    )


if __name__ == "__main__":
    sys.exit(main())
