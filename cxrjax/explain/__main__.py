"""`python -m cxrjax.explain`: maps of evidence of a finished run, and where the evidence lies."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cxrjax import cli

_EPILOG = """\
examples:
  python -m cxrjax.explain --workdir runs/densenet4 --out explained
  python -m cxrjax.explain --workdir runs/densenet4 --only misclassified --method layer_cam \\
      --out explained
  python -m cxrjax.explain --workdir runs/seed0 --against runs/seed1 runs/seed2 --out explained
writes panels/*.png, misclassified.png, lung_share.png, checks.png, explanations.jsonl (a line per
image: raw map statistics and shares for the predicted class) and summary.json (means, 95 %
intervals, checks); pictures of an earlier call in the same folder are replaced or deleted.
checks of the maps of the predicted class, on images drawn from those explained:
  --faithfulness  deletion and insertion, pixels imputed (ROAD), against the same maps shuffled and
                  against the middle of the film
  --sanity        weights made random layer by layer from the logits down; passed where the 95 %
                  interval of the size of the rank correlation, all random, lies below 0.5
  --agreement     rank correlation between methods (one alone: with grad_cam, layer_cam and
                  ablation_cam)
  --against       the same between runs, on all images explained
methods at the input take 16 passes for each map: give them a smaller --sanity.
methods: see cxrjax/explain/methods.py; grad_cam, grad_cam++, hires_cam, layer_cam, ablation_cam,
integrated_gradients, smooth_grad.
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("cxrjax.explain", __doc__, _EPILOG)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write to")
    parser.add_argument(
        "--split", choices=("train", "validation", "test"), default="test", help="default test"
    )
    parser.add_argument(
        "--only", choices=("all", "misclassified"), default="all", help="default %(default)s"
    )
    parser.add_argument(
        "--method",
        default="grad_cam",
        metavar="NAME[,NAME]",
        help="default %(default)s; further ones are compared with the first",
    )
    parser.add_argument("--stage", metavar="NAME", help="default: the network's last maps")
    parser.add_argument(
        "--panels", type=int, default=40, metavar="N", help="at most (default %(default)s)"
    )
    for check in ("faithfulness", "sanity", "agreement"):
        parser.add_argument(
            f"--{check}",
            type=int,
            default=16,
            metavar="N",
            help="images of that check, 0: none (default %(default)s)",
        )
    parser.add_argument(
        "--against", metavar="RUN", nargs="+", default=[], help="finished runs of the same data"
    )
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)

    from cxrjax import config as config_lib
    from cxrjax import log, lungs, runtime, trained
    from cxrjax.data.ledger import Looks
    from cxrjax.errors import UserError, writing
    from cxrjax.explain import checks, report

    out = Path(arguments.out)
    for option in ("panels", "faithfulness", "sanity", "agreement"):
        if getattr(arguments, option) < 0:
            raise UserError(f"--{option} must be 0 or more.")
    method, *more = dict.fromkeys(name.strip() for name in arguments.method.split(","))
    plan = checks.Plan(
        faithfulness=arguments.faithfulness,
        sanity=arguments.sanity,
        agreement=arguments.agreement,
        methods=tuple(more),
        against=tuple(arguments.against),
    )
    file = Path(arguments.workdir) / "config.json"
    cache = config_lib.load(str(file)).data.cache if file.is_file() else ""
    runtime.start(runtime.cache_root(cache) / "compiled")
    run = trained.load(arguments.workdir)
    with writing(out, "choose another --out"):
        (out / "panels").mkdir(parents=True, exist_ok=True)
        summary = report.write(
            run,
            out,
            split=arguments.split,
            only_wrong=arguments.only == "misclassified",
            method=method,
            stage=arguments.stage,
            panels=arguments.panels,
            plan=plan,
            segment=lungs.masks,
        )
        log.write_json(out / "summary.json", summary)
    looks = Looks(summary["test_looks"], summary["test_looks_elsewhere"])
    last = f"{summary['n']} images explained; see {out}; {looks}"
    print("\n".join([*summary["sentences"], last]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
