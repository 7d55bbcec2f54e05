"""Training seen: curves, predictions over the epochs, and TensorBoard's log."""

import dataclasses
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

import eqxunet as eu
from eqxunet.cli import app
from eqxunet.errors import InputError
from eqxunet.report import save_curves, save_progress
from eqxunet.runs.snapshots import keep_snapshot, read_snapshots
from eqxunet.runs.tensorboard import tensorboard_log

SIZE = 16
CONFIG = eu.RunConfig(
    model=eu.ModelConfig(channels=(4, 8), size=SIZE),
    train=eu.TrainConfig(epochs=2, batch_size=4, lr=3e-3),
    data="synthetic",
    limit=8,
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, new_cache):
    """The directories of a run of three epochs, and of one that stopped after two and resumed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(new_cache()))
        whole, resumed = (tmp_path_factory.mktemp("runs") / name for name in ("whole", "resumed"))
        longer = dataclasses.replace(
            CONFIG, train=dataclasses.replace(CONFIG.train, schedule="constant", epochs=3)
        )
        shorter = dataclasses.replace(longer, train=dataclasses.replace(longer.train, epochs=2))
        eu.train(longer, whole)
        eu.train(shorter, resumed, tensorboard=True)
        eu.train(longer, resumed, resume=True, tensorboard=True)
        yield whole, resumed


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were saved."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: figures.append(figure))
    return figures


def records_of(directory):
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def records(steps):
    return [{"step": step, "epoch": epoch} for epoch, step in enumerate(steps, 1)]


def kept_steps(directory):
    return [int(path.stem) for path in sorted((directory / "snapshots").glob("*.png"))]


def test_curves_show_loss_scores_and_learning_rate(runs, drawn, tmp_path):
    lines = records_of(runs[0])
    lines[1]["train/loss"] = None  # of an epoch without a finite step
    save_curves(lines, tmp_path / "curves.png")
    panels = drawn[0].axes
    names = [["train/loss", "val/loss"], ["train/iou", "val/iou", "val/dice"], ["lr"]]
    assert [[line.get_label() for line in axes.lines] for axes in panels] == names
    for axes in panels:
        for line in axes.lines:
            np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
            expected = [record[line.get_label()] for record in lines]
            np.testing.assert_array_equal(
                np.array(line.get_ydata(), float), np.array(expected, float)
            )


def test_snapshots_of_every_epoch_are_what_the_checkpoint_predicts(runs):
    for directory in runs:
        lines = records_of(directory)
        assert kept_steps(directory) == [record["step"] for record in lines] == [2, 4, 6]
        run = eu.load_run(directory)
        images = eu.load_split("synthetic", "val", size=SIZE, limit=8).images[:4]
        predictor = run.predictor()
        expected = np.asarray(predictor.prediction(predictor.logits(images)))
        (found,) = [
            p for record, p in read_snapshots(directory, lines) if record["step"] == run.step
        ]
        np.testing.assert_array_equal(found, expected)
        assert (directory / "progress.png").exists()


def test_a_resumed_run_keeps_the_snapshots_of_before(runs):
    for path in (runs[0] / "snapshots").iterdir():
        assert path.read_bytes() == (runs[1] / "snapshots" / path.name).read_bytes()


def test_snapshots_stay_few_and_evenly_spaced(tmp_path):
    """Of 100 epochs every eighth, the first among them, the best, and the latest."""
    lines = records(range(10, 1010, 10))
    for count in range(1, 101):
        predictions = np.full((4, 3, 3), count, np.uint8)
        best = lines[min(count, 36) - 1]
        keep_snapshot(tmp_path, predictions, lines[:count], best)
        assert len(kept_steps(tmp_path)) <= 26
    epochs = sorted({*range(1, 101, 8), 36, 100})
    assert kept_steps(tmp_path) == [10 * epoch for epoch in epochs]
    for record, predictions in read_snapshots(tmp_path, lines):
        np.testing.assert_array_equal(predictions, np.full((4, 3, 3), record["epoch"], np.uint8))


def test_progress_shows_images_predictions_and_truth(tmp_path, drawn):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    targets = rng.choice(np.array([0, 1, 255], np.uint8), (2, 8, 8))
    predictions = rng.integers(0, 2, (3, 2, 8, 8)).astype(np.uint8)
    colours = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    titles = ["epoch 1", "epoch 5", "epoch 9"]
    save_progress(images, targets, predictions, ["a", "b"], titles, colours, tmp_path / "x.png")
    columns = drawn[0].axes
    assert [axes.get_title() for axes in columns] == ["image", *titles, "truth"]
    assert [text.get_text() for text in columns[0].get_yticklabels()] == ["a", "b"]
    truth = np.where(targets == 255, 128, targets * 255)[..., None].repeat(3, axis=-1)
    panels = [images, *(predictions * 255)[..., None].repeat(3, axis=-1), truth]
    for axes, expected in zip(columns, panels, strict=True):
        shown = axes.images[0].get_array()
        assert shown.shape == (8 + 1 + 8, 8, 3)
        np.testing.assert_array_equal(np.stack([shown[:8], shown[9:]]), expected)


def logged(directory):
    accumulator = EventAccumulator(str(directory / "tensorboard"))
    accumulator.Reload()
    return accumulator


def test_tensorboard_has_every_record_once(runs):
    lines = records_of(runs[1])
    log = logged(runs[1])
    names = {name for record in lines for name in record} - {"step"}
    assert set(log.Tags()["scalars"]) == names and "lr" in names
    for name in names:
        events = log.Scalars(name)
        expected = {r["step"]: r[name] for r in lines if name in r}
        assert {event.step: event.value for event in events} == pytest.approx(expected, rel=1e-6)
        assert len(events) == len(expected)
    assert [image.step for image in log.Images("val/predictions")] == [2, 4, 6]


def test_what_was_logged_after_the_checkpoint_is_hidden(tmp_path):
    """As after a crash, which a resumed run goes back behind."""
    lines = [{**record, "lr": float(record["step"])} for record in records((3, 6, 9))]
    with tensorboard_log(tmp_path, []) as log:
        for record in lines:
            log(record, None)
    with tensorboard_log(tmp_path, lines[:2]) as log:
        log({**lines[2], "lr": 0.5}, None)
    events = logged(tmp_path).Scalars("lr")
    assert [(event.step, event.value) for event in events] == [(3, 3.0), (6, 6.0), (9, 0.5)]


def test_a_log_that_begins_late_has_the_epochs_of_before(tmp_path):
    lines = [
        {**record, "val/loss": None if record["step"] == 6 else 1.0}
        for record in records((3, 6, 9))
    ]
    with tensorboard_log(tmp_path, lines):
        pass
    assert [event.step for event in logged(tmp_path).Scalars("val/loss")] == [3, 9]
    assert [event.step for event in logged(tmp_path).Scalars("epoch")] == [3, 6, 9]


def test_without_tensorboard_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("eqxunet.runs.tensorboard.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'pip install "eqxunet\[tensorboard\]"'):
        eu.train(CONFIG, tmp_path / "a", tensorboard=True)
    options = ["train", "--data", "synthetic", "--run", str(tmp_path / "a"), "--tensorboard"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 2 and 'pip install "eqxunet[tensorboard]"' in result.stderr
    assert not (tmp_path / "a").exists()


def test_overwriting_a_run_deletes_what_it_showed(runs, tmp_path):
    from eqxunet.runs.directory import clear

    for name in ("snapshots/00000003.png", "tensorboard/events.out.tfevents.1.2"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "progress.png").touch()
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == []
