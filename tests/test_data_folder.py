import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from pictures import PETS, encoded, labels, needs_pets, noise, write_oxford, write_plain

from eqxunet.data.cache import load_split
from eqxunet.data.classes import Classes
from eqxunet.data.decoding import decode
from eqxunet.data.folder import open_folder, scan_folder
from eqxunet.data.source import open_source
from eqxunet.data.split import is_of
from eqxunet.errors import InputError

STEMS = [f"p{i:03}" for i in range(100)]


def in_train(root: Path, *stems: str) -> None:
    (root / "train.txt").write_text("\n".join(stems))


def test_oxford_layout_splits_by_its_lists(tmp_path):
    names = [f"b{i:02}" for i in range(21)]
    root = write_oxford(tmp_path, names[::-1], ["t2", "t1"])
    splits = {split: source.names for split, source in scan_folder(root).items()}
    assert splits["val"] == ("b00", "b10", "b20")
    assert splits["train"] == tuple(n for n in names if n not in splits["val"])
    assert splits["test"] == ("t2", "t1")


def test_an_example_is_of_its_files(tmp_path):
    root = write_oxford(tmp_path, ["a", "b"], ["c"])
    example = open_folder(root, "test")[0]
    assert (example.name, example.kind) == ("c", "trimap")
    image, trimap, _ = decode(example)
    np.testing.assert_array_equal(image, noise(12, 16, seed=2))
    np.testing.assert_array_equal(trimap, labels(12, 16))


def test_plain_masks_are_background_where_black(tmp_path):
    root = write_plain(tmp_path, ["a"])
    in_train(root, "a")
    _, mask, _ = decode(open_folder(root, "train")[0])
    np.testing.assert_array_equal(mask, labels(12, 16) != 2)


@pytest.mark.parametrize(
    ("count", "train", "tenth"), [(3, 1, 1), (5, 3, 1), (30, 24, 3), (96, 76, 10), (100, 80, 10)]
)
def test_without_lists_stems_are_ranked_by_a_hash_and_cut(tmp_path, count, train, tenth):
    sources = scan_folder(write_plain(tmp_path, STEMS[:count]))
    assert [len(sources[s]) for s in ("train", "val", "test")] == [train, tenth, tenth]
    names = [name for split in ("train", "val", "test") for name in sources[split].names]
    assert sorted(names) == STEMS[:count] == list(sources["all"].names)
    order = [int(hashlib.sha256(name.encode()).hexdigest(), 16) for name in names]
    assert max(order[train : train + tenth]) < min(order[train + tenth :])
    assert max(order[train + tenth :]) < min(order[:train])


def test_two_images_make_no_three_splits_but_can_be_scored(tmp_path):
    root = write_plain(tmp_path, ["a", "b"])
    with pytest.raises(InputError, match="without lists, 3 images are the least"):
        open_folder(root, "train")
    assert open_folder(root, "all").names == ("a", "b")


@pytest.mark.parametrize("oxford", [False, True])
def test_an_absent_list_is_no_error_where_the_split_exists(tmp_path, oxford):
    if oxford:
        root = write_oxford(tmp_path, ["a", "b", "c"], ["d"])
        (root / "annotations" / "test.txt").unlink()
    else:
        root = write_plain(tmp_path, ["a", "b", "c", "d"])
        in_train(root, "b", "c")
        (root / "val.txt").write_text("a")
    assert open_folder(root, "train").names == ("b", "c")
    assert open_folder(root, "val").names == ("a",)
    assert open_folder(root, "all").names == ("a", "b", "c")
    with pytest.raises(InputError, match="no image belongs to its test split"):
        open_folder(root, "test")


def test_oxford_without_any_list_says_so(tmp_path):
    root = write_oxford(tmp_path, ["a"], ["d"])
    for name in ("trainval", "test"):
        (root / "annotations" / f"{name}.txt").unlink()
    with pytest.raises(InputError, match="has neither annotations/trainval.txt nor"):
        open_folder(root, "all")


def test_what_is_left_out_or_used_twice_is_noted(tmp_path):
    root = write_plain(tmp_path, ["a", "b", "c", "unlisted"])
    assert scan_folder(root)["train"].notes == ()
    (root / "images" / "c.png").unlink()
    in_train(root, "a", "b")
    (root / "val.txt").write_text("b")
    for source in scan_folder(root).values():
        assert [note.partition(": ")[2] for note in source.notes] == [
            "1 masks have no image and are left out: c",
            "1 images belong to several splits, so scores flatter: b",
            "1 images are in no list and are left out: unlisted",
            "no image belongs to the test split; `eval --split val` scores the validation images",
        ]


def test_lists_split_a_plain_folder(tmp_path):
    root = write_plain(tmp_path, ["a", "b", "c", "unlisted"])
    in_train(root, "# comment", "b", "", "a")
    (root / "val.txt").write_text("c\n")
    sources = scan_folder(root)
    assert [sources[s].names for s in ("train", "val", "test")] == [("b", "a"), ("c",), ()]
    with pytest.raises(InputError, match="no image belongs to its test split"):
        open_folder(root, "test")


def test_limit_takes_the_first(tmp_path):
    root = write_plain(tmp_path, ["a", "b", "c"])
    in_train(root, "c", "a", "b")
    assert open_folder(root, "train", limit=2).names == ("c", "a")
    assert len(open_source(str(root), "train", limit=7)) == 3
    with pytest.raises(InputError, match="at least 1"):
        open_source(str(root), "train", limit=0)


@pytest.mark.parametrize(
    "name",
    [
        "mein Hund",
        "кошка",
        "猫 2",
        "naïve.v1.2",
        "-dash",
        "a 1 2",
        unicodedata.normalize("NFD", "é"),
    ],
)
def test_any_name_works(tmp_path, name):
    root = write_oxford(tmp_path, ["other", name], [name + "!"])
    wanted = unicodedata.normalize("NFC", name)
    sources = scan_folder(root)
    assert wanted in sources["train"].names + sources["val"].names
    assert decode(sources["test"][0])[0].shape == (12, 16, 3)


def test_composed_and_decomposed_names_meet(tmp_path):
    root = write_plain(tmp_path, [unicodedata.normalize("NFD", "émile")])
    in_train(root, unicodedata.normalize("NFC", "émile"))
    assert open_folder(root, "train").names == (unicodedata.normalize("NFC", "émile"),)


def test_hidden_and_other_files_are_skipped(tmp_path):
    root = write_oxford(tmp_path, ["a", "b"], ["c"])
    (root / "images" / "folder.png").mkdir()
    os.mkfifo(root / "images" / "pipe.png")
    for name in (
        "images/._a.png",
        "images/.DS_Store",
        "images/a.mat",
        "annotations/trimaps/._a.png",
    ):
        (root / name).write_bytes(b"not an image")
    assert len(open_folder(root, "train")) == 1


def test_extensions_say_nothing_about_the_format(tmp_path):
    root = write_plain(tmp_path, ["a"])
    in_train(root, "a", "b", "c")
    for stem, kind in (("b", "GIF"), ("c", "PNG")):
        (root / "images" / f"{stem}.JPG").write_bytes(encoded(noise(12, 16)[..., 0], kind))
        (root / "masks" / f"{stem}.bmp").write_bytes(encoded(labels(12, 16) // 2))
    for example in open_folder(root, "train"):
        assert decode(example)[0].shape == (12, 16, 3)


def duplicate_stems(root: Path) -> str:
    for stem in ("a", "b"):
        (root / "images" / f"{stem}.jpg").write_bytes(b"")
    return "images: several files for one stem: a, b"


def duplicate_masks(root: Path) -> str:
    (root / "masks" / "a.bmp").write_bytes(b"")
    return "masks: several files for one stem: a"


def missing_masks(root: Path) -> str:
    (root / "masks" / "a.png").unlink()
    (root / "masks" / "c.png").unlink()
    return "masks: no mask for a, c"


def no_images(root: Path) -> str:
    for path in (root / "images").iterdir():
        path.unlink()
    return "images: no image in it"


def no_mask_folder(root: Path) -> str:
    (root / "masks").rename(root / "mask")
    return "masks: no such folder; rename mask to masks"


def image_folder_in_singular(root: Path) -> str:
    (root / "images").rename(root / "Image")
    return "images: no such folder; rename Image to images"


def annotations_for_masks(root: Path) -> str:
    (root / "masks").rename(root / "annotations")
    (root / "labels").mkdir()
    return "masks: no such folder; rename annotations or labels to masks"


def nothing_alike(root: Path) -> str:
    (root / "masks").rename(root / "other")
    return "masks: no such folder; expected images/ with masks/ or annotations/trimaps/"


def masks_with_a_suffix(root: Path) -> str:
    for path in (root / "masks").iterdir():
        path.rename(path.with_stem(f"{path.stem}_mask"))
    return "masks: 3 masks are called NAME_mask, as a_mask.png for a.png; call .* image, a.png"


def masks_with_a_prefix(root: Path) -> str:
    for path in (root / "masks").iterdir():
        path.rename(path.with_stem(f"gt {path.stem}"))
    return "masks: 3 masks are called gt NAME, as gt a.png for a.png"


def one_mask_with_a_suffix(root: Path) -> str:
    for stem, other in (("a", "a_mask"), ("b", "b2")):
        (root / "masks" / f"{stem}.png").rename(root / "masks" / f"{other}.png")
    return "masks: no mask for a, b; add them as NAME.png"


def masks_as_arrays(root: Path) -> str:
    for path in (root / "masks").iterdir():
        path.rename(path.with_suffix(".npy"))
    return r"masks: no image in it, but 3 arrays: a.npy, b.npy, c.npy; save them as PNG, as Image"


def a_mask_as_an_array(root: Path) -> str:
    (root / "masks" / "b.png").rename(root / "masks" / "b.npy")
    return r"masks: 1 masks are no images: b.npy; save them as PNG, as Image.fromarray\(array"


def absent_in_a_list(root: Path) -> str:
    (root / "test.txt").write_text("a\nghost\nspirit\n")
    return "lists name images that are not there: ghost, spirit"


def extensions_in_a_list(root: Path) -> str:
    in_train(root, "a.png", "b.png")
    return "not there: a.png, b.png; write names without their extension"


def twice_in_a_list(root: Path) -> str:
    in_train(root, "a", "b", "a")
    return "train.txt: names that stand in it more than once: a"


def list_in_another_encoding(root: Path) -> str:
    (root / "train.txt").write_bytes("é".encode("latin-1"))
    return "train.txt: cannot be read as a list of names"


def link_out(root: Path) -> str:
    outside = root.parent / "outside.png"
    (root / "images" / "a.png").rename(outside)
    (root / "images" / "a.png").symlink_to(outside)
    return "images: links that lead out of .*: a.png"


def link_to_itself(root: Path) -> str:
    (root / "masks" / "b.png").unlink()
    (root / "masks" / "b.png").symlink_to("b.png")
    return "masks: links that lead .* in a circle .*: b.png"


def link_to_a_folder_above(root: Path) -> str:
    (root / "images" / "again").symlink_to("..")
    return "images: links that lead .* in a circle .*: again"


def link_to_a_list_outside(root: Path) -> str:
    (root.parent / "list").write_text("a")
    (root / "train.txt").symlink_to(root.parent / "list")
    return "train.txt: leads out of"


def linked_folder(root: Path) -> str:
    (root / "images").rename(root.parent / "elsewhere")
    (root / "images").symlink_to(root.parent / "elsewhere")
    return "images: links that lead out of .*: images"


@pytest.mark.parametrize(
    "spoil",
    [
        duplicate_stems,
        duplicate_masks,
        missing_masks,
        no_images,
        no_mask_folder,
        image_folder_in_singular,
        annotations_for_masks,
        nothing_alike,
        masks_with_a_suffix,
        masks_with_a_prefix,
        one_mask_with_a_suffix,
        masks_as_arrays,
        a_mask_as_an_array,
        absent_in_a_list,
        extensions_in_a_list,
        twice_in_a_list,
        list_in_another_encoding,
        link_out,
        link_to_itself,
        link_to_a_folder_above,
        link_to_a_list_outside,
        linked_folder,
    ],
)
def test_what_is_wrong_is_listed_whatever_the_split(tmp_path, spoil):
    root = write_plain(tmp_path / "data", ["a", "b", "c"])
    message = spoil(root)
    for split in ("train", "test"):
        with pytest.raises(InputError, match=message):
            open_folder(root, split)


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "images/a", "a/../a", "a\0b", "~/a"])
def test_names_in_a_list_are_no_paths(tmp_path, name):
    root = write_plain(tmp_path / "data", ["a", "b", "c"])
    in_train(root, name)
    with pytest.raises(InputError, match="lists name images that are not there: "):
        open_folder(root, "train")


@pytest.mark.parametrize("name", ["train.txt", "classes.txt", "classes.csv"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_a_pipe_in_the_place_of_a_list_is_not_waited_for(tmp_path, name, is_linked):
    root = write_plain(tmp_path / "data", ["a", "b", "c"])
    os.mkfifo(root / ("pipe" if is_linked else name))
    if is_linked:
        (root / name).symlink_to("pipe")
    with pytest.raises(InputError, match=rf"{name}: (cannot be read .*no regular|leads .*to no)"):
        open_folder(root, "train", kind="classes")


def test_a_list_is_read_up_to_a_size(tmp_path):
    root = write_plain(tmp_path, ["a", "b", "c"])
    in_train(root, "a")
    os.truncate(root / "train.txt", 1 << 32)  # which takes no room on a disk
    with pytest.raises(InputError, match=r"train.txt: over 64 MiB, and so no list"):
        open_folder(root, "train")


def test_long_lines_are_cut(tmp_path):
    root = write_plain(tmp_path, ["a", "b", "c"])
    in_train(root, *(f"{i:07}" * 1000 for i in range(1000)))
    with pytest.raises(InputError) as caught:
        open_folder(root, "train")
    assert "0000000" in str(caught.value) and len(str(caught.value)) < 3000


ODD = [b"caf\xe9", b"\xff\xfe", b"a\nb", b"\x1b[31mred", b"a$x^$b", "\u202egnp".encode()]


def test_names_of_any_bytes_are_names(tmp_path):
    stems = [os.fsdecode(name) for name in ODD]
    root = write_plain(tmp_path / "data", stems)
    sources = scan_folder(root)
    assert set(sources["all"].names) == set(stems)
    assert sorted(n for s in ("train", "val", "test") for n in sources[s].names) == sorted(stems)
    first, second = (
        load_split(str(root), "all", size=4, cache_dir=tmp_path / "cache") for _ in range(2)
    )
    assert first.names == second.names == sources["all"].names
    assert first.identity == second.identity and is_of(first.identity, first.names)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_names_of_any_bytes_are_shown_on_one_line(tmp_path):
    root = write_plain(tmp_path / "data", [os.fsdecode(name) for name in ODD])
    (root / "masks" / "\x1b[31mred.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_split(str(root), "all", size=4, cache_dir=tmp_path / "cache")
    _, line = str(caught.value).splitlines()
    assert line.isprintable() and r"masks/\x1b[31mred.png: cannot be read" in line
    for path in (root / "masks").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError) as caught:
        load_split(str(root), "all", size=4, cache_dir=tmp_path / "cache")
    _, line = str(caught.value).splitlines()
    assert line.isprintable() and r"\x1b[31mred.png" in line and r"a\nb.png" in line
    for path in (root / "masks").iterdir():
        path.unlink()
    write_plain(root, ["good"])
    with pytest.raises(InputError, match="no mask for") as caught:
        open_folder(root, "all")
    assert str(caught.value).isprintable() and r"caf\xe9" in str(caught.value)


def test_stems_that_differ_in_capital_letters_are_two(tmp_path):
    root = write_plain(tmp_path, ["a", "A", "b"])
    if not (root / "images" / "A.png").samefile(root / "images" / "a.png"):
        assert open_folder(root, "all").names == ("A", "a", "b")


def test_stems_that_differ_in_their_unicode_form_are_one(tmp_path):
    root = write_plain(tmp_path, [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")])
    if len([*(root / "images").iterdir()]) == 2:
        with pytest.raises(InputError, match="several files for one stem: é"):
            open_folder(root, "all")


def test_links_inside_the_folder_work(tmp_path):
    root = write_plain(tmp_path / "data", ["a", "b"])
    (root / "images" / "c.png").symlink_to("a.png")
    (root / "masks").rename(root / "real")
    (root / "masks").symlink_to("real")
    (root / "masks" / "c.png").symlink_to("a.png")
    in_train(root, "c")
    (tmp_path / "link").symlink_to(root)
    assert decode(open_folder(tmp_path / "link", "train")[0])[1].shape == (12, 16)


def test_long_lists_are_cut(tmp_path):
    root = write_plain(tmp_path, ["a"])
    in_train(root, *(f"x{i:02}" for i in range(25)))
    with pytest.raises(InputError, match="x09 and 15 more"):
        open_folder(root, "train")


def test_identity_changes_with_any_file(tmp_path):
    root = write_plain(tmp_path, ["a", "b"])
    in_train(root, "a", "b")
    seen = {open_folder(root, "train").identity}
    assert {open_folder(root, "train").identity} == seen
    mask = root / "masks" / "b.png"
    status = mask.stat()
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    seen.add(open_folder(root, "train").identity)
    mask.write_bytes(mask.read_bytes() + b"\0")
    seen.add(open_folder(root, "train").identity)
    (root / "images" / "a.png").rename(root / "images" / "a.jpg")
    seen.add(open_folder(root, "train").identity)
    in_train(root, "b", "a")
    seen.add(open_folder(root, "train").identity)
    seen.add(open_folder(root, "train", limit=1).identity)
    assert len(seen) == 6


def test_a_vanished_file_is_named(tmp_path):
    root = write_plain(tmp_path, ["a"])
    in_train(root, "a")
    source = open_folder(root, "train")
    (root / "masks" / "a.png").unlink()
    with pytest.raises(InputError, match=r"masks/a\.png: cannot be read \(No such file"):
        decode(source[0])


@pytest.mark.parametrize("data", ["nowhere", "synthetics"])
def test_data_that_is_nothing_known(data):
    with pytest.raises(InputError, match=f"{data}: not a folder"):
        open_source(data, "train")


def test_oxford_iiit_pet_is_looked_for_in_the_data_dir(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "eqxunet.data.source.OxfordPets", lambda *given, **options: Asked(given, options)
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    source = open_source("oxford_iiit_pet", "val", data_dir=Path("~/sets"), limit=3)
    assert source.given == ("val", tmp_path / "sets")
    assert source.options == {"kind": "trimap", "limit": 3}


class Asked:
    """A source that keeps what it was asked for."""

    identity, kind, classes, notes = "", "trimap", Classes(), ()

    def __init__(self, given, options):
        self.given, self.options = given, options

    def name(self, index):
        raise IndexError(index)

    def __len__(self):
        return 0

    def __getitem__(self, index):
        raise IndexError(index)


@needs_pets
def test_the_real_images():
    sources = scan_folder(PETS)
    assert [len(sources[s]) for s in ("train", "val", "test")] == [270, 30, 298]
    trainval = sorted(sources["val"].names + sources["train"].names)
    assert sources["val"].names == tuple(trainval[::10])
    png = sources["test"][sources["test"].names.index("Abyssinian_5")]
    assert png.image.read_bytes().startswith(b"\x89PNG") and png.files[0].endswith(
        "Abyssinian_5.jpg"
    )
    image, trimap, _ = decode(png)
    assert image.shape == (150, 200, 3) and trimap.shape == (150, 200)
    assert set(np.unique(trimap)) == {1, 2, 3}
