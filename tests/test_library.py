"""The library does what the commands do, and gets what they get."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pictures import write_plain
from PIL import Image
from scipy.special import expit, logit

import eqxunet as eu
from eqxunet.cli.train import _configured as options_of_train
from eqxunet.errors import InputError, IntegrityError
from eqxunet.evaluation import Predictor, calibrate, score
from eqxunet.models.layers import BatchNorm
from eqxunet.models.leaves import named_leaves, named_state
from eqxunet.runs.documents import parse
from eqxunet.training.checkpoint import restore

ROOT = Path(__file__).parents[1]
SIZE, LIMIT = 32, 24
CONFIG = eu.RunConfig(
    model=eu.ModelConfig(channels=(8, 16, 32), size=SIZE),
    train=eu.TrainConfig(epochs=2, batch_size=8),
    data="synthetic",
    limit=LIMIT,
)
OPTIONS = [
    "--encoder", "scratch", "--channels", "8,16,32", "--size", SIZE, "--epochs", 2,
    "--batch-size", 8, "--data", "synthetic", "--limit", LIMIT,
]  # fmt: skip


def command(cwd, *arguments):
    line = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    done = subprocess.run(line, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def records(directory):
    """The lines of a run, without what a clock measured."""
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines
    ]


@pytest.fixture(scope="module")
def both(tmp_path_factory, new_cache):
    """Two folders with a run `a`: one trained, resumed and scored by commands, one by calls."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(new_cache()))
        commands, calls = tmp_path_factory.mktemp("commands"), tmp_path_factory.mktemp("calls")
        command(commands, "train", *OPTIONS, "--run", "runs/a")
        command(commands, "train", "--resume", "--run", "runs/a", "--epochs", 3)
        command(commands, "eval", "--run", "runs/a")
        eu.train(CONFIG, calls / "runs" / "a")
        longer = dataclasses.replace(CONFIG.train, epochs=3)
        run = eu.train(dataclasses.replace(CONFIG, train=longer), calls / "runs" / "a", resume=True)
        metrics = eu.evaluate(run)
        yield commands / "runs" / "a", calls / "runs" / "a", run, metrics


def test_scores_are_those_of_the_commands_byte_for_byte(both):
    by_command, by_call, _, metrics = both
    texts = [(d / "eval" / "test" / "metrics.json").read_text() for d in (by_command, by_call)]
    assert texts[0].replace(str(by_command), "RUN") == texts[1].replace(str(by_call), "RUN")
    assert json.loads(texts[1]) == metrics
    tables = [(d / "eval" / "test" / "per_image.csv").read_bytes() for d in (by_command, by_call)]
    assert tables[0] == tables[1]


def test_scores_of_logits_that_are_not_finite_are_json(both, tmp_path):
    """And are taken for what they are where the same is asked for again."""
    run = both[2]
    wild = eqx.tree_at(lambda model: model.head.bias, run.model, jnp.full((1,), jnp.inf))
    metrics = eu.evaluate(dataclasses.replace(run, model=wild), out=tmp_path, limit=4)
    assert metrics["loss"] is None and metrics["count"] == 4
    assert parse((tmp_path / "metrics.json").read_bytes()) == metrics
    eu.evaluate(run, out=tmp_path, limit=4)
    assert parse((tmp_path / "metrics.json").read_bytes())["loss"] > 0


def test_records_are_those_of_the_commands(both):
    by_command, by_call, _, _ = both
    assert records(by_command) == records(by_call)
    assert [record["epoch"] for record in records(by_call)] == [1, 2, 3]


def test_a_run_can_be_made_longer(both):
    config = json.loads((both[1] / "config.json").read_text())
    assert config["train"]["epochs"] == 3


def test_the_run_that_is_returned_is_the_best(both):
    _, directory, run, _ = both
    best = max(records(directory), key=lambda record: record["val/iou"])
    assert run.step == best["step"]
    assert len(repr(run).splitlines()) == 1 and "scratch" in repr(run)


def test_the_run_that_is_returned_has_the_bits_of_the_best_checkpoint(both):
    _, directory, run, _ = both
    restored = restore(directory / "checkpoints", "best")
    leaves = named_leaves(run.model)
    assert {f"model.{name}" for name in leaves} <= restored.arrays.keys()
    for name, leaf in leaves.items():
        assert np.asarray(leaf).tobytes() == restored.arrays[f"model.{name}"].tobytes()
    for name, leaf in named_state(run.model, run.state).items():
        assert np.asarray(leaf).tobytes() == restored.arrays[f"state.{name}"].tobytes()


def test_predictions_of_arrays_files_and_floats_agree(both, tmp_path):
    run = both[2]
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    probability = eu.predict(run, image)
    assert probability.shape == (20, 30) and probability.dtype == np.float32
    others = (tmp_path / "x.png", str(tmp_path / "x.png"), image / 255.0, Image.fromarray(image))
    for other in others:
        np.testing.assert_array_equal(eu.predict(run, other), probability)
    np.testing.assert_array_equal(eu.predict(run.directory, image), probability)
    # A model alone knows no temperature.
    logits = logit(eu.predict(run.model, run.state, image))
    np.testing.assert_allclose(
        probability, expit(logits / run.calibration.temperature), rtol=1e-4, atol=1e-5
    )
    grey = image[..., 0]
    np.testing.assert_array_equal(
        eu.predict(run, grey), eu.predict(run, np.stack([grey] * 3, axis=-1))
    )


def test_a_trained_run_is_calibrated_on_its_validation_images(both):
    by_command, by_call, run, _ = both
    texts = [(d / "calibration.json").read_text() for d in (by_command, by_call)]
    assert texts[0] == texts[1] and json.loads(texts[0])["step"] == run.step
    val = eu.load_split("synthetic", "val", size=SIZE, limit=LIMIT)
    plain = Predictor(run.model, run.state, run.task)
    assert calibrate(plain, val) == run.calibration
    metrics = eu.evaluate(run.directory, "val", threshold="auto")
    assert metrics["threshold"] == run.calibration.threshold
    assert metrics["dice"]["mean"] == pytest.approx(max(run.calibration.curve["dice"]), abs=1e-6)


def test_a_calibration_of_other_weights_is_made_anew(both, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(both[1], directory)
    file = directory / "calibration.json"
    was = json.loads(file.read_text())
    file.write_text(json.dumps(was | {"step": was["step"] + 1, "temperature": 9.0}))
    run = eu.load_run(directory)
    assert run.calibration is None
    first = eu.evaluate(run, "val", threshold="auto", overwrite=True)
    assert first["threshold"] == was["threshold"] and json.loads(file.read_text()) == was
    assert first == eu.evaluate(eu.load_run(directory), "val", threshold="auto")
    assert first["calibration"]["temperature"] == was["temperature"]
    image = tmp_path / "a.png"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(image)
    file.unlink()
    before, after = (
        eu.predict_files(directory, image, tmp_path / "out", threshold="auto") for _ in range(2)
    )
    assert len(before.written) == len(after.kept) == 1


def test_a_pillow_image_is_taken_as_its_file_is(both, tmp_path):
    """Of 16 bits, and turned by EXIF."""
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 100
    Image.fromarray(deep).save(tmp_path / "deep.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    colours = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=turned)
    for name, shape in (("deep.png", (20, 30)), ("turned.png", (30, 20))):
        expected = eu.predict(both[2], tmp_path / name)
        assert expected.shape == shape
        with Image.open(tmp_path / name) as image:
            np.testing.assert_array_equal(eu.predict(both[2], image), expected)


@pytest.mark.parametrize("content", ["", "[]", '{"step": ', '{"step": 6, "temperature": 1}'])
def test_a_damaged_calibration_is_named(both, tmp_path, content):
    directory = tmp_path / "run"
    shutil.copytree(both[1], directory)
    step = both[2].step
    (directory / "calibration.json").write_text(content.replace("6", str(step)))
    with pytest.raises(IntegrityError, match="calibration.json: cannot be read.*remove it"):
        eu.load_run(directory)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.full((4, 4, 3), 200.0), "divide by 255"),
        (np.zeros((2, 4, 4, 3), np.uint8), "one at a time"),
        (np.zeros((4, 4, 5), np.uint8), "one at a time"),
        (np.zeros((4, 4, 3), np.int32), "int32"),
    ],
)
def test_what_is_no_image_is_refused(both, image, message):
    with pytest.raises(ValueError, match=message):
        eu.predict(both[2], image)


def test_a_path_to_no_image_is_refused_in_one_line(both, tmp_path):
    with pytest.raises(InputError, match="nothing.png: cannot be read") as error:
        eu.predict(both[2], tmp_path / "nothing.png")
    assert len(str(error.value).splitlines()) == 1


def test_a_callback_sees_every_record_and_can_end_the_run(tmp_path):
    seen = []

    def enough(record):
        seen.append(record)
        return record["epoch"] == 2

    train = dataclasses.replace(CONFIG.train, epochs=5)
    eu.train(dataclasses.replace(CONFIG, train=train), tmp_path / "a", callback=enough)
    assert [record["epoch"] for record in seen] == [1, 2]
    assert len(records(tmp_path / "a")) == 2


def test_an_observer_that_stops_in_an_epoch_leaves_what_resumes(tmp_path):
    from contextlib import contextmanager

    class Stopping(eu.Observer):
        @contextmanager
        def steps(self, total, done):
            yield lambda step, text: "stop" if step == 2 else "go on"

    with pytest.raises(InputError, match="no validated checkpoint yet"):
        eu.train(CONFIG, tmp_path / "a", observer=Stopping())
    assert restore(tmp_path / "a" / "checkpoints").step == 2
    eu.train(directory=tmp_path / "a", resume=True)
    assert [record["step"] for record in records(tmp_path / "a")] == [3, 6]


def test_a_run_starts_from_another_ones_weights(both, tmp_path):
    """With a learning rate of next to nothing, it ends where the other one did."""
    run = both[2]
    train = dataclasses.replace(CONFIG.train, epochs=1, lr=1e-12, augment=False)
    config = dataclasses.replace(CONFIG, train=train, start=str(run.directory))
    again = eu.train(config, tmp_path / "a")
    for old, new in zip(*(jax.tree.leaves(r.model) for r in (run, again)), strict=True):
        np.testing.assert_allclose(old, new, atol=1e-6)
    for channels in ((8, 16), (8, 16, 64)):
        model = dataclasses.replace(config.model, channels=channels)
        with pytest.raises(InputError, match="its model is another one"):
            eu.train(dataclasses.replace(config, model=model), tmp_path / "b")
    semantic = eu.train(dataclasses.replace(config, task="semantic"), tmp_path / "c")
    assert semantic.model.head.kernel.shape[-1] == 3
    with pytest.warns(UserWarning, match="flatter"):
        assert eu.evaluate(semantic, "train")["classes"] == ["background", "cat", "dog"]
    with pytest.raises(InputError, match=r"no threshold .* leave out 0.3"):
        eu.evaluate(semantic, threshold=0.3)
    task = dataclasses.replace(semantic.task, classes=("background", "dog", "cat"))
    with pytest.raises(InputError, match="class 1 is cat there and dog here"):
        eu.evaluate(dataclasses.replace(semantic, task=task), out=tmp_path / "scores")


def test_options_that_differ_are_named_when_resuming(both):
    train = dataclasses.replace(CONFIG.train, lr=0.5)
    with pytest.raises(InputError, match=r"lr 0.5 \(was 0.001\)"):
        eu.train(dataclasses.replace(CONFIG, train=train), both[1], resume=True)


def test_a_run_is_not_made_shorter(both):
    train = dataclasses.replace(CONFIG.train, epochs=1)
    with pytest.raises(InputError, match=r"longer, not shorter: --epochs 1 \(was 3\)"):
        eu.train(dataclasses.replace(CONFIG, train=train), both[1], resume=True)


def test_labels_that_differ_are_named_when_resuming(both):
    with pytest.raises(InputError, match=r"--labels species \(was trimap\)"):
        eu.train(dataclasses.replace(CONFIG, labels="species"), both[1], resume=True)


@pytest.mark.parametrize(("task", "kind"), [("binary", "mask"), ("semantic", "classes")])
def test_a_run_knows_what_its_labels_are(tmp_path, task, kind):
    """What is pictured after a training is scored by the run's own task."""
    folder = write_plain(tmp_path / "mine", [f"p{i:02}" for i in range(10)])
    for path in (folder / "masks").iterdir():
        with Image.open(path) as mask:
            Image.fromarray((np.asarray(mask) > 0).astype(np.uint8)).save(path)
    train = dataclasses.replace(CONFIG.train, epochs=1)
    config = dataclasses.replace(CONFIG, train=train, data=str(folder), task=task, limit=None)
    run = eu.train(config, tmp_path / "run")
    split = eu.load_split(str(folder), "val", size=SIZE, labels=kind)
    assert run.task.kind == split.kind == kind
    targets = np.asarray(run.task.targets(split.labels))
    np.testing.assert_array_equal(targets, split.labels)


def test_a_run_starts_from_what_the_latest_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "latest").symlink_to("a")
    assert eu.RunConfig(start="runs/latest").start == str(tmp_path / "runs" / "a")


def test_out_of_memory_names_the_way_out(tmp_path, monkeypatch):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")

    monkeypatch.setattr("eqxunet.runs.training.train_epochs", exhausted)
    with pytest.raises(InputError, match="--batch-size or --size.*--accumulate"):
        eu.train(CONFIG, tmp_path / "a")


def test_no_run_is_written_into_its_data(tmp_path):
    folder = write_plain(tmp_path / "mine", [f"p{i}" for i in range(10)])
    before = sorted(folder.rglob("*"))
    for directory in (folder, folder / "images"):
        with pytest.raises(InputError, match="no run of eqxunet"):
            eu.train(dataclasses.replace(CONFIG, data=str(folder)), directory, overwrite=True)
    assert sorted(folder.rglob("*")) == before


def test_a_loop_of_ones_own():
    split = eu.load_split("synthetic", "train", size=16, limit=8)
    model, state = eu.build(eu.ModelConfig(channels=(4, 8), size=16), key=jax.random.key(0))
    config = eu.TrainConfig(batch_size=4)
    trainer, train_state = eu.initialise(model, state, config, eu.Binary(split.kind), 3)
    done = []
    for trained, metrics in eu.fit(trainer, train_state, split):
        assert np.isfinite(metrics.loss)
        done.append(int(trained.step))
    assert done == [1, 2, 3]


def test_labels_of_another_kind_are_refused():
    split = eu.load_split("synthetic", "train", size=16, limit=4)
    model, state = eu.build(eu.ModelConfig(channels=(4, 8), size=16), key=jax.random.key(0))
    trainer, train_state = eu.initialise(
        model, state, eu.TrainConfig(batch_size=4), eu.Binary("mask"), 1
    )
    with pytest.raises(InputError, match='of kind "trimap", the task takes "mask"'):
        next(eu.fit(trainer, train_state, split))
    with pytest.raises(InputError, match='of kind "trimap", the task takes "mask"'):
        score(Predictor(model, state, eu.Binary("mask")), split)


class Normed(eu.AbstractEncoder):
    """With a BatchNorm that `fold` knows nothing of."""

    norm: BatchNorm
    in_channels: int = 3
    channels: tuple[int, ...] = (3, 3)
    strides: tuple[int, ...] = (1, 2)
    has_pretrained_weights = False

    def __call__(self, image, state):
        x, state = self.norm(image, state)
        return (x, x[::2, ::2]), state


def test_a_model_is_scored_in_inference_mode():
    """Whatever mode it is in; otherwise a batch's other images would have a part in it."""
    split = eu.load_split("synthetic", "train", size=16, limit=4)
    key = jax.random.key(0)
    model, state = eqx.nn.make_with_state(lambda: eu.UNet(Normed(BatchNorm(3)), size=16, key=key))()
    modes = (model, eqx.nn.inference_mode(model))
    losses = [score(Predictor(mode, state, eu.Binary(split.kind)), split).losses for mode in modes]
    np.testing.assert_array_equal(*losses)


def test_epochs_take_the_place_of_a_resumed_runs_steps():
    before = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=6))
    given = options_of_train(before, {"epochs": 9})
    assert (given.train.steps, given.train.epochs) == (None, 9)
    assert before.extended(given).train.steps is None


def test_public_names_are_documented_and_typed():
    assert (Path(eu.__file__).parent / "py.typed").exists()
    for name in eu.__all__:
        words = getattr(eu, name).__doc__
        assert words and not words.startswith(f"{name}("), name  # which dataclasses write
