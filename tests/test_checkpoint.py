"""Checkpoints: bits come back, damage is found, the latest and the best stay."""

import concurrent.futures
import contextlib
import errno
import gc
import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from eqxunet.errors import IntegrityError, UnavailableError
from eqxunet.training import checkpoint_files
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


def test_metrics_and_what_the_caller_adds_come_back(tmp_path):
    metrics = {BEST: 0.1 + 0.2, "val/loss": float("inf")}
    about = {"é": [1, 2.5, None, True, {"a": "\udc80"}], "seed": 2**64}
    with Writer(tmp_path) as checkpoints:
        checkpoints.save(1, arrays(1), metrics, about)
        checkpoints.save(2, arrays(2))
    first, second = restore(tmp_path, "best"), restore(tmp_path)
    assert (first.step, first.metrics, first.about) == (1, metrics, about)
    assert (second.step, second.metrics, second.about) == (2, {}, {})


def test_changing_what_was_given_after_the_call_does_not_change_the_checkpoint(tmp_path):
    mine, records = arrays(1), [1]
    with Writer(tmp_path) as checkpoints:
        checkpoints.save(1, mine, about={"records": records})
        mine["model.conv1.kernel"][:] = 0
        records.append(2)
    name, restored = "model.conv1.kernel", restore(tmp_path)
    np.testing.assert_array_equal(restored.arrays[name], arrays(1)[name])
    assert restored.about == {"records": [1]}


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


def rewrite(directory, step, change, *, is_sealed=False):
    """Changes the note of a step, with or without the digest that belongs to it."""
    path = directory / str(step) / "note.json"
    note = json.loads(path.read_text())
    change(note)
    if is_sealed:
        del note["sha256"]
        note["sha256"] = checkpoint_files._seal(note)
    path.write_text(json.dumps(note))


def files_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("newer", [1, 2])
def test_a_newer_schema_beside_another_step_stops_readers_and_writers(tmp_path, newer):
    write(tmp_path, {1: 0.1, 2: 0.2})
    rewrite(tmp_path, newer, lambda note: note.update(schema=3), is_sealed=True)
    (tmp_path / ".3.partial").mkdir()
    before = files_of(tmp_path)
    for which in ("latest", "best"):
        with pytest.raises(IntegrityError, match=f"{newer}: .*upgrade"):
            restore(tmp_path, which)
    with pytest.raises(IntegrityError, match="upgrade"):
        Writer(tmp_path)
    assert files_of(tmp_path) == before and (tmp_path / ".3.partial").exists()


def test_a_damaged_schema_is_no_newer_one(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.2})
    rewrite(tmp_path, 2, lambda note: note.update(schema=3))
    assert restore(tmp_path).step == 1


def test_the_best_is_chosen_by_verified_metrics(tmp_path):
    write(tmp_path, {1: 0.5, 2: 0.4, 3: 0.3})
    rewrite(tmp_path, 2, lambda note: note["metrics"].update({BEST: 0.9}))
    restored = restore(tmp_path, "best")
    assert restored.step == 1 and "step 2" in restored.damaged[0]
    write(tmp_path, {4: 0.2, 5: 0.2, 6: 0.2})
    assert {int(path.name) for path in tmp_path.iterdir()} == {1, 4, 5, 6}


def test_a_step_that_was_renamed_is_damaged(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.2})
    (tmp_path / "2").rename(tmp_path / "3")
    restored = restore(tmp_path)
    assert restored.step == 1 and "it is step 2" in restored.damaged[0]


def test_damage_is_told_of_by_nobody_else(tmp_path, caplog):
    """Of many arrays that cannot be read, asyncio would log all but the first."""
    with Writer(tmp_path) as checkpoints:
        checkpoints.save(1, {f"a{i}": np.zeros(3, np.float32) for i in range(20)})
    (tmp_path / "1" / "state" / "manifest.ocdbt").write_bytes(b"garbage")
    for _ in range(10):
        with pytest.raises(IntegrityError):
            restore(tmp_path)
    gc.collect()
    assert caplog.records == []


def test_a_step_without_its_note_is_damaged(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.2})
    (tmp_path / "2" / "note.json").unlink()
    restored = restore(tmp_path)
    assert restored.step == 1 and "step 2 cannot be read: no note.json" in restored.damaged[0]


def test_only_what_is_after_the_latest_was_passed_over(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.2})
    rewrite(tmp_path, 1, lambda note: note.clear())
    assert restore(tmp_path).damaged == []
    assert "step 1" in restore(tmp_path, "best").damaged[0]


@pytest.mark.parametrize("kind", [np.float64, np.float16, np.uint32])
def test_another_type_than_was_saved_is_damage(tmp_path, kind):
    """Orbax would cast it to the type of a template."""
    mine = {"a": np.arange(4, dtype=np.float32)}
    with Writer(tmp_path) as checkpoints:
        checkpoints.save(1, mine)
    note = (tmp_path / "1" / "note.json").read_text()
    ocp.save(str(tmp_path / "1"), {"a": mine["a"].astype(kind)}, overwrite=True)
    (tmp_path / "1" / "note.json").write_text(note)
    with pytest.raises(IntegrityError, match="not what was saved: a"):
        restore(tmp_path)


def save_as_schema_1(directory, scores):
    with ocp.training.Checkpointer(str(directory)) as checkpointer:
        for step, score in scores.items():
            digests = {name: checkpoint_files._digest(a) for name, a in arrays(step).items()}
            checkpointer.save(
                step,
                arrays(step),
                metrics=score and {BEST: score, "step": step},
                custom_metadata={"schema": 1, "sha256": digests},
            )


def test_checkpoints_of_the_first_schema_stay_readable(tmp_path):
    save_as_schema_1(tmp_path, {1: 0.4, 2: 0.1, 3: None})
    best, latest = restore(tmp_path, "best"), restore(tmp_path)
    assert (best.step, best.metrics, best.about) == (1, {BEST: 0.4}, {})
    assert (latest.step, latest.metrics) == (3, {})
    assert latest.arrays["model.conv1.kernel"].tobytes() == (
        arrays(3)["model.conv1.kernel"].tobytes()
    )
    write(tmp_path, {4: 0.1, 5: 0.1, 6: 0.1})
    assert {int(path.name) for path in tmp_path.iterdir()} == {1, 4, 5, 6}


@pytest.mark.parametrize("content", [b"", b"{", b'{"val/iou": "a"}', b"[]", b"\xff", None])
def test_damaged_metrics_of_the_first_schema_cost_their_step(tmp_path, content):
    save_as_schema_1(tmp_path, {1: 0.1, 2: 0.2})
    path = tmp_path / "2" / "metrics" / "metrics"
    path.write_bytes(content) if content is not None else path.unlink()
    for which in ("latest", "best"):
        restored = restore(tmp_path, which)
        assert restored.step == 1 and "step 2" in restored.damaged[0]
    write(tmp_path, {3: 0.1})


def test_what_was_passed_over_is_written_anew(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.2, 3: 0.9, 4: 0.4})
    damage(tmp_path, 4)
    damage(tmp_path, 3)
    assert restore(tmp_path).step == 2
    write(tmp_path, {3: 0.3})
    assert {int(path.name) for path in tmp_path.iterdir()} == {2, 3}
    restored = restore(tmp_path, "best")
    assert restored.step == 3 and restored.metrics == {BEST: 0.3} and not restored.damaged


def test_a_file_in_place_of_a_step_costs_that_step(tmp_path):
    write(tmp_path, {1: 0.1})
    (tmp_path / "2").write_text("a")
    (tmp_path / "02").write_text("no step")
    restored = restore(tmp_path)
    assert restored.step == 1 and "step 2" in restored.damaged[0]
    write(tmp_path, {2: 0.2})
    assert restore(tmp_path).step == 2 and (tmp_path / "02").exists()


def test_a_file_in_place_of_the_directory_is_told_of(tmp_path):
    (tmp_path / "checkpoints").write_text("a")
    with pytest.raises(UnavailableError, match="checkpoints: cannot be read"):
        restore(tmp_path / "checkpoints")
    with pytest.raises(UnavailableError, match="checkpoints: .* cannot be written"):
        Writer(tmp_path / "checkpoints")


def test_all_of_a_step_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def note_and_sync(descriptor):
        steps = [path.name for path in tmp_path.iterdir() if path.name.isdigit()]
        synced.append((Path(os.readlink(f"/proc/self/fd/{descriptor}")), steps))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note_and_sync)
    write(tmp_path, {1: 0.1})
    every = {path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*")}
    unfinished = tmp_path / ".1.partial"
    before = {path for path, steps in synced if steps == []}
    assert {unfinished / path for path in every} | {unfinished} == before
    assert synced[-1] == (tmp_path, ["1"])


def test_a_torn_save_is_ignored_by_readers_and_cleaned_by_the_next_writer(tmp_path):
    write(tmp_path, {1: 0.1})
    torn = [
        tmp_path / name
        for name in (
            *("2.orbax-checkpoint-tmp", ".2.partial.orbax-checkpoint-tmp"),
            *(".2.partial", ".1.removed.partial"),
        )
    ]
    for path in torn:
        path.mkdir()
        (path / "half").write_text("a")
    assert restore(tmp_path).step == 1
    assert all((path / "half").exists() for path in torn), "it may be a save in progress"
    write(tmp_path, {3: 0.1})
    assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}


def test_what_a_failed_save_left_does_not_stop_the_next(tmp_path):
    with Writer(tmp_path) as checkpoints:
        for name in (".1.partial", ".1.partial.orbax-checkpoint-tmp"):
            (tmp_path / name).mkdir()
        checkpoints.save(1, arrays(1))
    assert restore(tmp_path).step == 1 and len(list(tmp_path.iterdir())) == 1


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
    # They come and go, but 25 saves later there are no more of them that stay.
    early, late = (np.min(counts[part], axis=0) for part in (slice(5, 15), slice(30, 40)))
    assert (late <= early + 3).all(), (early, late)


@contextlib.contextmanager
def files_of_at_most(size):
    """As a full disk would, lets writing fail with an error of the system."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


def test_a_last_save_that_failed_is_told_of_at_the_end(tmp_path):
    with (
        pytest.raises(UnavailableError, match="cannot be written"),
        Writer(tmp_path) as checkpoints,
        files_of_at_most(20_000),
    ):
        checkpoints.save(1, arrays(1))
        concurrent.futures.wait([checkpoints._pending])


def test_a_save_that_failed_does_not_hide_what_ended_the_training(tmp_path):
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path) as checkpoints:
        with files_of_at_most(20_000):
            checkpoints.save(1, arrays(1))
            concurrent.futures.wait([checkpoints._pending])
        raise KeyboardInterrupt


def test_a_disk_that_loses_what_is_written_is_told_of(tmp_path, monkeypatch):
    def lose(_):
        raise OSError(5, "lost")

    write(tmp_path, {1: 0.1})
    with Writer(tmp_path) as checkpoints:
        with monkeypatch.context() as failing:
            failing.setattr(os, "fsync", lose)
            checkpoints.save(2, arrays(2))
            with pytest.raises(UnavailableError, match="cannot be written .*lost"):
                checkpoints.wait()
        assert {path.name for path in tmp_path.iterdir()} == {"1"}
        checkpoints.save(3, arrays(3))
    assert restore(tmp_path).step == 3


def test_a_directory_that_is_gone_is_told_of_and_nobody_waits_for_it(tmp_path):
    folder, before = tmp_path / "checkpoints", set(threading.enumerate())
    with Writer(folder) as checkpoints:
        folder.rmdir()
        folder.write_text("a file")
        checkpoints.save(1, arrays(1))
        with pytest.raises(UnavailableError, match="cannot be written"):
            checkpoints.wait()
    gc.collect()  # idle threads of an event loop end with it
    for thread in set(threading.enumerate()) - before:
        if not isinstance(thread, threading._DummyThread):  # of TensorStore, which cannot be joined
            thread.join(20)
            assert not thread.is_alive(), thread


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    def fail(_):
        raise MemoryError

    write(tmp_path, {1: 0.1})
    monkeypatch.setattr(checkpoint_files, "_digest", fail)
    with pytest.raises(MemoryError):
        restore(tmp_path)
    with pytest.raises(MemoryError), Writer(tmp_path) as checkpoints:
        checkpoints.save(2, arrays(2))


def test_a_best_checkpoint_whose_arrays_are_damaged_does_not_push_out_the_next(tmp_path):
    write(tmp_path, {1: 0.8, 2: 0.9})
    damage(tmp_path, 2)
    write(tmp_path, {3: 0.1, 4: 0.2, 5: 0.3, 6: 0.4})
    assert restore(tmp_path, "best").step == 1


def test_what_may_be_read_another_time_is_not_taken_for_damage(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    write(tmp_path, {1: 0.1})
    monkeypatch.setattr(checkpoint_files.Path, "read_bytes", fail)
    with pytest.raises(UnavailableError, match="cannot be read .Too many open files"):
        restore(tmp_path)
    with pytest.raises(UnavailableError, match="cannot be read .Too many open files"):
        Writer(tmp_path)
