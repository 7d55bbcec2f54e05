"""Hostile and damaged files of a run, and folders that are none."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

import eqxunet as eu
from eqxunet.cli import app
from eqxunet.errors import BusyError, InputError, IntegrityError, UnavailableError
from eqxunet.runs import run_training
from eqxunet.runs.directory import busy_first, check_directory, check_room, clear, locked
from eqxunet.runs.load import _read_calibration
from eqxunet.runs.scores import check_scores

CONFIG = eu.RunConfig(
    model=eu.ModelConfig(channels=(4, 8), size=16),
    train=eu.TrainConfig(epochs=1, batch_size=4),
    data="synthetic",
    labels="trimap",
    limit=8,
)


def values(**changes):
    """What config.json holds, with other values by dotted name; None removes one."""
    config = CONFIG.values()
    for name, value in changes.items():
        *parts, last = name.split("__")
        at = config
        for part in parts:
            at = at[part]
        at[last] = value
    return json.dumps(config)


CONTENTS = {
    "empty": b"",
    "binary": bytes(range(256)),
    "zeros": bytes(1000),
    "nested": b"[" * 10**6,
    "nested objects": b'{"model":' * 10**5,
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "an object of nothing": b"{}",
    "cut": values()[:100],
    "more than one": values() + values(),
    "NaN": values(train__lr=float("nan")),
    "infinite": values(train__lr=float("inf")),
    "1e999": values().replace("0.001", "1e999"),
    "no model": values(model=None),
    "a list as model": values(model=[]),
    "an unknown key": values(model__layers=3),
    "an unknown option": values(train__momentum=0.9),
    "a key of other words": values(**{"train__\x1b[31m\n": 1}),
    "an unknown encoder": values(model__encoder="resnet999"),
    "an encoder that is a list": values(model__encoder=["scratch"]),
    "channels of 10^9": values(model__channels=[10**9, 10**9]),
    "channels of 10^400": values(model__channels=[10**400, 1]),
    "100,000 levels": values(model__channels=[1] * 100_000),
    "channels of strings": values(model__channels=["8", "16"]),
    "blocks of 10^9": values(model__encoder="resnet10", model__stage_sizes=[10**9] * 4),
    "a huge size": values(model__size=10**9),
    "a size that is a string": values(model__size="128"),
    "a seed of 2^63": values(train__seed=2**63),
    "a rate of 10^400": values(train__lr=10**400),
    "epochs of 2^64": values(train__epochs=2**64),
    "epochs that are true": values(train__epochs=True),
    "data that are a number": values(data=5),
    "data with a zero": values(data="a\0b"),
    "a place that is a list": values(data_dir=["a"]),
    "a limit of -1": values(limit=-1),
    "a limit that is a string": values(limit="8"),
    "labels that are unknown": values(labels="colours"),
    "classes that are one word": values(task="semantic", classes="cat"),
    "classes that are numbers": values(task="semantic", labels="classes", classes=[1, 2]),
    "300 classes": values(task="semantic", labels="classes", classes=list(map(str, range(300)))),
    "identity that is a list": values(identity=[1]),
    "identity of strings": values(identity={"train": "a", "val": "b"}),
    "identity without a count": values(identity={"train": {}, "val": {}}),
    "weights that are a list": values(weights=[1]),
    "weights of nothing": values(weights={"source": None}),
    "weights with more": values(weights={"source": "auto", "code": "x"}),
    "a start that is a number": values(start=5),
    "a pace that is a rate": values(train__checkpoint_every="10/s"),
}
COMMANDS = (
    ["train", "--resume", "--run", "run"],
    ["eval", "--run", "run"],
    ["predict", "a.png", "--run", "run"],
)


def answers(arguments):
    result = CliRunner().invoke(app, arguments)
    message = [line for line in result.stderr.strip().splitlines() if line]
    assert len(message) == 1 and message[0].startswith("error:"), result.output
    assert len(message[0]) < 700 and message[0].isprintable()
    return result.exit_code, message[0]


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_a_damaged_configuration_is_one_message(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    content = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "run" / "config.json").write_bytes(content)
    for command in COMMANDS:
        code, message = answers(command)
        assert code == 3 and "config.json" in message
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "run"]


def make_fifo(path):
    os.mkfifo(path)


def make_sparse(path):
    with path.open("wb") as file:
        file.truncate(10**9)


KINDS = {
    "is no file": lambda path: path.mkdir(),
    "is no file,": make_fifo,
    "has 1,000,000,000 bytes, more": make_sparse,
}


def peak():
    """The most memory of this process, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(("said", "make"), KINDS.items(), ids=("a folder", "a pipe", "1 GB"))
@pytest.mark.parametrize("name", ["config.json", "calibration.json"])
def test_what_is_no_small_file_is_not_read(tmp_path, monkeypatch, name, said, make):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / name)
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = peak()
    if name == "config.json":
        for command in COMMANDS:
            code, message = answers(command)
            assert code == 3 and f"{name}: {said}" in message
        assert answers(["train", "--data", "synthetic", "--run", "run", "--overwrite"])[0] == 3
    else:
        with pytest.raises(IntegrityError, match=f"calibration.json: cannot be read .{said}"):
            _read_calibration(tmp_path / "run", 1)
    assert peak() - before < 300_000


@pytest.mark.parametrize(
    "make",
    [
        *(lambda path, c=c: path.write_bytes(c) for c in (b"", b"[" * 10**6, b"[]", b"7", b"\xff")),
        lambda path: path.write_text('{"split": "test", "loss": NaN}'),
        *KINDS.values(),
    ],
)
def test_scores_that_are_none_are_not_overwritten(tmp_path, ends_soon, make):
    check_scores(tmp_path, {"split": "test"})
    make(tmp_path / "metrics.json")
    with pytest.raises(InputError, match=r"holds something else .metrics.json.; .* --overwrite"):
        check_scores(tmp_path, {"split": "test"})


def test_a_latest_that_leads_nowhere_is_one_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    latest = tmp_path / "runs" / "latest"
    latest.parent.mkdir()
    makers = (
        lambda: latest.symlink_to("latest"),
        lambda: latest.symlink_to("gone"),
        lambda: latest.write_text("precious"),
        lambda: latest.mkdir(),
    )
    for make in makers:
        make()
        for command in (["train", "--resume"], ["eval"], ["predict", "a.png"]):
            assert answers(command)[0] == 2
        if not latest.is_symlink():
            code, message = answers(["train", "--data", "synthetic"])
            assert code == 2 and "latest: has the name of the link" in message
        code, message = answers(["train", "--data", "synthetic", "--run", "runs/latest"])
        assert code == 2 and "latest" in message
        assert [path.name for path in latest.parent.iterdir()] == ["latest"]
        if latest.is_dir() and not latest.is_symlink():
            latest.rmdir()
        else:
            latest.unlink()


CALIBRATION = {
    "step": 6,
    "temperature": 1.5,
    "ece": 0.1,
    "ece_before": 0.2,
    "bins": {"confidence": [0.5], "accuracy": [0.5], "count": [7.0]},
    "threshold": 0.5,
    "curve": {"threshold": [0.5], "dice": [1.0], "precision": [1.0], "recall": [1.0]},
}


@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0},
        {"temperature": "1.5"},
        {"temperature": None},
        {"threshold": 7},
        {"threshold": []},
        {"ece": {}},
        {"bins": []},
        {"bins": {"confidence": [0.5]}},
        {"bins": {"confidence": [0.5], "accuracy": [], "count": [7]}},
        {"curve": {"threshold": [0.5], "dice": "x", "precision": [1], "recall": [1]}},
        {"curve": {"threshold": [0.5], "dice": ["x"], "precision": [1], "recall": [1]}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_hostile_calibration_is_named(tmp_path, changes):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps(CALIBRATION))
    assert _read_calibration(tmp_path, 6).temperature == 1.5
    assert _read_calibration(tmp_path, 5) is None
    path.write_text(json.dumps(CALIBRATION | changes))
    with pytest.raises(IntegrityError, match="calibration.json: cannot be read.*remove it"):
        _read_calibration(tmp_path, 6)


def test_a_folder_with_checkpoints_and_scores_of_its_own_is_refused_and_untouched(tmp_path):
    for name in ("eval/mine.txt", "checkpoints/7/mine.txt"):
        (tmp_path / "other" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / name).write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    for overwrite in (False, True):
        with pytest.raises(InputError, match="its config.json is lost; put that back"):
            eu.train(CONFIG, tmp_path / "other", overwrite=overwrite)
    for command in (eu.load_run, eu.RunConfig.read):
        with pytest.raises(InputError, match="config.json is lost, .* stay as they are"):
            command(tmp_path / "other")
    assert sorted(tmp_path.rglob("*")) == before


def test_overwriting_deletes_what_a_run_writes_and_nothing_else(tmp_path):
    ours = [
        "checkpoints/12/state/d/a", "checkpoints/13.orbax-checkpoint-tmp/b", "curves.png",
        "eval/test/metrics.json", "eval/test/report.html", "snapshots/00000003.png",
        "tensorboard/events.out.tfevents.1.2", "metrics.jsonl", "metrics.jsonl.damaged",
        "calibration.json", "config.json",
        ".config.json.7.partial", "snapshots/.00000003.png.7.partial",
        "checkpoints/.14.partial/c",
    ]  # fmt: skip
    others = ["eval/mine.txt", "eval/val/notes.txt", "checkpoints/mine/a", "notes.md", ".lock"]
    for name in ours + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    deleted, left = clear(tmp_path)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()) == (
        sorted(others)
    )
    assert sorted(left) == ["checkpoints/mine/a", "eval/mine.txt", "eval/val/notes.txt"]
    assert {"checkpoints/12", "eval/test/report.html", "config.json"} <= set(deleted)
    assert deleted[-1] == "config.json", "until then it can be seen that it is a run"
    assert not (tmp_path / "snapshots").exists()


def test_what_cannot_be_deleted_is_said(tmp_path, monkeypatch):
    (tmp_path / "checkpoints" / "12").mkdir(parents=True)

    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("eqxunet.runs.directory.shutil.rmtree", refuse)
    with pytest.raises(UnavailableError, match="12: cannot be deleted .Permission denied"):
        clear(tmp_path)


def test_a_busy_folder_is_busy_whatever_it_holds(tmp_path):
    """As another process makes it: nothing yet, half of a run, a run."""
    run = tmp_path / "run"
    with locked(run):
        for name in (None, "checkpoints", "config.json"):
            if name == "checkpoints":
                (run / name).mkdir()
            elif name:
                CONFIG.write(run)
                (run / "checkpoints" / "3").mkdir()
            for overwrite in (False, True):
                with pytest.raises(BusyError, match="another process is training in it"):
                    eu.train(CONFIG, run, overwrite=overwrite)
            with pytest.raises(BusyError):
                eu.train(directory=run, resume=True)
    assert not FileLock(run / ".lock").is_locked
    with pytest.raises(InputError, match="holds a run already"), busy_first(run):
        check_directory(run, overwrite=False)


def test_room_is_looked_for_before_images_are_decoded(tmp_path, monkeypatch):
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr("eqxunet.runs.directory.shutil.disk_usage", lambda _: usage(10_000))
    monkeypatch.setattr("eqxunet.runs.training.load_splits", pytest.fail)
    with pytest.raises(UnavailableError, match=r"takes 0 MB, and 0 MB are free"):
        eu.train(CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    check_room(tmp_path, 10_000)
    with pytest.raises(UnavailableError):
        check_room(tmp_path, 10_001)


def test_a_run_that_saved_nothing_is_resumed_without_a_traceback(tmp_path, capfd):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        CONFIG.write(tmp_path / name)
    (tmp_path / "b" / "checkpoints").mkdir()
    for name in ("a", "b"):
        with pytest.raises(InputError, match="nothing was saved to resume from"):
            run_training(None, tmp_path / name, eu.Observer(), resume=True)
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err


@pytest.mark.parametrize("name", ["a[b]", "a[b]/c", os.fsdecode(b"n\xff")])
@pytest.mark.parametrize("resume", [False, True])
def test_a_path_below_which_checkpoints_cannot_be_read_is_refused(tmp_path, name, resume):
    with pytest.raises(InputError, match="checkpoints cannot be kept below a path with"):
        run_training(None if resume else CONFIG, tmp_path / name, eu.Observer(), resume=resume)
    assert os.listdir(tmp_path) == []
