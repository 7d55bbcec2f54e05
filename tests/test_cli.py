"""The command line from training to scores, as a user types it."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import numpy as np
import pytest
from pictures import encoded, labels, write_plain
from PIL import Image

from eqxunet import build, load_run, precise_statistics, predict
from eqxunet.data import load_split
from eqxunet.data.augment import to_float
from eqxunet.evaluation import forward

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


def test_a_trivial_baseline_stands_beside_every_score(trained):
    metrics = json.loads((trained / "runs" / "a" / "eval" / "test" / "metrics.json").read_text())
    for scores in (metrics, *metrics["by_border"].values()):
        assert 0 < scores["baseline"]["iou"] < scores["baseline"]["dice"] < 1
    for record in lines(trained / "runs" / "a" / "metrics.jsonl"):
        assert 0 < record["val/baseline_iou"] < 1


def test_a_run_knows_where_and_which_its_data_are(trained):
    config = json.loads((trained / "runs" / "a" / "config.json").read_text())
    assert Path(config["data_dir"]).is_absolute()
    assert {name: split["count"] for name, split in config["identity"].items()} == {
        "train": 24, "val": 24,
    }  # fmt: skip


def test_a_run_holds_statistics_of_its_weights(trained):
    """Statistics over all images; those of the run are over some, those of training far off."""
    loaded = load_run(trained / "runs" / "a")
    split = load_split("synthetic", "train", size=32, limit=24)
    images = to_float(split.images).reshape(3, 8, 32, 32, 3)
    whole = precise_statistics(eqx.nn.inference_mode(loaded.model, False), loaded.state, images)
    _, start = build(loaded.config.model, key=jax.random.key(0))
    logits = [forward(loaded.model, s, images[0]) for s in (loaded.state, whole, start)]
    error = [np.abs(other - logits[1]).mean() for other in (logits[0], logits[2])]
    assert error[0] < 0.3 * error[1]


def test_scores_under_other_conditions_go_elsewhere(trained):
    folder = write_plain(trained / "others", [f"p{i}" for i in range(10)])
    scores = trained / "runs" / "a" / "eval"
    before = (scores / "test" / "metrics.json").read_bytes()
    for options, name in (
        (["--threshold", 0.3], "test-threshold-0.3"),
        (["--limit", 8], "test-first-8"),
        (["--data", "others", "--limit", 24], "test-of-others"),
        (["--split", "all", "--data", "others", "--limit", 24], "all-of-others"),
    ):
        code, _, stderr = run(trained, "eval", *options)
        assert code == 0, stderr
        assert (scores / name / "metrics.json").exists()
    assert (scores / "test" / "metrics.json").read_bytes() == before
    everything = json.loads((scores / "all-of-others" / "metrics.json").read_text())
    assert everything["count"] == 10 and everything["data"] == str(folder)
    # A folder of the same name elsewhere, and a folder named with --out.
    (trained / "elsewhere").mkdir()
    folder.rename(trained / "elsewhere" / "others")
    for options in (
        ["--data", "elsewhere/others", "--limit", 24],
        ["--threshold", 0.4, "--out", scores / "test"],
    ):
        code, _, stderr = run(trained, "eval", *options)
        assert code == 2 and "holds something else" in stderr
    assert (scores / "test" / "metrics.json").read_bytes() == before
    code, _, stderr = run(trained, "eval", *options, "--overwrite")
    assert code == 0, stderr
    # Another run's scores, and a folder of something else.
    (trained / "mine").mkdir()
    (trained / "mine" / "per_image.csv").write_text("precious")
    code, _, stderr = run(trained, "eval", "--out", "mine")
    assert code == 2 and "holds something else (per_image.csv)" in stderr
    shutil.copytree(trained / "runs" / "a", trained / "runs" / "copy")
    assert run(trained, "eval", "--out", "out")[0] == 0
    code, _, stderr = run(trained, "eval", "--run", "runs/copy", "--out", "out")
    assert code == 2 and "holds something else (run " in stderr
    shutil.rmtree(trained / "runs" / "copy")
    assert run(trained, "eval", "--overwrite")[0] == 0


def test_the_hint_names_a_command_that_works(trained):
    """For a run in `runs/`, where `latest` leads to it, and for one elsewhere."""
    for directory in ("runs/hinted", "aside"):
        code, stdout, stderr = run(trained, *TRAIN[:-1], directory, "--epochs", 1)
        assert code == 0, stderr
        hint = stdout.strip().splitlines()[-1].rpartition("cli.py ")[2]
        assert hint == ("eval" if directory.startswith("runs") else "eval --run aside")
        assert run(trained, *hint.split())[0] == 0
        assert (trained / directory / "eval" / "test" / "metrics.json").exists()
    assert not (trained / "latest").is_symlink()
    (trained / "runs" / "latest").unlink()
    (trained / "runs" / "latest").symlink_to("a")


def test_trainings_that_begin_in_one_second_do_not_collide(tmp_path, monkeypatch):
    from eqxunet.runs import directory as runs

    class Clock(runs.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 31, 12, 0, 0)

    monkeypatch.setattr(runs, "datetime", Clock)
    monkeypatch.chdir(tmp_path)
    made = [runs.new_directory("scratch").name for _ in range(3)]
    assert made == [f"20260131-120000-scratch{end}" for end in ("", "-2", "-3")]


def test_resuming_accepts_the_same_options_and_notices_other_data(trained):
    root = write_plain(trained / "growing", [f"p{i:02}" for i in range(12)])
    options = ["train", "--encoder", "scratch", "--size", 16, "--batch-size", 4, "--run", "g"]
    given = ["--data", "growing", "--data-dir", "sets"]
    code, _, stderr = run(trained, *options, *given, "--epochs", 1)
    assert code == 0, stderr
    code, _, stderr = run(trained, *options, *given, "--resume")
    assert code == 0, stderr
    code, _, stderr = run(trained, *options, "--data", "growing/../growing/", "--resume")
    assert code == 0, stderr
    code, _, stderr = run(trained, *options, "--data-dir", "others", "--resume")
    assert code == 2 and "--data-dir" in stderr
    write_plain(root, [f"q{i:02}" for i in range(8)])
    code, _, stderr = run(trained, *options, "--resume")
    assert code == 2
    assert "train (10 images then, 16 now)" in stderr and "val (1 images then, 2 now)" in stderr
    code, _, stderr = run(trained, "eval", "--run", "g")
    assert code == 0 and "images came or went since g was trained" in stderr


def test_a_folder_of_something_else_is_never_written_to(trained):
    other = trained / "other"
    (other / "eval").mkdir(parents=True)
    (other / "checkpoints").mkdir()
    (other / "eval" / "mine.txt").write_text("precious")
    for config in (None, "{}", '{"model": {"layers": 3}, "train": {}}', "not JSON"):
        if config is not None:
            (other / "config.json").write_text(config)
        for options in ([], ["--overwrite"]):
            code, _, stderr = run(trained, *TRAIN[:-1], "other", *options)
            assert code == (2 if config is None else 3), stderr
            assert "Traceback" not in stderr and "name a" in stderr
    assert (other / "eval" / "mine.txt").read_text() == "precious"
    assert sorted(path.name for path in other.iterdir()) == ["checkpoints", "config.json", "eval"]
    code, _, stderr = run(trained, *TRAIN[:-1], other / "config.json")
    assert code == 2 and "is a file" in stderr


def test_masks_that_cannot_be_meant_stop_before_training(trained):
    root = write_plain(trained / "wrong", [f"p{i}" for i in range(10)])
    for path in (root / "masks").iterdir():
        path.write_bytes(encoded(labels(12, 16)))
    before = sorted((trained / "runs").iterdir())
    code, _, stderr = run(trained, "train", "--data", "wrong", "--size", 16, "--batch-size", 4)
    assert code == 2 and "have no background" in stderr
    assert sorted((trained / "runs").iterdir()) == before


def test_a_run_that_was_never_validated_cannot_be_scored(trained, tmp_path):
    process = start(tmp_path, *TRAIN, "--limit", 800, "--epochs", 2)
    while "step 1 of" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate()
    assert process.returncode == 130, stderr
    assert "SIGINT: this step will be finished" in stderr and "goes on" in stderr
    code, _, stderr = run(tmp_path, "eval")
    assert code == 2 and "no validated checkpoint yet" in stderr and "--resume" in stderr


def test_output_to_a_file_speaks_before_the_first_epoch_ends(trained):
    _, stdout, _ = run(trained, *TRAIN[:-1], "runs/told", "--epochs", 1, "--overwrite")
    said = stdout.splitlines()
    epoch = next(i for i, line in enumerate(said) if line.startswith("epoch"))
    assert said[0] == "loading JAX"
    assert any("compiling the training step; 3 steps to go" in line for line in said[:epoch])
    assert any(line.startswith("step 1 of 3") for line in said[:epoch])


def test_a_run_loads_and_predicts(trained):
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
    assert "train --resume --run runs/a goes on" in " ".join(stderr.split())
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
        (
            ["train", "--encoder", "resnet11"],
            2,
            "Error: Invalid value for '--encoder': 'resnet11' is not one of 'scratch', 'resnet10', "
            "'resnet18', 'resnet34', 'resnet50', 'efficientnet_lite0'. Did you mean 'resnet18'?",
        ),
        (["train", "--data", "Synthetik"], 2, "did you mean `synthetic`?"),
        (["train", "--epochs", "2", "--steps", "9"], 2, "give one of them"),
        (["train", "--data", "no/such/folder"], 2, "no/such/folder"),
        (["train", "--data", "synthetic", "--batch-size", "0"], 2, "batch-size"),
        (["train", "--data", "synthetic", "--limit", "4"], 2, "--batch-size 4"),
        (["train", "--weights", "a.pkl"], 2, "an --encoder that has some, such as resnet10"),
        (["train", "--learning-rate", "1"], 2, "--lr"),
        (["train", "--channels", "16,x"], 2, "--channels 16,x: give whole numbers"),
        (["train", "--channels", "16"], 2, "channels=(16,)"),
        (["train", "--encoder", "resnet10", "--channels", "8,16"], 2, "encoder='scratch'"),
        ([*TRAIN, "--resume", "--channels", "8,16"], 2, "--channels 8,16 (was 32,64,128,256)"),
        (["train", "--resume", "--run", "runs/none"], 2, "runs/none"),
        (["eval", "--run", "nowhere"], 2, "nowhere"),
        ([*TRAIN, "--resume", "--overwrite"], 2, "choose one of them"),
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
    from eqxunet.runs.directory import locked

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


def test_help_gives_options_whole_on_80_columns(trained):
    code, stdout, _ = run(trained, "train", "--help")
    assert code == 0 and max(map(len, stdout.splitlines())) <= 80
    for option in ("--encoder <scratch|resnet10|", "--encoder-lr-scale", "--no-freeze-encoder"):
        assert option in stdout


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
