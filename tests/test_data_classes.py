"""Masks of several classes: indices in grey or palettes, and colours."""

import numpy as np
import pytest
from pictures import encoded, write_plain
from PIL import Image

from eqxunet.data.cache import load_split
from eqxunet.data.classes import Classes, read_classes
from eqxunet.data.decoding import read_mask
from eqxunet.errors import InputError

INDICES = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
RGB = np.array([[[0, 0, 0], [128, 0, 0]], [[0, 0, 255], [128, 0, 0]]], np.uint8)
COLOURS = "name,r,g,b\nsky,0,0,255\nroad,0,0,0\nroof,128,0,0\n"


def palette(indices: np.ndarray) -> Image.Image:
    """An image whose palette runs backwards, so that colours tell nothing of the indices."""
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette([level for index in range(256) for level in [255 - index] * 3])
    return image


def labels_of(data: bytes, classes: Classes = Classes()) -> np.ndarray:  # noqa: B008
    return read_mask(data, "m.png", "classes", classes)[0]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(INDICES), id="grey"),
        pytest.param(encoded(palette(INDICES)), id="palette"),
        pytest.param(encoded(palette(INDICES), transparency=0), id="transparent palette"),
        pytest.param(encoded(palette(INDICES), "GIF", optimize=False), id="GIF"),
        pytest.param(encoded(INDICES.astype(np.uint16)), id="16 bits"),
        pytest.param(encoded(INDICES.astype(np.int32), "TIFF"), id="32 bits"),
    ],
)
def test_indices_are_taken_as_they_are(data):
    np.testing.assert_array_equal(labels_of(data), INDICES)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encoded(np.array([[0, 1], [3, 2]], np.uint8), bits=2), id="PNG of 2 bits"),
        pytest.param(b"P5 2 2 3\n\x00\x01\x03\x02", id="PGM of 4 levels"),
        pytest.param(b"P2 2 2 3\n0 1 3 2\n", id="plain PGM of 4 levels"),
    ],
)
def test_indices_of_few_bits_are_not_spread_over_8(data):
    np.testing.assert_array_equal(labels_of(data), [[0, 1], [3, 2]])


def test_one_bit_is_two_classes():
    np.testing.assert_array_equal(labels_of(encoded(INDICES > 1)), INDICES > 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encoded(RGB), r"holds colours \(mode RGB\).* add classes.csv with name,r,g,b"),
        (encoded(INDICES, "JPEG"), "a JPEG holds no exact labels; save the mask as PNG"),
        (encoded(INDICES.astype(np.uint16) * 2), "values from 0 to 510, which are no class"),
        (encoded(INDICES.astype(np.float32), "TIFF"), "values from 0 to 255, which are no class"),
    ],
)
def test_what_holds_no_indices_is_refused(data, message):
    with pytest.raises(InputError, match=f"^m.png: .*{message}"):
        labels_of(data)


def test_an_index_without_a_name_is_refused():
    classes = Classes(("sky", "road", "roof"), file="f/classes.txt")
    with pytest.raises(InputError, match="m.png: holds 3, but f/classes.txt names .* 0 to 2; name"):
        labels_of(encoded(INDICES), classes)
    np.testing.assert_array_equal(labels_of(encoded(INDICES % 3), classes), INDICES % 3)


@pytest.fixture
def colours(tmp_path):
    (tmp_path / "classes.csv").write_text(COLOURS)
    return read_classes(tmp_path)


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(Image.fromarray(RGB), id="RGB"),
        pytest.param(Image.fromarray(RGB).convert("RGBA"), id="RGBA"),
        pytest.param(Image.fromarray(RGB).quantize(3), id="palette"),
    ],
)
def test_colours_are_the_rows_of_classes_csv(colours, image):
    assert colours.names == ("sky", "road", "roof")
    np.testing.assert_array_equal(labels_of(encoded(image), colours), [[1, 2], [0, 2]])


def test_unknown_colours_are_counted(colours):
    image = RGB.repeat(2, 0)
    image[0] = 7, 8, 9
    image[1, 0] = 250, 8, 9
    with pytest.raises(
        InputError,
        match=r"m.png: holds 2 colours that .*classes.csv lacks: #070809 \(2 pixels\), "
        r"#fa0809 \(1 pixels\); add them",
    ):
        labels_of(encoded(image), colours)


def test_indices_where_colours_are_awaited_are_told(colours):
    with pytest.raises(InputError, match="lacks: #010101 .* hold indices in classes.txt instead"):
        labels_of(encoded(INDICES % 2), colours)


def test_a_transparent_pixel_has_no_colour(colours):
    image = np.concatenate([RGB, np.full((2, 2, 1), 255, np.uint8)], -1)
    image[0, 0, 3] = 0
    with pytest.raises(InputError, match="transparent pixels"):
        labels_of(encoded(image), colours)


def test_names_are_lines(tmp_path):
    assert read_classes(tmp_path) == Classes()
    (tmp_path / "classes.txt").write_bytes("\ufeffMauer \r\nкрыша\r\n\r\n".encode())
    assert read_classes(tmp_path).names == ("Mauer", "крыша")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("classes.txt", "a\n\nb\n", "classes.txt: a class has no name"),
        ("classes.txt", "", "classes.txt: a class has no name"),
        ("classes.txt", "a\nb\na\n", "classes.txt: names that stand in it more than once: a"),
        ("classes.txt", "\n".join(map(str, range(256))), "256 classes; 255 are the most"),
        ("classes.csv", "sky,0,0,0\n", "first line must be name,r,g,b, not 'sky,0,0,0'"),
        ("classes.csv", "", "first line must be name,r,g,b, not ''"),
        ("classes.csv", COLOURS + "sea,0,0\n", "line 5 is not a name and three numbers.*: sea,0,0"),
        ("classes.csv", COLOURS + "sea,0,0,256\n", "line 5 is not a name"),
        ("classes.csv", COLOURS + "sea,128,0,0\n", "colours of several classes: #800000"),
        ("classes.csv", COLOURS + "sky,1,0,0\n", "more than once: sky"),
        (
            "classes.csv",
            COLOURS + '"' + "x" * 200_000,
            'line 5 is not a name .*: "x{199}\\.\\.\\.$',
        ),
        ("classes.csv", "x" * 200_000, "first line must be name,r,g,b, not 'x{200}'$"),
        ("classes.csv", COLOURS + "sea,\x1b[2J,0,0", r"line 5 is not a name .*: sea,\\x1b\[2J,0,0"),
    ],
)
def test_files_of_classes_that_are_not_in_order(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_classes(tmp_path)


def test_two_files_of_classes_are_one_too_many(tmp_path):
    (tmp_path / "classes.txt").write_text("sky")
    (tmp_path / "classes.csv").write_text(COLOURS)
    with pytest.raises(InputError, match="has both classes.txt and classes.csv; keep one"):
        read_classes(tmp_path)


def write_classes(root, *masks: np.ndarray, split: str = "train") -> None:
    """A folder of images with these masks, all of which are of one split."""
    stems = [f"{split}{i}" for i in range(len(masks))]
    write_plain(root, stems)
    for stem, mask in zip(stems, masks, strict=True):
        pixels = np.asarray(mask, np.uint8)
        pixels = pixels.repeat(12 // len(pixels), 0).repeat(16 // pixels.shape[1], 1)
        (root / "masks" / f"{stem}.png").write_bytes(encoded(pixels))
    (root / f"{split}.txt").write_text("\n".join(stems))


def load(root, split: str = "train", size: int = 4):
    cache = root.parent / "cache"
    return load_split(str(root), split, size=size, labels="classes", cache_dir=cache)


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "data"
    write_classes(root, [[0, 1]], [[2, 255]])
    return root


def test_a_split_of_classes_keeps_indices(folder):
    split = load(folder)
    assert (split.kind, split.classes, split.notes[:-1]) == ("classes", ("0", "1", "2"), ())
    np.testing.assert_array_equal(split.labels[0], [[0, 0, 1, 1]] * 4)
    np.testing.assert_array_equal(split.labels[1], [[2, 2, 255, 255]] * 4)
    assert split.masks.values == {"0": 1, "1": 1, "2": 1, "255": 1}
    assert split.masks.shares == {"0": 0.25, "1": 0.25, "2": 0.25, "255": 0.25}


def test_names_change_without_decoding_anew(folder):
    load(folder)
    before = len([*(folder.parent / "cache").iterdir()])
    (folder / "classes.txt").write_text("sky\nroad\nroof\ncar\nbike\n")
    split = load(folder)
    assert split.classes == ("sky", "road", "roof", "car", "bike")
    assert split.notes[-1].endswith("none of the 2 train masks holds car, bike")
    assert len([*(folder.parent / "cache").iterdir()]) == before


def test_too_few_names_are_refused_from_the_cache_too(folder):
    load(folder)
    (folder / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(InputError, match="train1.png: holds 2, but .*classes.txt names .* 0 to 1"):
        load(folder)


def test_a_class_too_small_to_be_seen_at_training_size_needs_a_name_too(folder):
    write_classes(folder, [[0, 1] * 4], [[0] * 7 + [2]])
    load(folder, size=1)
    (folder / "classes.txt").write_text("sky\nroad\n")
    with pytest.raises(InputError, match="hold the class indices 2, but the names are of 2"):
        load(folder, size=1)


def test_a_split_of_one_class_teaches_nothing(tmp_path):
    write_classes(tmp_path / "data", [[1, 255]])
    with pytest.raises(InputError, match=r"hold one class at most \(values: 1, 255\), .* nothing"):
        load(tmp_path / "data")


def test_colours_of_a_folder(tmp_path):
    write_classes(tmp_path / "data", RGB)
    (tmp_path / "data" / "classes.csv").write_text(COLOURS)
    split = load(tmp_path / "data")
    assert split.classes == ("sky", "road", "roof")
    np.testing.assert_array_equal(split.labels[0][[0, -1]], [[1, 1, 2, 2], [0, 0, 2, 2]])
    other = COLOURS.replace("128,0,0", "129,0,0")
    (tmp_path / "data" / "classes.csv").write_text(other)
    with pytest.raises(InputError, match="#800000"):
        load(tmp_path / "data")
