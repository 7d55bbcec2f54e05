"""Small pictures and folders of them, for the tests of eqxunet.data."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PETS = Path(__file__).parents[2] / "shared" / "data" / "oxford_pets"
needs_pets = pytest.mark.skipif(not PETS.is_dir(), reason=f"no Oxford-IIIT Pet images in {PETS}")


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def labels(height: int, width: int) -> np.ndarray:
    """A trimap in three vertical bands."""
    return np.repeat(np.arange(width)[None] * 3 // width + 1, height, 0).astype(np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options) -> bytes:
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG that announces a size and breaks off where its pixels should begin."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    checked = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + checked + struct.pack(">I", 99) + b"IDAT"


def write_pair(root: Path, stem: str, masks: str = "masks", *, seed: int = 0) -> None:
    """Writes `images/STEM.png` of 12 x 16 pixels, and its mask."""
    for folder in (root / "images", root / masks):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "images" / f"{stem}.png").write_bytes(encoded(noise(12, 16, seed)))
    trimap = labels(12, 16)
    mask = trimap if masks.endswith("trimaps") else np.where(trimap == 2, 0, 255).astype(np.uint8)
    (root / masks / f"{stem}.png").write_bytes(encoded(mask))


def write_plain(root: Path, stems: list[str]) -> Path:
    for seed, stem in enumerate(stems):
        write_pair(root, stem, seed=seed)
    return root


def write_oxford(root: Path, trainval: list[str], test: list[str]) -> Path:
    for seed, stem in enumerate([*trainval, *test]):
        write_pair(root, stem, "annotations/trimaps", seed=seed)
    for name, stems in (("trainval", trainval), ("test", test)):
        lines = ["#Image CLASS-ID SPECIES BREED ID", *(f"{stem} 1 2 3" for stem in stems)]
        (root / "annotations" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root
