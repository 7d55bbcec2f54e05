"""`predict`: a run's best checkpoint, on image files."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from ..text import printable
from .console import console, display, errors, say_error, stage
from .options import Threshold
from .signals import advise

if TYPE_CHECKING:
    from ..runs import Predictions

_LINES = 20  # of complaints


def predict(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Images, folders, patterns.")
    ],
    run: Annotated[Path, typer.Option(help="Run directory.")] = Path("runs/latest"),
    out: Annotated[
        Path, typer.Option(help="Folder of the predictions; what is finished there stays.")
    ] = Path("predictions"),
    threshold: Threshold = "0.5",
    tile: Annotated[
        int | None,
        typer.Option(metavar="N", help="Predict at full resolution, N x N pixels at a time."),
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Mean of the image and its mirror.")] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write NAME.overlay.png too.")] = False,
    probability: Annotated[
        bool, typer.Option("--probability", help="Write NAME.probability.png (.npy) too.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Search the folders inside folders.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what is in --out.")
    ] = False,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="The I-th of N parts of the images, from 1/N.")
    ] = "1/1",
) -> None:
    """Predicts images, each at its own size: NAME.png, 0 and 255 or class indices."""
    part = _shard(shard)
    advise("finished files stay, and the same command goes on")
    with stage("loading JAX and the run"):
        from .. import runs
        from .observer import Terminal

        terminal = Terminal()
        loaded = runs.load_run(run, observer=terminal)
    predictions = runs.predict_files(
        loaded,
        inputs,
        out,
        threshold=threshold,
        tile=tile,
        flip=tta,
        overlay=overlay,
        probability=probability,
        recursive=recursive,
        overwrite=overwrite,
        shard=part,
        observer=terminal,
    )
    _print(predictions, out)


def _shard(text: str) -> tuple[int, int]:
    if not (numbers := re.fullmatch(r"(\d+)/(\d+)", text)):
        raise InputError(f"--shard {text}: give a part and how many there are, such as 1/4")
    return int(numbers[1]), int(numbers[2])


def _print(predictions: "Predictions", out: Path) -> None:
    from ..data.complaints import summarised

    count = len(predictions.written)
    speed = f", {count / predictions.seconds:.3g} images/s" if count else ""
    kept = f"; {len(predictions.kept)} were there already" if predictions.kept else ""
    console.print(
        f"{_images(count)} predicted in {predictions.seconds:.1f} s{speed}, in {display(out)}"
        f"{kept}",
        soft_wrap=True,
    )
    if predictions.ignored:
        console.print(f"other files left out: {predictions.ignored}")
    if not (failed := predictions.failed):
        return
    lines = summarised(failed)
    more = [f"and {len(lines) - _LINES} lines more"] if len(lines) > _LINES else []
    total = count + len(predictions.kept) + len(failed)
    say_error(f"{len(failed)} of {_images(total)} cannot be used:")
    for line in [*lines[:_LINES], *more]:
        errors.print(printable(line.replace(f"{os.getcwd()}{os.sep}", "")))
    raise typer.Exit(InputError.exit_code)


def _images(count: int) -> str:
    return f"{count} image" if count == 1 else f"{count} images"
