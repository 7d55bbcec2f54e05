"""Checkpoints: bits come back, damage is found, the latest and the best stay."""

import numpy as np
import pytest

from eqxunet.checkpoint import BEST, open_checkpoints, restore, save
from eqxunet.errors import IntegrityError


def arrays(step):
    rng = np.random.default_rng(step)
    return {
        "model.conv1.kernel": rng.standard_normal((3, 3, 64, 64)).astype(np.float32),
        "model.odd values": np.array([np.nan, -0.0, np.inf, 1e-45], np.float32),
        "counts.step": np.array(step, np.int32),
    }


def write(directory, scores):
    with open_checkpoints(directory) as checkpoints:
        for step, score in scores.items():
            save(checkpoints, step, arrays(step), None if score is None else {BEST: score})


def read(directory, which="latest"):
    with open_checkpoints(directory) as checkpoints:
        return restore(checkpoints, which)


def damage(directory, step):
    """Flips a bit in the middle of the largest file of a step."""
    files = [path for path in (directory / str(step) / "state").rglob("*") if path.is_file()]
    path = max(files, key=lambda file: file.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_bits_come_back(tmp_path):
    write(tmp_path, {7: 0.5})
    restored = read(tmp_path)
    assert restored.step == 7 and restored.metrics == {BEST: 0.5} and not restored.damaged
    for name, array in arrays(7).items():
        assert restored.arrays[name].dtype == array.dtype
        assert restored.arrays[name].tobytes() == array.tobytes(), name


def test_changing_an_array_after_the_call_does_not_change_the_checkpoint(tmp_path):
    mine = arrays(1)
    with open_checkpoints(tmp_path) as checkpoints:
        save(checkpoints, 1, mine)
        mine["model.conv1.kernel"][:] = 0
    name = "model.conv1.kernel"
    np.testing.assert_array_equal(read(tmp_path).arrays[name], arrays(1)[name])


def test_the_latest_three_and_the_best_are_kept(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.9, 3: 0.3, 4: 0.4, 5: 0.5, 6: 0.2, 7: None})
    kept = {int(path.name) for path in tmp_path.iterdir()}
    assert kept == {2, 5, 6, 7}
    assert read(tmp_path, "best").step == 2
    assert read(tmp_path).step == 7


def test_an_empty_directory_has_none(tmp_path):
    assert read(tmp_path) is None


@pytest.mark.parametrize("which", ["latest", "best"])
def test_a_flipped_bit_is_found_and_the_one_before_is_used(tmp_path, which):
    write(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
    damage(tmp_path, 3)
    restored = read(tmp_path, which)
    assert restored.step == 2
    assert len(restored.damaged) == 1 and "step 3" in restored.damaged[0]
    assert restored.arrays["counts.step"] == 2


def test_only_damaged_ones_is_an_error(tmp_path):
    write(tmp_path, {1: 0.1, 2: 0.2})
    for step in (1, 2):
        damage(tmp_path, step)
    with pytest.raises(IntegrityError, match="every checkpoint is damaged"):
        read(tmp_path)


def test_a_newer_schema_asks_for_an_upgrade(tmp_path, monkeypatch):
    monkeypatch.setattr("eqxunet.checkpoint.SCHEMA", 2)
    write(tmp_path, {1: 0.1})
    monkeypatch.undo()
    with pytest.raises(IntegrityError, match="upgrade"):
        read(tmp_path)


def test_a_torn_save_is_ignored_and_cleaned(tmp_path):
    write(tmp_path, {1: 0.1})
    torn = tmp_path / "2.orbax-checkpoint-tmp"
    torn.mkdir()
    (torn / "half").write_text("a")
    assert read(tmp_path).step == 1
    assert not torn.exists()
