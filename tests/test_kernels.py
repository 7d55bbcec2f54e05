"""Compiling the native kernels, and what happens where that cannot be done."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eqxunet.ops import kernels

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


COMPILES = 'for out; do :; done; echo "no library" > "$out"'
OTHER = 65534  # nobody's number


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_compiled_once_and_kept(tmp_path):
    times = []
    for _ in range(2):
        assert run(tmp_path).stdout.strip() == "True"
        (library,) = (tmp_path / "eqxunet" / "kernels").iterdir()
        times.append(library.stat().st_mtime_ns)
    assert times[0] == times[1]


def test_a_library_that_does_not_load_is_said(tmp_path):
    compiler = script(tmp_path / "compiler", COMPILES)
    done = run(tmp_path, CXX=str(compiler))
    assert done.stdout.strip() == "False" and "without native kernels" in done.stderr


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler of text, which says how often it was called."""
    calls = tmp_path / "calls"
    calls.write_text("")
    monkeypatch.setenv("CXX", str(script(tmp_path / "c++", f"echo >> {calls}\n{COMPILES}")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return lambda: len(calls.read_text())


def cut_off(library):
    os.truncate(library, 3)


def change(library):
    library.write_bytes(b"x" + library.read_bytes()[1:])


def empty(library):
    library.write_bytes(b"")


def open_to_others(library):
    library.chmod(0o777)


def give_away(library):
    os.chown(library, OTHER, OTHER)


def link(library):
    elsewhere = library.parents[2] / library.name
    library.rename(elsewhere)
    library.symlink_to(elsewhere)


def rename(library):
    library.rename(library.with_stem(f"{library.stem[:-32]}{'0' * 32}"))


def put_a_socket(library):
    library.unlink()
    os.mknod(library, stat.S_IFSOCK | 0o755)


def found():
    with kernels._compiled() as library:
        return library, library.read_text()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_off, change, empty, rename, open_to_others, link, put_a_socket),
        pytest.param(give_away, marks=needs_root),
    ],
)
def test_what_is_not_as_it_was_compiled_is_compiled_once_more(compiler, damage):
    before = found()
    damage(before[0])
    assert [found(), found()] == [before] * 2 and compiler() == 2
    assert [*before[0].parent.iterdir()] == [before[0]]
    assert stat.S_IMODE(before[0].lstat().st_mode) == 0o755


@needs_root
def test_a_folder_of_others_is_not_used(tmp_path, compiler):
    library, text = found()
    os.chown(library.parent, OTHER, OTHER)
    for calls in (2, 3):
        with pytest.warns(UserWarning, match="kernels belongs to another user, or others can"):
            other, copy = found()
        assert copy == text and compiler() == calls
        assert other.parent != library.parent and not other.parent.exists()
    assert [*library.parent.iterdir()] == [library]


def test_an_own_folder_that_is_open_is_closed(compiler):
    library, _ = found()
    library.parent.chmod(0o777)
    assert found()[0] == library and compiler() == 1
    assert stat.S_IMODE(library.parent.stat().st_mode) == 0o755


def test_a_compiler_that_hangs_is_ended_with_all_that_it_started(tmp_path, compiler, monkeypatch):
    pid = tmp_path / "pid"
    script(tmp_path / "c++", f"sleep 60 &\necho $! > {pid}.new\nmv {pid}.new {pid}\nwait")
    monkeypatch.setattr(kernels, "_PATIENCE", 0.5)
    with pytest.raises(subprocess.TimeoutExpired, match="timed out after 0.5 seconds"):
        found()
    child, end = Path(f"/proc/{pid.read_text().strip()}/status"), time.monotonic() + 20
    while child.exists() and "State:\tZ" not in child.read_text():
        assert time.monotonic() < end, "still running"
        time.sleep(0.01)
    assert not [*(tmp_path / "eqxunet" / "kernels").iterdir()]


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
