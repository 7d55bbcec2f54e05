import ast
import errno
import json
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import PETS, encoded, labels, needs_pets, noise, write_pair, write_plain

from eqxunet.data import cache, decoding
from eqxunet.data.cache import decode_all, load_split
from eqxunet.data.classes import Classes
from eqxunet.data.entries import list_entries
from eqxunet.data.example import Example
from eqxunet.errors import InputError, UnavailableError

STEMS = ["a", "b", "c", "d"]


class Counting:
    """Examples that count how often they are asked for."""

    def __init__(self, count: int = 5, identity: str = "counting"):
        self.identity, self.notes = identity, ()
        self.kind, self.classes = "trimap", Classes()
        self.count = count
        self.asked = []

    def name(self, index):
        return f"n{index}"

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        self.asked.append(index)
        return Example(noise(9, 11, index), labels(9, 11), f"n{index}")


@pytest.fixture
def folder(tmp_path):
    root = write_plain(tmp_path / "data", STEMS)
    (root / "train.txt").write_text("\n".join(STEMS))
    return root


def only_cache(cache_dir: Path) -> Path:
    (found,) = [path for path in cache_dir.iterdir() if path.is_dir()]
    return found


def test_a_split_is_decoded_and_resized(folder, tmp_path):
    arrays = load_split(str(folder), "train", size=8, cache_dir=tmp_path / "cache")
    assert arrays.names == tuple(STEMS) and len(arrays) == 4
    assert arrays.images.shape == (4, 8, 8, 3) and arrays.labels.shape == (4, 8, 8)
    assert not arrays.images.flags.writeable
    assert (arrays.kind, arrays.classes) == ("mask", ("background", "foreground"))
    mask = (labels(12, 16) != 2).astype(np.uint8)
    for i in range(4):
        image, small = decoding.resize_pair(noise(12, 16, i), mask, 8)
        np.testing.assert_array_equal(arrays.images[i], image)
        np.testing.assert_array_equal(arrays.labels[i], small)


def test_the_second_load_decodes_nothing(tmp_path):
    source, progress = Counting(), []
    first = decode_all(
        source, size=6, cache_dir=tmp_path, progress=lambda *done: progress.append(done)
    )
    assert progress == [(i, 5) for i in range(1, 6)]
    second = decode_all(source, size=6, cache_dir=tmp_path)
    assert sorted(source.asked) == list(range(5))
    np.testing.assert_array_equal(first.images, second.images)
    assert second.names == ("n0", "n1", "n2", "n3", "n4")


def test_the_default_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    decode_all(Counting(), size=6)
    assert only_cache(tmp_path / "eqxunet" / "data")


def test_another_source_or_size_is_another_cache(tmp_path):
    sizes = [decode_all(Counting(), size=n, cache_dir=tmp_path).images.shape[1] for n in (5, 6)]
    assert sizes == [5, 6]
    other = Counting(identity="other")
    decode_all(other, size=5, cache_dir=tmp_path)
    assert other.asked


def test_a_changed_file_is_decoded_anew(folder, tmp_path):
    before = load_split(str(folder), "train", size=8, cache_dir=tmp_path / "cache")
    write_pair(folder, "b", seed=77)
    after = load_split(str(folder), "train", size=8, cache_dir=tmp_path / "cache")
    assert (before.images[1] != after.images[1]).any()
    np.testing.assert_array_equal(before.images[[0, 2, 3]], after.images[[0, 2, 3]])


def test_changed_code_or_libraries_make_another_cache(monkeypatch):
    source = Counting()
    keys = {cache._key(source, 6)}
    monkeypatch.setattr(cache.PIL, "__version__", "0")
    keys.add(cache._key(source, 6))
    monkeypatch.setattr(cache, "_CODE", ("decoding.py",))
    keys.add(cache._key(source, 6))
    assert len(keys) == 3


def test_the_key_covers_all_code_that_makes_pixels():
    folder = Path(cache.__file__).parent
    no_pixels = {"budget", "classes", "complaints", "mask_checks", "source", "split", "streaming"}
    for name in cache._CODE:
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert node.module in no_pixels or f"{node.module}.py" in cache._CODE


def flipped(folder: Path) -> None:
    content = bytearray((folder / "images.npy").read_bytes())
    content[-1] ^= 1
    (folder / "images.npy").write_bytes(content)


def shortened(folder: Path) -> None:
    content = (folder / "labels.npy").read_bytes()
    (folder / "labels.npy").write_bytes(content[:-1])


def lengthened(folder: Path) -> None:
    (folder / "labels.npy").chmod(0o644)
    with (folder / "labels.npy").open("ab") as file:
        file.write(b"x")


def emptied(folder: Path) -> None:
    (folder / "images.npy").write_bytes(b"")


def without_index(folder: Path) -> None:
    (folder / "index.json").unlink()


def garbled(folder: Path) -> None:
    (folder / "index.json").write_bytes(b"\xff{")


def too_few_names(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"names": index["names"][:2]}))


def not_an_object(folder: Path) -> None:
    (folder / "index.json").write_text("[]")


def nested(folder: Path) -> None:
    (folder / "index.json").write_text("[" * 100_000)


def too_long(folder: Path) -> None:
    os.truncate(folder / "index.json", 1 << 33)  # which takes no room on a disk


def a_pipe(folder: Path) -> None:
    (folder / "index.json").unlink()
    os.mkfifo(folder / "index.json")


def another_mask(folder: Path) -> None:
    content = (folder / "index.json").read_text()
    assert '"count": 5' in content
    (folder / "index.json").write_text(content.replace('"count": 5', '"count": 6'))


def no_number(folder: Path) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"masks": {"values": {"x": "y"}}}))


def with_header(header: bytes):
    def change(folder: Path) -> None:
        content = (folder / "images.npy").read_bytes()
        start = len(content) - 5 * 6 * 6 * 3
        (folder / "images.npy").write_bytes(header[:start].ljust(start) + content[start:])

    return change


def npy(descr: str, shape: str, version: bytes = b"\1\0") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode()


HEADERS = [
    npy("'|O'", "(5, 6, 6, 3)"),
    npy("'|u1'", "(99999999999999999999, 6)"),
    npy("'|u1'", "(-1, 6, 6, 3)"),
    npy("'|u1'", "((((((((((((((((((((((((("),
    npy("'|u1'", "(5, 6, 6, 3)", b"\2\0"),
    npy("'|u1'", "(5, 18, 6)"),
    npy("'<u2'", "(5, 6, 3, 3)"),
    npy("'|u1", "(5, 6, 6, 3)"),
    b"PK\3\4",
    b"\x80\4.",
]


@pytest.mark.parametrize(
    "damage",
    [
        *(flipped, shortened, emptied, without_index, garbled, too_few_names, not_an_object),
        *(lengthened, nested, too_long, a_pipe, another_mask, no_number),
        *(pytest.param(with_header(header), id=f"header {i}") for i, header in enumerate(HEADERS)),
    ],
)
@pytest.mark.parametrize("is_mapped", [False, True])
def test_a_damaged_cache_is_made_anew(tmp_path, damage, is_mapped, monkeypatch):
    if is_mapped:
        monkeypatch.setattr(cache, "_SMALL", 0)
    before = decode_all(Counting(), size=6, cache_dir=tmp_path)
    images = before.images.copy()
    damage(only_cache(tmp_path))
    assert len(list_entries(tmp_path)) == 1
    source = Counting()
    after = decode_all(source, size=6, cache_dir=tmp_path)
    assert source.asked
    np.testing.assert_array_equal(after.images, images)
    assert after.names == before.names


def test_any_byte_of_a_cache_counts(tmp_path):
    before = decode_all(Counting(), size=6, cache_dir=tmp_path)
    images, rng = before.images.copy(), np.random.default_rng(0)
    for number in range(60):
        name = ("images.npy", "labels.npy", "index.json")[number % 3]
        path = only_cache(tmp_path) / name
        content = bytearray(path.read_bytes())
        # The cache's own name for itself, which nothing else depends on, is checked as well.
        content[rng.integers(min(len(content), 128 if number % 2 else len(content)))] ^= 1
        path.chmod(0o644)
        path.write_bytes(content)
        source = Counting()
        after = decode_all(source, size=6, cache_dir=tmp_path)
        assert source.asked, (name, number)
        np.testing.assert_array_equal(after.images, images)


def test_files_of_a_cache_are_written_once(tmp_path):
    decode_all(Counting(), size=6, cache_dir=tmp_path)
    files = [*only_cache(tmp_path).iterdir()]
    assert len(files) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o444}


def test_large_caches_are_mapped_and_small_ones_are_read(tmp_path, monkeypatch):
    size = 5 * 6 * 6 * 4
    monkeypatch.setattr(cache, "_SMALL", size)
    read = decode_all(Counting(), size=6, cache_dir=tmp_path)
    monkeypatch.setattr(cache, "_SMALL", size - 1)
    mapped = decode_all(Counting(), size=6, cache_dir=tmp_path)
    for name in ("images", "labels"):
        first, second = getattr(read, name), getattr(mapped, name)
        assert not first.flags.writeable and not second.flags.writeable
        np.testing.assert_array_equal(first, second)
        assert isinstance(second.base, np.memmap) and not isinstance(first.base, np.memmap)


def test_what_a_killed_process_left_is_cleared(tmp_path):
    source = Counting()
    partial = tmp_path / f"{cache._key(source, 6)}.partial"
    partial.mkdir()
    (partial / "images.npy").write_bytes(b"half")
    assert len(decode_all(source, size=6, cache_dir=tmp_path)) == 5
    assert not partial.exists()


def test_all_bad_files_are_named_before_anything_is_kept(folder, tmp_path):
    (folder / "images" / "a.png").write_bytes(encoded(noise(12, 16))[:200])
    (folder / "masks" / "c.png").write_bytes(encoded(labels(5, 5)))
    with pytest.raises(InputError) as caught:
        load_split(str(folder), "train", size=8, cache_dir=tmp_path / "cache")
    first, *lines = str(caught.value).splitlines()
    assert first == "2 of 4 examples cannot be used:"
    assert [line.split(": ")[0] for line in lines] == [
        str(folder / "images" / "a.png"),
        str(folder / "masks" / "c.png"),
    ]
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


@pytest.fixture
def spoil(folder):
    """Adds 25 images to the folder, each with the mask that a function makes of its number."""

    def spoil(mask_of) -> None:
        stems = [f"x{i:02}" for i in range(25)]
        for i, stem in enumerate(stems):
            write_pair(folder, stem)
            (folder / "masks" / f"{stem}.png").write_bytes(mask_of(i))
        (folder / "train.txt").write_text("\n".join(stems))

    return spoil


def complaints(folder: Path, tmp_path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_split(str(folder), "train", size=8, cache_dir=tmp_path / "cache")
    return str(caught.value).splitlines()


def test_one_complaint_of_many_files_is_one_line(folder, tmp_path, spoil):
    lossy = encoded(noise(12, 16), "JPEG")
    spoil(lambda i: lossy if i else b"")
    assert complaints(folder, tmp_path) == [
        "25 of 25 examples cannot be used:",
        f"{folder}/masks/x00.png: cannot be read as an image "
        f"(none of {', '.join(decoding.FORMATS)}); replace or remove it",
        f"{folder}/masks: 24 files: a JPEG holds no exact labels; save the mask as PNG: "
        "x01.png, x02.png, x03.png and 21 more",
    ]


def test_a_long_list_of_complaints_is_cut(folder, tmp_path, spoil):
    spoil(lambda i: encoded(labels(5, 20 + i)))
    lines = complaints(folder, tmp_path)
    assert len(lines) == 12 and lines[-1] == "and 15 lines more"


def test_two_at_once_decode_once(tmp_path):
    source = Counting(40)
    with ThreadPoolExecutor(4) as pool:
        load = lambda _: decode_all(source, size=6, cache_dir=tmp_path)  # noqa: E731
        results = list(pool.map(load, range(4)))
    assert sorted(source.asked) == list(range(40))
    for arrays in results[1:]:
        np.testing.assert_array_equal(arrays.images, results[0].images)


@pytest.mark.slow
def test_two_processes_at_once(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from eqxunet.data import load_split;"
        "arrays = load_split(sys.argv[1], 'train', size=64, cache_dir=Path(sys.argv[2]));"
        "print(int(arrays.images.astype(int).sum()))"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    sums = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len(sums) == 1
    only_cache(tmp_path / "cache")


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    with pytest.raises(UnavailableError, match="No space left.*XDG_CACHE_HOME"):
        decode_all(Counting(), size=6, cache_dir=tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnavailableError, match="cannot be written"):
        decode_all(Counting(), size=6, cache_dir=tmp_path / "file" / "cache")


def test_a_size_of_nothing(folder):
    with pytest.raises(InputError, match="at least 1 pixel"):
        load_split(str(folder), "train", size=0)


@needs_pets
def test_the_real_images(tmp_path):
    arrays = load_split(str(PETS), "val", size=64, cache_dir=tmp_path)
    assert len(arrays) == 30
    # DATA: pet 0.28, background 0.59, border 0.13 of all pixels.
    shares = [(arrays.labels == label).mean() for label in (1, 2, 3)]
    np.testing.assert_allclose(shares, [0.28, 0.59, 0.13], atol=0.08)
