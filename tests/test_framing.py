"""Films cut to the lungs: what is kept and what is not; training and prediction see the same."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cxrjax import config as config_lib
from cxrjax import main, predict, trained
from cxrjax.audit import shortcuts
from cxrjax.data import dataset, framing, store
from cxrjax.data.images import BrokenImage
from cxrjax.data.phantom import PhantomSource
from cxrjax.errors import UserError

SIDE = 64


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    lung = np.zeros((SIDE, SIDE), bool)
    lung[top:bottom, left:right] = True
    return lung


@given(
    st.tuples(*[st.integers(0, SIDE - 1)] * 4),
    st.sampled_from(["lungs_box", "lungs_only"]),
    st.sampled_from([16, 33, 96]),
)
def test_all_of_the_lungs_is_kept_whatever_their_place(corners, how, size):
    (top, bottom), (left, right) = sorted(corners[:2]), sorted(corners[2:])
    lung = rectangle(top, bottom + 1, left, right + 1)
    film = np.where(lung, np.uint8(200), np.uint8(90))
    image, mask = framing.frame(film, lung, how, size)
    assert image.shape == mask.shape == (size, size) and image.dtype == mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, 255} and image[image > 0].min() >= 90
    box = framing._square(lung)
    assert all(0 <= share <= 1 + 1e-9 for share in box)
    assert box[2] - box[0] == pytest.approx(box[3] - box[1])
    assert box[0] <= left / SIDE and box[2] >= (right + 1) / SIDE - 1e-9
    assert box[1] <= top / SIDE and box[3] >= (bottom + 1) / SIDE - 1e-9
    assert framing.grown(mask > 0).any()
    outside = image[~framing.grown(mask > 0)]
    assert (outside == 0).all() if how == "lungs_only" else (outside >= 90).all()


def test_the_cut_is_the_part_of_the_film_around_the_lungs():
    """A ramp tells where each row of the cut is from."""
    film = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 256, axis=1)
    image, mask = framing.frame(film, rectangle(16, 48, 24, 40), "lungs_box", 100)
    margin = framing.MARGIN * 256
    first, last = 64 - margin, 192 + margin
    expected = first + (np.arange(100) + 0.5) * (last - first) / 100 - 0.5
    np.testing.assert_allclose(image[:, 50].astype(float), expected, atol=1)
    share = 32 / (32 + 2 * framing.MARGIN * SIDE)
    assert (mask > 0).any(axis=1).mean() == pytest.approx(share, abs=0.03)
    assert (mask > 0).any(axis=0).mean() == pytest.approx(share / 2, abs=0.03)


def test_a_film_without_lungs_stays_whole():
    film = np.random.default_rng(0).integers(0, 256, (80, 80), np.uint8)
    image, mask = framing.frame(film, np.zeros((SIDE, SIDE), bool), "lungs_only", 80)
    assert mask is None and (image == film).all()
    blank = np.zeros((50, 70), np.uint8)
    images, found = framing.of_films([blank], "lungs_box", 32)
    assert images.shape == (1, 32, 32) and not found[0]
    none, found = framing.of_films([], "lungs_box", 32)
    assert none.shape == (0, 32, 32) and found.shape == (0,)


def config(tmp_path: Path, frame: str, **changes):
    settings = config_lib.default()
    settings.data.update(image_size=48, cache=str(tmp_path / "cache"), frame=frame, **changes)
    settings.data.phantom.update(count=80, duplicates=0.1)
    return settings


def test_cutting_changes_films_and_neither_split_nor_copies(tmp_path):
    whole, cut, lungs = (dataset.prepare(config(tmp_path, frame)) for frame in framing.FRAMES)
    assert whole.digest == cut.digest == lungs.digest
    assert whole.fingerprint == cut.fingerprint == lungs.fingerprint
    assert (whole.groups == cut.groups).all() and len(np.unique(whole.groups)) < 80
    assert len({whole.store.key, cut.store.key, lungs.store.key}) == 3
    assert cut.store.has_mask.all()
    black = (lungs.store.images[:] == 0).mean()
    assert black > 0.2 > (cut.store.images[:] == 0).mean()
    share = np.mean(cut.store.masks[:] > 0)
    assert share > 1.1 * np.mean(whole.store.masks[:] > 0)  # the lungs fill more of the film


def test_lungs_are_sought_once(tmp_path, monkeypatch):
    dataset.prepare(config(tmp_path, "lungs_box"))
    monkeypatch.setattr(framing.segment, "masks", None)
    assert dataset.prepare(config(tmp_path, "lungs_only")).store.has_mask.all()


def test_lungs_and_copies_are_sought_anew_where_films_are_decoded_another_way(
    tmp_path, monkeypatch
):
    films = dataset.prepare(config(tmp_path, "lungs_box")).store
    sought = {path.name for path in films.root.parent.glob("*.npz")}
    for module in (store, dataset, framing):
        monkeypatch.setattr(module, "FORMAT", 99)
    films = dataset.prepare(config(tmp_path, "lungs_box")).store
    anew = {path.name for path in films.root.parent.glob("*.npz")} - sought
    assert sorted(name.split("-")[0] for name in anew) == ["duplicates", "lungs"]


def test_a_broken_film_is_told_when_it_is_decoded(tmp_path):
    class Broken(PhantomSource):
        def read(self, i, size):
            if i == 1:
                raise BrokenImage("it", "damaged")
            return super().read(i, size)

    source = framing.Framed(Broken(8, 0), "lungs_box", tmp_path)
    assert source.read(0, 32).shape == (32, 32)
    with pytest.raises(BrokenImage, match="damaged"):
        source.read(1, 32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on PNG files of whole phantoms, trained on their lungs alone."""
    root = tmp_path_factory.mktemp("framed")
    source = PhantomSource(120, 5)
    for i, record in enumerate(source.records):
        folder = root / "films" / source.classes[record.label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(i, 90)).save(folder / f"{i}.png")
    fields = {
        "data.name": "folder",
        "data.dir": root / "films",
        "data.cache": root / "cache",
        "data.frame": "lungs_only",
        "data.image_size": 40,
        "model.filters": 4,
        "train.epochs": 1,
        "eval.resamples": 100,
    }
    asked = [f"--config.{field}={value}" for field, value in fields.items()]
    config_file = str(Path(__file__).parents[1] / "configs" / "quickstart.py")
    assert main.main(["--config", config_file, "--workdir", str(root / "run"), *asked]) == 0
    return root / "run"


def test_prediction_sees_what_training_saw(run, capsys):
    opened = trained.load(run)
    store = opened.data().store
    folder = Path(opened.config.data.dir)
    films = [np.asarray(Image.open(folder / name)) for name in store.names[:9]]
    images, found = opened.see(films)
    assert found.all() and (images == store.images[:9]).all()

    with open(run / "predictions.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["split"] == "test")
    (run / "calibration.json").unlink()
    assert predict.main(["--workdir", str(run), str(folder / row["name"])]) == 0
    told = json.loads(capsys.readouterr().out)["probabilities"]
    assert told == pytest.approx({name: float(row[name]) for name in told}, abs=1e-5)


def test_a_film_without_lungs_is_predicted_with_a_warning(run, tmp_path, capsys):
    Image.fromarray(np.full((90, 90), 77, np.uint8)).save(tmp_path / "none.png")
    assert predict.main(["--workdir", str(run), str(tmp_path / "none.png")]) == 0
    assert "no lungs are found" in capsys.readouterr().out


def test_the_score_of_lungs_alone_rests_on_their_outline(run):
    result = json.loads((run / "result.json").read_text())
    assert result["input"]["frame"] == "lungs_only"
    shown = result["audit"]["shortcuts"]
    assert shown["without"] == "flat_lungs" and "without_lungs" not in shown["views"]
    store = trained.load(run).data().store
    image, lung = np.asarray(store.images[0]), store.masks[0] > 0
    assert not shortcuts.without_lungs(image, lung).any()
    flat = shortcuts.flat_lungs(image, lung)
    assert len(np.unique(flat)) == 2 and flat[lung][0] == int(image[lung].mean())


def test_another_segmentation_is_refused(run, monkeypatch):
    monkeypatch.setattr(framing, "segmentation", lambda: "another")
    with pytest.raises(UserError, match="another version of cxrjax"):
        trained.load(run)
