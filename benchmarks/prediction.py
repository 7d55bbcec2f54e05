"""Images a second of `predict` over a folder, against the network alone on batches in memory.

A folder of drawn pets, as JPEGs of the sizes that Oxford's images have, is read, predicted and
written as PNG; the network alone gets the same images at its size, 16 at a time. Both have
processes of their own and take turns. Prints one JSON line.

    python -m benchmarks.prediction --model scratch --images 300 --repeats 5
"""

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.comparison import HUGE_PAGES
from benchmarks.processes import Contender, machine

SIZES = ((500, 375), (500, 333), (375, 500), (333, 500), (500, 500))  # width and height
NOISE = 6  # of a camera, without which a JPEG is decoded sooner than a photograph


@dataclass(frozen=True)
class Options:
    """`folder` holds the images, `out` is for predictions."""

    model: str
    size: int
    images: int
    folder: str
    out: str

    def run(self) -> Any:
        """A run of random weights."""
        import equinox as eqx
        import jax

        import eqxunet as eu

        config = eu.ModelConfig(encoder=self.model, size=self.size)
        model, state = eqx.filter_jit(eu.build)(config, key=jax.random.key(0))
        model = eqx.nn.inference_mode(model)
        run = eu.RunConfig(model=config, data="synthetic")
        return eu.Run(model, state, run, eu.Binary(), 0, Path("random"))

    def paths(self) -> list[Path]:
        return sorted(Path(self.folder).glob("*.jpg"))[: self.images]


def draw(options: Options) -> Callable[[], float]:
    """Fills the folder."""
    from PIL import Image

    import eqxunet as eu

    pets = eu.load_split("synthetic", "train", size=256, limit=options.images).images
    for i in range(options.images):
        image = Image.fromarray(pets[i % len(pets)]).resize(SIZES[i % len(SIZES)])
        noise = np.random.default_rng(i).normal(0, NOISE, (*image.size[::-1], 3))
        noisy = (np.asarray(image) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(Path(options.folder, f"{i:04}.jpg"), quality=90)
    return lambda: 0.0


def predict(options: Options) -> Callable[[], float]:
    import eqxunet as eu

    run = options.run()

    def step() -> float:
        shutil.rmtree(options.out, ignore_errors=True)
        return float(len(eu.predict_files(run, options.paths(), options.out).written))

    return step


def network(options: Options) -> Callable[[], float]:
    from eqxunet.data.decoding import resize_image
    from eqxunet.evaluation import as_rgb

    predictor = options.run().predictor()
    images = np.stack([resize_image(as_rgb(path), options.size) for path in options.paths()])
    return lambda: float(len(predictor.logits(images)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second of predict over a folder.")
    parser.add_argument("--model", choices=("scratch", "resnet10"), default="scratch")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", help="of JPEGs that take the place of drawn ones")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folders = arguments.folder or scratch, f"{scratch}/out"
        options = Options(arguments.model, arguments.size, arguments.images, *folders)
        if not arguments.folder:
            drawing = Contender(draw, options, {})
            drawing.run()
            drawing.close()
        environment = {"JAX_PLATFORMS": "cpu", **HUGE_PAGES}
        contenders = {f.__name__: Contender(f, options, environment) for f in (predict, network)}
        for contender in contenders.values():
            _, count = contender.run()  # the first one compiles
            assert count == options.images
        for _ in range(arguments.repeats):
            for contender in contenders.values():
                contender.seconds.append(contender.run()[0])
        pairs = zip(contenders["network"].seconds, contenders["predict"].seconds, strict=True)
        record = {
            "benchmark": "prediction",
            **asdict(options),
            "folder": "given" if arguments.folder else "drawn",
            "repeats": arguments.repeats,
            "seconds": {name: contender.summary() for name, contender in contenders.items()},
            "images_per_second": {
                name: options.images / statistics.median(contender.seconds)
                for name, contender in contenders.items()
            },
            "of_the_network_alone": statistics.median(alone / whole for alone, whole in pairs),
            "peak_bytes": {name: contender.close() for name, contender in contenders.items()},
            "machine": machine(),
        }
    del record["out"]
    print(json.dumps(record))


if __name__ == "__main__":
    main()
