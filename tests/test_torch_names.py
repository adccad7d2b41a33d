"""PyTorch's names become ours: both spellings and every prefix; what does not fit is named."""

import numpy as np
import pytest
import torch_files

from cxrjax import convert
from cxrjax.errors import UserError
from cxrjax.models import torch_names, weights

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def layers_of_densenet():
    """(name, channels of the kernel or None for batch norm), as torchvision builds the network."""
    yield from (("conv0", (64, 3, 7)), ("norm0", 64))
    n = 64
    for block, count in enumerate((6, 12, 24, 16), start=1):
        for layer in range(1, count + 1):
            name = f"denseblock{block}.denselayer{layer}"
            yield from ((f"{name}.norm1", n), (f"{name}.conv1", (128, n, 1)))
            yield from ((f"{name}.norm2", 128), (f"{name}.conv2", (32, 128, 3)))
            n += 32
        if block < 4:
            yield from ((f"transition{block}.norm", n), (f"transition{block}.conv", (n // 2, n, 1)))
            n //= 2
    yield "norm5", n


def layers_of_mobilenet():
    yield from (("0.0", (32, 3, 3)), ("0.1", 32))
    n, number = 32, 1
    for expansion, width, repeats in (
        *((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1)),
    ):
        for _ in range(repeats):
            wide, step = n * expansion, 0
            if expansion != 1:
                yield from (
                    (f"{number}.conv.0.0", (wide, n, 1)),
                    (f"{number}.conv.0.1", wide),
                )
                step = 1
            yield f"{number}.conv.{step}.0", (wide, 1, 3)
            yield f"{number}.conv.{step}.1", wide
            yield f"{number}.conv.{step + 1}", (width, wide, 1)
            yield f"{number}.conv.{step + 2}", width
            n, number = width, number + 1
    yield from (("18.0", (1280, n, 1)), ("18.1", 1280))


LAYERS = {"densenet121": layers_of_densenet, "mobilenetv2": layers_of_mobilenet}
CLASSIFIERS = {"densenet121": ("classifier", 1024), "mobilenetv2": ("classifier.1", 1280)}


def state_dict(model="densenet121", channels=3, prefix="", historic=False, classes=14, seed=0):
    """A state dict of the network with random tensors under torchvision's names."""
    rng = np.random.default_rng(seed)

    def drawn(*shape):
        return rng.uniform(0.5, 1.5, shape).astype("f4")

    state = {}
    for name, shape in LAYERS[model]():
        if isinstance(shape, int):
            for kind in NORM:
                tracked = kind == "num_batches_tracked"
                state[f"features.{name}.{kind}"] = np.array(7) if tracked else drawn(shape)
        else:
            n_out, n_in, side = shape
            n_in = channels if n_in == 3 else n_in
            state[f"features.{name}.weight"] = drawn(n_out, n_in, side, side)
    name, n = CLASSIFIERS[model]
    state |= {f"{name}.weight": drawn(classes, n), f"{name}.bias": drawn(classes)}
    if historic:
        parts = {"norm1": "norm.1", "norm2": "norm.2", "conv1": "conv.1", "conv2": "conv.2"}
        for new, old in parts.items():
            state = {
                key.replace(f".{new}.", f".{old}.") if "denselayer" in key else key: value
                for key, value in state.items()
                if "num_batches" not in key  # from the same time
            }
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("model", LAYERS)
def test_tensors_get_our_names_and_layouts(model):
    state = state_dict(model)
    tensors, contract = torch_names.converted(state)
    assert contract["model"] == model
    assert len(tensors) == sum("num_batches" not in key for key in state) - 2
    backbone = [v for k, v in state.items() if "num_batches" not in k and "classifier" not in k]
    for (name, ours), theirs in zip(
        sorted(tensors.items(), key=lambda item: item[1].sum()),
        sorted(backbone, key=np.sum),
        strict=True,
    ):
        order = (2, 3, 0, 1) if name.endswith("depthwise/kernel") else (2, 3, 1, 0)
        np.testing.assert_array_equal(ours, theirs.transpose(order) if theirs.ndim == 4 else theirs)
    assert all(value.flags.c_contiguous for value in tensors.values())


def test_some_names_by_hand():
    state = state_dict("densenet121")
    tensors, _ = torch_names.converted(state)
    for ours, theirs in {
        "conv1_bn/scale": "norm0.weight",
        "conv2_block6_0_bn/mean": "denseblock1.denselayer6.norm1.running_mean",
        "conv5_block16_1_bn/var": "denseblock4.denselayer16.norm2.running_var",
        "pool4_bn/bias": "transition3.norm.bias",
        "bn/bias": "norm5.bias",
    }.items():
        np.testing.assert_array_equal(tensors[ours], state[f"features.{theirs}"])
    state = state_dict("mobilenetv2")
    tensors, _ = torch_names.converted(state)
    for ours, theirs in {
        "bn_Conv1/scale": "0.1.weight",
        "expanded_conv_depthwise_BN/mean": "1.conv.0.1.running_mean",
        "expanded_conv_project_BN/var": "1.conv.2.running_var",
        "block_1_expand_BN/bias": "2.conv.0.1.bias",
        "block_16_project_BN/bias": "17.conv.3.bias",
        "Conv_1_bn/scale": "18.1.weight",
    }.items():
        np.testing.assert_array_equal(tensors[ours], state[f"features.{theirs}"])


@pytest.mark.parametrize("prefix", ["", "module.", "densenet121.", "module.densenet121."])
@pytest.mark.parametrize("historic", [False, True])
def test_every_spelling_of_chexnet_gives_the_same(prefix, historic):
    plain, contract = torch_names.converted(state_dict())
    state = state_dict(prefix=prefix, historic=historic)
    # CheXNet's classifier is a Sequential of one Linear.
    for kind in ("weight", "bias"):
        state[f"{prefix}classifier.0.{kind}"] = state.pop(f"{prefix}classifier.{kind}")
    tensors, same = torch_names.converted(state)
    assert same == contract
    assert tensors.keys() == plain.keys()
    for name, value in plain.items():
        np.testing.assert_array_equal(tensors[name], value)


def test_the_contract_says_what_input_was_trained_on():
    _, imagenet = torch_names.converted(state_dict())
    assert imagenet == {
        "model": "densenet121",
        "convention": "torch",
        "channels": 3,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "input_size": 224,
        "preprocessing": "torch",
    }
    state = state_dict(channels=1) | {"op_threshs": np.full(18, np.nan, "f4")}
    _, xray = torch_names.converted(state)
    assert (xray["channels"], xray["preprocessing"]) == (1, "torchxrayvision")
    pixels = np.array([0, 127.5, 255])
    normalised = (pixels / 255 - xray["mean"][0]) / xray["std"][0]
    np.testing.assert_allclose(normalised, [-1024, 0, 1024])


STEM, NORM0 = "features.conv0.weight", "features.norm0.running_var"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NORM0: None}, rf"lack module\.{NORM0}, which densenet121 needs"),
        ({"features.conv9.weight": np.ones(3)}, r"hold module\.features\.conv9\.weight \(and 0"),
        ({"classifier.2.bias": np.ones(3)}, r"classifier\.2\.bias"),
        ({STEM: np.ones((2, 3), "f4")}, rf"{STEM} as float32 \(2, 3\) where 4 axes"),
        ({NORM0: np.ones(64, int)}, rf"{NORM0} as int64"),
        ({"features.denseblock1.denselayer1.norm.1.bias": np.ones(64)}, "under two names"),
        ({"features.denseblock1.denselayer1.conv1.weight": None}, "no PyTorch network known here"),
    ],
)
def test_the_tensor_that_does_not_fit_is_named_as_in_the_file(tmp_path, change, words):
    state = state_dict(prefix="module.")
    for name, value in change.items():
        state["module." + name] = value
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(UserError, match=words) as caught:
        torch_names.converted(state)
    assert "\n" not in str(caught.value)
    path = torch_files.write_state(tmp_path / "w.pth", {n: np.asarray(v) for n, v in state.items()})
    with pytest.raises(UserError, match=f"{path}: the weights"):
        weights.load_tensors(path)


def test_weights_of_another_network_are_refused(tmp_path, capsys):
    path = torch_files.write_state(tmp_path / "w.pth", state_dict())
    with pytest.raises(UserError, match="holds weights of densenet121, not of mobilenetv2"):
        weights.load_tensors(path, "mobilenetv2")
    assert convert.main([str(path), str(tmp_path / "o.npz"), "--model", "baseline"]) == 2
    assert "holds weights of densenet121, not of baseline" in capsys.readouterr().err


def test_the_contract_travels_in_the_npz_and_is_checked_there(tmp_path):
    _, contract = torch_names.converted(state_dict())
    path = tmp_path / "w.npz"
    weights.save_npz(path, {"a/kernel": np.ones(2, np.float32)}, {"contract": contract})
    assert weights.load_tensors(path)[1]["contract"] == contract
    with pytest.raises(UserError, match="not of mobilenetv2"):
        weights.load_tensors(path, "mobilenetv2")
    for key, value in {
        "std": [1, 0, 1],
        "mean": [1],
        "channels": 2,
        "convention": "caffe",
        "model": None,
        "input_size": "224",
    }.items():
        weights.save_npz(path, {}, {"contract": contract | {key: value}})
        with pytest.raises(UserError, match="input contract"):
            weights.load_tensors(path)
    weights.save_npz(path, {}, {"contract": ["densenet121"]})
    with pytest.raises(UserError, match="input contract"):
        weights.load_tensors(path)
