"""The `cxrjax` console script and what every command line shares: overrides, errors, exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from cxrjax.errors import UserError

COMMANDS = {
    "train": ("cxrjax.main", "train a classifier and evaluate it once on the test split"),
    "sweep": ("cxrjax.sweep.__main__", "train every point of a grid, finish the best one"),
    "compare": ("cxrjax.compare", "compare runs on the same test images, pair by pair"),
    "decide": ("cxrjax.decide", "what a run is worth against PCR, and its decision curve"),
    "data": ("cxrjax.data.__main__", "prepare, explore, or write phantom data"),
    "audit": ("cxrjax.audit.__main__", "reasons to doubt a data set, and a run trained on it"),
    "lungs": ("cxrjax.lungs.__main__", "train or evaluate the lung segmentation"),
    "bench": ("cxrjax.bench.__main__", "measure throughput, alone or against peers"),
    "report": ("cxrjax.report.__main__", "a finished run as one self-contained HTML page"),
    "explain": ("cxrjax.explain.__main__", "maps of evidence of a finished run, and their scores"),
    "predict": ("cxrjax.predict", "what a finished run says of images, files or folders"),
    "convert": ("cxrjax.convert", "convert pretrained weights, list the networks"),
}
BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `cxrjax COMMAND ...`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: cxrjax COMMAND ...  (cxrjax COMMAND --help tells more)\n\ncommands:")
        for name, (module, what) in COMMANDS.items():
            short = module.removesuffix(".__main__")
            print(f"  {name:10}{what}; also python -m {short}")
        return 0 if arguments else BAD_INPUT
    if arguments[0] == "--version":
        from cxrjax import __version__

        print(__version__)
        return 0
    if arguments[0] not in COMMANDS:
        choices = ", ".join(COMMANDS)
        print(
            f"cxrjax: unknown command {arguments[0]!r}; choose one of {choices}.", file=sys.stderr
        )
        return BAD_INPUT
    return importlib.import_module(COMMANDS[arguments[0]][0]).main(arguments[1:])


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad input is one sentence for all of a command line, without the usage before it."""
        raise UserError(f"{message}; {self.prog} --help tells more.")


def parser(module: str, description: str | None, epilog: str | None) -> argparse.ArgumentParser:
    """The parser of `python -m module`: texts as they stand, no abbreviated flags.

    Its mistakes are UserErrors: parse within `guarded`.
    """
    return _Parser(
        prog=f"python -m {module}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def parse_overrides(arguments: Sequence[str]) -> dict[str, str]:
    """Turns leftover arguments such as `--config.train.epochs=3` (or `... 3`) into a dict.

    Raises:
      UserError: for anything that is not a config override.
    """
    return parse_settings(arguments, ("config",))[0]


def parse_settings(arguments: Sequence[str], sections: Sequence[str]) -> tuple[dict[str, str], ...]:
    """Turns leftover arguments such as `--config.train.epochs=3` into a dict for each section.

    Args:
      sections: first words that are known, such as "config".
    Raises:
      UserError: for any other argument.
    """
    found: dict[str, dict[str, str]] = {section: {} for section in sections}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        section, dot, name = argument.removeprefix("--").partition(".")
        if not argument.startswith("--") or not dot or section not in found:
            raise UserError(
                f"unknown argument {argument}; settings are given as --config.field=value, "
                "the rest is in --help."
            )
        field, equals, value = name.partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise UserError(f"{argument} needs a value: {argument}=VALUE.")
            value = rest.pop(0)
        found[section][field] = value
    return tuple(found.values())


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Runs a command line; bad input becomes one sentence and exit code 2, a signal becomes 130."""
    before = signal.signal(signal.SIGTERM, _terminate)
    with contextlib.suppress(AttributeError):  # not a text file: a caller's own stream
        # A name that is not of the terminal's encoding is shown as far as it goes.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        code = run(argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"cxrjax: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        print(f"cxrjax: interrupted{': ' + str(error) if str(error) else '.'}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`): not an error of ours. Keep the exit quiet.
        _close_output()
        return 1
    except (OSError, MemoryError, RecursionError) as error:
        print(f"cxrjax: {_reason(error)}", file=sys.stderr)
        if getattr(error, "filename", None) is None:
            _close_output()  # a full disk behind standard output, maybe: say it once
        return BAD_INPUT
    finally:
        signal.signal(signal.SIGTERM, before)


def _close_output() -> None:
    """What is still to be printed goes nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reason(error: OSError | MemoryError | RecursionError) -> str:
    """One sentence for what no command has told better itself."""
    if isinstance(error, OSError):
        reason = (error.strerror or str(error)).lower()
        place = "standard output, maybe" if error.filename is None else repr(error.filename)
        return f"a file cannot be used: {reason} ({place}); name another, or mend its place."
    if isinstance(error, MemoryError):
        return f"not enough memory ({error or 'for an array'}); ask for less or free some."
    return "something in the input is nested too deeply to be read; make it flatter."


def _terminate(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
