"""Checkpoints: bits come back, damage is found, the latest and the best stay."""

import concurrent.futures
import contextlib
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from eqxunet.errors import IntegrityError, UnavailableError
from eqxunet.training.checkpoint import BEST, Writer, restore


def arrays(step):
    rng = np.random.default_rng(step)
    return {
        "model.conv1.kernel": rng.standard_normal((3, 3, 64, 64)).astype(np.float32),
        "model.odd values": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "counts.step": np.array(step, np.int32),
    }


def write(directory, scores):
    with Writer(directory) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, arrays(step), None if score is None else {BEST: score})


def damage(directory, step):
    """Flips a bit in the middle of the largest file of a step."""
    files = [path for path in (directory / str(step) / "state").rglob("*") if path.is_file()]
    path = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_bits_come_back(tmp_path):
    write(tmp_path, {7: 0.5})
    restored = restore(tmp_path)
    assert restored.step == 7 and restored.metrics == {BEST: 0.5} and not restored.damaged
    for name, array in arrays(7).items():
        assert restored.arrays[name].dtype == array.dtype
        assert restored.arrays[name].tobytes() == array.tobytes(), name


def test_changing_an_array_after_the_call_does_not_change_the_checkpoint(tmp_path):
    mine = arrays(1)
    with Writer(tmp_path) as checkpoints:
        checkpoints.save(1, mine)
        mine["model.conv1.kernel"][:] = 0
    name = "model.conv1.kernel"
    np.testing.assert_array_equal(restore(tmp_path).arrays[name], arrays(1)[name])


def test_the_latest_three_and_the_best_are_kept(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.2, 7: None})
    kept = {int(path.name) for path in tmp_path.iterdir()}
    assert kept == {2, 5, 6, 7}
    assert restore(tmp_path, "best").step == 2
    assert restore(tmp_path).step == 7


def test_of_equals_the_first_is_the_best(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5, 5: 0.4, 6: 0.4, 7: 0.4})
    assert {int(path.name) for path in tmp_path.iterdir()} == {1, 5, 6, 7}
    assert restore(tmp_path, "best").step == 1


def test_an_empty_directory_has_none(tmp_path):
    assert restore(tmp_path) is None


@pytest.mark.parametrize("which", ["latest", "best"])
def test_a_flipped_bit_is_found_and_the_one_before_is_used(tmp_path, which):
    write(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
    damage(tmp_path, 3)
    restored = restore(tmp_path, which)
    assert restored.step == 2
    assert len(restored.damaged) == 1 and "step 3" in restored.damaged[0]
    assert restored.arrays["counts.step"] == 2


def test_only_damaged_ones_is_an_error(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.2})
    for step in (1, 2):
        damage(tmp_path, step)
    with pytest.raises(IntegrityError, match="every checkpoint is damaged"):
        restore(tmp_path)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path, monkeypatch):
    monkeypatch.setattr("eqxunet.training.checkpoint.SCHEMA", 2)
    write(tmp_path, {1: 0.1})
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="upgrade"):
        restore(tmp_path)


def test_a_torn_save_is_ignored_by_readers_and_cleaned_by_the_next_writer(tmp_path):
    write(tmp_path, {1: 0.1})
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "half").write_text("a")
    assert restore(tmp_path).step == 1
    assert (torn / "half").exists(), "it may be a save in progress"
    write(tmp_path, {3: 0.1})
    assert not torn.exists()


def test_what_was_not_validated_is_never_the_best(tmp_path):
    write(tmp_path, {1: None})
    assert restore(tmp_path, "best") is None
    assert restore(tmp_path, "latest").step == 1


def test_reading_makes_no_directory(tmp_path):
    assert restore(tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


WRITING = """
import sys
from pathlib import Path
from test_checkpoint import BEST, Writer, arrays

with Writer(Path(sys.argv[1])) as checkpoints:
    for step in range(1, 81):
        checkpoints.save(step, arrays(step), {BEST: step / 100})
"""


@pytest.mark.slow
def test_readers_beside_a_writer_disturb_neither(tmp_path):
    """The best step is always the latest here, so each save removes what a reader may hold."""
    command = [sys.executable, "-c", WRITING, str(tmp_path / "checkpoints")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    log = tmp_path / "log"
    steps = set()
    with (
        log.open("w") as stderr,
        subprocess.Popen(command, env=environment, stderr=stderr) as writer,
    ):
        while writer.poll() is None:
            for which in ("best", "latest"):
                restored = restore(tmp_path / "checkpoints", which)
                if restored is not None:
                    assert not restored.damaged
                    steps.add(restored.step)
    assert writer.returncode == 0, log.read_text()[-2000:]
    assert len(steps) > 2
    assert restore(tmp_path / "checkpoints", "best").step == 80


def test_saves_leave_no_thread_and_no_descriptor_behind(tmp_path):
    counts = []
    with Writer(tmp_path) as checkpoints:
        for step in range(1, 41):
            checkpoints.save(step, {"a": np.zeros(3, np.float32)})
            counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
    # They come and go, but 25 saves later there are no more of them.
    early, late = (np.max(counts[part], axis=0) for part in (slice(5, 15), slice(30, 40)))
    assert (late <= early + 5).all(), (early, late)


@contextlib.contextmanager
def files_of_at_most(size):
    """As a full disk would, lets writing fail with an error of the system.

    TensorStore may complain that Orbax has stopped waiting for its other writes.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_failed_is_told_of_once_at_the_next(tmp_path):
    with Writer(tmp_path) as checkpoints:
        checkpoints.save(1, arrays(1))
        checkpoints.wait()
        with files_of_at_most(20_000):
            checkpoints.save(2, arrays(2))
            with pytest.raises(UnavailableError, match="cannot be written.*free space"):
                checkpoints.wait()
        checkpoints.save(3, arrays(3))
    assert restore(tmp_path).step == 3
    assert not (tmp_path / "2").exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_last_save_that_failed_is_told_of_at_the_end(tmp_path):
    with (
        pytest.raises(UnavailableError, match="cannot be written"),
        Writer(tmp_path) as checkpoints,
        files_of_at_most(20_000),
    ):
        checkpoints.save(1, arrays(1))
        concurrent.futures.wait([checkpoints._pending])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_that_failed_does_not_hide_what_ended_the_training(tmp_path):
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path) as checkpoints:
        with files_of_at_most(20_000):
            checkpoints.save(1, arrays(1))
            concurrent.futures.wait([checkpoints._pending])
        raise KeyboardInterrupt
