"""The training step against Keras' own, and its invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cxrjax import build, config, optim, step
from cxrjax.models import classifier

SIDE, CLASSES, STEPS = 32, 4, 3


def small_config():
    settings = config.default()
    settings.model.filters = 4
    settings.model.head.batch_norm = True
    settings.model.head.dense = 16
    settings.model.head.l2 = 0.05
    return settings


def make(settings, *, weights=(1.0,) * CLASSES, layers=None, seed=0, **changes):
    model = classifier.build(settings.model, CLASSES, seed=3, dtype=settings.train.precision)
    graphdef, params, batch_stats = classifier.split(model)
    if layers is None:
        layers = classifier.trainable_layer_names(model, settings.model.trainable_layers)
    trainable, frozen = optim.partition(params, layers)
    recipe = step.Recipe(
        graphdef=graphdef,
        n_classes=CLASSES,
        mean=(0.5,),
        std=(0.25,),
        train_layers=layers,
        shift=0.0,
        rotation=0.0,
        zoom=0.0,
    )._replace(**changes)
    tx = optim.optimizer("adamax")
    numbers = step.Settings(
        learning_rate=jnp.float32(1e-2),
        dropout=jnp.float32(settings.model.head.dropout),
        l2=jnp.float32(settings.model.head.l2),
        class_weights=jnp.asarray(weights, jnp.float32),
        seed=jnp.int32(seed),
        steps_per_epoch=jnp.int32(10),
    )
    variables = build.Variables(trainable, frozen, batch_stats, None)
    run = jax.jit(functools.partial(step.train_step, recipe, tx))
    return recipe, build.init_state(variables, recipe, tx, numbers), run


def make_batch(seed=0, n=8, mask=None):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.integers(0, 256, (n, SIDE, SIDE, 1), np.uint8)),
        "label": jnp.asarray(rng.integers(0, CLASSES, n).astype(np.int32)),
        "index": jnp.arange(n, dtype=jnp.int32),
        "mask": jnp.asarray(np.ones(n, bool) if mask is None else mask),
    }


def keras_twin(keras, state):
    """The same network built from Keras' own layers, with our initial weights."""
    names = {"kernel": "kernel", "bias": "bias", "scale": "gamma"}
    x = inputs = keras.Input((SIDE, SIDE, 1))
    for block, width in enumerate((4, 8, 16, 16), start=1):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"conv{block}")(x)
        x = keras.layers.MaxPooling2D()(x) if block < 4 else x
        x = keras.layers.BatchNormalization(momentum=0.9, name=f"bn{block}")(x)
        x = keras.layers.ReLU()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.BatchNormalization(name="batch_norm")(x)
    x = keras.layers.Dense(
        16, "relu", kernel_regularizer=keras.regularizers.L2(0.05), name="dense"
    )(x)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, name="logits")(x))
    for part in state.params.values():
        for layer, tensors in part.items():
            for name, value in tensors.items():
                twin = model.get_layer(layer)
                bias = "beta" if "scale" in tensors else "bias"
                getattr(twin, bias if name == "bias" else names[name]).assign(value)
    return model


def test_three_steps_equal_keras():
    keras = pytest.importorskip("keras")
    weights = (0.5, 1.0, 2.0, 3.0)
    _, state, run = make(small_config(), weights=weights)
    model = keras_twin(keras, state)
    model.compile(
        keras.optimizers.Adamax(1e-2),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for seed in range(STEPS):
        batch = make_batch(seed)
        state, ours = run(state, batch)
        x = (np.asarray(batch["image"], np.float32) / 255 - 0.5) / 0.25
        per_class = dict(enumerate(weights))
        theirs = model.train_on_batch(x, np.asarray(batch["label"]), class_weight=per_class)
        np.testing.assert_allclose(ours, theirs, rtol=2e-4)
    for part in state.params.values():
        for layer, tensors in part.items():
            twin = model.get_layer(layer)
            kernel = twin.gamma if "scale" in tensors else twin.kernel
            mine = tensors.get("scale", tensors.get("kernel"))
            np.testing.assert_allclose(mine, np.asarray(kernel), rtol=2e-3, atol=2e-4)
    moving = model.get_layer("bn4")
    stats = state.batch_stats["backbone"]["bn4"]
    np.testing.assert_allclose(stats["mean"], np.asarray(moving.moving_mean), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(stats["var"], np.asarray(moving.moving_variance), rtol=1e-3)


@pytest.mark.parametrize(
    ("convention", "mean", "std"),
    [
        ("torch", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("tf", (0.5,) * 3, (0.5,) * 3),
    ],
)
def test_normalisation_equals_keras_preprocessing(convention, mean, std):
    imagenet_utils = pytest.importorskip("keras").src.applications.imagenet_utils
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 1), np.uint8)
    theirs = imagenet_utils.preprocess_input(
        np.repeat(images, 3, axis=-1).astype(np.float32), mode=convention
    )
    np.testing.assert_allclose(
        step.normalize(jnp.asarray(images), mean, std).colour(), theirs, rtol=1e-5, atol=1e-5
    )


def test_masked_rows_change_neither_loss_nor_totals():
    settings = small_config()
    settings.model.head.batch_norm = False  # without batch statistics rows are independent
    _, state, run = make(settings, layers=frozenset())
    mask = np.arange(8) < 5
    batch = make_batch(mask=mask)
    junk = batch["image"].at[5:].set(255 - batch["image"][5:])
    one, loss_one = run(state, batch)
    other, loss_other = run(state, batch | {"image": junk})
    np.testing.assert_allclose(loss_one, loss_other, rtol=1e-6)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), one.totals, other.totals)
    assert float(one.totals["support"].sum()) == 5


def test_frozen_layers_keep_parameters_and_statistics():
    settings = small_config()
    settings.model.trainable_layers = 4  # pool3, bn3 and relu3 stay; conv4, bn4, relu4 train
    _, state, run = make(settings)
    after, _ = run(state, make_batch())
    assert set(state.params["backbone"]) == {"conv4", "bn4"}
    jax.tree.map(np.testing.assert_array_equal, after.frozen, state.frozen)
    for layer, stats in after.batch_stats["backbone"].items():
        moved = not np.array_equal(stats["mean"], state.batch_stats["backbone"][layer]["mean"])
        assert moved == (layer == "bn4"), layer
    for layer in ("conv4", "bn4"):
        for name, value in after.params["backbone"][layer].items():
            assert not np.array_equal(value, state.params["backbone"][layer][name])


def test_every_parameter_receives_a_gradient():
    _, state, run = make(small_config())
    after, _ = run(state, make_batch())
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after.params, state.params)
    assert all(jax.tree.leaves(moved)), moved


def test_bfloat16_follows_float32():
    settings = small_config()
    _, state, run = make(settings)
    _, wanted = run(state, make_batch())
    settings.train.precision = "bfloat16"
    _, state, run = make(settings)
    after, got = run(state, make_batch())
    assert {leaf.dtype for leaf in jax.tree.leaves(after.params)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(got, wanted, rtol=0.05)
    assert got != wanted


def test_dropout_and_augmentation_follow_seed_and_step():
    settings = small_config()
    settings.model.head.dropout = 0.5
    _, state, run = make(settings, rotation=10.0, shift=0.1, zoom=0.1)
    first = run(state, make_batch())[1]
    assert first == run(state, make_batch())[1]
    assert first != run(state._replace(step=state.step + 1), make_batch())[1]
    _, state, run = make(settings, rotation=10.0, shift=0.1, zoom=0.1, seed=1)
    assert first != run(state, make_batch())[1]


@pytest.mark.parametrize("field", ["shift", "rotation", "zoom", "border", "gamma"])
def test_each_augmentation_reaches_the_images_of_training(field):
    batch, look = make_batch(), (jnp.int32(0), jnp.int32(0))
    recipe = step.Recipe(None, CLASSES, (0.5,), (0.25,), frozenset(), 0.0, 0.0, 0.0)
    plain = step._inputs(recipe, batch)
    np.testing.assert_array_equal(step._inputs(recipe, batch, look).pixels, plain.pixels)
    changed = recipe._replace(**{field: 0.2})
    assert np.any(step._inputs(changed, batch, look).pixels != plain.pixels)
    np.testing.assert_array_equal(step._inputs(changed, batch).pixels, plain.pixels)


def test_inference_is_deterministic_and_ignores_the_rest_of_the_batch():
    recipe, state, _ = make(small_config())
    run = jax.jit(functools.partial(step.eval_step, recipe))
    variables = (state.params, state.frozen, state.batch_stats)
    batch = make_batch()
    alone = {name: value[:1] for name, value in batch.items()}
    np.testing.assert_allclose(run(*variables, batch)[0][:1], run(*variables, alone)[0], rtol=1e-4)


def test_accumulated_batches_make_the_step_of_their_mean_gradient():
    settings = small_config()
    settings.train.optimizer = "sgd"
    settings.train.accumulate = 2
    recipe, state, _ = make(settings)
    tx, run = build.train_program(settings, recipe)
    state = state._replace(opt_state=tx.init(state.params))
    before = jax.device_get(state.params)
    gradients = []
    for seed in range(2):
        plain = optax.sgd(100.0)  # times the learning rate of `make`: moves by the gradient
        at = build.copy_arrays(state._replace(opt_state=plain.init(state.params)))
        moved, _ = jax.jit(functools.partial(step.train_step, recipe, plain))(at, make_batch(seed))
        gradients.append(jax.tree.map(np.subtract, before, jax.device_get(moved.params)))
        if seed:
            jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(state.params))
        state, _ = run(state, make_batch(seed))
    expected = jax.tree.map(lambda p, a, b: p - 0.01 * (a + b) / 2, before, *gradients)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
        jax.device_get(state.params),
        expected,
    )
    assert int(state.step) == 2


def test_what_is_off_has_no_name_in_a_checkpoint():
    """Those of versions without the options are read into the same names."""
    _, state, _ = make(small_config())
    held = state.held()
    always = "learning_rate dropout l2 class_weights seed steps_per_epoch"
    assert " ".join(held["settings"]) == always
    assert " ".join(held) == "params frozen batch_stats opt_state step totals settings"
    on = state._replace(settings=state.settings._replace(warmup_steps=jnp.float32(3)))
    assert " ".join(on.held()["settings"]) == f"{always} warmup_steps"
    for one in (state, on):
        again = step.TrainState.restored(one.held())
        jax.tree.map(np.testing.assert_array_equal, again, one)


def test_without_options_the_program_is_that_of_the_plain_formula(monkeypatch):
    def program():
        _, state, run = make(small_config())
        return run.lower(state, make_batch()).as_text()

    def plain_rates(settings, _):
        return dict.fromkeys(("backbone", "head"), settings.learning_rate)

    def plain_loss(logits, labels, _):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    ours = program()
    monkeypatch.setattr(step, "learning_rates", plain_rates)
    monkeypatch.setattr(step.losses, "cross_entropy", plain_loss)
    monkeypatch.setattr(step, "_averaged", lambda *_: None)
    assert program() == ours


def sgd_moves(batches=1, *, accumulate=1, start=0, **options):
    """How far SGD moves each parameter, with some settings replaced, from step `start` on."""
    settings = small_config()
    recipe, state, _ = make(settings)
    tx = optim.optimizer("sgd", accumulate=accumulate)
    numbers = {name: jnp.float32(value) for name, value in options.items()}
    state = state._replace(
        opt_state=tx.init(state.params),
        step=jnp.int32(start),
        settings=state.settings._replace(**numbers),
    )
    run, before = jax.jit(functools.partial(step.train_step, recipe, tx)), state.params
    for _ in range(batches):
        state, _ = run(state, make_batch())
    return jax.tree.map(np.subtract, jax.device_get(state.params), jax.device_get(before))


def assert_moves(moves, wanted):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), moves, wanted)


def scaled(moves, factor):
    return jax.tree.map(lambda move: np.float32(factor) * move, moves)


def test_the_backbone_moves_by_its_own_rate():
    plain, moves = sgd_moves(), sgd_moves(backbone_rate=0.25)
    assert max(np.abs(move).max() for move in jax.tree.leaves(plain["backbone"])) > 1e-3
    assert_moves(moves["head"], plain["head"])
    assert_moves(moves["backbone"], scaled(plain["backbone"], 0.25))


def test_a_step_moves_by_the_rate_of_the_schedule():
    plain, lengths = sgd_moves(), {"warmup_steps": 4, "decay_steps": 12}
    schedule = optax.warmup_cosine_decay_schedule(0.0, 1.0, 4, 12)
    for start in (0, 1, 4, 9):
        assert_moves(sgd_moves(start=start, **lengths), scaled(plain, schedule(start)))
    # Of accumulated batches, here the same thrice, the last one's factor counts.
    assert_moves(sgd_moves(3, accumulate=3, **lengths), scaled(plain, schedule(2)))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_averaged_weights_are_those_of_a_plain_loop(accumulate):
    decay, settings = 0.8, small_config()
    settings.model.trainable_layers = 4  # statistics of the other layers stay
    recipe, state, _ = make(settings)
    tx = optim.optimizer("sgd", accumulate=accumulate)
    numbers = state.settings._replace(ema=jnp.float32(decay))
    stats = jax.tree.map(lambda of: of * jnp.linspace(0.6, 1.7, of.size), state.batch_stats)
    variables = build.Variables(state.params, state.frozen, stats, None)
    state = build.init_state(variables, recipe, tx, numbers)
    run, taken = jax.jit(functools.partial(step.train_step, recipe, tx)), []
    for seed in range(1, 7):
        state, _ = run(state, make_batch(seed))
        if seed % accumulate == 0:
            taken.append(jax.device_get((state.params, state.batch_stats)))
        if not taken:
            continue
        weights = [decay ** (len(taken) - i) for i in range(len(taken))]
        expected = jax.tree.map(
            lambda *of, weights=weights: np.average(of, axis=0, weights=weights), *taken
        )
        got = jax.device_get(state.average)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), got, expected
        )
    for layer in ("bn1", "bn2", "bn3"):
        still = [of["backbone"][layer]["var"] for of in (got[1], state.batch_stats)]
        np.testing.assert_array_equal(*still)
    assert state.evaluated is state.average
    kernels = [of["backbone"]["conv4"]["kernel"] for of in (got[0], state.params)]
    assert np.abs(np.subtract(*kernels)).max() > 1e-4


def test_rematerialisation_changes_nothing():
    recipe, state, _ = make(small_config())
    tx = optax.sgd(10.0)
    state = state._replace(opt_state=tx.init(state.params))
    batch = make_batch()
    plain, less = (
        jax.jit(functools.partial(step.train_step, recipe._replace(remat=remat), tx))(state, batch)
        for remat in (False, True)
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), plain, less)


def test_one_program_serves_all_settings():
    """Each number acts, and none of them is a constant of the compiled step."""
    settings = small_config()
    settings.model.head.dropout = 0.3
    _, state, run = make(settings, shift=0.1)
    changes = {
        "learning_rate": jnp.float32(0.3),
        "dropout": jnp.float32(0.6),
        "l2": jnp.float32(0.9),
        "class_weights": jnp.asarray([1, 2, 3, 4], jnp.float32),
        "seed": jnp.int32(7),
    }
    first, _ = run(state, make_batch())
    for name, value in changes.items():
        other = state._replace(settings=state.settings._replace(**{name: value}))
        after, _ = run(other, make_batch())
        head = (after.params["head"]["dense"]["kernel"], first.params["head"]["dense"]["kernel"])
        assert not np.array_equal(*head), name
    later = state._replace(step=jnp.int32(5))
    epochs = [later.settings._replace(steps_per_epoch=jnp.int32(n)) for n in (10, 5)]
    losses = [run(later._replace(settings=numbers), make_batch())[1] for numbers in epochs]
    assert losses[0] != losses[1]  # the second epoch augments anew
    assert run._cache_size() == 1


def test_one_program_serves_all_values_of_an_option_that_is_on():
    _, state, run = make(small_config())
    on = {"warmup_steps": 4, "decay_steps": 20, "backbone_rate": 0.5, "label_smoothing": 0.1}
    numbers = {name: jnp.float32(value) for name, value in (on | {"ema": 0.9}).items()}
    state = state._replace(
        settings=state.settings._replace(**numbers), average=(state.params, state.batch_stats)
    )
    late = {"decay_steps": 9, "backbone_rate": 0.25, "label_smoothing": 0.3, "ema": 0.5}
    for start, changes in ((3, {"warmup_steps": 12}), (8, late)):
        now = state._replace(step=jnp.int32(start))
        first, _ = run(now, make_batch())
        for name, value in changes.items():
            other = now.settings._replace(**{name: jnp.float32(value)})
            after, _ = run(now._replace(settings=other), make_batch())
            kernels = [s.evaluated[0]["backbone"]["conv4"]["kernel"] for s in (after, first)]
            assert not np.array_equal(*kernels), name
    assert run._cache_size() == 1
