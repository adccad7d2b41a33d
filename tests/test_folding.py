"""Folding batch norm into convolutions: the same outputs, only where the order allows it."""

import jax
import numpy as np
import pytest

from cxrjax import config
from cxrjax.models import classifier, registry

# Batch norms that stay: before a ReLU and only then a convolution, or before a max-pool's input.
STAYING = {
    "baseline": {"bn1", "bn2", "bn3"},
    "densenet121": {"bn", "pool2_bn", "pool3_bn", "pool4_bn"}
    | {
        f"conv{stage}_block{block}_0_bn"
        for stage, count in ((2, 6), (3, 12), (4, 24), (5, 16))
        for block in range(1, count + 1)
    },
    "resnet50v2": {"post_bn"}
    | {
        f"conv{stage}_block{block}_preact_bn"
        for stage, count in ((2, 3), (3, 4), (4, 6), (5, 3))
        for block in range(1, count + 1)
    },
    "mobilenetv2": set(),
    "inceptionv3": set(),
}


def with_random_statistics(name):
    settings = config.default()
    settings.model.name = name
    model = classifier.build(settings.model, n_classes=4)
    graphdef, params, batch_stats = classifier.split(model)
    rng = np.random.default_rng(0)
    ranges = {"scale": (0.5, 1.5), "mean": (-0.5, 0.5), "var": (0.5, 2.0), "bias": (-0.5, 0.5)}

    def draw(path, leaf):
        kind = path[-1].key
        return leaf if kind == "kernel" else rng.uniform(*ranges[kind], leaf.shape).astype("f4")

    params, batch_stats = jax.tree_util.tree_map_with_path(draw, (params, batch_stats))
    return model, (graphdef, params, batch_stats)


def features(graphdef, params, batch_stats, x):
    run = jax.jit(lambda p, b: classifier.merge(graphdef, p, b).features(x))
    return np.asarray(run(params, batch_stats))


@pytest.mark.parametrize("name", registry.names())
def test_folded_network_equals_the_plain_one(name):
    model, plain = with_random_statistics(name)
    x = np.random.default_rng(1).normal(size=(2, 96, 96, registry.spec(name).channels))
    before = jax.tree.map(np.array, plain[1:])
    folded = classifier.folded(model, *plain[1:])
    ours, theirs = (features(*parts, x.astype(np.float32)) for parts in (folded, plain))
    assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()
    assert set(folded[2]["backbone"] if folded[2] else ()) == STAYING[name]
    jax.tree.map(np.testing.assert_array_equal, before, plain[1:])  # those given are unchanged


@pytest.mark.parametrize("name", ["densenet121", "mobilenetv2"])
def test_what_is_trained_stays_as_it_is(name):
    model, plain = with_random_statistics(name)
    keep = classifier.trainable_layer_names(model, 20)
    _, params, batch_stats = classifier.folded(model, *plain[1:], keep)
    for tree, original in ((params, plain[1]), (batch_stats, plain[2])):
        for layer, group in original["backbone"].items():
            if layer in keep:
                jax.tree.map(np.testing.assert_array_equal, tree["backbone"][layer], group)
    assert any(layer not in batch_stats["backbone"] for layer in plain[2]["backbone"])
