"""Whether maps may be believed: faithfulness, random weights, agreement, on a bounded sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxrjax.errors import UserError
from cxrjax.explain import consensus, perturbation, pictures, sanity
from cxrjax.explain.maps import Explained, Explainer
from cxrjax.explain.methods import AT_INPUT
from cxrjax.trained import Trained


@dataclass(frozen=True)
class Plan:
    """How many images each check takes at most, 0 for none, and what maps are compared with."""

    faithfulness: int
    sanity: int
    agreement: int  # between methods
    methods: tuple[str, ...] = ()  # further ones; none: `consensus.COMPANIONS`
    against: tuple[str, ...] = ()  # folders of finished runs


@dataclass(frozen=True)
class Checker:
    """A plan with everything opened that it names."""

    plan: Plan
    own: Explainer
    methods: tuple[Explainer, ...]
    runs: tuple[Explainer, ...]


def prepare(run: Trained, plan: Plan, method: str, stage: str | None, split: str) -> Checker:
    """Opens what a plan names, before anything is computed.

    Raises:
      UserError: for unknown methods or stages, a stage that no method named looks at, and runs
        that cannot be compared.
    """
    own = Explainer(run, method, stage)
    if stage and all(name in AT_INPUT for name in (method, *plan.methods)):
        raise UserError(
            f"--stage is {stage}, but {' and '.join((method, *plan.methods))} "
            f"look{'' if plan.methods else 's'} at the input; leave --stage out or name another "
            "--method."
        )
    methods = plan.methods or tuple(name for name in consensus.COMPANIONS if name != method)
    return Checker(
        plan,
        own,
        tuple(Explainer(run, name, stage) for name in methods),
        tuple(
            Explainer(other, method, stage)
            for other in consensus.open_runs(run, plan.against, split)
        ),
    )


def sample(found: Explained, most: int) -> Explained:
    """At most that many of the images, drawn at random, in their order."""
    n = len(found.labels)
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(0).permutation(n)[:most]] = True
    return found.take(chosen)


def write(checker: Checker, found: Explained, out: Path) -> tuple[dict[str, Any], list[str]]:
    """Runs the checks and draws `checks.png` into `out`.

    Args:
      found: the images explained, at least one.
    Returns:
      `faithfulness` (see `perturbation.faithfulness`), `randomisation` (see `sanity.check`) and
      `agreement` of `methods` and `runs` (see `consensus.pairs`), where they were asked for; and
      sentences.
    """
    plan, own = checker.plan, checker.own
    checked: dict[str, Any] = {}
    said = []
    if plan.faithfulness:
        of = sample(found, plan.faithfulness)
        checked["faithfulness"] = perturbation.faithfulness(
            own.run.predict,
            of.images,
            of.raw_of_predicted,
            of.grid,
            of.predicted,
            of.groups,
        )
        said += perturbation.sentences(checked["faithfulness"])
    if plan.sanity:
        of = sample(found, plan.sanity)
        checked["randomisation"] = sanity.check(own, of.images, of.predicted, of.groups)
        said.append(sanity.sentence(checked["randomisation"], own.method))
    agreement = {}
    if plan.agreement:
        of = sample(found, plan.agreement)
        agreement["methods"] = consensus.between_methods(
            {own.method: consensus.Maps(of.raw_of_predicted, of.grid)},
            checker.methods,
            of.images,
            of.predicted,
            of.groups,
        )
    if checker.runs:
        agreement["runs"] = consensus.between_runs(
            own, found.raw_of_predicted, checker.runs, found.names, found.predicted, found.groups
        )
    for what, compared in agreement.items():
        said += consensus.sentences(compared, what)
    if agreement:
        checked["agreement"] = agreement
    if checked:
        pictures.checks(out / "checks.png", checked, own.method)
    return checked, said
