"""The four backbones against keras.applications: layers, stages, gradients, statistics, weights."""

import io
import re
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cxrjax import config, step
from cxrjax.models import classifier, registry, weights
from cxrjax.models.layers import Grey

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")
legacy = pytest.importorskip("keras.src.legacy.saving.legacy_h5_format")

TOLERANCE = 1e-4  # of the largest value, float32; 2e-6 is usual
ORIGINALS = {
    "densenet121": "DenseNet121",
    "resnet50v2": "ResNet50V2",
    "mobilenetv2": "MobileNetV2",
    "inceptionv3": "InceptionV3",
}
MODULES = {
    "densenet121": "densenet",
    "resnet50v2": "resnet_v2",
    "mobilenetv2": "mobilenet_v2",
    "inceptionv3": "inception_v3",
}
LAYERS = {"densenet121": 427, "resnet50v2": 190, "mobilenetv2": 154, "inceptionv3": 311}
STAGES = {"densenet121": 64, "resnet50v2": 19, "mobilenetv2": 19, "inceptionv3": 16}
SIZES = {name: (96, 109) for name in ORIGINALS} | {"mobilenetv2": (64, 97)}
WEIGHT_FILES = {
    "densenet121": "densenet121_weights_tf_dim_ordering_tf_kernels_notop.float16.h5",
    "resnet50v2": "resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.reconstructed.float16.h5",
    "mobilenetv2": "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    "inceptionv3": "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.float16.h5",
}
KERAS_NAMES = {"scale": "gamma", "mean": "moving_mean", "var": "moving_variance"}
AUTOMATIC = re.compile(
    r"(input_layer|zero_padding2d|max_pooling2d|average_pooling2d|conv2d|batch_normalization|"
    r"activation|concatenate)(_\d+)?$"
)


def relative_error(ours, theirs):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def new_original(name, size=None, weights=None):
    keras.utils.clear_session()  # automatic names count from nought again
    make = getattr(keras.applications, ORIGINALS[name])
    # MobileNetV2 pads by the size of its input, where that is known.
    shape = None if size is None else (size, size, 3)
    return make(weights=weights, include_top=False, input_shape=shape)


def new_classifier(name):
    settings = config.default()
    settings.model.name = name
    return classifier.build(settings.model, n_classes=4)


def with_weights(name, path):
    graphdef, params, batch_stats = classifier.split(new_classifier(name))
    params, batch_stats = weights.assign(params, batch_stats, weights.load_tensors(path)[0])
    return graphdef, params, batch_stats


def keras_name(layer, tensor, params):
    """The name in Keras of one of our tensors."""
    is_norm = "bias" in params[layer] and "kernel" not in params[layer]
    return "beta" if is_norm and tensor == "bias" else KERAS_NAMES.get(tensor, tensor)


class Pair:
    """Keras' network with random weights and batch-norm statistics, and ours of its file."""

    def __init__(self, name, folder):
        self.name, self.original = name, new_original(name)
        rng = np.random.default_rng(0)
        ranges = {"gamma": (0.5, 1.5), "beta": (-0.5, 0.5), "moving_mean": (-0.5, 0.5)}
        for layer in self.original.layers:
            for weight in layer.weights:
                if weight.name == "kernel":
                    fan_in = np.prod(weight.shape[: 2 if "depthwise" in layer.name else 3])
                    limit = np.sqrt(6 / fan_in)  # keeps the scale through ReLU
                    weight.assign(rng.uniform(-limit, limit, weight.shape))
                else:
                    weight.assign(rng.uniform(*ranges.get(weight.name, (0.5, 2.0)), weight.shape))
        self.path = path = folder / f"{name}.h5"
        with h5py.File(path, "w") as file:  # in the layout of the keras.applications releases
            legacy.save_weights_to_hdf5_group(file, self.original)
        self.ours = with_weights(name, path)

    def stages(self, x):
        graphdef, *arrays = self.ours
        run = jax.jit(lambda p, b, x: classifier.merge(graphdef, p, b).backbone.stages(x))
        return run(*arrays, x)


@pytest.fixture(scope="module", params=sorted(ORIGINALS))
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp("weights"))


def test_layers_are_keras_layers_in_keras_order(pair):
    theirs = [layer.name for layer in pair.original.layers]
    ours = new_classifier(pair.name).backbone.layers
    assert len(ours) == len(set(ours)) == LAYERS[pair.name] == len(theirs)

    def comparable(name):  # Keras counts its automatic names through the whole process
        return AUTOMATIC.sub(r"\1", name)

    assert [comparable(n) for n in ours] == [comparable(n) for n in theirs]
    if pair.name == "inceptionv3":  # there the numbers matter: weights go by them
        assert list(ours) == theirs


def test_every_parameter_is_there(pair):
    _, params, batch_stats = pair.ours
    tensors = weights.backbone_tensors(params, batch_stats)
    total = registry.spec(pair.name).parameters
    assert sum(v.size for v in tensors.values()) == total == pair.original.count_params()
    for name, value in tensors.items():
        layer, tensor = name.split("/")
        kind = keras_name(layer, tensor, params["backbone"])
        theirs = {w.name: w for w in pair.original.get_layer(layer).weights}[kind]
        np.testing.assert_array_equal(value, theirs.numpy(), err_msg=name)


@pytest.mark.parametrize("which", [0, 1])
def test_every_stage_equals_keras(pair, which):
    size = SIZES[pair.name][which]
    x = np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)
    maps = pair.stages(x)
    assert len(maps) == STAGES[pair.name]
    original = new_original(pair.name, size, pair.path)
    parts = keras.Model(original.input, [original.get_layer(name).output for name in maps])
    theirs = parts(x, training=False)
    errors = {
        name: relative_error(maps[name], there) for name, there in zip(maps, theirs, strict=True)
    }
    worst = max(errors, key=errors.__getitem__)
    assert errors[worst] <= TOLERANCE, f"{worst}: {errors[worst]:.2e}"
    assert min(np.abs(there).max() for there in theirs) > 1e-2  # and not because all is nought


def test_any_stage_can_be_gone_on_from(pair):
    x = np.random.default_rng(1).normal(size=(1, 96, 96, 3)).astype(np.float32)
    maps = pair.stages(x)
    names = [name for name, _ in new_classifier(pair.name).backbone.chain()]
    assert set(names) == set(maps)
    after = names[len(names) // 2]
    graphdef, *arrays = pair.ours
    rest = jax.jit(
        lambda p, b, x: classifier.merge(graphdef, p, b).backbone.stages(x, after=after)
    )(*arrays, maps[after])
    assert set(rest) == set(names[len(names) // 2 + 1 :])
    assert relative_error(rest[names[-1]], maps[names[-1]]) <= 1e-5
    with pytest.raises(ValueError, match="no stage 'nowhere'"):
        new_classifier(pair.name).backbone.stages(x, after="nowhere")


@pytest.mark.parametrize("network", ["densenet121", "mobilenetv2"])
def test_gradients_equal_keras(network, tmp_path):
    tf = pytest.importorskip("tensorflow")
    pair = Pair(network, tmp_path)
    graphdef, params, batch_stats = pair.ours
    rng = np.random.default_rng(3)
    x = rng.normal(size=(1, 64, 64, 3)).astype(np.float32)
    wanted = rng.normal(size=pair.original(x).shape).astype(np.float32)

    def scalar(params, x, batch_stats):  # as constants the statistics would be folded, slowly
        model = classifier.merge(graphdef, params, batch_stats)
        return jnp.sum(model.features(x) * wanted)

    for_params, for_images = jax.jit(jax.grad(scalar, argnums=(0, 1)))(params, x, batch_stats)
    with tf.GradientTape() as tape:
        images = tf.convert_to_tensor(x)
        tape.watch(images)
        value = tf.reduce_sum(pair.original(images, training=False) * wanted)
    variables = pair.original.trainable_variables
    theirs = tape.gradient(value, [images, *(v.value for v in variables)])
    assert relative_error(for_images, theirs[0]) <= TOLERANCE
    theirs = {v.path: g for v, g in zip(variables, theirs[1:], strict=True)}
    ours = {
        f"{layer}/{keras_name(layer, tensor, params['backbone'])}": gradient
        for layer, group in for_params["backbone"].items()
        for tensor, gradient in group.items()
    }
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(g).max() for g in theirs.values())
    for path, gradient in ours.items():
        error = np.abs(np.asarray(gradient) - theirs[path]).max()
        # Beside a bias' gradient near nought rounding is all there is.
        assert error <= TOLERANCE * max(np.abs(theirs[path]).max(), 1e-3 * largest), path


def test_training_mode_equals_keras_in_maps_and_statistics(pair):
    """Only batch norm inside trainable layers uses, and moves, batch statistics.

    Momentum and epsilon differ between the networks; the variance is the biased one in all.
    """
    count = 20
    graphdef, params, batch_stats = pair.ours
    twin = pair.original
    names = classifier.trainable_layer_names(new_classifier(pair.name), count)
    x = np.random.default_rng(2).normal(size=(3, 96, 96, 3)).astype(np.float32)

    @jax.jit
    def forward(params, batch_stats, x):
        model = classifier.merge(graphdef, params, batch_stats)
        maps = model.features(x, train_layers=names)
        return maps, classifier.batch_stats(model)["backbone"]

    maps, moved = forward(params, batch_stats, x)
    before = twin.get_weights()
    try:
        for layer in twin.layers:
            layer.trainable = layer in twin.layers[-count:]
        assert relative_error(maps, twin(x, training=True)) <= TOLERANCE
        for layer, statistics in moved.items():
            mean, variance = twin.get_layer(layer).get_weights()[-2:]
            assert relative_error(statistics["mean"], mean) <= TOLERANCE, layer
            assert relative_error(statistics["var"], variance) <= TOLERANCE, layer
            same = np.array_equal(statistics["var"], batch_stats["backbone"][layer]["var"])
            assert same == (layer not in names), layer
    finally:
        twin.set_weights(before)
        twin.trainable = True


@pytest.mark.parametrize("count", [0, 1, 20, 100, -1])
def test_trainable_tensors_are_those_of_keras(pair, count):
    original, model = pair.original, new_classifier(pair.name)
    names = classifier.trainable_layer_names(model, count)
    _, params, batch_stats = classifier.split(model)
    original.trainable = True
    for layer in original.layers:
        layer.trainable = True
    original.trainable = count != 0
    if count > 0:
        for layer in original.layers[:-count]:
            layer.trainable = False
    theirs = {w.path for w in original.trainable_weights}
    kept = {w.path for w in original.non_trainable_weights}
    original.trainable = True
    ours = {
        f"{layer}/{keras_name(layer, tensor, params['backbone'])}"
        for layer, group in params["backbone"].items()
        for tensor in group
        if layer in names
    }
    assert ours == theirs
    statistics = {
        f"{layer}/{KERAS_NAMES[t]}"
        for layer, group in batch_stats["backbone"].items()
        for t in group
    }
    assert statistics <= kept
    assert len(statistics) == sum(
        path.endswith(("moving_mean", "moving_variance")) for path in kept
    )


def radiograph(shared, size=224):
    """A real X-ray, float32 [1, size, size, 1] on the 0..255 scale."""
    with zipfile.ZipFile(shared("data/covid-normal.zip")) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".webp"))
        image = Image.open(io.BytesIO(archive.read(name))).convert("L").resize((size, size))
    return np.asarray(image, np.float32)[None, :, :, None]


@pytest.mark.parametrize("network", sorted(ORIGINALS))
def test_real_weights_on_a_real_radiograph_equal_keras(network, shared):
    path = shared(f"weights/{WEIGHT_FILES[network]}")
    grey = radiograph(shared)
    module = getattr(keras.applications, MODULES[network])
    x = module.preprocess_input(np.repeat(grey, 3, axis=3))
    entry = registry.spec(network)
    ours = step.normalize(jnp.asarray(grey), entry.mean, entry.std)
    np.testing.assert_allclose(ours.colour(), x, atol=1e-5)
    original = new_original(network, 224, path)
    graphdef, *arrays = with_weights(network, path)
    maps = jax.jit(lambda p, b, x: classifier.merge(graphdef, p, b).features(x))(*arrays, ours)
    theirs = original(x, training=False)
    assert relative_error(maps, theirs) <= TOLERANCE
    assert np.abs(theirs).max() > 0.1


@pytest.mark.parametrize("network", sorted(ORIGINALS))
def test_grey_images_give_the_features_of_colour_ones(network):
    """Folding the stem over its three equal channels is exact, at the border too."""
    model, entry = new_classifier(network), registry.spec(network)
    pixels = np.random.default_rng(5).integers(0, 256, (2, 96, 96, 1)).astype(np.uint8)
    colour = (np.repeat(pixels, 3, 3) / 255 - np.array(entry.mean)) / np.array(entry.std)
    grey = step.normalize(jnp.asarray(pixels), entry.mean, entry.std)
    assert isinstance(grey, Grey)
    assert grey.pixels.shape[-1] == 1
    graphdef, params, batch_stats = classifier.split(model)

    def run(params, x):
        return classifier.merge(graphdef, params, batch_stats).backbone.stages(x)

    stem = next(iter(model.backbone.chain()))[0]
    ours, theirs = (jax.jit(run)(params, x) for x in (grey, jnp.asarray(colour, jnp.float32)))
    for name in ours:
        assert relative_error(ours[name], theirs[name]) <= 2e-5, name

    def gradient(x):
        loss = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(run(p, x)[stem]))))
        return loss(params)["backbone"][
            next(n for n in model.backbone.layers if n in params["backbone"])
        ]["kernel"]

    assert relative_error(gradient(grey), gradient(jnp.asarray(colour, jnp.float32))) <= 1e-4
