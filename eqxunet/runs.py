"""Run directories: configuration, metrics, checkpoints, and who may write to them."""

import dataclasses
import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from filelock import FileLock, Timeout

from . import __version__
from .checkpoint import restore
from .config import ModelConfig, TrainConfig
from .errors import BusyError, InputError, IntegrityError
from .models import AbstractUNet, build
from .models.leaves import named_leaves, replace_leaves, replace_state, select

RUNS = Path("runs")
_LOCK = ".lock"
_VERSIONED = ("jax", "equinox", "optax", "orbax-checkpoint", "numpy", "pillow")


@dataclass(frozen=True)
class RunConfig:
    """All that `config.json` holds and a run depends on.

    - `data`, `data_dir`, `limit`: as the options of `eqxunet train`, with absolute paths.
    - `weights`: the encoder's weights: `{"source", "sha256", "known_release"}`.
    - `identity`: of the data: by split, how many images, and a digest of them at training size.
    """

    model: ModelConfig
    train: TrainConfig
    data: str
    data_dir: str
    limit: int | None
    weights: Mapping[str, Any] | None
    identity: Mapping[str, Any] | None = None

    @classmethod
    def read(cls, directory: Path) -> "RunConfig":
        """Reads `config.json` of a run directory.

        Raises InputError where there is none, IntegrityError where it is not eqxunet's.
        """
        path = directory / "config.json"
        if not path.is_file():
            raise InputError(
                f"{directory}: not a run directory (no config.json); train one first with "
                "`python cli.py train`, or name one with --run"
            )
        try:
            values = json.loads(path.read_text())
            model = {name: _tuples(value) for name, value in values["model"].items()}
            return cls(
                ModelConfig(**model),
                TrainConfig(**values["train"]),
                **{name: values[name] for name in ("data", "data_dir", "limit", "weights")},
                identity=values.get("identity"),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{path}: not the configuration of a run, or damaged "
                f"({type(error).__name__}: {error}); name another directory with --run"
            ) from error

    def write(self, directory: Path) -> None:
        """Writes `config.json`, with the versions and the device beside the options."""
        about = {
            "versions": {"eqxunet": __version__, "python": platform.python_version()}
            | {name: version(name) for name in _VERSIONED},
            "device": {
                "platform": jax.default_backend(),
                "kind": jax.devices()[0].device_kind,
                "count": jax.device_count(),
            },
            "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        text = json.dumps(dataclasses.asdict(self) | about, indent=2)
        (directory / "config.json").write_text(text + "\n")


@dataclass(frozen=True)
class Run:
    """A trained run: its best checkpoint, ready for inference."""

    model: AbstractUNet
    state: eqx.nn.State
    config: RunConfig
    step: int
    directory: Path
    damaged: list[str]


def load_run(directory: str | os.PathLike[str] = RUNS / "latest") -> Run:
    """Loads the best checkpoint of a run, with the model in inference mode.

    Raises InputError where the directory holds no run, or none that was validated, IntegrityError
    where every checkpoint is damaged.
    """
    directory = Path(directory).resolve()
    config = RunConfig.read(directory)
    restored = restore(directory / "checkpoints", "best")
    if restored is None:
        if restore(directory / "checkpoints") is None:
            raise InputError(
                f"{directory}: nothing was saved yet; wait for its first epoch to end, or train "
                "anew with the options in its config.json and --overwrite"
            )
        raise InputError(
            f"{directory}: no validated checkpoint yet; go on with `train --resume --run "
            f"{directory}` until an epoch ends"
        )
    # Shapes alone: drawing random weights would take seconds.
    model, state = eqx.filter_eval_shape(build, config.model, key=jax.random.key(0))
    leaves, statistics = (select(restored.arrays, part) for part in ("model", "state"))
    if missing := named_leaves(model).keys() - leaves.keys():
        raise IntegrityError(f"{directory}: the checkpoint lacks {sorted(missing)}")
    model = eqx.nn.inference_mode(replace_leaves(model, leaves))
    state = replace_state(model, state, statistics)
    return Run(model, state, config, restored.step, directory, restored.damaged)


def append_metrics(directory: Path, record: Mapping[str, Any]) -> None:
    """Adds a line to `metrics.jsonl`."""
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")


def keep_metrics_until(directory: Path, step: int) -> list[dict[str, Any]]:
    """Drops the lines of `metrics.jsonl` after `step`, which a resumed run writes anew.

    Returns the lines that stay. One that a crash left incomplete is dropped too.
    """
    path = directory / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            break
        if record["step"] <= step:
            records.append(record)
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
    temporary.replace(path)
    return records


def new_directory(encoder: str) -> Path:
    """Makes a directory for a new run, named by the time: `runs/20260131-120000-scratch`."""
    RUNS.mkdir(exist_ok=True)
    name = f"{datetime.now():%Y%m%d-%H%M%S}-{encoder}"
    directory, number = RUNS / name, 1
    while True:
        try:
            directory.mkdir()
            return directory
        except FileExistsError:  # another training began in this second
            number += 1
            directory = RUNS / f"{name}-{number}"


def check_directory(directory: Path, *, overwrite: bool) -> None:
    """Sees to it that a new run in a directory destroys nothing but, with `overwrite`, a run.

    Raises InputError where the directory holds something else, or a run that is not to be
    overwritten, and what `RunConfig.read` raises.
    """
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file; name a directory for the run with --run")
    if directory.name == "latest" and not directory.is_symlink():
        raise InputError(
            f"{directory}: `latest` is the link to the latest run; choose another name"
        )
    if not directory.is_dir() or {path.name for path in directory.iterdir()} <= {_LOCK}:
        return
    if not (directory / "config.json").exists():
        raise InputError(
            f"{directory}: is not empty, and no run of eqxunet; name a new directory with --run"
        )
    RunConfig.read(directory)
    if not overwrite:
        raise InputError(
            f"{directory} holds a run already: --resume goes on with it, --overwrite deletes it"
        )


def clear(directory: Path) -> None:
    """Deletes what a run wrote into its directory; last what shows that it is one."""
    for name in ("checkpoints", "eval"):
        if (directory / name).exists():
            shutil.rmtree(directory / name)
    for name in ("metrics.jsonl", "curves.png", "predictions.png", "config.json"):
        (directory / name).unlink(missing_ok=True)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds a run directory for this process; a dead process's lock counts for nothing.

    Raises BusyError where another process holds it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / _LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise BusyError(
            f"{directory}: another process is training in it; wait for it, or name another --run"
        ) from error
    try:
        yield
    finally:
        lock.release()
        if {path.name for path in directory.iterdir()} <= {_LOCK}:
            shutil.rmtree(directory)  # a run that never started leaves nothing


def point_latest(directory: Path) -> None:
    """Lets `runs/latest` point to a run in `runs/`; of a run elsewhere there is no latest."""
    if directory.parent != RUNS.resolve():
        return
    link = directory.parent / "latest"
    temporary = link.with_name(f".latest-{os.getpid()}")
    temporary.symlink_to(directory.name)
    temporary.replace(link)


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
