"""The networks and heads of cxrjax, built as a user of PyTorch would: torchvision's where it has
them, ResNet50V2 and the baseline CNN written out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_BASELINE_WIDTHS = (1, 2, 4, 4)
_RESNET_STACKS = ((64, 3, 2), (128, 4, 2), (256, 6, 2), (512, 3, 1))  # width, blocks, stride
_KERAS_EPSILON, _KERAS_MOMENTUM = 1e-3, 0.01


class Network(nn.Module):
    """uint8 grey images [B, 1, S, S] to logits float32 [B, K]; normalised on the device."""

    def __init__(self, job: dict[str, Any]):
        super().__init__()
        self.channels = job["channels"]
        self.features, width = _BACKBONES[job["network"]](job)
        head = job["head"]
        layers: list[nn.Module] = []
        if head["batch_norm"]:
            layers.append(nn.BatchNorm1d(width, _KERAS_EPSILON, _KERAS_MOMENTUM))
        if head["dense"]:
            layers += [nn.Linear(width, head["dense"]), nn.ReLU()]
        if head["dropout"]:
            layers.append(nn.Dropout(head["dropout"]))
        layers.append(nn.Linear(head["dense"] or width, job["logits"]))
        self.head = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.num_batches_tracked = None  # a kernel per layer for a number nobody reads
        self.l2 = head["l2"]
        self.regularised = layers[int(head["batch_norm"])] if head["l2"] else None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float().mul(1 / 127.5).sub(1.0).expand(-1, self.channels, -1, -1)
        x = self.features(x.contiguous(memory_format=torch.channels_last))
        return self.head(x.mean((2, 3))).float()

    def penalty(self) -> torch.Tensor | float:
        """Keras' L2 regulariser on the dense kernel."""
        if self.regularised is None:
            return 0.0
        return self.l2 * self.regularised.weight.square().sum()


def freeze(network: Network, trained: int) -> None:
    """Leaves the last `trained` layers with parameters of the backbone trainable, and the head.

    Frozen batch norm runs on its stored statistics, as Keras' does; call it after `train()`.
    """
    layers = [m for m in network.features.modules() if any(True for _ in m.parameters(False))]
    for layer in layers[: len(layers) - trained]:
        layer.requires_grad_(False)
        layer.eval()


# ------------------------------------------------------------------ backbones


def _densenet121(job: dict[str, Any]) -> tuple[nn.Module, int]:
    import torchvision

    features = torchvision.models.densenet121(weights=None).features
    return nn.Sequential(features, nn.ReLU(inplace=True)), 1024


def _mobilenetv2(job: dict[str, Any]) -> tuple[nn.Module, int]:
    import torchvision

    return torchvision.models.mobilenet_v2(weights=None).features, 1280


def _inceptionv3(job: dict[str, Any]) -> tuple[nn.Module, int]:
    import torchvision

    whole = torchvision.models.inception_v3(weights=None, aux_logits=False, init_weights=False)
    top = ("avgpool", "dropout", "fc")
    return nn.Sequential(*(m for name, m in whole.named_children() if name not in top)), 2048


def _baseline(job: dict[str, Any]) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = []
    n_in = job["channels"]
    for block, width in enumerate(_BASELINE_WIDTHS, start=1):
        n_out = job["filters"] * width
        layers.append(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False))
        if block < len(_BASELINE_WIDTHS):
            layers.append(nn.MaxPool2d(2))
        layers += [nn.BatchNorm2d(n_out, _KERAS_EPSILON, 0.1), nn.ReLU(inplace=True)]
        n_in = n_out
    return nn.Sequential(*layers), n_in


class _PreActivation(nn.Module):
    """A bottleneck block of ResNet V2 (He et al. 2016, arXiv 1603.05027) as Keras has it: the
    stride is in the 3x3 convolution of a stack's last block."""

    def __init__(self, n_in: int, width: int, stride: int, project: bool):
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, eps=1.001e-5, momentum=_KERAS_MOMENTUM)
        self.preact = norm(n_in)
        self.shortcut = nn.Conv2d(n_in, 4 * width, 1, stride) if project else None
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1)
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.preact(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        elif self.stride > 1:
            x = F.max_pool2d(x, 1, self.stride)
        y = F.relu(self.bn1(self.conv1(y)))
        return x + self.conv3(F.relu(self.bn2(self.conv2(y))))


def _resnet50v2(job: dict[str, Any]) -> tuple[nn.Module, int]:
    layers: list[nn.Module] = [nn.Conv2d(job["channels"], 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1)]
    n = 64
    for width, blocks, stride in _RESNET_STACKS:
        for block in range(1, blocks + 1):
            last = block == blocks
            layers.append(_PreActivation(n, width, stride if last else 1, project=block == 1))
            n = 4 * width
    norm = nn.BatchNorm2d(n, 1.001e-5, _KERAS_MOMENTUM)
    return nn.Sequential(*layers, norm, nn.ReLU(inplace=True)), n


_BACKBONES: dict[str, Callable[[dict[str, Any]], tuple[nn.Module, int]]] = {
    "baseline": _baseline,
    "densenet121": _densenet121,
    "resnet50v2": _resnet50v2,
    "mobilenetv2": _mobilenetv2,
    "inceptionv3": _inceptionv3,
}
