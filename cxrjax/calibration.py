"""Probabilities that mean what they say: temperature, reliability, a different prevalence."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cxrjax import bootstrap

# Of a calibration.json whose images the network was trained on.
SEEN = "was fitted on images that the network was trained on: its probabilities are too sure"
_COLDEST, _HOTTEST = 0.05, 20.0  # temperatures looked at; separable data would ask for 0
_HALVINGS = 50  # of that range, on a logarithmic scale: to the last digit of float32
_GRID = np.geomspace(_COLDEST, _HOTTEST, 97)  # where the refits of the resamples are tabulated


def logits(probabilities: np.ndarray) -> np.ndarray:
    """Logarithms of probabilities [N, K], float32: logits up to a constant of each example."""
    smallest = np.finfo(np.float32).tiny
    return np.log(np.maximum(probabilities, smallest)).astype(np.float32)


@jax.jit
def fit_temperature(z: jax.Array, labels: jax.Array) -> jax.Array:
    """The temperature T for which softmax(z / T) has the least mean log loss.

    Guo et al. 2017, https://arxiv.org/abs/1706.04599, section 4.2. In 1/T the loss is convex; its
    slope is a sum over examples of the mean logit minus that of the true class, and the zero of it
    is found by bisection of log T within [0.05, 20], whose ends are given where the zero lies
    outside.

    Args:
      z: float32 [N, K]; labels: int [N].
    Returns:
      float32 [].
    """

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high) / 2
        too_cold = jnp.sum(_slopes(z, labels, jnp.exp(middle))) > 0
        return jnp.where(too_cold, middle, low), jnp.where(too_cold, high, middle)

    ends = jnp.log(jnp.float32(_COLDEST)), jnp.log(jnp.float32(_HOTTEST))
    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
    return jnp.exp((low + high) / 2)


def _slopes(z: jax.Array, labels: jax.Array, temperature: jax.Array) -> jax.Array:
    """Derivative of each example's log loss in 1 / T, float32 [N]."""
    mean = jnp.sum(jax.nn.softmax(z / temperature, axis=-1) * z, axis=-1)
    chosen = jnp.take_along_axis(z, labels[:, None], axis=-1)[:, 0]
    return mean - chosen


@jax.jit
def _table(z: jax.Array, labels: jax.Array) -> jax.Array:
    """`_slopes` at each temperature of the grid, float32 [97, N]."""
    return jax.lax.map(
        lambda temperature: _slopes(z, labels, temperature), jnp.asarray(_GRID, jnp.float32)
    )


def temperature_entry(
    probabilities: np.ndarray, labels: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """The fitted temperature as {value, low, high, n}.

    Where no temperature is too low, as where all answers are right, the loss has no minimum: it
    falls until every answer is certain, which nothing says of other images. T is 1 then, and only
    the interval tells that it might be anything below.

    The interval is that of a bootstrap over groups that fits each resample anew, to half a percent:
    the zero of its slope, between two temperatures of a grid.

    Args:
      probabilities: float [N, K]; labels: int [N]; groups: int [N].
    """
    z, truth = jnp.asarray(logits(probabilities)), jnp.asarray(labels)
    slopes = np.asarray(_table(z, truth), np.float64).T
    fitted = min(float(fit_temperature(z, truth)), _HOTTEST)  # of float32 it is not quite that
    if slopes[:, 0].sum() <= 0:  # not even the coldest is too cold
        fitted = 1.0
    refits = _zeros(bootstrap.totals(slopes, groups, resamples, seed))
    found = bootstrap.entry(fitted, refits, len(labels))
    return found | {"low": min(found["low"], fitted), "high": max(found["high"], fitted)}


def _zeros(slopes: np.ndarray) -> np.ndarray:
    """Where slopes [R, 97], which fall along the grid, pass 0: float64 [R], within its ends."""
    rows = np.arange(len(slopes))
    after = np.clip((slopes > 0).sum(axis=1), 1, len(_GRID) - 1)
    before, past = slopes[rows, after - 1], slopes[rows, after]
    share = before / np.maximum(before - past, np.finfo(np.float64).tiny)
    return np.interp(after - 1 + np.clip(share, 0, 1), np.arange(len(_GRID)), _GRID)


def scaled(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities softmax(log p / T), float64 [N, K]: order and predicted class are kept."""
    z = logits(probabilities).astype(np.float64) / temperature
    z -= z.max(axis=1, keepdims=True)
    return np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)


def for_prevalence(probabilities: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Probabilities where the classes are as frequent as `new` says, instead of `old`.

    Saerens, Latinne & Decaestecker 2002, doi:10.1162/089976602753284446, equation 2.4. Right as
    far as the images of a class look the same in both places, and the probabilities are calibrated.

    Args:
      probabilities: float [N, K].
      old: float [K], the frequencies that training saw, class weights included.
      new: float [K].
    """
    odds = probabilities * (np.asarray(new) / np.asarray(old))
    return odds / odds.sum(axis=1, keepdims=True)


def one_against_rest(prior: np.ndarray, of: int, prevalence: float) -> np.ndarray:
    """Class frequencies [K] in which one class has a given prevalence, the rest in proportion."""
    others = np.delete(np.asarray(prior, np.float64), of)
    return np.insert(others / others.sum() * (1 - prevalence), of, prevalence)


def reliability(
    labels: np.ndarray, probabilities: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The reliability diagram: confidence against share right, in the bins of the ECE.

    Returns:
      for each bin that holds an image: `from` and `to`, the mean `confidence`, and the share of
      right answers as `accuracy` {value, low, high, n}.
    """
    confidence = probabilities.max(axis=1)
    hit = probabilities.argmax(axis=1) == labels
    member = bootstrap.ece_bin(confidence)[:, None] == np.arange(bootstrap.ECE_BINS)
    n = member.sum(axis=0)
    drawn = bootstrap.totals(
        np.concatenate([member, member & hit[:, None]], 1).astype(float), groups, resamples, seed
    )
    with np.errstate(invalid="ignore"):
        shares = drawn[:, bootstrap.ECE_BINS :] / drawn[:, : bootstrap.ECE_BINS]
    g = bootstrap.count_groups(groups, member)
    return [
        {
            "from": b / bootstrap.ECE_BINS,
            "to": (b + 1) / bootstrap.ECE_BINS,
            "confidence": float(confidence[member[:, b]].mean()),
            "accuracy": bootstrap.share(hit[member[:, b]].mean(), shares[:, b], n[b], g[b]),
        }
        for b in np.flatnonzero(n)
    ]
