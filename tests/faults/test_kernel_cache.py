"""A library of native kernels that was cut off, which would kill who loads it."""

import os
import subprocess
import sys

import pytest
from processes import ROOT

from eqxunet.ops import kernels

pytestmark = pytest.mark.faults

CHECK = "from eqxunet.ops.kernels import is_native; print(is_native())"


def test_a_library_that_was_cut_off_is_made_anew(tmp_path):
    with kernels._compiled() as made:
        cache = tmp_path / "eqxunet" / "kernels"
        cache.mkdir(parents=True)
        library = cache / made.name
        library.write_bytes(made.read_bytes()[: made.stat().st_size // 2])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECK],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    assert kernels._kept(cache, library.stem.rpartition("-")[0]) == library
