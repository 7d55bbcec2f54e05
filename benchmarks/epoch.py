"""What an epoch costs beside its steps: validation, statistics, checkpoint and records.

    python -m benchmarks.epoch --size 64 --batch-size 8 --steps 16

Trains on drawn pets and times each epoch's end, from its last step's result to the record, then
times what of that are the validation's and the statistics' forward passes. Prints one JSON line of
milliseconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax

import eqxunet as eu
from benchmarks.processes import machine
from eqxunet.data.augment import to_float
from eqxunet.data.batches import padded_batches
from eqxunet.evaluation import forward
from eqxunet.runs import Request


class Clock(eu.Observer):
    """Times the ends of epochs, in seconds."""

    def __init__(self):
        self.ends: list[float] = []
        self._last_step = 0.0

    @contextmanager
    def steps(self, total: int, done: int) -> Iterator[Callable[[int, str], Request]]:
        def tell(step: int, text: str) -> Request:
            if text != "validating":
                self._last_step = time.perf_counter()
            return "go on"

        yield tell

    def record(self, record: Mapping[str, Any], is_best: bool) -> bool:
        self.ends.append(time.perf_counter() - self._last_step)
        return False


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of work whose result is waited for."""
    times = []
    for _ in range(repeats + 1):  # the first one may compile
        began = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="What an epoch costs beside its steps.")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=16, help="an epoch")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    limit = options.steps * options.batch_size
    config = eu.RunConfig(
        model=eu.ModelConfig(size=options.size),
        train=eu.TrainConfig(batch_size=options.batch_size, epochs=options.epochs),
        data="synthetic",
        limit=limit,
    )
    from eqxunet.runs import run_training

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run_training(config, Path(folder) / "run", clock)
        run = eu.load_run(Path(folder) / "run")
    train, val = (
        eu.load_split("synthetic", name, size=options.size, limit=limit)
        for name in ("train", "val")
    )
    batches = [to_float(batch.images) for batch, _ in padded_batches(val, 16)]
    validation = seconds(lambda: [forward(run.model, run.state, b) for b in batches], 10)
    model, state = eu.build(config.model, key=jax.random.key(0))
    trainer, train_state = eu.initialise(model, state, config.train, run.task, 1)
    taken = seconds(lambda: eu.with_precise_statistics(trainer, train_state, train).state, 10)
    end = statistics.median(clock.ends[1:])
    record = {
        "benchmark": "epoch",
        **vars(options),
        "end": 1000 * end,
        "validation": 1000 * validation,
        "statistics": 1000 * taken,
        "rest": 1000 * (end - validation - taken),
        "machine": machine(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
