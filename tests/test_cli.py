"""The command line from training to scores, as a user types it."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from eqxunet import load_run, predict

ROOT = Path(__file__).parents[1]
TRAIN = [
    "train", "--encoder", "scratch", "--data", "synthetic", "--size", "32", "--batch-size", "8",
    "--limit", "24", "--run", "runs/a",
]  # fmt: skip


def start(cwd, *arguments):
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(cwd, *arguments):
    process = start(cwd, *arguments)
    stdout, stderr = process.communicate()
    return process.returncode, stdout, stderr


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def width(picture):
    with Image.open(picture) as image:
        return image.size[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_cache):
    """A folder in which a run of two epochs was trained and scored."""
    cwd = tmp_path_factory.mktemp("work")
    cache = pytest.MonkeyPatch()
    cache.setenv("XDG_CACHE_HOME", str(new_cache()))
    code, stdout, stderr = run(cwd, *TRAIN, "--epochs", 2)
    assert code == 0, stderr
    assert "IoU" in stdout
    code, stdout, stderr = run(cwd, "eval")
    assert code == 0, stderr
    yield cwd
    cache.undo()


def test_train_writes_the_run(trained):
    directory = trained / "runs" / "a"
    assert (trained / "runs" / "latest").resolve() == directory
    config = json.loads((directory / "config.json").read_text())
    assert config["model"]["encoder"] == "scratch" and config["train"]["seed"] == 0
    records = lines(directory / "metrics.jsonl")
    assert [record["step"] for record in records] == [3, 6]
    for key in ("epoch", "train/loss", "val/loss", "val/iou", "val/dice", "images_per_second"):
        assert all(key in record for record in records)
    for picture in ("curves.png", "predictions.png"):
        assert width(directory / picture) > 400


def test_eval_writes_the_scores(trained):
    out = trained / "runs" / "a" / "eval" / "test"
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["count"] == 24
    assert set(metrics["by_border"]) == {"foreground", "background", "ignore"}
    low, high = metrics["iou"]["ci95"]
    assert low <= metrics["iou"]["mean"] <= high
    with (out / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24 and list(rows[0])[:3] == ["name", "iou", "dice"]
    assert width(out / "examples.png") > 400


def test_a_run_loads_and_predicts(trained):
    import numpy as np

    loaded = load_run(trained / "runs" / "latest")
    probability = predict(loaded.model, loaded.state, np.zeros((40, 50, 3), np.uint8))
    assert probability.shape == (40, 50) and 0 <= probability.min() <= probability.max() <= 1


@pytest.mark.slow
def test_a_run_killed_by_a_signal_resumes_to_the_same_end(trained, tmp_path):
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    arguments = [*TRAIN, "--epochs", 40]
    code, _, stderr = run(tmp_path / "whole", *arguments)
    assert code == 0, stderr
    process = start(tmp_path / "stopped", *arguments)
    metrics = tmp_path / "stopped" / "runs" / "a" / "metrics.jsonl"
    while not metrics.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate()
    assert process.returncode == 143, stderr
    assert "--resume goes on" in stderr
    assert 1 <= len(lines(metrics)) < 40
    code, stdout, stderr = run(tmp_path / "stopped", "train", "--resume")
    assert code == 0, stderr
    assert "resuming after step" in stdout
    ends = []
    for name in ("whole", "stopped"):
        records = lines(tmp_path / name / "runs" / "a" / "metrics.jsonl")
        assert [record["epoch"] for record in records] == list(range(1, 41))
        ends.append({key: records[-1][key] for key in ("step", "val/loss", "val/iou", "lr")})
    assert ends[0] == pytest.approx(ends[1], rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--encoder", "vgg"], 2, "vgg"),
        (["train", "--data", "no/such/folder"], 2, "no/such/folder"),
        (["train", "--data", "synthetic", "--batch-size", "0"], 2, "batch-size"),
        (["train", "--data", "synthetic", "--limit", "4"], 2, "--batch-size 4"),
        (["train", "--weights", "a.pkl"], 2, "--encoder resnet10"),
        (["train", "--resume", "--run", "runs/none"], 2, "runs/none"),
        (["eval", "--run", "nowhere"], 2, "nowhere"),
        ([*TRAIN, "--resume", "--lr", "0.5"], 2, "--lr 0.5 (was 0.001)"),
        (TRAIN, 2, "--resume goes on with it, --overwrite deletes it"),
        (
            ["train", "--encoder", "resnet10", "--data", "synthetic", "--weights", "no.pkl"],
            2,
            "no.pkl",
        ),
    ],
)
def test_mistakes_end_in_one_message(trained, arguments, code, message):
    got, _, stderr = run(trained, *arguments)
    assert got == code, stderr
    assert message in " ".join(stderr.split())
    assert "Traceback" not in stderr


def test_debug_shows_the_traceback(trained):
    code, _, stderr = run(trained, "eval", "--run", "nowhere", "--debug")
    assert code == 1 and "Traceback" in stderr


def test_a_second_run_in_the_same_folder_is_refused(trained):
    from eqxunet.runs import locked

    with locked(trained / "runs" / "a"):
        code, _, stderr = run(trained, *TRAIN, "--overwrite")
    assert code == 5 and "another process" in stderr
    assert (trained / "runs" / "a" / "config.json").exists()


def test_divergence_ends_with_its_own_code(trained):
    code, _, stderr = run(
        trained, *TRAIN[:-1], "runs/diverged", "--epochs", 4, "--lr", "1e30",
        "--schedule", "constant",
    )  # fmt: skip
    assert code == 4, stderr
    assert "lower --lr" in stderr


def test_help_is_quick():
    times = []
    for _ in range(3):
        began = time.perf_counter()
        code, stdout, _ = run(ROOT, "--help")
        times.append(time.perf_counter() - began)
        assert code == 0
        for command in ("train", "eval", "data", "weights"):
            assert command in stdout
    assert min(times) < 1


def test_a_run_that_cannot_start_leaves_everything_as_it_was(trained):
    before = sorted(path.name for path in (trained / "runs").iterdir())
    latest = (trained / "runs" / "latest").resolve()
    code, _, _ = run(trained, *TRAIN, "--overwrite", "--batch-size", 99)
    assert code == 2
    arguments = ["--encoder", "resnet10", "--data", "synthetic", "--size", 32]
    code, _, stderr = run(trained, "train", *arguments, "--weights", ROOT / "LICENSE")
    assert code == 3, stderr
    assert sorted(path.name for path in (trained / "runs").iterdir()) == before
    assert (trained / "runs" / "a" / "metrics.jsonl").exists()
    assert (trained / "runs" / "latest").resolve() == latest
