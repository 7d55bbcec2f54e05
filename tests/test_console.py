"""What the terminal gets: texts as they are, nothing that acts on it, nothing once it is gone."""

import io
import os
import sys

import pytest

from eqxunet.cli.console import _Stream, console, say_error, show_warning, warn
from eqxunet.cli.signals import hung_up
from eqxunet.text import printable

RAW = "[red]a[/b]\x1b[2J\x1b]0;owned\x07\x9b1m\u202e\udcff"
SHOWN = r"[red]a[/b]\x1b[2J\x1b]0;owned\x07\x9b1m\u202e\xff"


def test_escapes_are_shown_for_what_acts_on_a_terminal():
    assert printable(RAW) == SHOWN
    assert printable("line\nend\r\ttab") == r"line\nend\r\ttab"
    plain = "Grüße 犬 \U0001f415 a\u00a0b \u0645\u06cc\u200c\u062e"  # of them one joins nothing
    assert printable(plain) == plain


def test_consoles_show_no_markup_and_no_control_characters(capsys):
    console.print(RAW.replace("\x07", ""), soft_wrap=True)
    say_error(RAW)
    warn([RAW])
    out, err = capsys.readouterr()
    assert out == SHOWN.replace(r"\x07", "") + "\n"
    assert err == f"error: {SHOWN}\nwarning: {SHOWN}\n"


def test_what_an_encoding_lacks_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    console.print("a–b 犬", soft_wrap=True)
    assert stream.buffer.getvalue() == b"a\\u2013b \\u72ac\n"


def test_a_closed_pipe_is_an_error_but_after_a_hangup(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        out = _Stream("stdout")
        out.write("lost")
        with pytest.raises(BrokenPipeError):
            out.flush()
        hung_up.set()
        try:
            out.flush()
            out.write("lost too")
            out.flush()
        finally:
            hung_up.clear()


def test_a_cache_that_cannot_be_written_is_told_of_once(capsys, monkeypatch):
    monkeypatch.setattr("eqxunet.cli.console._has_cache_warned", False)
    for name in ("a", "b"):
        text = f"Error writing persistent compilation cache entry for {name!r}: disk full"
        show_warning(UserWarning(text), UserWarning, "compiler.py", 1)
    show_warning("something else")
    assert capsys.readouterr().err.splitlines() == [
        "warning: Error writing persistent compilation cache entry for 'a': disk full",
        "warning: something else",
    ]
