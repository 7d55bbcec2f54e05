"""Runs compared on the same images: by calls, and as a user types it."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from typer.testing import CliRunner

import eqxunet as eu
from eqxunet.cli import app
from eqxunet.errors import InputError
from eqxunet.report import save_comparison

COUNT = 12
CONFIG = eu.RunConfig(
    model=eu.ModelConfig(channels=(4, 8), size=16),
    train=eu.TrainConfig(epochs=1, batch_size=4, lr=3e-3),
    data="synthetic",
    limit=COUNT,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, new_cache):
    """Two runs that differ in their seed, and the folder they are in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(new_cache()))
        folder = tmp_path_factory.mktemp("work")
        found = []
        for seed, name in enumerate(("20260131-120000-scratch", "20260131-130000-scratch")):
            train = dataclasses.replace(CONFIG.train, seed=seed)
            config = dataclasses.replace(CONFIG, train=train)
            found.append(eu.train(config, folder / "runs" / name))
        yield folder, *found


@pytest.fixture(scope="module")
def compared(runs):
    folder, *both = runs
    return eu.compare(both, out=folder / "compared")


def changed(run, directory="other", *, model=None, train=None, **options):
    """A run as it would be with other options."""
    config = dataclasses.replace(run.config, **options)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, **(model or {})),
        train=dataclasses.replace(config.train, **(train or {})),
    )
    directory = run.directory.with_name(directory)
    return dataclasses.replace(run, config=config, task=config.make_task(), directory=directory)


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_eval(runs, compared, tmp_path):
    folder, *both = runs
    assert json.loads((folder / "compared" / "comparison.json").read_text()) == compared
    rows = table(folder / "compared" / "comparison.csv")
    assert list(rows[0]) == ["name", *(run.directory.name for run in both)]
    for run, scores in zip(both, compared["scores"], strict=True):
        metrics = eu.evaluate(run, out=tmp_path / run.directory.name)
        assert (scores["run"], scores["step"]) == (metrics["run"], metrics["step"])
        for name in ("iou", "dice"):
            assert scores[name]["mean"] == pytest.approx(metrics[name]["mean"], rel=1e-12)
            assert scores[name]["ci95"] == pytest.approx(metrics[name]["ci95"], rel=1e-12)
        images = table(tmp_path / run.directory.name / "per_image.csv")
        assert [row["name"] for row in rows] == [image["name"] for image in images]
        for row, image in zip(rows, images, strict=True):
            assert row[run.directory.name] == image["iou"]
    assert compared["count"] == len(rows) == COUNT


def test_differences_are_paired_by_image(runs, compared):
    folder, *both = runs
    rows = table(folder / "compared" / "comparison.csv")
    a, b = (np.array([float(row[run.directory.name]) for row in rows]) for run in both)
    resamples = np.random.default_rng(0).integers(0, COUNT, (9_999, COUNT))
    low, high = np.quantile((b - a)[resamples].mean(axis=1), (0.025, 0.975))
    assert compared["scores"][0]["difference"] is None
    found = compared["scores"][1]["difference"]["iou"]
    assert found["mean"] == pytest.approx((b - a).mean(), rel=1e-9)
    assert found["ci95"] == pytest.approx([low, high], rel=1e-9)
    assert found["excludes_zero"] == (low > 0 or high < 0)


def test_a_run_is_no_better_than_its_copy(runs):
    first = runs[1]
    copy = changed(first, "copy")
    difference = eu.compare([first, copy])["scores"][1]["difference"]
    assert difference["iou"] == {"mean": 0.0, "ci95": [0.0, 0.0], "excludes_zero": False}


def test_a_limit_takes_the_first_images(runs, compared, monkeypatch):
    folder, *both = runs
    few = eu.compare(both, limit=5)
    assert few["count"] == few["limit"] == 5
    monkeypatch.chdir(folder)
    names = [f"runs/{run.directory.name}" for run in both]
    assert invoke(*names, "--limit", 5, "--out", "few").exit_code == 0
    assert [row["name"] for row in table(folder / "few" / "comparison.csv")] == [
        row["name"] for row in table(folder / "compared" / "comparison.csv")[:5]
    ]
    result = invoke(*names, "--out", "few")
    assert result.exit_code == 2 and "holds something else (limit 5)" in result.stderr


def test_one_run_is_not_taken_for_several():
    with pytest.raises(InputError, match="takes two runs or more"):
        eu.compare("runs/latest")


def test_the_threshold_is_that_of_eval(runs, tmp_path):
    scores = eu.compare(runs[1:], "val", threshold=0.3)["scores"][1]
    metrics = eu.evaluate(runs[2], "val", threshold=0.3, out=tmp_path / "scores")
    assert scores["iou"]["mean"] == pytest.approx(metrics["iou"]["mean"], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": {"size": 32}}, "size 32 and 16. Scores compare"),
        ({"train": {"border": "ignore"}}, "border as ignore and foreground"),
        ({"labels": "species"}, "labels species and trimap"),
        (
            {"task": "semantic", "classes": ("background", "pet", "border")},
            "task semantic and binary; classes background, pet, border and background, foreground",
        ),
        (
            {"identity": {"train": {"count": 9, "crc32": "x"}, "val": {"count": 12, "crc32": "y"}}},
            "9 and 12 train images; other val images, to the pixel",
        ),
        ({"identity": None, "limit": 3}, "limit 3 and 12"),
    ],
)
def test_what_cannot_be_compared_is_refused(runs, tmp_path, options, message):
    first = runs[1]
    if options.get("identity", ()) is None:  # as runs of earlier versions are
        first = changed(first, "first", identity=None)
    with pytest.raises(InputError, match=message) as error:
        eu.compare([first, changed(runs[2], **options)], out=tmp_path / "out")
    assert len(str(error.value).splitlines()) == 1
    assert "other cannot be compared with" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_borders_that_labels_lack_do_not_matter(runs):
    masks = (
        changed(runs[1], labels="mask"),
        changed(runs[1], "b", labels="mask", train={"border": "ignore"}),
    )
    with pytest.raises(InputError, match="threshold"):  # which is looked at afterwards
        eu.compare(masks, threshold=2.0)


def test_runs_of_the_same_name_are_told_apart(runs, tmp_path):
    first = runs[1]
    twin = dataclasses.replace(first, directory=tmp_path / first.directory.name)
    eu.compare([first, twin], out=tmp_path / "out")
    header = list(table(tmp_path / "out" / "comparison.csv")[0])
    assert header == ["name", str(first.directory), str(twin.directory)]


def test_the_picture_shows_each_runs_errors(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    images = np.full((2, 4, 4, 3), 100, np.uint8)
    targets = np.zeros((2, 4, 4), np.uint8)
    targets[:, :2] = 1
    predictions = np.stack([targets, 1 - targets])
    scores = np.array([[1.0, 1.0], [0.0, 0.25]])
    save_comparison(
        images, targets, predictions, scores, ["p", "q"], ["one", "two"],
        ("background", "foreground"), np.array([[0, 0, 0], [255, 255, 255]], np.uint8),
        "title", tmp_path / "x.png", is_binary=True,
    )  # fmt: skip
    grid = np.array(figures[0].axes).reshape(4, 3)
    assert [axes.get_ylabel() for axes in grid[:, 0]] == ["image", "truth", "one", "two"]
    assert [axes.get_title() for axes in grid[3, :2]] == ["IoU 0.00", "IoU 0.25"]
    right, wrong = (grid[row, 1].images[0].get_array() for row in (2, 3))
    assert (right == 160).all()  # the image in grey
    assert (wrong[:2] == (44, 90, 210)).all() and (wrong[2:] == (215, 25, 28)).all()


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "80"})


def test_the_command_prints_whole_intervals_in_80_columns(runs, compared, monkeypatch):
    folder, *both = runs
    monkeypatch.chdir(folder)
    names = [run.directory.name for run in both]
    result = invoke(*(f"runs/{name}" for name in names), "--out", "compared")
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    lines = [line.rstrip() for line in result.stdout.splitlines()]
    for name in names:
        assert any(line.startswith(name) for line in lines), lines
    for scores in compared["scores"]:
        for name in ("iou", "dice"):
            mean, (low, high) = scores[name]["mean"], scores[name]["ci95"]
            assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in result.stdout
    difference = compared["scores"][1]["difference"]["iou"]
    low, high = difference["ci95"]
    star = " *" if difference["excludes_zero"] else ""
    assert any(
        line.endswith(f"{difference['mean']:+.3f} [{low:+.3f}, {high:+.3f}]{star}")
        for line in lines
    )
    with (folder / "compared" / "comparison.png").open("rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_mistakes_end_in_one_message(runs, compared, monkeypatch, tmp_path):
    folder, first, second = runs
    monkeypatch.chdir(folder)
    a, b = (f"runs/{run.directory.name}" for run in (first, second))
    (tmp_path / "file").touch()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.csv").touch()
    for arguments, code, message in (
        ((a,), 2, "a comparison takes two runs or more; `eval` scores one"),
        ((a, b, a), 2, f"{first.directory}: is given twice; name each run once"),
        ((a, "runs/none"), 2, "runs/none: not a run directory"),
        ((a, b, "--out", "compared", "--split", "val"), 2, "holds something else (split test)"),
        ((a, b, "--out", tmp_path / "mine"), 2, "holds something else (precious.csv)"),
        ((a, b, "--out", tmp_path / "file"), 2, "is a file; name another folder"),
        ((a, b, "--out", tmp_path / "file" / "x"), 6, "Not a directory"),
        ((a, b, "--threshold", 1.5), 2, "'--threshold'"),
    ):
        result = invoke(*arguments)
        assert result.exit_code == code, result.stderr
        assert message in result.stderr, result.stderr
    assert json.loads((folder / "compared" / "comparison.json").read_text()) == compared
