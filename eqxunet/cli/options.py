"""Options that several commands take."""

from typing import Annotated, Any, Literal

import typer


def read_threshold(text: str) -> float | Literal["auto"]:
    """A threshold as it is typed."""
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
    Any,
    typer.Option(
        parser=read_threshold,
        metavar="FLOAT|auto",
        help="Probability that counts as foreground; auto takes the one with the best Dice on "
        "validation images.",
    ),
]
