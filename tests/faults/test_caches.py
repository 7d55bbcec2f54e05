"""Caches of decoded images that other processes cut off, remove, or die over."""

import os
import signal
import subprocess
import sys

import pytest
from pictures import write_plain
from processes import ROOT

from eqxunet.data.cache import load_split

pytestmark = pytest.mark.faults

STEMS = [f"p{i}" for i in range(6)]
# Loads a split, does something to its files, and then touches all of its pixels.
USES = """
import os, shutil, signal, sys
from pathlib import Path
from eqxunet.data.cache import load_split
data, cache, what = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
def progress(done, total):
    if what == "dies" and done == 3:
        os.kill(os.getpid(), signal.SIGKILL)
split = load_split(data, "all", size=64, cache_dir=cache, progress=progress)
(folder,) = [path for path in cache.iterdir() if path.is_dir()]
if what == "is cut off":
    for path in folder.iterdir():
        os.truncate(path, 0)
elif what == "is removed":
    shutil.rmtree(folder)
print(split.images[::-1].sum() + split.labels[::-1].sum())
"""


@pytest.fixture
def folder(tmp_path):
    return write_plain(tmp_path / "data", STEMS)


def use(folder, what):
    command = [sys.executable, "-c", USES, str(folder), str(folder.parent / "cache"), what]
    return subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize("what", ["is cut off", "is removed"])
def test_a_small_cache_stays_whole_while_it_is_used(folder, tmp_path, what):
    before = load_split(str(folder), "all", size=64, cache_dir=tmp_path / "cache")
    done = use(folder, what)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == before.images.sum() + before.labels.sum()
    after = load_split(str(folder), "all", size=64, cache_dir=tmp_path / "cache")
    assert after.identity == before.identity


def test_a_cache_that_was_being_written_is_made_anew(folder, tmp_path):
    assert use(folder, "dies").returncode == -signal.SIGKILL
    (left,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert left.suffix == ".partial"
    assert load_split(str(folder), "all", size=64, cache_dir=tmp_path / "cache").names == (*STEMS,)
    assert not left.exists()
