"""Who lies before the X-ray tube, and how: the variation of the phantoms, in numbers."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

# Body coordinates: x from -1 (the patient's right) to 1, y from -1 (neck) to 1 (abdomen), origin
# in the mid-chest; the film shows about [-1, 1] squared. Lengths are half sides of the film.
# name: adult (low, high), child (low, high), both uniform.
_RANGES: dict[str, tuple[float, float, float, float]] = {
    "shift_x": (-0.07, 0.07, -0.06, 0.06),
    "shift_y": (-0.02, 0.14, 0.06, 0.22),
    "degrees": (-4.0, 4.0, -6.0, 6.0),
    "scale_x": (0.92, 1.16, 0.80, 1.02),
    "scale_y": (0.92, 1.12, 0.86, 1.04),
    "lung_width": (0.68, 0.79, 0.68, 0.82),
    "lung_asymmetry": (-0.07, 0.07, -0.10, 0.10),
    "apex": (-0.8, -0.7, -0.68, -0.58),
    "roundness": (1.95, 2.6, 2.0, 2.6),
    "dome": (0.28, 0.56, 0.34, 0.52),
    "dome_difference": (0.00, 0.10, -0.02, 0.06),
    "dome_x": (0.30, 0.54, 0.30, 0.52),
    "dome_depth": (0.16, 0.30, 0.10, 0.20),
    "lucency": (0.58, 0.74, 0.58, 0.72),
    "heart_left": (0.22, 0.42, 0.2, 0.36),
    "heart_right": (0.05, 0.15, 0.05, 0.16),
    "heart_density": (0.3, 0.52, 0.26, 0.44),
    "mediastinum": (0.115, 0.165, 0.13, 0.21),
    "aortic_knob": (0.01, 0.085, 0.0, 0.02),
    "trachea": (0.12, 0.3, 0.1, 0.26),
    "trachea_x": (-0.025, 0.015, -0.03, 0.02),
    "spine": (0.04, 0.13, 0.16, 0.3),
    "vertebra": (0.115, 0.135, 0.105, 0.125),
    "rib_density": (0.1, 0.23, 0.17, 0.3),
    "rib_spacing": (0.132, 0.172, 0.12, 0.156),
    "rib_offset": (0.0, 1.0, 0.0, 1.0),
    "rib_slope": (0.14, 0.36, 0.06, 0.22),
    "rib_skew": (-0.10, 0.10, -0.10, 0.10),
    "rib_arch": (0.08, 0.22, 0.1, 0.24),
    "anterior_slope": (0.26, 0.46, 0.18, 0.34),
    "anterior_density": (0.22, 0.55, 0.18, 0.45),
    "clavicle_y": (-0.6, -0.46, -0.58, -0.48),
    "clavicle_tilt": (0.12, 0.36, 0.0, 0.3),
    "clavicle_skew": (-0.08, 0.08, -0.10, 0.10),
    "clavicle_bend": (0.02, 0.07, 0.01, 0.06),
    "clavicle_density": (0.14, 0.3, 0.18, 0.32),
    "scapula_x": (0.66, 0.90, 0.72, 0.92),
    "scapula_density": (0.03, 0.14, 0.02, 0.10),
    "humerus": (0.05, 0.20, 0.05, 0.2),
    "body_width": (0.98, 1.2, 0.84, 0.98),
    "neck": (0.22, 0.34, 0.26, 0.40),
    "chest_wall": (0.58, 0.82, 0.5, 0.7),
    "abdomen": (0.30, 0.65, 0.15, 0.45),
    "gas_x": (0.22, 0.46, 0.20, 0.42),
    "gas_depth": (0.10, 0.22, 0.10, 0.24),
    "gas_radius": (0.05, 0.15, 0.05, 0.16),
    "gas": (-0.45, 0.40, -0.2, 0.45),  # below 0: none
    "breast": (-0.30, 0.24, -1.0, -0.5),  # below 0: none
    "breast_y": (0.22, 0.46, 0.3, 0.4),
    "breast_radius": (0.24, 0.38, 0.3, 0.4),
    "vessels": (0.16, 0.38, 0.12, 0.34),
    "hilum": (0.03, 0.16, 0.03, 0.15),
    "vessel_scale": (0.9, 1.15, 0.9, 1.2),
    "haze": (0.01, 0.055, 0.01, 0.055),
    "tilt_x": (-0.10, 0.10, -0.06, 0.06),
    "latitude": (0.26, 0.42, 0.26, 0.4),
    "speed": (0.38, 0.68, 0.36, 0.64),
    "black": (-0.04, 0.14, -0.02, 0.08),
    "white": (0.86, 1.04, 0.90, 1.06),
    "grain": (0.006, 0.03, 0.006, 0.03),
    "wires": (-4.0, 1.5, -5.0, 1.3),  # rounded up: number of cables across the film
    "head": (-1.2, 0.1, -0.2, 0.16),
    "border": (-5.0, 1.0, -5.0, 1.0),  # above 0: an unexposed frame around the film
    "scoliosis": (-0.03, 0.03, -0.04, 0.04),
}
_CHILDREN = 0.25


def draw_anatomy(rng: np.random.Generator) -> SimpleNamespace:
    """One patient and exposure: a value for every name of `_RANGES`, independent of all classes."""
    adult_or_child = slice(2, 4) if rng.random() < _CHILDREN else slice(0, 2)
    shares = rng.random(len(_RANGES))
    anatomy = SimpleNamespace()
    for (name, ranges), share in zip(_RANGES.items(), shares, strict=True):
        low, high = ranges[adult_or_child]
        setattr(anatomy, name, low + (high - low) * float(share))
    return anatomy


def changed(anatomy: SimpleNamespace, **by: float) -> SimpleNamespace:
    """The same patient with some values shifted by the given amounts."""
    values = vars(anatomy)
    return SimpleNamespace(**values | {name: values[name] + by[name] for name in by})
