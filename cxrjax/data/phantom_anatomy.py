"""Healthy procedural chests, rendered as X-ray attenuation."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from cxrjax.data import phantom_texture as texture

_PER_UNIT = 320  # table entries per unit of length, for films up to 256 pixels
_REACH = 1.7  # tables span -_REACH to _REACH; no pixel of any pose lies outside

Part = tuple[slice, slice]  # rows and columns of a film
_WHOLE: Part = (slice(None), slice(None))


class Chest:
    """Coordinates and lungs of one patient on a film of `size` pixels a side.

    x, y: float32 [size, size], body coordinates of the pixels; ax: |x|, stretched on one side,
        for lungs of unequal width.
    rib: float32 [size, size], 0 at the mid-line to 1 at the inner chest wall.
    beneath: float32 [size, size], distance below the diaphragm, negative above.
    air: float32 [size, size], depth of lung in the beam, 0 to 1.
    """

    def __init__(self, anatomy: SimpleNamespace, size: int):
        a = self.anatomy = anatomy
        self.size = size
        self.per_unit = _PER_UNIT * max(1, round(size / 256))
        line = ((np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1).astype(np.float32)
        angle = np.deg2rad(a.degrees)
        across, down = line - np.float32(a.shift_x), line - np.float32(a.shift_y)
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        sx, sy = np.float32(1 / a.scale_x), np.float32(1 / a.scale_y)
        self.x = (across * cos * sx)[None, :] + (down * sin * sx)[:, None]
        self.y = (down * cos * sy)[:, None] - (across * sin * sy)[None, :]
        # Functions of one coordinate are tabulated once and looked up: no transcendental
        # function is evaluated per pixel.
        self.grid = np.arange(-_REACH, _REACH, 1 / self.per_unit, dtype=np.float32)
        self.iy = self.index(self.y)
        self.x += self.along_y(a.scoliosis * np.sin(2.2 * self.grid))
        self.ix = self.index(self.x)
        self.ax = np.abs(self.x)
        self.ax *= self.along_x(np.where(self.grid < 0, 1 + a.lung_asymmetry, 1))
        self._lungs()

    def index(self, coordinate: np.ndarray) -> np.ndarray:
        """Positions in a table over `grid`, intp."""
        scaled = coordinate + np.float32(_REACH)
        scaled *= np.float32(self.per_unit)
        return scaled.astype(np.intp)

    def along_x(self, table: np.ndarray, part: Part = _WHOLE) -> np.ndarray:
        """A function of x, tabulated over `grid`, at every pixel of a part of the film."""
        return table.astype(np.float32, copy=False).take(self.ix[part], mode="wrap")

    def along_y(self, table: np.ndarray, part: Part = _WHOLE) -> np.ndarray:
        """A function of y, tabulated over `grid`, at every pixel of a part of the film."""
        return table.astype(np.float32, copy=False).take(self.iy[part], mode="wrap")

    def lookup(self, table: np.ndarray, coordinate: np.ndarray) -> np.ndarray:
        """A function of any coordinate, tabulated over `grid`, constant beyond it."""
        index = self.index(np.clip(coordinate, -_REACH + 0.01, _REACH - 0.01))
        return table.astype(np.float32, copy=False).take(index, mode="wrap")

    def band(self, top: float, bottom: float) -> Part:
        """The rows that hold all pixels with y from `top` to `bottom`."""
        low = np.minimum(self.y[:, 0], self.y[:, -1])
        high = np.maximum(self.y[:, 0], self.y[:, -1])
        return _covering(low, high, top, bottom), slice(None)

    def strip(self, left: float, right: float) -> Part:
        """The columns that hold all pixels with x from `left` to `right`."""
        low = np.minimum(self.x[0], self.x[-1])
        high = np.maximum(self.x[0], self.x[-1])
        return slice(None), _covering(low, high, left - 0.05, right + 0.05)

    def _lungs(self) -> None:
        a, grid = self.anatomy, self.grid
        middle = 0.30
        up = np.clip((middle - grid) / (middle - a.apex), 0, 1)
        below = np.clip(grid - middle, 0, 1)
        dome_x = 0.30 * a.lung_width
        outer = dome_x + (a.lung_width - dome_x) * (1 - up**a.roundness) ** (1 / a.roundness)
        outer += 0.06 * below
        inner = dome_x - (dome_x - 0.03) * (1 - up**7) ** (1 / 3)
        half = np.maximum((outer - inner) / 2, 0.02)
        self.rib = self.ax * self.along_y(1 / (outer * 1.03 + 0.25 * np.clip(up - 0.8, 0, 1)))
        # How deep inside a lung: 1 in its middle line, 0 at its rim.
        q = self.ax - self.along_y((outer + inner) / 2)
        q *= self.along_y(1 / half)
        q *= q
        np.subtract(1, q, out=q)
        np.clip(q, 0, 1, out=q)
        q *= self.along_y(np.clip((grid - a.apex) / 0.02, 0, 1))
        self.q = q
        air = q * (2 - q)  # 1 - t^4: flat in the middle, steep at the rim
        np.sqrt(air, out=air)
        self.beneath = self.y - self.along_x(self._diaphragm())
        air *= step(-self.beneath, 0.03)
        self.air = air

    def _diaphragm(self) -> np.ndarray:
        """y of the domes over x: falls to the ribs at the sides and a little to the middle."""
        a, grid = self.anatomy, self.grid
        level = a.dome + a.dome_difference * np.clip(grid / 0.4 + 0.5, 0, 1)
        t = np.clip((np.abs(grid) / a.lung_width - a.dome_x) / (1 - a.dome_x), -1, 2.0)
        fall = np.where(t > 0, a.dome_depth * np.abs(t) ** 2.6, 0.05 * t * t)
        return level + fall

    def lung_mask(self) -> np.ndarray:
        """bool [size, size]: lung above the diaphragm, also behind the heart."""
        return (self.q > 0.02) & (self.beneath < 0)


def _covering(low: np.ndarray, high: np.ndarray, start: float, end: float) -> slice:
    inside = np.flatnonzero((high >= start) & (low <= end))
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)


def step(distance: np.ndarray, width: float) -> np.ndarray:
    """0 to 1 over `width`, centred on distance 0."""
    out = distance * np.float32(1 / width)
    out += np.float32(0.5)
    return np.clip(out, 0, 1, out=out)


def attenuation(chest: Chest, vessels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float32 [size, size]: what the healthy chest takes from the beam, about 0 (air) to 2."""
    a, grid = chest.anatomy, chest.grid
    below = step(chest.beneath, 0.035)
    body = _body(chest)
    field = _soft_tissue(chest, body, rng)
    lung = chest.air * np.float32(a.lucency)
    # Density that no class explains: uneven lungs, veins and arteries.
    lung *= texture.smooth_field(rng, 7, chest.size) * np.float32(a.haze) + np.float32(1)
    field *= np.float32(1) - lung
    lung *= vessels
    lung *= chest.along_x(a.vessels * np.clip(0.25 + (np.abs(grid) - 0.08) / 0.2, 0.25, 1))
    field += lung
    hilum = chest.along_x(np.exp(-(((np.abs(grid) - 0.19) / 0.085) ** 2)))
    hilum *= chest.along_y(a.hilum * np.exp(-(((grid + 0.06) / 0.14) ** 2)))
    field += hilum
    field += _ribs(chest) * (1 - 0.6 * below)
    _add_mediastinum(chest, below, field)
    # Beside the ribs the flanks take over gradually.
    abdomen = np.maximum(below, chest.along_y(np.clip((grid - a.dome - 0.10) / 0.45, 0, 0.8)))
    abdomen *= step(chest.beneath + np.float32(0.2), 0.5)
    abdomen *= chest.along_y(a.abdomen * np.clip(0.75 + 0.5 * (grid - a.dome), 0.6, 1.1))
    if a.gas > 0:
        dx, dy = chest.x - np.float32(a.gas_x), chest.beneath - np.float32(a.gas_depth)
        gas = 1 - (dx * dx * 0.5 + dy * dy) * np.float32(1 / a.gas_radius**2)
        gas += texture.smooth_field(rng, 9, chest.size) * np.float32(0.35)
        abdomen -= below * step(gas, 0.9) * np.float32(a.gas)
    abdomen *= body
    field += abdomen
    _add_shoulders(chest, field)
    return field


def _body(chest: Chest) -> np.ndarray:
    """Neck, shoulders and trunk: depth in the beam, 0 outside to 1."""
    a, grid = chest.anatomy, chest.grid
    shoulder = np.clip((grid + 1.02) / 0.36, 0, 1)
    width = a.neck + (1.35 - a.neck) * shoulder**1.7
    waist = np.clip((grid + 0.62) / 0.5, 0, 1)
    width += (a.body_width - 1.35) * waist * waist * (3 - 2 * waist)
    width += 0.06 * np.clip(grid - 0.3, 0, 1)
    q = chest.x * chest.along_y(1 / width)
    q *= q
    q *= q
    np.subtract(1, q, out=q)
    np.clip(q, 0, 1, out=q)
    return np.sqrt(q, out=q)


def _soft_tissue(chest: Chest, body: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Skin to skin, with breasts, and the jaw of a child held upright."""
    a, grid = chest.anatomy, chest.grid
    bulk = a.chest_wall * (0.86 + 0.22 * np.clip((grid + 0.5) / 1.2, 0, 1))
    # The back is thicker than the flanks.
    field = body * chest.along_y(bulk)
    field *= texture.smooth_field(rng, 5, chest.size) * np.float32(0.05) + np.float32(1)
    field *= chest.along_x(1.0 + a.tilt_x * grid + 0.22 * np.exp(-((grid / 0.5) ** 2)))
    if a.breast > 0:
        r = np.float32(1 / a.breast_radius)
        dx = (chest.ax - np.float32(0.72 * a.lung_width)) * r
        dy = (chest.y - np.float32(a.breast_y)) * r
        round_ = 1 - dx * dx - dy * dy * np.float32(0.8)
        round_ *= step(round_, 0.25) * np.float32(a.breast * 1.2)
        field += round_ * step(np.float32(0.75) - dy, 1.6)
    if a.head > 0:
        dy = (chest.y + np.float32(1.35)) * np.float32(1.0 / (0.45 + a.head))
        dx = chest.x * np.float32(1 / 0.55)
        field += step(1 - dx * dx - dy * dy, 0.8) * np.float32(0.42)
    return field


def _ribs(chest: Chest) -> np.ndarray:
    """Ten pairs of ribs: posterior parts from the spine, anterior parts fading to the front."""
    a, grid = chest.anatomy, chest.grid
    bend = np.clip(1 - chest.rib, 0, 1)
    np.sqrt(bend, out=bend)
    inside = step(1.0 - chest.rib, 0.05)
    # Lower ribs hang more steeply.
    slope = chest.along_y(a.rib_slope * (1 + 0.5 * grid))
    slope *= chest.rib
    spaced = chest.y - slope
    spaced += chest.x * np.float32(a.rib_skew)
    spaced += bend * np.float32(a.rib_arch)
    phase = a.rib_offset * a.rib_spacing
    profile = _rib_profile(grid, a.rib_spacing, phase, 0.36)
    window = np.clip((grid - a.apex + 0.04) / 0.05, 0, 1)
    ribs = chest.lookup(profile * window, spaced)
    # Seen edge on at the side wall, so denser there.
    across = np.abs(grid)
    ribs *= chest.lookup(
        0.55 * np.clip((across - 0.08) / 0.10, 0, 1) + 0.55 * np.clip(across, 0, 1) ** 4, chest.rib
    )
    front = chest.y - bend * np.float32(a.anterior_slope)
    window = np.clip((grid - a.apex - 0.12) / 0.1, 0, 1) * np.clip((0.62 - grid) / 0.2, 0, 1)
    profile = _rib_profile(grid, a.rib_spacing * 1.12, phase + 0.5 * a.rib_arch, 0.42)
    anterior = chest.lookup(profile * window, front)
    anterior *= step(chest.rib - 0.50, 0.34)
    anterior *= np.float32(a.anterior_density)
    ribs += anterior
    wall = chest.rib - np.float32(1.0)
    wall *= wall
    wall = step(np.float32(0.0012) - wall, 0.003)
    wall *= chest.along_y(0.45 * np.clip((grid + 0.75) / 0.3, 0, 1))
    ribs *= inside
    ribs += wall
    ribs *= np.float32(a.rib_density)
    return ribs


def _rib_profile(grid: np.ndarray, spacing: float, phase: float, share: float) -> np.ndarray:
    """Bars every `spacing`, brighter at their cortical edges, `share` of the spacing wide."""
    turns = (grid + phase) / spacing
    offset = (turns - np.floor(turns) - 0.5) * (2 / share)
    bar = np.clip((1 - np.abs(offset)) * 3.0, 0, 1)
    return bar * (0.72 + 0.28 * offset * offset + 0.16 * offset)


def _add_mediastinum(chest: Chest, below: np.ndarray, field: np.ndarray) -> None:
    """Adds heart, great vessels, trachea and spine in place."""
    a, grid = chest.anatomy, chest.grid

    def bump(centre: float, above: float, under: float) -> np.ndarray:
        width = np.where(grid < centre, above, under)
        return np.exp(-(((grid - centre) / width) ** 2))

    top = np.clip((-0.45 - grid) / 0.4, 0, 1)
    left = a.mediastinum * (1 + 0.15 * top) + a.aortic_knob * bump(-0.36, 0.075, 0.10)
    left = left + 0.03 * bump(-0.12, 0.1, 0.12) + a.heart_left * bump(a.dome + 0.02, 0.34, 0.30)
    right = a.mediastinum * (0.9 + 0.2 * top) + a.heart_right * bump(0.24, 0.24, 0.3)
    half = (left + right) / 2
    q = chest.x - chest.along_y((left - right) / 2)
    q *= chest.along_y(1 / half)
    q *= q
    np.subtract(1, q, out=q)
    np.clip(q, 0, 1, out=q)
    np.sqrt(q, out=q)
    heart = np.clip((grid + 0.2) / 0.4, 0, 1)
    amount = a.heart_density * (0.72 + 0.28 * heart)
    q *= chest.along_y(amount * np.clip((grid + 1.3) / 0.4, 0, 1))
    # The heart displaces lung as well as adding blood.
    q *= np.float32(1.0) + chest.air * np.float32(0.55 * a.lucency)
    q *= np.float32(1) - below * np.float32(0.85)
    field += q
    _add_spine(chest, field)


def _add_spine(chest: Chest, field: np.ndarray) -> None:
    """Adds vertebrae and takes away the trachea in place."""
    a, grid = chest.anatomy, chest.grid
    part = chest.strip(-0.13, 0.13)
    across = np.abs(grid)
    bodies = np.exp(-((across / 0.10) ** 4))
    turns = grid / a.vertebra
    period = turns - np.floor(turns)
    discs = 1 - 0.42 * np.clip(1 - np.abs(period - 0.5) / 0.13, 0, 1)
    discs += 0.25 * np.clip(1 - np.abs(period) / 0.12, 0, 1)
    spine = chest.along_x(bodies, part)
    spine *= chest.along_y(a.spine * discs, part)
    pedicles = np.exp(-(((across - 0.06) / 0.014) ** 2)) + 0.8 * np.exp(-((grid / 0.013) ** 2))
    eyes = np.exp(-(((period - 0.85) / 0.13) ** 2))
    spots = chest.along_x(pedicles, part)
    spots *= chest.along_y(0.4 * a.spine * eyes, part)
    spine += spots
    airway = np.clip((0.046 - np.abs(grid - a.trachea_x)) / 0.02, 0, 1)
    trachea = chest.along_x(airway, part)
    trachea *= chest.along_y(a.trachea * np.clip((-0.08 - grid) / 0.34, 0, 1), part)
    spine -= trachea
    field[part] += spine


def _add_shoulders(chest: Chest, field: np.ndarray) -> None:
    """Adds clavicles, shoulder blades and the heads of the humeri in place."""
    a, grid = chest.anatomy, chest.grid
    across = np.abs(grid)
    wave = a.clavicle_bend * np.sin((across - 0.1) * 7.0)
    line = a.clavicle_y - a.clavicle_tilt * (across - 0.08) - wave + a.clavicle_skew * grid
    thick = (
        0.036
        + 0.024 * np.exp(-(((across - 0.10) / 0.08) ** 2))
        + 0.02 * np.clip(across - 0.4, 0, 1)
    )
    shown = np.clip((across - 0.055) / 0.03, 0, 1) * np.clip((0.80 - across) / 0.1, 0, 1)
    drawn = line[shown > 0]
    part = chest.band(float(drawn.min()) - 0.08, float(drawn.max()) + 0.08)
    bone = chest.y[part] - chest.along_x(line, part)
    bone *= chest.along_x(1 / thick, part)
    bone *= bone
    rim = bone * np.float32(0.2)
    rim += np.float32(0.8)
    np.subtract(1, bone, out=bone)
    bone *= np.float32(2.5)
    np.clip(bone, 0, 1, out=bone)
    bone *= rim
    bone *= chest.along_x(a.clavicle_density * shown, part)
    field[part] += bone
    _add_scapulae(chest, field)


def _add_scapulae(chest: Chest, field: np.ndarray) -> None:
    """Adds shoulder blades and the heads of the humeri in place."""
    a, grid = chest.anatomy, chest.grid
    part = chest.band(-0.80, 0.10)
    edge = a.scapula_x - 0.16 * (grid + 0.2) ** 2 - 0.12 * np.clip(-grid - 0.45, 0, 1)
    blade = np.abs(chest.x[part])
    blade -= chest.along_y(edge, part)
    high = np.clip((grid + 0.66) / 0.12, 0, 1) * np.clip((0.08 - grid) / 0.2, 0, 1)
    rim = np.exp(-(((grid - 0.02) / 0.02) ** 2)) + 0.6 * np.clip(grid / 0.02, 0, 1)
    rim *= np.clip((0.36 - grid) / 0.14, 0, 1)
    blade = chest.lookup(rim, blade)
    blade *= chest.along_y(a.scapula_density * high, part)
    field[part] += blade
    dx, dy = np.abs(chest.x[part]), chest.y[part] + np.float32(0.62)
    dx -= np.float32(1.0)
    dx *= dx
    dy *= dy
    dx += dy
    np.subtract(np.float32(0.02), dx, out=dx)
    field[part] += step(dx, 0.02) * np.float32(a.humerus)
