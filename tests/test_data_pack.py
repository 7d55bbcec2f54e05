"""Packed data: what comes out is what went in, whole or not at all."""

import json
import os
import threading

import numpy as np
import pytest
from filelock import FileLock
from pictures import encoded, noise, write_oxford, write_plain
from typer.testing import CliRunner

from eqxunet.cli import app
from eqxunet.data import packing
from eqxunet.data.cache import load_split
from eqxunet.data.decoding import decode
from eqxunet.data.example import names_of
from eqxunet.data.pack import open_pack
from eqxunet.data.packing import pack
from eqxunet.data.source import label_kinds, open_splits
from eqxunet.errors import InputError, IntegrityError
from eqxunet.storage import digest_of


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def indices(root):
    """Lets masks be of class indices, in colours of none."""
    for number, path in enumerate(sorted((root / "masks").iterdir())):
        path.write_bytes(encoded(np.full((12, 16), number % 3, np.uint8)))
    return root


@pytest.fixture
def plain(tmp_path):
    return indices(write_plain(tmp_path / "plain", [f"p{i}" for i in range(10)]))


@pytest.fixture
def folders(tmp_path, plain):
    colours = write_plain(tmp_path / "colours", [f"q{i}" for i in range(5)])
    (colours / "classes.csv").write_text("name,r,g,b\nsky,0,0,0\nroad,255,255,255\n")
    for name, stems in (("train", "q0\nq3"), ("val", "q1\nq0"), ("test", "")):
        (colours / f"{name}.txt").write_text(stems)
    oxford = write_oxford(tmp_path / "oxford", [f"a{i}" for i in range(11)], ["t1", "t0"])
    pets = tmp_path / "nameless"  # whose lists say nothing of species
    write_oxford(pets, ["a", "b"], ["t"])
    for name, stems in (("trainval", "a\nb\n"), ("test", "t\n")):
        (pets / "annotations" / f"{name}.txt").write_text(stems)
    return {"plain": plain, "colours": colours, "oxford": oxford, "nameless": pets}


@pytest.mark.parametrize("name", ["plain", "colours", "oxford", "nameless"])
def test_a_pack_is_its_source_in_every_split_and_kind(folders, tmp_path, name, monkeypatch):
    monkeypatch.setattr(packing, "SHARD_BYTES", 2000)
    source, out = str(folders[name]), tmp_path / "packed"
    packed = pack(source, out)
    assert len(packed.shards) > 1 and len({shard.name for shard in packed.shards}) > 1
    assert label_kinds(str(out)) == label_kinds(source)
    kinds = {kind for task in label_kinds(source).values() for kind in task}
    if name == "nameless":
        kinds.remove("species")
    for kind in kinds:
        there = open_splits(str(out), labels=kind)
        for split, here in open_splits(source, labels=kind).items():
            assert names_of(there[split]) == names_of(here)
            assert (there[split].kind, there[split].classes) == (kind, here.classes)
            masks = {}
            for i in range(len(here)):
                ours, theirs = decode(here[i]), decode(there[split][i])
                np.testing.assert_array_equal(ours.image, theirs.image)
                np.testing.assert_array_equal(ours.labels, theirs.labels)
                masks[here.name(i)] = ours.mask
            assert there[split].masks == type(there[split].masks).of(masks, kind)
        notes = [note for note in here.notes if "species" not in note]
        assert [*there["all"].notes] == notes


def test_labels_that_some_masks_lack_are_refused_as_of_the_source(tmp_path):
    root = write_plain(tmp_path / "plain", [f"p{i}" for i in range(10)])
    (root / "masks" / "p3.png").write_bytes(encoded(noise(12, 16)))
    pack(str(root), tmp_path / "packed")
    for data in (root, tmp_path / "packed"):
        for cache in (True, False):
            assert len(load_split(data, "all", size=8, cache=cache)) == 10
            with pytest.raises(InputError, match="1 of 10 examples cannot be used:\n.*p3.*colours"):
                load_split(data, "all", size=8, labels="classes", cache=cache)


def test_species_that_nothing_tells_are_refused(folders, tmp_path):
    pack(str(folders["nameless"]), tmp_path / "packed")
    with pytest.raises(InputError, match="3 files: of unknown species; choose --labels trimap"):
        load_split(tmp_path / "packed", "all", size=8, labels="species")


def test_the_command_packs_drawn_pets_which_data_check_reads(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "eqxunet.data.synthetic.COUNTS", {"train": 6, "val": 2, "test": 2}, raising=True
    )
    done = run("data", "pack", "synthetic", tmp_path / "packed")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith("6 train, 2 val, 2 test, 10 all: 524.3 kB")
    for split in ("train", "all"):
        ours, theirs = (
            load_split(data, split, size=24) for data in ("synthetic", tmp_path / "packed")
        )
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
        assert ours.identity == theirs.identity
    checked = run("data", "check", tmp_path / "packed", "--task", "semantic")
    assert checked.exit_code == 0, checked.stderr
    assert "values in masks: 0 (in 10)" in checked.stdout


def test_a_pack_of_a_pack_is_the_same(plain, tmp_path):
    pack(str(plain), tmp_path / "once")
    pack(str(tmp_path / "once"), tmp_path / "twice")
    for name in (path.name for path in (tmp_path / "once").glob("shard*")):
        once, twice = ((tmp_path / which / name).read_bytes() for which in ("once", "twice"))
        assert once == twice
    manifests = [open_pack(tmp_path / name).manifest for name in ("once", "twice")]
    assert manifests[0].splits == manifests[1].splits


def test_nothing_is_overwritten(plain, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    done = run("data", "pack", plain, tmp_path / "out")
    assert done.exit_code == 2
    assert (
        done.stderr == f"error: {tmp_path}/out: exists; name another folder, or remove it first\n"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


def test_bad_images_are_listed_and_nothing_is_written(plain, tmp_path):
    (plain / "images" / "p1.png").write_bytes(b"no image")
    (plain / "masks" / "p4.png").write_bytes(encoded(np.zeros((9, 9), np.uint8)))
    done = run("data", "pack", plain, tmp_path / "out")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[0] == "error: 2 of 10 examples cannot be used:"
    assert lines[1].startswith(f"{plain}/images/p1.png: cannot be read as an image")
    assert lines[2].startswith(f"{plain}/masks/p4.png: the mask is 9x9 pixels")
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


def test_a_killed_pack_is_no_pack_and_the_same_command_starts_again(plain, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(packing, "replace_text", kill)
        patch.setattr(packing.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            pack(str(plain), tmp_path / "out")
    (left,) = (path for path in tmp_path.iterdir() if path != plain)
    assert [path.suffix for path in left.iterdir() if path.is_file()].count(".array_record") == 1
    assert run("data", "check", left).exit_code == 2
    (left / "shard-00007.array_record").write_bytes(b"of a longer one")
    done = run("data", "pack", plain, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"pack.json", "shard-00000.array_record"}
    assert not left.exists()


def test_two_do_not_write_the_same_pack(plain, tmp_path):
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "shard-00000.array_record").write_bytes(b"being written")
    with FileLock(partial / ".lock"):
        done = run("data", "pack", plain, tmp_path / "out")
    assert done.exit_code == 5
    assert "another process is writing it" in done.stderr
    assert (partial / "shard-00000.array_record").exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(plain, tmp_path, monkeypatch):
    class Full:
        def __init__(self, *_):
            pass

        def write(self, _):
            raise RuntimeError("write() failed: No space left on device; writing /x; at byte 0")

    monkeypatch.setattr("array_record.python.array_record_module.ArrayRecordWriter", Full)
    done = run("data", "pack", plain, tmp_path / "out")
    assert done.exit_code == 6
    assert done.stderr.count("\n") == 1 and "No space left on device); free space" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"plain"}


def flip(path, record):
    """Changes a bit in the middle of a record."""
    content = bytearray(path.read_bytes())
    content[content.index(record) + len(record) // 2] ^= 1
    path.write_bytes(content)


def swap(path, record, other):
    """Puts a record where another was, with the shard whole: as of another pack."""
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordWriter

    records = [other if each == record else each for each in ArrayRecordDataSource([str(path)])]
    writer = ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    for each in records:
        writer.write(each)
    writer.close()


@pytest.mark.parametrize("damage", ["flip", "swap", "cut", "lose"])
def test_damaged_shards_are_told(tmp_path, damage):
    plain, out = write_plain(tmp_path / "plain", [f"p{i}" for i in range(10)]), tmp_path / "out"
    pack(str(plain), out)
    (shard,) = out.glob("shard*")
    record = (plain / "images" / "p7.png").read_bytes()
    match damage:
        case "flip":
            flip(shard, record)
        case "swap":
            swap(shard, record, record[:-1] + b"x")
        case "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        case "lose":
            shard.unlink()
    done = run("data", "check", out)
    assert done.exit_code == 3
    assert done.stderr.startswith(f"error: {shard}: ") and done.stderr.count("\n") == 1
    assert "pack the data anew" in done.stderr
    assert ("is damaged at p7" in done.stderr) == (damage in ("flip", "swap"))
    if damage in ("cut", "lose"):  # is seen before anything is read
        with pytest.raises(IntegrityError, match="has [0-9]+ bytes|No such file"):
            open_pack(out)


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
def test_training_on_a_damaged_pack_ends_with_a_line(tmp_path, cache):
    plain, out = write_plain(tmp_path / "plain", [f"p{i}" for i in range(10)]), tmp_path / "out"
    pack(str(plain), out)
    (shard,) = out.glob("shard*")
    flip(shard, (plain / "images" / "p7.png").read_bytes())
    options = ["--size", "8", "--channels", "2,4", "--batch-size", "8"]
    done = run("train", "--data", out, cache, *options, "--run", tmp_path / "run")
    assert done.exit_code == 3, done.stderr
    assert done.stderr.startswith(f"error: {shard}: is damaged at p7 (Corrupted")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("damage", ["name", "text", "empty", "keys"])
def test_a_damaged_manifest_is_told(plain, tmp_path, damage):
    out = tmp_path / "out"
    pack(str(plain), out)
    path = out / "pack.json"
    text = path.read_text()
    values = json.loads(text)
    del values["species"]
    path.write_text(
        {
            "name": text.replace('"p3"', '"p33"', 1),
            "text": text[:-9],
            "empty": "",
            "keys": json.dumps(values),
        }[damage]
    )
    done = run("data", "check", out)
    assert done.exit_code == 3, done.stderr
    assert done.stderr.startswith(f"error: {path}: is no whole manifest of a pack")
    assert done.stderr.count("\n") == 1


def outside(values):
    values["shards"][0][0] = "../" + values["shards"][0][0]


def nameless(values):
    values["names"][1] = values["names"][0]


FORGERIES = {
    "outside": outside,
    "nul": lambda values: values["shards"][0].__setitem__(0, "a\0b"),
    "more records": lambda values: values["shards"][0].__setitem__(1, 10**30),
    "no records": lambda values: values["shards"].append(["b", -2, 10]),
    "no digests": lambda values: values["crc32"].pop(),
    "twice": nameless,
    "no species": lambda values: values["species"].pop(),
    "beyond": lambda values: values["splits"]["test"].append(10),
    "between": lambda values: values["splits"]["test"].append(0.5),
    "below": lambda values: values["splits"]["test"].append(-1),
    "no splits": lambda values: values["splits"].clear(),
    "kinds": lambda values: values.update(kinds=[]),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_manifest_is_no_manifest(plain, tmp_path, forgery):
    """With a digest that fits."""
    out = tmp_path / "out"
    pack(str(plain), out)
    path = out / "pack.json"
    values = json.loads(path.read_text())
    del values["sha256"], values["format"]
    assert digest_of(values) == open_pack(out).manifest.digest
    FORGERIES[forgery](values)
    path.write_text(json.dumps(values | {"format": 1, "sha256": digest_of(values)}))
    with pytest.raises(IntegrityError, match="is no whole manifest of a pack"):
        open_pack(out)
    path.write_text('"text"')
    with pytest.raises(IntegrityError, match="is no whole manifest of a pack"):
        open_pack(out)


def test_a_pipe_in_a_shards_place_is_told(plain, tmp_path, ends_soon):
    out = tmp_path / "out"
    pack(str(plain), out)
    (shard,) = out.glob("shard*")
    shard.unlink()
    os.mkfifo(shard)
    path = out / "pack.json"
    values = json.loads(path.read_text())
    del values["sha256"], values["format"]
    values["shards"][0][2] = 0
    path.write_text(json.dumps(values | {"format": 1, "sha256": digest_of(values)}))
    with pytest.raises(IntegrityError, match="shard-00000.array_record: is no file"):
        open_pack(out)


def test_a_newer_pack_is_no_damage(plain, tmp_path):
    pack(str(plain), tmp_path / "out")
    path = tmp_path / "out" / "pack.json"
    values = json.loads(path.read_text()) | {"format": 2}
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="newer version"):
        open_pack(tmp_path / "out")


def test_a_pack_may_be_moved_and_read_by_many_threads(plain, tmp_path):
    pack(str(plain), tmp_path / "out")
    before = open_splits(str(tmp_path / "out"), labels="mask")["all"]
    (tmp_path / "out").rename(tmp_path / "there")
    source = open_splits(str(tmp_path / "there"), labels="mask")["all"]
    assert source.identity == before.identity
    wrong = []

    def read():
        for _ in range(30):
            for i in range(10):
                if source[i].image != (plain / "images" / f"p{i}.png").read_bytes():
                    wrong.append(i)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_empty_splits_are_told(folders, tmp_path):
    pack(str(folders["colours"]), tmp_path / "out")
    with pytest.raises(InputError, match="no image belongs to its test split"):
        load_split(tmp_path / "out", "test", size=8)
    with pytest.raises(IntegrityError, match="cannot be read"):
        next((tmp_path / "out").glob("shard*")).unlink()
        load_split(tmp_path / "out", "val", size=8)


def test_a_path_that_array_record_cannot_open_is_told(plain, tmp_path):
    pack(str(plain), tmp_path / "out")
    odd = tmp_path / os.fsdecode(b"\xff")
    (tmp_path / "out").rename(odd)
    for command in (["pack", plain, odd / "packed"], ["check", odd]):
        done = run("data", *command)
        assert done.exit_code == 2 and done.stderr.count("\n") == 1
        assert "ArrayRecord takes no path" in done.stderr


def test_a_folder_of_images_may_have_such_a_file(plain):
    (plain / "pack.json").write_text("{}")
    assert len(load_split(plain, "all", size=8)) == 10
