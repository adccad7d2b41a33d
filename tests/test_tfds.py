"""TensorFlow Datasets builders: the same images, labels and splits as the store, offline."""

from __future__ import annotations

import io
import os
import zipfile

import numpy as np
import pytest
from PIL import Image

from cxrjax import config as configuration
from cxrjax.data import dataset
from cxrjax.data.splits import SPLITS
from cxrjax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
tfds_builders = pytest.importorskip("cxrjax.data.tfds_builders")

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


def _build(builder_class, tmp_path, manual_dir=None, **config):
    chosen = tfds_builders.CxrConfig(name="tiny", image_size=32, **config)
    builder = builder_class(config=chosen, data_dir=str(tmp_path / "tfds"))
    manual = {} if manual_dir is None else {"manual_dir": str(manual_dir)}
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(**manual))
    return builder


def _assert_equal(builder, prepared):
    store, masks = prepared.store, "mask" in builder.info.features
    assert tuple(builder.info.features["label"].names) == prepared.classes
    for split in SPLITS:
        assert builder.info.splits[split].num_examples == len(prepared.splits[split])
        expected = {store.names[i]: i for i in prepared.splits[split]}
        for example in builder.as_dataset(split=split).as_numpy_iterator():
            i = expected.pop(os.fsdecode(example["name"]))
            assert example["image"].shape == (32, 32, 1) and example["image"].dtype == np.uint8
            assert (example["image"][..., 0] == store.images[i]).all()
            assert example["label"] == store.labels[i]
            assert example["source"].decode() == (store.sources[i] or "")
            assert example["patient"].decode() == (store.patients[i] or "")
            if masks:
                assert (example["mask"][..., 0] == store.masks[i]).all()
        assert not expected


def _prepared(**fields):
    config = configuration.default()
    config.data.image_size = 32
    config.data.update_from_flattened_dict(fields)
    return dataset.prepare(config)


def test_phantoms(tmp_path):
    builder = _build(
        tfds_builders.Phantom,
        tmp_path,
        masks=True,
        overrides={"phantom.count": 40, "phantom.duplicates": 0.2, "split_seed": 2},
    )
    fields = {"phantom.count": 40, "phantom.duplicates": 0.2, "split_seed": 2}
    _assert_equal(builder, _prepared(**fields))
    assert "mask" in builder.info.features
    again = tfds_builders.Phantom(config=builder.builder_config, data_dir=str(tmp_path / "tfds"))
    assert again.info.splits["train"].num_examples == builder.info.splits["train"].num_examples


def _archive(path, root, classes, inner="", count=12):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for name in classes:
            for i in range(count):
                buffer = io.BytesIO()
                Image.fromarray(rng.integers(0, 256, (40, 40), np.uint8)).save(buffer, "PNG")
                archive.writestr(f"{root}/{name}/{inner}{name}-{i}.png", buffer.getvalue())
    return path


def test_radiography_from_an_archive(tmp_path):
    root = "COVID-19_Radiography_Dataset"
    path = _archive(tmp_path / f"{root}.zip", root, CLASSES, "images/")
    builder = _build(tfds_builders.Radiography, tmp_path, path)
    _assert_equal(builder, _prepared(name="radiography", dir=str(path)))
    assert builder.info.features["label"].names == list(CLASSES)


def test_a_folder_of_ones_own(tmp_path):
    path = _archive(tmp_path / "own.zip", "own", ("sick", "well"))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path)
    builder = _build(tfds_builders.Folder, tmp_path, tmp_path / "own")
    _assert_equal(builder, _prepared(name="folder", dir=str(tmp_path / "own")))
    # The class names are found in the folder and must survive on disk.
    again = tfds_builders.Folder(config=builder.builder_config, data_dir=str(tmp_path / "tfds"))
    assert again.info.features["label"].names == ["sick", "well"]


def test_names_need_not_be_text(tmp_path):
    archive = _archive(tmp_path / "own.zip", "own", ("sick", "well"))
    with zipfile.ZipFile(archive) as packed:
        packed.extractall(tmp_path)
    path = min((tmp_path / "own" / "sick").rglob("*.png"))
    path.rename(os.fsdecode(os.fsencode(path.parent) + b"/caf\xe9.png"))
    builder = _build(tfds_builders.Folder, tmp_path, tmp_path / "own")
    _assert_equal(builder, _prepared(name="folder", dir=str(tmp_path / "own")))


def test_missing_data_are_told_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"Kaggle"):
        _build(tfds_builders.Radiography, tmp_path)
    path = _archive(tmp_path / "own.zip", "own", ("sick", "well"))
    with pytest.raises(UserError, match=r"no lung masks"):
        _build(tfds_builders.Folder, tmp_path, path, masks=True)


@pytest.mark.parametrize("name", ["Radiography", "Folder", "Phantom"])
def test_named_configurations(name, tmp_path):
    builder = getattr(tfds_builders, name)(config="299", data_dir=str(tmp_path))
    assert builder.info.features["image"].shape == (299, 299, 1)
    assert builder.info.features["image"].np_dtype == np.uint8
