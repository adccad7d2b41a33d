"""Whole epochs as one program, as on accelerators, against one program per step."""

import signal

import jax
import numpy as np
import pytest
from test_prefix import assert_same_training, opened, tiny, trained
from test_training import RECIPE

from cxrjax import loop, prefix, runtime
from cxrjax.data.batches import Plan
from cxrjax.data.resident import ResidentInput


@pytest.fixture
def scanned(monkeypatch):
    monkeypatch.setattr(runtime, "steps_per_dispatch", lambda: 4)


@pytest.mark.parametrize(("layers", "options"), [(-1, {}), (3, {}), (3, RECIPE)])
def test_scanned_epochs_equal_single_steps(tmp_path, monkeypatch, layers, options):
    """36 images in batches of 8: a program of four steps and one of the last."""
    changes = {"cache__prefix": False, "model__trainable_layers": layers, "train__epochs": 2}
    changes |= options
    settings = tiny(tmp_path / "cache", input__path="resident", **changes)
    single = trained(settings, tmp_path / "single")
    lengths = []
    make = loop.build.scan_program

    def counting(*arguments):
        run = make(*arguments)
        return lambda state, rows, labels, index, mask, view: (
            lengths.append(len(index)),
            run(state, rows, labels, index, mask, view),
        )[1]

    monkeypatch.setattr(runtime, "steps_per_dispatch", lambda: 4)
    monkeypatch.setattr(loop.build, "scan_program", counting)
    whole = trained(settings, tmp_path / "whole")
    assert lengths == [4, 1] * 2
    assert_same_training(single, whole)


def test_stopped_between_programs_and_resumed(tmp_path, scanned):
    settings = tiny(tmp_path / "cache", cache__prefix=False, input__path="resident")
    with opened(settings, tmp_path / "run") as training:
        steps = training._steps

        def interrupted(plan, done):
            for losses, n in steps(plan, done):
                signal.raise_signal(signal.SIGINT)
                yield losses, n

        training._steps = interrupted
        with pytest.raises(KeyboardInterrupt, match="resume"):
            training.fit()
        assert int(training.state.step) == 4
    with opened(settings, tmp_path / "run") as training:
        training.resume()
        assert int(training.state.step) == 4
        training.fit()
        resumed = (
            training,
            jax.device_get(training.state),
            training.predict("test", *training.best)[0],
        )
    assert_same_training(resumed, trained(settings, tmp_path / "whole"), atol=1e-6)


def test_stored_maps_on_the_device_are_those_on_disk(tmp_path, monkeypatch, scanned):
    settings = tiny(tmp_path / "cache", augment__shift=0.1, cache__views=2)
    streamed = trained(settings, tmp_path / "streamed")
    monkeypatch.setattr(
        prefix.FrozenMaps,
        "resident",
        lambda self: ResidentInput(self._file.map(), self._labels, "maps"),
    )
    resident = trained(settings, tmp_path / "resident")
    assert resident[0]._scans, "the scan was not used"
    assert_same_training(streamed, resident)


def test_views_lie_one_after_the_other():
    maps = np.arange(3 * 5 * 2, dtype=np.float32).reshape(15, 1, 1, 2)  # 3 views of 5 images
    source = ResidentInput(maps, np.arange(5), "maps")
    for view in range(3):
        plan = Plan(np.array([[4, 0]], np.int32), np.ones((1, 2), bool), view)
        (batch,) = source.batches(plan)
        np.testing.assert_array_equal(batch["maps"], maps[[5 * view + 4, 5 * view]])
        np.testing.assert_array_equal(batch["label"], [4, 0])
