"""Where the cells of maps lie, held to where networks look: coordinates sent through them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cxrjax.models import registry
from cxrjax.models.layers import Conv, DepthwiseConv

SMALL = 1e-5  # keeps what grows in sums of blocks below the 6 of ReLU6


def averaging(name, convention="keras"):
    """A network whose kernels take plain means: all its layers but the maxima are linear."""
    entry = registry.spec(name)
    options = {} if convention == "keras" else {"convention": convention}
    backbone = entry.load()(np.random.default_rng(0), channels=entry.channels, **options)
    for layer in (getattr(backbone, name, None) for name in backbone.layers):
        if isinstance(layer, Conv | DepthwiseConv):
            shape = layer.kernel.shape
            layer.kernel = nnx.Param(jnp.full(shape, 1 / np.prod(shape[:3])))
    return entry, backbone


def centres(entry, backbone, side):
    """What each stage's cell in the middle makes of pixels that hold their row or column.

    A maximum takes the rising and the falling coordinate from opposite sides of its window, so
    that half their difference is the window's middle. {stage: (row, column) in pixels}.
    """
    along = np.broadcast_to(np.arange(side), (side, side))
    flat = np.ones((side, side))
    images = np.stack([flat, along.T, side - along.T, along, side - along]) * SMALL
    images = np.repeat(images[..., None], entry.channels, axis=-1).astype(np.float32)
    stages = jax.jit(backbone.stages)(images)
    found = {}
    for stage, maps in stages.items():
        middle = maps.shape[1] // 2
        one, *ramps = np.asarray(maps[:, middle, middle, 0], np.float64)
        down, up, right, left = (ramp / one for ramp in ramps)
        found[stage] = (down - up + side) / 2, (right - left + side) / 2
    return found


@pytest.mark.parametrize(
    ("name", "convention", "side"),
    [
        ("baseline", "keras", 64),
        ("densenet121", "keras", 224),
        ("inceptionv3", "keras", 459),  # padding draws the mean of its wide windows to the middle
        ("mobilenetv2", "keras", 224),  # TensorFlow's padding depends on the parity of every side
        ("mobilenetv2", "keras", 223),
        ("mobilenetv2", "torch", 224),
        ("resnet50v2", "keras", 288),
    ],
)
def test_cells_lie_where_networks_look(name, convention, side):
    entry, backbone = averaging(name, convention)
    grids = backbone.grids(side)
    found = centres(entry, backbone, side)
    assert set(grids) == set(found)
    for stage, seen in found.items():
        middle = grids[stage].offset + grids[stage].stride * (grids[stage].cells // 2)
        np.testing.assert_allclose(seen, middle, atol=0.5, err_msg=stage)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("side", [75, 128, 129])
def test_there_are_as_many_cells_as_the_maps_have(name, side):
    entry, backbone = averaging(name)
    image = jax.ShapeDtypeStruct((1, side, side, entry.channels), jnp.float32)
    found = {stage: maps.shape[1] for stage, maps in jax.eval_shape(backbone.stages, image).items()}
    assert {stage: grid.cells for stage, grid in backbone.grids(side).items()} == found
