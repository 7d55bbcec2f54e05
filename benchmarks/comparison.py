"""What the benchmarks of the two networks share: their contenders, weights, data and record."""

import argparse
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.processes import Contender, Setup, machine

TOLERANCE = 1e-4
# As the command line starts itself.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Options:
    """What is compared; `weights` is a file with the initial Flax variables."""

    model: str
    batch: int
    size: int
    device: str
    weights: str

    def variables(self) -> dict[str, Any]:
        with open(self.weights, "rb") as file:
            return pickle.load(file)  # written by this script a moment ago

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images of uint8 and boolean masks of discs."""
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (self.batch, self.size, self.size, 3), np.uint8)
        y, x = np.mgrid[: self.size, : self.size] / self.size
        centres = rng.uniform(0.3, 0.7, (self.batch, 2, 1, 1))
        masks = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < 0.06
        images[masks] //= 2
        return images, masks


def write_weights(options: Options) -> Callable[[], float]:
    """Initialises the Flax original and writes its variables."""
    import jax
    import jax.numpy as jnp

    from scripts import flax_models

    model = flax_models.UNet() if options.model == "scratch" else flax_models.ResNetUNet()
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    with open(options.weights, "wb") as file:
        pickle.dump(jax.tree.map(np.asarray, variables), file)
    return lambda: 0.0


def compare(
    name: str, description: str, ours: Setup, against: Mapping[str, Sequence[Setup]]
) -> None:
    """Runs the contenders in turn, from the same weights on the same batch; prints a JSON line.

    Before anything is timed, the number that each one's first step returns must be the same.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", choices=("scratch", "resnet10"), default="scratch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--against", default="flax,torch", help=f"of {', '.join(against)}")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--equal-malloc",
        action="store_true",
        help="give every contender the huge pages that this package's command line asks for",
    )
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        options = Options(
            arguments.model,
            arguments.batch,
            arguments.size,
            arguments.device,
            os.path.join(folder, "weights"),
        )
        writer = Contender(write_weights, options, {"JAX_PLATFORMS": "cpu"})
        writer.run()
        writer.close()
        setups = [ours]
        for family in filter(None, arguments.against.split(",")):
            setups += against[family]
        environment = {"JAX_PLATFORMS": "cpu" if arguments.device == "cpu" else "cuda"}
        contenders = {}
        for setup in setups:
            huge = HUGE_PAGES if setup is ours or arguments.equal_malloc else {}
            contenders[setup.__name__] = Contender(setup, options, environment | huge)
        numbers: dict[str, list[float]] = {}
        for _ in range(3):
            for contender_name, contender in contenders.items():
                numbers.setdefault(contender_name, []).append(contender.run()[1])
        for contender_name, values in numbers.items():
            difference = abs(values[0] - numbers["ours"][0])
            if not difference <= TOLERANCE * abs(numbers["ours"][0]):
                raise AssertionError(f"{contender_name} starts at another number: {numbers}")
        for _ in range(arguments.repeats):
            for contender in contenders.values():
                contender.sample()
        peaks = {n: contender.close() for n, contender in contenders.items()}

    seconds = {n: contender.summary() for n, contender in contenders.items()}
    medians = {n: summary["median"] for n, summary in seconds.items()}
    record = {
        "benchmark": name,
        **asdict(options),
        "equal_malloc": arguments.equal_malloc,
        "repeats": arguments.repeats,
        "seconds": seconds,
        "images_per_second": {n: options.batch / t for n, t in medians.items()},
        "ours_faster_than": {n: t / medians["ours"] for n, t in medians.items()},
        "peak_bytes": peaks,
        "numbers": numbers,
        "machine": machine(),
    }
    del record["weights"]
    print(json.dumps(record))
