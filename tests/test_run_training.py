"""What a run does from its start to its end: interrupted, resumed, made longer, diverged."""

import dataclasses
import inspect
import json
import shlex
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
from pictures import write_plain
from typer.main import get_command

import eqxunet as eu
from eqxunet.cli import app
from eqxunet.cli.train import _configured as options_of_train
from eqxunet.cli.train import _given
from eqxunet.cli.train import train as train_command
from eqxunet.errors import DivergedError, InputError
from eqxunet.runs import epochs, run_training
from eqxunet.runs.options import _WITHOUT_OPTION
from eqxunet.runs.records import read_records
from eqxunet.training.checkpoint import BEST, Writer, restore

CONFIG = eu.RunConfig(
    model=eu.ModelConfig(channels=(4, 8), size=16),
    train=eu.TrainConfig(epochs=2, batch_size=4, schedule="constant", lr=3e-3),
    data="synthetic",
    limit=12,
)
EPOCH = 3  # steps


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Ends a training after its last checkpoint; returns the directories that were drawn in."""
    drawn = []
    monkeypatch.setattr("eqxunet.runs.training.calibrated", lambda run, *_: run)
    monkeypatch.setattr(
        "eqxunet.runs.training.draw_training", lambda run, *_: drawn.append(run.directory)
    )
    return drawn


@pytest.fixture
def saves(monkeypatch):
    """The steps that were saved, with whether they were scored and what stood in the records."""
    saved = []
    save = Writer.save

    def note(self, step, arrays, metrics=None, about=None):
        records = read_records(self._directory.parent, pytest.fail)
        saved.append((step, bool(metrics), [record["step"] for record in records]))
        save(self, step, arrays, metrics, about)

    monkeypatch.setattr(Writer, "save", note)
    return saved


class Asking(eu.Observer):
    """Asks for something after some steps, and keeps what it was told."""

    def __init__(self, requests=()):
        self.requests = dict(requests)
        self.told = []
        self.done = []

    @contextmanager
    def steps(self, total, done):
        def tell(step, text):
            self.done.append(step)
            return self.requests.pop(step, "go on")

        yield tell

    def note(self, text):
        self.told.append(text)

    warn = note


def train(directory, observer=None, resume=False, **changes):
    config = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))
    given = None if resume and not changes else config
    return run_training(given, directory, observer or Asking(), resume=resume)


def told(directory):
    """The records, without what a clock measured."""
    records = read_records(directory, pytest.fail)
    return [{k: v for k, v in each.items() if k != "images_per_second"} for each in records]


def bits(directory):
    restored = restore(directory / "checkpoints")
    return restored.step, {name: array.tobytes() for name, array in restored.arrays.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, new_cache):
    """Runs that nothing interrupted: of 2 epochs, and of 7 steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(new_cache()))
        patch.setattr("eqxunet.runs.training.calibrated", lambda run, *_: run)
        patch.setattr("eqxunet.runs.training.draw_training", lambda *_: None)
        folder = tmp_path_factory.mktemp("whole")
        train(folder / "epochs")
        train(folder / "steps", steps=7)
        yield folder


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(whole, tmp_path):
    """Stopped inside the first epoch, between two, and inside the second."""
    run = tmp_path / "run"
    for resume, stop in ((False, 2), (True, 3), (True, 5)):
        outcome = train(run, Asking({stop: "stop"}), resume=resume)
        assert (outcome.step, outcome.is_finished) == (stop, False)
    assert train(run, resume=True).is_finished
    assert told(run) == told(whole / "epochs") and len(told(run)) == 2
    assert bits(run) == bits(whole / "epochs")


def test_a_run_that_ended_inside_an_epoch_can_be_made_longer(whole, tmp_path):
    run = tmp_path / "run"
    train(run, steps=2)
    assert [record["step"] for record in told(run)] == [2]
    train(run, resume=True, steps=4)
    assert [(record["step"], record["epoch"]) for record in told(run)] == [(3, 1), (4, 2)]
    train(run, resume=True, steps=7)
    assert [record["epoch"] for record in told(run)] == [1, 2, 3]
    assert told(run) == told(whole / "steps") and bits(run) == bits(whole / "steps")
    with pytest.raises(InputError, match="longer, not shorter: .* 7 steps"):
        run_training(
            options_of_train(eu.RunConfig.read(run), {"epochs": 2}), run, Asking(), resume=True
        )


def test_a_save_that_is_asked_for_is_told_once_it_is_there(tmp_path):
    """Inside an epoch, and at its end."""
    run, found = tmp_path / "run", []

    class Looking(Asking):
        def note(self, text):
            if text.startswith("saved after step"):
                found.append(
                    (text, (run / "checkpoints" / text.split()[-1] / "note.json").exists())
                )

    train(run, Looking({2: "save", 3: "save"}))
    assert found == [("saved after step 2", True), ("saved after step 3", True)]


def test_a_run_goes_on_with_lines_that_cannot_be_read_kept_aside(whole, tmp_path):
    run = tmp_path / "run"
    train(run, Asking({3: "stop"}))
    metrics = run / "metrics.jsonl"
    good = metrics.read_bytes()
    for stop, damaged in ((4, b'{"step": 2,'), (5, b"\xff")):
        metrics.write_bytes(damaged + b"\n" + good)
        observer = Asking({stop: "stop"})
        train(run, observer, resume=True)
        assert any("1 of 2 lines cannot be read and are now in" in told for told in observer.told)
        assert metrics.read_bytes() == good
    assert (run / "metrics.jsonl.damaged").read_bytes() == b'{"step": 2,\n\xff\n'
    train(run, resume=True)
    assert told(run) == told(whole / "epochs")


def test_a_run_stays_created_when_it_was(tmp_path):
    run = tmp_path / "run"
    train(run, Asking({1: "stop"}))
    path = run / "config.json"
    then = "2026-01-31T12:00:00+00:00"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"created": then}))
    train(run, Asking({2: "stop"}), resume=True)
    assert json.loads(path.read_text())["created"] == then


def test_a_run_that_saved_nothing_is_started_anew_by_the_command_that_is_told(tmp_path):
    run = tmp_path / "a run"
    with pytest.raises(DivergedError):
        train(run, lr=1e39, steps=2)
    with pytest.raises(InputError, match="nothing was saved to resume from") as caught:
        train(run, resume=True)
    command, *words = shlex.split(str(caught.value).splitlines()[1])
    context = get_command(app).commands[command].make_context(command, words)
    given = {n: v for n, v in context.params.items() if _given(context, n)}
    assert given.pop("run") == run
    before = eu.RunConfig.read(run)
    before = dataclasses.replace(
        before,
        train=dataclasses.replace(before.train, epochs=eu.TrainConfig.epochs),  # `steps` counts
        identity=None,
        classes=(),
    )
    again = options_of_train(eu.RunConfig(), given)
    assert dataclasses.replace(again, labels=before.labels) == before
    with pytest.raises(DivergedError):  # and so does the same once more
        train(run, lr=1e39, steps=2)
    assert train(run, epochs=1).is_finished
    with pytest.raises(InputError, match="holds a run already"):
        train(run, epochs=1)


def test_all_that_a_configuration_says_can_be_told_as_options():
    options = inspect.signature(train_command).parameters.keys()
    configs = (eu.RunConfig, eu.ModelConfig, eu.TrainConfig)
    fields = {field.name for config in configs for field in dataclasses.fields(config)}
    assert fields - {"model", "train", *_WITHOUT_OPTION} <= options
    config = eu.RunConfig(
        eu.ModelConfig("resnet10", size=64),
        eu.TrainConfig(freeze_encoder=False, ema=True, checkpoint_every="5m", clip_norm=1.5),
        data="synthetic", task="semantic", labels="species", start="/a b",
    )  # fmt: skip
    assert config.command(Path("r")) == (
        "train --encoder resnet10 --size 64 --clip-norm 1.5 --no-freeze-encoder --ema "
        "--checkpoint-every 5m --data synthetic --task semantic --labels species "
        "--from '/a b' --run r"
    )


def test_checkpoints_inside_epochs_have_no_scores_and_records_come_first(tmp_path, saves):
    train(tmp_path / "run", Asking({5: "save"}), checkpoint_every=2)
    assert saves == [
        (2, False, []), (3, True, [3]), (4, False, [3]), (5, False, [3]), (6, True, [3, 6]),
    ]  # fmt: skip
    restored = restore(tmp_path / "run" / "checkpoints")
    assert restored.about["config"]["train"]["checkpoint_every"] == 2
    assert restored.about["epoch"]["steps"] == 0
    saves.clear()
    train(tmp_path / "run", resume=True, epochs=3, checkpoint_every="9999m")
    assert saves == [(9, True, [3, 6, 9])]


def finite_steps(directory):
    steps = []
    for path in (directory / "checkpoints").glob("*"):
        steps.append(int(path.name))
    for which in ("latest", "best"):
        restored = restore(directory / "checkpoints", which)
        assert restored is None or all(
            np.isfinite(array).all() for array in restored.arrays.values()
        )
    return sorted(steps)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("steps", [None, 2])
def test_a_learning_rate_that_overflows_saves_nothing(tmp_path, steps, schedule):
    """The gradient is finite in every step; of two steps, five cannot be skipped."""
    with pytest.raises(DivergedError, match="in a row were not finite"):
        train(tmp_path / "run", lr=1e39, steps=steps, schedule=schedule)
    assert finite_steps(tmp_path / "run") == ([] if steps else [3])
    assert all(
        record["train/loss"] is None or np.isfinite(record["train/loss"])
        for record in told(tmp_path / "run")
    )


def test_statistics_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    def overflown(trainer, train_state, split):
        infinite = jax.tree.map(lambda leaf: leaf + np.inf, train_state.state)
        return dataclasses.replace(train_state, state=infinite)

    monkeypatch.setattr(epochs, "with_precise_statistics", overflown)
    with pytest.raises(DivergedError, match="would be saved, and not finite.*lower --lr"):
        train(tmp_path / "run", steps=1)
    assert finite_steps(tmp_path / "run") == [] and told(tmp_path / "run") == []


def test_scores_of_logits_that_are_not_finite_are_never_the_best(tmp_path, monkeypatch, saves):
    score, calls = epochs.score, []

    def broken(*arguments):
        calls.append(1)
        scores = score(*arguments)
        losses = np.full_like(scores.losses, np.nan)
        return dataclasses.replace(scores, losses=losses) if len(calls) != 2 else scores

    monkeypatch.setattr(epochs, "score", broken)
    best = []

    class Watching(Asking):
        def record(self, record, is_best):
            best.append(is_best)
            return False

    train(tmp_path / "run", Watching(), epochs=3, lr=1e-30)
    assert best == [False, True, False]
    assert [scored for _, scored, _ in saves] == [False, True, False]
    assert restore(tmp_path / "run" / "checkpoints", "best").step == 6
    with pytest.raises(DivergedError, match="finite in no epoch"):
        train(tmp_path / "none", epochs=1)


def test_a_run_that_patience_ended_stays_ended(tmp_path, no_pictures, monkeypatch):
    """No epoch is better than the first."""
    scores = {"val/loss": 0.5, "val/iou": 0.5, "val/dice": 0.5, "val/baseline_iou": 0.5}
    monkeypatch.setattr(epochs, "_validation", lambda _: scores)
    run = tmp_path / "run"
    outcome = train(run, epochs=9, patience=1)
    assert outcome.step == 2 * EPOCH and outcome.is_finished
    again = Asking()
    outcome = train(run, again, resume=True)
    assert (outcome.step, outcome.is_finished, again.done) == (2 * EPOCH, True, [])
    assert any("stopped already after step 6" in text for text in again.told)
    assert no_pictures == [run, run]
    config = eu.RunConfig.read(run)
    more = options_of_train(config, {"patience": 2})
    assert run_training(more, run, Asking(), resume=True).step == 3 * EPOCH


def test_patience_counts_anew_where_more_epochs_are_asked_for(tmp_path, monkeypatch):
    """And goes on counting where that run is interrupted."""
    scores = {"val/loss": 0.5, "val/iou": 0.5, "val/dice": 0.5, "val/baseline_iou": 0.5}
    monkeypatch.setattr(epochs, "_validation", lambda _: scores)
    run = tmp_path / "run"
    assert train(run, epochs=4, patience=2).step == 3 * EPOCH
    longer = options_of_train(eu.RunConfig.read(run), {"epochs": 9})
    stop = Asking({4 * EPOCH: "stop"})
    assert run_training(longer, run, stop, resume=True).step == 4 * EPOCH
    assert train(run, resume=True).step == 5 * EPOCH
    again = Asking()
    assert train(run, again, resume=True).step == 5 * EPOCH and again.done == []
    assert any("stopped already after step 15" in text for text in again.told)


def test_what_was_interrupted_after_the_last_step_is_done_by_resuming(
    tmp_path, no_pictures, monkeypatch
):
    run, steps = tmp_path / "run", Asking()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("eqxunet.runs.training.draw_training", interrupted)
        train(run, epochs=1)
    assert restore(run / "checkpoints").metrics.keys() == {BEST}
    assert train(run, steps, resume=True).is_finished
    assert no_pictures == [run] and steps.done == []


def test_a_changed_configuration_is_refused_before_images_are_decoded(tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(run, epochs=1)
    before = bits(run)
    path = run / "config.json"
    text = path.read_text()
    values = json.loads(text)
    values["train"] |= {"lr": 0.5, "augment": False}
    path.write_text(json.dumps(values))
    monkeypatch.setattr("eqxunet.runs.training.load_splits", pytest.fail)
    with pytest.raises(
        InputError, match=r"changed .* --lr 0.5 \(was 0.003\), --no-augment .*--from"
    ):
        train(run, resume=True)
    values = json.loads(text)
    values["model"]["size"] = 4096
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match=r"--size 4096 \(was 16\)"):
        train(run, resume=True)
    with pytest.raises(eu.errors.IntegrityError, match="model was ModelConfig.*undo that"):
        eu.load_run(run)
    assert bits(run) == before


def test_other_data_are_refused_and_stay_so(tmp_path):
    folder = write_plain(tmp_path / "mine", [f"p{i:02}" for i in range(15)])
    run = tmp_path / "run"
    config = dataclasses.replace(CONFIG, data=str(folder), limit=None)
    run_training(config, run, Asking({1: "stop"}))
    before, text = bits(run), (run / "config.json").read_text()
    write_plain(folder, [f"q{i:02}" for i in range(24)])
    for _ in range(2):
        with pytest.raises(InputError, match=r"images then, .* put the images back .*--from"):
            run_training(None, run, Asking(), resume=True)
    assert bits(run) == before and (run / "config.json").read_text() == text


def test_overwriting_says_what_it_deletes(tmp_path):
    run = tmp_path / "run"
    train(run, epochs=1)
    (run / "eval").mkdir()
    (run / "eval" / "mine.txt").write_text("precious")
    observer = Asking()
    run_training(dataclasses.replace(CONFIG), run, observer, overwrite=True)
    said = "\n".join(observer.told)
    assert f"deleted in {run}: checkpoints/3" in said
    assert "left what is not of a run: eval/mine.txt" in said
    assert (run / "eval" / "mine.txt").read_text() == "precious"


def test_options_of_the_command_line_become_the_configuration():
    given = options_of_train(CONFIG, {"max_skipped": 9, "checkpoint_every": "50"}).train
    assert (given.max_skipped, given.checkpoint_every) == (9, 50)
    assert options_of_train(CONFIG, {"checkpoint_every": "10m"}).train.checkpoint_every == "10m"
    for wrong in ("0", "m", "-1", "1h", "1.5m", ""):
        with pytest.raises(InputError, match="checkpoint_every="):
            options_of_train(CONFIG, {"checkpoint_every": wrong})


def test_speed_is_that_of_the_steps_after_the_first(monkeypatch):
    times = iter([10.0, 12.0])
    monkeypatch.setattr(epochs.time, "perf_counter", lambda: next(times))
    clock = epochs._Clock(4)
    clock.step()
    assert clock.record() == {}
    for _ in range(4):
        clock.step()
    assert clock.record() == {"images_per_second": 4 * 4 / 2}


def test_a_stop_after_a_save_at_an_epochs_end_stops(tmp_path):
    """The observer is asked before the validation and while it says that it validates."""
    asked = []

    class Both(eu.Observer):
        @contextmanager
        def steps(self, total, done):
            def tell(step, text):
                asked.append((step, text))
                return "go on" if step < 3 else "stop" if text == "validating" else "save"

            yield tell

    outcome = train(tmp_path / "run", Both())
    assert (outcome.step, outcome.is_finished) == (3, False)
    assert asked[-1] == (3, "validating")
