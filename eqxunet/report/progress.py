"""A picture of what a network learnt: the same images, epoch after epoch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from .pictures import (
    add_legend,
    class_patches,
    drawable,
    palette_of,
    save_figure,
    shortened,
)

_GAP = 3  # pixels between two images of a column, at 64 x 64


def save_progress(
    images: UInt8[np.ndarray, "n h w 3"],
    targets: UInt8[np.ndarray, "n h w"],
    predictions: UInt8[np.ndarray, "k n h w"],
    names: Sequence[str],
    titles: Sequence[str],
    colours: UInt8[np.ndarray, "classes 3"],
    path: Path,
    *,
    classes: Sequence[str] = (),
) -> None:
    """Draws a row an image: the image, its prediction after some epochs, and the truth.

    Arguments:

    - `targets`: the class of each pixel; 255 where it does not count.
    - `names`: of the images.
    - `titles`: of the epochs.
    - `classes`: names for a legend, where colours need one.
    """
    palette = palette_of(colours)
    columns = [images, *palette[predictions], palette[targets]]
    height, width = images.shape[1:3]
    gap = max(1, _GAP * height // 64)
    padding = ((0, 0), (0, gap), (0, 0), (0, 0))
    rows = len(images)
    size = (1.2 * len(columns) + 0.9, 1.2 * rows + (0.8 if classes else 0.5))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(1, len(columns))
    for axes, column, title in zip(grid, columns, ["image", *titles, "truth"], strict=True):
        stacked = np.pad(column, padding, constant_values=255).reshape(-1, width, 3)
        axes.imshow(stacked[:-gap])
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.set_title(title, fontsize=8)
    middles = np.arange(rows) * (height + gap) + height / 2
    labels = [drawable(shortened(name)) for name in names]
    grid[0].set_yticks(middles, labels, fontsize=7, parse_math=False)
    grid[0].tick_params(length=0)
    if classes:
        add_legend(figure, class_patches(classes, colours, targets), columns=len(columns))
    save_figure(figure, path)
