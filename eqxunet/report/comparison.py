"""A picture of several runs: where they err on the same images."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from .pictures import (
    add_legend,
    drawable,
    errors_in,
    legend_patches,
    palette_of,
    save_figure,
    shortened,
)

_NAME = 25  # characters of a run's name beside a row


def save_comparison(
    images: UInt8[np.ndarray, "n h w 3"],
    targets: UInt8[np.ndarray, "n h w"],
    predictions: UInt8[np.ndarray, "runs n h w"],
    scores: Float[np.ndarray, "runs n"],
    names: Sequence[str],
    runs: Sequence[str],
    classes: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
    title: str,
    path: Path,
    *,
    is_binary: bool,
) -> None:
    """Draws a column an image: the image, the truth, and each run's errors with its IoU.

    Arguments:

    - `targets`: the class of each pixel; 255 where it does not count.
    - `names`, `runs`: of the images and of the runs.
    - `is_binary`: whether there is such a thing as foreground.
    """
    columns = max(len(images), 3)  # fewer are too narrow for the title
    rows = ["image", "truth", *(textwrap.fill(drawable(run), _NAME) for run in runs)]
    figure = Figure(figsize=(1.5 * columns, 1.7 * len(rows) + 0.8), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    for axes, row in zip(grid[:, 0], rows, strict=True):
        axes.set_ylabel(row, fontsize=7, parse_math=False)
    palette = palette_of(colours)
    for column, (image, target) in enumerate(zip(images, targets, strict=True)):
        axes = grid[:, column]
        axes[0].imshow(image)
        axes[0].set_title(drawable(shortened(names[column])), fontsize=8, parse_math=False)
        axes[1].imshow(palette[target])
        for k, prediction in enumerate(predictions[:, column]):
            axes[2 + k].imshow(errors_in(image, target, prediction, is_binary=is_binary))
            axes[2 + k].set_title(f"IoU {scores[k, column]:.2f}", fontsize=8)
    figure.suptitle(title, fontsize=9)
    patches = legend_patches(classes, colours, targets, is_binary=is_binary)
    add_legend(figure, patches, columns=columns)
    save_figure(figure, path)
