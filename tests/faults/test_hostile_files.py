"""Commands that are given pipes and bombs end soon, with one message and little memory."""

import os
import socket
import subprocess
import sys

import pytest
from pictures import write_plain
from PIL import Image
from processes import ROOT, Command, run

pytestmark = pytest.mark.faults


@pytest.fixture
def folder(tmp_path):
    return write_plain(tmp_path / "data", ["a", "b", "c", "d"])


def peak(command: Command) -> int:
    """The most memory that a process has taken, in MB, once it has ended."""
    _, status, usage = os.wait4(command.process.pid, 0)
    command.process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_maxrss // 1024


def test_a_file_of_gigabytes_takes_no_memory(folder, tmp_path):
    os.truncate(folder / "images" / "a.png", 6 << 30)
    os.truncate(folder / "masks" / "b.png", 6 << 30)
    with Command("data", "check", folder, cwd=tmp_path) as command:
        assert peak(command) < 500
    assert command.process.returncode == 2
    for name in ("images/a.png", "masks/b.png"):
        assert f"{name}: 6442 MB, more than 89 megapixels take" in command.output.replace("\n", "")


READS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from eqxunet.data import decoding
from eqxunet.data.budget import Budget

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

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


def test_the_memory_of_large_images_is_that_of_one(folder, tmp_path):
    large = tmp_path / "large.png"
    Image.new("RGB", (6000, 4000)).save(large)  # 96 MB of Pillow's
    command = [sys.executable, "-c", READS, str(folder / "images" / "a.png"), str(large)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
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
