"""Networks saved by PyTorch itself, converted: the same tensors, and the features PyTorch computes.

Needs torch, torchvision and torchxrayvision, which are no part of the test extra.
"""

import jax
import numpy as np
import pytest

from cxrjax import config, convert
from cxrjax.models import classifier, torch_file, weights

torch = pytest.importorskip("torch", reason="torch is not installed")

TOLERANCE = 1e-4  # of the largest feature, float32
MODELS = ("torchvision mobilenetv2", "torchvision densenet121", "torchxrayvision densenet121")


def randomised(model, seed=0):
    """Random weights that keep the scale of the maps, and random batch-norm statistics.

    Twice the variance, as suits ReLU, drives MobileNetV2's maps far beyond its ReLU6: PyTorch's own
    float32 is then 1e-4 away from its float64.
    """
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.ndim == 4:
                limit = np.sqrt(3 / np.prod(value.shape[1:]))
                drawn = rng.uniform(-limit, limit, value.shape)
            elif name.endswith(("running_var", "weight")):
                drawn = rng.uniform(0.5, 1.5, value.shape)
            else:
                drawn = rng.uniform(-0.5, 0.5, value.shape)
            value.copy_(torch.tensor(drawn))
    return model.eval()


@pytest.fixture(scope="module", params=MODELS)
def original(request):
    """(network of PyTorch, name of ours, function that computes its features)."""
    library, name = request.param.split()
    relu = torch.nn.functional.relu
    if library == "torchxrayvision":
        models = pytest.importorskip("torchxrayvision.models", reason="not installed")
        model = randomised(models.DenseNet(weights=None))
        return model, name, lambda x: relu(model.features(x))
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    if name == "mobilenetv2":
        model = randomised(models.mobilenet_v2(weights=None))
        return model, name, model.features
    model = randomised(models.densenet121(weights=None))
    return model, name, lambda x: relu(model.features(x))


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", ["state", "wrapped", "module"])
def test_tensors_are_those_that_torch_saved(original, tmp_path, what, new_format):
    model, _, _ = original
    state = model.state_dict()
    optimizer = torch.optim.Adam(model.parameters())
    content = {
        "state": state,
        "wrapped": {"epoch": 2, "state_dict": state, "optimizer": optimizer.state_dict()},
        "module": torch.nn.DataParallel(model),
    }[what]
    path = tmp_path / "w.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=new_format)
    read = torch_file.read(path)
    prefix = "module." if what == "module" else ""
    assert sorted(read) == sorted(prefix + name for name in state)
    for name, value in state.items():
        np.testing.assert_array_equal(read[prefix + name], value.numpy(), err_msg=name)
    tensors, _ = weights.load_tensors(path)
    count = sum(value.numel() for value in state.values() if value.is_floating_point())
    count -= sum(value.numel() for value in model.classifier.parameters())
    assert sum(value.size for value in tensors.values()) == count


@pytest.mark.parametrize("kind", ["half", "bfloat16", "double"])
def test_other_precisions_are_read(tmp_path, kind):
    value = getattr(torch.linspace(-3, 3, 24).reshape(2, 3, 4), kind)().transpose(0, 2)
    torch.save({"w": value[1:]}, tmp_path / "w.pt")
    read = torch_file.read(tmp_path / "w.pt")["w"]
    np.testing.assert_array_equal(read, value[1:].float().numpy())


def test_features_equal_those_of_torch(original, tmp_path, capsys):
    model, name, features = original
    path, out = tmp_path / "w.pth", tmp_path / "w.npz"
    torch.save(model.state_dict(), path)
    assert convert.main([str(path), str(out)]) == 0
    assert f"parameters of {name}" in capsys.readouterr().out
    tensors, metadata = weights.load_tensors(out, name)
    contract = metadata["contract"]
    assert contract["convention"] == "torch"
    settings = config.default()
    settings.model.name = name
    network = classifier.build(settings.model, n_classes=2, contract=contract)
    graphdef, params, batch_stats = classifier.split(network)
    params, batch_stats = weights.assign(params, batch_stats, tensors)
    run = jax.jit(lambda p, b, x: classifier.merge(graphdef, p, b).features(x))
    errors = {}
    for size in (64, 109):
        shape = (2, size, size, contract["channels"])
        x = np.random.default_rng(size).normal(size=shape).astype(np.float32)
        with torch.no_grad():
            theirs = features(torch.tensor(x.transpose(0, 3, 1, 2))).numpy().transpose(0, 2, 3, 1)
        ours = np.asarray(run(params, batch_stats, x))
        assert ours.shape == theirs.shape
        assert np.abs(theirs).max() > 1e-2
        errors[size] = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"largest relative error, {contract['preprocessing']} {name}: {errors}")
    assert max(errors.values()) <= TOLERANCE
