"""Every setting of a run with its default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

# A ConfigDict; its fields are checked by `config.validate`, a type checker sees nothing of them.
if TYPE_CHECKING:
    Config = Any
else:
    Config = ConfigDict


def default() -> Config:
    """The complete configuration with its defaults. Fields can be changed, never added."""
    config: Any = ConfigDict()
    config.seed = 0  # initial weights, shuffling, augmentation and dropout

    config.data = _default_data()

    config.input = ConfigDict()
    config.input.path = "auto"  # auto | resident (set lives on the device) | tfdata (streamed)
    config.input.normalize = "backbone"  # backbone (as in its pretraining) | dataset (mean, std)

    config.augment = ConfigDict()  # all 0 switches augmentation off; there are no flips
    config.augment.shift = 0.0  # largest shift, fraction of the side, horizontal and vertical
    config.augment.rotation = 0.0  # largest rotation, degrees, at most 15
    config.augment.zoom = 0.0  # largest change of scale, at most 0.2
    config.augment.border = 0.0  # widest rim of one random grey, fraction of the side, per side
    config.augment.gamma = 0.0  # tone curve x^g, g log-uniform in [1 / (1 + gamma), 1 + gamma]

    config.model = ConfigDict()
    config.model.name = "baseline"  # a name of `python -m cxrjax.convert --list`
    config.model.weights = "none"  # none | imagenet | path of a file, see cxrjax.convert
    config.model.trainable_layers = -1  # last N layers in Keras' counting; 0: none, -1: all
    config.model.filters = 32  # base width, baseline CNN only

    config.model.head = ConfigDict()
    config.model.head.batch_norm = False
    config.model.head.dense = 0  # units of the ReLU layer; 0: none
    config.model.head.l2 = 0.0  # penalty on the dense kernel: l2 * sum of squares, as Keras'
    config.model.head.dropout = 0.0
    config.model.head.one_logit = True  # two classes: one sigmoid logit for the second class

    config.train = _default_train()

    config.cache = ConfigDict()  # maps of frozen layers, computed once for each image
    config.cache.prefix = True  # where layers are frozen and nothing is augmented, or views is set
    config.cache.views = 0  # augmented views stored of each image; 0: augmented images run anew
    config.cache.dtype = "float32"  # float32 | bfloat16 (half the room)

    config.eval = ConfigDict()
    config.eval.test = True  # False: the test split is left alone, there are no figures of it
    config.eval.batch_size = 64
    config.eval.resamples = 10_000  # bootstrap resamples behind each 95 % interval
    config.eval.conformal_level = 0.9  # share of the prediction sets that hold the true class
    config.eval.coverage = 0.9  # share of images to be answered, the surest ones
    config.eval.sensitivity = 0.95  # required of the cut on each class's probability
    config.eval.shortcuts = True  # test images also with black lungs: what is known without them

    config.sweep = _default_sweep()

    config.lock()
    return config


def _default_train() -> Any:
    train: Any = ConfigDict()
    train.epochs = 30
    train.batch_size = 32
    train.optimizer = "adam"  # adam | adamax | sgd
    train.learning_rate = 1e-3
    train.schedule = "constant"  # constant | cosine (the rate falls to 0 over train.epochs)
    train.warmup = 0.0  # epochs in which the rate rises linearly from 0, e.g. 1.0
    train.backbone_rate = 1.0  # factor of the rate for the backbone; the head keeps all of it
    train.label_smoothing = 0.0  # of the training loss, as Keras'; below 1
    train.ema = 0.0  # decay per step of averaged weights, which are then the ones kept; e.g. 0.99
    train.momentum = 0.0  # sgd only
    train.class_weights = "none"  # none | balanced (inverse frequency, mean 1)
    train.patience = 5  # epochs without a better validation loss before stopping; 0: never
    train.precision = "float32"  # float32 | bfloat16 (activations; parameters stay float32)
    train.accumulate = 1  # batches whose mean gradient makes one step of the optimizer
    train.remat = False  # True: less memory, more arithmetic, see step.keep_products
    train.on_validation = False  # True: validation images too; the last epoch is kept
    train.start_from = ""  # finished run whose weights are the start, not model.weights
    return train


def _default_sweep() -> Any:
    sweep: Any = ConfigDict()  # only for `python -m cxrjax.sweep`
    sweep.seeds = 1  # of each point of the grid, counted from `seed`
    sweep.finish = "both"  # what becomes of the winner: none | report | held_out | both
    sweep.fine_tune_layers = -1  # trained then, as model.trainable_layers; -1: all
    sweep.fine_tune_learning_rate = 0.0  # 0: the winner's own
    sweep.stack = "auto"  # trials side by side in one program: auto (measured) | always | never
    return sweep


def _default_data() -> Any:
    data: Any = ConfigDict()
    data.name = "phantom"  # phantom | radiography | folder
    data.dir = ""  # archive or folder with the images; empty: $CXRJAX_DATA
    data.classes = ()  # which classes and in which order; empty: all, sorted by name
    data.image_size = 224  # side of the square images in the store, pixels
    data.frame = "whole"  # whole | lungs_box (cut to the lungs) | lungs_only (the rest black too)
    data.test_fraction = 0.2  # of the images outside given parts validation and test
    data.validation_fraction = 0.125  # of the images that are left for training
    data.draw = ()  # balanced (train, validation, test), e.g. (1600, 400, 200); empty: all
    data.group_duplicates = True  # keep near-duplicates on one side of the split
    data.split_seed = 0
    data.hold_out_source = ""  # a source whose images are the test split, and none else; "": none
    data.skip_broken = False  # True: name unreadable images and go on without them
    data.cache = ""  # folder of the decoded stores; empty: $CXRJAX_CACHE or ~/.cache/cxrjax

    data.phantom = ConfigDict()  # only for data.name = phantom
    data.phantom.count = 2000  # images, spread evenly over four classes
    data.phantom.seed = 0
    data.phantom.marker = 0.0  # planted fault: chance that a source marker follows the class
    data.phantom.duplicates = 0.0  # planted fault: fraction of near-copies of other images
    data.phantom.label_noise = 0.0  # planted fault: fraction of wrong labels
    return data
