"""Report B's grid of baseline CNNs: filters x dropout x learning rate x optimizer, 54 points.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip \\
    python -m cxrjax.sweep --config configs/sweeps/baseline2.py --workdir runs/sweep_baseline2

Settings of configs/baseline2.py: COVID against Normal, 1600 / 400 / 200 images at 128 pixels,
augmented, early stopping with patience 5. The winner is the point of best validation accuracy. The
report does not name its winner; retrained, it reaches training accuracy .76 at loss .41 and test
accuracy .79 on 200 images. --dry-run prints the plan alone; --config.sweep.seeds=5 trains every
point from five seeds. For a folder or archive that already holds train/validation/test parts:
--config.data.name=folder --config.data.draw=
"""

from pathlib import Path

from cxrjax import config as config_lib


def get_config():
    return config_lib.load(str(Path(__file__).parents[1] / "baseline2.py"))


def get_grid():
    return {
        "model.filters": (8, 32, 64),
        "model.head.dropout": (0.4, 0.3, 0.2),
        "train.learning_rate": (1e-3, 1e-4, 1e-5),
        "train.optimizer": ("adam", "sgd"),
    }
