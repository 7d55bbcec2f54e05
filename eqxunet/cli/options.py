"""Options that several commands take."""

from typing import Annotated

import typer


def _threshold(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise typer.BadParameter(f"{text!r} is neither a probability, from 0 to 1, nor 'auto'.")
    return value


Threshold = Annotated[
    str,
    typer.Option(
        parser=_threshold,
        metavar="FLOAT|auto",
        help="Probability that counts as foreground; auto takes the one with the best Dice on "
        "validation images.",
    ),
]
