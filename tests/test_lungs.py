"""The lung segmentation: what comes with the package finds lungs, and can be made anew."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

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
