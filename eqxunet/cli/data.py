"""`data`: prepare the official dataset, check a folder, show examples."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..config import DATA_DIR, SplitName
from ..errors import InputError
from .console import console, errors, prepare_oxford, progress_bar, shown, warn

data_app = typer.Typer(no_args_is_help=True, help="Prepares, checks and shows datasets.")


@data_app.command()
def prepare(
    archives: Annotated[
        Path | None,
        typer.Option(help="Folder with images.tar.gz and annotations.tar.gz, fetched by hand."),
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where TFDS keeps its datasets.")] = DATA_DIR,
) -> None:
    """Downloads Oxford-IIIT Pet, or takes its archives, and prepares it for training."""
    prepare_oxford(data_dir.expanduser(), archives)
    console.print(f"oxford_iiit_pet is ready in {shown(data_dir.expanduser())}")


@data_app.command()
def check(
    folder: Annotated[Path, typer.Argument(help="Folder in Oxford or plain layout.")],
) -> None:
    """Decodes every image and mask of a folder; says what cannot be used, and what masks hold."""
    from ..data.decoding import decode, map_examples
    from ..data.folder import open_folder, scan_folder
    from ..data.masks import MaskSummary

    if not folder.is_dir():
        raise InputError(f"{folder}: not a folder")
    sources = scan_folder(folder)
    everything = sources.pop("all")
    masks = {}
    bad = 0
    with progress_bar("checking images") as progress:
        # Only what masks hold is kept, not the pixels.
        found = map_examples(lambda example: (example.name, decode(example).mask), everything)
        for done, result in enumerate(found, start=1):
            if isinstance(result, InputError):
                errors.print(str(result), markup=False)
                bad += 1
            else:
                masks[result[0]] = result[1]
            progress(done, len(everything))
    table = Table("split", "examples", "unusable", "foreground", "empty masks", "full masks")
    summaries = {}
    for split, source in sources.items():
        good = [masks[name] for name in source.names if name in masks]
        summary = summaries[split] = MaskSummary.of(good, source.labels)
        numbers = [len(source), len(source) - len(good), f"{summary.foreground:.1%}"]
        table.add_row(split, *map(str, (*numbers, summary.empty, summary.full)))
    console.print(table)
    for line in MaskSummary.of(masks.values(), everything.labels).describe():
        console.print(line, markup=False, soft_wrap=True)
    warn(everything.notes)
    if bad:
        raise InputError(f"{folder}: {bad} examples cannot be used; replace or remove them")
    for split, summary in summaries.items():
        try:
            warn(f"{folder}: {warning}" for warning in summary.check(split))
        except InputError as error:
            raise InputError(f"{folder}: {error}") from error
    for split in ("train", "val"):  # without which nothing can be trained
        open_folder(folder, split)


@data_app.command()
def show(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    data: Annotated[
        str, typer.Option(help="oxford_iiit_pet, synthetic, or a folder.")
    ] = "oxford_iiit_pet",
    data_dir: Annotated[Path, typer.Option(help="Where TFDS keeps oxford_iiit_pet.")] = DATA_DIR,
    split: Annotated[SplitName, typer.Option(help="Which images.")] = "train",
    count: Annotated[int, typer.Option(min=1, help="How many of them.")] = 25,
    size: Annotated[int, typer.Option(min=1, help="Pixels a side of each.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of --augment.")] = 0,
    augment: Annotated[bool, typer.Option(help="As training sees them, at random.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the file.")] = False,
) -> None:
    """Draws a contact sheet of images with the outlines of their trimaps."""
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists; name another file, or add --overwrite")
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: give it a name that ends in .png")

    import numpy as np
    from PIL import Image

    from ..data.decoding import decode, resize_pair
    from ..data.sheet import contact_sheet
    from ..data.source import open_source

    source = open_source(data, split, data_dir=data_dir, limit=count)
    pairs = [resize_pair(*decode(source[i])[:2], size) for i in range(len(source))]
    images, trimaps = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    if augment:
        import jax

        from ..data import augment as augmentation

        keys = jax.random.split(jax.random.key(seed), len(images))
        changed = jax.vmap(lambda image, trimap, key: augmentation.augment(image, trimap, key=key))
        bright, moved = jax.jit(changed)(images, trimaps, keys)
        images, trimaps = (np.asarray(bright) * 255).astype(np.uint8), np.asarray(moved)
    out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(contact_sheet(images, trimaps)).save(out)
    console.print(f"{len(images)} {split} examples of {data} in {shown(out)}")
