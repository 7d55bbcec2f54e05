"""Commands that are given pipes and bombs end soon, with one message and little memory."""

import os
import re
import socket
import subprocess
import sys

import pytest
from pictures import write_plain
from PIL import Image
from processes import ROOT, run

pytestmark = pytest.mark.faults


@pytest.fixture
def folder(tmp_path):
    return write_plain(tmp_path / "data", ["a", "b", "c", "d"])


# Of this program alone: what `getrusage` tells begins with the memory of who started it.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) >> 10 for line in status if line.startswith("VmHWM"))
"""
CHECKS = """
import sys
from eqxunet.cli import app
try:
    app(["data", "check", sys.argv[1]])
finally:
    print(f"peak {peak()} MB")
"""
READS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from eqxunet.data import decoding
from eqxunet.data.budget import Budget

def read(path):
    with decoding.decoding(path), decoding.opened(path, str(path)) as file:
        return decoding.read_resized(file, str(path), 8)

small, large = map(Path, sys.argv[1:])
decoding.pixel_budget = Budget(1)
read(small)
before = peak()
with ThreadPoolExecutor(6) as pool:
    list(pool.map(read, [large] * 6))
print(peak() - before)
"""


def program(code, *arguments):
    """Runs a program that can tell its peak of memory, in MB."""
    command = [sys.executable, "-c", PEAK + code, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_file_of_gigabytes_takes_no_memory(folder):
    os.truncate(folder / "images" / "a.png", 6 << 30)
    os.truncate(folder / "masks" / "b.png", 6 << 30)
    done = program(CHECKS, folder)
    assert done.returncode == 2
    assert int(re.search(r"peak (\d+) MB", done.stdout)[1]) < 500
    for name in ("images/a.png", "masks/b.png"):
        assert f"{name}: 6442 MB, more than 89 megapixels take" in done.stderr.replace("\n", "")


def test_the_memory_of_large_images_is_that_of_one(folder, tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGB", (6000, 4000)).save(large)  # 96 MB of Pillow's
    done = program(READS, folder / "images" / "a.png", large)
    assert done.returncode == 0, done.stderr
    assert 90 < int(done.stdout) < 250


def test_pipes_in_a_folder_are_no_images(folder, tmp_path):
    (folder / "images" / "a.png").unlink()
    os.mkfifo(folder / "images" / "a.png")
    code, output = run("data", "check", folder, cwd=tmp_path)
    assert code == 0 and "1 masks have no image" in output.replace("\n", " ")
    (folder / "train.txt").symlink_to("images/a.png")
    code, output = run("data", "check", folder, cwd=tmp_path)
    assert code == 2 and "leads out of" in output and "Traceback" not in output


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_weights_are_no_pipe(tmp_path, kind):
    path = tmp_path / "weights.pkl"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    code, output = run("weights", "verify", path, cwd=tmp_path)
    assert code == 2 and "is no file" in output and "Traceback" not in output
