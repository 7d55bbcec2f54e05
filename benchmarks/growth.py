"""How a training step grows with the size of the images and of the batch, and an epoch with their
number; and what accumulating in parts, rematerialising and bfloat16 cost.

Each configuration has a process of its own, one after another. Prints one JSON line for each.

    python -m benchmarks.growth --sizes 64,128,256,512 --batches 1,4,16,64 --repeats 3
    python -m benchmarks.growth --sizes 128 --batches 64 --options '{"accumulate": 4}'
    python -m benchmarks.growth --epochs 100,200,400,800
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.comparison import HUGE_PAGES
from benchmarks.processes import Contender, machine


@dataclass(frozen=True)
class Options:
    """`train` are further fields of TrainConfig; `images` an epoch's number, None for one step."""

    model: str
    size: int
    batch: int
    images: int | None = None
    train: dict[str, Any] = field(default_factory=dict)


def steps(options: Options) -> Callable[[], float]:
    import equinox as eqx
    import jax

    import eqxunet as eu
    from eqxunet.data.batches import Batch, batches
    from eqxunet.data.cache import Split
    from eqxunet.training import initialise
    from eqxunet.training.loop import compile_step

    config = eu.ModelConfig(encoder=options.model)
    model, state = eqx.filter_jit(eu.build)(config, key=jax.random.key(0))
    train_config = eu.TrainConfig(batch_size=options.batch, **options.train)
    trainer, train_state = initialise(model, state, train_config, eu.Binary("trimap"), 1)
    rng = np.random.default_rng(0)
    shape = (options.images or options.batch, options.size, options.size)
    images = rng.integers(0, 256, (*shape, 3), np.uint8)
    trimaps = rng.integers(1, 4, shape, np.uint8)
    arrays = Split(images, trimaps, tuple(map(str, range(len(images)))))
    batch = Batch(images[: options.batch], trimaps[: options.batch])
    step = compile_step((trainer, batch), train_state)

    def run() -> float:
        nonlocal train_state
        stream = batches(arrays, options.batch, seed=0)
        for _ in range(len(images) // options.batch):
            train_state, metrics = step((trainer, next(stream)), train_state)
        return float(metrics.loss)

    return run


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description="How a step and an epoch grow.")
    parser.add_argument("--model", choices=("scratch", "resnet10"), default="scratch")
    parser.add_argument("--sizes", type=numbers, default=[128])
    parser.add_argument("--batches", type=numbers, default=[16])
    parser.add_argument("--epochs", type=numbers, default=[None], help="numbers of images")
    parser.add_argument(
        "--options", type=json.loads, default={}, help='of TrainConfig, such as {"accumulate": 4}'
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most", type=float, default=2**20, help="pixels of a batch, at most")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    arguments = parser.parse_args()
    platform = "cpu" if arguments.device == "cpu" else "cuda"
    for size in arguments.sizes:
        for batch in arguments.batches:
            for images in arguments.epochs:
                if size * size * batch > arguments.most:
                    continue
                options = Options(arguments.model, size, batch, images, arguments.options)
                contender = Contender(steps, options, {"JAX_PLATFORMS": platform, **HUGE_PAGES})
                contender.run()
                for _ in range(arguments.repeats):
                    contender.sample()
                median = contender.summary()["median"]
                record = {
                    "benchmark": "growth",
                    **options.__dict__,
                    "seconds": median,
                    "images_per_second": (images or batch) / median,
                    "peak_bytes": contender.close(),
                    "machine": machine(),
                }
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
