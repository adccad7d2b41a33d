"""PyTorch as a peer of `python -m cxrjax.bench`: the same job, window by window.

channels_last; uint8 grey images that stay on the device and are normalised inside the step; on a
GPU autocast to bfloat16 where the job says so, TF32 elsewhere, cudnn.benchmark, torch.compile.
CXRJAX_TORCH_MODES names the ways to run the step, comma-separated; each is tried, the fastest kept,
and what failed is told:
  eager              no compilation (the default on a CPU)
  MODE               torch.compile(mode=MODE): default, reduce-overhead (CUDA graphs),
                     max-autotune-no-cudagraphs
  MODE+graph         the whole step, optimizer included, captured as one CUDA graph
Default on a GPU: reduce-overhead,default+graph; eager when neither works.
On a CPU that others use too, OpenMP's waiting threads fight for the cores and the step is up to a
hundred times slower; OMP_WAIT_POLICY=passive mends it. On a quiet machine leave it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cxrjax.bench.serve import Prepared, peak_memory, serve, stepped

_GPU_MODES, _CPU_MODES = "reduce-overhead,default+graph", "eager"
_TRIAL_STEPS = 10


def prepare(job: dict[str, Any]) -> Prepared:
    import torch

    on_gpu = torch.cuda.is_available()
    torch.set_num_threads(job["threads"])
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if on_gpu else "cpu")
    names = os.environ.get("CXRJAX_TORCH_MODES", _GPU_MODES if on_gpu else _CPU_MODES).split(",")
    start = time.perf_counter()
    mode, run, parameters, failed, seconds = _fastest(job, names, device)
    facts: dict[str, Any] = {
        "compile_seconds": time.perf_counter() - start,  # of all modes tried, trials included
        "mode": mode,
        "modes_failed": failed,
        "modes_seconds_per_step": seconds,
        "parameters": parameters,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "versions": {"torch": torch.__version__, "cudnn": str(torch.backends.cudnn.version())},
    }
    facts["steps"], window = stepped(job, run, job["batch_size"])

    def finish() -> dict[str, Any]:
        if not on_gpu:
            return {"peak_memory": peak_memory()}
        # Reserved, not allocated: what a CUDA graph uses counts as free between its replays.
        peak = torch.cuda.max_memory_reserved()
        return {"peak_memory": {"bytes": peak, "of": "device (max_memory_reserved)"}}

    return Prepared(facts, window, finish)


def _fastest(job: dict[str, Any], modes: list[str], device: Any) -> tuple:
    """(mode, run, parameters, what failed, seconds per step of each mode)."""
    failed: dict[str, str] = {}
    seconds: dict[str, float] = {}

    def attempt(mode: str) -> tuple | None:
        _clear(device)
        try:
            run, parameters = _program(job, mode, device)
            run(3)
            start = time.perf_counter()
            run(trial)
            seconds[mode] = (time.perf_counter() - start) / trial
            return run, parameters
        except Exception as error:  # a compiler's failure is told, and the next mode tried
            failed[mode] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return None

    trial = _TRIAL_STEPS if len(modes) > 1 else 1
    program = None
    for mode in modes:
        program = None  # two programs at once might not fit into the memory
        program = attempt(mode)
    if not seconds:
        mode, program = "eager", attempt("eager")
    else:
        best = min(seconds, key=lambda name: seconds[name])
        if best != mode:
            program = None
            program = attempt(best)
        mode = best
    if program is None:
        raise RuntimeError(f"no mode works: {failed}")
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    return mode, *program, failed, seconds


def _clear(device: Any) -> None:
    import torch

    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _program(
    job: dict[str, Any], mode: str, device: Any
) -> tuple[Callable[[int], None], dict[str, int]]:
    """A function that takes n steps and returns when the device is done, and parameter counts."""
    import torch
    from torch_networks import Network, freeze

    torch.manual_seed(0)
    network = Network(job).to(device, memory_format=torch.channels_last).train()
    freeze(network, job["parameter_layers"])
    trained = [p for p in network.parameters() if p.requires_grad]
    parameters = {
        "trainable": sum(p.numel() for p in trained),
        "frozen": sum(p.numel() for p in network.parameters() if not p.requires_grad),
    }
    n, side = job["batch_size"], job["image_size"]
    images = torch.randint(0, 256, (n, 1, side, side), dtype=torch.uint8, device=device)
    labels = torch.randint(0, max(job["logits"], 2), (n,), device=device)
    compile_mode, _, graph = mode.partition("+")

    def compiled(function: Callable[[], None]) -> Callable[[], None]:
        return function if compile_mode == "eager" else torch.compile(function, mode=compile_mode)

    make = _forward if job["row"] == "forward" else _train_step
    step = make(job, network, trained, images, labels, compiled, bool(graph))
    if graph:
        step = _captured(step)

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return run, parameters


def _autocast(job: dict[str, Any], images: Any) -> Any:
    import torch

    if job["precision"] != "bfloat16":
        return contextlib.nullcontext()
    return torch.autocast(images.device.type, dtype=torch.bfloat16)


def _forward(job, network, trained, images, labels, compiled, captured) -> Callable[[], Any]:
    import torch

    network.eval()
    call = compiled(network)

    def step() -> Any:
        with torch.no_grad(), _autocast(job, images):
            return call(images)

    return step


def _train_step(job, network, trained, images, labels, compiled, captured) -> Callable[[], Any]:
    from torch.nn import functional as F

    optimizer = _optimizer(job, trained, capturable=captured)

    def loss_of(images: Any, labels: Any) -> Any:
        logits = network(images)
        if job["logits"] == 1:
            loss = F.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
        else:
            loss = F.cross_entropy(logits, labels)
        return loss + network.penalty()

    loss_of = compiled(loss_of)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with _autocast(job, images):
            loss = loss_of(images, labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def _optimizer(job: dict[str, Any], parameters: list, *, capturable: bool) -> Any:
    """Keras' constants; fused, or foreach where PyTorch has no fused one."""
    import torch

    rate = job["learning_rate"]
    if job["optimizer"] == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=job["momentum"], fused=True)
    if job["optimizer"] == "adam":
        return torch.optim.Adam(parameters, rate, eps=1e-7, fused=True, capturable=capturable)
    return torch.optim.Adamax(parameters, rate, eps=1e-7, foreach=True, capturable=capturable)


def _captured(step: Callable[[], Any]) -> Callable[[], None]:
    """The step as one CUDA graph, recorded after a warm-up on a side stream."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


if __name__ == "__main__":
    sys.exit(serve(prepare))
