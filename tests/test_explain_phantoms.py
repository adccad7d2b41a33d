"""On phantoms whose class a planted marker tells, maps of every method move to the marker."""

import numpy as np
import pytest

from cxrjax import config as config_lib
from cxrjax import loop, trained
from cxrjax.data.phantom import PhantomSource
from cxrjax.explain import maps, methods, sanity, scores

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
    probabilities, raw = maps.Explainer(found, method)(images)
    chosen = raw[np.arange(len(raw)), probabilities.argmax(1)]
    energy = np.nanmean(scores.share_inside(maps.enlarge(chosen, SIZE), boxes))
    assert energy > LEAST[method] * boxes.mean(), energy / boxes.mean()


def test_random_weights_change_the_map(run):
    found, images, _ = run
    checked = sanity.check(found, "grad_cam", images[:8], depths=[1, 4])
    assert list(checked["layers"]) == ["logits", "conv2"] and checked["passed"]
    same = sanity.randomised(found, 0)
    np.testing.assert_array_equal(same.predict(images[:2]), found.predict(images[:2]))


def test_a_method_that_ignores_the_weights_fails(run, monkeypatch):
    found, images, _ = run
    monkeypatch.setitem(methods.AT_INPUT, "smooth_grad", lambda score, x: x[..., 0])
    assert not sanity.check(found, "smooth_grad", images[:2], depths=[5])["passed"]
