"""Masks are never silently something else."""

import dataclasses
import re

import numpy as np
import pytest
from pictures import encoded, write_oxford, write_plain

from eqxunet.data.cache import Split, load_split
from eqxunet.data.masks import Mask, MaskSummary
from eqxunet.errors import InputError

RED, BLUE, WHITE = [255, 0, 0], [0, 0, 255], [255, 255, 255]
STEMS = ["a", "b", "c", "d"]


def load(root, masks, split="train"):
    """A split of four images, whose masks are these small ones enlarged, in turn."""
    write_plain(root, STEMS)
    (root / f"{split}.txt").write_text("\n".join(STEMS))
    if split == "train":
        write_plain(root, ["t"])
        (root / "test.txt").write_text("t")
    for i, stem in enumerate(STEMS):
        mask = np.asarray(masks[i % len(masks)], np.uint8)
        rows, columns = 12 // mask.shape[0], 16 // mask.shape[1]
        pixels = mask.repeat(rows, 0).repeat(columns, 1)
        (root / "masks" / f"{stem}.png").write_bytes(encoded(pixels))
    return load_split(str(root), split, size=8, cache_dir=root / "cache")


GOOD = {
    "0 and 1": [[[0, 1]]],
    "0 and 255": [[[0, 255]]],
    "white on black": [[[[0, 0, 0], WHITE]]],
    "one in 0 and 1, one in 0 and 255": [[[0, 1]], [[0, 255]]],
    "one empty": [[[0, 1]], [[0, 0]]],
}


@pytest.mark.parametrize("masks", GOOD.values(), ids=GOOD)
def test_plain_masks_pass_without_a_word(tmp_path, masks):
    assert load(tmp_path, masks).notes == ()


REFUSED = {
    "colours without black": ([[[RED, BLUE]]], r"have no background \(values: #0000ff, #ff0000\)"),
    "1 and 2": ([[[1, 2]]], r"no background \(values: 1, 2\), .* annotations/trimaps/"),
    "1, 2 and 3": ([[[1, 2]], [[3, 2]]], "have no background .* annotations/trimaps/"),
    "white alone": ([[[255]]], "have no background .* save them with background 0$"),
    "one class and unlabelled": (
        [[[0, 1], [255, 0]]],
        "4 of the 4 .* class indices .* --task semantic, where 255",
    ),
    "classes and unlabelled": ([[[0, 1], [255, 2]], [[0, 1]]], "2 of the 4 .* 255 beside"),
    "a high class and unlabelled": ([[[0, 15], [255, 0]]], r"4 of the 4 .* \(0, 15, 255\)"),
    "empty": ([[[0]]], "all empty .* nothing to learn"),
}


@pytest.mark.parametrize(("masks", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_meant_is_refused(tmp_path, masks, message):
    with pytest.raises(InputError) as caught:
        load(tmp_path, masks)
    assert str(caught.value).startswith(f"{tmp_path}: ")
    assert re.search(message, str(caught.value))


WARNED = {
    "class indices": (
        [[[0, 1], [2, 3]]],
        r"4 of the 4 .*: 1, 2, 3 \(in a, b, c and 1 more\); .* --task semantic$",
    ),
    "smooth edges": ([[[0, 90], [191, 255]]], "all count as foreground: 90, 191, 255"),
    "one without background": ([[[0, 1]], [[1, 1]]], "2 of the 4 train masks have no background$"),
    "the wrong way round": ([[[1] * 16, [1] * 15 + [0]]], "97% of the pixels .* exchanged"),
}


@pytest.mark.parametrize(("masks", "message"), WARNED.values(), ids=WARNED)
def test_what_may_not_be_meant_is_warned_of(tmp_path, masks, message):
    (note,) = load(tmp_path, masks).notes
    assert note.startswith(f"{tmp_path}: ") and re.search(message, note)


@pytest.mark.parametrize(
    ("masks", "message"),
    [([[[0]]], "are all empty, so their scores say little"), ([[[255]]], "have no background")],
)
def test_masks_that_nothing_can_be_learnt_from_can_be_scored(tmp_path, masks, message):
    assert message in " ".join(load(tmp_path, masks, "test").notes)


def test_notes_of_the_folder_come_too(tmp_path):
    write_plain(tmp_path, ["z"])
    notes = load(tmp_path, [[[0, 1]]]).notes
    assert len(notes) == 1 and "left out: z" in notes[0]


def test_trimaps_without_pets_are_refused(tmp_path):
    root = write_oxford(tmp_path, ["a", "b"], ["c"])
    for path in (root / "annotations" / "trimaps").iterdir():
        path.write_bytes(encoded(np.full((12, 16), 2, np.uint8)))
    with pytest.raises(InputError, match=r"all empty \(values: 2\), where 1 is pet"):
        load_split(str(root), "train", size=8, cache_dir=tmp_path / "cache")


def test_a_summary_counts():
    masks = {
        "a": Mask({"0": 0.75, "255": 0.25}, 0.25, 0.75),
        "b": Mask({"0": 0.5, "1": 0.25, "255": 0.25}, 0.5, 0.5),
        "c": Mask({"0": 1.0}, 0.0, 1.0),
        "d": Mask({"7": 0.5, "transparent": 0.5}, 1.0, 0.0),
    }
    summary = MaskSummary.of(masks, "mask")
    assert summary == MaskSummary(
        "mask",
        4,
        {"0": 3, "255": 2, "1": 1, "7": 1, "transparent": 1},
        {"0": 0.5625, "255": 0.125, "1": 0.0625, "7": 0.125, "transparent": 0.125},
        0.4375,
        1,
        1,
        ["b"],
        1,
    )
    assert MaskSummary(**dataclasses.asdict(summary)) == summary
    assert summary.describe()[0] == (
        "values in masks: 0 (in 3), 255 (in 2), 1 (in 1), 7 (in 1), transparent (in 1)"
    )


def test_254_levels_are_an_edge_and_no_classes():
    levels = {str(level): 1 / 256 for level in range(256)}
    assert MaskSummary.of({"a": Mask(levels, 0.5, 0.5)}, "mask").indexed == 0


def test_arrays_of_0_and_1_are_no_trimaps():
    masks = np.zeros((2, 4, 4), np.uint8)
    masks[:, 1] = 1
    with pytest.raises(InputError, match=r'values 0, 1, where 1 to 3 .* kind="mask" takes masks'):
        Split(np.zeros((2, 4, 4, 3), np.uint8), masks, ("a", "b"))
