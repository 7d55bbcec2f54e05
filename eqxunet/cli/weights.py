"""`weights`: get, check, convert and show SERL's ResNet-10."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import console, display, progress_bar

if TYPE_CHECKING:
    from ..weights import Identity

weights_app = typer.Typer(no_args_is_help=True, help="Gets and checks SERL's ResNet-10 weights.")

File = Annotated[Path, typer.Argument(help="SERL's pickle, or safetensors made of it.")]


@weights_app.command()
def download(
    url: Annotated[
        str | None, typer.Option(help="A mirror (http, https or file); by default SERL's release.")
    ] = None,
    directory: Annotated[Path, typer.Option(help="Where the file goes.")] = Path("weights"),
) -> None:
    """Fetches and verifies SERL's release; resumes."""
    from ..weights import RELEASE, fetch_release

    with progress_bar("downloading", unit="bytes") as progress:
        path = fetch_release(directory, url=url, progress=progress)
    console.print(
        f"{display(path)}: SERL's release, sha256 {RELEASE.sha256}", markup=False, soft_wrap=True
    )


@weights_app.command()
def verify(file: File) -> None:
    """Compares a file with SERL's release by its sha256."""
    from ..weights import read_serl
    from ..weights import verify as verify_release

    identity = verify_release(file)
    read_serl(file)
    console.print(
        f"{display(file)}: SERL's release, sha256 {identity.sha256}", markup=False, soft_wrap=True
    )


@weights_app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="SERL's pickle, or one of the same arrays.")],
    out: Annotated[Path, typer.Argument(help="A new file, FILE.safetensors.")],
) -> None:
    """Rewrites the pickle as safetensors."""
    from ..weights.convert import convert as convert_file

    source = convert_file(file, out)
    console.print(
        f"{display(out)}: written and read back; source: {_identity(source)}",
        markup=False,
        soft_wrap=True,
    )


@weights_app.command()
def show(file: File) -> None:
    """Lists a file's arrays."""
    import hashlib

    import numpy as np
    from rich import box
    from rich.table import Table

    from ..weights import identify, read_serl

    table = Table("array", "shape", "norm", r"sha256\[:16]", box=box.SIMPLE_HEAD)
    for name, array in read_serl(file).items():
        norm = np.linalg.norm(array.astype(np.float64))
        table.add_row(
            name,
            "x".join(map(str, array.shape)),
            f"{norm:.4f}",
            hashlib.sha256(array.tobytes()).hexdigest()[:16],
        )
    console.print(table)
    console.print(f"{display(file)}: {_identity(identify(file))}", markup=False, soft_wrap=True)


def _identity(identity: "Identity") -> str:
    kind = "SERL's release" if identity.known else "unverified, not SERL's release"
    return f"{kind}, sha256 {identity.sha256}"
