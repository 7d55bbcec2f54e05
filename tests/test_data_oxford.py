import hashlib
import io
import json
import resource
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from eqxunet.data import oxford, oxford_builder
from eqxunet.data.decoding import decode
from eqxunet.data.example import names_of
from eqxunet.data.oxford import Archive, OxfordPets, prepare
from eqxunet.data.packing import pack
from eqxunet.data.source import open_source
from eqxunet.errors import BusyError, InputError, IntegrityError, UnavailableError

TRAINVAL = [f"Abyssinian_{i}" for i in (1, 2, 5, 10, 34)] + [f"beagle_{i}" for i in range(110, 119)]
TEST = ["Abyssinian_3", "pug_7", "pug_70"]
PNG, GIF, TRUNCATED = "Abyssinian_5", "Abyssinian_34", "beagle_116"
FILES = ("images.tar.gz", "annotations.tar.gz")


def picture(stem: str) -> np.ndarray:
    """A smooth picture, so that JPEG hardly changes it, of a size and hue of the stem's own."""
    own = sum(stem.encode())
    height, width = 48 + own % 9, 64 + own % 7
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x, 3 * y, np.full_like(x, own % 256)], axis=-1).astype(np.uint8)


def trimap(stem: str) -> np.ndarray:
    height, width, _ = picture(stem).shape
    mask = np.full((height, width), 2, np.uint8)
    mask[8:-8, 8:-8] = 3
    mask[12:-12, 12:-12] = 1
    return mask


def encoded(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def image_file(stem: str) -> bytes:
    if stem == PNG:
        opaque = np.full((*picture(stem).shape[:2], 1), 255, np.uint8)
        return encoded(np.concatenate([picture(stem), opaque], axis=-1), "PNG")
    if stem == GIF:
        return encoded(np.full_like(picture(stem), 51), "GIF")
    jpeg = encoded(picture(stem), "JPEG")
    return jpeg[: len(jpeg) * 4 // 5] if stem == TRUNCATED else jpeg


def xml(stem: str) -> bytes:
    height, width, _ = picture(stem).shape
    return (
        f"<annotation><size><width>{width}</width><height>{height}</height></size><object><bndbox>"
        f"<xmin>8</xmin><ymin>12</ymin><xmax>40</xmax><ymax>36</ymax></bndbox></object></annotation>"
    ).encode()


def official_members() -> dict[str, dict[str, bytes]]:
    def listed(stems: list[str]) -> bytes:
        lines = (f"{s} 1 1 1" if s[0].isupper() else f"{s} 5 2 1" for s in stems)
        return "".join(f"{line}\n" for line in lines).encode()

    everything = TRAINVAL + TEST
    images = {f"images/{stem}.jpg": image_file(stem) for stem in everything}
    images |= {"images/Abyssinian_99.jpg": b"in no list", "images/._pug_7.jpg": b"attributes"}
    notes = {f"annotations/trimaps/{s}.png": encoded(trimap(s), "PNG") for s in everything}
    notes |= {f"annotations/xmls/{s}.xml": xml(s) for s in TRAINVAL}
    notes |= {"annotations/trimaps/._pug_7.png": b"attributes"}
    notes |= {"annotations/list.txt": b"#Image CLASS-ID SPECIES BREED ID\n" + listed(everything)}
    notes |= {"annotations/trainval.txt": listed(TRAINVAL), "annotations/test.txt": listed(TEST)}
    return dict(zip(FILES, (images, notes), strict=True))


def write_archives(folder: Path, *extra: tarfile.TarInfo, without: str = "") -> Path:
    folder.mkdir()
    for archive, members in official_members().items():
        with tarfile.open(folder / archive, "w:gz") as tar:
            for name, data in members.items():
                if name != without:
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            if archive == "images.tar.gz":
                for member in extra:
                    tar.addfile(member, io.BytesIO(bytes(member.size)))
    return folder


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    return write_archives(tmp_path_factory.mktemp("official") / "archives")


@pytest.fixture(scope="module")
def prepared(archives, tmp_path_factory) -> Path:
    data_dir = tmp_path_factory.mktemp("prepared") / "data"
    with pytest.MonkeyPatch.context() as monkeypatch:
        publish(monkeypatch, archives)
        prepare(data_dir, archives=archives)
    return data_dir


def publish(monkeypatch, folder: Path, base: str = "http://127.0.0.1:9") -> None:
    """Declares these archives the official ones, whose 811 MB no test can have."""

    def archive(name: str) -> Archive:
        data = (folder / name).read_bytes()
        return Archive(f"{base}/{name}", len(data), hashlib.sha256(data).hexdigest())

    published = (archive(FILES[0]), archive(FILES[1]))
    monkeypatch.setattr(oxford, "_published", lambda: published)


def unprepared(data_dir: Path) -> bool:
    """Whether no file but the lock is in `data_dir`."""
    return {f.name for f in data_dir.rglob("*") if f.is_file()} <= {"oxford_iiit_pet.lock"}


@contextmanager
def serving(folder: Path):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


STOCK = """
import io, json, sys
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
out, data_dir = {}, sys.argv[1]
raw = {"image": tfds.decode.SkipDecoding()}
for split in ("train", "test"):
    decoded = tfds.data_source("oxford_iiit_pet", split=split, data_dir=data_dir, download=False)
    encoded = tfds.data_source(
        "oxford_iiit_pet", split=split, data_dir=data_dir, download=False, decoders=raw
    )
    for example, bare in zip(decoded, encoded):
        out[example["file_name"].decode()] = {
            "split": split,
            "format": Image.open(io.BytesIO(bare["image"])).format,
            "image": example["image"].tolist(),
            "trimap": example["segmentation_mask"].tolist(),
            "label": int(example["label"]),
            "species": int(example["species"]),
            "head": [float(x) for x in example["head_bbox"]],
        }
json.dump(out | {"tensorflow": "tensorflow" in sys.modules}, sys.stdout)
"""


def test_stock_tfds_reads_what_was_prepared(prepared):
    done = subprocess.run(
        [sys.executable, "-c", STOCK, str(prepared)], capture_output=True, text=True, check=True
    )
    read = json.loads(done.stdout)
    assert not read.pop("tensorflow")
    assert {name for name, e in read.items() if e["split"] == "train"} == {
        f"{stem}.jpg" for stem in TRAINVAL
    }
    assert {name for name, e in read.items() if e["split"] == "test"} == {
        f"{stem}.jpg" for stem in TEST
    }
    assert all(example["format"] == "JPEG" for example in read.values())
    for stem in TRAINVAL + TEST:
        example = read[f"{stem}.jpg"]
        np.testing.assert_array_equal(np.array(example["trimap"])[..., 0], trimap(stem))
        height, width, _ = picture(stem).shape
        got = np.array(example["image"])
        assert got.shape == (height, width, 3)
        want = np.full_like(picture(stem), 51) if stem == GIF else picture(stem)
        rows = 16 if stem == TRUNCATED else height  # one row of JPEG's blocks
        assert np.abs(got[:rows].astype(int) - want[:rows]).mean() < 3
        assert (example["label"], example["species"]) == ((0, 0) if stem[0] == "A" else (4, 1))
        head = [12 / height, 8 / width, 36 / height, 40 / width] if stem in TRAINVAL else [0] * 4
        np.testing.assert_allclose(example["head"], head, rtol=1e-6)


def test_splits_are_cut_from_the_sorted_official_lists(prepared):
    splits = {split: OxfordPets(split, prepared) for split in ("train", "val", "test")}
    names = {
        split: [e.name for e in map(s.__getitem__, range(len(s)))] for split, s in splits.items()
    }
    ordered = sorted(TRAINVAL)
    assert names["val"] == [ordered[0], ordered[10]]
    assert names["train"] == ordered[1:10] + ordered[11:]
    assert names["test"] == sorted(TEST)
    assert len({source.identity for source in splits.values()}) == 3
    everything = OxfordPets("all", prepared)
    assert [e.name for e in map(everything.__getitem__, range(len(everything)))] == sorted(
        sum(names.values(), [])
    )
    limited = OxfordPets("train", prepared, limit=4)
    assert [limited[i].name for i in range(len(limited))] == names["train"][:4]
    assert limited.identity != splits["train"].identity


def test_species_are_those_of_the_lists(prepared):
    train = OxfordPets("train", prepared, kind="species")
    assert train.classes.names == ("background", "cat", "dog")
    for example in map(train.__getitem__, range(len(train))):
        pet = 1 if example.name[0] == "A" else 2
        expected = np.select([trimap(example.name) == v for v in (1, 3)], [pet, pet + 2])
        np.testing.assert_array_equal(decode(example).labels, expected)


def test_whole_files_come_as_they_are(prepared):
    train = OxfordPets("train", prepared)
    for example in map(train.__getitem__, range(len(train))):
        assert example.mask == encoded(trimap(example.name), "PNG")
        as_published = example.name not in (PNG, GIF, TRUNCATED)
        assert (example.image == image_file(example.name)) == as_published
    with pytest.raises(IndexError):
        train[len(train)]


def test_a_pack_of_it_is_the_same(prepared, tmp_path):
    pack("oxford_iiit_pet", tmp_path / "packed", data_dir=prepared)
    for split in ("train", "val", "test", "all"):
        ours = OxfordPets(split, prepared, kind="species")
        theirs = open_source(str(tmp_path / "packed"), split, labels="species")
        assert names_of(theirs) == names_of(ours) == tuple(e.name for e in ours)
        for here, there in zip(ours, theirs, strict=True):
            assert (here.image, here.mask, here.species) == (there.image, there.mask, there.species)


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def sparse() -> tarfile.TarInfo:
    member = special("images/zeros.jpg", tarfile.GNUTYPE_SPARSE)
    member.size = 0
    return member


def big(size: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo("images/zeros.jpg")
    member.size = size
    return member


@pytest.mark.parametrize(
    "member, told",
    [
        (special("../outside.jpg", tarfile.REGTYPE), "outside"),
        (special("images/../../outside.jpg", tarfile.REGTYPE), "outside"),
        (special("/tmp/outside.jpg", tarfile.REGTYPE), "outside"),
        (special("images/pug_8.jpg", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (special("images/pug_8.jpg", tarfile.LNKTYPE, "images/pug_7.jpg"), "link"),
        (special("images/pug_8.jpg", tarfile.CHRTYPE), "device"),
        (special("images/pug_8.jpg", tarfile.FIFOTYPE), "device"),
        (big(1 << 22), "more than"),
        (sparse(), "holes"),
    ],
)
def test_a_poisoned_archive_is_refused(monkeypatch, tmp_path, member, told):
    folder = write_archives(tmp_path / "archives", member)
    publish(monkeypatch, folder)
    monkeypatch.setattr(oxford_builder, "MAX_UNPACKED", 1 << 21)
    with pytest.raises(IntegrityError, match=f"images.tar.gz: .*{told}"):
        prepare(tmp_path / "data", archives=folder)
    assert unprepared(tmp_path / "data")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["archives", "data"]


@pytest.mark.parametrize(
    "lost, told",
    [
        ("images/pug_7.jpg", "images.tar.gz: lacks 1 images, as pug_7"),
        ("annotations/trimaps/pug_7.png", "lacks annotations/trimaps/pug_7.png"),
        ("annotations/test.txt", "lacks annotations/test.txt"),
    ],
)
def test_an_archive_that_lacks_a_file_is_refused(monkeypatch, tmp_path, lost, told):
    folder = write_archives(tmp_path / "archives", without=lost)
    publish(monkeypatch, folder)
    with pytest.raises(IntegrityError, match=told):
        prepare(tmp_path / "data", archives=folder)
    assert unprepared(tmp_path / "data")


def test_a_file_that_is_no_image_is_named():
    with pytest.raises(IntegrityError, match="images/pug_9.jpg"):
        oxford_builder.as_jpeg(b"<html>", name="pug_9.jpg")


@pytest.mark.parametrize(
    "change, error, told",
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-1] + b"x"), IntegrityError, "sha256 .* instead"),
        (lambda f: f.write_bytes(f.read_bytes()[:99]), IntegrityError, "99 bytes instead of"),
        (lambda f: f.unlink(), InputError, "no such file; fetch http"),
    ],
)
def test_archives_must_be_the_published_ones(monkeypatch, tmp_path, change, error, told):
    folder = write_archives(tmp_path / "archives")
    publish(monkeypatch, folder)
    change(folder / "annotations.tar.gz")
    with pytest.raises(error, match=f"annotations.tar.gz: {told}"):
        prepare(tmp_path / "data", archives=folder)
    assert not (tmp_path / "data").exists()


def test_published_checksums_are_tfds_own():
    images, annotations = oxford._published()
    assert (images.name, annotations.name) == FILES
    assert (images.size, annotations.size) == (791_918_971, 19_173_078)
    assert images.sha256.startswith("67195c5e") and annotations.sha256.startswith("52425fb6")


def test_downloads_where_nothing_is_prepared(monkeypatch, tmp_path, archives, capfd):
    seen = []
    with serving(archives) as base:
        publish(monkeypatch, archives, base)
        prepare(tmp_path, progress=lambda done, total: seen.append((done, total)))
        assert len(OxfordPets("test", tmp_path)) == len(TEST)
    done, totals = zip(*seen, strict=True)
    assert list(done) == sorted(done) and set(totals) == {done[-1]}
    assert not any(file.name in FILES for file in tmp_path.rglob("*"))
    assert capfd.readouterr() == ("", "")


def test_a_download_that_differs_is_refused(monkeypatch, tmp_path, archives):
    other = write_archives(tmp_path / "other", big(7))
    with serving(other) as base:
        publish(monkeypatch, archives, base)
        with pytest.raises(IntegrityError, match="images.tar.gz"):
            prepare(tmp_path / "data")
    assert not (tmp_path / "data" / "oxford_iiit_pet").exists()


def test_an_archive_that_lies_where_downloads_do_is_not_trusted(monkeypatch, tmp_path, archives):
    publish(monkeypatch, archives)
    downloads = tmp_path / "downloads" / "oxford_iiit_pet"
    downloads.mkdir(parents=True)
    for name in FILES:
        (downloads / name).write_bytes((archives / name).read_bytes())
    with (downloads / FILES[0]).open("ab") as file:
        file.write(b"x")
    with pytest.raises(IntegrityError, match=f"{FILES[0]}: .* bytes instead of"):
        prepare(tmp_path)
    assert not (tmp_path / "oxford_iiit_pet").exists()


def test_offline_the_ways_out_are_told(monkeypatch, tmp_path, archives):
    publish(monkeypatch, archives)  # at a port where nothing listens
    start = time.monotonic()
    with pytest.raises(UnavailableError) as caught:
        OxfordPets("train", tmp_path)
    assert time.monotonic() - start < 3
    told = str(caught.value)
    assert len(told.splitlines()) == 2
    for way in (*FILES, "data prepare --archives DIR", "--data synthetic", "--data DIR"):
        assert way in told


@pytest.mark.slow
def test_a_silent_server_is_given_up_within_ten_seconds(monkeypatch, tmp_path, archives):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        publish(monkeypatch, archives, f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(UnavailableError, match="--data synthetic"):
            prepare(tmp_path)
        assert time.monotonic() - start < 10


def test_a_silent_name_server_is_given_up(monkeypatch, tmp_path, archives):
    release = threading.Event()

    def never(*_):
        release.wait(20)
        raise socket.gaierror("released")

    publish(monkeypatch, archives, "http://example.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", never)
    monkeypatch.setattr(oxford, "PATIENCE", 0.2)
    start = time.monotonic()
    with pytest.raises(UnavailableError, match="example.invalid.*no answer"):
        prepare(tmp_path)
    assert time.monotonic() - start < 3
    release.set()


# Prepares in a process of its own, which dies once `share` of the work is done.
DIES = """
import hashlib, os, signal, sys
from pathlib import Path
from eqxunet.data import oxford
data_dir, archives, share = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
def archive(name):
    data = (archives / name).read_bytes()
    return oxford.Archive("http://127.0.0.1:9/" + name, len(data), hashlib.sha256(data).hexdigest())
published = archive("images.tar.gz"), archive("annotations.tar.gz")
oxford._published = lambda: published
def progress(done, total):
    if done > share * total:
        os.kill(os.getpid(), signal.SIGKILL)
oxford.prepare(data_dir, archives=archives, progress=progress)
"""


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_what_a_killed_process_left_is_not_trusted(monkeypatch, tmp_path, archives, share):
    command = [sys.executable, "-c", DIES, str(tmp_path), str(archives), str(share)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert list((tmp_path / "oxford_iiit_pet").glob("incomplete.*"))
    publish(monkeypatch, archives)
    prepare(tmp_path, archives=archives)
    assert [f.name for f in (tmp_path / "oxford_iiit_pet").iterdir()] == ["4.0.0"]
    assert len(OxfordPets("test", tmp_path)) == len(TEST)


def test_preparation_says_nothing(tmp_path, archives):
    command = [sys.executable, "-c", DIES, str(tmp_path), str(archives), "2"]
    done = subprocess.run(command, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_interrupted_preparation_leaves_nothing(monkeypatch, tmp_path, archives):
    publish(monkeypatch, archives)
    with monkeypatch.context() as context:

        def interrupted(data, *, name):
            raise KeyboardInterrupt

        context.setattr(oxford_builder, "as_jpeg", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, archives=archives)
    assert unprepared(tmp_path)
    prepare(tmp_path, archives=archives)
    assert len(OxfordPets("test", tmp_path)) == len(TEST)


def test_one_process_prepares_at_a_time(monkeypatch, tmp_path, archives):
    publish(monkeypatch, archives)
    with FileLock(tmp_path / "oxford_iiit_pet.lock"), pytest.raises(BusyError, match="another"):
        prepare(tmp_path, archives=archives)


def test_a_full_disk_is_told_beforehand(monkeypatch, tmp_path, archives):
    publish(monkeypatch, archives)
    monkeypatch.setattr(oxford.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 99}))
    with pytest.raises(UnavailableError, match="99 bytes free"):
        prepare(tmp_path, archives=archives)


def test_a_disk_that_fills_up_leaves_nothing(monkeypatch, tmp_path, archives):
    publish(monkeypatch, archives)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UnavailableError, match="cannot be written"):
            prepare(tmp_path, archives=archives)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert unprepared(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch, archives):
    publish(monkeypatch, archives)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="file"):
        prepare(tmp_path / "file" / "data", archives=archives)


def test_a_dataset_in_other_files_is_told_apart(tmp_path, prepared):
    version = tmp_path / "oxford_iiit_pet" / "4.0.0"
    version.mkdir(parents=True)
    with pytest.raises(IntegrityError, match="no whole dataset"):
        prepare(tmp_path)
    for file in (prepared / "oxford_iiit_pet" / "4.0.0").glob("*.json"):
        text = file.read_text().replace('"array_record"', '"tfrecord"')
        (version / file.name).write_text(text)
    with pytest.raises(InputError, match="tfrecord.*--data-dir"):
        prepare(tmp_path)
