"""What the cache holds can be looked at, and removed without harm."""

import json
import os
import time

import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from eqxunet.cli import app
from eqxunet.data import cache, load_split
from eqxunet.data.entries import list_entries, remove_entries
from eqxunet.errors import UnavailableError
from eqxunet.storage import cache_folder


def load(tmp_path, split="val", size=8, labels=None):
    return load_split(
        "synthetic", split, size=size, labels=labels, cache_dir=tmp_path / "cache", limit=3
    )


def make_stale(folder):
    index = json.loads((folder / cache.INDEX).read_text())
    (folder / cache.INDEX).write_text(json.dumps(index | {"code": "other"}))


def test_entries_say_what_they_are(tmp_path):
    assert list_entries(tmp_path / "cache") == []
    load(tmp_path)
    load(tmp_path, "test", size=6, labels="species")
    entries = {entry.origin: entry for entry in list_entries(tmp_path / "cache")}
    assert set(entries) == {"synthetic val", "synthetic test"}
    entry = entries["synthetic test"]
    assert (entry.kind, entry.size, entry.count, entry.is_stale) == ("species", 6, 3, False)
    assert entry.bytes == sum(path.stat().st_size for path in entry.folder.iterdir())
    assert 3 * 6 * 6 * 4 < entry.bytes < 4000 and abs(entry.used - time.time()) < 60


def test_what_was_loaded_last_comes_first(tmp_path):
    for split in ("val", "test"):
        load(tmp_path, split)
    for age, entry in enumerate(list_entries(tmp_path / "cache"), start=1):
        os.utime(entry.folder / cache.INDEX, (1e9 - age, 1e9 - age))
    load(tmp_path, "val")
    first, second = list_entries(tmp_path / "cache")
    assert (first.origin, second.origin) == ("synthetic val", "synthetic test")
    assert second.used < 1e9 < first.used


def test_entries_of_other_code_and_unfinished_ones_are_stale(tmp_path):
    for size in (6, 7, 8):
        load(tmp_path, size=size)
    fine, other, older = sorted(list_entries(tmp_path / "cache"), key=lambda entry: entry.size)
    make_stale(other.folder)
    (older.folder / cache.INDEX).write_text(json.dumps({"names": []}))
    (tmp_path / "cache" / f"{'0' * 32}.partial").mkdir()
    (tmp_path / "cache" / "not ours").mkdir()
    found = list_entries(tmp_path / "cache")
    assert len(found) == 4 and [entry.folder for entry in found if not entry.is_stale] == [
        fine.folder
    ]


def test_a_mapped_entry_keeps_its_pixels_and_is_made_anew(tmp_path):
    split = load(tmp_path)
    before = split.images.copy()
    (entry,) = list_entries(tmp_path / "cache")
    assert remove_entries([entry]) == [entry] and not entry.folder.exists()
    np.testing.assert_array_equal(split.images, before)
    np.testing.assert_array_equal(load(tmp_path).images, before)


def test_an_entry_that_is_being_written_stays(tmp_path):
    load(tmp_path)
    (entry,) = list_entries(tmp_path / "cache")
    with FileLock(entry.folder.with_name(f"{entry.folder.name}.lock")):
        assert remove_entries([entry]) == []
    assert entry.folder.exists()


def test_what_cannot_be_removed_is_named(tmp_path, monkeypatch):
    load(tmp_path)

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("eqxunet.data.entries.shutil.rmtree", refused)
    with pytest.raises(UnavailableError, match="cannot be removed .*Permission denied"):
        remove_entries(list_entries(tmp_path / "cache"))


def run(*arguments: str):
    result = CliRunner().invoke(app, ["data", "cache", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.stderr
    return result


def test_the_command_lists_and_clears():
    for size in (6, 8):
        load_split("synthetic", "val", size=size, limit=3)
    make_stale(list_entries()[0].folder)
    listed = run().stdout
    assert listed.count("synthetic val") == 2 and listed.count("stale") == 1
    assert "2 entries, " in listed and str(cache_folder("data")) in listed
    assert "removed 1 entries" in run("--clear", "stale").stdout
    assert [entry.is_stale for entry in list_entries()] == [False]
    assert "removed 1 entries" in run("--clear", "all").stdout
    assert list_entries() == [] and "0 entries, 0 bytes" in run().stdout
