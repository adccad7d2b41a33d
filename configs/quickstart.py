"""A baseline CNN on procedural phantoms: nothing downloaded, under two minutes on two CPU cores.

python -m cxrjax.main --config configs/quickstart.py

Expect a test accuracy between .8 and .9 (chance is .25).
"""

from cxrjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.name = "phantom"
    config.data.image_size = 64
    config.data.phantom.count = 2000
    config.model.name = "baseline"
    config.model.filters = 16
    config.model.head.dropout = 0.3
    config.augment.shift = 0.05
    config.augment.rotation = 5.0
    config.augment.zoom = 0.1
    config.train.epochs = 30
    config.train.optimizer = "adam"
    config.train.learning_rate = 1e-3
    config.train.patience = 5
    return config
