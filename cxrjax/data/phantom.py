"""Procedural chest radiographs with known lungs, known lesions and planted faults."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from PIL import Image

from cxrjax import log
from cxrjax.data import phantom_texture as texture
from cxrjax.data.phantom_anatomy import Chest, attenuation, step
from cxrjax.data.phantom_lesions import CLASSES, draw_lesion
from cxrjax.data.phantom_patient import changed, draw_anatomy
from cxrjax.data.sources import Record
from cxrjax.errors import UserError, writing

__all__ = ["CLASSES", "PhantomSource", "write_folder"]

VERSION = 1  # raise it with any change of what is drawn: stores are kept by fingerprint
_SMALLEST_RENDERING = 128  # smaller films are averaged down from a larger one, like a detector
_SIZES = (8, 4096)
# Streams of random numbers of one image, so that drawing more in one never moves another.
_PATIENT, _TISSUE, _LESION, _FILM, _COPY, _FAULTS = range(6)
# 5x7 letters of the source markers, one row per integer.
_LETTERS = {
    "clear": (17, 17, 17, 31, 17, 17, 17),  # H
    "consolidation": (30, 17, 17, 30, 16, 16, 16),  # P
    "ground_glass": (14, 17, 16, 23, 17, 17, 14),  # G
    "perihilar": (31, 4, 4, 4, 4, 4, 4),  # T
}
_MARKER_HEIGHT = 0.085  # of the film


class PhantomSource:
    """Implements `cxrjax.data.sources.Source`; image `i` depends on nothing but (seed, i) and,
    for a planted copy, on its original, so that images can be made in any order and anywhere.

    labels follow `records`; `true_labels` int32 [count] are those before label noise;
    `duplicate_of` int32 [count] is the original of a planted copy, else -1;
    `marked` bool [count] tells whose film bears a source marker.
    """

    classes = CLASSES

    def __init__(
        self,
        count: int,
        seed: int = 0,
        marker: float = 0.0,
        duplicates: float = 0.0,
        label_noise: float = 0.0,
    ):
        """
        Args:
          count: images, as many of each class as the number allows.
          seed: not negative.
          marker: probability that an image bears a burnt-in tag whose letter and place tell its
            true class; the other images bear none.
          duplicates: fraction of images that are near-copies (another exposure, noise and up to
            1.5 degrees) of another image, under a name and patient of their own.
          label_noise: fraction of images with a wrong label.
        Raises:
          UserError: when a value is impossible.
        """
        if count < len(CLASSES) or seed < 0:
            raise UserError(
                f"config.data.phantom has count {count} and seed {seed}; count must be at least "
                f"{len(CLASSES)} and seed not negative."
            )
        rates = {"marker": marker, "duplicates": duplicates, "label_noise": label_noise}
        for name, rate in rates.items():
            limit = 1.0 if name == "marker" else 0.5
            if not 0 <= rate <= limit:
                raise UserError(
                    f"config.data.phantom.{name} is {rate}; it must lie in [0, {limit:g}]."
                )
        self._parameters = {"count": count, "seed": seed, **rates}
        self._seed = seed
        self.true_labels = _balanced_labels(count, seed)
        self.duplicate_of = self._plant_copies(round(duplicates * count))
        labels = self._plant_label_noise(round(label_noise * count))
        draws = np.array([self._rng(_FAULTS, i).random() for i in range(count if marker else 0)])
        self.marked = draws < marker if marker else np.zeros(count, bool)
        copies = self.duplicate_of >= 0
        self.marked[copies] = self.marked[self.duplicate_of[copies]]
        self.records = tuple(
            Record(
                name=f"{CLASSES[label]}/phantom-{i:06d}.png",
                label=int(label),
                # Nobody knows that a copy shows another's patient: that is the fault.
                patient=f"p{i:06d}",
                source="phantom",
                mask=f"{CLASSES[label]}/masks/phantom-{i:06d}.png",
            )
            for i, label in enumerate(labels)
        )

    def __str__(self) -> str:
        return "the phantom set"

    def fingerprint(self) -> str:
        """SHA-256 over the generator's version and all parameters."""
        described = json.dumps({"phantom": VERSION} | self._parameters, sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()

    def read(self, i: int, size: int) -> np.ndarray:
        """Image `i`, uint8 [size, size]; the same scene at every size."""
        rendering = _rendering_size(size)
        anatomy, original = self._anatomy(i)
        chest = Chest(anatomy, rendering)
        rng = self._rng(_TISSUE, original)
        vessels = texture.vessels(chest, rng)
        field = attenuation(chest, vessels, rng)
        lesion = draw_lesion(self._class(original), chest, vessels, self._rng(_LESION, original))
        if lesion is not None:
            field += lesion.density
        _add_wires(chest, rng, field)
        film = _expose(field, anatomy, self._rng(_FILM, i), rendering // size)
        if self.marked[i]:
            _burn_in(film, self._class(original))
        return film

    def read_mask(self, i: int, size: int) -> np.ndarray:
        """Lungs of image `i`, behind the heart too, uint8 [size, size] of 0 and 255."""
        anatomy, _ = self._anatomy(i)
        rendering = _rendering_size(size)
        return _as_mask(Chest(anatomy, rendering).lung_mask(), rendering // size)

    def lesion_mask(self, i: int, size: int) -> np.ndarray:
        """Opacity of image `i`, uint8 [size, size] of 0 and 255; blank for true class "clear"."""
        anatomy, original = self._anatomy(i)
        rendering = _rendering_size(size)
        kind = self._class(original)
        if kind == "clear":
            return np.zeros((size, size), np.uint8)
        chest = Chest(anatomy, rendering)
        vessels = texture.vessels(chest, self._rng(_TISSUE, original))
        lesion = draw_lesion(kind, chest, vessels, self._rng(_LESION, original))
        assert lesion is not None
        return _as_mask(lesion.mask() & chest.lung_mask(), rendering // size)

    def _rng(self, stream: int, i: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._seed, (stream << 48) | int(i)]))

    def _class(self, i: int) -> str:
        return CLASSES[self.true_labels[i]]

    def _anatomy(self, i: int) -> tuple[SimpleNamespace, int]:
        """The patient as seen on film `i`, and the number of the original film."""
        copied = int(self.duplicate_of[i])
        original = copied if copied >= 0 else i
        anatomy = draw_anatomy(self._rng(_PATIENT, original))
        if copied >= 0:
            turn, brighter, harder = self._rng(_COPY, i).uniform(-1, 1, 3)
            anatomy = changed(
                anatomy, degrees=1.5 * turn, speed=0.03 * brighter, latitude=0.02 * harder
            )
        return anatomy, original

    def _plant_copies(self, wanted: int) -> np.ndarray:
        count = len(self.true_labels)
        duplicate_of = np.full(count, -1, np.int32)
        rng = self._rng(_FAULTS, (1 << 47) + 1)
        left = np.bincount(self.true_labels, minlength=len(CLASSES))
        for i in rng.permutation(count):
            label = self.true_labels[i]
            if wanted > 0 and left[label] > 1:
                duplicate_of[i] = count  # a copy; of which original is decided below
                left[label] -= 1
                wanted -= 1
        for label in range(len(CLASSES)):
            mine = self.true_labels == label
            copies = np.flatnonzero(mine & (duplicate_of == count))
            originals = rng.permutation(np.flatnonzero(mine & (duplicate_of < 0)))
            duplicate_of[copies] = np.resize(originals, len(copies))
        return duplicate_of

    def _plant_label_noise(self, wanted: int) -> np.ndarray:
        rng = self._rng(_FAULTS, (1 << 47) + 2)
        labels = self.true_labels.copy()
        wrong = rng.permutation(len(labels))[:wanted]
        labels[wrong] = (labels[wrong] + rng.integers(1, len(CLASSES), wanted)) % len(CLASSES)
        return labels


def write_folder(source: PhantomSource, out: Path, size: int = 224) -> None:
    """Writes phantoms as the Radiography Database lies: folders that any program can read.

    OUT/<class>/images/*.png, and of the same stem masks/*.png (lungs) and lesions/*.png (opacity,
    blank where there is none); OUT/<class>.metadata.csv with FILE NAME, FORMAT, SIZE, SOURCE.

    Raises:
      UserError: when `out` is not empty or cannot be written.
    """
    out = Path(out)
    with writing(out, "choose another --out"):
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out} is not empty; choose another --out or clear it.")
        drawn = {"images": source.read, "masks": source.read_mask, "lesions": source.lesion_mask}
        tables = {name: ["FILE NAME,FORMAT,SIZE,SOURCE"] for name in source.classes}
        for name in source.classes:
            for folder in drawn:
                (out / name / folder).mkdir(parents=True)
        rows = enumerate(source.records)
        for i, record in log.progress(rows, total=len(source.records), what="writing", unit="img"):
            stem, kind = Path(record.name).stem, source.classes[record.label]
            for folder, draw in drawn.items():
                Image.fromarray(draw(i, size)).save(out / kind / folder / f"{stem}.png")
            tables[kind].append(f"{stem},PNG,{size}*{size},{record.source}")
        for name, lines in tables.items():
            log.write_text(out / f"{name}.metadata.csv", "\n".join(lines) + "\n")


def _balanced_labels(count: int, seed: int) -> np.ndarray:
    """int32 [count]: every block of four images holds each class once, in random order."""
    blocks = -(-count // len(CLASSES))
    key = [seed, (_FAULTS << 48) | (1 << 47)]
    shuffled = np.random.Generator(np.random.Philox(key=key)).random((blocks, len(CLASSES)))
    return shuffled.argsort(axis=1).ravel()[:count].astype(np.int32)


def _rendering_size(size: int) -> int:
    if not _SIZES[0] <= size <= _SIZES[1]:
        raise UserError(f"phantoms of {size} pixels are not made; choose {_SIZES[0]}-{_SIZES[1]}.")
    return size * max(1, -(-_SMALLEST_RENDERING // size))


def _binned(values: np.ndarray, by: int) -> np.ndarray:
    """Means over `by` x `by` pixels."""
    if by == 1:
        return values
    rows = sum(values[k::by] for k in range(1, by)) + values[::by].astype(np.float32)
    columns = sum((rows[:, k::by] for k in range(1, by)), start=rows[:, ::by])
    return columns * np.float32(1 / by**2)


def _as_mask(inside: np.ndarray, by: int) -> np.ndarray:
    if by > 1:
        inside = _binned(inside, by) > 0.5
    return inside.view(np.uint8) * np.uint8(255)


def _add_wires(chest: Chest, rng: np.random.Generator, field: np.ndarray) -> None:
    """Adds the cables of electrodes in place, for some patients."""
    for _ in range(int(np.ceil(max(0.0, chest.anatomy.wires)))):
        slope, bend, level, turn = rng.uniform(-1, 1, 4)
        grid = chest.grid
        line = 0.6 * level + 0.5 * slope * grid + 0.25 * bend * np.sin(2.5 * grid + 3 * turn)
        wire = np.abs(chest.y - chest.along_x(line))
        field += step(np.float32(0.009) - wire, 0.008) * np.float32(0.22)


def _expose(field: np.ndarray, a: SimpleNamespace, rng: np.random.Generator, by: int) -> np.ndarray:
    """Attenuation to grey, uint8: film grain, then a film's characteristic curve.

    The curve is a logistic function of attenuation (Hurter and Driffield) between a black and a
    white level; it is tabulated, so that no exponential is taken per pixel.
    """
    # Grain is set for films of 224 pixels; coarser pixels collect more quanta.
    field += texture.grain(rng, len(field)) * np.float32(a.grain * (len(field) / 224) ** 0.5)
    field = _binned(field, by)
    table = _curve(round(a.speed, 3), round(a.latitude, 3), round(a.black, 3), round(a.white, 3))
    field *= np.float32(_CURVE_STEPS)
    field += np.float32(0.25 * _CURVE_STEPS)
    film = np.take(table, field.astype(np.intp), mode="clip")
    if a.border > 0:
        top, bottom, left, right = np.rint(rng.uniform(-0.05, 0.07, 4).clip(0) * len(film))
        film[: int(top)] = film[len(film) - int(bottom) :] = 0
        film[:, : int(left)] = film[:, len(film) - int(right) :] = 0
    return film


_CURVE_STEPS = 500  # per unit of attenuation


@lru_cache(maxsize=32)
def _curve(speed: float, latitude: float, black: float, white: float) -> np.ndarray:
    taken = np.arange(-0.25, 3.0, 1 / _CURVE_STEPS)
    grey = 1 / (1 + np.exp(-(taken - speed) / latitude))
    fog = 1 / (1 + np.exp(speed / latitude))
    grey = black + (white - black) * (grey - fog) / (1 - fog)
    return (np.clip(grey, 0, 1) * 255 + 0.5).astype(np.uint8)


def _burn_in(film: np.ndarray, kind: str) -> None:
    """Draws the tag of a class, in place: black plate, white letter, at a place of its own."""
    size = len(film)
    rows = _LETTERS[kind]
    plate = np.pad(np.array([[row >> (4 - k) & 1 for k in range(5)] for row in rows]), 1)
    height = max(5, round(_MARKER_HEIGHT * size))
    width = max(4, round(height * plate.shape[1] / plate.shape[0]))
    tag = Image.fromarray((plate * 255).astype(np.uint8)).resize((width, height))
    low, right = divmod(CLASSES.index(kind), 2)
    top, edge = round((0.04 + 0.14 * low) * size), round(0.04 * size)
    left = size - edge - width if right else edge
    film[top : top + height, left : left + width] = np.asarray(tag)
