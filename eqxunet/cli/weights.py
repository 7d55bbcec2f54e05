"""`weights`: get, check, convert and show pretrained weights."""

from pathlib import Path
from typing import Annotated

import typer

from ..config import Encoder
from ..errors import InputError
from ..text import printable
from .console import console, display, progress_bar
from .signals import advise

weights_app = typer.Typer(no_args_is_help=True, help="Gets and checks pretrained weights.")

File = Annotated[
    Path, typer.Argument(help="SERL's pickle, a state dict of torch.save, or safetensors.")
]


@weights_app.command()
def download(
    encoder: Annotated[Encoder, typer.Option(help="Whose weights.")] = "resnet10",
    url: Annotated[
        str | None,
        typer.Option(help="A mirror (http, https or file); by default the release's own."),
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the file goes.")] = Path("weights"),
) -> None:
    """Fetches and verifies an encoder's release; resumes."""
    from ..weights import RELEASES, fetch_release, identify

    if encoder not in RELEASES:
        raise InputError(f"{encoder}: there are no weights for it; give --encoder resnet10, say")
    advise("the same command goes on")
    with progress_bar("downloading", unit="bytes") as progress:
        path = fetch_release(directory, encoder=encoder, url=url, progress=progress)
    console.print(f"{display(path)}: {identify(path)}", soft_wrap=True)


@weights_app.command()
def verify(file: File) -> None:
    """Compares a file with the known releases by its sha256."""
    from ..weights import read_weights
    from ..weights import verify as verify_release

    identity = verify_release(file)
    read_weights(file)
    console.print(f"{display(file)}: {identity}", soft_wrap=True)


@weights_app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="SERL's pickle, or a state dict of torch.save.")],
    out: Annotated[Path, typer.Argument(help="A new file, FILE.safetensors.")],
) -> None:
    """Rewrites a pickle as safetensors."""
    from ..weights.convert import convert as convert_file

    source = convert_file(file, out)
    console.print(f"{display(out)}: written and read back; source: {source}", soft_wrap=True)


@weights_app.command()
def show(file: File) -> None:
    """Lists a file's arrays."""
    import hashlib

    import numpy as np
    from rich import box
    from rich.table import Table

    from ..weights import identify, read_weights

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("array", "shape", "norm", "sha256[:16]"):
        table.add_column(column, overflow="fold")  # a name in two lines is still a name
    for name, array in read_weights(file)[1].items():
        norm = np.linalg.norm(array.astype(np.float64))
        table.add_row(
            printable(name),
            "x".join(map(str, array.shape)),
            f"{norm:.4f}",
            hashlib.sha256(array.tobytes()).hexdigest()[:16],
        )
    console.print(table)
    console.print(f"{display(file)}: {identify(file)}", soft_wrap=True)
