"""What a run writes line by line, and reads back whatever became of it."""

import contextlib
import dataclasses
import json
import os
import resource
import stat

import numpy as np
import pytest

import eqxunet as eu
from eqxunet.errors import IntegrityError, UnavailableError
from eqxunet.runs import directory as run_directory
from eqxunet.runs import pace
from eqxunet.runs.documents import parse, write_json
from eqxunet.runs.records import (
    append_record,
    best_of,
    is_patience_out,
    read_records,
    write_records,
)
from eqxunet.runs.snapshots import keep_snapshot
from eqxunet.runs.sums import EpochSums
from eqxunet.training import StepMetrics


def record(step, **others):
    losses = {"train/loss": 0.5, "val/loss": 0.25}
    scores = {"val/iou": 0.5, "val/dice": 0.75, "val/baseline_iou": 0.125}
    return {"step": step, "epoch": step, **losses, **scores, **others}


def line(step, **others):
    return json.dumps(record(step, **others)).encode()


DAMAGED = [
    b"",
    b'{"step": 2, "epoch": 2, "train/lo',
    b"not JSON",
    b"[1, 2]",
    b"7",
    b"{}",
    b"\xff\xfe\x00\x01" + line(2),
    b"[" * 10**6,
    b'{"a":' * 10**5,
    line(2)[:-1] + b', "x": NaN}',
    line(2)[:-1] + b', "x": -Infinity}',
    line(2)[:-1] + b', "x": 1e999}',
    line("2"),
    line(2.0),
    line(True),
    line(0),
    line(10**400),
    line(2, **{"val/iou": None}),
    line(2, **{"val/iou": "0.5"}),
    line(2, **{"val/iou": 10**400}),
    line(2, **{"train/loss": "0.5"}),
    line(2, **{"val/dice": [0.5]}),
    line(2, lr={"a": 1}),
    b'{"step": 2, "epoch": 2, "val/iou": 0.5}',
]


@pytest.mark.parametrize("damaged", DAMAGED, ids=range(len(DAMAGED)))
def test_a_line_that_cannot_be_used_costs_itself_alone(tmp_path, damaged):
    lines = [line(1), damaged, line(3, **{"train/loss": None, "val/loss": None}), line(4, more=1)]
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    said = []
    found = read_records(tmp_path, said.append)
    assert [each["step"] for each in found] == [1, 3, 4] and found[0] == record(1)
    assert len(said) == 1 and "metrics.jsonl: 1 of 4 lines" in said[0]


def test_records_are_appended_to_the_disk(tmp_path, monkeypatch):
    synced = []

    def note(descriptor):
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            synced.append(status.st_size)

    monkeypatch.setattr("eqxunet.runs.records.os.fsync", note)
    assert read_records(tmp_path, pytest.fail) == []
    for step in (1, 2):
        append_record(tmp_path, record(step))
    assert read_records(tmp_path, pytest.fail) == [record(1), record(2)]
    size = (tmp_path / "metrics.jsonl").stat().st_size
    assert synced == [size // 2, size]
    write_records(tmp_path, [record(1)])
    assert read_records(tmp_path, pytest.fail) == [record(1)]
    with pytest.raises(ValueError, match="JSON"):
        append_record(tmp_path, record(2, lr=float("nan")))
    assert read_records(tmp_path, pytest.fail) == [record(1)]


def test_records_are_read_from_a_file_alone(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(IntegrityError, match="metrics.jsonl: is"):
        read_records(tmp_path, pytest.fail)


@pytest.mark.parametrize("text", ["NaN", "[-Infinity]", '{"a": 1e999}', "-1e999"])
def test_numbers_that_json_does_not_have_are_not_read(text):
    with pytest.raises(ValueError, match="no number that JSON has"):
        parse(text.encode())
    assert parse(b"[1.5, 1e9]") == [1.5, 1e9]


def test_an_epoch_without_a_finite_loss_is_never_the_best():
    scores = [(1, 0.5, 0.3), (2, None, 0.9), (3, 0.4, 0.6), (4, 0.4, 0.6)]
    records = [record(s, **{"val/loss": loss, "val/iou": iou}) for s, loss, iou in scores]
    assert best_of(records)["step"] == 3
    assert not is_patience_out(records, 2) and is_patience_out(records, 1)
    assert not is_patience_out(records, None) and not is_patience_out([], 1)


def test_an_epochs_means_are_the_same_bits_wherever_it_was_interrupted(tmp_path):
    rng = np.random.default_rng(0)
    losses, ious = rng.random((2, 9)).astype(np.float32)
    steps = [
        StepMetrics(a, b, np.float32(1), np.int32(0)) for a, b in zip(losses, ious, strict=True)
    ]
    steps[4] = StepMetrics(np.float32(np.nan), np.float32(0), np.float32(np.nan), np.int32(1))
    sums = EpochSums()
    for metrics in steps:
        sums = EpochSums.read(
            json.loads(json.dumps(dataclasses.asdict(sums.plus(metrics)))), tmp_path
        )
    whole = sum(float(loss) for i, loss in enumerate(losses) if i != 4)
    assert sums.record()["train/loss"] == whole / 8
    assert sums.record()["skipped_steps"] == 1
    assert EpochSums().plus(steps[4]).record()["train/loss"] is None
    for values in (None, {}, {"steps": 1}, {**dataclasses.asdict(sums), "loss": "1"}):
        with pytest.raises(IntegrityError, match=str(tmp_path)):
            EpochSums.read(values, tmp_path)


def test_checkpoints_are_due_by_steps_or_by_minutes(monkeypatch):
    now = 0.0
    monkeypatch.setattr(pace.time, "monotonic", lambda: now)
    assert [step for step in range(1, 10) if pace.Pace(3).is_due(step)] == [3, 6, 9]
    assert not any(pace.Pace(None).is_due(step) for step in range(1, 10))
    minutes = pace.Pace("10m")
    due = []
    for now in range(0, 3000, 60):
        if minutes.is_due(1):
            minutes.saved()
            due.append(now)
    assert due == [600, 1200, 1800, 2400]


@contextlib.contextmanager
def full_disk():
    """Nothing can be written into a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_small_files_stay_as_they_were_on_a_full_disk(tmp_path):
    config = eu.RunConfig(data="synthetic")
    config.write(tmp_path)
    write_records(tmp_path, [record(1)])
    write_json(tmp_path / "calibration.json", {"a": 1})
    prediction = np.zeros((1, 4, 4), np.uint8)
    keep_snapshot(tmp_path, prediction, [record(1)], record(1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(before) == 4
    for write in (
        lambda: config.write(tmp_path),
        lambda: write_records(tmp_path, [record(2)]),
        lambda: append_record(tmp_path, record(2)),
        lambda: write_json(tmp_path / "calibration.json", {}),
        lambda: keep_snapshot(tmp_path, prediction + 1, [record(1)], record(1)),
    ):
        with full_disk(), pytest.raises(UnavailableError, match="cannot be written") as error:
            write()
        assert len(str(error.value).splitlines()) == 1
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_latest_leads_to_the_run_whatever_was_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    (runs / "a").mkdir(parents=True)
    (runs / f".latest.{run_directory.os.getpid()}.partial").symlink_to("b")
    for link in ("b", "latest"):  # which dangles, and loops
        (runs / "latest").unlink(missing_ok=True)
        (runs / "latest").symlink_to(link)
        run_directory.check_latest(runs / "a")
        run_directory.point_latest(runs / "a")
        assert (runs / "latest").resolve() == runs / "a"
    monkeypatch.setattr(run_directory.Path, "symlink_to", _no_space)
    with pytest.raises(UnavailableError, match="latest: cannot be written"):
        run_directory.point_latest(runs / "a")
    assert (runs / "latest").resolve() == runs / "a"


def _no_space(*_):
    raise OSError(28, "No space left on device")
