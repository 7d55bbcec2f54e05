"""Signals are answered while Python's own handlers have to wait."""

import os
import signal
import subprocess
import sys
import time

import pytest

from eqxunet.cli import start as start_of_the_program
from eqxunet.cli.signals import SIGNALS, STOPPING, Listener, Stopped, hung_up, listening

# Hashing holds the main thread for seconds in one call, as a step or the compiler does.
BUSY = """
import hashlib, time
from eqxunet.cli.signals import Listener

listener = Listener()
def work():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 20_000_000)
    print("done", flush=True)
"""
COLLECTED = """
with listener.collected({acknowledge}):
    work()
"""
SAY = "lambda received: print(received.name, flush=True)"


@pytest.fixture(autouse=True)
def not_hung_up():
    yield
    hung_up.clear()


def start(end, **options):
    command = [sys.executable, "-c", BUSY + end]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", STOPPING)
def test_the_first_is_acknowledged_at_once_and_the_second_quits(number):
    with start(COLLECTED.format(acknowledge=SAY)) as process:
        process.send_signal(number)
        assert process.stdout.readline() == f"{number.name}\n"
        process.send_signal(signal.SIGHUP)  # once more, of a shell whose terminal was closed
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        assert process.stdout.read() == "", "the busy call was waited for"
        assert process.stderr.read() == "SIGTERM: quit at once\n"


@pytest.mark.parametrize("acknowledge", ["lambda _: time.sleep(99)", "lambda _: 1 / 0"])
def test_the_second_quits_whatever_the_acknowledgement_does(acknowledge):
    with start(COLLECTED.format(acknowledge=acknowledge)) as process:
        for _ in range(100):
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(0.1) == 130
                break
            except subprocess.TimeoutExpired:
                continue
        assert process.stdout.read() == ""


@pytest.mark.parametrize("number", STOPPING)
def test_what_is_not_collected_ends_the_process_with_a_line(number):
    with start("work()") as process:
        process.send_signal(signal.SIGUSR1)
        assert process.stderr.readline() == "SIGUSR1: there is nothing to save now\n"
        process.send_signal(number)
        assert process.wait() == 128 + number
        assert process.stdout.read() == "", "the busy call was waited for"
        assert process.stderr.read() == (
            f"stopped by {number.name}; nothing was saved, and the same command starts anew\n"
        )


def test_nobody_who_reads_slowly_keeps_it_from_ending():
    """A pipe that is full, as of a pager that waits."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(writer, "wb", buffering=0) as full:
        while full.write(b"x" * 4096):
            pass
        os.set_blocking(writer, True)
        command = [sys.executable, "-c", BUSY + "work()"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=full) as process:
            assert process.stdout.readline() == b"ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 143
    os.close(reader)


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_from_the_start_stays_so(ignored):
    """As nohup ignores a hangup, and a script's shell an interrupt of what it starts with `&`."""
    ignoring = ["sh", "-c", f'trap "" {ignored.value}; exec "$@"', "sh"]
    command = [*ignoring, sys.executable, "-c", BUSY + "work()"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(ignored)
        process.send_signal(signal.SIGUSR1)
        assert "SIGUSR1" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143


def wait_for(told, *signals):
    end = time.monotonic() + 60
    while told != list(signals):
        assert time.monotonic() < end, told


def test_a_loop_is_told_once_to_save_and_then_to_stop():
    before = [signal.getsignal(number) for number in SIGNALS]
    told = []
    with listening() as listener, listener.collected(told.append) as take:
        assert take() == "go on"
        signal.raise_signal(signal.SIGUSR1)
        wait_for(told, signal.SIGUSR1)
        assert [take(), take()] == ["save", "go on"]
        signal.raise_signal(signal.SIGHUP)
        wait_for(told, signal.SIGUSR1, signal.SIGHUP)
        assert [take(), take()] == ["stop", "stop"] and listener.stop == signal.SIGHUP
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_that_comes_after_the_last_step_ends_what_follows():
    told = []
    listener = Listener()
    try:
        with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
            with listener.collected(told.append):
                signal.raise_signal(signal.SIGTERM)
                wait_for(told, signal.SIGTERM)
    finally:
        listener.close()
    assert caught.value.exit_code == 143


def test_signals_wait_until_they_are_listened_to(monkeypatch):
    """While the program starts over, too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    masks = []

    def start_over():
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        sys.exit()

    monkeypatch.setattr(start_of_the_program, "_use_huge_pages", start_over)
    try:
        with pytest.raises(SystemExit):
            start_of_the_program.main()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert set(SIGNALS) <= masks[0]
