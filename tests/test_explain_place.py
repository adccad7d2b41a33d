"""Maps are laid where the network looked: cells at their receptive fields, blobs on blobs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_explain import recipe_of
from test_grid import averaging

from cxrjax import config as config_lib
from cxrjax import trained
from cxrjax.explain import consensus, maps, scores
from cxrjax.models import classifier
from cxrjax.models.grid import Grid, pixels

SIDE = 224


def network(name, convention):
    """A finished run, as far as explaining needs it, of a network that takes plain means.

    Films are scaled to be small and not negative, so that it is linear but for its max-pools.
    """
    entry, backbone = averaging(name, convention)
    config = config_lib.default()
    config.model.name = name
    config.model.head.dense = 0
    model = classifier.build(config.model, 2, contract=None)
    model.backbone = backbone
    graphdef, params, stats = classifier.split(model)
    params["head"]["logits"]["kernel"] = jnp.ones_like(params["head"]["logits"]["kernel"])
    recipe = recipe_of(graphdef, 2, (0.0,) * entry.channels, (1e4,) * entry.channels)
    return trained.Trained(
        folder=Path("none"),
        config=config,
        classes=("a", "b"),
        spec=entry,
        contract={"image_size": SIDE},
        digest="",
        fingerprint="",
        best_epoch=0,
        recipe=recipe,
        params=params,
        batch_stats=stats,
    )


@pytest.mark.parametrize(
    ("name", "convention"),
    [("resnet50v2", "keras"), ("mobilenetv2", "keras"), ("mobilenetv2", "torch")],
)
def test_the_map_of_a_blob_lies_on_the_blob(name, convention):
    """Within an eighth of a cell: beyond the outermost cells maps are cut off, which moves them."""
    explainer = maps.Explainer(network(name, convention))
    places = np.array([(y, x) for y in (84, 111, 139) for x in (84, 139)])
    y, x = np.mgrid[:SIDE, :SIDE]
    blobs = [np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 2 / 11**2) for at in places]
    films = np.rint(255 * np.stack(blobs)).astype(np.uint8)
    probabilities, raw = explainer(films)
    found = maps.Explained(
        *(np.arange(6), films, np.zeros(6, int), np.arange(6), probabilities, raw),
        grid=explainer.grid,
        names=("",) * 6,
    )
    evidence = np.abs(found.of_predicted()) ** 2
    centres = [[(evidence * axis).sum() for axis in (y, x)] for evidence in evidence]
    off = np.array(centres) / evidence.sum((1, 2))[:, None] - places
    assert np.abs(off.mean(0)).max() < 4, off


@pytest.mark.parametrize("grid", [Grid(0, 32, 7, 224), Grid(31, 32, 7, 224), Grid(37, 32, 1, 75)])
def test_each_cell_is_drawn_at_its_centre(grid):
    raw = np.random.default_rng(0).normal(size=(2, grid.cells, grid.cells))
    drawn = maps.enlarge(raw, grid)
    assert drawn.shape == (2, grid.side, grid.side) and drawn.dtype == np.float32
    centres = grid.offset + grid.stride * np.arange(grid.cells)
    columns = drawn[..., centres]
    np.testing.assert_allclose(columns[:, centres], raw, rtol=1e-6)
    between = columns[:, centres[:-1] + 16]
    np.testing.assert_allclose(between, (raw[:, :-1] + raw[:, 1:]) / 2, rtol=1e-5, atol=1e-6)
    assert (columns[:, : centres[0]] == columns[:, :1]).all()  # beyond the outermost


def halves(cells, side):
    """Cells that share the film out evenly."""
    stride = side // cells
    return Grid((stride - 1) / 2, stride, cells, side)


@pytest.mark.parametrize(("cells", "others"), [(8, 64), (64, 8), (16, 8), (4, 8)])
def test_between_even_cells_maps_are_resized(cells, others):
    raw = np.random.default_rng(0).normal(size=(3, cells, cells)).astype(np.float32)
    ours = maps.resampled(raw, halves(cells, 64), halves(others, 64))
    theirs = jax.image.resize(raw, (3, others, others), "linear")
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_maps_of_networks_that_look_elsewhere_agree_where_the_film_is_the_same():
    """As many cells in other places, and the pixels of one of the two."""

    def cells_of(grid):
        wave = np.sin(0.05 * (grid.offset + grid.stride * np.arange(grid.cells)))
        return consensus.Maps(wave[None, :, None] + wave, grid)

    one, other = cells_of(Grid(0, 32, 7, 224)), cells_of(Grid(31, 32, 7, 224))
    assert consensus.alike(one, other)[0] > scores.agreement(one.raw, other.raw)[0] + 0.3
    fine = consensus.Maps(maps.enlarge(*one), pixels(224))
    assert consensus.alike(one, fine)[0] > 0.9
