"""Contact sheets: many small images with their masks, to see what a dataset holds."""

import math

import numpy as np
from jaxtyping import Bool, UInt8

OUTLINE = (255, 0, 200)


def contact_sheet(
    images: UInt8[np.ndarray, "n h w 3"], labels: UInt8[np.ndarray, "n h w"]
) -> UInt8[np.ndarray, "rows columns 3"]:
    """Tiles images in a sheet about as wide as high, and outlines each area of their labels."""
    n, h, w, _ = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    cells = np.full((rows * columns, h + 2, w + 2, 3), 255, np.uint8)
    outlined = np.where(edges(labels)[..., None], np.array(OUTLINE, np.uint8), images)
    cells[:n, 1:-1, 1:-1] = outlined
    grid = cells.reshape(rows, columns, h + 2, w + 2, 3).swapaxes(1, 2)
    return grid.reshape(rows * (h + 2), columns * (w + 2), 3)


def edges(labels: UInt8[np.ndarray, "n h w"]) -> Bool[np.ndarray, "n h w"]:
    """Pixels whose right or lower neighbour has another label."""
    edges = np.zeros(labels.shape, bool)
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edges[:, :, :-1] |= labels[:, :, :-1] != labels[:, :, 1:]
    return edges
