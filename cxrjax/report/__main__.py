"""`python -m cxrjax.report --workdir DIR`: a finished run as one self-contained HTML page."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cxrjax import cli
from cxrjax.errors import MALFORMED, UserError, writing

_EPILOG = """\
examples:
  python -m cxrjax.report --workdir runs/densenet4
  python -m cxrjax.report --workdir runs/densenet4 --explained explained --out densenet4.html
The page needs nothing beside it: no other file, no network, no script. What the run lacks (the
audit, the test, explanations) is left out, with the command that makes it. Nothing is computed
anew, and the test split is not read.
exit codes: 0 done, 2 bad input (one sentence on standard error), 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("cxrjax.report", __doc__, _EPILOG)
    parser.add_argument("--workdir", metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument("--out", metavar="FILE", help="default: WORKDIR/report.html")
    parser.add_argument(
        "--explained", metavar="DIR", help="what cxrjax.explain wrote of this run, to be shown too"
    )
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)
    folder = Path(arguments.workdir)
    out = Path(arguments.out) if arguments.out else folder / "report.html"
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out is {out}; name a file that ends in .html.")

    from cxrjax import log
    from cxrjax.report import files, page

    found = files.gather(folder, Path(arguments.explained) if arguments.explained else None)
    try:
        text = page.make(found)
    except MALFORMED as error:
        raise files.blamed(found, error, page.make) from error
    with writing(out, "choose another --out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(out, text)
    print(f"{out} ({len(text.encode()) / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
