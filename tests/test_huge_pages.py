"""The command line's second start, with an allocator that asks for huge pages."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from eqxunet.cli import start

ROOT = Path(__file__).parents[1]


@pytest.fixture
def restarts(monkeypatch):
    """What the program would be started over with."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "argv", ["cli.py", "train"])
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.delenv("EQXUNET_HUGE_PAGES", raising=False)
    return calls


def test_it_starts_over_with_the_same_arguments(restarts, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    start._use_huge_pages()
    ((program, arguments, environment),) = restarts
    assert program == sys.executable and arguments == [sys.executable, *sys.orig_argv[1:]]
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize(
    ("name", "value"),
    [("EQXUNET_HUGE_PAGES", "0"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")],
)
def test_it_does_not_where_told_otherwise(restarts, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    start._use_huge_pages()
    assert not restarts


def test_it_does_not_for_help_or_without_glibc(restarts, monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    start._use_huge_pages()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(sys, "argv", ["cli.py", "train", "--help"])
    start._use_huge_pages()
    assert not restarts


@pytest.mark.parametrize("value", ["0", "1"])
def test_exit_code_and_output_are_those_of_one_program(value):
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), "eval", "--run", "no/such/run"],
        env=os.environ | {"EQXUNET_HUGE_PAGES": value},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.count("no/such/run") == 1
