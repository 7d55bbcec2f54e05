"""Files of a checkpoint that are flipped, cut, emptied, deleted or replaced cost that step alone.

`python tests/faults/test_checkpoint_damage.py 913 0` counts what becomes of so many
mutations, drawn by a seed.
"""

import collections
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from eqxunet.training.checkpoint import BEST, Writer, restore

pytestmark = pytest.mark.faults
SAMPLE = 40


def arrays(step):
    rng = np.random.default_rng(step)
    return {
        "model.conv1.kernel": rng.standard_normal((3, 3, 16, 16)).astype(np.float32),
        "model.norm1.scale": rng.standard_normal(16).astype(np.float32),
        "counts.step": np.array(step, np.int32),
    }


def about(step):
    return {"records": [{"epoch": step, "val/loss": None}], "seeds": [step, 2**63]}


def write(directory, steps):
    with Writer(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, arrays(step), {BEST: step / 10}, about(step))


def is_step(restored, step):
    """Whether what was restored is, bit for bit, what was saved."""
    expected = arrays(step)
    return (
        restored.step == step
        and restored.metrics == {BEST: step / 10}
        and restored.about == about(step)
        and restored.arrays.keys() == expected.keys()
        and all(
            (found := restored.arrays[name]).dtype == array.dtype
            and found.shape == array.shape
            and found.tobytes() == array.tobytes()
            for name, array in expected.items()
        )
    )


def mutations(data, rng, flips):
    """Names of ways to damage a file, and what is then in it; None is no file."""
    for offset in sorted({0, *rng.integers(0, len(data), flips)} if data else ()):
        for bit in rng.choice(8, 2, replace=False):
            flipped = bytearray(data)
            flipped[offset] ^= 1 << int(bit)
            yield f"bit {bit} of byte {offset}", bytes(flipped)
    for size in sorted({0, 1, len(data) // 2, len(data) - 1} - {len(data)}):
        if 0 <= size < len(data):
            yield f"cut to {size}", data[:size]
    yield "garbage", rng.bytes(max(len(data), 8))
    yield "zeros", bytes(len(data))
    yield "more", data + b"\0"
    yield "deleted", None
    yield "a folder", {}


def damage(path, content):
    path.unlink()
    if isinstance(content, dict):
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)


def all_mutations(folder, rng, flips):
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        for name, content in mutations(path.read_bytes(), rng, flips):
            yield path, name, content


def outcome(directory, which="latest"):
    """What becomes of a directory with steps 1 and 2, of which the second is damaged."""
    restored = restore(directory, which)
    if is_step(restored, 2) and not restored.damaged:
        return "read equal"
    if is_step(restored, 1) and len(restored.damaged) == 1 and "step 2" in restored.damaged[0]:
        return "fell back"
    return f"wrong: {restored.step}, {restored.damaged}"


def sweep(directory, count, seed=0):
    """What becomes of so many mutations of step 2, beside an intact step 1."""
    rng = np.random.default_rng(seed)
    write(directory, [1, 2])
    flips = 3
    while len(every := list(all_mutations(directory / "2", rng, flips))) < count:
        flips *= 2
    chosen = [every[i] for i in sorted(rng.choice(len(every), count, replace=False))]
    outcomes = []
    for number, (path, name, content) in enumerate(chosen):
        intact = path.read_bytes()
        damage(path, content)
        try:
            found = outcome(directory, ("latest", "best")[number % 2])
        except Exception as error:
            found = f"uncaught: {type(error).__name__}: {error}"
        outcomes.append((str(path.relative_to(directory)), name, found))
        if path.is_dir():
            path.rmdir()
        path.write_bytes(intact)
    assert outcome(directory) == "read equal"
    return outcomes


def test_a_mutation_of_any_file_costs_that_step_at_most(tmp_path):
    outcomes = sweep(tmp_path / "checkpoints", SAMPLE)
    assert [o for o in outcomes if o[2] not in ("read equal", "fell back")] == []
    assert sum(o[2] == "fell back" for o in outcomes) > SAMPLE / 3


FILLING = """
import contextlib, gc, os, resource, sys
from pathlib import Path
import numpy as np
from eqxunet.errors import UnavailableError
from test_checkpoint_damage import BEST, Writer, arrays, is_step, restore, write

folder = Path(sys.argv[1])
many = {f"a{i}": np.frombuffer(os.urandom(4000), np.uint8) for i in range(20)}
write(folder / "checkpoints", [1, 2])
filler = folder / "filler"
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
with Writer(folder / "checkpoints") as checkpoints:
    for step, room in enumerate([100, 2000, 20_000], 3):
        if sys.argv[2] == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        else:
            filler.write_bytes(bytes(os.statvfs(folder).f_bavail * 4096 - room // 4096 * 4096))
        checkpoints.save(step, many | arrays(step))
        with contextlib.suppress(UnavailableError):
            checkpoints.wait()
            raise AssertionError("saved")
        restored = restore(folder / "checkpoints")
        assert is_step(restored, 2) and not restored.damaged
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        filler.unlink(missing_ok=True)
        gc.collect()
write(folder / "checkpoints", [6])
assert {path.name for path in (folder / "checkpoints").iterdir()} == {"1", "2", "6"}
assert is_step(restore(folder / "checkpoints"), 6)
"""


@pytest.mark.parametrize("kind", ["limit", "full"])
def test_a_full_disk_costs_what_does_not_fit_and_says_nothing_but_its_error(tmp_path, kind):
    """`full` is a small file system of its own, `limit` one on the size of a file."""
    command = [sys.executable, "-c", FILLING, str(tmp_path), kind]
    if kind == "full":
        mount = 'mount -t tmpfs -o size=384k tmpfs "$0" && exec "$@"'
        command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, tmp_path, *command]
        if subprocess.run([*command[:-5], "true"], capture_output=True).returncode:
            pytest.skip("this machine lets nobody mount a file system")
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


if __name__ == "__main__":
    count = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        outcomes = sweep(Path(folder) / "checkpoints", count, seed=int(sys.argv[2]))
    for path, name, found in outcomes:
        if found not in ("read equal", "fell back"):
            print(path, name, found)
    totals = collections.Counter(found.split(":")[0] for _, _, found in outcomes)
    print(dict(totals))
    kinds = collections.Counter(
        (path.split("/")[-1][:20] if "/d/" not in path else path.rsplit("/", 1)[0], found)
        for path, _, found in outcomes
    )
    for (path, found), number in sorted(kinds.items()):
        print(f"{number:5d} {found:12s} {path}")
