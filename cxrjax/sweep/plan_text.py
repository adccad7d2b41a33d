"""The plan of a sweep as JSON and as lines for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cxrjax.sweep import plan as planning
from cxrjax.sweep.grid import Sweep
from cxrjax.sweep.measure import Meter
from cxrjax.sweep.plan import Cohort, Unit
from cxrjax.sweep.table import duration


def describe(units: Sequence[Unit], sweep: Sweep, meter: Meter, done: int) -> dict[str, Any]:
    """The plan as JSON: counts, seconds as of `Meter.seconds`, one entry for each compiled step."""
    programs: dict[str, dict[str, Any]] = {}
    for unit in units:
        for cohort in unit.cohorts:
            entry = programs.setdefault(cohort.program, _entry(cohort, unit, sweep, meter))
            entry["trials"] += len(cohort.points)
    seconds = [meter.seconds(unit) for unit in units]
    return {
        "trials": sum(len(unit.points) for unit in units),
        "already_finished": done,
        "units": len(units),
        "compiled_steps": len(programs),
        "trunk_passes_shared": any(unit.shared for unit in units),
        "seconds": None if None in seconds else round(sum(filter(None, seconds)), 1),
        "programs": list(programs.values()),
    }


def _entry(cohort: Cohort, unit: Unit, sweep: Sweep, meter: Meter) -> dict[str, Any]:
    cost = meter.cost(cohort)
    varied = planning.compiled_fields(sweep.grid)
    return {
        "values": {field: cohort.points[0].fields[field] for field in varied},
        "trials": 0,
        "mode": cohort.mode,
        "batch_size": cohort.config.train.batch_size,
        "images_at_once": unit.pass_size,
        "step_seconds": cost and cost.step_seconds,
        "trunk_seconds": cost and meter.trunk(unit),
        "compile_seconds": cost and cost.compile_seconds,
        "memory_bytes": cost and cost.memory,
    }


def plan_text(told: dict[str, Any], device: str) -> str:
    """The plan for a terminal."""
    lines = [
        f"plan: {told['trials']} trials in {told['units']} units, {told['compiled_steps']} "
        f"compiled steps ({told['already_finished']} trials finished before), on {device}"
    ]
    if told["programs"]:
        lines.append("trials  how                step of all  frozen pass   memory  what")
    for entry in told["programs"]:
        what = ", ".join(f"{field}={value}" for field, value in entry["values"].items())
        lines.append(
            f"{entry['trials']:6}  {entry['mode']:18} {_seconds(entry['step_seconds']):>11}  "
            f"{_seconds(entry['trunk_seconds']):>11}  {_bytes(entry['memory_bytes']):>7}  "
            f"{what or 'the same step for all'}"
        )
    if told["trials"]:
        seconds = told["seconds"]
        if seconds is None:
            lines.append("time: unknown, a trial does not fit the device")
        else:
            lines.append(
                f"time: about {duration(seconds)}, less by early stopping, without compiling and "
                "what is made of the winner"
            )
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    if value is None:
        return "too large"
    if value == 0:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _bytes(value: int | None) -> str:
    return "-" if not value else f"{value / 1e9:.1f} GB" if value > 1e9 else f"{value / 1e6:.0f} MB"
