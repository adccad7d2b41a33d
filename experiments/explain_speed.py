"""Grad-CAM over a whole test split: ours against pytorch-grad-cam on the same weights and images.

python experiments/explain_speed.py --peer-python /path/to/torch/bin/python --json OUT

Both sides run in processes of their own, one after the other, on the same threads. Torch draws the
weights (torchvision's network, a linear head), we convert them; the maps are compared. Compilation
and one warm-up batch are outside the clock on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peer-python", default=sys.executable, help="has torch and grad-cam")
    parser.add_argument("--network", choices=("densenet121", "mobilenetv2"), default="densenet121")
    parser.add_argument("--images", type=int, default=200, help="report B's test split")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=2, help="every class gets its map")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="OUT")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side = {"ours": ours, "theirs": theirs}[arguments.side]
        print(json.dumps(side(arguments, Path(arguments.folder))))
        return 0
    cores = sorted(os.sched_getaffinity(0))[: arguments.threads]
    os.sched_setaffinity(0, cores)  # inherited: both sides get the same cores
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for side, python in (("theirs", arguments.peer_python), ("ours", sys.executable)):
            command = [python, __file__, *sys.argv[1:], "--side", side, "--folder", folder]
            environment = os.environ | {"PYTHONPATH": str(_ROOT)} if side == "ours" else None
            done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
        a, b = (np.load(Path(folder, f"{side}.npy")) for side in ("ours", "theirs"))
    result = {
        **{k: getattr(arguments, k) for k in ("network", "images", "size", "classes", "batch")},
        "threads": len(cores),
        **found,
        "ratio": found["theirs"]["seconds"] / found["ours"]["seconds"],
        "largest_difference": float(np.abs(a - b).max() / np.abs(b).max()),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        Path(arguments.json).write_text(text + "\n", encoding="utf-8")
    return 0


def pictures(arguments: argparse.Namespace) -> np.ndarray:
    shape = (arguments.images, arguments.size, arguments.size)
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def timed(run, repeats: int) -> tuple[list[float], np.ndarray]:
    seconds, maps = [], np.zeros(0)
    for _ in range(repeats):
        start = time.perf_counter()
        maps = run()
        seconds.append(time.perf_counter() - start)
    return seconds, maps


def theirs(arguments: argparse.Namespace, folder: Path) -> dict:
    import torch  # type: ignore[import-not-found]

    try:
        import torchvision  # type: ignore[import-not-found]
    except RuntimeError:  # a build whose compiled part does not load; nothing here needs it
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        torch.library.register_fake = lambda *a, **k: lambda f: f
        import torchvision  # type: ignore[import-not-found]
    import pytorch_grad_cam  # type: ignore[import-not-found]
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget  # type: ignore[import-not-found]

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    make = {
        "densenet121": torchvision.models.densenet121,
        "mobilenetv2": torchvision.models.mobilenet_v2,
    }[arguments.network]
    model = make(weights=None, num_classes=arguments.classes).eval()
    torch.save(model.state_dict(), folder / "w.pth")
    linear = model.classifier if arguments.network == "densenet121" else model.classifier[1]
    np.savez(
        folder / "head.npz",
        kernel=linear.weight.detach().numpy().T,
        bias=linear.bias.detach().numpy(),
    )
    mean, std = (
        [[[[v]] for v in values]] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    mean, std = torch.tensor(mean), torch.tensor(std)
    images, size = pictures(arguments), arguments.batch
    last = model.features[-1]
    if arguments.network == "densenet121":
        # Its forward pass calls the last ReLU as a function; ours explains the maps behind it.
        last = torch.nn.ReLU()
        pool = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(1))
        model = torch.nn.Sequential(model.features, last, *pool, linear).eval()

    def batch(at):
        x = torch.tensor(images[at : at + size])[:, None].float() / 255
        return ((x - mean) / std).contiguous()

    with pytorch_grad_cam.GradCAM(model=model, target_layers=[last]) as cam:

        def of(at):
            x = batch(at)
            maps = []
            for k in range(arguments.classes):
                cam(input_tensor=x, targets=[ClassifierOutputTarget(k)] * len(x))
                a = cam.activations_and_grads.activations[-1].numpy()
                g = cam.activations_and_grads.gradients[-1].numpy()
                maps.append((g.mean((2, 3))[:, :, None, None] * np.maximum(a, 0)).sum(1))
            return np.stack(maps, axis=1)

        of(0)
        steps = range(0, len(images), size)
        seconds, maps = timed(lambda: np.concatenate([of(at) for at in steps]), arguments.repeats)
    np.save(folder / "theirs.npy", maps)
    return {"seconds": float(np.median(seconds)), "all": seconds, "torch": torch.__version__}


def ours(arguments: argparse.Namespace, folder: Path) -> dict:
    from cxrjax import runtime

    runtime.start()
    import functools

    import jax
    import jax.numpy as jnp

    from cxrjax import config, step
    from cxrjax.explain import maps as maps_lib
    from cxrjax.explain import targets
    from cxrjax.models import classifier, weights

    tensors, source = weights.load_tensors(folder / "w.pth", arguments.network)
    settings = config.default()
    settings.model.name = arguments.network
    settings.model.head.one_logit = False
    model = classifier.build(settings.model, arguments.classes, contract=source["contract"])
    graphdef, params, stats = classifier.split(model)
    params, stats = weights.assign(params, stats, tensors)
    params["head"]["logits"] = {k: jnp.asarray(v) for k, v in np.load(folder / "head.npz").items()}
    recipe = step.Recipe(
        graphdef=graphdef,
        n_classes=arguments.classes,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        train_layers=frozenset(),
        shift=0.0,
        rotation=0.0,
        zoom=0.0,
    )
    call = jax.jit(functools.partial(maps_lib.explain, recipe, "grad_cam", None, params, stats))
    wanted = np.stack([targets.class_logit(k, arguments.classes) for k in range(arguments.classes)])
    images, size = pictures(arguments), arguments.batch

    def of(at):
        part = images[at : at + size]
        n = len(part)
        part = np.concatenate([part, np.repeat(part[-1:], size - n, axis=0)])
        return np.asarray(call(part, wanted)[1])[:n]

    of(0)
    steps = range(0, len(images), size)
    seconds, maps = timed(lambda: np.concatenate([of(at) for at in steps]), arguments.repeats)
    np.save(folder / "ours.npy", maps)
    return {"seconds": float(np.median(seconds)), "all": seconds, **runtime.describe()}


if __name__ == "__main__":
    sys.exit(main())
