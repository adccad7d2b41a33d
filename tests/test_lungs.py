"""The lung segmentation: what comes with the package finds lungs, and can be made anew."""

from __future__ import annotations

import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cxrjax import lungs
from cxrjax.errors import UserError
from cxrjax.lungs import __main__ as command
from cxrjax.lungs import network, segment, training


@pytest.fixture(scope="module")
def phantoms():
    return training.phantoms(48, seed=77)


def test_lungs_of_unseen_phantoms(phantoms):
    each = training.dice(phantoms, segment.load(segment.WEIGHTS))
    assert each.mean() > 0.93 and each.min() > 0.8


def test_lungs_of_annotated_films(shared):
    _, rest = training.halves(training.annotated_films(shared("data/lung-masks.zip")))
    found = training.mean_interval(training.dice(rest, segment.load(segment.WEIGHTS)))
    assert found["n"] > 100 and found["low"] > 0.93


def test_the_weights_are_small_and_say_where_they_are_from():
    assert segment.WEIGHTS.stat().st_size < 2**20
    with np.load(segment.WEIGHTS, allow_pickle=False) as kept:
        assert "phantoms" in str(kept["note/trained_on"])


def test_masks_have_the_size_of_the_films(phantoms):
    tall = np.stack([np.repeat(film, 2, axis=0)[:, :60] for film in phantoms.films[:3]])
    found = lungs.masks(tall)
    assert found.shape == tall.shape and found.dtype == bool
    whole = lungs.masks(phantoms.films[:3])
    larger = lungs.masks(phantoms.films[:3].repeat(3, axis=1).repeat(3, axis=2))
    assert (larger[:, 1::3, 1::3] == whole).mean() > 0.98
    assert lungs.masks(np.zeros((0, 32, 32), np.uint8)).shape == (0, 32, 32)


def test_a_film_without_lungs_gets_an_empty_mask():
    flat = np.full((2, 64, 64), 90, np.uint8)
    assert not lungs.masks(flat).any()


def test_blank_masks_of_a_data_set_say_nothing(phantoms):
    """Where they are not even sought, "without lungs" would be the film as it is."""
    masks = phantoms.masks[:4].astype(np.uint8) * 255
    masks[1] = 0
    store = SimpleNamespace(
        images=phantoms.films[:4], masks=masks, has_mask=np.array([True, True, True, False])
    )
    found, known = lungs.of_store(store, np.array([3, 1, 0]), lungs.masks)
    np.testing.assert_array_equal(known, [False, False, True])
    np.testing.assert_array_equal(found[:2], lungs.masks(phantoms.films[[3, 1]]))
    np.testing.assert_array_equal(found[2], masks[0] > 0)
    assert found.any((1, 2)).all()


def test_masks_do_not_depend_on_the_other_films(phantoms):
    together = lungs.masks(phantoms.films)
    assert (lungs.masks(phantoms.films[5:6])[0] == together[5]).all()


def test_at_most_two_pieces_without_holes_are_kept():
    logits = np.full((40, 40), -3.0)
    logits[5:25, 4:14] = logits[5:25, 20:30] = 3.0
    logits[10:13, 6:9] = -2.0  # a hole
    logits[30:33, 30:33] = 3.0  # too small for a lung
    kept = segment._largest_two(logits) > 0
    wanted = np.zeros((40, 40), bool)
    wanted[5:25, 4:14] = wanted[5:25, 20:30] = True
    assert (kept == wanted).all()


def test_training_learns_and_its_weights_come_back(phantoms, tmp_path):
    untrained = training.dice(phantoms, network.init(0)).mean()
    params = training.train([phantoms], steps=40)
    assert training.dice(phantoms, params).mean() > max(0.5, untrained + 0.2)
    segment.save(tmp_path / "w.npz", params, trained_on="a test")
    again = segment.load(tmp_path / "w.npz")
    assert all(np.allclose(params[name], again[name], rtol=1e-3, atol=1e-4) for name in params)


def test_dice_is_twice_the_overlap_over_the_sum(phantoms, monkeypatch):
    shifted = np.roll(phantoms.masks, 2, axis=2)
    monkeypatch.setattr(segment, "masks", lambda films, params: shifted)
    for value, a, b in zip(training.dice(phantoms, {}), shifted, phantoms.masks, strict=True):
        pairs = set(zip(*np.nonzero(a), strict=True)), set(zip(*np.nonzero(b), strict=True))
        both = len(pairs[0] & pairs[1])
        assert value == pytest.approx(2 * both / (len(pairs[0]) + len(pairs[1])))


def test_halves_share_no_near_duplicates(phantoms):
    doubled = training.Annotated(
        phantoms.names + tuple(f"copy of {name}" for name in phantoms.names),
        np.concatenate([phantoms.films, phantoms.films]),
        np.concatenate([phantoms.masks, phantoms.masks]),
    )
    one, other = training.halves(doubled)
    assert len(one.names) + len(other.names) == 96
    originals = [{name.removeprefix("copy of ") for name in part.names} for part in (one, other)]
    assert not originals[0] & originals[1]


def annotated(folder, sites=("",), count=3, lungs=20):
    """Films of one grey each, whose lungs are the first columns; more of them at later sites."""
    for k, site in enumerate(sites):
        for kind in ("images", "masks"):
            (folder / site / kind).mkdir(parents=True)
        for i in range(count):
            film, mask = np.full((64, 64), 60 + 40 * k + i, np.uint8), np.zeros((64, 64), np.uint8)
            mask[:, : lungs + 20 * k] = 255
            Image.fromarray(film).save(folder / site / "images" / f"{i}.png")
            Image.fromarray(mask).save(folder / site / "masks" / f"{i}.png")
    return folder


def test_films_are_paired_within_their_folder(tmp_path):
    """Two hospitals count their films alike: all are kept, each with the mask of its own."""
    folder = annotated(tmp_path / "films", sites=("a", "b"))
    (folder / "b" / "masks" / "0.png").unlink()
    found = training.annotated_films(folder)
    assert found.names == ("a/0", "a/1", "b/1", "a/2", "b/2")
    assert found.films[:, 0, 0].tolist() == [60, 61, 101, 62, 102]
    wide = found.masks[:, 0].mean(axis=1) * 64
    assert wide == pytest.approx([20, 20, 40, 20, 40], abs=1)
    assert training.annotated_films(folder / "a").names == ("0", "1", "2")
    label_map = np.asarray(Image.open(folder / "a/masks/0.png")) // 255  # of 0 and 1
    Image.fromarray(label_map).save(folder / "a/masks/0.png")
    np.testing.assert_array_equal(training.annotated_films(folder).masks, found.masks)


def refused(capsys, *arguments):
    """What is told of bad input: one sentence."""
    assert command.main([*map(str, arguments)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("cxrjax: ") and told.count("\n") == 1
    return told


@pytest.fixture
def untrained(monkeypatch):
    """Training, or so much as drawing phantoms, is the failure of a test."""
    for name in ("train", "phantoms"):
        monkeypatch.setattr(training, name, lambda *_, **__: pytest.fail("it began"))


@pytest.mark.parametrize(("flag", "least"), [("--steps", 1), ("--phantoms", 4)])
@pytest.mark.parametrize("below", [1, 6])
@pytest.mark.usefixtures("untrained")
def test_too_little_to_train_on_or_for_is_told(tmp_path, capsys, flag, least, below):
    count = least - below
    told = refused(capsys, "train", f"{flag}={count}", "--out", tmp_path / "w.npz")
    assert f"{flag} is {count}; give {least} or more." in told


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("nowhere/w.npz", "no such file or directory; choose another --out."),
        ("file/w.npz", "not a directory; choose another --out."),
        ("folder", "is a directory; choose another --out."),
    ],
)
@pytest.mark.usefixtures("untrained")
def test_where_weights_cannot_be_written_is_told_before_training(tmp_path, capsys, out, words):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    told = refused(capsys, "train", "--phantoms=4", "--steps=1", "--out", tmp_path / out)
    assert f"cannot write to {tmp_path / out}: {words}" in told
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder"}


@pytest.mark.usefixtures("untrained")
def test_a_single_film_has_no_half_to_train_on(tmp_path, capsys):
    folder = annotated(tmp_path / "films", count=1)
    told = refused(
        capsys, "train", "--masks", folder, "--phantoms=4", "--steps=1", "--out", tmp_path / "w.npz"
    )
    assert f"{folder} holds one film, or copies of one: no half is left to train on" in told


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_broken_film_or_mask_is_told(tmp_path, capsys, kind):
    folder = annotated(tmp_path / "films")
    (folder / kind / "1.png").write_bytes(b"no image")
    told = refused(capsys, "evaluate", "--masks", folder)
    assert f"{kind}/1.png: its content is not PNG" in told and str(folder) in told


@pytest.mark.parametrize("damage", ["an array", "a bad stream", "words"])
def test_weights_that_are_no_weights_are_told(tmp_path, capsys, damage):
    weights = tmp_path / "w.npz"
    if damage == "an array":
        weights = tmp_path / "w.npy"
        np.save(weights, np.zeros(3))
    elif damage == "words":
        np.savez(weights, **{name: np.array("x") for name in network.init(0)})
    else:
        data = bytearray(segment.WEIGHTS.read_bytes())
        with zipfile.ZipFile(segment.WEIGHTS) as archive:
            member = archive.infolist()[4]
        # A block of the kind that deflate does not have, in the middle of an array.
        data[member.header_offset + 30 + len(member.filename) + 20] = 0xFF
        weights.write_bytes(data)
    told = refused(
        capsys, "evaluate", "--masks", annotated(tmp_path / "films"), "--weights", weights
    )
    assert f"weights {weights} cannot be read (" in told
    assert told.endswith("; make them anew by python -m cxrjax.lungs train.\n")


def test_damaged_weights_are_told(tmp_path, capsys):
    path = tmp_path / "w.npz"
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"python -m cxrjax\.lungs train"):
        segment.load(path)
    np.savez(path, **{name: np.zeros(3) for name in network.init(0)})
    with pytest.raises(UserError, match="shape"):
        segment.load(path)
    assert command.main(["evaluate", "--masks", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err
