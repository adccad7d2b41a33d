"""Splits: disjoint, complete, stratified, groups whole, the same whatever the order of files."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cxrjax.data.splits import SPLITS, digest, holding_out, leaks, make_splits
from cxrjax.errors import UserError

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
FULL = (3616, 6012, 10192, 1345)


def _split(
    labels, groups=None, given=None, names=None, draw=(), seed=0, test=0.2, validation=0.125
):
    n = len(labels)
    return make_splits(
        np.asarray(labels),
        np.arange(n) if groups is None else np.asarray(groups),
        given or [None] * n,
        names or [f"{i:05d}.png" for i in range(n)],
        test_fraction=test,
        validation_fraction=validation,
        draw=draw,
        seed=seed,
        classes=CLASSES,
    )


def test_the_full_database_gives_the_test_support_of_the_report() -> None:
    labels = np.repeat(np.arange(4), FULL)
    splits = _split(labels)
    assert np.bincount(labels[splits["test"]]).tolist() == [723, 1202, 2038, 269]
    assert len(splits["test"]) == 4232
    assert np.bincount(labels[splits["validation"]]).tolist() == [362, 601, 1019, 135]
    _assert_partition(splits, len(labels))


def _assert_partition(splits, n) -> None:
    assert tuple(splits) == SPLITS
    together = np.concatenate(list(splits.values()))
    assert sorted(together.tolist()) == list(range(n))
    for positions in splits.values():
        assert positions.dtype == np.int32 and (np.diff(positions) > 0).all()


@st.composite
def _grouped(draw):
    sizes = draw(st.lists(st.integers(1, 4), min_size=12, max_size=40))
    kinds = draw(st.lists(st.integers(0, 2), min_size=len(sizes), max_size=len(sizes)))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = np.repeat(kinds, sizes)
    assume(all((np.array(kinds) == kind).sum() >= 4 for kind in range(3)))
    return labels, groups


@pytest.mark.parametrize("seed", range(20))
def test_small_groups_are_left_for_every_split(seed):
    """Four groups of sizes 1, 1, 1, 4 in one class: the quota of the test split alone is three."""
    labels = np.repeat([0, 1, 2], [13, 4, 7])
    groups = np.concatenate([np.arange(20), np.full(4, 20)])
    names = [f"{i}.png" for i in range(24)]
    splits = _split(labels, groups, names=names, seed=seed, test=0.375, validation=0.25)
    for positions in splits.values():
        assert set(labels[positions]) == {0, 1, 2}


@given(_grouped(), st.integers(0, 1000), st.floats(0.1, 0.4), st.floats(0.1, 0.4), st.randoms())
@settings(max_examples=150, deadline=None)
def test_properties(grouped, seed, test, validation, random) -> None:
    labels, groups = grouped
    n = len(labels)
    names = [f"{i}.png" for i in range(n)]
    splits = _split(labels, groups, names=names, seed=seed, test=test, validation=validation)
    _assert_partition(splits, n)
    side = np.empty(n, int)
    for k, positions in enumerate(splits.values()):
        side[positions] = k
    for member in np.unique(groups):
        assert len(set(side[groups == member])) == 1  # groups never cross
    largest = np.bincount(groups).max()
    for kind in range(3):
        ours = labels == kind
        in_test = (ours & (side == 2)).sum()
        assert abs(in_test - test * ours.sum()) < largest + 0.5
        rest = ours.sum() - in_test
        assert abs((ours & (side == 1)).sum() - validation * rest) < largest + 0.5
    order = list(range(n))
    random.shuffle(order)
    shuffled = [names[i] for i in order]
    other = _split(
        labels[order],
        groups[order] + 7,
        names=shuffled,
        seed=seed,
        test=test,
        validation=validation,
    )
    assert digest(other, shuffled) == digest(splits, names)


def test_the_seed_changes_the_splits_and_nothing_else() -> None:
    labels = np.repeat([0, 1], 50)
    names = [f"{i:05d}.png" for i in range(100)]
    digests = {digest(_split(labels, seed=seed), names) for seed in range(5)}
    assert len(digests) == 5
    assert digest(_split(labels, seed=3), names) == digest(_split(labels, seed=3), names)


def test_a_new_image_moves_few_of_the_old_ones() -> None:
    labels = np.repeat([0, 1], 200)
    names = [f"{i:05d}.png" for i in range(400)]
    before = {names[i] for i in _split(labels, names=names)["test"]}
    after = _split([*labels, 0], names=[*names, "new.png"])["test"]
    assert len(before ^ {[*names, "new.png"][i] for i in after}) <= 3


def test_a_mixed_group_counts_for_its_majority_and_stays_whole() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [0, 0, 1])
    groups = np.array([*range(40), 40, 40, 40])
    for seed in range(20):
        splits = _split(labels, groups, seed=seed)
        assert any({40, 41, 42} <= set(positions.tolist()) for positions in splits.values())
        assert np.bincount(labels[splits["test"]])[0] in (4, 5)


def test_given_parts_are_kept_even_if_they_leak() -> None:
    labels = np.tile([0, 1], 30)
    given = ["train"] * 40 + ["validation"] * 10 + ["test"] * 10
    groups = np.zeros(60, int)  # everything is one film: the audit says so, nothing is moved
    splits = _split(labels, groups, given)
    assert [splits[s].tolist() for s in SPLITS] == [
        list(range(40)),
        list(range(40, 50)),
        list(range(50, 60)),
    ]


def test_validation_is_carved_out_of_train_never_out_of_test() -> None:
    labels = np.tile([0, 1], 30)
    splits = _split(labels, given=["train"] * 40 + ["test"] * 20)
    assert splits["test"].tolist() == list(range(40, 60))
    assert len(splits["validation"]) == 6 and splits["validation"].max() < 40  # 2.5 of 20, each
    splits = _split(labels, given=["train"] * 40 + ["validation"] * 20)
    assert splits["validation"].tolist() == list(range(40, 60))
    assert len(splits["test"]) == 8 and splits["test"].max() < 40


@pytest.mark.parametrize("part", ["validation", "test"])
def test_what_is_carved_out_shares_no_group_with_a_given_part_if_there_are_others(part) -> None:
    labels = np.tile([0, 1], 200)
    given = ["train"] * 300 + [part] * 100
    groups = np.arange(400)
    groups[300:] = groups[:100]  # patients of a third of the training part
    splits = _split(labels, groups, given)
    carved = "test" if part == "validation" else "validation"
    assert len(splits[carved]) > 30 and splits[carved].min() >= 100 and splits[carved].max() < 300
    assert splits[part].tolist() == list(range(300, 400))


def test_a_balanced_draw() -> None:
    labels = np.repeat([0, 1], [60, 300])
    groups = np.arange(360)
    groups[[0, 70]] = 0  # mixed: left out
    groups[[80, 81, 82]] = 80
    splits = _split(labels, groups, draw=(60, 20, 10), seed=4)
    for split, count in zip(SPLITS, (60, 20, 10), strict=True):
        assert np.bincount(labels[splits[split]]).tolist() == [count // 2, count // 2]
    drawn = np.concatenate(list(splits.values()))
    assert len(set(drawn.tolist())) == 90 and not {0, 70} & set(drawn.tolist())
    assert len({80, 81, 82} & set(drawn.tolist())) in (0, 3)


def test_a_draw_from_given_parts_stays_within_them() -> None:
    labels = np.tile([0, 1], 60)
    given = ["train"] * 60 + ["validation"] * 30 + ["test"] * 30
    splits = _split(labels, given=given, draw=(20, 10, 4))
    assert {s: len(splits[s]) for s in SPLITS} == {"train": 20, "validation": 10, "test": 4}
    for split in SPLITS:
        assert {given[i] for i in splits[split]} == {split}


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        ((60, 20, 31), "31 images for test.*multiple of 2"),
        ((200, 40, 40), "train, class COVID.* 60 "),
    ],
)
def test_an_impossible_draw_says_what_there_is(draw: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _split(np.repeat([0, 1], [100, 300]), draw=draw)


@pytest.mark.parametrize(
    ("labels", "groups"),
    [([0] * 20 + [1, 1], None), ([0] * 20 + [1] * 9, [*range(20), *[20] * 5, *[25] * 4])],
)
def test_a_class_too_small_for_every_split(labels: list, groups: list | None) -> None:
    with pytest.raises(UserError, match=r"split has no image of class Lung_Opacity, of which"):
        _split(labels, groups)


def test_parts_without_a_training_part_are_refused() -> None:
    with pytest.raises(UserError, match=r"test and validation, without a train part"):
        _split([0, 1] * 10, given=["validation"] * 10 + ["test"] * 10)


def test_a_given_part_that_lacks_a_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"test split has no image of class COVID, of which.* 20;"):
        _split([0, 1] * 20 + [1] * 9, given=["train"] * 40 + ["test"] * 9)


def test_three_images_of_a_class_are_enough() -> None:
    labels = np.array([0] * 20 + [1] * 3)
    splits = _split(labels)
    assert [np.bincount(labels[splits[s]])[1] for s in SPLITS] == [1, 1, 1]


def test_leaks_counts_what_crosses() -> None:
    splits = {"train": np.array([0, 1, 2]), "validation": np.array([3]), "test": np.array([4, 5])}
    pairs = np.array([[0, 1], [1, 3], [2, 4], [3, 5], [1, 4], [0, 6]])  # 6 is in no split
    exact = np.array([True, True, False, False, False, True])
    patients = ["a", None, "b", "a", "a", "b", "b"]
    assert leaks(splits, pairs, patients, exact) == {
        "pairs": {"train-validation": 1, "train-test": 2, "validation-test": 1},
        "exact_pairs": {"train-validation": 1, "train-test": 0, "validation-test": 0},
        "patients": {"train-validation": 1, "train-test": 2, "validation-test": 1},
        "images": 5,
    }


def test_names_outside_unicode_are_divided_too() -> None:
    names = [os.fsdecode(b"A/caf\xe9-%d.png" % i) for i in range(12)]
    splits = make_splits(
        np.arange(12) % 2,
        np.arange(12),
        [None] * 12,
        names,
        test_fraction=0.2,
        validation_fraction=0.2,
    )
    assert sum(map(len, splits.values())) == 12 and len(digest(splits, names)) == 64


def test_the_digest_tells_membership_not_order() -> None:
    splits = {"train": np.array([0, 1]), "validation": np.array([2]), "test": np.array([3])}
    same = {"test": np.array([0]), "validation": np.array([1]), "train": np.array([3, 2])}
    assert digest(splits, "abcd") == digest(same, "dcab")
    assert digest(splits, "abcd") != digest(splits, "abdc")


def test_a_held_out_source_is_the_test_split_and_nothing_else():
    sources = ["a", "a", "b", "b", None, "b", "c", "a"] * 6
    labels = np.array([0, 1, 0, 0, 1, 0, 1, 1] * 6)
    groups = np.arange(48)
    groups[0] = groups[2]  # a film of a that shows in b too
    names = [f"{i:02d}" for i in range(48)]
    given = holding_out("b", sources, groups)
    made = make_splits(
        labels,
        groups,
        given,
        names,
        test_fraction=0.2,
        validation_fraction=0.25,
        may_lack=("test",),  # b has no image of class 1
    )
    assert made["test"].tolist() == [i for i in range(48) if sources[i] == "b"]
    rest = np.concatenate([made["train"], made["validation"]])
    assert sorted(rest) == [i for i in range(1, 48) if sources[i] != "b"]
    with pytest.raises(UserError, match="the test split has no image of class"):
        make_splits(labels, groups, given, names, test_fraction=0.2, validation_fraction=0.25)


def test_a_source_that_is_all_there_is_cannot_be_held_out():
    with pytest.raises(UserError, match="'a', from which all images come, or copies of them"):
        holding_out("a", ["a", "a", None], np.array([0, 1, 1]))


def test_an_unknown_source_is_told():
    with pytest.raises(UserError, match="did you mean 'rsna'"):
        holding_out("rnsa", ["rsna", None], np.arange(2))
    with pytest.raises(UserError, match="known are none"):
        holding_out("rsna", [None, None], np.arange(2))
