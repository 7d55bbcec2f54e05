import numpy as np
import pytest
from pictures import PETS, encoded, labels, needs_pets, noise, write_oxford, write_plain
from PIL import Image
from typer.testing import CliRunner

from eqxunet.cli import app
from eqxunet.data.sheet import OUTLINE, contact_sheet


def run(*arguments: object):
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_check_counts_a_good_folder(tmp_path):
    result = run("check", write_oxford(tmp_path, ["a", "b", "c"], ["d"]))
    assert result.exit_code == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()]
    for row in (["train", "2", "0"], ["val", "1", "0"], ["test", "1", "0"]):
        assert any(set(row) <= set(words) for words in rows)
    assert "values in masks: 1 (in 4), 2 (in 4), 3 (in 4)" in result.stdout
    assert "taken as: 1 is pet, 2 is background, 3 is border" in result.stdout


def test_check_refuses_what_training_would(tmp_path):
    root = write_plain(tmp_path, [f"p{i}" for i in range(10)])
    result = run("check", root)
    assert result.exit_code == 0, result.stderr
    assert "values in masks: 0 (in 10), 255 (in 10)" in result.stdout
    assert f"{np.mean(labels(12, 16) != 2):.1%}" in result.stdout
    for path in (root / "masks").iterdir():
        path.write_bytes(encoded(labels(12, 16)))
    result = run("check", root)
    assert result.exit_code == 2
    assert "values in masks: 1 (in 10), 2 (in 10), 3 (in 10)" in result.stdout
    assert "have no background" in result.stderr and "annotations/trimaps/" in result.stderr


def test_check_warns_of_what_may_not_be_meant(tmp_path):
    root = write_plain(tmp_path, [f"p{i}" for i in range(10)])
    for path in (root / "masks").iterdir():
        path.write_bytes(encoded(labels(12, 16) - 1))
    (root / "images" / "p3.png").unlink()
    result = run("check", root)
    assert result.exit_code == 0, result.stderr
    assert "all count as foreground: 1, 2" in result.stderr
    assert "1 masks have no image and are left out: p3" in result.stderr


def test_check_tells_of_classes(tmp_path):
    root = write_plain(tmp_path, [f"p{i}" for i in range(10)])
    for path in (root / "masks").iterdir():
        path.write_bytes(encoded(labels(12, 16) // 2))  # 0 and 1
    (root / "classes.txt").write_text("sky\nroad [1]\ncar\nbike\n")
    for split, names in (("train", range(6)), ("val", (6, 7)), ("test", (8, 9))):
        (root / f"{split}.txt").write_text("\n".join(f"p{i}" for i in names))
    (root / "masks" / "p8.png").write_bytes(encoded(np.full((12, 16), 2, np.uint8)))
    result = run("check", root, "--task", "semantic")
    assert result.exit_code == 0, result.stderr
    rows = [[cell.strip() for cell in line.split("│")] for line in result.stdout.splitlines()]
    assert ["", "1", "road [1]", "62.50% in 6", "62.50% in 2", "31.25% in 1", ""] in rows
    assert ["", "train", "6", "0", ""] in rows
    assert ["", "2", "car", "0.00% in 0", "0.00% in 0", "50.00% in 1", ""] in rows
    assert "none of the 6 train masks holds car, bike" in result.stderr
    assert "no train mask holds what test masks do, so it cannot be learnt: car" in result.stderr
    assert "taken as: the index of a class, 255 is not labelled" in result.stdout


def test_check_says_one_complaint_once(tmp_path):
    root = write_plain(tmp_path, [f"p{i:02}" for i in range(12)])
    for path in (root / "masks").iterdir():
        path.write_bytes(encoded(noise(12, 16)))
    result = run("check", root, "--task", "semantic")
    assert result.exit_code == 2
    first, last = result.stderr.splitlines()
    assert first.startswith(f"{root}/masks: 12 files: holds colours (mode RGB)")
    assert first.endswith("p00.png, p01.png, p02.png and 9 more")
    assert "12 examples cannot be used" in last


def test_check_refuses_labels_that_the_folder_does_not_have(tmp_path):
    result = run("check", write_plain(tmp_path, ["a", "b", "c"]), "--labels", "species")
    assert result.exit_code == 2 and "--labels species does not fit" in result.stderr


@pytest.mark.parametrize("count", [1, 2, 3])
def test_check_wants_an_image_for_each_split(tmp_path, count):
    result = run("check", write_plain(tmp_path, ["a", "b", "c"][:count]))
    assert result.exit_code == (0 if count == 3 else 2)
    assert ("3 images are the least" in result.stderr) == (count < 3)


def test_check_fails_where_nothing_could_be_validated(tmp_path):
    root = write_plain(tmp_path, ["a", "b"])
    (root / "train.txt").write_text("a\nb\n")
    result = run("check", root)
    assert result.exit_code == 2 and "no image belongs to its val split" in result.stderr


def test_check_names_every_bad_file(tmp_path):
    root = write_oxford(tmp_path, ["a", "b", "c"], ["d [1]"])
    bad = [root / "images" / "b.png", root / "annotations" / "trimaps" / "d [1].png"]
    bad[0].write_bytes(encoded(noise(12, 16))[:99])
    bad[1].write_bytes(encoded(labels(12, 16) - 1))
    result = run("check", root)
    assert result.exit_code == 2
    for path in bad:
        assert str(path) in result.stderr
    assert "2 examples cannot be used" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_says_what_is_missing(tmp_path):
    root = write_plain(tmp_path, ["a", "b"])
    (root / "masks" / "b.png").unlink()
    result = run("check", root)
    assert result.exit_code == 2 and "no mask for b" in result.stderr
    result = run("check", tmp_path / "nowhere")
    assert result.exit_code == 2 and "not a folder" in result.stderr


@pytest.mark.parametrize("changes", [(), ("--augment",), ("--task", "semantic")])
def test_show_draws_a_sheet(tmp_path, changes):
    out = tmp_path / "new" / "sheet.png"
    options = ("--data", "synthetic", "--out", out, "--count", 5, "--size", 40)
    result = run("show", *options, *changes)
    assert result.exit_code == 0, result.stderr
    with Image.open(out) as image:
        assert image.size == (3 * 42, 2 * 42)
        pixels = np.asarray(image)
    assert 0.01 < (pixels == OUTLINE).all(-1).mean() < 0.3
    again = run("show", *options)
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    assert run("show", *options, "--overwrite").exit_code == 0


def test_show_wants_a_png(tmp_path):
    result = run("show", "--data", "synthetic", "--out", tmp_path / "sheet.jpg")
    assert result.exit_code == 2 and ".png" in result.stderr


def test_a_sheet_outlines_where_labels_change():
    images = np.full((3, 4, 6, 3), 7, np.uint8)
    trimaps = np.ones((3, 4, 6), np.uint8)
    trimaps[0, :, 3:] = 2
    sheet = contact_sheet(images, trimaps)
    assert sheet.shape == (2 * 6, 2 * 8, 3)
    expected = np.full((4, 6, 3), 7)
    expected[:, 2] = OUTLINE
    np.testing.assert_array_equal(sheet[1:5, 1:7], expected)
    np.testing.assert_array_equal(sheet[1:5, 9:15], images[1])
    assert (sheet[7:, 9:] == 255).all()


@needs_pets
@pytest.mark.slow
def test_check_finds_the_real_images_good():
    result = run("check", PETS)
    assert result.exit_code == 0, result.stderr
    assert "270" in result.stdout and "298" in result.stdout
