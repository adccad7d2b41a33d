"""`python -m cxrjax.predict`: what a finished run says of images, a JSON line for each."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cxrjax import cli

_EPILOG = """\
examples:
  python -m cxrjax.predict --workdir runs/densenet4 film.png another.jpg
  python -m cxrjax.predict --workdir runs/densenet4 folder --overlay overlays > predictions.jsonl
A line holds file, class, probabilities, abstained and warnings; `class` is null where the file
cannot be read or the run abstains. Not for diagnosis.
exit codes: 0 done, 1 some files could not be read, 2 bad input, 130 interrupted.
"""
_BATCH = 32
_REMEDY = "choose another --overlay"
_ODD = 1.5  # ratio of the sides above which stretching to a square is worth a warning


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and runs it; returns the exit code."""
    return cli.guarded(_run, sys.argv[1:] if argv is None else argv)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser("cxrjax.predict", __doc__, _EPILOG)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="image files and folders")
    parser.add_argument("--workdir", metavar="DIR", required=True, help="folder of a finished run")
    parser.add_argument("--overlay", metavar="DIR", help="folder for Grad-CAM pictures")
    return parser


def _run(argv: Sequence[str]) -> int:
    arguments = _parser().parse_args(argv)

    from cxrjax import log, runtime, trained
    from cxrjax.errors import writing

    files = list(find(arguments.paths))
    runtime.start(runtime.cache_root("") / "compiled")
    run = trained.load(arguments.workdir)
    overlays = Path(arguments.overlay) if arguments.overlay else None
    if overlays is not None:
        with writing(overlays, _REMEDY):
            overlays.mkdir(parents=True, exist_ok=True)
    failed = False
    for line in log.progress(
        predictions(run, files, overlays), total=len(files), what="predicting", unit="images"
    ):
        failed |= "error" in line
        log.tell(log.json_line(line).rstrip())
    return 1 if failed else 0


def find(paths: Sequence[str]) -> Iterator[Path]:
    """The files named, and the images in the folders named, sorted.

    Links are followed, and hidden files and masks left out, as where a network is trained.

    Raises:
      UserError: for a path that is not there, a folder that cannot be read, or one without images.
    """
    from cxrjax import log
    from cxrjax.data.folder import films
    from cxrjax.data.images import is_image
    from cxrjax.data.sources import open_files
    from cxrjax.errors import UserError

    for path in map(Path, paths):
        if path.is_dir():
            names = [name for name in open_files(path).names if is_image(name)]
            inside = films(names)
            if masks := len(names) - len(inside):
                log.say(f"{path}: passed over {masks} files in folders of masks or lesions")
            if not inside:
                raise UserError(f"{path} holds no PNG, JPEG, WebP or DICOM film; name another.")
            yield from sorted(path / name for name in inside)
        elif path.is_file():
            yield path
        else:
            raise UserError(f"{path} does not exist; name image files or folders of them.")


def calibration(folder: Path) -> tuple[float, float]:
    """(temperature, least probability to decide) of the run's calibration.json; (1, 0) without.

    The temperature applies as softmax(log(p) / temperature), the threshold after it.

    Raises:
      UserError: when the file is there and does not hold such numbers.
    """
    from cxrjax import log
    from cxrjax.calibration import SEEN
    from cxrjax.errors import MALFORMED, UserError

    path = folder / "calibration.json"
    if not path.is_file():
        return 1.0, 0.0
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        fitted = (found.get("temperature") or {}).get("value")
        temperature = 1.0 if fitted is None else float(fitted)
        threshold = float((found.get("abstention") or {}).get("threshold") or 0.0)
        if not (0 < temperature < float("inf") and 0 <= threshold <= 1):
            raise ValueError("temperature or threshold out of range")
        if found.get("fitted_on_training_images"):
            log.say(f"{path} {SEEN}")
    except (OSError, *MALFORMED) as error:
        raise UserError(f"{path} cannot be used ({error}); delete it or calibrate anew.") from error
    return temperature, threshold


def predictions(run: Any, files: Sequence[Path], overlays: Path | None) -> Iterator[dict[str, Any]]:
    """A JSON object for each file, in order; an unreadable one carries `error`.

    Args:
      run: a `trained.Trained`.
      overlays: where to write Grad-CAM pictures of the predicted class, or None.
    Raises:
      UserError: when one cannot be written.
    """
    import numpy as np

    from cxrjax.calibration import scaled
    from cxrjax.data.batches import filled
    from cxrjax.errors import writing
    from cxrjax.explain.maps import Explainer, enlarge
    from cxrjax.explain.pictures import save_overlay, shortened

    temperature, threshold = calibration(run.folder)
    explainer = Explainer(run) if overlays is not None else None
    size = min(_BATCH, len(files))
    for start in range(0, len(files), size):
        lines, kept, films = [], [], []
        for file in files[start : start + size]:
            film, line = _read(file, run.image_size)
            if film is not None:
                kept.append(line)
                films.append(film)
            lines.append(line)
        if kept:
            images, found = run.see(films)
            padded, maps = filled(images, size), None
            for line, lungs in zip(kept, found, strict=True):
                if not lungs:
                    line["warnings"].append("no lungs are found; the whole film is taken")
            if explainer is not None:
                probabilities, maps = explainer(padded)
            else:
                probabilities = run.predict(padded, size)
            probabilities = scaled(probabilities, temperature)
            for i, line in enumerate(kept):
                chosen = int(probabilities[i].argmax())
                if not np.isfinite(probabilities[i]).all():
                    line["error"] = "the network's answer is no number"
                    continue
                line["abstained"] = bool(probabilities[i, chosen] < threshold)
                line["class"] = None if line["abstained"] else run.classes[chosen]
                line["probabilities"] = dict(
                    zip(run.classes, map(float, probabilities[i]), strict=True)
                )
                if explainer is not None and maps is not None and overlays is not None:
                    evidence = enlarge(maps[i, chosen], explainer.grid)
                    number = files.index(Path(line["file"]), start)
                    out = overlays / f"{number:05}-{shortened(Path(line['file']).stem)}.png"
                    with writing(overlays, _REMEDY):
                        save_overlay(out, images[i], evidence, float(evidence.max()))
                    line["overlay"] = str(out)
        yield from lines


def _read(file: Path, side: int) -> tuple[Any, dict[str, Any]]:
    """The film uint8 [H, W], or None, and its line without a prediction.

    Args:
      side: of the images that the network takes, pixels.
    """
    from cxrjax.data import images, sources

    line: dict[str, Any] = {
        "file": str(file),
        "class": None,
        "probabilities": None,
        "abstained": True,
        "warnings": [],
    }
    try:
        image = images.decode(sources.read_file(file, file.name), file.name)
    except images.BrokenImage as error:
        line["error"] = error.reason
        return None, line
    height, width = image.shape
    if max(height, width) > _ODD * min(height, width):
        line["warnings"].append(f"{width}x{height} pixels are stretched to a square")
    if min(height, width) < side:
        line["warnings"].append(f"{width}x{height} pixels are enlarged to {side}x{side}")
    if int(image.max()) - int(image.min()) < 16:
        line["warnings"].append("the image is all but blank")
    return image, line


if __name__ == "__main__":
    sys.exit(main())
