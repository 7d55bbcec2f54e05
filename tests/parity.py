"""What the Flax references and the tests share: exact weights and images, and the comparison."""

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

CHANNELS = (8, 12, 16, 20)
"""Of the small U-Net in the stored references."""

SAMPLES = 256
"""Entries of each large array that the stored references keep."""


def values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Draws float32 values from [-sqrt(3), sqrt(3)), the same for a name with every NumPy."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    bits = np.random.Philox(key=key).random_raw(int(np.prod(shape))) >> 11
    return ((2 * bits / 2**53 - 1) * np.sqrt(3)).astype(np.float32).reshape(shape)


def variable(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A weight or statistic of the scale that its kind has in a trained network."""
    noise = values(name, shape)
    kind = name.rsplit("/", 1)[-1]
    if kind == "kernel":
        return noise * np.sqrt(2 / np.prod(shape[:-1]), dtype=np.float32)
    return noise * np.float32(0.1) + np.float32(kind in ("scale", "var"))


def fill(tree: Mapping, prefix: str = "") -> dict:
    """Returns a tree of Flax variables of the same names and shapes, with exact values."""
    return {
        name: fill(node, f"{prefix}{name}/")
        if isinstance(node, Mapping)
        else variable(prefix + name, node.shape)
        for name, node in tree.items()
    }


def flat(tree: Mapping, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Yields each leaf of a nested dict with its path."""
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from flat(node, f"{prefix}{name}/")
        else:
            yield prefix + name, np.asarray(node)


def images(batch: int, h: int, w: int) -> np.ndarray:
    return (values("images", (batch, h, w, 3)) / np.float32(np.sqrt(12)) + 0.5).clip(0, 1)


def masks(batch: int, h: int, w: int) -> np.ndarray:
    return values("masks", (batch, h, w)) > 0


def sample(array: np.ndarray) -> np.ndarray:
    """Evenly spaced entries of a large array; a small one whole."""
    array = np.asarray(array).reshape(-1)
    return array[np.linspace(0, array.size - 1, min(array.size, SAMPLES)).astype(int)]


def assert_close(got, want, tolerance: float, what: str = "", scale: float | None = None) -> None:
    """Fails unless max |got - want| <= tolerance * max |want|, for arrays of equal shape.

    By the largest difference, since cosine similarity hides wrong padding.
    """
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"{what}: shape {got.shape}, want {want.shape}"
    difference = np.max(np.abs(got - want))
    scale = np.max(np.abs(want)) if scale is None else scale
    assert difference <= tolerance * scale, f"{what}: off by {difference} at a scale of {scale}"
