"""Runs that are killed, and what goes on with them."""

import json
import os

import pytest
from processes import SMALL, Command, records, run, steps

pytestmark = pytest.mark.faults
# Bits differ between one core and two. Of those that this process may use, any.
ONE_CORE = ("taskset", "-c", str(max(os.sched_getaffinity(0))))


def lines(directory):
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in records(directory)]


def test_a_run_killed_at_any_time_ends_as_the_uninterrupted_one(tmp_path):
    """Killed inside epochs and between them, with checkpoints inside, and resumed each time."""
    options = [*SMALL, "--epochs", 6, "--checkpoint-every", 2]
    code, said = run("train", *options, "--run", "whole", cwd=tmp_path, prefix=ONE_CORE)
    assert code == 0, said
    cut = tmp_path / "cut"
    arguments = ["train", *options, "--run", "cut"]
    for reached in (2, 7):
        with Command(*arguments, cwd=tmp_path, prefix=ONE_CORE) as command:
            command.until(lambda reached=reached: max(steps(cut), default=0) >= reached)
            command.kill()
        arguments = ["train", "--resume", "--run", "cut"]
    code, said = run(*arguments, cwd=tmp_path, prefix=ONE_CORE)
    assert code == 0 and "Traceback" not in said, said
    assert [record["epoch"] for record in lines(cut)] == list(range(1, 7))
    assert lines(cut) == lines(tmp_path / "whole")
    for picture in ("curves.png", "predictions.png", "progress.png"):
        assert (cut / picture).exists()
    calibrations = [
        json.loads((d / "calibration.json").read_text()) for d in (cut, tmp_path / "whole")
    ]
    assert calibrations[0] == calibrations[1]
