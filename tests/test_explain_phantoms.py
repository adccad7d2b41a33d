"""On phantoms whose class a planted marker tells, maps of every method move to the marker."""

import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import config as config_lib
from cxrjax import loop, trained
from cxrjax.data.phantom import PhantomSource
from cxrjax.explain import maps, methods, perturbation, sanity, scores
from cxrjax.models.grid import pixels

SIZE = 64
# Energy on the marker over that of an even map; measured 5 to 10, of smooth_grad 2.9.
LEAST = dict.fromkeys(methods.METHODS, 2.5) | {"smooth_grad": 1.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = config_lib.default()
    config.data.image_size = SIZE
    config.data.phantom.count = 400
    config.data.phantom.marker = 1.0
    config.model.filters = 16
    config.train.epochs = 8
    config.eval.resamples = 100
    folder = tmp_path_factory.mktemp("marker") / "run"
    result, _ = loop.train_and_evaluate(config, folder)
    assert result["test"]["accuracy"]["value"] > 0.9
    found = trained.load(folder)
    data = found.data()
    positions = data.splits["test"][:24]
    return found, np.asarray(data.store.images[positions]), markers(found, data, positions)


def markers(run, data, positions):
    """Bounding box of what differs from the same phantoms without marker."""
    p = run.config.data.phantom
    marked, plain = PhantomSource(p.count, p.seed, p.marker), PhantomSource(p.count, p.seed)
    of = {record.name: i for i, record in enumerate(marked.records)}
    boxes = np.zeros((len(positions), SIZE, SIZE), bool)
    for box, i in zip(boxes, positions, strict=True):
        k = of[data.store.names[i]]
        y, x = np.nonzero(marked.read(k, SIZE) != plain.read(k, SIZE))
        box[max(y.min() - 2, 0) : y.max() + 3, max(x.min() - 2, 0) : x.max() + 3] = True
    return boxes


@pytest.mark.parametrize("method", methods.METHODS)
def test_maps_move_to_the_marker(run, method):
    found, images, boxes = run
    explainer = maps.Explainer(found, method)
    probabilities, raw = explainer(images)
    chosen = raw[np.arange(len(raw)), probabilities.argmax(1)]
    energy = np.nanmean(scores.share_inside(maps.enlarge(chosen, explainer.grid), boxes))
    assert energy > LEAST[method] * boxes.mean(), energy / boxes.mean()


def checked(found, method, images, depths=None):
    explainer = maps.Explainer(found, method)
    classes = found.predict(images).argmax(1)
    return sanity.check(explainer, images, classes, np.arange(len(images)), depths)


def test_random_weights_change_the_map(run):
    found, images, _ = run
    result = checked(found, "grad_cam", images[:8])
    assert list(result["layers"]) == ["logits", "conv4", "conv3", "conv2", "conv1"]
    assert result["passed"] and "passed" in sanity.sentence(result, "grad_cam")
    same = sanity.randomised(found, 0)
    np.testing.assert_array_equal(same.predict(images[:2]), found.predict(images[:2]))


@pytest.mark.parametrize("signed", [False, True])
def test_a_method_that_ignores_the_weights_fails(run, monkeypatch, signed):
    """Edges of the film, and edges whose sign alone the weights decide."""

    def edges(score, x):
        sign = jnp.where(score(x) > 0, 1, -1)[:, None, None] if signed else 1
        return sign * jnp.abs(x[..., 0] - jnp.roll(x[..., 0], 1, axis=1))

    found, images, _ = run
    monkeypatch.setitem(methods.AT_INPUT, "smooth_grad", edges)
    result = checked(found, "smooth_grad", images[:8], depths=[5])
    assert result["passed"] is False and "FAILED" in sanity.sentence(result, "smooth_grad")


def test_all_random_weights_share_one_program(run, monkeypatch):
    found, images, _ = run
    traced = []
    grad_cam = methods.CAMS["grad_cam"]
    monkeypatch.setitem(methods.CAMS, "grad_cam", lambda *a: (traced.append(1), grad_cam(*a))[1])
    checked(found, "grad_cam", images[:2], depths=[1, 5])
    assert len(traced) == 1


def test_the_marker_beats_a_map_that_knows_nothing(run):
    found, images, boxes = run
    groups, classes = np.arange(len(images)), found.predict(images).argmax(1)
    far = np.roll(boxes, SIZE // 2, axis=(1, 2))

    def gains(where):
        of = images, where * 1.0, pixels(SIZE), classes, groups
        result = perturbation.faithfulness(found.predict, *of)
        return result["gain"]["shuffled"]["deletion"]

    assert gains(boxes)["low"] > 0
    assert not gains(far)["low"] > 0
