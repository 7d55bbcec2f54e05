"""`compare`: several runs' best checkpoints, scored on the same images."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from ..config import SplitName
from ..text import printable
from .console import console, stage
from .evaluate import interval
from .options import Threshold
from .signals import advise


def compare(
    run: Annotated[
        list[Path], typer.Argument(help="Run directories; differences are from the first.")
    ],
    split: Annotated[SplitName, typer.Option(help="Split that is scored.")] = "test",
    threshold: Threshold = "0.5",
    limit: Annotated[int | None, typer.Option(min=1, help="The first so many images.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for a picture, a table of all images, and JSON.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace another comparison in --out.")] = False,
) -> None:
    """Scores several runs on the same images."""
    with stage("loading JAX and the runs"):
        from .. import runs
        from .observer import Terminal

    advise("the same command starts anew")
    comparison = runs.compare(
        run,
        split,
        threshold=threshold,
        limit=limit,
        out=out,
        overwrite=overwrite,
        observer=Terminal(),
    )
    _print(comparison)


def _print(comparison: dict[str, Any]) -> None:
    threshold = f", threshold {comparison['threshold']}" if comparison["task"] == "binary" else ""
    console.print(
        f"{comparison['count']} {comparison['split']} images of {printable(comparison['data'])}, "
        f"{comparison['size']} x {comparison['size']}{threshold}\n",
        soft_wrap=True,
    )
    # Without edges, so that names of the time fit into 80 columns.
    table = Table(box=box.SIMPLE, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("run", overflow="fold")
    for title in ("", "mean [95%]", "difference [95%]"):
        table.add_column(title, no_wrap=True)
    for scores in comparison["scores"]:
        for name, title in (("iou", "IoU"), ("dice", "Dice")):
            difference = scores["difference"] and scores["difference"][name]
            star = " *" if difference and difference["excludes_zero"] else ""
            table.add_row(
                printable(scores["name"]) if name == "iou" else "",
                title,
                interval(scores[name]),
                interval(difference, "+") + star if difference else "",
                end_section=name == "dice",
            )
    console.print(table)
    console.print(
        f"\nmean over images; difference from {printable(comparison['scores'][0]['name'])}, "
        "paired by image;\n* where its interval leaves out 0",
    )
