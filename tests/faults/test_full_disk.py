"""A full disk: one message, its own code, and what was written before stays as it was."""

import errno
import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import SMALL, Command
from typer.testing import CliRunner

import eqxunet as eu
from eqxunet.cli import app
from eqxunet.errors import UnavailableError
from eqxunet.runs.pictures import draw_training
from eqxunet.runs.tensorboard import tensorboard_log
from eqxunet.storage import is_partial

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_cache):
    """A folder in which two runs were trained, scored and compared."""
    cwd = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(new_cache()))
        patch.chdir(cwd)
        invoke("train", *SMALL, "--epochs", "1", "--run", "run")
        shutil.copytree("run", "other")
        for arguments in COMMANDS.values():
            invoke(*arguments)
        yield cwd


COMMANDS = {
    "eval": ["eval", "--run", "run", "--out", "out", "--overwrite"],
    "compare": ["compare", "run", "other", "--out", "out2", "--overwrite"],
    "data": ["data", "show", "--data", "synthetic", "--out", "out3/sheet.png", "--overwrite"],
}


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == code, result.output
    return result.stderr


@pytest.fixture
def full(monkeypatch):
    """Lets the disk have no room for a file of a name."""
    names = []
    fsync = os.fsync

    def failing(descriptor):
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if any(name in path.name for name in names):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    return names


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("eval", "metrics.json"),
        ("eval", "per_image.csv"),
        ("eval", "examples.png"),
        ("eval", "report.html"),
        ("compare", "comparison.json"),
        ("compare", "comparison.csv"),
        ("compare", "comparison.png"),
        ("data", "sheet.png"),
    ],
)
def test_outputs_stay_as_they_were(trained, full, command, name):
    folder = Path({"eval": "out", "compare": "out2", "data": "out3"}[command])
    (folder / name).write_bytes(b"of before")
    full.append(name)
    said = invoke(*COMMANDS[command], code=6)
    assert said.count("No space left on device") == said.count("error:") == 1, said
    assert name in said and "Traceback" not in said
    assert (folder / name).read_bytes() == b"of before"
    assert not any(map(is_partial, folder.iterdir()))


@pytest.mark.parametrize("name", ["curves.png", "predictions.png", "progress.png"])
def test_pictures_of_a_training_stay_as_they_were(trained, full, name):
    before = Path("run", name).read_bytes()
    run = eu.load_run("run")
    split = eu.load_split("synthetic", "val", size=32, limit=12)
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    full.append(name)
    with pytest.raises(UnavailableError, match=rf"{name}: cannot be written \(No space left"):
        draw_training(run, records, split)
    assert Path("run", name).read_bytes() == before


def test_a_log_that_cannot_be_written_ends_in_one_error(tmp_path):
    """Instead of a thread that has ended and a queue that fills up."""
    large = np.random.default_rng(0).integers(0, 256, (4, 256, 256, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(UnavailableError, match="tensorboard: cannot be written"):
        with tensorboard_log(tmp_path, []) as log:
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
                log({"step": 1, "loss": 0.5}, large)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_process_without_room_says_so_once(trained):
    """Of a job whose files do not fit; the others stay, and it goes on where there is room."""
    Path("in").mkdir()
    rng = np.random.default_rng(0)
    for i, side in enumerate((20, 600)):
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(f"in/{i}.png")
    job = ["predict", "in", "--run", "run", "--out", "masks", "--overlay"]
    with Command(*job, cwd=trained, prefix=("prlimit", "--fsize=300000")) as command:
        assert command.wait() == 6, command.output
        assert command.output.count("File too large") == 1, command.output
        assert "1.png: cannot be written" in command.output
        assert "Traceback" not in command.output
    assert sorted(os.listdir("masks")) in ([], ["0.overlay.png", "0.png"])
    invoke(*job)
    assert len(os.listdir("masks")) == 4
