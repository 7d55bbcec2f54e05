"""Writes tests/data/*.npz: what the Flax originals compute, for tests that do without Flax.

    python scripts/make_references.py

Weights and images derive from their names (tests/parity.py) and are not stored. For each model:
the outputs of every stage in training mode, logits in training and inference mode, loss, gradient
(evenly spaced entries of each leaf), and the BatchNorm statistics after two steps of SGD.
"""

import hashlib
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests"), str(ROOT / "scripts")]

import flax_models  # noqa: E402 (needs the path above)
import parity  # noqa: E402

LEARNING_RATE = 0.1
STAGES = (flax_models.DownBlock, flax_models.ConvBlock, flax_models.UpBlock)


def loss(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Cross-entropy and soft Dice, per image, then the mean over images."""
    bce = jnp.mean(optax.sigmoid_binary_cross_entropy(logits, mask))
    p = jax.nn.sigmoid(logits)
    overlap, total = jnp.sum(p * mask, (1, 2)), jnp.sum(p, (1, 2)) + jnp.sum(mask, (1, 2))
    return bce + jnp.mean(1 - (2 * overlap + 1e-6) / (total + 1e-6))


def reference(model: nn.Module, batch: int, h: int, w: int) -> dict[str, np.ndarray]:
    """Runs a model in Flax on the exact weights and images."""
    x, mask = jnp.array(parity.images(batch, h, w)), jnp.array(parity.masks(batch, h, w))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    variables = parity.fill(shapes)

    @jax.jit
    def step(params, statistics):
        def loss_fn(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": statistics},
                x,
                train=True,
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=lambda module, _: isinstance(
                    module, (*STAGES, flax_models.ResNetEncoder)
                ),
            )
            return loss(logits[..., 0], mask), (logits, updates)

        (value, (logits, updates)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
        new = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, gradient)
        return value, logits, updates, gradient, new

    inference = model.apply(variables, x, train=False)
    value, logits, updates, gradient, params = step(variables["params"], variables["batch_stats"])
    _, _, second, _, _ = step(params, updates["batch_stats"])
    arrays = {"logits": logits, "inference": inference, "loss": value}
    for path, output in parity.flat(_first(updates["intermediates"])):
        if "/ConvBlock_0" not in path:  # which the block around it gives again
            arrays[f"stages/{path.replace('/__call__', '')}"] = output
    for path, leaf in parity.flat(gradient):
        arrays[f"gradient/{path}"] = parity.sample(leaf)
        arrays[f"gradient_scale/{path}"] = np.max(np.abs(leaf))
    for path, leaf in parity.flat(second["batch_stats"]):
        arrays[f"batch_stats/{path}"] = leaf
    return {name: np.asarray(array) for name, array in arrays.items()}


def _first(tree):
    """Flax keeps a tuple of calls, and a stage's output may be a tuple again."""
    if isinstance(tree, dict):
        return {name: _first(node) for name, node in tree.items()}
    (output,) = tree
    if isinstance(output, tuple):
        return {str(i): part for i, part in enumerate(output)}
    return output


def main() -> None:
    cases = {
        "scratch": reference(flax_models.UNet(parity.CHANNELS), 2, 37, 50),
        "resnet10": reference(flax_models.ResNetUNet(), 2, 49, 66),
    }
    about = {
        "command": "python scripts/make_references.py",
        "seed": "none: weights and images derive from their names, see tests/parity.py",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("flax", "jax", "numpy")},
        "sha256": {},
    }
    for name, arrays in cases.items():
        path = ROOT / "tests" / "data" / f"{name}.npz"
        np.savez_compressed(path, allow_pickle=False, **arrays)
        about["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (ROOT / "tests" / "data" / "provenance.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
