"""Signals at any moment of a command: it ends soon, with a line, and nothing is torn."""

import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from processes import ROOT, SMALL, Command, records, run, steps

from eqxunet.cli.signals import SIGNALS, STOPPING
from eqxunet.storage import is_partial
from eqxunet.training.checkpoint import restore

pytestmark = pytest.mark.faults

SOON = 60.0  # seconds; a second or two where nothing else runs
PICTURES = ("curves.png", "predictions.png", "progress.png")
TRAIN = ["train", *SMALL, "--epochs", 4, "--run", "run"]
# Makes the terminal on its standard input its own, and then is the command.
IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.executable, [sys.executable, "-m", "eqxunet", *sys.argv[1:]])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_cache):
    """A folder with two runs and images, and how long a training takes."""
    cwd = tmp_path_factory.mktemp("work")
    cache = pytest.MonkeyPatch()
    cache.setenv("XDG_CACHE_HOME", str(new_cache()))
    (cwd / "in").mkdir()
    for i in range(12):
        Image.new("RGB", (30 + i, 40), (i, 200, 20 * i)).save(cwd / "in" / f"{i}.png")
    began = time.monotonic()
    code, output = run(*TRAIN, cwd=cwd)
    seconds = time.monotonic() - began
    assert code == 0, output
    shutil.copytree(cwd / "run", cwd / "other")
    yield cwd, seconds
    cache.undo()


COMMANDS = {
    "predict": ["predict", "in", "--run", "run", "--overlay", "--out", "masks"],
    "eval": ["eval", "--run", "run", "--out", "scores"],
    "compare": ["compare", "run", "other", "--out", "compared"],
    "data": ["data", "show", "--data", "synthetic", "--out", "sheet.png", "--overwrite"],
}


def is_listening(command):
    """Whether the process has come so far as to answer signals; before, it is Python's start."""
    with open(f"/proc/{command.process.pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    caught, blocked = (int(fields[name], 16) for name in ("SigCgt", "SigBlk"))
    return all((caught | blocked) >> (number - 1) & 1 for number in SIGNALS)


def assert_whole(folder):
    """Asserts that all files can be read to the end, but for those that say they are unfinished."""
    for path in folder.rglob("*"):
        if path.suffix == ".png" and not is_partial(path):
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json" and "checkpoints" not in path.parts:
            json.loads(path.read_text())


def interrupted(arguments, seconds, seed, cwd):
    """Sends a signal at a moment of a command; asserts how it ends, and returns its code."""
    random_ = random.Random(seed)
    number = random_.choice(STOPPING)
    with Command(*arguments, cwd=cwd) as command:
        command.until(lambda: is_listening(command))
        time.sleep(random_.uniform(0, seconds))
        command.send(number)
        began = time.monotonic()
        code = command.wait()
        assert time.monotonic() - began < SOON, command.output
        said = command.output
    assert code in (0, 128 + number), said
    assert "Traceback" not in said and "Exception" not in said, said
    assert said.count(f"stopped by {number.name}") == (code != 0), said
    assert code == 0 or re.search(r"stopped by .*; (.* )?(command|train|draws) ", said), said
    return code


def assert_training(folder, code):
    """Asserts that a training that was interrupted is whole."""
    assert_whole(folder)
    if steps(folder):
        restored = restore(folder / "checkpoints")
        assert restored.step == max(steps(folder)) and not restored.damaged
        is_recorded = (folder / "metrics.jsonl").exists()  # one epoch at least
        known = [record["epoch"] for record in records(folder)] if is_recorded else []
        assert known == list(range(1, len(known) + 1))
    if code == 0:
        assert all((folder / name).exists() for name in PICTURES)


@pytest.mark.parametrize("seed", range(3))
def test_a_training_ends_at_any_moment(trained, tmp_path, seed):
    _, seconds = trained
    code = interrupted(TRAIN, seconds, seed, tmp_path)
    assert_training(tmp_path / "run", code)


@pytest.mark.parametrize("name", ["predict", "eval", "compare", "data"])
def test_other_commands_end_at_any_moment(trained, tmp_path, name, seed=0):
    cwd, seconds = trained
    for folder in ("in", "run", "other"):
        (tmp_path / folder).symlink_to(cwd / folder)
    code = interrupted(COMMANDS[name], seconds / 2, f"{name} {seed}", tmp_path)
    assert_whole(tmp_path)
    if name == "predict" and code:
        code, output = run(*COMMANDS[name], cwd=tmp_path)  # goes on
        assert code == 0, output
        assert len(list((tmp_path / "masks").iterdir())) == 24


def test_drawing_is_left_as_it_is(trained, tmp_path):
    """After the last step, where nothing is left to save."""
    long = ["train", *SMALL, "--limit", 24, "--size", 64, "--epochs", 1, "--run", "run"]
    with Command(*long, cwd=tmp_path) as command:
        command.until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        command.until(lambda: (tmp_path / "run" / "calibration.json").exists())
        command.send(signal.SIGUSR1)
        command.send(signal.SIGTERM)
        assert command.wait() == 143, command.output
        assert (
            "all steps are saved, and `train --resume` of this run draws the pictures"
            in command.output
        )
    assert_training(tmp_path / "run", 143)
    code, output = run("train", "--resume", "--run", "run", cwd=tmp_path)
    assert code == 0 and all((tmp_path / "run" / name).exists() for name in PICTURES), output


def test_usr1_saves_between_two_epochs_and_never_ends_a_training(trained, tmp_path):
    arguments = ["train", *SMALL, "--limit", 800, "--epochs", 50, "--run", "run"]
    with Command(*arguments, cwd=tmp_path) as command:
        command.until(lambda: is_listening(command))
        command.send(signal.SIGUSR1)
        command.until_says("SIGUSR1: there is nothing to save now")
        command.until_says("step 1 of")

        def is_saved():
            command.send(signal.SIGUSR1)
            return any(step % 200 for step in steps(tmp_path / "run"))

        command.until(is_saved)
        assert "SIGUSR1: this step will be finished and saved" in command.output
        command.until(lambda: re.search(r"^saved after step \d+$", command.output, re.MULTILINE))
        count = len(records(tmp_path / "run")) if (tmp_path / "run/metrics.jsonl").exists() else 0
        command.until(lambda: (tmp_path / "run" / "metrics.jsonl").exists())
        command.until(lambda: len(records(tmp_path / "run")) > count)
        command.send(signal.SIGTERM)
        assert command.wait() == 143, command.output
    assert restore(tmp_path / "run" / "checkpoints").damaged == []


def test_a_training_outlives_its_terminal_to_be_saved(trained, tmp_path):
    """Whose end is a SIGHUP, after which nothing can be written to it."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", IN_A_TERMINAL, *map(str, TRAIN[:-4]), "--epochs", "400"]
        + ["--run", "run"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    said = b""
    while said.count(b"epoch") < 3:
        said += os.read(master, 65536)
    os.close(master)
    assert process.wait(300) == 129
    assert restore(tmp_path / "run" / "checkpoints").step == max(steps(tmp_path / "run"))
