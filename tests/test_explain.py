"""Maps: equal to pytorch-grad-cam's and Keras' tutorial, equal for equivalent heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxrjax import config, convert, step
from cxrjax.explain import maps, methods, targets
from cxrjax.models import classifier, registry, weights

SIDE = 32
explain = jax.jit(maps.explain, static_argnums=(0, 1, 2))


def network(n_logits=4, head_dense=0):
    settings = config.default()
    settings.model.filters = 4
    settings.model.head.dense = head_dense
    settings.model.head.one_logit = n_logits == 1
    model = classifier.build(settings.model, n_classes=max(2, n_logits))
    return classifier.split(model)


def recipe_of(graphdef, n_classes, mean=(0.5,), std=(0.25,)):
    return step.Recipe(
        graphdef=graphdef,
        n_classes=n_classes,
        mean=mean,
        std=std,
        train_layers=frozenset(),
        shift=0.0,
        rotation=0.0,
        zoom=0.0,
    )


def images(n=3, side=SIDE):
    return np.random.default_rng(0).integers(0, 256, (n, side, side)).astype(np.uint8)


def run(parts, method, stage=None, wanted=None, n_classes=4):
    graphdef, params, stats = parts
    n_logits = params["head"]["logits"]["kernel"].shape[-1]
    wanted = targets.default(n_logits) if wanted is None else wanted
    recipe = recipe_of(graphdef, n_classes)
    return explain(recipe, method, stage, params, stats, images(), wanted)


@pytest.mark.parametrize("method", methods.METHODS)
def test_one_logit_and_two_logits_give_the_same_maps(method):
    graphdef, params, stats = network(1, head_dense=8)
    one = run((graphdef, params, stats), method, n_classes=2)
    kernel, bias = params["head"]["logits"]["kernel"], params["head"]["logits"]["bias"] + 0.3
    params["head"]["logits"]["bias"] = bias
    one = run((graphdef, params, stats), method, n_classes=2)
    extra = jnp.asarray(np.random.default_rng(1).normal(size=kernel.shape), jnp.float32)
    two_graph, two, _ = network(2, head_dense=8)
    two = {"backbone": params["backbone"], "head": dict(params["head"])}
    two["head"]["logits"] = {
        "kernel": jnp.concatenate([extra, kernel + extra], axis=1),
        "bias": jnp.concatenate([bias * 0, bias]),
    }
    both = run((two_graph, two, stats), method, n_classes=2)
    for a, b in zip(one, both, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(np.abs(a).max()))
    assert np.abs(one[1]).max() > 0
    if method not in ("grad_cam++", "layer_cam", "smooth_grad"):  # those are linear in the target
        np.testing.assert_allclose(one[1][:, 0], -one[1][:, 1], atol=1e-5)


@pytest.mark.parametrize("stage", ["relu1", "relu3", "relu4"])
@pytest.mark.parametrize("method", methods.CAMS)
def test_any_stage_can_be_chosen(method, stage):
    parts = network()
    probabilities, found = run(parts, method, stage)
    assert found.shape == (3, 4, *{"relu1": (16, 16), "relu3": (4, 4), "relu4": (4, 4)}[stage])
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    if stage == "relu4":
        np.testing.assert_array_equal(found, run(parts, method)[1])


def test_integrated_gradients_sum_to_the_change_of_the_score():
    graphdef, params, stats = network()
    recipe = recipe_of(graphdef, 4)
    model = classifier.merge(graphdef, params, stats)

    def logits(pixels):
        return model.classify(model.features(step.normalize(pixels, recipe.mean, recipe.std)))

    x = jnp.asarray(images()[..., None], jnp.float32)
    found = run((graphdef, params, stats), "integrated_gradients")[1].sum((2, 3))
    expected = logits(x) - logits(x * 0)
    np.testing.assert_allclose(found, expected, atol=0.05 * float(jnp.abs(expected).max()))


def test_ablation_equals_leaving_out_one_channel_after_another():
    def score(m):
        return jnp.tanh(m.mean((1, 2))).sum(-1) ** 2

    a = jnp.asarray(np.random.default_rng(0).random((2, 3, 3, 40)), jnp.float32)
    weights = [score(a) - score(a.at[..., f].set(0)) for f in range(40)]
    plain = sum(w[:, None, None] * a[..., f] for f, w in enumerate(weights))
    np.testing.assert_allclose(methods.ablation_cam(score, a), plain, rtol=2e-3, atol=1e-4)


def test_differences_of_no_classes_are_refused():
    with pytest.raises(ValueError, match="no difference"):
        targets.difference(1, 1, 3)
    with pytest.raises(ValueError, match="no difference"):
        targets.difference(0, 4, 4)
    np.testing.assert_array_equal(targets.difference(2, 0, 4), [-1, 0, 1, 0])


@pytest.mark.parametrize("network", ["mobilenetv2", "densenet121"])
@pytest.mark.parametrize("name", ["GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM"])
def test_maps_equal_those_of_pytorch_grad_cam(name, network, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    grad_cam = pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    model_targets = pytest.importorskip("pytorch_grad_cam.utils.model_targets")
    ours = {
        "GradCAM": "grad_cam",
        "GradCAMPlusPlus": "grad_cam++",
        "HiResCAM": "hires_cam",
        "LayerCAM": "layer_cam",
    }[name]
    model, last, parts, recipe, pixels = torch_and_ours(torch, network, tmp_path)
    wanted = targets.default(4)
    found = explain(recipe, ours, None, parts[1], parts[2], pixels, wanted)[1]
    x = (pixels[..., None] / 255 - np.asarray(recipe.mean)) / np.asarray(recipe.std)
    x = torch.tensor(x.transpose(0, 3, 1, 2), dtype=torch.float32)
    for k in range(4):
        with getattr(grad_cam, name)(model=model, target_layers=[last]) as cam:
            cam.activations_and_grads(x)
            raw = cam.forward  # fills activations and gradients
            raw(x, [model_targets.ClassifierOutputTarget(k)] * len(x))
            theirs = cam.get_cam_image(
                x,
                last,
                [model_targets.ClassifierOutputTarget(k)] * len(x),
                cam.activations_and_grads.activations[-1].numpy(),
                cam.activations_and_grads.gradients[-1].numpy(),
                False,
            )
        assert np.abs(theirs).max() > 0
        np.testing.assert_allclose(found[:, k], theirs, atol=1e-4 * np.abs(theirs).max())


def torch_and_ours(torch, name, folder):
    """A network of torchvision with random weights and a linear head, the layer whose maps are
    explained, and ours of its tensors."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    torch.manual_seed(0)
    make = {
        "mobilenetv2": torchvision.models.mobilenet_v2,
        "densenet121": torchvision.models.densenet121,
    }[name]
    model = make(weights=None, num_classes=4).eval()
    torch.save(model.state_dict(), folder / "w.pth")
    assert convert.main([str(folder / "w.pth"), str(folder / "w.npz")]) == 0
    tensors, metadata = weights.load_tensors(folder / "w.npz", name)
    contract = metadata["contract"]
    settings = config.default()
    settings.model.name = name
    ours = classifier.build(settings.model, n_classes=4, contract=contract)
    graphdef, params, stats = classifier.split(ours)
    params, stats = weights.assign(params, stats, tensors)
    last, linear = model.features[-1], model.classifier
    if name == "mobilenetv2":
        linear = model.classifier[1]
    else:  # its forward pass calls the last ReLU as a function; ours explains the maps behind it
        last, pool = torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
        model = torch.nn.Sequential(model.features, last, pool, torch.nn.Flatten(), linear).eval()
    params["head"]["logits"] = {
        "kernel": jnp.asarray(linear.weight.detach().numpy().T),
        "bias": jnp.asarray(linear.bias.detach().numpy()),
    }
    recipe = recipe_of(graphdef, 4, tuple(contract["mean"]), tuple(contract["std"]))
    return model, last, (graphdef, params, stats), recipe, images(2, 64)


def test_maps_equal_those_of_the_keras_tutorial(tmp_path):
    keras = pytest.importorskip("keras")
    tf = pytest.importorskip("tensorflow")
    h5py = pytest.importorskip("h5py")
    legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    base = keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(64, 64, 3))
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        legacy.save_weights_to_hdf5_group(file, base)
    pooled = keras.layers.GlobalAveragePooling2D()(base.output)
    logits = keras.layers.Dense(4, name="logits")(pooled)
    grad_model = keras.Model(base.input, [base.get_layer("out_relu").output, logits])
    settings = config.default()
    settings.model.name = "mobilenetv2"
    graphdef, params, stats = classifier.split(classifier.build(settings.model, n_classes=4))
    params, stats = weights.assign(params, stats, weights.load_tensors(path)[0])
    dense = grad_model.get_layer("logits")
    params["head"]["logits"] = {
        "kernel": jnp.asarray(dense.kernel.numpy()),
        "bias": jnp.asarray(dense.bias.numpy()),
    }
    spec = registry.spec("mobilenetv2")
    recipe = recipe_of(graphdef, 4, spec.mean, spec.std)
    pixels = images(1, 64)
    x = np.repeat(pixels[..., None] / 127.5 - 1, 3, axis=-1).astype(np.float32)
    found = explain(recipe, "grad_cam", None, params, stats, pixels, targets.default(4))[1]
    for k in range(4):  # https://keras.io/examples/vision/grad_cam/
        with tf.GradientTape() as tape:
            last_conv_layer_output, preds = grad_model(x)
            class_channel = preds[:, k]
        grads = tape.gradient(class_channel, last_conv_layer_output)
        pooled_grads = tf.reduce_mean(grads, axis=(0, 1, 2))
        heatmap = last_conv_layer_output[0] @ pooled_grads[..., tf.newaxis]
        heatmap = tf.maximum(tf.squeeze(heatmap), 0).numpy()
        assert heatmap.max() > 0 or (np.asarray(found[0, k]) <= 1e-9).all()
        ours = np.asarray(methods.positive(found[0, k]))
        np.testing.assert_allclose(ours, heatmap, atol=1e-4 * float(np.abs(found).max()))
