"""What the benchmarks of the networks share: their contenders, weights, data and record."""

import argparse
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from benchmarks.processes import Contender, Setup, machine

# Relative, of the numbers that the contenders return first: for what is rounded to fewer bits, the
# unit of that rounding.
TOLERANCES = {"float32": 1e-4, "TF32": 2**-10, "bfloat16": 2**-8}
FLAX = ("scratch", "resnet10")
"""Networks that the Flax original has."""

# As the command line starts itself.
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@dataclass(frozen=True)
class Options:
    """What is compared; `weights` is a file with the initial variables.

    They are those of the Flax original, nested, or, of a network that it does not have, ours by
    dotted path.
    """

    model: str
    batch: int
    size: int
    device: str
    weights: str
    frozen: bool = True
    precision: str = "float32"

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
    """Initialises the Flax original, or our network, and writes its variables."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    if options.model in FLAX:
        from scripts import flax_models

        model = flax_models.UNet() if options.model == "scratch" else flax_models.ResNetUNet()
        variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    else:
        import eqxunet as eu
        from eqxunet.models.leaves import named_leaves, named_state

        config = eu.ModelConfig(encoder=options.model)
        model, state = eqx.filter_jit(eu.build)(config, key=jax.random.key(0))
        variables = named_leaves(model) | named_state(model, state)
    with open(options.weights, "wb") as file:
        pickle.dump(jax.tree.map(np.asarray, variables), file)
    return lambda: 0.0


def ours_with(options: Options) -> tuple[Any, Any]:
    """Our network with the variables of the file, in training mode, and its state."""
    import equinox as eqx
    import jax

    import eqxunet as eu
    from eqxunet.models.leaves import replace_leaves, replace_state

    config = eu.ModelConfig(encoder=options.model)
    # Shapes alone, as `load_run` has them.
    model, state = eqx.filter_eval_shape(eu.build, config, key=jax.random.key(0))
    variables = options.variables()
    if options.model in FLAX:
        return eu.from_flax(model, state, variables)
    statistics = {name: value for name, value in variables.items() if ".running." in name}
    leaves = {name: value for name, value in variables.items() if name not in statistics}
    return replace_leaves(model, leaves), replace_state(model, state, statistics)


def torch_fastest(options: Options) -> AbstractContextManager[Any]:
    """Sets PyTorch to its fastest for a precision; the network's forward pass runs in what returns.

    On a GPU float32 is TF32 there, as it is in JAX.
    """
    import torch

    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    device = "cuda" if options.device == "gpu" else "cpu"
    return torch.autocast(device, torch.bfloat16, enabled=options.precision == "bfloat16")


def compare(
    name: str, description: str, ours: Setup, against: Mapping[str, Sequence[Setup]]
) -> None:
    """Runs the contenders in turn, from the same weights on the same batch; prints a JSON line.

    Before anything is timed, the number that each one's first step returns must be ours in the same
    precision.

    Arguments:

    - `against`: by the name of a peer its contenders.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--model", choices=(*FLAX, "resnet34", "efficientnet_lite0"), default="scratch"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--against", default="flax,torch", help=f"of {', '.join(against)}")
    parser.add_argument(
        "--precision",
        default="float32",
        help="of float32 and bfloat16, in which PyTorch runs under autocast",
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument(
        "--tuned",
        action="store_true",
        help="train an encoder that has pretrained weights, too, which is frozen otherwise",
    )
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
            frozen=not arguments.tuned,
        )
        writer = Contender(write_weights, options, {"JAX_PLATFORMS": "cpu"})
        writer.run()
        writer.close()
        environment = {"JAX_PLATFORMS": "cpu" if arguments.device == "cpu" else "cuda"}
        contenders: dict[str, Contender] = {}
        for precision in arguments.precision.split(","):
            setups = [ours]
            for peer in filter(None, arguments.against.split(",")):
                # The original has two networks, an encoder that is frozen, and float32.
                has_one = options.model in FLAX and options.frozen and precision == "float32"
                if peer != "flax" or has_one:
                    setups += against[peer]
            for setup in setups:
                huge = HUGE_PAGES if setup is ours or arguments.equal_malloc else {}
                contenders[f"{setup.__name__} {precision}"] = Contender(
                    setup, replace(options, precision=precision), environment | huge
                )
        numbers: dict[str, list[float]] = {}
        for _ in range(3):
            for contender_name, contender in contenders.items():
                numbers.setdefault(contender_name, []).append(contender.run()[1])
        for contender_name, values in numbers.items():
            precision = contender_name.split()[-1]
            expected = numbers[f"ours {precision}"][0]
            is_tf32 = precision == "float32" and arguments.device == "gpu"
            tolerance = TOLERANCES["TF32" if is_tf32 else precision]
            if not abs(values[0] - expected) <= tolerance * abs(expected):
                raise AssertionError(f"{contender_name} starts at another number: {numbers}")
        for _ in range(arguments.repeats):
            for contender in contenders.values():
                contender.sample()
        peaks = {n: contender.close() for n, contender in contenders.items()}

    seconds = {n: contender.summary() for n, contender in contenders.items()}
    medians = {n: summary["median"] for n, summary in seconds.items()}
    fastest = min(t for n, t in medians.items() if n.startswith("ours"))
    record = {
        "benchmark": name,
        **asdict(options),
        "precision": arguments.precision,
        "equal_malloc": arguments.equal_malloc,
        "repeats": arguments.repeats,
        "seconds": seconds,
        "images_per_second": {n: options.batch / t for n, t in medians.items()},
        "ours_faster_than": {n: t / medians[f"ours {n.split()[-1]}"] for n, t in medians.items()},
        "our_fastest_faster_than": {n: t / fastest for n, t in medians.items()},
        "peak_bytes": peaks,
        "numbers": numbers,
        "machine": machine(),
    }
    del record["weights"]
    print(json.dumps(record))
