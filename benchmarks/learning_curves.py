"""The article's comparison: what pretraining is worth, by the number of training images.

Every model trains the same number of steps on the first so many of the shuffled training images of
an Oxford-IIIT Pet folder, with the recipe that `train` has by default, and is scored once, at the
end, on the whole test split; no image is held back to choose a checkpoint. Prints a JSON line a
run, and draws them. Run again with the same `--out`, it goes on.

    python -m benchmarks.learning_curves --data oxford_pets --out curves.jsonl
"""

import argparse
import dataclasses
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import jax
import numpy as np

import eqxunet as eu
from eqxunet.evaluation import Predictor, score, summarise
from eqxunet.models.leaves import named_leaves
from eqxunet.weights import resolve_weights

MODELS: dict[str, tuple[str, bool | None]] = {
    "scratch": ("scratch", None),
    "resnet10, random, frozen": ("resnet10", True),
    "efficientnet_lite0, random, frozen": ("efficientnet_lite0", True),
    "efficientnet_lite0, ImageNet, frozen": ("efficientnet_lite0", True),
    "efficientnet_lite0, ImageNet, tuned": ("efficientnet_lite0", False),
}
"""By name the encoder, and whether it is frozen."""


def run(
    name: str, train: eu.Split, count: int, test: eu.Split, options: argparse.Namespace
) -> dict[str, Any]:
    """Trains a model on `count` images, and scores it."""
    encoder, is_frozen = MODELS[name]
    config = eu.TrainConfig(steps=options.steps, seed=options.seed, freeze_encoder=is_frozen)
    chosen = np.sort(np.random.default_rng(options.seed).permutation(len(train))[:count])
    names = tuple(train.names[i] for i in chosen)
    split = dataclasses.replace(
        train, images=train.images[chosen], labels=train.labels[chosen], names=names
    )
    model_config = eu.ModelConfig(encoder=encoder, size=options.size)
    model, state = eu.build(model_config, key=jax.random.key(options.seed))
    if "ImageNet" in name:
        weights = resolve_weights("auto", encoder=encoder)
        model, state = eu.load_weights(model, state, weights)
    task = eu.Binary(kind=train.kind)
    trainer, train_state = eu.initialise(model, state, config, task, options.steps)
    trained = sum(leaf.size for leaf in jax.tree.leaves(train_state.trainable))
    began = time.perf_counter()
    train_state, _ = deque(eu.fit(trainer, train_state, split), maxlen=1).pop()
    train_state = eu.with_precise_statistics(trainer, train_state, split)
    trained_at = time.perf_counter()
    scores = score(Predictor(trainer.model(train_state), train_state.state, task), test)
    metrics = summarise(scores)
    return {
        "model": name,
        "images": count,
        "steps": options.steps,
        "seed": options.seed,
        "iou": metrics["iou"],
        "dice": metrics["dice"],
        "parameters": sum(leaf.size for leaf in named_leaves(model).values()),
        "trained": trained,
        "seconds": {
            "training": trained_at - began,
            "scoring": time.perf_counter() - trained_at,
        },
    }


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """One line a model: the mean IoU of the test images by the number of training images."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name in MODELS:
        points = sorted((r["images"], r["iou"]) for r in records if r["model"] == name)
        counts, means = [n for n, _ in points], [iou["mean"] for _, iou in points]
        low, high = (np.array([iou["ci95"][i] for _, iou in points]) for i in (0, 1))
        errors = [means - low, high - means]
        axes.errorbar(counts, means, errors, marker="o", capsize=3, label=name)
    ticks = sorted({record["images"] for record in records})
    axes.set_xscale("log")
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.minorticks_off()
    axes.set(xlabel="training images", ylabel="IoU, mean of the test images, 95% interval")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="What pretraining is worth.")
    parser.add_argument("--data", required=True, help="as of `train`")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; a .png beside them")
    parser.add_argument("--models", default=";".join(MODELS), help="separated by ;")
    parser.add_argument("--images", default="27,90,270")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train = eu.load_split(options.data, "train", size=options.size)
    test = eu.load_split(options.data, "test", size=options.size)
    records = []
    if options.out.exists():
        records = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {(r["model"], r["images"], r["steps"], r["seed"]) for r in records}
    for count in map(int, options.images.split(",")):
        for name in options.models.split(";"):
            if (name, count, options.steps, options.seed) in done:
                continue
            records.append(run(name, train, count, test, options))
            line = json.dumps(records[-1])
            print(line, flush=True)
            with options.out.open("a") as file:
                file.write(line + "\n")
            jax.clear_caches()
    draw(records, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
