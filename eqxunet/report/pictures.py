"""Pictures of a run: learning curves, and predictions beside their images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from ..data.sheet import edges
from ..storage import replacing
from ..text import printable
from .tables import NOT_COUNTED

_NOT_COUNTED = (128, 128, 128)
_TOO_MUCH, _MISSED = np.array([215, 25, 28]), np.array([44, 90, 210])
_OUTLINE = (255, 230, 0)
_NAME = 18  # characters of a name over a picture
_MOST_CLASSES = 22


def save_curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss, scores and the learning rate against epochs.

    Arguments:

    - `records`: the lines of `metrics.jsonl`.
    """
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    panels = {
        "loss": ("train/loss", "val/loss"),
        "mean score of an image": ("train/iou", "val/iou", "val/dice"),
        "learning rate at the end of the epoch": ("lr",),
    }
    epochs = [record["epoch"] for record in records]
    marker = "o" if len(epochs) == 1 else None
    for axes, (title, names) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for name in names:
            axes.plot(epochs, [r[name] for r in records], label=name, marker=marker)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
    _, score, rate = figure.axes
    score.set_ylim(0, 1)
    rate.set_ylim(bottom=0)
    save_figure(figure, path, dpi=120)


def save_predictions(
    images: UInt8[np.ndarray, "n h w 3"],
    targets: UInt8[np.ndarray, "n h w"],
    predictions: UInt8[np.ndarray, "n h w"],
    probabilities: Float[np.ndarray, "n h w"] | None,
    names: Sequence[str],
    scores: Sequence[str],
    classes: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
    path: Path,
) -> None:
    """Draws a column an example: image, truth, prediction, and where they differ.

    Arguments:

    - `targets`: the class of each pixel; 255 where it does not count.
    - `probabilities`: of foreground, where there is no other class.
    - `scores`: a text below each name.
    """
    rows = ["image", "truth", "prediction", "errors"]
    if probabilities is not None:
        rows[2:3] = ["probability", "prediction"]
    columns = max(len(images), 3)  # fewer are too narrow for the legend
    figure = Figure(figsize=(1.5 * columns, 1.6 * len(rows) + 0.7), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[], frame_on=False)
    palette = palette_of(colours)
    is_binary = probabilities is not None
    for column, (name, score) in enumerate(zip(names, scores, strict=True)):
        image, target, prediction = images[column], targets[column], predictions[column]
        panels = {
            "image": image,
            "truth": palette[target],
            "prediction": overlay(image, prediction, colours, is_binary=is_binary),
            "errors": errors_in(image, target, prediction, is_binary=is_binary),
        }
        for row, title in enumerate(rows):
            if title == "probability" and probabilities is not None:
                grid[row, column].imshow(probabilities[column], cmap="gray", vmin=0, vmax=1)
            else:
                grid[row, column].imshow(panels[title])
        text = f"{drawable(shortened(name))}\n{score}"
        grid[0, column].set_title(text, fontsize=8, parse_math=False)
    for row, title in enumerate(rows):
        grid[row, 0].set_ylabel(title)
    patches = legend_patches(classes, colours, targets, is_binary=is_binary)
    add_legend(figure, patches, columns=columns)
    save_figure(figure, path)


def save_figure(figure: Figure, path: Path, *, dpi: int = 110) -> None:
    """Writes a figure as a PNG that is whole or not there.

    Raises UnavailableError where it cannot be written.
    """
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format="png")


def add_legend(figure: Figure, patches: list[Patch], *, columns: int) -> None:
    """Adds what colours mean below a picture, whose names are no formulas.

    Arguments:

    - `columns`: of the picture.
    """
    legend = figure.legend(
        handles=patches, loc="outside lower center", ncols=min(6, columns), fontsize=8
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def legend_patches(
    classes: Sequence[str],
    colours: UInt8[np.ndarray, "k 3"],
    targets: UInt8[np.ndarray, "n h w"],
    *,
    is_binary: bool,
) -> list[Patch]:
    """What colours mean in truth and errors, as `targets` and `errors_in` have them."""
    shades = _shades(classes, colours, targets)
    if is_binary:
        shades += [("error: too much", _TOO_MUCH), ("error: missed", _MISSED)]
    else:
        shades.append(("error", _TOO_MUCH))
    return _patches(shades)


def class_patches(
    classes: Sequence[str], colours: UInt8[np.ndarray, "k 3"], targets: UInt8[np.ndarray, "n h w"]
) -> list[Patch]:
    """What colours mean in truth and predictions."""
    return _patches(_shades(classes, colours, targets))


def _shades(
    classes: Sequence[str], colours: UInt8[np.ndarray, "k 3"], targets: UInt8[np.ndarray, "n h w"]
) -> list[tuple[str, Any]]:
    shades: list[tuple[str, Any]] = list(zip(classes, colours, strict=True))[:_MOST_CLASSES]
    return shades + [(NOT_COUNTED, _NOT_COUNTED)] * bool((targets == 255).any())


def _patches(shades: Sequence[tuple[str, Any]]) -> list[Patch]:
    return [
        Patch(facecolor=tuple(np.asarray(colour) / 255), edgecolor="gray", label=drawable(name))
        for name, colour in shades
    ]


def errors_in(
    image: UInt8[np.ndarray, "h w 3"],
    target: UInt8[np.ndarray, "h w"],
    prediction: UInt8[np.ndarray, "h w"],
    *,
    is_binary: bool,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in pale grey, with wrong pixels in red, or blue where foreground was missed.

    Arguments:

    - `is_binary`: whether there is such a thing as foreground.
    """
    grey = 110 + (image.mean(axis=-1, keepdims=True) * 0.5).round()
    wrong = (prediction != target) & (target != 255)
    is_missed = is_binary & (prediction == 0)
    colour = np.where(is_missed[..., None], _MISSED, _TOO_MUCH)
    return np.where(wrong[..., None], colour, grey.repeat(3, axis=-1)).astype(np.uint8)


def palette_of(colours: UInt8[np.ndarray, "k 3"]) -> UInt8[np.ndarray, "256 3"]:
    """The colour of each class, and of what does not count."""
    palette = np.full((256, 3), _NOT_COUNTED, np.uint8)
    palette[: len(colours)] = colours
    return palette


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    prediction: UInt8[np.ndarray, "h w"],
    colours: UInt8[np.ndarray, "k 3"],
    *,
    is_binary: bool,
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the background darkened, and foreground outlined or classes in their colours.

    Arguments:

    - `prediction`: the class of each pixel.
    - `is_binary`: whether there is one class beside the background.
    """
    share = np.where(prediction == 0, 0.7, 0.0 if is_binary else 0.45)[..., None]
    picture = (share * colours[prediction] + (1 - share) * image).astype(np.uint8)
    if not is_binary:  # the colours tell, and outlines hide small areas
        return picture
    return np.where(edges(prediction[None])[0][..., None], np.array(_OUTLINE, np.uint8), picture)


def shortened(name: str) -> str:
    """The start and the end of a name, as much as fits over a picture."""
    name = printable(name)
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[-(_NAME // 2) :]}"


def drawable(text: str) -> str:
    """The text in one line, with a box for every character that the font lacks."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in printable(text))
