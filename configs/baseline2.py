"""The binary report's baseline CNN: COVID against Normal, 1600 / 400 / 200 images at 128 pixels.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip python -m cxrjax.main --config configs/baseline2.py

The report reaches test accuracy .79 on 200 images. For a folder or archive that already holds
train/validation/test parts: --config.data.name=folder --config.data.draw=
"""

from cxrjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.name = "radiography"
    config.data.classes = ("Normal", "COVID")  # the logit is the evidence for the second
    config.data.draw = (1600, 400, 200)
    config.data.image_size = 128
    config.input.normalize = "dataset"
    config.augment.shift = 0.1
    config.augment.rotation = 15.0
    config.augment.zoom = 0.2
    config.model.name = "baseline"
    config.model.filters = 32
    config.model.head.dropout = 0.3
    config.train.epochs = 60
    config.train.optimizer = "adam"
    config.train.learning_rate = 1e-3
    config.train.patience = 5
    return config
