"""Random damage to good files, each case of which ends in a clean load or a clean error.

`EQXUNET_FUZZ=20000 pytest tests/test_weights_fuzz.py tests/test_torch_fuzz.py` runs that many cases
of each kind with a new seed; without it a few hundred run with a fixed one.
"""

import os
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eqxunet.errors import IntegrityError

CASES = int(os.environ.get("EQXUNET_FUZZ", 0))
FUZZ = settings(
    max_examples=CASES or 300,
    derandomize=not CASES,
    database=None,
    deadline=2000,
    suppress_health_check=list(HealthCheck),
)

# Events by which Python tells that something was imported, called, opened or run.
EVENTS = (
    "import",
    "exec",
    "compile",
    "open",
    "os.",
    "subprocess.",
    "socket.",
    "pickle.",
    "ctypes.",
)
_watched: list[str] | None = None


def _watch(event: str, arguments: tuple) -> None:
    if _watched is not None and event.startswith(EVENTS):
        _watched.append(event)


sys.addaudithook(_watch)


def outcome(data: bytes, read: Callable[[bytes], Any], unpickle: Callable[[bytes], Any]) -> str:
    """Returns "loaded" or the kind of error, after checking what must hold in each case.

    Arguments:

    - `unpickle`: reads the same arrays by `pickle`, from a file that names only what is allowed.
    """
    global _watched
    _watched = []
    try:
        got = read(data)
    except IntegrityError as error:
        message = str(error)
        assert message.isprintable() and len(message) < 10_000, message
        return re.sub(r"\d+|'.*'|\b[a-zA-Z0-9_/]*/\w+", "#", message)[:120]
    finally:
        events, _watched = _watched, None
        assert not events, events
    if got is not None:
        want = unpickle(data)  # safe by now: the file names nothing but the allowed globals
        assert got.keys() == want.keys()
        for name, array in got.items():
            assert np.asarray(want[name]).tobytes() == array.tobytes(), name
    return "loaded"


NUMBERS = st.sampled_from([0, 1, 2, 3, 127, 128, 255, 256, 2**31 - 1, 2**31, 2**32 - 1, 2**63])


def fuzz(files: st.SearchStrategy[bytes], check: Callable[[bytes], str]) -> Counter:
    """Returns how often each outcome of `check` occurred."""
    outcomes = Counter()

    @FUZZ
    @given(files)
    def run(data):
        outcomes[check(data)] += 1

    run()
    print(f"{sum(outcomes.values())} cases, {len(outcomes)} outcomes: {outcomes.most_common(12)}")
    return outcomes


@st.composite
def damaged(draw, files: Sequence[bytes]) -> bytes:
    """One of the files with one to three damages."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from("flip byte number insert delete repeat move cut".split())):
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "byte" if data:
                data[at] = draw(st.integers(0, 255))
            case "number":
                width = draw(st.sampled_from([1, 4, 8]))
                data[at : at + width] = struct.pack("<Q", draw(NUMBERS))[:width]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "delete":
                del data[at : at + length]
            case "repeat":
                data[at:at] = data[at : at + length]
            case "move":
                piece = data[at : at + length]
                del data[at : at + length]
                to = draw(st.integers(0, len(data)))
                data[to:to] = piece
            case "cut":
                del data[at:]
    return bytes(data)
