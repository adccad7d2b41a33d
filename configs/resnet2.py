"""The binary report's ResNet50V2: frozen backbone from ImageNet weights, dense 128, one logit.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python -m cxrjax.main --config configs/resnet2.py

The report reaches validation accuracy .81 with the head alone. Its augmentation is stored as eight
views of each image, so that the frozen layers run over each once (--config.cache.views=0 augments
every epoch anew, at the cost of a whole forward pass each).
"""

from cxrjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.name = "radiography"
    config.data.classes = ("Normal", "COVID")  # the logit is the evidence for the second
    config.data.draw = (1600, 400, 200)
    config.data.image_size = 128
    config.augment.shift = 0.1
    config.augment.rotation = 15.0
    config.augment.zoom = 0.2
    config.cache.views = 8
    config.model.name = "resnet50v2"
    config.model.weights = "imagenet"
    config.model.trainable_layers = 0
    config.model.head.dense = 128
    config.model.head.dropout = 0.4
    config.train.epochs = 60
    config.train.optimizer = "adam"
    config.train.learning_rate = 1e-3
    config.train.patience = 5
    return config
