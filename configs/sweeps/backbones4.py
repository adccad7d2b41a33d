"""Report F's three backbones on four classes: DenseNet121, MobileNetV2, InceptionV3.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python -m cxrjax.sweep --config configs/sweeps/backbones4.py --workdir runs/sweep_backbones4

Settings of configs/densenet4.py: ImageNet weights, the last 20 layers in Keras' counting and the
head trained. In preliminary runs on the full database the report reaches accuracy .89 with
DenseNet121 and .86 with the other two (it prints one table for both, so one of them is wrong), and
.92 with DenseNet121 in the end; all on the images it tuned on. It never trains more than those 20
layers, so fine-tuning the winner is training on. --dry-run prints the plan alone;
--config.sweep.seeds=3 tells the spread between seeds.
"""

from pathlib import Path

from cxrjax import config as config_lib


def get_config():
    config = config_lib.load(str(Path(__file__).parents[1] / "densenet4.py"))
    config.sweep.fine_tune_layers = config.model.trainable_layers
    return config


def get_grid():
    return {"model.name": ("densenet121", "mobilenetv2", "inceptionv3")}
