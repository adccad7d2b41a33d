"""Finds copies of one film among images: equal pixels, re-encoded, resized, slightly turned."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage, sparse
from scipy.sparse import csgraph

from cxrjax.errors import UserError
from cxrjax.threads import in_order

ALGORITHM = "phash-ac64-lcn-turned-5"  # part of the cache key: change it with anything below

# Chosen by eye on pairs of the COVID-19 Radiography Database (see tests for the recall on copies).
# All chest films resemble each other at large scales, so what is compared is fine detail (ribs,
# vessels, devices) after local contrast normalisation, without the outer tenth, where burnt-in
# frames would make strangers alike.
THUMBNAIL = 64  # pixels; images of this size are compared as they are
_BORDER = 6  # pixels cut off on each side
_FINE, _COARSE = 0.7, 3.0  # standard deviations of the band-pass, thumbnail pixels
_CONTRAST_FLOOR = 4.0  # grey levels below which detail counts as noise
_CANDIDATE_BITS = 12  # largest Hamming distance of a pair that is looked at
# Copies turned by more than a degree or two lose both hash and correlation: one of the pair is
# turned back first. Fewer bits then, or most of the time would go into strangers.
_TURNS = (0.0, -5.0, -2.5, 2.5, 5.0)  # degrees
_TURNED_BITS = 6
_SAME_FILM = 0.88  # detail correlation: above it, pairs seen were one film or one sitting
_SAME_FILM_TURNED = 0.93  # with five tries at each pair strangers come closer, and copies too
# Slightly cropped copies correlate less, but their hashes nearly agree: such pairs are looked at
# again, one of them stretched to fit the other.
_LOOK_AGAIN = 0.75
_NEAR_BITS = 6
_STRETCHES = (0.96, 0.98, 1.0, 1.02, 1.04)  # of height and width
_BLOCK = 512
_MOST_PAIRS = 5_000_000


class Duplicates(NamedTuple):
    """Pairs of images that show the same film; each pair once, i < j, sorted."""

    pairs: np.ndarray  # int32 [P, 2], positions
    correlation: np.ndarray  # float32 [P], of the films' fine detail
    exact: np.ndarray  # bool [P], every pixel equal


def find_duplicates(images: np.ndarray) -> Duplicates:
    """All pairs of near-identical images.

    A 64-bit perceptual hash (signs of the low frequencies of the discrete cosine transform of a
    32x32 thumbnail, without the constant row and column) proposes pairs by Hamming distance; the
    correlation of band-passed, locally contrast-normalised 64x64 thumbnails confirms them, of
    pairs with nearly equal hashes also after stretching one of the two by up to 4 %. The same is
    done with one of each pair turned by up to 5 degrees. Copies cropped by more than about 3 % a
    side are missed.
    Mirrored images are not duplicates: there are no flips in chest films.

    Args:
      images: uint8 [N, S, S].
    Raises:
      UserError: when the set consists of copies (more than five million pairs).
    """
    n = len(images)
    hashes, details, contents = np.zeros(n, np.uint64), _no_details(n), np.zeros(n, np.int64)
    turned = np.zeros((len(_TURNS), n), np.uint64)
    seen: dict[bytes, int] = {}
    # NumPy and SciPy let other threads run while they compute, so blocks share the cores.
    n_blocks = -(-n // _BLOCK)
    described = in_order(lambda k: _described(images, k * _BLOCK), n_blocks)
    for k, (own, own_turned, detail, digests) in enumerate(described):
        block = slice(k * _BLOCK, (k + 1) * _BLOCK)
        hashes[block], turned[:, block], details[block] = own, own_turned, detail
        for i, digest in enumerate(digests, k * _BLOCK):
            contents[i] = seen.setdefault(digest, i)

    def pairs_of(k: int) -> list[tuple[np.ndarray, ...]]:
        start = k * _BLOCK
        candidates = _candidates(start, hashes, hashes, contents, _CANDIDATE_BITS)
        found = [_confirmed(candidates, images, hashes, details, contents)]
        for degrees, own in zip(_TURNS, turned, strict=True):
            candidates = _candidates(start, own, turned[0], None, _TURNED_BITS)
            found.append(_confirmed_turned(candidates, images, degrees, details))
        return found

    found: list[tuple[np.ndarray, ...]] = [
        _confirmed(np.zeros((0, 2), int), images, hashes, details, contents)
    ]
    total = 0
    for parts in in_order(pairs_of, n_blocks):
        found += parts
        total += sum(len(part[0]) for part in parts)
        if total > _MOST_PAIRS:
            raise UserError(
                f"more than {_MOST_PAIRS:,} pairs of these {n} images are copies of each other; "
                "remove the copies from the data folder."
            )
    return _once(*(np.concatenate(part) for part in zip(*found, strict=True)))


def _described(
    images: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[bytes]]:
    """Hashes, hashes of turned films, fine details and digests of the block at `start`."""
    block = np.asarray(images[start : start + _BLOCK])
    thumbnails = _thumbnails(block)
    digests = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in block]
    return (
        perceptual_hash(thumbnails),
        _turned_hashes(thumbnails),
        fine_detail(thumbnails),
        digests,
    )


def _once(pairs: np.ndarray, correlation: np.ndarray, exact: np.ndarray) -> Duplicates:
    """Each pair once, sorted, at the turn of its highest correlation; of equal pixels as such.

    Their correlation is rounded to a little above 1 where it is computed once more.
    """
    order = np.lexsort([-correlation, ~exact, pairs[:, 1], pairs[:, 0]])
    pairs = pairs[order]
    first = np.ones(len(pairs), bool)
    first[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    order = order[first]
    return Duplicates(pairs[first], correlation[order], exact[order])


def group(n: int, pairs: np.ndarray, patients: Sequence[str | None]) -> np.ndarray:
    """Joins images that must stay on one side of a split: copies, and films of one patient.

    Args:
      n: number of images.
      pairs: int [P, 2], positions of near-duplicates.
      patients: n patient names; None where unknown.
    Returns:
      int32 [n]: the smallest position in each image's group, chains followed.
    """
    first: dict[str, int] = {}
    same = [
        (first.setdefault(patient, i), i)
        for i, patient in enumerate(patients)
        if patient is not None
    ]
    edges = np.concatenate([np.reshape(pairs, (-1, 2)), np.reshape(same, (-1, 2))]).astype(np.int64)
    graph = sparse.coo_array(
        (np.ones(len(edges), np.int8), (edges[:, 0], edges[:, 1])), shape=(n, n)
    )
    _, component = csgraph.connected_components(graph, directed=False)
    smallest = np.full(n, n, np.int32)
    np.minimum.at(smallest, component, np.arange(n, dtype=np.int32))
    return smallest[component]


def perceptual_hash(thumbnails: np.ndarray) -> np.ndarray:
    """float32 [N, 64, 64] to uint64 [N]: signs of an 8x8 block of low DCT frequencies.

    The constant row and column are left out: they follow brightness and exposure, not anatomy.
    """
    n = len(thumbnails)
    small = thumbnails.reshape(n, 32, 2, 32, 2).mean((2, 4))
    low = fft.dctn(small, axes=(1, 2))[:, 1:9, 1:9].reshape(n, 64)  # type: ignore[index]
    return np.packbits(low > 0, axis=1).view(np.uint64)[:, 0]


def fine_detail(thumbnails: np.ndarray) -> np.ndarray:
    """float32 [N, 64, 64] to unit vectors float32 [N, F]; their dot product is the correlation.

    Images without any detail give the zero vector.
    """
    smooth = _blurred(thumbnails, _FINE)
    band = smooth - _blurred(smooth, _COARSE)
    power = _blurred(band * band, _COARSE)
    band /= np.sqrt(power + _CONTRAST_FLOOR**2)
    inner = slice(_BORDER, THUMBNAIL - _BORDER)
    flat = band[:, inner, inner].reshape(len(thumbnails), (THUMBNAIL - 2 * _BORDER) ** 2)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _blurred(thumbnails: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, reflected at the rim: two products with a matrix of 64 x 64.

    On so small images that is several times faster than a filter of 25 taps, and the same.
    """
    matrix = _blur(sigma)
    return matrix @ thumbnails @ matrix.T


@functools.cache
def _blur(sigma: float) -> np.ndarray:
    """float32 [64, 64]: the blur of each unit vector, in columns."""
    return ndimage.gaussian_filter1d(np.eye(THUMBNAIL, dtype=np.float32), sigma, axis=0)


def _no_details(n: int) -> np.ndarray:
    return np.zeros((n, (THUMBNAIL - 2 * _BORDER) ** 2), np.float32)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    side = (THUMBNAIL, THUMBNAIL)
    # Averaging over boxes keeps a re-encoded or resized copy the same; enlarging needs smoothness.
    method = Image.Resampling.BOX if images.shape[1] >= THUMBNAIL else Image.Resampling.BICUBIC
    resized = [np.asarray(Image.fromarray(image).resize(side, method)) for image in images]
    return np.array(resized, np.float32).reshape(-1, *side)


def _candidates(
    start: int,
    own: np.ndarray,
    hashes: np.ndarray,
    contents: np.ndarray | None,
    bits: int,
) -> np.ndarray:
    """Pairs [C, 2] (i < j, i in the block at `start`) with near hashes or equal content.

    Args:
      own: uint64 [N], of the images i, perhaps turned; hashes: uint64 [N], of the images j.
    """
    stop = min(start + _BLOCK, len(hashes))
    distance = np.bitwise_count(own[start:stop, None] ^ hashes[None, start:])
    near = distance <= bits
    if contents is not None:  # flat images hash at random
        near |= contents[start:stop, None] == contents[None, start:]
    i, j = np.nonzero(np.triu(near, 1))
    return np.stack([i + start, j + start], axis=1)


def _confirmed(
    pairs: np.ndarray,
    images: np.ndarray,
    hashes: np.ndarray,
    details: np.ndarray,
    contents: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    correlation = _correlation(details, pairs[:, 0], details, pairs[:, 1])
    i, j = pairs.T
    exact = contents[i] == contents[j]
    near = np.bitwise_count(hashes[i] ^ hashes[j]) <= _NEAR_BITS
    again = near & (correlation >= _LOOK_AGAIN) & (correlation < _SAME_FILM)
    for p in np.flatnonzero(again):
        stretched = fine_detail(_stretched(_thumbnails(np.asarray(images[i[p]])[None])[0]))
        correlation[p] = (stretched @ details[j[p]]).max()
    same = exact | (correlation >= _SAME_FILM)
    correlation[exact] = 1
    return pairs[same].astype(np.int32), correlation[same], exact[same]


def _confirmed_turned(
    pairs: np.ndarray, images: np.ndarray, degrees: float, details: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `_confirmed`, the first of each pair turned."""
    rows, position = np.unique(pairs[:, 0], return_inverse=True)
    turned = fine_detail(_turned(_thumbnails(np.asarray(images[rows])), degrees))
    correlation = _correlation(turned, position, details, pairs[:, 1])
    same = correlation >= (_SAME_FILM_TURNED if degrees else _SAME_FILM)
    return pairs[same].astype(np.int32), correlation[same], np.zeros(same.sum(), bool)


def _correlation(one: np.ndarray, i: np.ndarray, other: np.ndarray, j: np.ndarray) -> np.ndarray:
    correlation = np.zeros(len(i), np.float32)
    for start in range(0, len(i), 4096):  # bounds the memory of the gathered vectors
        part = slice(start, start + 4096)
        correlation[part] = np.einsum("pf,pf->p", one[i[part]], other[j[part]])
    return correlation


def _stretched(thumbnail: np.ndarray) -> np.ndarray:
    """float32 [64, 64] to [S * S, 64, 64]: by all `_STRETCHES` about the centre, bilinear."""
    middle = (THUMBNAIL - 1) / 2
    stretched = []
    for scale in itertools.product(_STRETCHES, repeat=2):
        offset: Any = [middle * (1 - s) for s in scale]
        stretched.append(
            ndimage.affine_transform(thumbnail, scale, offset, order=1, mode="nearest")
        )
    return np.stack(stretched)


def _turned(thumbnails: np.ndarray, degrees: float) -> np.ndarray:
    """float32 [N, 64, 64] counter-clockwise about the centre, bilinear, black outside."""
    if degrees == 0:
        return thumbnails
    return ndimage.rotate(thumbnails, degrees, axes=(2, 1), reshape=False, order=1)


def _turned_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """uint64 [T, N]: hashes of the middle of the thumbnails, turned by each of `_TURNS`.

    Like `perceptual_hash`, but a window leaves out what turning moves across the rim. Turning is
    not done: the cosines are turned the other way, which makes all hashes one product of matrices.
    """
    n = len(thumbnails)
    low = thumbnails.reshape(n, -1) @ _turned_cosines()
    bits = low.reshape(n, len(_TURNS), 64) > 0
    return np.packbits(bits, axis=2).view(np.uint64)[:, :, 0].T


@functools.cache
def _turned_cosines() -> np.ndarray:
    """float32 [64 * 64, T * 64]: windowed cosines, each of mean zero."""
    at = np.arange(THUMBNAIL) + 0.5
    waves = np.cos(np.pi / THUMBNAIL * np.arange(1, 9)[:, None] * at)
    cosines = np.einsum("uy,vx->uvyx", waves, waves).reshape(64, THUMBNAIL, THUMBNAIL)
    ramp = np.clip((np.minimum(at, THUMBNAIL - at) - _BORDER / 2) / _BORDER, 0, 1)
    window = np.outer(ramp, ramp)
    cosines = (cosines - (cosines * window).sum((1, 2), keepdims=True) / window.sum()) * window
    columns = [_turned(cosines, -degrees).reshape(64, -1).T for degrees in _TURNS]
    return np.concatenate(columns, axis=1).astype(np.float32)
