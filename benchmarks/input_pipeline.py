"""Speed of the input pipeline, from decoded pixels to shuffled batches, on one core.

Against what the training step consumes, and against PyTorch's DataLoader over the same pixels in
memory. Before anything is timed, the sums of an epoch of both must agree. Prints one JSON line.

    python -m benchmarks.input_pipeline --size 128 --repeats 10
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.comparison import HUGE_PAGES
from benchmarks.processes import Contender, machine

IMAGES = 800  # of the synthetic training split


@dataclass(frozen=True)
class Options:
    """`cache` is the folder of the decoded pixels."""

    size: int
    batch: int
    cache: str

    def arrays(self) -> Any:
        from eqxunet.data.cache import load_split

        os.environ["XDG_CACHE_HOME"] = self.cache
        return load_split("synthetic", "train", size=self.size)

    def sum(self, images: Any) -> float:
        return float(np.asarray(images)[:, ::8, ::8].sum(dtype=np.int64))


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def ours(options: Options) -> Callable[[], float]:
    from eqxunet.data.batches import batches

    one_core()
    stream = batches(options.arrays(), options.batch, seed=0)
    steps = IMAGES // options.batch
    return lambda: sum(options.sum(next(stream).images) for _ in range(steps))


def torch_loader(options: Options) -> Callable[[], float]:
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    one_core()
    torch.set_num_threads(1)
    arrays = options.arrays()
    split = TensorDataset(torch.tensor(arrays.images), torch.tensor(arrays.labels))
    loader = DataLoader(split, options.batch, shuffle=True, drop_last=True)
    return lambda: sum(options.sum(images) for images, _ in loader)


def step(options: Options) -> Callable[[], float]:
    import equinox as eqx
    import jax

    import eqxunet as eu
    from eqxunet.data.batches import Batch
    from eqxunet.training import initialise
    from eqxunet.training.loop import compile_step

    arrays = options.arrays()
    batch = Batch(arrays.images[: options.batch], arrays.labels[: options.batch])
    model, state = eqx.filter_jit(eu.build)(eu.ModelConfig(), key=jax.random.key(0))
    trainer, train_state = initialise(
        model, state, eu.TrainConfig(batch_size=options.batch), eu.Binary("trimap"), 1
    )
    compiled = compile_step((trainer, batch), train_state)

    def run() -> float:
        nonlocal train_state
        train_state, metrics = compiled((trainer, batch), train_state)
        return float(metrics.loss)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the input pipeline on one core.")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16, help=f"a divisor of {IMAGES}")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--against", default="torch", help="torch, or nothing")
    arguments = parser.parse_args()
    if IMAGES % arguments.batch:
        parser.error(f"--batch must divide {IMAGES}")
    with tempfile.TemporaryDirectory() as cache:
        options = Options(arguments.size, arguments.batch, cache)
        options.arrays()
        setups = [ours, torch_loader] if arguments.against else [ours]
        contenders = {setup.__name__: Contender(setup, options, {}) for setup in setups}
        sums = {name: contender.run()[1] for name, contender in contenders.items()}
        if len(set(sums.values())) > 1:
            raise AssertionError(f"The contenders saw other pixels: {sums}")
        contenders["step"] = Contender(step, options, {"JAX_PLATFORMS": "cpu", **HUGE_PAGES})
        for _ in range(arguments.repeats):
            for contender in contenders.values():
                contender.sample()
        for contender in contenders.values():
            contender.close()
    seconds = {name: contender.summary() for name, contender in contenders.items()}
    per_second = {
        name: (options.batch if name == "step" else IMAGES) / summary["median"]
        for name, summary in seconds.items()
    }
    record = {
        "benchmark": "input_pipeline",
        "size": options.size,
        "batch": options.batch,
        "repeats": arguments.repeats,
        "seconds": seconds,
        "images_per_second": per_second,
        "over_the_step": {n: v / per_second["step"] for n, v in per_second.items()},
        "machine": machine(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
