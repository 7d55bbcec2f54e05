"""Training on packed images that are decoded as they are read, against the decoded cache.

Drawn pets under many names are packed. Two processes train the same model in turn, one from the
cache and one from the pack without it; their losses must be the same. A third one only reads
as many images as there are, and says what memory it has after every tenth. Prints one JSON line.

    python -m benchmarks.packed --size 128 --images 20000 --repeats 10
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comparison import HUGE_PAGES
from benchmarks.processes import Contender, machine

PETS = 800  # that are drawn


@dataclass(frozen=True)
class Options:
    """`folder` holds the images in `plain/` and packed in `packed/`, and the cache."""

    size: int
    batch: int
    steps: int
    images: int
    folder: str

    @property
    def tenth(self) -> int:
        """Batches that are a tenth of the images."""
        return max(1, self.images // 10 // self.batch)


def write_pets(root: Path, images: int) -> None:
    """A plain folder of drawn pets, where every one of `PETS` is there again under other names."""
    import numpy as np
    from PIL import Image

    from eqxunet.data.synthetic import SyntheticPets

    pets = SyntheticPets("train")
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(images):
        first, stem = f"{i % PETS:06}", f"{i:06}"
        if i < PETS:
            example = pets[i]
            assert isinstance(example.mask, np.ndarray)
            Image.fromarray(example.image).save(root / "images" / f"{stem}.png")
            Image.fromarray(example.mask % 2).save(root / "masks" / f"{stem}.png")
            continue
        for name in ("images", "masks"):
            os.link(root / name / f"{first}.png", root / name / f"{stem}.png")


def cached(options: Options) -> Callable[[], float]:
    return training(options, "plain", cache=True)


def packed(options: Options) -> Callable[[], float]:
    return training(options, "packed", cache=False)


def training(options: Options, data: str, *, cache: bool) -> Callable[[], float]:
    """Trains some steps further; returns the last one's loss."""
    import equinox as eqx
    import jax

    import eqxunet as eu

    os.environ["XDG_CACHE_HOME"] = options.folder
    split = eu.load_split(Path(options.folder, data), "train", size=options.size, cache=cache)
    model, state = eqx.filter_jit(eu.build)(eu.ModelConfig(), key=jax.random.key(0))
    config = eu.TrainConfig(batch_size=options.batch)
    steps = eu.fit(*eu.initialise(model, state, config, eu.Binary(split.kind), 10**6), split)

    def run() -> float:
        for _ in range(options.steps):
            _, metrics = next(steps)
        return float(metrics.loss)

    return run


def reader(options: Options) -> Callable[[], float]:
    """Reads on; returns the process's memory after it, in MB."""
    import eqxunet as eu
    from eqxunet.data.batches import batches

    split = eu.load_split(Path(options.folder, "packed"), "train", size=options.size, cache=False)
    stream = batches(split, options.batch, seed=0)

    def run() -> float:
        for _ in range(options.tenth):
            next(stream)
        status = Path("/proc/self/status").read_text()
        return float(status.partition("VmRSS:")[2].split()[0]) / 1000

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Training from a pack and from the cache.")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="a sample")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = vars(parser.parse_args())
    repeats = arguments.pop("repeats")
    with tempfile.TemporaryDirectory() as folder:
        options = Options(**arguments, folder=folder)
        write_pets(Path(folder, "plain"), options.images)
        from eqxunet.data.packing import pack

        began = time.perf_counter()
        pack(Path(folder, "plain"), Path(folder, "packed"))
        packing = time.perf_counter() - began
        memory = Contender(reader, options, {"JAX_PLATFORMS": "cpu"})
        tenths = [memory.run() for _ in range(10)]
        memory.close()
        reading = sum(spent for spent, _ in tenths)
        environment = {"JAX_PLATFORMS": "cpu", **HUGE_PAGES}
        contenders = {
            setup.__name__: Contender(setup, options, environment) for setup in (cached, packed)
        }
        losses = {name: contender.run()[1] for name, contender in contenders.items()}
        if len(set(losses.values())) > 1:
            raise AssertionError(f"The contenders trained on other pixels: {losses}")
        for _ in range(repeats):
            for contender in contenders.values():
                contender.sample()
        for contender in contenders.values():
            contender.close()
    seconds = {name: contender.summary() for name, contender in contenders.items()}
    trained = options.steps * options.batch
    record = {
        "benchmark": "packed",
        **arguments,
        "repeats": repeats,
        "packing_seconds": packing,
        "seconds": seconds,
        "images_per_second": {name: trained / each["median"] for name, each in seconds.items()},
        "over_the_cache": seconds["cached"]["median"] / seconds["packed"]["median"],
        "reader_images_per_second": 10 * options.tenth * options.batch / reading,
        "reader_megabytes": [round(megabytes, 1) for _, megabytes in tenths],
        "machine": machine(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
