"""Near-duplicates: copies are found whatever was done to the file, strangers are not."""

from __future__ import annotations

import io
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from cxrjax.data import duplicates
from cxrjax.data.duplicates import find_duplicates, group
from cxrjax.data.phantom import PhantomSource
from cxrjax.errors import UserError

ARCHIVE = Path(__file__).parents[2] / "shared" / "data" / "covid-normal.zip"


def _film(seed: int, size: int = 160) -> np.ndarray:
    """A blurred-noise image with detail at several scales: uint8 [size, size]."""
    noise = np.random.default_rng(seed).normal(size=(size, size))
    layers = [ndimage.gaussian_filter(noise, s * size / 64) * s for s in (1, 2, 4, 8)]
    image = sum(layers)
    return np.uint8(np.clip((image - image.min()) / np.ptp(image) * 255, 0, 255))


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer).convert("L"))


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(small.resize(image.shape, Image.Resampling.BILINEAR))


def _rotated(image: np.ndarray, degrees: float) -> np.ndarray:
    return np.asarray(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))


def _cropped(image: np.ndarray, share: float) -> np.ndarray:
    cut, side = round(len(image) * share), len(image)
    inner = Image.fromarray(image).crop((cut, cut // 2, side - cut, side - cut // 2))
    return np.asarray(inner.resize(image.shape, Image.Resampling.BILINEAR))


def _scaled(image: np.ndarray, factor: float, offset: float) -> np.ndarray:
    return np.uint8(np.clip(image * factor + offset, 0, 255))


# What may happen to a film, and the share of its copies that must be found on real films.
COPIES = {
    "same": (lambda image: image.copy(), 1.0),
    "jpeg": (lambda image: _jpeg(image, 50), 1.0),
    "resized": (lambda image: _resized(image, 128), 1.0),
    "less contrast": (lambda image: _scaled(image, 0.7, 40), 1.0),
    "brighter": (lambda image: _scaled(image, 1.2, 20), 0.95),
    "gamma": (lambda image: np.uint8(255 * (image / 255) ** 0.6), 0.98),
    "cropped 2 %": (lambda image: _cropped(image, 0.02), 0.95),
    "cropped 3 %": (lambda image: _cropped(image, 0.03), 0.6),
    "turned 1 degree": (lambda image: _rotated(image, 1), 0.98),
    "turned 2 degrees": (lambda image: _rotated(image, -2), 0.95),
    "turned 4 degrees": (lambda image: _rotated(image, 4), 0.95),
    "turned 6 degrees": (lambda image: _rotated(image, -6), 0.95),
    "turned 3 degrees, jpeg, brighter": (
        lambda image: _scaled(_jpeg(_rotated(image, 3), 60), 1.1, 10),
        0.95,
    ),
}


@pytest.mark.parametrize("copy", [c for c in COPIES if c != "cropped 3 %"])  # not always found
def test_a_copy_is_found_and_strangers_are_not(copy: str) -> None:
    films = [_film(seed) for seed in range(12)]
    images = np.stack([*films, COPIES[copy][0](films[5])])
    found = find_duplicates(images)
    assert found.pairs.tolist() == [[5, 12]]
    assert found.exact.tolist() == [copy == "same"]
    assert found.pairs.dtype == np.int32 and found.correlation.dtype == np.float32
    assert found.correlation[0] >= 0.88


@pytest.mark.skipif(not ARCHIVE.exists(), reason="real films are not in ../shared/data")
@pytest.mark.parametrize("copy", COPIES)
def test_recall_on_real_films(copy: str, real_films: np.ndarray) -> None:
    change, wanted = COPIES[copy]
    n = len(real_films)
    found = find_duplicates(np.concatenate([real_films, [change(film) for film in real_films]]))
    pairs = set(map(tuple, found.pairs.tolist()))
    assert np.mean([(i, i + n) in pairs for i in range(n)]) >= wanted
    # Each false pair among the originals would show up four times over.
    assert len(pairs - {(i, i + n) for i in range(n)}) <= 4


@pytest.fixture(scope="module")
def real_films() -> np.ndarray:
    """120 films with no duplicate among them: uint8 [120, 299, 299]."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".webp"))[::18][:121]
        films = [np.asarray(Image.open(archive.open(name)).convert("L")) for name in names]
    images = np.stack(films)
    alike = set(find_duplicates(images).pairs[:, 1].tolist())
    return images[[i for i in range(len(images)) if i not in alike][:120]]


def test_flat_images_are_duplicates_only_of_equal_ones() -> None:
    images = np.stack([np.full((64, 64), v, np.uint8) for v in (0, 0, 90, 255)])
    found = find_duplicates(images)
    assert found.pairs.tolist() == [[0, 1]] and found.exact.all()


def test_noise_and_small_images_do_not_match() -> None:
    rng = np.random.default_rng(0)
    assert len(find_duplicates(rng.integers(0, 256, (40, 64, 64), np.uint8)).pairs) == 0
    small = np.stack([_film(seed, 32) for seed in range(40)])
    assert len(find_duplicates(small).pairs) == 0


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_images_for_a_pair(n: int) -> None:
    found = find_duplicates(np.zeros((n, 32, 32), np.uint8))
    assert found.pairs.shape == (0, 2) and len(found.correlation) == len(found.exact) == 0


def test_pairs_do_not_depend_on_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    films = [_film(seed) for seed in range(9)]
    images = np.stack(films + [_jpeg(film, 60) for film in films])
    whole = find_duplicates(images)
    monkeypatch.setattr(duplicates, "_BLOCK", 4)
    blocks = find_duplicates(images)
    assert whole.pairs.tolist() == [[i, i + 9] for i in range(9)] == blocks.pairs.tolist()


@pytest.mark.parametrize("sigma", [duplicates._FINE, duplicates._COARSE])
def test_the_blur_is_that_of_scipy(sigma: float) -> None:
    films = np.random.default_rng(0).uniform(0, 255, (3, 64, 64)).astype(np.float32)
    expected = ndimage.gaussian_filter(films, (0, sigma, sigma))
    np.testing.assert_allclose(duplicates._blurred(films, sigma), expected, rtol=1e-4, atol=1e-3)


def test_equal_pixels_are_exact_however_their_correlation_rounds() -> None:
    films = [_film(seed, 64) for seed in range(40)]
    found = find_duplicates(np.stack(films + films))
    assert found.pairs.tolist() == [[i, i + 40] for i in range(40)]
    assert found.exact.all() and (found.correlation == 1).all()


def test_a_folder_of_copies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_MOST_PAIRS", 10)
    with pytest.raises(UserError, match=r"copies of each other"):
        find_duplicates(np.zeros((20, 32, 32), np.uint8))


def test_all_pairs_of_a_full_database_are_compared_in_seconds() -> None:
    n = 21_165
    hashes = np.random.default_rng(0).integers(0, 2**64, n, np.uint64)
    contents = np.arange(n)
    start = time.process_time()
    for block in range(0, n, duplicates._BLOCK):
        duplicates._candidates(block, hashes, hashes, contents, 12)
    assert time.process_time() - start < 10


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.just(n),
            st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=20),
            st.lists(st.sampled_from([None, "a", "b", "c"]), min_size=n, max_size=n),
        )
    )
)
@settings(max_examples=200, deadline=None)
def test_groups_are_the_connected_components(case: tuple) -> None:
    n, pairs, patients = case
    expected = list(range(n))  # plain relabelling until nothing changes
    same = [
        (i, j) for i in range(n) for j in range(n) if patients[i] and patients[i] == patients[j]
    ]
    changed = True
    while changed:
        changed = False
        for i, j in [*pairs, *same]:
            low = min(expected[i], expected[j])
            changed |= expected[i] != low or expected[j] != low
            expected[i] = expected[j] = low
    assert group(n, np.array(pairs, np.int32).reshape(-1, 2), patients).tolist() == expected


@pytest.mark.parametrize(
    ("seed", "alike"), [(0, [1101, 1189, 1565, 1998]), (11, [19, 242])], ids=["hash", "turned"]
)
def test_phantoms_that_resemble_each_other_are_no_copies(seed: int, alike: list[int]) -> None:
    """Pairs that once passed for copies: hashes nearly equal and a correlation of .82; turned."""
    source = PhantomSource(2000 if seed == 0 else 480, seed)
    assert len(find_duplicates(np.stack([source.read(i, 64) for i in alike])).pairs) == 0


def test_hashes_of_turned_films_are_those_of_the_middle_turned() -> None:
    films = np.stack([_film(seed, 64) for seed in range(20)]).astype(np.float32)
    hashes = duplicates._turned_hashes(films)
    for degrees, own in zip(duplicates._TURNS, hashes, strict=True):
        turned = duplicates._turned(films, degrees)
        differ = np.bitwise_count(duplicates._turned_hashes(turned)[0] ^ own)
        assert differ.mean() < 1 and differ.max() <= 3
