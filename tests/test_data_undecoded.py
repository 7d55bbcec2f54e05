"""Without the cache: the same pixels, batches, scores and runs, decoded as they are read."""

import itertools
import json
import threading
import time

import numpy as np
import pytest
from pictures import encoded, write_plain

import eqxunet as eu
from eqxunet.data import batches as batches_module
from eqxunet.data.batches import batches, padded_batches
from eqxunet.data.entries import list_entries
from eqxunet.data.packing import pack
from eqxunet.data.split import are_alike
from eqxunet.data.undecoded import Undecoded
from eqxunet.errors import InputError, UnavailableError
from eqxunet.runs import run_training

STEMS = [f"p{i:02}" for i in range(30)]


@pytest.fixture
def folder(tmp_path):
    return write_plain(tmp_path / "plain", STEMS)


@pytest.fixture
def packed(folder, tmp_path):
    pack(str(folder), tmp_path / "packed")
    return tmp_path / "packed"


def test_it_is_indexed_as_the_decoded_arrays_are(packed):
    decoded = eu.load_split(packed, "train", size=8)
    split = eu.load_split(packed, "train", size=8, cache=False)
    assert isinstance(split.images, Undecoded) and isinstance(decoded.images, np.ndarray)
    assert (split.names, split.classes, split.masks) == (
        decoded.names,
        decoded.classes,
        decoded.masks,
    )
    for name in ("images", "labels"):
        ours, theirs = getattr(split, name), getattr(decoded, name)
        assert (ours.shape, len(ours), ours.nbytes) == (theirs.shape, len(theirs), theirs.nbytes)
        for index in (3, -1, np.int64(2), slice(2, 5), slice(0, 0), np.array([4, 0, 4])):
            np.testing.assert_array_equal(ours[index], theirs[index])
        with pytest.raises(IndexError):
            ours[24]


@pytest.mark.parametrize("start", [0, 5, 6])
def test_batches_are_those_of_the_decoded_split(packed, start, monkeypatch):
    """On any number of threads, and wherever a run goes on."""
    decoded, split = (eu.load_split(packed, "train", size=8, cache=c) for c in (True, False))
    for threads in (1, 5):
        monkeypatch.setattr(batches_module.os, "cpu_count", lambda n=threads: n)
        streams = [batches(each, 4, seed=3, start=start) for each in (decoded, split)]
        for ours, theirs in itertools.islice(zip(*streams, strict=True), 14):
            assert ours.images.dtype == theirs.images.dtype == np.uint8
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
        streams[1].close()
    padded = [padded_batches(each, 5) for each in (decoded, split)]
    for (ours, real), (theirs, count) in zip(*padded, strict=True):
        assert real == count
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)


def test_a_stream_reads_a_little_ahead_and_nothing_after_its_end(packed, monkeypatch):
    read, go_on = [], threading.Event()
    pair = Undecoded.pair

    def slow(self, i):
        read.append(i)
        if len(read) > 12:
            go_on.wait()
        return pair(self, i)

    monkeypatch.setattr(Undecoded, "pair", slow)
    monkeypatch.setattr(batches_module.os, "cpu_count", lambda: 2)
    split = eu.load_split(packed, "train", size=8, cache=False)
    before = threading.active_count()
    stream = batches(split, 4, seed=0)
    next(stream)
    wait(lambda: len(read) == 12)  # its own four, and two batches
    next(stream)
    wait(lambda: len(read) == 14)  # of four more, those that two threads have begun
    del stream
    go_on.set()
    wait(lambda: threading.active_count() == before)
    assert len(read) == 14


def wait(is_reached):
    deadline = time.monotonic() + 20
    while not is_reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def records(directory):
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]


def config(data, cache, task="binary", epochs=2):
    return eu.RunConfig(
        model=eu.ModelConfig(channels=(4, 8), size=16),
        train=eu.TrainConfig(epochs=epochs, batch_size=8, lr=3e-3, schedule="constant"),
        data=str(data),
        task=task,
        cache=cache,
    )


@pytest.mark.parametrize("task", ["binary", "semantic"])
def test_a_run_on_a_pack_without_the_cache_is_that_on_its_source_with_it(
    folder, tmp_path, task, monkeypatch
):
    monkeypatch.setattr("eqxunet.runs.training.draw_training", lambda *_: None)
    if task == "semantic":
        for number, path in enumerate(sorted((folder / "masks").iterdir())):
            mask = np.repeat([0, number % 3, 255, 2], 4).astype(np.uint8)
            path.write_bytes(encoded(np.repeat(mask[None], 12, axis=0)))
    pack(str(folder), tmp_path / "packed")
    ours = eu.train(config(folder, True, task), tmp_path / "a")
    theirs = eu.train(config(tmp_path / "packed", False, task), tmp_path / "b")
    assert len(records(tmp_path / "a")) == 2
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert ours.calibration == theirs.calibration
    eu.evaluate(ours)
    eu.evaluate(theirs, cache=None if task == "binary" else True)
    kept = {entry.origin for entry in list_entries()}
    chosen = set() if task == "binary" else {f"{tmp_path / 'packed'} test"}
    assert kept == {f"{folder} {split}" for split in ("train", "val", "test")} | chosen
    tables = [(tmp_path / name / "eval/test/per_image.csv").read_text() for name in "ab"]
    assert tables[0] == tables[1]
    # They are of the same images, as far as names say.
    compared = eu.compare([ours, theirs])
    assert compared["scores"][1]["difference"]["iou"]["mean"] == 0


def test_a_run_that_is_resumed_inside_an_epoch_is_the_uninterrupted_one(
    packed, tmp_path, monkeypatch
):
    monkeypatch.setattr("eqxunet.runs.training.calibrated", lambda run, *_: run)
    monkeypatch.setattr("eqxunet.runs.training.draw_training", lambda *_: None)

    class Stopping(eu.Observer):
        def steps(self, total, done):
            from contextlib import nullcontext

            return nullcontext(lambda step, text: "stop" if step == 4 else "go on")

    whole = config(packed, False)
    run_training(whole, tmp_path / "whole", eu.Observer())
    assert not run_training(whole, tmp_path / "cut", Stopping()).is_finished
    with pytest.raises(InputError, match="--cache"):
        run_training(config(packed, True), tmp_path / "cut", eu.Observer(), resume=True)
    run_training(None, tmp_path / "cut", eu.Observer(), resume=True)
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_a_pack_is_not_looked_through_again_and_a_folder_is(folder, packed):
    for data, count in ((folder, 24), (packed, 0)):
        progress = []
        eu.load_split(
            data, "train", size=8, cache=False, progress=lambda *done, p=progress: p.append(done)
        )
        assert progress == [(i, 24) for i in range(1, count + 1)]
    limited = eu.load_split(packed, "train", size=8, cache=False, limit=3)
    assert limited.masks is not None and limited.masks.count == len(limited) == 3


def test_what_cannot_be_used_is_listed_before_a_training(folder):
    (folder / "images" / "p03.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="1 of 30 examples cannot be used:\n.*p03.png"):
        eu.load_split(folder, "all", size=8, cache=False)


def test_masks_that_cannot_be_meant_are_refused(folder, tmp_path):
    for path in (folder / "masks").iterdir():
        path.write_bytes(encoded(np.ones((12, 16), np.uint8)))
    pack(str(folder), tmp_path / "packed")
    with pytest.raises(InputError, match="packed: the 24 train masks have no background"):
        eu.load_split(tmp_path / "packed", "train", size=8, cache=False)


def test_a_cache_without_room_says_so_before_decoding(folder, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 24 * 8 * 8 * 4 - 1})
    monkeypatch.setattr("eqxunet.data.cache.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("eqxunet.data.cache._write", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UnavailableError, match="MB are free there; .*add --no-cache"):
        eu.load_split(folder, "train", size=8, cache_dir=tmp_path / "cache")


def test_identities_with_and_without_pixels_compare_by_names(folder, packed):
    loads = [(folder, True), (folder, False), (packed, True), (packed, False)]
    ids = [eu.load_split(data, "train", size=8, cache=cache).identity for data, cache in loads]
    assert ids[0] == ids[2] and len(set(ids)) == 3
    assert are_alike(ids[0], ids[1]) and are_alike(ids[3], ids[0])
    assert not are_alike(ids[1], ids[3])
    other = eu.load_split(packed, "val", size=8).identity
    assert not are_alike(other, ids[3])
