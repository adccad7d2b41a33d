"""The networks that can be trained, with what belongs to each: input, weights, CAM layer."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cxrjax.errors import UserError

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)  # x / 127.5 - 1


@dataclass(frozen=True)
class ModelSpec:
    """A network and its input contract: pixels x in 0..255 become (x / 255 - mean) / std."""

    name: str
    backbone: str  # module:class, imported on use so that listing needs no JAX
    input_size: int  # side of the square images it was designed for, pixels
    smallest: int  # side below which no features are left, pixels
    channels: int
    mean: tuple[float, ...]  # per channel, on the [0, 1] scale
    std: tuple[float, ...]
    preprocessing: str  # the convention by its Keras name
    cam_layer: str  # whose maps Grad-CAM explains; `features` returns them
    parameters: int | None  # of the backbone, batch statistics included; None: set by the config
    citation: str
    weights_url: str | None = None  # the Keras release, without top
    weights_md5: str | None = None  # as Keras publishes it; None where it publishes none
    convention: str = "keras"  # whose constants and padding: keras | torch
    conventions: tuple[str, ...] = ("keras",)  # that there are for this network

    @property
    def weights_file(self) -> str | None:
        """File name of the release, or None."""
        return self.weights_url.rsplit("/", 1)[-1] if self.weights_url else None

    def load(self) -> Callable[..., Any]:
        """The backbone class, imported now: called as backbone(rng, channels=..., ...)."""
        module, name = self.backbone.split(":")
        return getattr(importlib.import_module(module), name)

    def with_contract(self, contract: Mapping[str, Any] | None) -> ModelSpec:
        """This network under the input contract that a weight file carries; None changes nothing.

        Raises:
          UserError: when the weights are another network's, or in a convention it does not have.
        """
        if contract is None:
            return self
        if contract["model"] != self.name:
            raise UserError(
                f"the weights are those of {contract['model']}, not of {self.name}; set "
                f"--config.model.name={contract['model']} or choose other weights."
            )
        if contract["convention"] not in self.conventions:
            raise UserError(
                f"the weights say that they are of a {self.name} in the convention "
                f"{contract['convention']!r}, which it does not have; convert their source anew."
            )
        return replace(
            self,
            input_size=contract["input_size"],
            channels=contract["channels"],
            mean=tuple(contract["mean"]),
            std=tuple(contract["std"]),
            preprocessing=contract["preprocessing"],
            convention=contract["convention"],
        )


_SPECS = (
    ModelSpec(
        name="baseline",
        backbone="cxrjax.models.baseline:Baseline",
        input_size=128,
        smallest=16,
        channels=1,
        mean=(0.5,),
        std=(0.25,),
        preprocessing="mean .5, std .25",
        cam_layer="relu4",
        parameters=None,
        citation="report B, section III",
    ),
    ModelSpec(
        name="densenet121",
        conventions=("keras", "torch"),
        backbone="cxrjax.models.densenet:DenseNet121",
        input_size=224,
        smallest=32,
        channels=3,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        preprocessing="torch",
        cam_layer="relu",
        parameters=7_037_504,
        citation="Huang et al. 2017, arXiv 1608.06993",
        weights_url=f"{_KERAS}/densenet/densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_md5="30ee3e1110167f948a6b9946edeeb738",
    ),
    ModelSpec(
        name="resnet50v2",
        backbone="cxrjax.models.resnet:ResNet50V2",
        input_size=224,
        smallest=32,
        channels=3,
        mean=_HALF,
        std=_HALF,
        preprocessing="tf",
        cam_layer="post_relu",
        parameters=23_564_800,
        citation="He et al. 2016, arXiv 1603.05027",
        weights_url=f"{_KERAS}/resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_md5="fac2f116257151a9d068a22e544a4917",
    ),
    ModelSpec(
        name="mobilenetv2",
        conventions=("keras", "torch"),
        backbone="cxrjax.models.mobilenet:MobileNetV2",
        input_size=224,
        smallest=32,
        channels=3,
        mean=_HALF,
        std=_HALF,
        preprocessing="tf",
        cam_layer="out_relu",
        parameters=2_257_984,
        citation="Sandler et al. 2018, arXiv 1801.04381",
        weights_url=f"{_KERAS}/mobilenet_v2/"
        "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5",
    ),
    ModelSpec(
        name="inceptionv3",
        backbone="cxrjax.models.inception:InceptionV3",
        input_size=299,
        smallest=75,
        channels=3,
        mean=_HALF,
        std=_HALF,
        preprocessing="tf",
        cam_layer="mixed10",
        parameters=21_802_784,
        citation="Szegedy et al. 2016, arXiv 1512.00567",
        weights_url=f"{_KERAS}/inception_v3/"
        "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5",
        weights_md5="bcbd6486424b2319ff4ef7d526e38f63",
    ),
)


def names() -> tuple[str, ...]:
    """Every registered network."""
    return tuple(entry.name for entry in _SPECS)


def spec(name: str) -> ModelSpec:
    """The entry called `name`.

    Raises:
      UserError: when there is none; it names the nearest.
    """
    for entry in _SPECS:
        if entry.name == name:
            return entry
    near = difflib.get_close_matches(name, names(), 1)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(names())}."
    raise UserError(f"config field model.name: there is no network {name!r}; {hint}")
