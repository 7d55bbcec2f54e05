"""`data`: prepare the official dataset, check a folder, show examples, pack a dataset."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich import filesize
from rich.table import Table

from ..config import DATA_DIR, Labels, SplitName, TaskName
from ..errors import InputError
from ..storage import cache_folder, replacing
from ..text import printable
from .console import console, display, errors, progress_bar, warn
from .signals import advise

if TYPE_CHECKING:
    from ..data.check import Check
    from ..data.entries import Entry

_Task = Annotated[
    TaskName,
    typer.Option(help="binary tells foreground from background, semantic several classes."),
]
_Labels = Annotated[
    Labels | None,
    typer.Option(
        help="What labels tell. Pets: trimap, or species (semantic). Folders: mask (binary), or "
        "classes (semantic). By default what --task takes."
    ),
]

data_app = typer.Typer(no_args_is_help=True, help="Prepares, checks and shows datasets.")


@data_app.command()
def prepare(
    archives: Annotated[
        Path | None,
        typer.Option(help="Folder with images.tar.gz and annotations.tar.gz, fetched by hand."),
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where TFDS keeps its datasets.")] = DATA_DIR,
) -> None:
    """Prepares Oxford-IIIT Pet, downloaded or from its archives."""
    from ..runs.splits import prepare_oxford
    from .observer import Terminal

    advise("the same command goes on")
    prepare_oxford(data_dir.expanduser(), Terminal(), archives)
    console.print(f"oxford_iiit_pet is ready in {display(data_dir.expanduser())}")


@data_app.command()
def check(
    folder: Annotated[
        Path, typer.Argument(help="Folder of images/ with masks/, in Oxford's layout, or packed.")
    ],
    task: _Task = "binary",
    labels: _Labels = None,
) -> None:
    """Says what a folder's masks hold, and what cannot be used."""
    from ..data.check import check_folder
    from ..data.source import label_kind, open_source

    kind = label_kind(str(folder), task=task, labels=labels)
    with progress_bar("checking images") as progress:
        found = check_folder(folder, kind=kind, progress=progress)
    for line in found.complaints:
        errors.print(line)
    console.print(_splits_table(found))
    if kind in ("classes", "species"):
        console.print(_classes_table(found))
    for line in found.everything.describe():
        console.print(line, soft_wrap=True)
    warn(found.notes)
    if found.complaints:
        raise InputError(
            f"{folder}: {found.unusable} examples cannot be used; replace or remove them"
        )
    warn(f"{folder}: {warning}" for warning in found.judge())
    for split in ("train", "val"):  # without which nothing can be trained
        open_source(str(folder), split, labels=kind)


@data_app.command()
def pack(
    source: Annotated[str, typer.Argument(help="oxford_iiit_pet, synthetic, or a folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    data_dir: Annotated[Path, typer.Option(help="Where TFDS keeps oxford_iiit_pet.")] = DATA_DIR,
) -> None:
    """Packs images and masks, as they are, into few files that training reads at random."""
    from ..data.packing import pack as write
    from ..runs.splits import prepare_oxford
    from .observer import Terminal

    if source == "oxford_iiit_pet":
        prepare_oxford(data_dir.expanduser(), Terminal())
    with progress_bar("packing images") as progress:
        packed = write(source, out, data_dir=data_dir, progress=progress)
    warn(packed.notes)
    counts = ", ".join(f"{len(each)} {name}" for name, each in packed.splits.items())
    size = filesize.decimal(sum(shard.bytes for shard in packed.shards))
    console.print(
        f"{counts}: {size} in {display(out)}; train on it with --data {display(out)}",
        soft_wrap=True,
    )


@data_app.command()
def show(
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    data: Annotated[
        str, typer.Option(help="oxford_iiit_pet, synthetic, or a folder.")
    ] = "oxford_iiit_pet",
    data_dir: Annotated[Path, typer.Option(help="Where TFDS keeps oxford_iiit_pet.")] = DATA_DIR,
    split: Annotated[SplitName, typer.Option(help="Which split to show.")] = "train",
    task: _Task = "binary",
    labels: _Labels = None,
    count: Annotated[int, typer.Option(min=1, help="How many images, from the first on.")] = 25,
    size: Annotated[int, typer.Option(min=1, help="Height and width of each in pixels.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Of the changes that --augment makes.")] = 0,
    augment: Annotated[
        bool, typer.Option(help="Change images as training does, at random.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the file where it exists.")] = False,
) -> None:
    """Draws images with the outlines of their labels."""
    if out.exists() and not overwrite:
        raise InputError(f"{out}: exists; name another file, or add --overwrite")
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: give it a name that ends in .png")

    import numpy as np
    from PIL import Image

    from ..data.decoding import decode, resize_pair
    from ..data.sheet import contact_sheet
    from ..data.source import label_kind, open_source

    kind = label_kind(data, task=task, labels=labels)
    source = open_source(data, split, labels=kind, data_dir=data_dir, limit=count)
    pairs = [resize_pair(*decode(source[i])[:2], size) for i in range(len(source))]
    images, areas = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
    if augment:
        import jax

        from ..data import augment as augmentation

        keys = jax.random.split(jax.random.key(seed), len(images))
        changed = jax.vmap(lambda image, area, key: augmentation.augment(image, area, key=key))
        bright, moved = jax.jit(changed)(images, areas, keys)
        images, areas = (np.asarray(bright) * 255).astype(np.uint8), np.asarray(moved)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as file:
        Image.fromarray(contact_sheet(images, areas)).save(file, "PNG")
    console.print(f"{len(images)} {split} examples of {printable(data)} in {display(out)}")


@data_app.command()
def cache(
    clear: Annotated[
        Literal["stale", "all"] | None,
        typer.Option(
            help="Remove entries: those that other versions made, or that were not finished, or "
            "all of them."
        ),
    ] = None,
) -> None:
    """Lists or removes the decoded images that are kept."""
    from ..data.entries import list_entries, remove_entries

    entries = list_entries()
    where = display(cache_folder("data"))
    if clear is None:
        console.print(_entries_table(entries))
        console.print(f"{_total(entries)} in {where}", soft_wrap=True)
        return
    chosen = [entry for entry in entries if clear == "all" or entry.is_stale]
    removed = remove_entries(chosen)
    console.print(f"removed {_total(removed)} from {where}", soft_wrap=True)
    busy = [entry.folder.name for entry in chosen if entry not in removed]
    warn(f"another process is writing {name}, which was left" for name in busy)


def _entries_table(entries: "list[Entry]") -> Table:
    table = Table("data", "labels", "size", "images", "bytes", "last used", "state")
    for entry in entries:
        table.add_row(
            printable(entry.origin or entry.folder.name),
            entry.kind,
            str(entry.size or ""),
            str(entry.count or ""),
            filesize.decimal(entry.bytes),
            f"{datetime.fromtimestamp(entry.used):%Y-%m-%d %H:%M}",
            "stale" if entry.is_stale else "",
        )
    return table


def _total(entries: "list[Entry]") -> str:
    size = filesize.decimal(sum(entry.bytes for entry in entries))
    return f"{len(entries)} entries, {size}"


def _splits_table(found: "Check") -> Table:
    table = Table("split", "examples", "unusable")
    has_foreground = found.everything.kind != "classes"
    if has_foreground:
        for name in ("foreground", "empty masks", "full masks"):
            table.add_column(name)
    for split, summary in found.splits.items():
        count = found.counts[split]
        cells = [str(count), str(count - summary.count)]
        if has_foreground:
            cells += [f"{summary.foreground:.1%}", str(summary.empty), str(summary.full)]
        table.add_row(split, *cells)
    return table


def _classes_table(found: "Check") -> Table:
    """Each class's share of pixels in each split, and in how many masks it is."""
    table = Table("index", "class", *found.splits)
    for index, name in enumerate(found.classes):
        cells = [
            f"{summary.shares.get(str(index), 0):.2%} in {summary.values.get(str(index), 0)}"
            for summary in found.splits.values()
        ]
        table.add_row(str(index), printable(name), *cells)
    return table
