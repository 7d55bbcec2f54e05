"""Pictures of a run: learning curves, and predictions beside their images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8
from matplotlib.figure import Figure


def save_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss and validation scores against epochs.

    Arguments:

    - `records`: the lines of `metrics.jsonl`.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, score = figure.subplots(1, 2)
    epochs = [record["epoch"] for record in records]
    marker = "o" if len(epochs) == 1 else None
    for axes, names in ((loss, ("train/loss", "val/loss")), (score, ("val/iou", "val/dice"))):
        for name in names:
            axes.plot(epochs, [r[name] for r in records], label=name, marker=marker)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    loss.set_title("loss")
    score.set_title("mean per-image score on the validation split")
    score.set_ylim(0, 1)
    figure.savefig(path, dpi=120)


def save_predictions(
    images: UInt8[np.ndarray, "n h w 3"],
    trimaps: UInt8[np.ndarray, "n h w"],
    probabilities: Float[np.ndarray, "n h w"],
    titles: Sequence[str],
    path: Path,
    *,
    threshold: float = 0.5,
) -> None:
    """Draws a column an example: image, true trimap, probability, and the cut-out prediction."""
    rows = ("image", "truth", "probability", "prediction")
    figure = Figure(figsize=(1.5 * len(images), 6.4), layout="constrained")
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    for column, title in enumerate(titles):
        image, mask = images[column], probabilities[column] >= threshold
        shades = np.array([0, 255, 0, 128], np.uint8)[trimaps[column]]
        panels = (image, shades, probabilities[column], cut_out(image, mask))
        for row, panel in enumerate(panels):
            top = 255 if panel.dtype == np.uint8 else 1
            grid[row, column].imshow(panel, cmap="gray", vmin=0, vmax=top)
            grid[row, column].set(xticks=[], yticks=[])
        grid[0, column].set_title(title, fontsize=8)
    for row, name in enumerate(rows):
        grid[row, 0].set_ylabel(name)
    figure.savefig(path, dpi=110)


def cut_out(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """Keeps the foreground's colours, and fades the background to light grey."""
    faded = 225 + (image.mean(axis=-1, keepdims=True) - 128) * 0.2
    return np.where(mask[..., None], image, faded).clip(0, 255).astype(np.uint8)
