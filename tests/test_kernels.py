"""Compiling the native kernels, and what happens where that cannot be done."""

import os
import subprocess
import sys

import pytest

CHECK = "from eqxunet.ops.kernels import is_native; print(is_native())"


def run(tmp_path, **environment):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | environment
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", CHECK],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_compiled_once_and_kept(tmp_path):
    times = []
    for _ in range(2):
        assert run(tmp_path).stdout.strip() == "True"
        (library,) = (tmp_path / "eqxunet" / "kernels").iterdir()
        times.append(library.stat().st_mtime_ns)
    assert times[0] == times[1]


def test_a_library_that_does_not_load_is_said(tmp_path):
    run(tmp_path)
    (library,) = (tmp_path / "eqxunet" / "kernels").iterdir()
    library.write_bytes(b"not a library")
    done = run(tmp_path)
    assert done.stdout.strip() == "False" and "without native kernels" in done.stderr


@pytest.mark.parametrize(
    ("environment", "reason"),
    [({"PATH": "/nonexistent"}, "no C++ compiler on the PATH"), ({"CXX": "false"}, "false")],
)
def test_without_a_compiler_it_warns_with_the_way_out(tmp_path, environment, reason):
    done = run(tmp_path, **environment)
    assert done.stdout.strip() == "False"
    assert reason in done.stderr and "EQXUNET_NATIVE=0" in done.stderr
    assert not list(tmp_path.glob("**/*.so"))


def test_switched_off_it_is_silent(tmp_path):
    done = run(tmp_path, EQXUNET_NATIVE="0", PATH="/nonexistent")
    assert done.stdout.strip() == "False" and not done.stderr
