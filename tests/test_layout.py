"""Paths to classes and parts: whatever the folders are called, placed or refused."""

import os

import pytest
from film_files import lay_out, png
from hypothesis import given
from hypothesis import strategies as st

from cxrjax.data import folder
from cxrjax.data.folder import layout, open_folder, place
from cxrjax.data.sources import choose_classes
from cxrjax.errors import UserError

NAMES = st.sampled_from(
    ["A", "B", "COVID", "train", "Val", "test", "images", "masks", "x y", "ü", "a.b", "1.png"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(st.lists(PATHS, min_size=1, max_size=12, unique=True))
def test_any_layout_is_placed_or_refused(names):
    try:
        root, divided = layout(names)
    except UserError:
        return
    assert all(name.startswith(root) for name in names) and (not root or root[-1] == "/")
    for name in names:
        inner = name.removeprefix(root)
        label, split, is_mask, is_lesion, key = place(inner, divided)
        folders = inner.split("/")[:-1]
        assert label is None or label in folders
        assert split in ((None, "train", "validation", "test") if divided else (None,))
        assert not is_mask or "masks" in folders
        assert not is_lesion or "lesions" in folders
        if divided and label:
            assert folder.PARTS[folders[0].lower()] == split and label == folders[1]
        assert key == key.lower()


CLASS = st.text("abcXYZ 019_-.ü", min_size=1, max_size=6).filter(
    lambda name: name.lower() not in folder.PARTS and name[0] != "."
)


@given(
    classes=st.lists(CLASS, min_size=2, max_size=4, unique_by=str.lower),
    wraps=st.lists(CLASS, max_size=2),
    parts=st.sampled_from([(), ("train", "test"), ("Training", "valid", "TESTING")]),
    inner=st.sampled_from(["", "images/", "deeper/still/"]),
)
def test_classes_and_parts_come_back_through_any_wrapping(classes, wraps, parts, inner):
    prefix = "".join(f"{wrap}/" for wrap in wraps)
    tails = [
        f"{part}/{name}/{inner}1.png" if part else f"{name}/{inner}1.png"
        for part in parts or ("",)
        for name in classes
    ]
    root, divided = layout([prefix + tail for tail in tails])
    assert (root, divided) == (prefix, bool(parts))
    placed = [place(tail, divided) for tail in tails]
    assert {p.label for p in placed} == set(classes)
    assert {p.split for p in placed} == {folder.PARTS[p.lower()] for p in parts} or not parts
    masks = [place(tail.replace(f"{inner}1.png", "masks/1.png"), divided) for tail in tails]
    assert all(
        mask.is_mask and not image.is_mask for mask, image in zip(masks, placed, strict=True)
    )
    if inner != "deeper/still/":
        assert [mask.key for mask in masks] == [image.key for image in placed]


def test_class_names_that_no_figure_can_show_are_refused(tmp_path):
    name = os.fsdecode(b"A\xe9")
    path = lay_out(tmp_path, {f"{name}/1.png": png(1), "Bé/1.png": png(2)})
    with pytest.raises(UserError, match=r"'A\\udce9' in .* is not UTF-8"):
        open_folder(path)


def test_choose_classes_needs_two():
    assert choose_classes(["b", "a", "b"], (), "here") == ("a", "b")
    with pytest.raises(UserError, match="no class"):
        choose_classes([], (), "here")
