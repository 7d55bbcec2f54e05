"""Every command answers what cannot be meant in one or two lines, with the right code."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from eqxunet.cli import app

ROOT = Path(__file__).parents[1]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A folder to work in, with each kind of thing that is no input."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("hello")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")  # cannot be read, not even by root
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "images" / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


TRAIN = ["train", "--encoder", "scratch", "--data", "synthetic", "--limit", "8"]
CASES = [
    # an empty folder
    (["train", "--data", "empty"], 2),
    (["eval", "--run", "empty"], 2),
    (["predict", "images", "--run", "empty"], 2),
    (["compare", "empty", "images"], 2),
    (["data", "check", "empty"], 2),
    (["data", "show", "--data", "empty", "--out", "a.png"], 2),
    (["data", "prepare", "--archives", "empty", "--data-dir", "tfds"], 2),
    # what is not there
    (["train", "--data", "nowhere"], 2),
    (["train", "--weights", "nowhere.pkl", "--encoder", "resnet10", "--data", "synthetic"], 2),
    (["train", "--from", "nowhere", "--data", "synthetic"], 2),
    (["train", "--resume", "--run", "nowhere"], 2),
    (["eval"], 2),
    (["eval", "--run", "nowhere"], 2),
    (["predict", "images"], 2),
    (["predict", "nowhere.png", "--run", "nowhere"], 2),
    (["compare", "nowhere", "neither"], 2),
    (["weights", "verify", "nowhere.pkl"], 2),
    (["weights", "show", "nowhere.pkl"], 2),
    (["weights", "convert", "nowhere.pkl", "a.safetensors"], 2),
    (["data", "check", "nowhere"], 2),
    (["data", "show", "--data", "nowhere", "--out", "a.png"], 2),
    (["data", "prepare", "--archives", "nowhere", "--data-dir", "tfds"], 2),
    # what cannot be read
    (["weights", "verify", "loop.png"], 2),
    (["weights", "show", "loop.png"], 2),
    (["train", "--data", "loop.png"], 2),
    (["eval", "--run", "loop.png"], 2),
    (["predict", "images", "--run", "loop.png"], 2),
    (["data", "check", "loop.png"], 2),
    # a file in place of a folder, a folder in place of a file
    (["train", "--data", "file.txt"], 2),
    ([*TRAIN, "--run", "file.txt"], 2),
    (["eval", "--run", "file.txt"], 2),
    (["predict", "images", "--run", "file.txt"], 2),
    (["compare", "file.txt", "empty"], 2),
    (["data", "check", "file.txt"], 2),
    (["weights", "verify", "empty"], 2),
    (["weights", "show", "empty"], 2),
    (["weights", "convert", "empty", "a.safetensors"], 2),
    (["weights", "verify", "file.txt"], 3),
    (["weights", "show", "file.txt"], 3),
    # absurd numbers
    ([*TRAIN, "--epochs", "0"], 2),
    ([*TRAIN, "--steps", "-5"], 2),
    ([*TRAIN, "--lr", "nan"], 2),
    ([*TRAIN, "--size", "0"], 2),
    ([*TRAIN, "--size", "100000000"], 2),
    ([*TRAIN, "--batch-size", "1000000"], 2),
    ([*TRAIN, "--seed", "-1"], 2),
    (["eval", "--threshold", "7"], 2),
    (["eval", "--threshold", "high"], 2),
    (["eval", "--limit", "0"], 2),
    (["predict", "images", "--threshold", "7"], 2),
    (["predict", "images", "--tile", "0"], 2),
    (["predict", "images", "--shard", "3/2"], 2),
    (["data", "show", "--count", "0", "--out", "a.png"], 2),
    (["data", "show", "--size", "100000000", "--data", "synthetic", "--out", "a.png"], 2),
]


@pytest.mark.parametrize(
    ("arguments", "code"),
    CASES,
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_what_cannot_be_meant_is_answered_in_a_line_or_two(places, arguments, code):
    before = sorted(places.rglob("*"))
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == code, result.output
    said = result.stderr.strip().splitlines()
    message = [line for line in said if line and not line.startswith(("Usage:", "Try "))]
    assert 1 <= len(message) <= 2 and message[0].lower().startswith("error:"), result.stderr
    assert "Traceback" not in result.output
    assert sorted(places.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["data", "show", "--data", "synthetic", "--count", "2", "--size", "16", "--out", "a.png"],
        ["data", "cache"],
        ["data", "check", "pets"],
    ],
    ids=" ".join,
)
def test_a_closed_pipe_ends_a_command_quietly(places, arguments):
    for kind in ("images", "masks"):
        (places / "pets" / kind).mkdir(parents=True)
        for i in range(12):
            mask = np.zeros((8, 8), np.uint8)
            mask[2:5] = 255
            Image.fromarray(mask).save(places / "pets" / kind / f"{i}.png")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
