import io
import os
import socket
import threading
import time
import tracemalloc

import numpy as np
import pytest
from pictures import PETS, encoded, header_of, labels, needs_pets, noise
from PIL import Image

from eqxunet.data import decoding, mask_files
from eqxunet.data.budget import Budget
from eqxunet.data.classes import Classes
from eqxunet.data.complaints import FileError
from eqxunet.data.decoding import (
    FORMATS,
    MAX_PIXELS,
    decode,
    map_examples,
    read_image,
    read_mask,
    read_resized,
    resize_image,
    resize_pair,
)
from eqxunet.data.example import Example
from eqxunet.errors import InputError

GREY = noise(5, 7)[..., 0]
RGB = noise(5, 7)
ALPHA = noise(5, 7, seed=1)[..., :1]


def in_grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, -1)


def palette_image(**options) -> bytes:
    image = Image.fromarray(GREY % 4).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([250, 10, 20, 30, 240, 50, 60, 70, 230, 5, 6, 7])
    return encoded(image, **options)


COLOURS = np.array([(250, 10, 20), (30, 240, 50), (60, 70, 230), (5, 6, 7)], np.uint8)
INVERTED = 255 - np.array([(0, 255, 0), (10, 20, 30)], np.uint8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(encoded(GREY), in_grey(GREY), id="L"),
        pytest.param(encoded(np.concatenate([GREY[..., None], ALPHA], -1)), in_grey(GREY), id="LA"),
        pytest.param(encoded(RGB), RGB, id="RGB"),
        pytest.param(encoded(np.concatenate([RGB, ALPHA], -1)), RGB, id="RGBA"),
        pytest.param(palette_image(), COLOURS[GREY % 4], id="P"),
        pytest.param(
            palette_image(transparency=b"\x00\x80\xff"), COLOURS[GREY % 4], id="P, transparent"
        ),
        pytest.param(palette_image(kind="GIF"), COLOURS[GREY % 4], id="GIF"),
        pytest.param(
            encoded(Image.fromarray(GREY > 99)), in_grey(np.uint8(255) * (GREY > 99)), id="1 bit"
        ),
        pytest.param(
            # Without black, cyan, magenta and yellow are what red, green and blue lack.
            encoded(
                Image.frombytes(
                    "CMYK", (7, 5), np.concatenate([255 - RGB, np.zeros_like(ALPHA)], -1).tobytes()
                ),
                "TIFF",
            ),
            RGB,
            id="CMYK",
        ),
        pytest.param(encoded(RGB, "WEBP", lossless=True), RGB, id="WebP"),
        pytest.param(encoded(RGB, "BMP"), RGB, id="BMP"),
    ],
)
def test_every_mode_gives_the_right_rgb(data, expected):
    image = read_image(data, "x")
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


def test_cmyk_jpeg():
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:, :, 1] = 200  # magenta only, so green is missing
    data = encoded(Image.frombytes("CMYK", (16, 16), ink.tobytes()), "JPEG", quality=100)
    assert np.abs(read_image(data, "x").astype(int) - (255, 55, 255)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled(kind):
    values = np.array([[0, 128, 129, 256, 32768, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    assert expected.max() == 255 and expected[0, 3] == 1
    np.testing.assert_array_equal(read_image(encoded(values, kind), "x"), in_grey(expected))


@pytest.mark.parametrize("values", [np.full((2, 2), 70000, np.int32), np.ones((2, 2), np.float32)])
def test_other_pixel_types_are_refused(values):
    with pytest.raises(InputError, match=r"x\.tif: .*8 or 16 bits"):
        read_image(encoded(values, "TIFF"), "x.tif")


# What turns stored pixels upright, by the meaning of the tag in the EXIF standard.
UPRIGHT = {
    0: lambda a: a,
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
    9: lambda a: a,
}


def oriented(image: np.ndarray, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, exif=exif)


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_the_image_and_agrees_with_an_upright_mask(orientation):
    image = UPRIGHT[orientation](RGB)
    upright = UPRIGHT[orientation](labels(5, 7))
    for mask in (encoded(upright), oriented(labels(5, 7), orientation)):
        pair = decode(Example(oriented(RGB, orientation), mask, "x"))
        np.testing.assert_array_equal(pair[0], image)
        np.testing.assert_array_equal(pair[1], upright)


def test_a_mask_drawn_on_the_unturned_image_is_refused():
    example = Example(oriented(RGB, 6), encoded(labels(5, 7)), "x", files=("i.jpg", "m.png"))
    with pytest.raises(InputError, match=r"m\.png: .* 7x5 .*EXIF orientation\) is 5x7"):
        decode(example)


def test_broken_exif_is_no_reason_to_refuse():
    assert read_image(encoded(RGB, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), "x").shape == (5, 7, 3)


@pytest.mark.parametrize("height", [MAX_PIXELS // 10_000 + 1, 2 * MAX_PIXELS // 10_000 + 1])
def test_over_89_megapixels_are_refused_unread(height):
    with pytest.raises(InputError, match="big: over 89 megapixels"):
        read_image(header_of(10_000, height), "big")


def test_one_pixel():
    example = Example(encoded(RGB[:1, :1]), encoded(np.ones((1, 1), np.uint8)), "x")
    image, trimap = resize_pair(*decode(example)[:2], 4)
    np.testing.assert_array_equal(image, np.tile(RGB[:1, :1], (4, 4, 1)))
    np.testing.assert_array_equal(trimap, np.ones((4, 4)))


JPEG = encoded(noise(64, 64), "JPEG")


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette() -> Image.Image:
    return Image.open(io.BytesIO(palette_image()))


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!DOCTYPE html><html></html>", id="HTML"),
        pytest.param(JPEG[: len(JPEG) // 2], id="truncated JPEG"),
        pytest.param(encoded(noise(64, 64))[:500], id="truncated PNG"),
        pytest.param(header_of(4, 4), id="no pixels"),
        pytest.param(encoded(RGB, "GIF")[:20], id="truncated GIF"),
    ],
)
def test_a_broken_file_is_named(data):
    with pytest.raises(InputError, match=r"^dir/cat\.jpg: cannot be read as an image \(.+\)"):
        read_image(data, "dir/cat.jpg")


FILES = {
    kind: [encoded(image, kind, exif=exif_of(6)) for image in images]
    for kind, images in {
        "PNG": [RGB, GREY, palette(), RGB.astype(np.uint16)[..., 0] * 200],
        "JPEG": [noise(24, 24), noise(24, 24)[..., 0]],
        "GIF": [palette()],
        "BMP": [RGB, GREY],
        "WEBP": [RGB],
        "TIFF": [RGB, GREY, GREY.astype(np.float32)],
        "PPM": [RGB, GREY],
        "JPEG2000": [noise(24, 24)],
        "AVIF": [noise(24, 24)],
        "TGA": [RGB, GREY],
    }.items()
    if kind in FORMATS
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, most of them in the header; or cut off, or a piece said twice."""
    result = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        end = min(len(result), 64 if rng.random() < 0.6 else len(result))
        result[rng.integers(end)] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    start, stop = sorted(rng.integers(len(result), size=2))
    match rng.integers(6):
        case 0:
            del result[start:]
        case 1:
            del result[start:stop]
        case 2:
            result[start:start] = result[start:stop]
    return bytes(result)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_raise_nothing_but_input_errors(kind):
    rng = np.random.default_rng(len(kind))
    refused = 0
    for number in range(60):
        data = damaged(FILES[kind][number % len(FILES[kind])], rng)
        for read in (
            lambda data: read_image(data, "x"),
            lambda data: read_resized(data, "x", 4),
            lambda data: read_mask(data, "x", "mask", Classes()),
            lambda data: read_mask(data, "x", "classes", Classes()),
            lambda data: read_mask(data, "x", "trimap", Classes()),
        ):
            try:
                read(data)
            except FileError as error:
                refused += 1
                assert str(error).isprintable()
    assert 60 < refused < 300


@pytest.mark.parametrize("kind", FILES)
def test_files_cut_off_anywhere_raise_nothing_but_input_errors(kind):
    for data in FILES[kind]:
        for end in range(0, len(data), max(1, len(data) // 40)):
            try:
                read_image(data[:end], "x")
            except FileError:
                pass


def test_a_file_of_far_more_bytes_than_pixels_is_refused_unread(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(RGB))
    os.truncate(path, 8 * MAX_PIXELS + 1)  # which takes no room on a disk
    tracemalloc.start()
    with pytest.raises(FileError, match=r"a\.png: 716 MB, more than 89 megapixels take; scale it"):
        decode(Example(path, labels(5, 7), "x", files=(str(path), "")))
    assert tracemalloc.get_traced_memory()[1] < 1e6
    tracemalloc.stop()


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_what_is_no_file_of_its_own_is_refused_and_awaited_by_nobody(tmp_path, kind, is_linked):
    path = tmp_path / "a.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    if is_linked:
        (tmp_path / "b.png").symlink_to(path)
        path = tmp_path / "b.png"
    why = r"cannot be read \((no regular file|No such device)"
    with pytest.raises(FileError, match=why):
        decode(Example(path, labels(5, 7), "x"))
    with pytest.raises(FileError, match=f"mask of x: {why}"):
        decode(Example(RGB, path, "x"))


def test_what_is_said_of_a_file_can_be_shown():
    error = FileError("a\x1b[2J\n\udcff.png", "\u202eodd")
    assert str(error) == r"a\x1b[2J\n\xff.png: \u202eodd" and error.file.endswith("\udcff.png")


def test_large_jobs_wait_for_one_another_and_small_ones_do_not():
    budget, running, most = Budget(10), [], []

    def job(amount):
        with budget.taking(amount):
            running.append(amount)
            most.append(sum(min(n, 10) for n in running))
            time.sleep(0.002)
            running.remove(amount)

    threads = [threading.Thread(target=job, args=(n,)) for n in [6, 7, 1, 2, 99, 3, 10, 1] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 24 and max(most) <= 10
    together = threading.Barrier(3)

    def small():
        with budget.taking(3):
            together.wait(10)

    threads = [threading.Thread(target=small) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not together.broken


@pytest.mark.parametrize(("total", "at_once"), [(5 * 7, 1), (4 * 5 * 7, 4)])
@pytest.mark.parametrize("is_path", [False, True])
def test_few_pixels_are_decoded_at_a_time(monkeypatch, tmp_path, total, at_once, is_path):
    monkeypatch.setattr(decoding, "pixel_budget", Budget(total))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    image, mask = encoded(RGB), encoded(labels(5, 7))
    if is_path:
        for name, data in (("i.png", image), ("m.png", mask)):
            (tmp_path / name).write_bytes(data)
        image, mask = tmp_path / "i.png", tmp_path / "m.png"

    class Source:
        identity, kind, classes, notes = "eight", "trimap", Classes(), ()

        def name(self, index):
            return f"example {index}"

        def __len__(self):
            return 8

        def __getitem__(self, index):
            return Example(image, mask, f"example {index}")

    running, most = [], []
    together = threading.Barrier(at_once)

    def use(example):
        running.append(example)
        together.wait(10)  # passes where so many are there
        time.sleep(0.005)  # so that others would come, too
        most.append(len(running))
        running.remove(example)
        return decode(example).image.shape

    assert list(map_examples(use, Source())) == [(5, 7, 3)] * 8
    assert max(most) <= at_once


def test_trimap_keeps_its_values():
    found, _ = read_mask(encoded(labels(4, 9)), "x", "trimap", Classes())
    np.testing.assert_array_equal(found, labels(4, 9))


@pytest.mark.parametrize(
    ("mask", "found"),
    [
        (np.array([[0, 1, 2], [3, 4, 255]], np.uint8), "0, 1, 2, 3, 4, 255"),
        (noise(4, 4), "mode RGB"),
        (GREY > 99, "0, 1"),
    ],
)
def test_unknown_trimap_values_are_named(mask, found):
    with pytest.raises(InputError, match=rf"^m\.png: .*{found}"):
        read_mask(encoded(mask), "m.png", "trimap", Classes())


MARKED = np.array([[0, 1], [255, 0]], np.uint8)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(MARKED, id="L"),
        pytest.param(MARKED > 0, id="1 bit"),
        pytest.param(MARKED.astype(np.uint16) * 256, id="16 bits, low byte 0"),
        pytest.param(np.stack([0 * MARKED, MARKED, 0 * MARKED], -1), id="RGB"),
        pytest.param(np.stack([MARKED, np.full_like(MARKED, 255)], -1), id="LA, opaque"),
        pytest.param(np.stack([np.full_like(MARKED, 9), MARKED], -1), id="LA, by alpha"),
        pytest.param(np.stack([np.full_like(MARKED, 9)] * 3 + [MARKED], -1), id="RGBA, by alpha"),
    ],
)
def test_binary_masks(mask):
    found, _ = read_mask(encoded(mask), "x", "mask", Classes())
    np.testing.assert_array_equal(found, [[0, 1], [1, 0]])


def test_binary_mask_with_a_palette_goes_by_colour():
    image = Image.frombytes("P", (2, 2), bytes([1, 0, 2, 1]))
    image.putpalette([255, 0, 0, 0, 0, 0, 0, 0, 9])
    found, values = read_mask(encoded(image), "x", "mask", Classes())
    np.testing.assert_array_equal(found, [[0, 1], [1, 0]])
    assert values == {"0": 0.5, "#000009": 0.25, "#ff0000": 0.25}


@pytest.mark.parametrize(
    ("mask", "values"),
    [
        (MARKED, ("0", "1", "255")),
        (MARKED > 0, ("0", "1")),
        (MARKED.astype(np.uint16) * 256, ("0", "256", "65280")),
        (np.stack([0 * MARKED, MARKED, 0 * MARKED], -1), ("0", "#000100", "#00ff00")),
        (np.stack([MARKED] * 3, -1), ("0", "1", "255")),
        (np.stack([np.full_like(MARKED, 9), MARKED], -1), ("9", "transparent")),
    ],
)
def test_the_values_of_a_mask_are_told(mask, values):
    assert tuple(read_mask(encoded(mask), "x", "mask", Classes())[1]) == values


def test_what_a_mask_holds_goes_with_the_pixels():
    mask = decode(Example(RGB, labels(5, 7), "x")).mask
    assert mask.values == {str(v): pytest.approx(np.mean(labels(5, 7) == v)) for v in (1, 2, 3)}
    assert mask.foreground == pytest.approx(np.mean(labels(5, 7) == 1))
    assert mask.background == pytest.approx(np.mean(labels(5, 7) == 2))


def test_postscript_starts_no_other_program(tmp_path, monkeypatch):
    """Pillow hands PostScript to Ghostscript, here a program that leaves a trace."""
    trace = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {trace}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(InputError, match=r"^x\.png: cannot be read as an image \(none of"):
        read_image(script, "x.png")
    assert not trace.exists()


def test_values_of_a_mask_are_the_same_in_strips(monkeypatch):
    for image in (
        noise(40, 9),
        np.concatenate([noise(40, 9) // 64, noise(40, 9)[..., :1] // 99], -1),
    ):
        mask = Image.fromarray(image)
        whole = read_mask(encoded(mask), "x", "mask", Classes())
        with monkeypatch.context() as context:
            context.setattr(mask_files, "_STRIP", 20)
            strips = read_mask(encoded(mask), "x", "mask", Classes())
        np.testing.assert_array_equal(whole[0], strips[0])
        assert [*whole[1].items()] == [*strips[1].items()]


def test_a_lossy_mask_is_refused():
    with pytest.raises(InputError, match=r"^m\.png: .*JPEG.*PNG"):
        read_mask(encoded(MARKED, "JPEG"), "m.png", "mask", Classes())


def test_a_mask_of_another_size_is_named():
    with pytest.raises(InputError, match="mask of x: the mask is 6x5 pixels but its image is 7x5"):
        decode(Example(encoded(RGB), encoded(labels(5, 6)), "x"))


def test_drawn_examples_pass_through():
    image, trimap, _ = decode(Example(RGB, labels(5, 7), "x"))
    assert image is RGB
    np.testing.assert_array_equal(trimap, labels(5, 7))


def test_images_shrink_without_aliasing_and_trimaps_without_new_labels():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    trimap = np.where(np.arange(64) < 32, np.uint8(1), np.uint8(3))[None].repeat(64, 0)
    image, small = resize_pair(stripes, trimap, 8)
    assert np.abs(image.astype(int) - 127.5).max() < 12
    np.testing.assert_array_equal(small, [[1] * 4 + [3] * 4] * 8)


def test_resizing_squashes_to_a_square():
    ramp = np.repeat(np.linspace(0, 255, 30)[None, :, None], 10, 0).repeat(3, -1).astype(np.uint8)
    image = resize_image(ramp, 10)
    assert image.shape == (10, 10, 3)
    # A triangle filter keeps a straight line straight.
    steps = np.diff(image[0, 1:-1, 0].astype(int))
    assert steps.min() >= 25 and steps.max() <= 28


def test_examples_come_in_order_with_errors_in_their_place():
    class Source:
        identity, kind, classes, notes = "three", "trimap", Classes(), ()

        def name(self, index):
            return f"example {index}"

        def __len__(self):
            return 3

        def __getitem__(self, index):
            data = b"" if index == 1 else encoded(RGB + np.uint8(index))
            return Example(data, encoded(labels(5, 7)), f"example {index}")

    first, second, third = map_examples(lambda example: decode(example)[0], Source())
    np.testing.assert_array_equal(first, RGB)
    assert isinstance(second, InputError) and "example 1" in str(second)
    np.testing.assert_array_equal(third, RGB + np.uint8(2))


@needs_pets
def test_a_png_and_a_gif_named_jpg():
    for path in (
        PETS / "images" / "Abyssinian_5.jpg",
        PETS / "odd" / "images" / "Abyssinian_34.jpg",
    ):
        data = path.read_bytes()
        assert not data.startswith(b"\xff\xd8")
        with Image.open(path) as image:
            expected = np.asarray(image.convert("RGBA").convert("RGB"))
        np.testing.assert_array_equal(read_image(data, path.name), expected)
        assert expected.std() > 20
