"""A pack whose process is killed, or whose disk is full: no pack, and the same command makes it."""

import os

import pytest
from pictures import write_plain
from processes import Command

from eqxunet.data.pack import open_pack

pytestmark = pytest.mark.faults


@pytest.fixture
def plain(tmp_path):
    """A thousand pairs, whose packing takes a second or so."""
    root = write_plain(tmp_path / "plain", ["0000"])
    for name in ("images", "masks"):
        for number in range(1, 1000):
            os.link(root / name / "0000.png", root / name / f"{number:04}.png")
    return root


def test_a_killed_pack_leaves_nothing_that_reads_as_one(plain, tmp_path):
    command = Command("data", "pack", plain, "out", cwd=tmp_path)
    command.until((tmp_path / ".out.partial" / "shard-00000.array_record").exists)
    command.kill()
    assert not (tmp_path / "out").exists()
    check = Command("data", "check", ".out.partial", cwd=tmp_path)
    assert check.wait() == 2, check.output
    again = Command("data", "pack", plain, "out", cwd=tmp_path)
    assert again.wait() == 0, again.output
    assert not (tmp_path / ".out.partial").exists()
    pack = open_pack(tmp_path / "out")
    assert len(pack.manifest.names) == 1000
    assert pack.record(1998) == (plain / "images" / "0999.png").read_bytes()


def test_a_pack_that_has_no_room_says_so(plain, tmp_path):
    limit = ["bash", "-c", 'ulimit -f 100; exec "$@"', "limited"]  # blocks of 1 KiB
    command = Command("data", "pack", plain, "out", cwd=tmp_path, prefix=limit)
    assert command.wait() == 6, command.output
    assert "File too large" in command.output and "Traceback" not in command.output
    assert {path.name for path in tmp_path.iterdir()} == {"plain", command.log.name}
