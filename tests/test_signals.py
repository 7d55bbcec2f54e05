"""Ctrl-C and SIGTERM are answered while Python's own handlers have to wait."""

import signal
import subprocess
import sys

import pytest

from eqxunet.cli.signals import stop_signals

# Hashing holds the main thread for seconds in one call, as a step or the compiler does.
BUSY = """
import hashlib, time
from eqxunet.cli.signals import stop_signals

with stop_signals({acknowledge}) as received:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 20_000_000)
    print([number.name for number in received], flush=True)
"""
SAY = "lambda received: print(received.name, flush=True)"


def start(acknowledge=SAY):
    command = [sys.executable, "-c", BUSY.format(acknowledge=acknowledge)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_acknowledged_at_once_and_the_second_quits(number):
    with start() as process:
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stdout.read() == "", "the busy call was waited for"


@pytest.mark.parametrize("acknowledge", ["lambda _: time.sleep(99)", "lambda _: 1 / 0"])
def test_the_second_quits_whatever_the_acknowledgement_does(acknowledge):
    with start(acknowledge) as process:
        for _ in range(100):
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(0.1) == 130
                break
            except subprocess.TimeoutExpired:
                continue
        assert process.stdout.read() == ""


def test_the_first_is_collected_and_handlers_come_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    told = []
    with stop_signals(told.append) as received:
        assert received == []
        signal.raise_signal(signal.SIGTERM)
        while not told:
            pass
        assert received == told == [signal.SIGTERM]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1
