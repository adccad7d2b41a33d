"""COVID against Normal by the recipe of configs/best4.py, on the draw of the binary report.

CXRJAX_DATA=COVID-19_Radiography_Dataset.zip CXRJAX_WEIGHTS=weights/ \\
    python -m cxrjax.main --config configs/best2.py

1600 / 400 / 200 images; minutes on two CPU cores. What else was tried, and what it reaches:
experiments/README.md, "Surpassing them".
"""

from pathlib import Path

from cxrjax import config as config_lib


def get_config():
    config = config_lib.load(str(Path(__file__).parent / "best4.py"))
    config.data.classes = ("Normal", "COVID")  # the logit is the evidence for the second
    config.data.draw = (1600, 400, 200)
    return config
