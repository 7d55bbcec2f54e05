"""Labels of each kind: what their values are, and which kinds a dataset has."""

import numpy as np
import pytest
from pictures import write_oxford, write_plain

from eqxunet.data import Split, label_kind, load_split, open_source
from eqxunet.data.decoding import decode
from eqxunet.data.masks import Mask
from eqxunet.data.synthetic import SyntheticPets
from eqxunet.errors import InputError


def split_of(values, **options) -> Split:
    values = np.array(values, np.uint8).reshape(1, 2, -1)
    return Split(np.zeros((*values.shape, 3), np.uint8), values, ("a",), **options)


@pytest.mark.parametrize(
    ("kind", "values", "classes"),
    [
        ("trimap", [1, 2, 3, 3], ("background", "pet", "border")),
        ("species", [0, 1, 2, 4], ("background", "cat", "dog")),
        ("mask", [0, 1, 1, 0], ("background", "foreground")),
        ("classes", [0, 255, 3, 1], ("0", "1", "2", "3")),
        ("classes", [255, 255, 255, 255], ()),
    ],
)
def test_a_split_names_its_classes(kind, values, classes):
    assert split_of(values, kind=kind).classes == classes


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("trimap", [0, 1, 1, 1], 'values 0, 1, where 1 to 3 .* kind="mask"'),
        ("species", [0, 5, 1, 1], 'values 0, 1, 5, where 0 to 4 .* kind="classes"'),
        ("mask", [0, 255, 0, 0], r"values 0, 255, where 0 to 1 .* \(labels > 0\)"),
    ],
)
def test_a_split_refuses_what_its_kind_does_not_have(kind, values, message):
    with pytest.raises(InputError, match=message):
        split_of(values, kind=kind)


def test_a_split_refuses_a_class_without_a_name():
    assert split_of([0, 1, 255, 1], kind="classes", classes=("sky", "sea")).classes[1] == "sea"
    with pytest.raises(InputError, match=r"index 2, .* 2 classes \(sky, sea\); name every class"):
        split_of([0, 2, 255, 1], kind="classes", classes=("sky", "sea"))


@pytest.fixture
def folders(tmp_path):
    return {
        "plain": str(write_plain(tmp_path / "plain", ["a", "b", "c"])),
        "oxford": str(write_oxford(tmp_path / "oxford", ["a", "b", "c"], ["d"])),
    }


@pytest.mark.parametrize(
    ("data", "task", "given", "kind"),
    [
        ("synthetic", "binary", None, "trimap"),
        ("synthetic", "semantic", None, "species"),
        ("oxford_iiit_pet", "semantic", "trimap", "trimap"),
        ("oxford", "binary", "trimap", "trimap"),
        ("oxford", "semantic", None, "species"),
        ("plain", "binary", None, "mask"),
        ("plain", "semantic", None, "classes"),
        ("plain", "semantic", "classes", "classes"),
    ],
)
def test_task_and_labels_say_which_kind(folders, data, task, given, kind):
    assert label_kind(folders.get(data, data), task=task, labels=given) == kind


@pytest.mark.parametrize(
    ("data", "task", "given", "way_out"),
    [
        ("plain", "semantic", "species", "leave --labels out, or choose classes$"),
        ("plain", "binary", "classes", "leave --labels out, or choose mask, or --task semantic$"),
        (
            "synthetic",
            "binary",
            "species",
            "leave --labels out, or choose trimap, or --task semantic$",
        ),
        ("oxford", "semantic", "mask", "leave --labels out, or choose species or trimap$"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(folders, data, task, given, way_out):
    with pytest.raises(InputError, match=f"--labels {given} does not fit --task {task}; {way_out}"):
        label_kind(folders.get(data, data), task=task, labels=given)


def test_a_dataset_that_is_none_has_no_kind():
    with pytest.raises(InputError, match="nowhere: not a folder"):
        label_kind("nowhere", task="binary", labels=None)


def test_a_source_has_the_kinds_of_its_dataset(folders):
    assert open_source("synthetic", "val").kind == "trimap"
    assert open_source(folders["plain"], "train").kind == "mask"
    assert open_source(folders["plain"], "train", labels="classes").kind == "classes"
    with pytest.raises(InputError, match="has no species labels; .* classes or mask of it"):
        open_source(folders["plain"], "train", labels="species")


def test_species_are_what_was_drawn():
    trimaps, species = SyntheticPets("val"), SyntheticPets("val", kind="species")
    assert species.classes.names == ("background", "cat", "dog")
    # Cats and dogs, 0.55 to 0.45, and the same pixels whatever the labels.
    found = [trimaps[i].species for i in range(30)]
    assert 8 < found.count("cat") < 24 and found.count("cat") + found.count("dog") == 30
    for i in range(4):
        trimap, labelled = decode(trimaps[i]), decode(species[i])
        np.testing.assert_array_equal(labelled.image, trimap.image)
        pet = {"cat": 1, "dog": 2}[found[i]]
        for value, expected in ((1, pet), (2, 0), (3, pet + 2)):
            assert (labelled.labels[trimap.labels == value] == expected).all()


def test_species_of_a_folder_come_from_its_lists(tmp_path):
    root = write_oxford(tmp_path / "data", ["a", "b", "c d"], ["e"])
    (root / "annotations" / "trainval.txt").write_text("a 1 1 7\nb 9 2 1\nc d 3 2 1\n")
    split = load_split(str(root), "train", size=12, labels="species", cache_dir=tmp_path / "cache")
    assert (split.kind, split.classes) == ("species", ("background", "cat", "dog"))
    assert split.names == ("b", "c d")
    assert [note.partition(": ")[2] for note in split.notes] == [
        "none of the 2 train masks holds cat"
    ]
    assert set(np.unique(split.labels)) == {2, 0, 4}
    val = load_split(str(root), "val", size=12, labels="species", cache_dir=tmp_path / "cache")
    assert set(np.unique(val.labels)) == {1, 0, 3} and val.notes == ()
    trimap = load_split(str(root), "val", size=12, cache_dir=tmp_path / "cache")
    assert set(np.unique(trimap.labels)) == {1, 2, 3}


def test_another_species_in_the_list_is_another_cache(tmp_path):
    root = write_oxford(tmp_path, ["a", "b"], ["e"])
    before = open_source(str(root), "train", labels="species").identity
    (root / "annotations" / "trainval.txt").write_text("a 1 1 7\nb 9 1 1\n")
    assert open_source(str(root), "train", labels="species").identity != before


def test_lists_without_species_are_named(tmp_path):
    root = write_oxford(tmp_path, ["a", "b"], ["e"])
    (root / "annotations" / "trainval.txt").write_text("a 1 1 7\nb\n")
    with pytest.raises(InputError, match=r"trainval.txt: says of 1 images no species: b; .*trimap"):
        open_source(str(root), "train", labels="species")
    assert len(open_source(str(root), "train")) == 1


@pytest.mark.parametrize(
    ("kind", "values", "foreground", "background"),
    [
        ("trimap", [1, 1, 2, 3], 0.5, 0.25),
        ("species", [1, 2, 0, 4], 0.5, 0.25),
        ("mask", [1, 1, 0, 0], 0.5, 0.5),
        ("classes", [1, 7, 0, 255], 0.5, 0.25),
    ],
)
def test_labels_are_counted_by_kind(kind, values, foreground, background):
    mask = Mask.of(np.array([values], np.uint8), kind)
    assert (mask.foreground, mask.background) == (foreground, background)
    assert mask.values == {str(v): values.count(v) / 4 for v in sorted(set(values))}
