"""Phantoms: same from the same seed, lesions where they belong, faults as planted, learnable."""

from __future__ import annotations

import csv
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cxrjax.data import phantom_patient
from cxrjax.data.phantom import CLASSES, PhantomSource, write_folder
from cxrjax.data.phantom_anatomy import Chest
from cxrjax.data.phantom_texture import smooth_field
from cxrjax.errors import UserError


def _of_class(source, name, n):
    return np.flatnonzero(source.true_labels == CLASSES.index(name))[:n]


def _correlation(a, b):
    return np.corrcoef(a.ravel().astype(float), b.ravel().astype(float))[0, 1]


@pytest.fixture(scope="module")
def source():
    return PhantomSource(240, seed=3)


def test_images_are_grey_bytes_of_the_size_asked_for(source):
    for size in (32, 100, 224, 300):
        image, mask = source.read(1, size), source.read_mask(1, size)
        assert image.shape == mask.shape == (size, size)
        assert image.dtype == mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        assert image.std() > 20


def test_grey_levels_are_those_of_chest_films(source):
    for i in range(12):
        image, lungs = source.read(i, 128).astype(float), source.read_mask(i, 128) > 0
        abdomen = image[-20:, 40:88]  # below it, some films have an unexposed frame
        assert np.median(image[lungs]) < np.median(abdomen[abdomen > 0]) - 40
        assert 0.15 < lungs.mean() < 0.6
        left, right = lungs[:, :64].mean(), lungs[:, 64:].mean()
        assert 0.4 < left / right < 2.5


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), i=st.integers(0, 11), size=st.sampled_from([32, 64, 90]))
def test_an_image_depends_on_seed_and_number_only(seed, i, size):
    short, long = PhantomSource(12, seed=seed), PhantomSource(500, seed=seed)
    assert short.true_labels[i] == long.true_labels[i]
    assert short.records[i] == long.records[i]
    long.read((i + 1) % 12, size)
    np.testing.assert_array_equal(short.read(i, size), long.read(i, size))
    np.testing.assert_array_equal(short.read_mask(i, size), long.read_mask(i, size))


def test_any_order_threads_and_processes_give_the_same(source):
    forward = [source.read(i, 64) for i in range(16)]
    elsewhere = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(4) as pool:
        backward = list(pool.map(lambda i: elsewhere.read(i, 64), reversed(range(16))))[::-1]
    np.testing.assert_array_equal(forward, backward)


def test_images_of_two_numbers_or_seeds_differ(source):
    other = PhantomSource(240, seed=4)
    assert (source.read(0, 64) != source.read(1, 64)).mean() > 0.5
    assert (source.read(0, 64) != other.read(0, 64)).mean() > 0.5


@given(count=st.integers(4, 300), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_classes_are_balanced(count, seed):
    n = np.bincount(PhantomSource(count, seed=seed).true_labels, minlength=4)
    assert n.max() - n.min() <= 1 and n.sum() == count


def test_records_say_what_is_known(source):
    names = [record.name for record in source.records]
    assert len(set(names)) == 240 and len({record.patient for record in source.records}) == 240
    for i, record in enumerate(source.records):
        assert record.name == f"{CLASSES[record.label]}/phantom-{i:06d}.png"
        assert record.label == source.true_labels[i]
        assert record.source == "phantom" and record.split is None and record.mask
    assert str(source) == "the phantom set"


def test_fingerprint_follows_every_parameter():
    base = {"count": 40, "seed": 1, "marker": 0.5, "duplicates": 0.2, "label_noise": 0.1}
    prints = {PhantomSource(**base).fingerprint()}
    for name, value in {
        "count": 44,
        "seed": 2,
        "marker": 0.4,
        "duplicates": 0.1,
        "label_noise": 0.2,
    }.items():
        prints.add(PhantomSource(**base | {name: value}).fingerprint())
    assert len(prints) == 6 and PhantomSource(**base).fingerprint() in prints


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 3}, "count must be at least 4"),
        ({"count": 8, "seed": -1}, "not negative"),
        ({"count": 8, "marker": 1.5}, r"phantom\.marker is 1\.5"),
        ({"count": 8, "duplicates": 0.6}, r"phantom\.duplicates"),
        ({"count": 8, "label_noise": float("nan")}, r"phantom\.label_noise"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        PhantomSource(**values)


def test_impossible_sizes_are_refused(source):
    with pytest.raises(UserError, match="pixels are not made"):
        source.read(0, 4)


def test_the_scene_is_the_same_at_every_size(source):
    for i in range(4):
        large, mask = source.read(i, 512), source.read_mask(i, 512)
        lesion = source.lesion_mask(i, 512)
        for size in (64, 128, 224):
            shrunk = np.asarray(Image.fromarray(large).resize((size, size), Image.Resampling.BOX))
            assert _correlation(shrunk, source.read(i, size)) > 0.97
            for big, read in ((mask, source.read_mask), (lesion, source.lesion_mask)):
                picture = Image.fromarray(big).resize((size, size), Image.Resampling.BOX)
                assert ((np.asarray(picture) > 127) == (read(i, size) > 0)).mean() > 0.975


def test_poses_stay_within_the_tables():
    # Look-ups wrap around beyond their tables: no pose may reach there.
    for extreme in (0, 1):
        for group in (slice(0, 2), slice(2, 4)):
            values = {k: r[group][extreme] for k, r in phantom_patient._RANGES.items()}
            values |= {"scale_x": phantom_patient._RANGES["scale_x"][group][0]}
            values |= {"scale_y": phantom_patient._RANGES["scale_y"][group][0]}
            values["degrees"] *= 1.3  # copies are turned a little further
            chest = Chest(phantom_patient.SimpleNamespace(**values), 64)
            for index in (chest.ix, chest.iy):
                assert index.min() >= 0 and index.max() < len(chest.grid)


def test_smooth_fields_are_gaussian_and_independent_of_size():
    def field(seed, size):
        return smooth_field(np.random.Generator(np.random.Philox(key=[0, seed])), 8, size)

    many = np.stack([field(seed, 64) for seed in range(200)])
    assert abs(many.mean()) < 0.05 and many.std() == pytest.approx(1, abs=0.1)
    fine = field(1, 256).reshape(64, 4, 64, 4).mean((1, 3))
    np.testing.assert_allclose(fine, field(1, 64), atol=0.02)


def test_lesions_lie_in_the_lungs_and_nowhere_in_clear_films(source):
    sizes = []
    for i in range(80):
        lungs, lesion = source.read_mask(i, 64) > 0, source.lesion_mask(i, 64) > 0
        if source.true_labels[i] == 0:
            assert not lesion.any()
            continue
        sizes.append(lesion.sum() / lungs.sum())
        assert not (lesion & ~lungs).any()
    assert np.mean(np.array(sizes) > 0.02) > 0.95 and np.median(sizes) < 0.6


def _centre_distance(source, i):
    """Mean horizontal distance of the lesion from the middle of the lungs, in lung widths."""
    lungs, lesion = source.read_mask(i, 96) > 0, source.lesion_mask(i, 96) > 0
    columns = np.flatnonzero(lungs.any(0))
    middle, half = columns.mean(), np.ptp(columns) / 2
    return np.abs(np.nonzero(lesion)[1] - middle).mean() / half


def test_the_classes_differ_in_where_opacities_lie(source):
    def sides(i):
        lesion = source.lesion_mask(i, 96) > 0
        middle = np.flatnonzero((source.read_mask(i, 96) > 0).any(0)).mean()
        right = (np.nonzero(lesion)[1] < middle).mean()
        return min(right, 1 - right)

    focal, glass, hilar = (
        [i for i in _of_class(source, name, 40) if source.lesion_mask(i, 96).any()]
        for name in CLASSES[1:]
    )
    assert np.mean([sides(i) for i in focal]) < 0.05  # one side
    assert np.mean([sides(i) for i in glass]) > 0.2 < np.mean([sides(i) for i in hilar])
    peripheral = np.mean([_centre_distance(source, i) for i in glass])
    assert peripheral > np.mean([_centre_distance(source, i) for i in hilar]) + 0.2

    def height(i):
        rows = np.flatnonzero((source.read_mask(i, 96) > 0).any(1))
        return (np.nonzero(source.lesion_mask(i, 96))[0].mean() - rows[0]) / np.ptp(rows)

    assert np.mean([height(i) for i in glass]) > 0.55


def test_lesions_are_brighter_than_the_same_lung_without_them(source):
    """The opacity of a film, against the same patient drawn as clear."""
    gains = []
    for i in range(40):
        lesion = source.lesion_mask(i, 64) > 0
        if not lesion.any():
            continue
        healthy = PhantomSource(240, seed=3)
        healthy.true_labels[i] = 0
        change = source.read(i, 64).astype(float) - healthy.read(i, 64)
        gains.append(change[lesion].mean())
        assert np.abs(change[source.read_mask(i, 64) == 0]).mean() < 1.5
    assert min(gains) > 0  # all add density, some hardly any
    assert min(gains) < 12 and max(gains) > 40


def test_markers_follow_the_class(source):
    plain = source
    for rate in (0.4, 1.0):
        marked = PhantomSource(240, seed=3, marker=rate)
        spread = 4 * np.sqrt(240 * rate * (1 - rate))
        assert abs(marked.marked.sum() - 240 * rate) <= spread
        places = [set() for _ in CLASSES]
        for i in range(60):
            change = marked.read(i, 96) != plain.read(i, 96)
            assert change.any() == marked.marked[i]
            if change.any():
                assert change.mean() < 0.02
                rows, columns = np.nonzero(change)
                places[marked.true_labels[i]].add((rows.mean() > 13, columns.mean() > 48))
        assert all(len(place) == 1 for place in places)
        assert len(set.union(*places)) == len(CLASSES)
    assert not plain.marked.any()


@given(count=st.integers(8, 200), rate=st.floats(0, 0.5), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_copies_are_of_originals_of_the_same_class(count, rate, seed):
    source = PhantomSource(count, seed=seed, duplicates=rate)
    copies = np.flatnonzero(source.duplicate_of >= 0)
    assert len(copies) == min(round(rate * count), count - 4)
    originals = source.duplicate_of[copies]
    assert (source.duplicate_of[originals] == -1).all()
    assert (source.true_labels[copies] == source.true_labels[originals]).all()
    assert len({record.patient for record in source.records}) == count


def test_copies_look_like_their_originals_and_are_not_identical():
    source = PhantomSource(120, seed=0, duplicates=0.3, marker=0.5)
    copies = np.flatnonzero(source.duplicate_of >= 0)
    for i in copies[:10].tolist():
        original = int(source.duplicate_of[i])
        a, b = source.read(i, 64), source.read(original, 64)
        assert (a != b).mean() > 0.2 and source.marked[i] == source.marked[original]
        inner = (slice(6, -6), slice(6, -6))
        assert _correlation(a[inner], b[inner]) > 0.97
        lungs, same = source.read_mask(i, 64) > 0, source.read_mask(original, 64) > 0
        assert (lungs & same).sum() / (lungs | same).sum() > 0.93


@given(count=st.integers(8, 200), rate=st.floats(0, 0.5), seed=st.integers(0, 2**31 - 1))
@settings(max_examples=40, deadline=None)
def test_label_noise_is_as_asked_and_known(count, rate, seed):
    source = PhantomSource(count, seed=seed, label_noise=rate)
    labels = np.array([record.label for record in source.records])
    assert (labels != source.true_labels).sum() == round(rate * count)
    assert ((labels >= 0) & (labels < 4)).all()


def test_label_noise_leaves_the_films_alone(source):
    noisy = PhantomSource(240, seed=3, label_noise=0.5)
    for i in range(6):
        np.testing.assert_array_equal(noisy.read(i, 64), source.read(i, 64))


def test_written_folders_lie_like_the_database(tmp_path, source):
    few = PhantomSource(8, seed=1, label_noise=0.25)
    write_folder(few, tmp_path / "out", size=48)
    for i, record in enumerate(few.records):
        kind, file = record.name.split("/")
        folder = tmp_path / "out" / kind
        np.testing.assert_array_equal(Image.open(folder / "images" / file), few.read(i, 48))
        np.testing.assert_array_equal(Image.open(folder / "masks" / file), few.read_mask(i, 48))
        np.testing.assert_array_equal(Image.open(folder / "lesions" / file), few.lesion_mask(i, 48))
    rows = []
    for kind in CLASSES:
        with open(tmp_path / "out" / f"{kind}.metadata.csv", newline="") as file:
            rows += [row | {"kind": kind} for row in csv.DictReader(file)]
    assert {f"{row['kind']}/{row['FILE NAME']}.png" for row in rows} == {
        record.name for record in few.records
    }
    assert {(row["FORMAT"], row["SIZE"], row["SOURCE"]) for row in rows} == {
        ("PNG", "48*48", "phantom")
    }
    with pytest.raises(UserError, match="is not empty"):
        write_folder(few, tmp_path / "out", size=48)


def test_the_classes_can_be_learnt_but_not_perfectly():
    """A linear model on 16x16 thumbnails turned upright onto the lungs sees part of it."""
    source = PhantomSource(900, seed=8)
    features = []
    for i in range(900):
        lungs = source.read_mask(i, 32) > 0
        rows, columns = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
        image = source.read(i, 32).astype(np.float32)
        image = (image - image[lungs].mean()) / image[lungs].std()
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        features.append(np.asarray(Image.fromarray(image).resize((16, 16), box=box)).ravel())
    x = np.stack(features)
    model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=300.0))
    model.fit(x[:700], source.true_labels[:700])
    accuracy = model.score(x[700:], source.true_labels[700:])
    assert 0.45 < accuracy < 0.95  # chance: 0.25
