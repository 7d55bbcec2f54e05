"""A library of native kernels that was cut off, which would kill who loads it."""

import os
import subprocess
import sys

import pytest
from processes import ROOT

from eqxunet.ops import kernels

pytestmark = pytest.mark.faults

CHECK = "from eqxunet.ops.kernels import is_native; print(is_native())"


def test_a_library_that_was_cut_off_is_made_anew(tmp_path, monkeypatch):
    with kernels._compiled() as compiled:
        compiler = tmp_path / "c++"  # of one library, which saves the time for another
        compiler.write_text(f'#!/bin/sh\nfor out; do :; done\ncp {compiled} "$out"\n')
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with kernels._compiled() as library:
        size = library.stat().st_size
    os.truncate(library, size // 2)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", CHECK],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "True"), done.stderr
    assert library.stat().st_size == size
