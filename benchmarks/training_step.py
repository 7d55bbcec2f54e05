"""Time of one training step: this package, the Flax original and a PyTorch twin.

All start from the same weights and see the same batch; before anything is timed, their losses on
it must agree. Each contender has a process of its own, and they take turns. Prints one JSON line.

    python -m benchmarks.training_step --model scratch --repeats 20
"""

import argparse
import json
import os
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from benchmarks.processes import Contender, machine

LOSS_TOLERANCE = 1e-4
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**34), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


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
        """Images in [0, 1] and boolean masks of discs."""
        rng = np.random.default_rng(0)
        images = rng.random((self.batch, self.size, self.size, 3), np.float32)
        y, x = np.mgrid[: self.size, : self.size] / self.size
        centres = rng.uniform(0.3, 0.7, (self.batch, 2, 1, 1))
        masks = (y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2 < 0.06
        images[masks] *= 0.5
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


def ours(options: Options) -> Callable[[], float]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    import eqxunet as eu
    from eqxunet.models import build
    from eqxunet.models.flax import from_flax
    from eqxunet.optimizer import trainable_mask
    from eqxunet.training import batch_loss

    config = eu.TrainConfig()
    model, state = build(eu.ModelConfig(encoder=options.model), key=jax.random.key(0))
    model, state = from_flax(model, state, options.variables())
    trainable, frozen = eqx.partition(model, trainable_mask(model, config))
    optimizer = optax.adam(1e-3)
    images, masks = jax.device_put(options.data())
    counted = jnp.ones(masks.shape, bool)
    carry = jax.tree.map(jnp.copy, (trainable, state, optimizer.init(trainable)))

    @eqx.filter_jit(donate="all-except-first")
    def step(fixed, carry):
        frozen, images, masks, counted = fixed
        trainable, state, opt_state = carry

        def loss_fn(trainable):
            model = eqx.combine(trainable, frozen)
            return batch_loss(model, state, images, masks, counted)

        (loss, (state, _)), gradient = eqx.filter_value_and_grad(loss_fn, has_aux=True)(trainable)
        updates, opt_state = optimizer.update(gradient, opt_state)
        return loss, (eqx.apply_updates(trainable, updates), state, opt_state)

    def run() -> float:
        nonlocal carry
        loss, carry = step((frozen, images, masks, counted), carry)
        jax.block_until_ready(carry)
        return float(loss)

    return run


def flax(options: Options) -> Callable[[], float]:
    import jax
    import jax.numpy as jnp
    import optax

    from scripts import flax_models

    scratch = options.model == "scratch"
    model = flax_models.UNet() if scratch else flax_models.ResNetUNet()
    variables = options.variables()
    params, statistics = jax.device_put((variables["params"], variables["batch_stats"]))
    # The original differentiates in the decoder's parameters only, but updates all of them.
    trainable, frozen = (
        (params, {})
        if scratch
        else ({"decoder": params["decoder"]}, {"encoder": params["encoder"]})
    )
    optimizer = optax.adam(1e-3)
    images, masks = jax.device_put(options.data())
    targets = masks[..., None].astype(jnp.float32)

    def loss_fn(trainable, statistics):
        logits, updates = model.apply(
            {"params": trainable | frozen, "batch_stats": statistics},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        probability = jax.nn.sigmoid(logits)
        overlap = 2 * jnp.sum(probability * targets, (1, 2, 3)) + 1e-6
        total = jnp.sum(probability, (1, 2, 3)) + jnp.sum(targets, (1, 2, 3)) + 1e-6
        entropy = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, targets))
        return entropy + jnp.mean(1 - overlap / total), updates["batch_stats"]

    @jax.jit
    def step(trainable, statistics, opt_state):
        (loss, statistics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
            trainable, statistics
        )
        updates, opt_state = optimizer.update(gradient, opt_state)
        return loss, optax.apply_updates(trainable, updates), statistics, opt_state

    carry = (trainable, statistics, optimizer.init(trainable))

    def run() -> float:
        nonlocal carry
        loss, *carry = step(*carry)
        jax.block_until_ready(carry)
        return float(loss)

    return run


def torch_step(options: Options, *, channels_last: bool, compiled: bool) -> Callable[[], float]:
    import torch
    import torch.nn.functional as F

    from benchmarks import torch_models

    device = "cuda" if options.device == "gpu" else "cpu"
    scratch = options.model == "scratch"
    model = torch_models.UNet() if scratch else torch_models.ResNetUNet()
    torch_models.load_flax(model, options.variables())
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    images, masks = map(torch.from_numpy, options.data())
    images = images.permute(0, 3, 1, 2).to(device).contiguous(memory_format=layout)
    targets = masks[:, None].float().to(device).contiguous(memory_format=layout)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)

    def loss_fn() -> torch.Tensor:
        logits = model(images)
        probability = torch.sigmoid(logits)
        overlap = 2 * (probability * targets).sum((1, 2, 3)) + 1e-6
        total = probability.sum((1, 2, 3)) + targets.sum((1, 2, 3)) + 1e-6
        entropy = F.binary_cross_entropy_with_logits(logits, targets)
        return entropy + (1 - overlap / total).mean()

    forward = torch.compile(loss_fn) if compiled else loss_fn

    def run() -> float:
        optimizer.zero_grad()
        loss = forward()
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def torch_eager(options: Options) -> Callable[[], float]:
    return torch_step(options, channels_last=False, compiled=False)


def torch_channels_last(options: Options) -> Callable[[], float]:
    return torch_step(options, channels_last=True, compiled=False)


def torch_compile(options: Options) -> Callable[[], float]:
    return torch_step(options, channels_last=True, compiled=True)


AGAINST = {
    "flax": [flax],
    "torch": [torch_eager, torch_channels_last],
    "torch_compile": [torch_compile],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one training step.")
    parser.add_argument("--model", choices=("scratch", "resnet10"), default="scratch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--against", default="flax,torch", help=f"of {', '.join(AGAINST)}")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--equal-malloc",
        action="store_true",
        help="give every contender the allocator settings that this package makes itself",
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
        for name in filter(None, arguments.against.split(",")):
            setups += AGAINST[name]
        platforms = "cpu" if arguments.device == "cpu" else "cuda"
        environment = {"JAX_PLATFORMS": platforms}
        if arguments.equal_malloc:
            environment |= KEEP_MEMORY
        contenders = {setup.__name__: Contender(setup, options, environment) for setup in setups}
        losses = {}
        for _ in range(3):
            for name, contender in contenders.items():
                losses.setdefault(name, []).append(contender.run()[1])
        for name, values in losses.items():
            difference = abs(values[0] - losses["ours"][0])
            if not difference <= LOSS_TOLERANCE * losses["ours"][0]:
                raise AssertionError(f"{name} starts at another loss: {losses}")
        for _ in range(arguments.repeats):
            for contender in contenders.values():
                contender.sample()
        peaks = {name: contender.close() for name, contender in contenders.items()}

    seconds = {name: contender.summary() for name, contender in contenders.items()}
    medians = {name: summary["median"] for name, summary in seconds.items()}
    record = {
        "benchmark": "training_step",
        **asdict(options),
        "equal_malloc": arguments.equal_malloc,
        "repeats": arguments.repeats,
        "seconds": seconds,
        "images_per_second": {name: options.batch / t for name, t in medians.items()},
        "ours_faster_than": {name: t / medians["ours"] for name, t in medians.items()},
        "peak_bytes": peaks,
        "losses": losses,
        "machine": machine(),
    }
    del record["weights"]
    print(json.dumps(record))


if __name__ == "__main__":
    main()
