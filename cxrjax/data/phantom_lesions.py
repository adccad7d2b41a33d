"""Opacities of the phantom classes: where they lie is the class, how dense they are is chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrjax.data import phantom_texture as texture
from cxrjax.data.phantom_anatomy import Chest, step

CLASSES = ("clear", "consolidation", "ground_glass", "perihilar")
_MASKED = 0.3  # share of the full extent above which a pixel belongs to the lesion mask


@dataclass(frozen=True)
class Lesion:
    """An opacity on one film.

    extent: float32 [size, size], 0 to 1, where it lies (nothing outside the lungs).
    density: float32 [size, size], attenuation it adds.
    """

    extent: np.ndarray
    density: np.ndarray

    def mask(self) -> np.ndarray:
        """bool [size, size]."""
        return self.extent > _MASKED


def draw_lesion(
    kind: str, chest: Chest, vessels: np.ndarray, rng: np.random.Generator
) -> Lesion | None:
    """The opacity of class `kind`; None for "clear".

    Severity follows a distribution that reaches down to the hardly visible.
    """
    if kind == "clear":
        return None
    severity = 0.10 + 0.90 * float(rng.beta(1.5, 1.3))
    shape = {"consolidation": _focal, "ground_glass": _peripheral, "perihilar": _butterfly}[kind]
    extent, density = shape(chest, vessels, rng, severity)
    extent *= chest.air > 0.25
    density *= extent
    density *= chest.air
    return Lesion(extent, density)


def _focal(chest: Chest, vessels: np.ndarray, rng: np.random.Generator, severity: float):
    """One dense lobar or segmental opacity with a ragged border and open airways in it."""
    side = -1.0 if rng.random() < 0.55 else 1.0
    width = chest.anatomy.lung_width
    cx = side * width * rng.uniform(0.40, 0.74)
    cy = rng.uniform(-0.42, chest.anatomy.dome + 0.02)
    rx, ry = rng.uniform(0.15, 0.30, 2) * (0.75 + 0.35 * severity)
    lean = rng.uniform(-0.5, 0.5)
    fissure = rng.random() < 0.35
    dx, dy = chest.x - np.float32(cx), chest.y - np.float32(cy)
    border = dy if fissure else None
    dx += dy * np.float32(lean)
    inside = 1 - dx * dx * np.float32(1 / rx**2) - dy * dy * np.float32(1 / ry**2)
    inside += texture.smooth_field(rng, 11, chest.size) * np.float32(0.55)
    extent = step(inside - np.float32(0.1), rng.uniform(0.9, 1.7))
    if border is not None:  # the fissure ends the lobe below
        extent *= step(-border + np.float32(0.35 * ry), 0.03)
    density = texture.smooth_field(rng, 26, chest.size)
    density *= np.float32(0.13)
    density += np.float32(1.0)
    density -= vessels * np.float32(0.35)
    density *= np.float32(0.07 + 0.40 * severity)
    return extent, density


def _peripheral(chest: Chest, vessels: np.ndarray, rng: np.random.Generator, severity: float):
    """Patchy faint opacities of both lungs, towards the chest wall and the bases."""
    patches = texture.smooth_field(rng, 8, chest.size)
    patches *= np.float32(0.42)
    patches += (chest.rib - np.float32(0.72)) * np.float32(2.2)
    base = chest.anatomy.dome
    slope = rng.uniform(0.7, 1.4)
    grid = chest.grid
    low = np.where(grid < base - 0.3, slope, 0.2) * (grid - base + 0.3)
    patches += chest.along_y(np.clip(low, -1.2, 0.3) + 0.35 * (severity - 0.5))
    balance = rng.uniform(-0.14, 0.14)
    patches += chest.along_x(balance * np.sign(grid))
    extent = step(patches, 0.8)
    density = texture.smooth_field(rng, 34, chest.size)
    density *= np.float32(0.15)
    density += np.float32(1.0)
    density *= np.float32(0.05 + 0.25 * severity)
    return extent, density


def _butterfly(chest: Chest, vessels: np.ndarray, rng: np.random.Generator, severity: float):
    """Streaky haze spreading from both hila, sparing the periphery."""
    r = rng.uniform(0.26, 0.38) * (0.8 + 0.3 * severity)
    dx = (chest.ax - np.float32(rng.uniform(0.20, 0.27))) * np.float32(1 / r)
    dy = (chest.y - np.float32(rng.uniform(-0.10, 0.08))) * np.float32(1 / (1.25 * r))
    inside = 1 - dx * dx - dy * dy
    inside += texture.smooth_field(rng, 9, chest.size) * np.float32(0.32)
    extent = step(inside - np.float32(0.22), 1.3)
    density = texture.smooth_field(rng, 44, chest.size)
    density *= np.float32(0.26)
    density += np.float32(0.9)
    density += vessels * np.float32(0.45)
    density *= np.float32(0.05 + 0.24 * severity)
    return extent, density
