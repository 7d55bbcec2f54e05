"""Trainings that are killed at any time go on from a complete step; readers may stand beside.

`python tests/faults/test_kills.py kill 200 3600` kills one training so often, or for so many
seconds; `eval 20 0` scores a run so often beside its training.
"""

import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest
from processes import SMALL, Command, records, run, steps

from eqxunet.training.checkpoint import restore

pytestmark = pytest.mark.faults


def environment(folder):
    """A compilation cache of its own, since a kill may leave half an entry there."""
    return {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}


def train(folder, *options):
    return Command("train", "--run", "run", *options, cwd=folder, env=environment(folder))


def kill_often(folder, count, seed, *, epochs):
    """Kills a training so often, of which every other time while it saves; yields what was left.

    Each kill comes after the training has resumed and saved an epoch at least.
    """
    clock, run_folder = random.Random(seed), folder / "run"
    options = [*SMALL, "--epochs", epochs]
    for number in range(count):
        before = steps(run_folder)
        with train(folder, *options) as command:
            if before:
                command.until_says(f"resuming after step {before[-1]} ")
            command.until(lambda last=before[-1:]: steps(run_folder)[-1:] > last)
            time.sleep(clock.uniform(0, 0.5))
            if number % 2:
                command.until(lambda: any((run_folder / "checkpoints").glob(".*.partial*")))
                time.sleep(clock.uniform(0, 0.05))
            command.kill()
            assert "Traceback" not in command.output and "damaged" not in command.output
        left = list((run_folder / "checkpoints").iterdir())
        is_saving = any(not path.name.isdigit() for path in left)
        found = restore(run_folder / "checkpoints")
        assert found.damaged == [] and found.step == steps(run_folder)[-1]
        assert found.step > max(before, default=0)
        options = ["--resume"]
        yield found.step, is_saving


def test_a_training_that_is_killed_goes_on_from_a_complete_step(tmp_path):
    epochs = 60
    list(kill_often(tmp_path, 4, 0, epochs=epochs))
    with train(tmp_path, "--resume") as command:
        assert command.wait() == 0, command.output
        assert "Traceback" not in command.output and "damaged" not in command.output
    assert [record["epoch"] for record in records(tmp_path / "run")] == [*range(1, epochs + 1)]
    assert steps(tmp_path / "run")[-1] == 3 * epochs
    assert all(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())


def evaluate_beside(folder, count):
    """Scores a run so often while it trains and saves; returns how many steps were scored."""
    with train(folder, *SMALL, "--epochs", 10_000) as command:
        command.until(lambda: steps(folder / "run"))
        first = steps(folder / "run")[-1]
        for number in range(count):
            code, output = run(
                *("eval", "--run", "run", "--out", f"scores-{number}"),
                cwd=folder,
                env=environment(folder),
            )
            assert code == 0 and "damaged" not in output and "Traceback" not in output, output
        assert command.process.poll() is None, command.output
        saved = steps(folder / "run")[-1] - first
        command.send(signal.SIGTERM)
        assert command.wait() == 128 + signal.SIGTERM, command.output
        assert "Traceback" not in command.output and "damaged" not in command.output
    return saved // 3


def test_evaluations_beside_a_training_disturb_neither(tmp_path):
    assert evaluate_beside(tmp_path, 3) > 3


if __name__ == "__main__":
    kind, count, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if kind == "eval":
            print(f"{count} evaluations beside {evaluate_beside(folder, count)} saves")
        else:
            kills = []
            for kill in kill_often(folder, count, 0, epochs=100_000):
                kills.append(kill)
                if time.monotonic() > end:
                    break
            with train(folder, "--resume") as command:
                command.until(lambda: steps(folder / "run")[-1] > kills[-1][0])
                command.send(signal.SIGTERM)
                assert command.wait() == 128 + signal.SIGTERM, command.output
            found = [record["epoch"] for record in records(folder / "run")]
            assert found == [*range(1, len(found) + 1)], found
            while_saving = sum(is_saving for _, is_saving in kills)
            print(
                f"{len(kills)} kills, {while_saving} while saving, {len(found)} epochs, each once"
            )
