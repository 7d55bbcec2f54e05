"""Image files to predictions, by `predict_files` and as a user types it."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import encoded, header_of, noise
from PIL import Image, ImageOps
from typer.testing import CliRunner

import eqxunet as eu
from eqxunet.cli import app
from eqxunet.data.inputs import find_images
from eqxunet.errors import InputError, UnavailableError
from eqxunet.models.leaves import named_leaves, named_state
from eqxunet.report import overlay
from eqxunet.runs.outputs import read_record
from eqxunet.tasks import Semantic
from eqxunet.training.checkpoint import Writer

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)


class Colours(eu.AbstractEncoder):
    """One map, of the image's size: the logits of its channels."""

    in_channels: ClassVar[int] = 3
    channels: ClassVar[tuple[int, ...]] = (3,)
    strides: ClassVar[tuple[int, ...]] = (1,)
    has_pretrained_weights: ClassVar[bool] = False

    def __call__(self, image, state):
        x = jnp.clip(image, 1e-6, 1 - 1e-6)
        return (jnp.log(x) - jnp.log1p(-x),), state


def coloured(outputs, task):
    """A run that predicts of a pixel how red it is, or whether it is most red, green or blue."""
    make = eqx.nn.make_with_state(eu.UNet)
    model, state = make(Colours(), outputs=outputs, size=8, key=jax.random.key(0))
    kernel = jnp.eye(3)[None, None, :, :outputs]
    model = eqx.nn.inference_mode(eqx.tree_at(lambda m: m.head.kernel, model, kernel))
    config = eu.RunConfig(task="binary" if outputs == 1 else "semantic", data="synthetic")
    return eu.Run(model, state, config, task, 0, Path("/runs/coloured"))


RED = coloured(1, eu.Binary())
RGB = coloured(3, Semantic(("red", "green", "blue")))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def write(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    image.save(path, **options)
    return path


def two_halves(height, width):
    """Foreground on the left, so that it tells which side is up."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = (230, 60, 20)
    image[: height // 4] = (200, 200, 200)
    return image


FORMATS = [
    ("PNG", {}, lambda x: x),
    ("JPEG", {"quality": 95}, lambda x: x),
    ("TIFF", {}, lambda x: x),
    ("WEBP", {"lossless": True}, lambda x: x),
    ("BMP", {}, lambda x: x),
    ("PNG", {}, lambda x: Image.fromarray(x).convert("RGBA")),
    ("JPEG", {"quality": 95}, lambda x: Image.fromarray(x).convert("CMYK")),
    ("PNG", {}, lambda x: Image.fromarray(x).quantize(8)),
    ("GIF", {}, lambda x: Image.fromarray(x).quantize(8)),
    ("PNG", {}, lambda x: x[..., 0].copy()),
    ("PNG", {}, lambda x: x[..., 0].astype(np.uint16) * 257),
    ("PNG", {}, lambda x: Image.fromarray(x[..., 0].copy()).convert("LA")),
    ("PNG", {}, lambda x: Image.fromarray(x[..., 0] > 127)),
]


@pytest.mark.parametrize("size", [(1, 1), (37, 501), (300, 400)])
def test_every_format_comes_out_at_its_own_size(tmp_path, size):
    image = two_halves(*size)
    for number, (kind, options, convert) in enumerate(FORMATS):
        path = tmp_path / "in" / f"{number}.{kind.lower()}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(convert(image), kind, **options))
    done = eu.predict_files(RED, tmp_path / "in", tmp_path, tile=64, probability=True)
    assert sorted(map(int, (path.stem for path in done.written))) == list(range(len(FORMATS)))
    for path in done.written:
        mask, probability = pixels(path), pixels(path.with_suffix(".probability.png"))
        assert mask.dtype == np.uint8 and probability.dtype == np.uint16
        assert mask.shape == probability.shape == size
        assert set(np.unique(mask)) <= {0, 255}
        assert ((mask == 255) != (image[..., 0] > 127)).mean() < 0.01, path
        np.testing.assert_array_equal(mask == 255, probability >= 32768)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_predictions_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "x.png", two_halves(20, 48), exif=exif)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    eu.predict_files(RED, path, tmp_path / "out", tile=64, overlay=True)
    mask = pixels(tmp_path / "out" / "x.png")
    np.testing.assert_array_equal(mask == 255, upright[..., 0] > 127)
    assert pixels(tmp_path / "out" / "x.overlay.png").shape == upright.shape


def test_a_probability_is_that_of_the_library_to_16_bits(tmp_path):
    image = noise(60, 90)
    path = write(tmp_path / "x.png", image)
    for name, options in (("resized", {}), ("tiles", {"tile": 32}), ("flip", {"flip": True})):
        done = eu.predict_files(RED, path, tmp_path / name, probability=True, **options)
        want = eu.predict(RED, image, **options)
        got = pixels(done.written[0].with_suffix(".probability.png"))
        assert np.abs(got - 65535.0 * want).max() <= 0.6
        decided = np.abs(want - 0.5) > 1e-5
        np.testing.assert_array_equal(
            (pixels(done.written[0]) == 255)[decided], want[decided] > 0.5
        )


def test_many_batches_are_predicted_in_order(tmp_path):
    images = {f"{i:02}": noise(9 + i, 50 - i, seed=i) for i in range(40)}
    for name, image in images.items():
        write(tmp_path / "in" / f"{name}.png", image)
    seen = []

    class Watching(eu.Observer):
        @contextmanager
        def progress(self, text, unit="items"):
            yield lambda done, total: seen.append((done, total))

    done = eu.predict_files(
        RED, tmp_path / "in", tmp_path / "out", threshold=0.4, observer=Watching()
    )
    assert [path.stem for path in done.written] == sorted(images)
    assert seen == [(i, 40) for i in range(1, 41)]
    for path in done.written:
        want = eu.predict(RED, images[path.stem])
        is_clear = np.abs(want - 0.4) > 1e-5
        np.testing.assert_array_equal((pixels(path) == 255)[is_clear], (want > 0.4)[is_clear])


def test_classes_are_indices_with_the_colours_of_the_task(tmp_path):
    image = noise(40, 30)
    path = write(tmp_path / "x.png", image)
    eu.predict_files(RGB, path, tmp_path / "out", tile=64, probability=True)
    share = np.load(tmp_path / "out" / "x.probability.npy")
    assert share.dtype == np.float16 and share.shape == (40, 30, 3)
    odds = np.clip(image / 255, 1e-6, 1 - 1e-6)
    odds = odds / (1 - odds)
    np.testing.assert_allclose(share, odds / odds.sum(-1, keepdims=True), atol=1e-3)
    with Image.open(tmp_path / "out" / "x.png") as mask:
        assert mask.mode == "P"
        is_clear = np.diff(np.sort(image, axis=-1), axis=-1)[..., -1] > 0
        np.testing.assert_array_equal(np.asarray(mask)[is_clear], image.argmax(axis=-1)[is_clear])
        coloured = np.asarray(mask.convert("RGB"))
    np.testing.assert_array_equal(coloured, RGB.task.colours[pixels(tmp_path / "out" / "x.png")])


@pytest.mark.parametrize("run", [RED, RGB])
def test_overlays_are_drawn_in_strips_as_in_one_piece(tmp_path, monkeypatch, run):
    monkeypatch.setattr("eqxunet.runs.pipeline._STRIP", 7 * 30)
    image = noise(40, 30)
    path = write(tmp_path / "x.png", image)
    for name, options in (("tiles", {"tile": 64}), ("resized", {})):
        done = eu.predict_files(run, path, tmp_path / name, overlay=True, **options)
        classes = pixels(done.written[0]) // (255 if run is RED else 1)
        want = overlay(image, classes, run.task.colours, is_binary=run is RED)
        np.testing.assert_array_equal(pixels(tmp_path / name / "x.overlay.png"), want)


def names(tmp_path, *inputs, **options):
    """By path, names of the images found below a folder."""
    found = find_images([tmp_path / one for one in inputs], **options)
    return {str(path.relative_to(tmp_path)): name for path, name in found.images}


def touch(tmp_path, *paths):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()


def test_names_of_images_that_would_have_one_name(tmp_path):
    touch(tmp_path, "a/cat.jpg", "a/cat.png", "b/cat.jpg", "b/dog.jpg", "c/dog.jpg", "c/owl.gif")
    want = {
        "a/cat.jpg": "a/cat.jpg",
        "a/cat.png": "a/cat.png",
        "b/cat.jpg": "b/cat.jpg",
        "b/dog.jpg": "b/dog",
        "c/dog.jpg": "c/dog",
        "c/owl.gif": "owl",
    }
    assert names(tmp_path, "a", "b", "c") == want
    assert names(tmp_path, *reversed(want)) == want
    assert names(tmp_path, "*/*") == want
    assert names(tmp_path, "a") == {"a/cat.jpg": "cat.jpg", "a/cat.png": "cat.png"}


def test_names_of_images_in_deep_folders(tmp_path):
    touch(tmp_path, "in/x/a.jpg", "in/y/a.jpg", "in/a.jpg", "in/.hidden/a.jpg", "in/.a.jpg")
    want = {"in/x/a.jpg": "x/a", "in/y/a.jpg": "y/a", "in/a.jpg": "a"}
    assert names(tmp_path, "in", recursive=True) == want
    assert names(tmp_path, "in") == {"in/a.jpg": "a"}
    deep = names(tmp_path, "in/**/*.jpg")
    assert deep == {"in/x/a.jpg": "x/a", "in/y/a.jpg": "y/a", "in/a.jpg": "in/a"}


def test_names_that_differ_in_capital_letters_or_meet_other_files(tmp_path):
    touch(tmp_path, "Cat.jpg", "cat.jpg", "dog.jpg", "dog.overlay.jpg", "x.jpg", "x.png/y.jpg")
    endings = (".png", ".overlay.png")
    found = names(tmp_path, "", recursive=True, endings=endings)
    assert found == {
        "Cat.jpg": "Cat",
        "cat.jpg": "cat-2",
        "dog.jpg": "dog",
        "dog.overlay.jpg": "dog.overlay-2",
        "x.jpg": "x-2",
        "x.png/y.jpg": "x.png/y",
    }


def test_an_image_that_is_meant_twice_is_predicted_once(tmp_path):
    touch(tmp_path, "in/a.jpg", "in/b.jpg")
    assert names(tmp_path, "in", "in/a.jpg", "in/../in/*") == {"in/a.jpg": "a", "in/b.jpg": "b"}


def test_a_file_whose_name_is_a_pattern_is_a_file(tmp_path):
    touch(tmp_path, "a[1].jpg", "a1.jpg")
    assert names(tmp_path, "a[1].jpg") == {"a[1].jpg": "a[1]"}


@pytest.fixture
def folder(tmp_path):
    """Five images of different sizes."""
    for i in range(5):
        write(tmp_path / "in" / f"{i}.png", noise(20 + i, 30, seed=i))
    return tmp_path / "in"


def files(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def test_a_job_goes_on_where_it_was_stopped(folder, tmp_path):
    out = tmp_path / "out"
    options = {"overlay": True, "probability": True}
    first = eu.predict_files(RED, folder, out, **options)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(first.written) == 5 and len(before) == 15
    whole = (out / "1.png").read_bytes()
    (out / "1.png").write_bytes(whole[:-20])
    (out / "2.png").write_bytes(b"")
    (out / "3.overlay.png").unlink()
    (out / ".1.png.partial").write_bytes(whole[:50])
    again = eu.predict_files(RED, folder, out, **options)
    assert [path.stem for path in again.written] == ["1", "2", "3"]
    assert [path.stem for path in again.kept] == ["0", "4"]
    assert (out / "1.png").read_bytes() == whole
    after = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert after.keys() == before.keys()
    for path, changed in after.items():
        assert (changed == before[path]) == (path.name[0] in "04")
    plain = eu.predict_files(RED, folder, out)
    assert len(plain.kept) == 5 and not plain.written


def test_files_asked_for_later_are_added(folder, tmp_path):
    out = tmp_path / "out"
    eu.predict_files(RED, folder, out, overlay=True)
    assert len(eu.predict_files(RED, folder, out, probability=True).written) == 5
    assert len(eu.predict_files(RED, folder, out, probability=True, overlay=True).kept) == 5


OTHER = dataclasses.replace(
    RED, model=eqx.tree_at(lambda m: m.head.bias, RED.model, jnp.ones(1)), step=7
)


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (RED, {"threshold": 0.3}, "made with --threshold 0.5"),
        (RED, {"tile": 64}, "made without --tile"),
        (RED, {"flip": True}, "made without --tta"),
        (OTHER, {}, "of coloured at step 0"),
    ],
)
def test_predictions_of_something_else_are_not_replaced_unasked(
    folder, tmp_path, run, options, message
):
    out = tmp_path / "out"
    eu.predict_files(RED, folder, out, overlay=True)
    before = {path: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match=rf"5 files .*0\.png \({message}\).*--overwrite"):
        eu.predict_files(run, folder, out, **options)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    done = eu.predict_files(run, folder, out, overwrite=True, **options)
    assert len(done.written) == 5
    assert files(out) == {f"{i}.png" for i in range(5)}  # no overlay of what is gone
    assert len(eu.predict_files(run, folder, out, **options).kept) == 5


def test_an_image_that_has_changed_is_told_of(folder, tmp_path):
    eu.predict_files(RED, folder, tmp_path / "out")
    write(folder / "3.png", noise(9, 9))
    with pytest.raises(InputError, match=r"1 files .*3\.png \(of another image"):
        eu.predict_files(RED, folder, tmp_path / "out")


def test_files_of_others_are_not_replaced_unasked(folder, tmp_path):
    out = tmp_path / "out"
    write(out / "1.png", noise(3, 3))
    (out / "2.overlay.png").write_text("mine")
    with pytest.raises(InputError, match=r"2 files .*1\.png \(no prediction.*2\.overlay\.png"):
        eu.predict_files(RED, folder, out, overlay=True)
    assert files(out) == {"1.png", "2.overlay.png"}
    assert len(eu.predict_files(RED, folder, out, overlay=True, overwrite=True).written) == 5


def test_no_input_is_replaced_by_its_prediction(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for inputs in (folder, folder / "1.png", [folder / ".." / "in" / "*.png"]):
        with pytest.raises(InputError, match=r"is an input.*--out"):
            eu.predict_files(RED, inputs, folder, overwrite=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_holds_its_own_predictions_is_predicted_once(tmp_path):
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jpg", noise(20, 30, seed=i))
    for out in (tmp_path / "in", tmp_path / "in" / "deep" / "out"):
        options = {"overlay": True, "recursive": True}
        assert len(eu.predict_files(RED, tmp_path / "in", out, **options).written) == 3
        assert len(eu.predict_files(RED, tmp_path / "in", out, **options).kept) == 3
        for path in out.glob("*.png"):
            path.unlink()


def test_nothing_is_written_outside(folder, tmp_path):
    out, outside = tmp_path / "out", tmp_path / "outside"
    write(folder / "deep" / "x.png", noise(5, 5))
    outside.mkdir()
    out.mkdir()
    (out / "deep").symlink_to(outside)
    with pytest.raises(InputError, match="out/deep: leads out of"):
        eu.predict_files(RED, folder, out, recursive=True)
    (out / "deep").unlink()
    target = outside / "kept"
    target.write_text("kept")
    for name in (".0.png.partial", "1.png"):
        (out / name).symlink_to(target)
    (tmp_path / "a" / "b").mkdir(parents=True)
    upwards = tmp_path / "a" / "b" / ".." / ".." / "in"
    done = eu.predict_files(RED, upwards, out, recursive=True, overwrite=True)
    assert len(done.written) == 6
    assert target.read_text() == "kept" and files(outside) == {"kept"}
    assert files(out) == {*(f"{i}.png" for i in range(5)), "deep/x.png"}
    assert not (out / "1.png").is_symlink()


def test_a_bad_file_stops_nothing(folder, tmp_path):
    (folder / "bad1.png").write_bytes(b"no image")
    (folder / "bad2.png").write_bytes(b"no image")
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:200])
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "notes.txt").touch()
    long = write(folder / f"{'x' * 245}.png", noise(4, 4))
    for options in ({}, {"tile": 64}):
        out = tmp_path / f"out{len(options)}"
        done = eu.predict_files(RED, folder, out, **options)
        assert [path.stem for path in done.written] == list("01234")
        assert sorted(Path(error.file).stem for error in done.failed) == [
            "bad1", "bad2", "cut", "gone", long.stem,
        ]  # fmt: skip
        assert done.ignored == 1 and files(out) == {f"{i}.png" for i in range(5)}


def test_shards_are_parts_of_the_whole(folder, tmp_path):
    write(folder / "0.jpg", noise(8, 8))
    whole = eu.predict_files(RED, folder, tmp_path / "whole")
    parts = [
        eu.predict_files(RED, folder, tmp_path / "parts", shard=(i, 4)).written for i in range(1, 5)
    ]
    assert sorted(map(len, parts)) == [1, 1, 2, 2]
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    for path in whole.written:
        assert path.read_bytes() == (tmp_path / "parts" / path.name).read_bytes()
    with pytest.raises(InputError, match=r"no part 0 of 4; count from 1/4"):
        eu.predict_files(RED, folder, tmp_path / "parts", shard=(0, 4))


def test_a_large_image_needs_tiles(tmp_path):
    for height in (9_000, 20_000):
        (tmp_path / f"{height}.png").write_bytes(header_of(10_000, height))
    whole = eu.predict_files(RED, tmp_path, tmp_path / "out")
    assert [error.complaint for error in whole.failed] == [
        "over 89 megapixels; give it in tiles (--tile 512), or scale it down first"
    ] * 2
    tiled = eu.predict_files(RED, tmp_path, tmp_path / "out", tile=64)
    too_large, cut = (error.complaint for error in tiled.failed)
    assert too_large == "over 179 megapixels; scale it down first"
    assert "megapixels" not in cut and "cannot be read as an image" in cut
    with pytest.raises(InputError, match=r"9000\.png: over 89 megapixels; .*--tile"):
        eu.predict(RED, tmp_path / "9000.png")


def test_a_full_disk_ends_the_job(folder, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UnavailableError, match=r"out/0\.png: cannot be written \(No space left"):
        eu.predict_files(RED, folder, tmp_path / "out")
    assert files(tmp_path / "out") == set()


def test_what_predictions_say_of_themselves(folder, tmp_path):
    eu.predict_files(RED, folder / "1.png", tmp_path / "out", flip=True, overlay=True)
    record = read_record(tmp_path / "out" / "1.png")
    assert record.pop("source").startswith("1.png ") and len(record.pop("weights")) == 16
    assert record == {
        "run": "coloured", "step": 0, "threshold": 0.5, "tile": None, "flip": True,
        "files": ["overlay"],
    }  # fmt: skip
    with Image.open(tmp_path / "out" / "1.overlay.png") as image:
        assert json.loads(image.info["eqxunet"]) == read_record(tmp_path / "out" / "1.png")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a run, as if it was trained, and one with three images."""
    cwd = tmp_path_factory.mktemp("work")
    model = eu.ModelConfig(channels=(4, 8), size=16)
    config = eu.RunConfig(model=model, data="synthetic", labels="trimap")
    model, state = eqx.filter_jit(eu.build)(config.model, key=jax.random.key(0))
    arrays = {f"model.{name}": leaf for name, leaf in named_leaves(model).items()}
    arrays |= {f"state.{name}": leaf for name, leaf in named_state(model, state).items()}
    (cwd / "run").mkdir()
    config.write(cwd / "run")
    with Writer(cwd / "run" / "checkpoints") as writer:
        writer.save(1, arrays, {"val/iou": 0.5})
    for i in range(3):
        write(cwd / "in" / f"{i}.jpg", noise(20 + i, 30, seed=i))
    (cwd / "empty" / "deep").mkdir(parents=True)
    (cwd / "file").write_text("no folder")
    return cwd


def invoke(cwd, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_gives_what_the_library_gives(trained, tmp_path):
    options = ["--tile", 16, "--tta", "--overlay", "--probability", "--threshold", 0.45]
    code, stdout, stderr = invoke(trained, "in", "--run", "run", "--out", tmp_path, *options)
    assert code == 0, stderr
    assert "3 images predicted in" in stdout and "images/s" in stdout
    run = eu.load_run(trained / "run")
    done = eu.predict_files(
        run, trained / "in", tmp_path, tile=16, flip=True, overlay=True, probability=True,
        threshold=0.45,
    )  # fmt: skip
    assert len(done.kept) == 3
    probability = eu.predict(run, trained / "in" / "1.jpg", tile=16, flip=True)
    got = pixels(tmp_path / "1.probability.png") / 65535
    np.testing.assert_allclose(got, probability, atol=1e-5)
    code, stdout, stderr = invoke(trained, "in/*", "--run", "run", "--out", tmp_path, *options)
    assert code == 0 and "0 images predicted" in stdout and "3 were there already" in stdout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.jpg", "gone.jpg"], 2, "missing.jpg, gone.jpg: no such file or folder"),
        (["in/*.png"], 2, "in/*.png: no such file or folder"),
        (["empty"], 2, "empty: no image in it; --recursive searches the folders inside it"),
        (["empty", "--recursive"], 2, "empty: no image in it\n"),
        (["/dev/null"], 2, "/dev/null: neither a file nor a folder"),
        (["in", "--run", "no/run"], 2, "no/run"),
        (["in", "--tile", "0"], 2, "not 0; 512 is a good size"),
        (["in", "--threshold", "half"], 2, "'half' is neither a probability"),
        (["in", "--threshold", "1.5"], 2, "'1.5' is neither"),
        (["in", "--threshold", "nan"], 2, "'nan' is neither"),
        (["in", "--shard", "4"], 2, "--shard 4: give a part and how many there are, such as 1/4"),
        (["in", "--shard", "5/4"], 2, "no part 5 of 4"),
        (["in", "--out", "file"], 2, "file: is a file, where a folder is needed"),
        (["in", "--out", "file/deep"], 2, "file: is a file"),
        (["in", "--out", "/proc/none"], 6, "/proc/none: cannot be written"),
        ([], 2, "Missing argument 'INPUT...'"),
    ],
)
def test_mistakes_end_in_one_message_before_anything_is_done(trained, arguments, code, message):
    before = sorted(trained.rglob("*"))
    out = [] if "--out" in arguments else ["--out", "new"]
    run = [] if "--run" in arguments else ["--run", "run"]
    got, stdout, stderr = invoke(trained, *arguments, *out, *run)
    assert got == code, stderr
    assert message in stderr.replace(f"{trained}/", "") and "predicted" not in stdout
    assert sorted(trained.rglob("*")) == before


def test_bad_files_are_listed_at_the_end_with_a_code(trained, tmp_path):
    for i in range(4):
        (tmp_path / f"bad{i}.jpg").write_text("no image")
    (tmp_path / "good.png").write_bytes(encoded(noise(8, 8)))
    (tmp_path / "notes.md").touch()
    code, stdout, stderr = invoke(trained, tmp_path, "--run", "run", "--out", tmp_path / "out")
    assert code == 2
    assert "1 image predicted" in stdout and "other files left out: 1" in stdout
    headline, *lines = stderr.strip().splitlines()
    assert headline == "error: 4 of 5 images cannot be used:"
    (line,) = lines
    assert "4 files: cannot be read as an image" in line
    assert line.endswith("bad0.jpg, bad1.jpg, bad2.jpg and 1 more")
    assert files(tmp_path / "out") == {"good.png"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_job_leaves_whole_files_and_goes_on(trained, tmp_path, number):
    image = encoded(noise(96, 96))
    for i in range(200):
        (tmp_path / f"{i:03}.png").write_bytes(image)
    out = tmp_path / "out"
    arguments = ["predict", tmp_path, "--run", "run", "--out", out, "--tile", 16]
    process = subprocess.Popen(
        [sys.executable, ROOT / "cli.py", *map(str, arguments)],
        cwd=trained, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not (out / "004.png").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, stderr = process.communicate()
    assert process.returncode == 128 + number, stderr
    written = files(out)
    assert 5 <= len(written) < 200
    assert all(read_record(out / name) for name in written)
    run = eu.load_run(trained / "run")
    rest = eu.predict_files(run, [tmp_path / name for name in written], out, tile=16)
    assert len(rest.kept) == len(written) and not rest.written
