"""What BatchNorm's statistics are worth at each epoch of a short run, and what they cost.

    python -m benchmarks.statistics --size 64 --limit 112 --batch-size 8

Validation IoU of the same weights under three kinds of running statistics: as training leaves
them, taken anew over a few images as `train` does, and over all images as they are.
"""

import argparse
import time

import equinox as eqx
import jax
import numpy as np

import eqxunet as eu
from eqxunet.data import Split, load_split
from eqxunet.data.augment import to_float
from eqxunet.data.batches import steps_per_epoch
from eqxunet.evaluation import Predictor, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--encoder", default="scratch", choices=("scratch", "resnet10"))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--batch-size", type=int, default=eu.TrainConfig.batch_size)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=eu.TrainConfig.lr)
    options = parser.parse_args()
    train, val, test = (
        load_split(options.data, split, size=options.size, limit=options.limit)
        for split in ("train", "val", "test")
    )
    config = eu.TrainConfig(batch_size=options.batch_size, lr=options.lr)
    steps = steps_per_epoch(train, config.batch_size)
    model_config = eu.ModelConfig(encoder=options.encoder, size=options.size)
    model, state = eqx.filter_jit(eu.build)(model_config, key=jax.random.key(config.seed))
    task = eu.Binary(train.kind)
    total_steps = steps * options.epochs
    trainer, train_state = eu.initialise(model, state, config, task, total_steps)
    images = train.images[: steps * config.batch_size]
    images = images.reshape(steps, config.batch_size, *images.shape[1:])
    kinds = ("as left", "as train does", "of all")
    print(f"{len(train)} training, {len(val)} validation, {len(test)} test images; ", end="")
    print(f"{steps} steps an epoch")
    print("epoch  train IoU  " + "".join(f"{kind:>14}" for kind in kinds))

    stepping, taking, seen = [], [], []
    started = time.perf_counter()
    for trained, metrics in eu.fit(trainer, train_state, train):
        seen.append(metrics.iou)
        if len(seen) < steps:
            continue
        jax.block_until_ready(trained)
        stepping.append(time.perf_counter() - started)
        model = trainer.model(trained)
        began = time.perf_counter()
        few = jax.block_until_ready(eu.with_precise_statistics(trainer, trained, train).state)
        taking.append(time.perf_counter() - began)
        whole = eu.precise_statistics(model, trained.state, map(to_float, images))
        states = (trained.state, few, whole)
        model = eqx.nn.inference_mode(model)
        scores = [[_iou(model, s, split, task) for s in states] for split in (val, test)]
        print(
            f"{len(stepping):>5}  {np.mean(jax.device_get(seen)):>9.3f}  "
            + "".join(f"{score:>14.3f}" for score in scores[0]),
            flush=True,
        )
        seen, started = [], time.perf_counter()
    print(" test  " + " " * 11 + "".join(f"{score:>14.3f}" for score in scores[1]))
    # The first of each holds compiling.
    share = np.median(taking[1:]) / np.median(stepping[1:])
    print(f"taking statistics anew adds {share:.1%} to an epoch's steps")


def _iou(model: eu.UNet, state: eqx.nn.State, split: Split, task: eu.Binary) -> float:
    return float(np.mean(score(Predictor(model, state, task), split).iou))


if __name__ == "__main__":
    main()
