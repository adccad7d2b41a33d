"""The winner of a grid, and how much the best of many flatters: held against simulated grids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sweep_records import entry, key, record

from cxrjax import bootstrap
from cxrjax.sweep import selection
from cxrjax.sweep.selection import optimism, ranking

A, B, C = ({"train.learning_rate": lr} for lr in (1e-2, 1e-3, 1e-4))


def test_the_winner_is_by_accuracy_then_loss_whatever_the_order():
    records = [
        record(0, A, accuracy=0.80, loss=0.1),
        record(1, B, accuracy=0.85, loss=0.6),
        record(2, C, accuracy=0.85, loss=0.5),
    ]
    for order in (records, records[::-1]):
        assert [point["values"] for point in ranking(order)] == [C, B, A]
    (only,) = ranking(records[:1])
    assert only["accuracy"] == records[0]["validation"]["accuracy"]
    assert (only["keys"], only["seeds"], only["best_epoch"], only["lost"]) == ([key(0)], [0], 7, 0)


def test_points_are_ranked_by_their_mean_over_seeds():
    records = [
        record(0, A, accuracy=0.9, loss=0.2, seed=1, best_epoch=3),
        record(1, B, accuracy=0.8, loss=0.4, seed=0),
        record(2, A, accuracy=0.6, loss=0.4, seed=0, best_epoch=8),
        record(3, B, accuracy=0.8, loss=0.5, seed=1),
        record(4, A, accuracy=0.6, loss=0.6, seed=2, best_epoch=4),
        record(5, C, accuracy=0.81, seed=0, status="diverged"),
    ]
    first, second = ranking(records)
    assert (first["values"], second["values"]) == (B, A)
    assert (second["keys"], second["seeds"]) == ([key(2), key(0), key(4)], [0, 1, 2])
    assert second["accuracy"]["value"] == pytest.approx(0.7) and second["loss"] == pytest.approx(
        0.4
    )
    assert (second["best_epoch"], first["best_epoch"]) == (4, 7)
    assert second["seconds"] == pytest.approx(36.9)


def test_equal_means_are_ties_though_they_are_rounded_differently():
    tenths = [record(k, A, accuracy=a, loss=0.1, seed=k) for k, a in enumerate((0.7, 0.8, 0.9))]
    equal = [record(9 + k, B, accuracy=0.8, loss=0.2, seed=k) for k in range(3)]
    assert np.mean([0.7, 0.8, 0.9]) < np.mean([0.8] * 3)
    assert [point["values"] for point in ranking(equal + tenths)] == [A, B]


def test_a_point_that_lost_a_seed_cannot_win_against_one_that_lost_none():
    records = [
        record(0, A, accuracy=0.95, seed=0),
        record(1, A, seed=1, status="diverged"),
        record(2, B, accuracy=0.7, seed=0),
        record(3, B, accuracy=0.7, seed=1),
        record(4, C, seed=0, status="out_of_memory"),
    ]
    assert [(point["values"], point["lost"]) for point in ranking(records)] == [(B, 0), (A, 1)]
    assert ranking(records[4:]) == ranking([]) == []


def test_values_that_are_lists_make_points_too():
    draws = [{"data.draw": [16, 4, 2]}, {"data.draw": [8, 4, 2]}]
    records = [record(k, draws[k % 2], accuracy=0.5 + 0.1 * k, seed=k // 2) for k in range(4)]
    assert [point["values"] for point in ranking(records)] == draws[::-1]


def test_the_interval_over_seeds_holds_images_and_seeds():
    same = selection.mean_over_seeds([entry(0.8), entry(0.8)])
    assert (same["low"], same["high"], same["n"]) == (pytest.approx(0.76), pytest.approx(0.84), 400)
    spread = selection.mean_over_seeds([entry(0.7, 0.0), entry(0.8, 0.0), entry(0.9, 0.0)])
    low, high = stats.t.interval(0.95, 2, 0.8, 0.1 / np.sqrt(3))
    assert (spread["low"], spread["high"]) == (pytest.approx(low), pytest.approx(min(1, high)))
    both = selection.mean_over_seeds([entry(v, 0.03) for v in (0.5, 0.51, 0.52, 0.53)])
    reach = stats.t.ppf(0.975, 3) * np.std([0.5, 0.51, 0.52, 0.53], ddof=1) / 2
    assert both["value"] - both["low"] == pytest.approx(np.hypot(0.03, reach))


def within(value, bounds):
    return bounds[0] <= value <= bounds[1]


def best_of(n, size, p):
    """Exact expectation of the largest of n accuracies, binomial(size, p) / size each."""
    return np.sum(1 - stats.binom.cdf(np.arange(size), size, p) ** n) / size


def estimates(truth, images, copies, count, seed):
    """Optimism of `count` simulated searches: trials of the given true accuracies.

    Args:
      truth: float [T].
      images: different ones; each comes `copies` times, as one group.
    """
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(images) * 3, copies))
    found = []
    for _ in range(count):
        right = rng.random([len(truth), images]) < np.asarray(truth)[:, None]
        found.append(optimism(right[:, groups // 3], groups, 400, 0))
    return found


@pytest.mark.parametrize(
    ("n", "images", "copies", "p"), [(54, 400, 1, 0.8), (9, 100, 1, 0.7), (27, 150, 3, 0.9)]
)
def test_optimism_of_equally_good_trials_is_that_of_the_best_of_n(n, images, copies, p):
    found = estimates([p] * n, images, copies, 40, seed=n)
    values = np.array([each["optimism"]["value"] for each in found])
    error = values.std() / np.sqrt(len(values))
    truth = best_of(n, images, p) - p
    # What is left is the normal approximation: a few percent. Without the division it is 41 %.
    assert abs(values.mean() - truth) < 3 * error + 0.06 * truth
    held = [within(p, each["corrected_interval"]) for each in found]
    assert np.mean(held) >= 0.9
    flattered = [within(p, (each["apparent"]["low"], each["apparent"]["high"])) for each in found]
    assert np.mean(flattered) < np.mean(held)


def test_no_optimism_without_a_choice():
    for found in (*estimates([0.8], 400, 1, 3, 0), *estimates([0.9] + [0.6] * 20, 400, 1, 3, 1)):
        assert abs(found["optimism"]["value"]) < 0.004
        assert found["corrected"] == pytest.approx(found["apparent"]["value"], abs=0.004)
        assert (found["winner"], found["not_distinguishable"]) == (0, 0)
        assert found["optimism"]["low"] < -0.02 and found["optimism"]["high"] > 0.02


def test_a_winner_without_a_mistake_is_not_certain():
    correct = np.ones([3, 20])
    correct[1:, :4] = 0
    found = selection.optimism(correct, np.arange(20), 200, 0)
    assert found["apparent"] == bootstrap.rate(correct[0], np.arange(20), 200, 0)
    least = 0.025 ** (1 / 20)
    assert found["apparent"]["low"] == pytest.approx(least)
    assert found["corrected_interval"] == pytest.approx([least, 1])


def test_spread_trials_are_not_corrected_too_little_and_the_winner_is_in_the_interval():
    rng = np.random.default_rng(0)
    excess, held = [], []
    for turn in range(40):
        truth = np.clip(rng.normal(0.8, 0.03, 54), 0, 1)
        (found,) = estimates(truth, 400, 1, 1, turn)
        true = truth[found["winner"]]
        excess.append(found["optimism"]["value"] - (found["apparent"]["value"] - true))
        held.append(within(true, found["corrected_interval"]))
    assert -0.004 < np.mean(excess) < 0.015
    assert np.mean(held) >= 0.9


def test_who_cannot_be_told_from_the_winner():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.8
    twin = first ^ (np.arange(400) == 7)  # differs in one image
    worse = first & (rng.random(400) < 0.9)
    found = optimism(np.stack([worse, twin, first, worse]), np.arange(400), 1000, 0)
    assert found["winner"] == (2 if first[7] else 1)
    assert (found["trials"], found["not_distinguishable"]) == (4, 1)
    shares = np.stack([first, twin, worse]).astype(float) * 0.5 + 0.25
    assert optimism(shares, np.arange(400), 1000, 0)["apparent"]["value"] == pytest.approx(
        0.25 + 0.5 * max(first.mean(), twin.mean())
    )


def test_of_many_equally_good_trials_hardly_any_is_told_from_the_luckiest():
    """In pairs with it, each by its own 95 % interval, a quarter of them would be."""
    found = estimates([0.85] * 27, 400, 1, 30, seed=5)
    kept = np.mean([each["not_distinguishable"] for each in found]) / 26
    assert 0.92 < kept < 0.98


def test_of_equal_accuracies_the_first_row_wins():
    twins = np.tile(np.arange(40) % 2 == 0, [3, 1])
    assert optimism(twins, np.arange(40), 100, 0)["winner"] == 0


def test_images_of_one_group_leave_the_optimism_undefined():
    found = optimism(np.array([[True, False], [True, True]]), np.array([5, 5]), 100, 0)
    assert found["apparent"]["value"] == 1.0 and found["winner"] == 1
    assert (found["corrected"], found["corrected_interval"]) == (None, [None, None])
    for name in ("retest", "optimism"):
        assert found[name] == {"value": None, "low": None, "high": None, "n": 2}


@given(st.integers(1, 6), st.integers(2, 12), st.integers(2, 5), st.integers(0, 2**32 - 1))
def test_optimism_equals_a_plain_loop_over_resamples(trials, n, kinds, seed):
    from cxrjax import bootstrap

    rng = np.random.default_rng(seed)
    correct, groups = rng.random([trials, n]) < 0.6, rng.integers(0, kinds, n)
    found = optimism(correct, groups, 30, seed)
    names = np.unique(groups)
    inside, outside = [], []
    for counts in np.concatenate(list(bootstrap.draws(groups, 30, seed))):
        images = np.concatenate(
            [np.tile(np.flatnonzero(groups == g), k) for g, k in zip(names, counts, strict=True)]
        ).astype(int)
        left_out = ~np.isin(np.arange(n), images)
        if left_out.any():
            best = np.argmax([c[images].mean() for c in correct])
            inside.append(correct[best][images].mean())
            outside.append(correct[best][left_out].mean())
    if not inside:
        assert found["retest"]["value"] is None
        return
    assert found["retest"]["value"] == pytest.approx(np.mean(outside))
    wanted = (np.mean(inside) - np.mean(outside)) / np.sqrt(2 - 1 / len(names))
    assert found["optimism"]["value"] == pytest.approx(wanted, abs=1e-12)
    rest = found["apparent"]["value"] - found["optimism"]["value"]
    assert found["corrected"] == pytest.approx(rest)
