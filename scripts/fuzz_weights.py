"""Coverage-guided fuzzing of the weights' reader: `python scripts/fuzz_weights.py SECONDS CORPUS`.

Needs `pip install atheris pytest`, which no extra of the project holds. Each input must load as
`pickle` loads it, or be refused by IntegrityError; anything else stops the run and leaves the input
in a file `crash-*`.
"""

# Atheris and the directory `tests` are not installed where types are checked.
# pyright: reportMissingImports=false, reportMissingModuleSource=false
# pyright: reportAttributeAccessIssue=false

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import eqxunet  # noqa: E402, F401  # its import hook goes before the one that instruments

with atheris.instrument_imports(include=["eqxunet.weights"]):
    from eqxunet.errors import IntegrityError
    from eqxunet.weights import SHAPES, serl
    from eqxunet.weights.pickle_machine import read_tree

import numpy as np  # noqa: E402
from serl_files import dumps, flat, jax_array, nest, random_leaves, unpickle  # noqa: E402

# The same 38 names with a few numbers each, so that a file is structure rather than numbers.
serl.SHAPES = {name: tuple(min(n, 2) for n in shape) for name, shape in SHAPES.items()}


def check(data: bytes) -> None:
    """Raises unless a file is refused, or read as `pickle` would read it."""
    try:
        serl.parse(data)
    except IntegrityError:
        pass
    if serl.is_safetensors(data):
        return
    try:
        got = {name: leaf.view() for name, leaf in read_tree(data).items()}
    except (IntegrityError, ValueError):  # ValueError: `view` of a text that is too short
        return
    want = flat(unpickle(data))
    assert got.keys() == want.keys()
    for name, array in got.items():
        native = array.astype(array.dtype.newbyteorder("="))
        assert native.tobytes() == np.asarray(want[name]).tobytes(), name


def seed(corpus: Path) -> None:
    """Writes good files of every kind that the reader takes."""
    import pickle

    from safetensors.numpy import save

    arrays = {
        name: array[tuple(slice(2) for _ in array.shape)].copy()
        for name, array in random_leaves().items()
    }
    stand_ins = {name: jax_array(array.shape, array.tobytes()) for name, array in arrays.items()}
    (corpus / "safetensors").write_bytes(save(arrays, {"a": "b"}))
    for protocol in (2, 3, 4, 5):
        (corpus / f"jax{protocol}").write_bytes(dumps(nest(stand_ins), protocol))
        (corpus / f"numpy{protocol}").write_bytes(pickle.dumps({"params": nest(arrays)}, protocol))
        few = {"a": np.eye(2, 3, dtype="f2"), "b": {"c": stand_ins["norm_init/bias"]}}
        (corpus / f"few{protocol}").write_bytes(dumps(few, protocol))
    for file in corpus.iterdir():
        check(file.read_bytes())


def main() -> None:
    seconds, corpus = int(sys.argv[1]), Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    seed(corpus)
    options = ["-max_len=16384", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-max_total_time={seconds}", str(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
