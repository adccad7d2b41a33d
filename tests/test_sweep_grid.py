"""Sweep files, the points they make, and the plan of what shares a program or a trunk."""

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cxrjax import cli, config
from cxrjax.errors import UserError
from cxrjax.sweep import grid, plan

RATES, DROPOUTS, BATCHES = (1e-2, 1e-3, 1e-4), (0.3, 0.4, 0.5), (32, 64, 128)
HEADS = {
    "model.head.dropout": DROPOUTS,
    "train.learning_rate": RATES,
    "train.batch_size": BATCHES,
}
NETWORKS = {
    "model.filters": (8, 32, 64),
    "model.head.dropout": DROPOUTS,
    "train.learning_rate": RATES,
    "train.optimizer": ("adam", "sgd"),
}


def expanded(values, **changes):
    base = config.default()
    for field, value in changes.items():
        config.assign(base, field.replace("__", "."), value, "test")
    return grid.expand(base, values, "test")


def planned(points, frozen, stacked=True):
    return plan.plan(points, lambda base: frozen, lambda cohort: stacked)


def sweep_file(tmp_path, body):
    path = tmp_path / "sweep.py"
    start = "from cxrjax import config as c\ndef get_config():\n    return c.default()\n"
    path.write_text(start + body)
    return str(path)


# ------------------------------------------------------------------ points


def test_a_weight_file_of_the_grid_may_be_named_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    points = expanded({"model.weights": ("none", "imagenet", "w.npz")}).points
    for point, word in zip(points, ("none", "imagenet"), strict=False):
        plain = config.default()
        plain.model.weights = word
        assert point.key == grid._key(plain)  # unfinished sweeps go on
    assert [point.config.model.weights for point in points] == [
        "none", "imagenet", str(tmp_path / "w.npz"),
    ]  # fmt: skip


def test_a_weight_file_counts_by_what_it_holds(tmp_path):
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.npz").write_bytes(content)
    a, b, c = (
        expanded({"model.weights": (str(tmp_path / name / "w.npz"),)}).points[0].key
        for name in "abc"
    )
    assert a == b != c


def test_points_are_the_product_of_the_values_and_the_seeds():
    sweep = expanded(HEADS, sweep__seeds=2, seed=5)
    assert len(sweep.points) == 54
    told = {(tuple(point.values.values()), point.seed) for point in sweep.points}
    assert told == set(itertools.product(itertools.product(*HEADS.values()), (5, 6)))
    for point in sweep.points:
        fields = config.fields(point.config)
        assert {field: fields[field] for field in point.values} == point.values
        assert fields["seed"] == point.seed
    assert len({point.key for point in sweep.points}) == 54


def test_keys_follow_what_decides_the_result_and_nothing_else():
    def only(**changes):
        return expanded({"train.learning_rate": (0.1,)}, **changes).points[0].key

    assert only() == only(data__dir="/elsewhere", data__cache="/c", sweep__finish="none")
    assert only() == only(eval__shortcuts=False, eval__coverage=0.5, eval__conformal_level=0.5)
    assert only() == only(eval__test=False, eval__sensitivity=0.5, sweep__finish="none")
    assert only() != only(eval__resamples=200)  # of its accuracy's interval
    assert only() != only(train__epochs=7)
    assert only() != only(seed=1)
    assert only() != only(train__ema=0.9)
    whole = expanded({"model.head.dropout": (0,)}).points[0].key
    assert whole == expanded({"model.head.dropout": (0.0,)}).points[0].key


def test_an_unfinished_sweep_outlives_new_options():
    """The key that the version before train.schedule gave. When a new field breaks this, leave it
    out of the key while it is off; when an old default changes, so must the key."""
    assert expanded({"train.learning_rate": (0.1,)}).points[0].key == "18a4754735c523f0"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train.learning_rte": (1,)}, "did you mean train.learning_rate"),
        ({"train.learning_rate": ()}, "list of values"),
        ({"train.learning_rate": 0.1}, "list of values"),
        ({"train.optimizer": "adam"}, "list of values"),
        ({"train.learning_rate": (0.1, 0.1)}, "twice"),
        ({"train.epochs": (1, 1.5)}, "whole number"),
        ({"train.momentum": (0.0, 0.9)}, "the point train.momentum=0.9"),
        ({"seed": (1, 2)}, "sweep.seeds"),
        ({"sweep.seeds": (1, 2)}, "cannot be varied"),
        ({"eval.coverage": (0.8, 0.9)}, "cannot be varied"),
        ({"data.dir": ("a", "b")}, "cannot be varied"),
        ({"seed": (1,), "model.filters": (8,)}, "sweep.seeds"),
        ({5: (1,)}, "the grid's 5 names no config field"),
        ({"data.classes": (("a", ["b"]), ("c", "d"))}, "data.classes"),
        ({"train.on_validation": (True,), "train.patience": (0,)}, "for single runs"),
        ({"train.epochs": tuple(range(1, 1001)), "model.filters": tuple(range(1, 1001))}, "most"),
    ],
)
def test_impossible_grids_are_one_sentence(values, words):
    with pytest.raises(UserError, match=words):
        expanded(values)


def test_a_test_split_left_alone_is_not_read_for_the_winner():
    with pytest.raises(UserError, match=r"eval\.test is False.*sweep\.finish to none"):
        expanded({"train.learning_rate": (0.1,)}, eval__test=False)


def test_records_bear_the_names_of_the_grid_that_asks():
    """A trial that another grid ran goes by all fields that vary now, and by no others."""
    before = expanded({"train.learning_rate": (0.1, 0.2), "model.head.dropout": (0.0,)})
    now = expanded({"train.learning_rate": (0.1, 0.3), "model.filters": (16, 32)})
    records = {p.key: {"key": p.key, "values": p.values, "epochs": 3} for p in before.points}
    same = [p for p in now.points if p.key in records]
    assert len(same) == 1
    assert now.own(records) == [{"key": same[0].key, "values": same[0].values, "epochs": 3}]
    assert set(same[0].values) == {"train.learning_rate", "model.filters"}


def test_a_file_its_overrides_and_its_mistakes(tmp_path):
    path = sweep_file(tmp_path, "def get_grid():\n    return {'train.epochs': (1, 2)}\n")
    assert len(grid.load(path, {"sweep.seeds": "3"}).points) == 6
    more = grid.load(path, {}, {"train.epochs": "(3, 4, 5)", "train.optimizer": "adam,sgd"})
    assert len(more.points) == 6
    assert more.grid["train.optimizer"] == ("adam", "sgd")
    assert len(grid.load(path, {}, {"train.epochs": "7"}).points) == 1
    for overrides, of_grid, words in (
        ({"train.epochs": "3"}, {}, "--grid.train.epochs"),
        ({"train.epoch": "3"}, {}, "did you mean"),
        ({}, {"train.epochs": ""}, "needs values"),
        ({}, {"train.epoch": "1,2"}, "did you mean"),
    ):
        with pytest.raises(UserError, match=words):
            grid.load(path, overrides, of_grid)
    for body, words in (
        ("", "python -m cxrjax.main"),
        ("def get_grid():\n    return 1\n", "must return a dict"),
        ("def get_grid():\n    raise KeyError('x')\n", "KeyError"),
    ):
        with pytest.raises(UserError, match=words):
            grid.load(sweep_file(tmp_path, body))
    with pytest.raises(UserError, match="does not exist"):
        grid.load(str(tmp_path / "none.py"))


def test_settings_of_the_command_line_go_to_their_sections():
    arguments = ["--config.a.b=1", "--grid.c.d", "(1, 2)", "--config.e=x=.y"]
    found = cli.parse_settings(arguments, ("config", "grid"))
    assert found == ({"a.b": "1", "e": "x=.y"}, {"c.d": "(1, 2)"})
    for wrong in (["--config.a"], ["--grid.a", "--config.b=1"], ["--other.a=1"], ["config.a=1"]):
        with pytest.raises(UserError):
            cli.parse_settings(wrong, ("config", "grid"))


# ------------------------------------------------------------------ plan


def test_heads_behind_a_frozen_trunk_are_one_unit_of_one_pass():
    (unit,) = planned(expanded(HEADS).points, frozen=True)
    assert unit.shared
    assert unit.pass_size == 128
    assert [len(cohort.points) for cohort in unit.cohorts] == [9, 9, 9]
    assert {cohort.config.train.batch_size for cohort in unit.cohorts} == set(BATCHES)
    assert len({cohort.program for cohort in unit.cohorts}) == 3


def test_options_of_the_training_share_a_trunk_and_no_program():
    values = {"train.learning_rate": RATES, "train.ema": (0.0, 0.9), "train.warmup": (0.0, 2.0)}
    (unit,) = planned(expanded(values).points, frozen=True)
    assert [len(cohort.points) for cohort in unit.cohorts] == [3] * 4
    assert len({cohort.program for cohort in unit.cohorts}) == 4


def test_whole_networks_share_programs_and_nothing_else():
    units = planned(expanded(NETWORKS).points, frozen=False, stacked=False)
    assert len(units) == 54
    assert len({unit.cohorts[0].program for unit in units}) == 6
    stacks = planned(expanded(NETWORKS).points, frozen=False, stacked=True)
    assert [len(unit.points) for unit in stacks] == [9] * 6


def test_seeds_share_programs_but_no_pass():
    units = planned(expanded(HEADS, sweep__seeds=2).points, frozen=True)
    assert len(units) == 2
    programs = [{cohort.program for cohort in unit.cohorts} for unit in units]
    assert programs[0] == programs[1]


def test_batch_sizes_without_a_common_multiple_have_passes_of_their_own():
    units = planned(expanded({"train.batch_size": (997, 32, 64)}).points, frozen=True)
    assert [unit.pass_size for unit in units] == [997, 64]


SWEEPS = functools.cache(lambda whole: expanded(NETWORKS if whole else HEADS))


@settings(deadline=None)
@given(st.data(), st.booleans(), st.booleans())
def test_every_trial_is_in_one_unit_and_stays_there_when_others_are_done(data, frozen, stacked):
    sweep = SWEEPS(data.draw(st.booleans()))
    points = data.draw(st.lists(st.sampled_from(sweep.points), unique_by=lambda p: p.key))
    units = planned(points, frozen, stacked)
    keys = [point.key for unit in units for point in unit.points]
    assert sorted(keys) == sorted(point.key for point in points)
    for unit in units:
        for cohort in unit.cohorts:
            assert unit.pass_size % cohort.config.train.batch_size == 0
            assert cohort.mode == plan.SEPARATE or len(cohort.points) > 1
            assert len({plan.signature(p, plan.NUMBERS) for p in cohort.points}) == 1
    done = set(data.draw(st.lists(st.sampled_from(keys), unique=True))) if keys else set()
    left = [point.key for unit in plan.without(units, done) for point in unit.points]
    assert sorted(left) == sorted(set(keys) - done)


@settings(deadline=None)
@given(st.integers(1, 27), st.booleans())
def test_halves_lose_nothing_and_end_with_single_trials(n, stacked):
    (unit,) = planned(SWEEPS(False).points[:n], True, stacked)
    parts, singles, rounds = [unit], [], 0
    while parts:
        rounds += 1
        following = []
        for part in parts:
            following += plan.halves(part)
            if len(part.points) == 1:
                assert not plan.halves(part)
                singles += part.points
        parts = following
    assert sorted(p.key for p in singles) == sorted(p.key for p in unit.points)
    assert rounds <= 9  # three cohorts, of nine trials at most
