"""What scoring costs beside bare inference: outlines, distances, histograms, intervals.

    python -m benchmarks.evaluation --images 3669 --size 128

Scores drawn pets with a network of random weights, whose ragged predictions have the longest
outlines. Prints one JSON line of seconds: the network alone over all batches, the scores of all
images, and their reduction to metrics.json and per_image.csv.
"""

import argparse
import json
import resource
import time

import jax
import numpy as np

import eqxunet as eu
from benchmarks.processes import machine
from eqxunet.data.augment import to_float
from eqxunet.evaluation import Predictor, per_image, score, summarise

_DRAWN = 200


def main() -> None:
    parser = argparse.ArgumentParser(description="What scoring costs beside bare inference.")
    parser.add_argument("--images", type=int, default=3669, help="as many as Oxford's test split")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--model", choices=["scratch", "resnet10"], default="scratch")
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()

    drawn = eu.load_split("synthetic", "test", size=options.size, limit=_DRAWN)
    index = np.arange(options.images) % len(drawn)
    names = tuple(f"image_{i}" for i in range(options.images))
    split = eu.Split(drawn.images[index], drawn.labels[index], names, drawn.kind)
    config = eu.ModelConfig(encoder=options.model, size=options.size)
    model, state = eu.build(config, key=jax.random.key(0))
    task = eu.Binary(kind=split.kind)
    predictor = Predictor(model, state, task, options.batch_size)

    first = split.images[: options.batch_size]
    jax.block_until_ready(predictor.forward(to_float(first)))  # compiles
    few = eu.Split(first, split.labels[: options.batch_size], names[: options.batch_size])
    summarise(score(predictor, few, is_detailed=True))

    began = time.perf_counter()
    for start in range(0, options.images, options.batch_size):
        chunk = split.images[np.arange(start, start + options.batch_size) % options.images]
        jax.block_until_ready(predictor.forward(to_float(chunk)))
    inferred = time.perf_counter()
    scores = score(predictor, split, is_detailed=True)
    scored = time.perf_counter()
    summarise(scores)
    per_image(scores)
    reduced = time.perf_counter()
    inference, scoring = inferred - began, reduced - inferred
    record = {
        "benchmark": "evaluation",
        **vars(options),
        "inference": inference,
        "scores": scored - inferred,
        "reduction": reduced - scored,
        "ratio": scoring / inference,
        "beside_inference": scoring - inference,
        "peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "machine": machine(),
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
