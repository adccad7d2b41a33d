"""Finds copies of one film among images: equal pixels, re-encoded, resized, slightly turned."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import fft, ndimage, sparse
from scipy.sparse import csgraph

from cxrjax.errors import UserError

ALGORITHM = "phash-ac64-lcn-2"  # part of the cache key: change it with anything below

# Chosen by eye on pairs of the COVID-19 Radiography Database (see tests for the recall on copies).
# All chest films resemble each other at large scales, so what is compared is fine detail (ribs,
# vessels, devices) after local contrast normalisation, without the outer tenth, where burnt-in
# frames would make strangers alike.
THUMBNAIL = 64  # pixels; images of this size are compared as they are
_BORDER = 6  # pixels cut off on each side
_FINE, _COARSE = 0.7, 3.0  # standard deviations of the band-pass, thumbnail pixels
_CONTRAST_FLOOR = 4.0  # grey levels below which detail counts as noise
_CANDIDATE_BITS = 12  # largest Hamming distance of a pair that is looked at
_SAME_FILM = 0.88  # detail correlation: above it, pairs seen were one film or one sitting
_SAME_FILM_NEAR_HASH = 0.81  # enough when the hashes nearly agree: slightly cropped copies
_NEAR_BITS = 3
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
    correlation of band-passed, locally contrast-normalised 64x64 thumbnails confirms them.
    Copies cropped by more than about 3 % a side are missed, for nothing is registered first.
    Mirrored images are not duplicates: there are no flips in chest films.

    Args:
      images: uint8 [N, S, S].
    Raises:
      UserError: when the set consists of copies (more than five million pairs).
    """
    n = len(images)
    hashes, details, contents = np.zeros(n, np.uint64), _no_details(n), np.zeros(n, np.int64)
    seen: dict[bytes, int] = {}
    for start in range(0, n, _BLOCK):
        block = np.asarray(images[start : start + _BLOCK])
        thumbnails = _thumbnails(block)
        hashes[start : start + _BLOCK] = perceptual_hash(thumbnails)
        details[start : start + _BLOCK] = fine_detail(thumbnails)
        for offset, image in enumerate(block):
            digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
            contents[start + offset] = seen.setdefault(digest, start + offset)
    found: list[tuple[np.ndarray, ...]] = [
        _confirmed(np.zeros((0, 2), int), hashes, details, contents)
    ]
    total = 0
    for start in range(0, n, _BLOCK):
        candidates = _candidates(start, hashes, contents)
        found.append(_confirmed(candidates, hashes, details, contents))
        total += len(found[-1][0])
        if total > _MOST_PAIRS:
            raise UserError(
                f"more than {_MOST_PAIRS:,} pairs of these {n} images are copies of each other; "
                "remove the copies from the data folder."
            )
    pairs, correlation, exact = (np.concatenate(part) for part in zip(*found, strict=True))
    return Duplicates(pairs, correlation, exact)


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
    smooth = ndimage.gaussian_filter(thumbnails, (0, _FINE, _FINE))
    band = smooth - ndimage.gaussian_filter(smooth, (0, _COARSE, _COARSE))
    power = ndimage.gaussian_filter(band * band, (0, _COARSE, _COARSE))
    band /= np.sqrt(power + _CONTRAST_FLOOR**2)
    inner = slice(_BORDER, THUMBNAIL - _BORDER)
    flat = band[:, inner, inner].reshape(len(thumbnails), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)


def _no_details(n: int) -> np.ndarray:
    return np.zeros((n, (THUMBNAIL - 2 * _BORDER) ** 2), np.float32)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    side = (THUMBNAIL, THUMBNAIL)
    # Averaging over boxes keeps a re-encoded or resized copy the same; enlarging needs smoothness.
    method = Image.Resampling.BOX if images.shape[1] >= THUMBNAIL else Image.Resampling.BICUBIC
    resized = [np.asarray(Image.fromarray(image).resize(side, method)) for image in images]
    return np.array(resized, np.float32).reshape(-1, *side)


def _candidates(start: int, hashes: np.ndarray, contents: np.ndarray) -> np.ndarray:
    """Pairs [C, 2] (i < j, i in the block at `start`) with near hashes or equal content."""
    stop = min(start + _BLOCK, len(hashes))
    distance = np.bitwise_count(hashes[start:stop, None] ^ hashes[None, start:])
    near = distance <= _CANDIDATE_BITS
    near |= contents[start:stop, None] == contents[None, start:]  # flat images hash at random
    i, j = np.nonzero(np.triu(near, 1))
    return np.stack([i + start, j + start], axis=1)


def _confirmed(
    pairs: np.ndarray, hashes: np.ndarray, details: np.ndarray, contents: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    correlation = np.zeros(len(pairs), np.float32)
    for start in range(0, len(pairs), 4096):  # bounds the memory of the gathered vectors
        i, j = pairs[start : start + 4096].T
        correlation[start : start + 4096] = np.einsum("pf,pf->p", details[i], details[j])
    i, j = pairs.T
    exact = contents[i] == contents[j]
    near = np.bitwise_count(hashes[i] ^ hashes[j]) <= _NEAR_BITS
    same = exact | (correlation >= np.where(near, _SAME_FILM_NEAR_HASH, _SAME_FILM))
    correlation[exact] = 1
    return pairs[same].astype(np.int32), correlation[same], exact[same]
