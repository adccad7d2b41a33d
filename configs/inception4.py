"""InceptionV3 from ImageNet weights on four classes, as in the four-class report: last 20 layers.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python -m cxrjax.main --config configs/inception4.py

The report reaches accuracy .86 (its two tables for MobileNetV2 and InceptionV3 are the same one).
"""

from cxrjax import config as config_lib


def get_config():
    config = config_lib.default()
    config.data.name = "radiography"
    config.data.classes = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
    config.data.image_size = 224
    config.model.name = "inceptionv3"
    config.model.weights = "imagenet"
    config.model.trainable_layers = 20
    config.model.head.batch_norm = True
    config.model.head.dense = 256
    config.model.head.l2 = 0.01  # the report gives no factor; Keras' own default
    config.model.head.dropout = 0.3
    config.train.epochs = 20
    config.train.batch_size = 32
    config.train.optimizer = "adamax"
    config.train.learning_rate = 1e-4
    config.train.class_weights = "balanced"
    config.train.patience = 5
    return config
