"""TensorFlow Datasets builders of the same images and the same splits as `dataset.prepare` gives.

    import tensorflow_datasets as tfds
    from cxrjax.data.tfds_builders import Radiography

    builder = Radiography(config="224", data_dir="tfds")
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir="COVID-19_Radiography_Dataset.zip")
    )
    train = builder.as_dataset(split="train")

Nothing is downloaded: `manual_dir` is the archive or folder that the user has.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from cxrjax import config as configuration
from cxrjax.data import dataset
from cxrjax.data.phantom import CLASSES as PHANTOM_CLASSES
from cxrjax.data.radiography import CLASSES as RADIOGRAPHY_CLASSES
from cxrjax.data.radiography import URL
from cxrjax.data.splits import SPLITS
from cxrjax.errors import UserError

_CITATION = """\
@article{rahman2021exploring,
  title = {Exploring the effect of image enhancement techniques on COVID-19 detection using chest
           X-ray images},
  author = {Rahman, Tawsifur and Khandakar, Amith and Qiblawey, Yazan and others},
  journal = {Computers in Biology and Medicine}, volume = {132}, year = {2021},
  doi = {10.1016/j.compbiomed.2021.104319}
}
@article{chowdhury2020can,
  title = {Can AI help in screening viral and COVID-19 pneumonia?},
  author = {Chowdhury, Muhammad E. H. and Rahman, Tawsifur and Khandakar, Amith and others},
  journal = {IEEE Access}, volume = {8}, year = {2020}, doi = {10.1109/ACCESS.2020.3010287}
}"""


@dataclass(eq=False, kw_only=True)
class CxrConfig(tfds.core.BuilderConfig):
    """What decides on images and splits; all else is as in `cxrjax.config`.

    `overrides` are fields of `config.data` by dotted name, e.g. {"phantom.count": 400}. Two
    configurations of different content need different names: the name is the folder on disk.
    """

    image_size: int = 224
    classes: tuple[str, ...] = ()  # empty: all; a folder's classes are found when it is read
    masks: bool = False  # with lung masks, blank where an image has none
    overrides: dict[str, Any] | None = None


def _sizes(**settings: Any) -> list[CxrConfig]:
    return [
        CxrConfig(name=str(size), image_size=size, description=f"{size}x{size} pixels", **settings)
        for size in (224, 299, 128)
    ]


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Examples of a prepared `Dataset`; subclasses name the source."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = _sizes()
    DATA_NAME = ""
    CLASSES: tuple[str, ...] = ()
    _location: Path | None = None

    def _info(self) -> tfds.core.DatasetInfo:
        settings = self._whole_config().data
        shape = (settings.image_size, settings.image_size, 1)
        features: dict[str, Any] = {
            "image": tfds.features.Image(shape=shape, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=list(settings.classes or self.CLASSES) or None),
            "name": tfds.features.Text(),
            "source": tfds.features.Text(),  # empty where unknown, as is patient
            "patient": tfds.features.Text(),
        }
        if self._chosen.masks:
            features["mask"] = tfds.features.Image(shape=shape, encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage=self.HOMEPAGE,
            citation=self.CITATION,
        )

    HOMEPAGE: str | None = None
    CITATION: str | None = None

    @property
    def _chosen(self) -> CxrConfig:
        chosen = self.builder_config
        if not isinstance(chosen, CxrConfig):
            raise UserError("the builder's config must be a CxrConfig or one of its names.")
        return chosen

    def _whole_config(self) -> Any:
        config: Any = configuration.default()
        config.data.name = self.DATA_NAME
        config.data.image_size = self._chosen.image_size
        config.data.classes = self._chosen.classes
        config.data.dir = str(self._location or "")
        config.data.update_from_flattened_dict(self._chosen.overrides or {})
        configuration.validate(config)
        return config

    def _make_download_manager(self, download_dir: Any, download_config: Any) -> Any:
        # The manager's own `manual_dir` refuses an archive: it wants a folder with something in it.
        if download_config.manual_dir:
            self._location = Path(download_config.manual_dir)
        return super()._make_download_manager(download_dir, download_config)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[bytes, dict]]]:
        prepared = dataset.prepare(self._whole_config())
        info: Any = self.info
        label = info.features["label"]
        if label.num_classes is None:
            label.names = list(prepared.classes)
        elif tuple(label.names) != prepared.classes:
            raise UserError(
                f"the data hold the classes {', '.join(prepared.classes)}, the builder expects "
                f"{', '.join(label.names)}; name them by CxrConfig(classes=...)."
            )
        if self._chosen.masks and prepared.store.masks is None:
            raise UserError("CxrConfig(masks=True) was asked for, but the data have no lung masks.")
        return {split: self._generate_examples(prepared, split) for split in SPLITS}

    def _generate_examples(
        self, prepared: dataset.Dataset, split: str
    ) -> Iterator[tuple[bytes, dict[str, Any]]]:
        store = prepared.store
        for i in prepared.splits[split]:
            name = os.fsencode(store.names[i])  # a file name need not be text
            example = {
                "image": np.asarray(store.images[i])[..., None],
                "label": int(store.labels[i]),
                "name": name,
                "source": store.sources[i] or "",
                "patient": store.patients[i] or "",
            }
            if self._chosen.masks and store.masks is not None:
                example["mask"] = np.asarray(store.masks[i])[..., None]
            yield name, example


class Radiography(_Builder):
    """COVID-19 Radiography Database: COVID, lung opacity, normal and viral pneumonia, grey."""

    DATA_NAME = "radiography"
    CLASSES = RADIOGRAPHY_CLASSES
    HOMEPAGE = URL
    CITATION = _CITATION
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download the COVID-19 Radiography Database from Kaggle; manual_dir is the archive or the "
        "folder unpacked from it."
    )


class Folder(_Builder):
    """A folder or archive of the user's own with one subfolder of images per class."""

    DATA_NAME = "folder"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "manual_dir is the folder or archive with the class folders."


class Phantom(_Builder):
    """Procedural chest phantoms with lung masks, made here: nothing is downloaded."""

    DATA_NAME = "phantom"
    CLASSES = PHANTOM_CLASSES
    BUILDER_CONFIGS = _sizes(masks=True)
