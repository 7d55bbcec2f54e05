"""What cannot be kept is said before any work."""

import os
from pathlib import Path

import pytest
from processes import SMALL, run

pytestmark = pytest.mark.faults
# As root, one may write wherever one likes, unless that is taken away.
PLAIN = (
    ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
    if os.geteuid() == 0
    else ()
)


@pytest.mark.parametrize(
    ("place", "left"), [("locked", []), ("locked", [".lock"]), ("locked/run", [])]
)
def test_a_place_that_cannot_be_written_is_said_before_images_are_decoded(tmp_path, place, left):
    """A run's folder, one that a run can be locked in, and the folder that it would be made in."""
    folder = tmp_path / "locked"
    folder.mkdir()
    for name in left:
        (folder / name).touch()
    folder.chmod(0o555)
    code, said = run("train", *SMALL, "--run", place, cwd=tmp_path, prefix=PLAIN)
    assert code == 6, said
    assert "cannot be written (Permission denied)" in said
    assert "Traceback" not in said
    assert not Path(os.environ["XDG_CACHE_HOME"], "eqxunet", "data").exists(), "images were decoded"
    assert os.listdir(folder) == left


def test_a_learning_rate_that_overflows_ends_with_its_code(tmp_path):
    options = [*SMALL, "--lr", "1e39", "--schedule", "constant", "--epochs", 2]
    code, said = run("train", *options, "--max-skipped", 4, "--run", "run", cwd=tmp_path)
    assert code == 4, said
    assert "4 steps in a row were not finite" in said and "Warning" not in said
