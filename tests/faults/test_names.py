"""Names of any bytes, of files, folders, classes, arrays: shown plainly, and kept as they are."""

import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import ROOT
from safetensors.numpy import save_file
from typer.testing import CliRunner

from eqxunet.cli import app
from eqxunet.text import printable, printable_lines

pytestmark = pytest.mark.faults

STEMS = [
    "[red]x",
    "[bold",
    "a$x^$b",
    r"$\frac$",
    "\x1b]0;owned\x07",
    "\x1b[2Jgone",
    "two\nlines",
    "back\rhere",
    "\u202egnp.x",
    os.fsdecode(b"\xff\xfe"),
    "l" * 210,
    "Grüße 犬 \U0001f415 and spaces ",
]
CLASSES = ["[/red]", r"$\frac$", "\x1b]0;owned\x07"]
RUN = "runs/[/a]\x1b[2J$x^$"
DATA = "pets $^ [b]\x1b[2J"


def invoke(*arguments):
    """Exit code and output of a command, which has no character that acts on a terminal."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert isinstance(result.exception, SystemExit | None), result.exception
    assert "Traceback" not in result.output
    assert printable_lines(result.output) == result.output
    return result.exit_code, result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory, new_cache):
    """A folder with such names, in which a run was trained on such images and classes."""
    cwd = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (cwd / DATA / folder).mkdir(parents=True)
    for stem in STEMS:
        image = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(image).save(cwd / DATA / "images" / f"{stem}.png")
        Image.fromarray(image[..., 0] // 86).save(cwd / DATA / "masks" / f"{stem}.png")
    (cwd / DATA / "classes.txt").write_text("\n".join(CLASSES))
    save_file({"a\x1b[2J[/b]": np.ones(3, np.float32)}, cwd / "arrays.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(new_cache()))
        patch.chdir(cwd)
        code, output = invoke(
            *("train", "--data", DATA, "--task", "semantic", "--encoder", "scratch"),
            *("--size", "16", "--channels", "4,8", "--batch-size", "4", "--epochs", "1"),
            *("--run", RUN),
        )
        assert code == 0, output
        shutil.copytree(RUN, "other")
        yield cwd


def test_names_of_a_training(trained):
    directory = Path(RUN)
    for name in ("curves.png", "predictions.png", "progress.png"):
        with Image.open(directory / name) as image:
            image.load()
    assert json.loads((directory / "config.json").read_text())["classes"] == CLASSES


def test_names_of_scores(trained):
    code, output = invoke("eval", "--run", RUN, "--split", "all", "--out", "scores\x1b[2J")
    assert code == 0, output
    assert r"\x1b]0;owned\x07" in output and "[/red]" in output and r"pets $^ [b]\x1b[2J" in output
    table = Path("scores\x1b[2J/per_image.csv").read_bytes().decode(errors="surrogateescape")
    assert [row["name"] for row in csv.DictReader(io.StringIO(table, newline=""))] == sorted(STEMS)
    page = Path("scores\x1b[2J/report.html").read_text(encoding="utf-8")
    assert json.dumps(STEMS[4]) in page and '<th scope="row">[/red]</th>' in page


def test_names_of_a_comparison(trained):
    out = Path("compared $x^$\x1b[2J")
    code, output = invoke("compare", RUN, "other", "--split", "all", "--out", str(out))
    assert code == 0 and r"difference from a]\x1b[2J$x^$, paired" in output, output
    table = (out / "comparison.csv").read_bytes().decode(errors="surrogateescape")
    head, *rows = csv.reader(io.StringIO(table, newline=""))
    assert head[1] == Path(RUN).name and len(rows) == len(STEMS)
    assert json.loads((out / "comparison.json").read_text())["classes"] == CLASSES


def test_names_of_predictions(trained):
    bad = Path(DATA) / "images" / "bad\x1b[2J.png"
    bad.write_bytes(b"no image")
    code, output = invoke("predict", f"{DATA}/images", "--run", RUN, "--out", "masks\r")
    bad.unlink()
    assert code == 2 and r"bad\x1b[2J.png: cannot be read" in output, output
    assert sorted(os.listdir("masks\r")) == sorted(f"{stem}.png" for stem in STEMS)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["data", "check", DATA, "--task", "semantic"], 0),
        (["data", "show", "--data", DATA, "--task", "semantic", "--out", "[red]x\x1b[2J.png"], 0),
        (["data", "cache"], 0),
        (["weights", "show", "arrays.safetensors"], 0),
        (["weights", "verify", "[/a]\x1b[2J.pkl"], 2),
        (["train", "--data", "[/a]\x1b[2J"], 2),
        (["train", "--encoder", "[/a]\x1b[2J"], 2),
        (["train", "--\x1b[2J"], 2),
        (["eval", "--run", "[/a]\x1b[2J"], 2),
        (["predict", "[/a]\x1b[2J", "--run", RUN], 2),
        (["compare", "[/a]\x1b[2J", "[/b]\x1b[2J"], 2),
        (["\x1b[2J"], 2),
    ],
    ids=lambda value: " ".join(map(printable, value[:2])) if isinstance(value, list) else None,
)
def test_names_in_what_is_said(trained, arguments, code):
    got, output = invoke(*arguments)
    assert got == code, output
    if arguments[:2] not in (["data", "check"], ["data", "cache"]):
        assert r"\x1b" in output


def test_names_in_bars(trained):
    """Which only a terminal shows."""
    master, terminal = pty.openpty()
    arguments = ["predict", f"{DATA}/images", "--run", RUN, "--out", "new", "--tile", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "eqxunet", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "TERM": "xterm"},
        stdin=terminal, stdout=terminal, stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while part := os.read(master, 65536):
            shown += part
    except OSError:  # the other end is closed
        os.close(master)
    assert process.wait() == 0, shown
    assert b"\x1b]0;owned" not in shown and b"\x1b[2J" not in shown and b"rows" in shown
    assert len(os.listdir("new")) == len(STEMS)
