"""All that a run depends on, and the file that keeps it."""

import dataclasses
import os
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from .. import __version__
from ..config import (
    DATA_DIR,
    DATASETS,
    Labels,
    ModelConfig,
    TaskName,
    TrainConfig,
    require_choice,
)
from ..errors import InputError, IntegrityError
from ..tasks import AbstractTask, make_task
from .documents import is_whole, read_json, shown, write_json
from .options import FILLED_IN, Options, differences, words_of

_VERSIONED = ("jax", "equinox", "optax", "orbax-checkpoint", "numpy", "pillow")
# What `config.json` holds as it is, and since a later version what it may lack.
_PLAIN = ("data", "data_dir", "limit")
# What may change when a run is resumed.
_EXTENDABLE = ("epochs", "steps", "patience", "max_skipped", "checkpoint_every")
_TRAINED_LATER = {"keep_statistics": False}
_LATER = {
    "cache": True,
    "task": "binary",
    "labels": None,
    "classes": (),
    "identity": None,
    "start": None,
}


@dataclass(frozen=True)
class RunConfig:
    """What is trained on what; `train` completes it, and `config.json` holds it.

    Arguments:

    - `data`: `"oxford_iiit_pet"`, `"synthetic"`, or a folder.
    - `data_dir`: where TFDS keeps oxford_iiit_pet.
    - `limit`: the first so many examples of each split.
    - `cache`: keep decoded images; without, they are decoded each time they are read.
    - `task`, `labels`: what is learnt of which labels; None for what the task and the data imply.
    - `weights`: of an encoder that has pretrained ones: `"auto"`, `"random"` or a file.
    - `start`: a run whose best weights this one starts from.
    - `classes`: their names, by index; the run fills it in, as it does what follows.
    - `provenance`: of the weights: `{"sha256", "known_release"}`.
    - `identity`: of the data: by split, how many images, and a digest of them at training size.

    Raises InputError for values that cannot be meant, or where weights are named for an encoder
    that has none.
    """

    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    data: str = "oxford_iiit_pet"
    data_dir: str = str(DATA_DIR)
    limit: int | None = None
    cache: bool = True
    task: TaskName = "binary"
    labels: Labels | None = None
    weights: str = "auto"
    start: str | None = None
    classes: tuple[str, ...] = ()
    provenance: Mapping[str, Any] | None = None
    identity: Mapping[str, Any] | None = None

    def __post_init__(self):
        require_choice("task", self.task, TaskName)
        if self.labels is not None:
            require_choice("labels", self.labels, Labels)
        _require(self.limit is None or is_whole(self.limit, 1), "limit", self.limit)
        _require(isinstance(self.cache, bool), "cache", self.cache)
        for name in ("data", "data_dir", "weights", "start"):
            value = getattr(self, name)
            is_text = isinstance(value, str | os.PathLike) and "\0" not in os.fspath(value)
            _require(is_text or (name == "start" and value is None), name, value)
        is_named = isinstance(self.classes, tuple) and all(isinstance(c, str) for c in self.classes)
        _require(is_named and len(self.classes) <= 256, "classes", self.classes)
        _require(_is_provenance(self.provenance), "provenance", self.provenance)
        _require(_is_identity(self.identity), "identity", self.identity)
        # Where the program is called has no part in what a run is.
        object.__setattr__(self, "data", absolute(self.data))
        object.__setattr__(self, "data_dir", absolute(self.data_dir))
        if self.start is not None:  # `latest` will be another run
            object.__setattr__(self, "start", os.path.realpath(os.path.expanduser(self.start)))
        object.__setattr__(self, "weights", str(self.weights))
        if self.weights != "auto" and not self.model.has_pretrained_weights:
            raise InputError(
                f"--weights {self.weights}: there are none for the {self.model.encoder} encoder; "
                "leave it out, or use an --encoder that has some, such as resnet10"
            )
        if self.start is not None and self.weights != "auto":
            raise InputError(
                f"--weights {self.weights}: --from {self.start} brings its own; leave one of them "
                "out"
            )
        if self.weights == "random" and self.train.keep_statistics:
            raise InputError(
                "--keep-statistics: random weights have none that belong to them; leave it out"
            )
        if self.train.unfreeze_after is not None and not self.model.has_pretrained_weights:
            raise InputError(
                f"--unfreeze-after {self.train.unfreeze_after}: the {self.model.encoder} encoder "
                "has no pretrained weights and is trained from the start; leave it out, or use "
                "another --encoder"
            )

    def make_task(self) -> AbstractTask:
        """The task; needs `labels` and, for several classes, `classes`."""
        if self.labels is None:
            raise ValueError("labels is None: `train` fills it in, from the task and the data")
        return make_task(
            self.task, kind=self.labels, classes=self.classes, border=self.train.border
        )

    @property
    def training(self) -> TrainConfig:
        """`train`, with what an encoder of random weights needs where that is left open: the whole
        learning rate, and statistics that follow it."""
        if self.weights != "random":
            return self.train
        scale = self.train.encoder_lr_scale
        return dataclasses.replace(
            self.train, encoder_lr_scale=1.0 if scale is None else scale, keep_statistics=False
        )

    def extended(self, given: "RunConfig") -> "RunConfig":
        """This configuration, of a run to resume, with the length that another one gives.

        Raises InputError where that is shorter, or where they differ in anything else.
        """
        lengths = {name: getattr(given.train, name) for name in _EXTENDABLE}
        longer = dataclasses.replace(self, train=dataclasses.replace(self.train, **lengths))
        filled_in = {name: getattr(self, name) for name in FILLED_IN}
        labels = given.labels or self.labels
        theirs = dataclasses.replace(given, labels=labels, **filled_in)
        if changes := differences(longer.options, theirs.options):
            raise InputError(
                f"a resumed run keeps its options, but these differ: {', '.join(changes)}; "
                "leave them out, or start another run"
            )
        old, new = self.train, given.train
        pairs = {"steps": (old.steps, new.steps)}
        if old.steps is new.steps is None:
            pairs["epochs"] = (old.epochs, new.epochs)
        for name, (before, now) in pairs.items():
            if before and now and now < before:
                raise InputError(
                    f"a resumed run can be made longer, not shorter: --{name} {now} (was {before})"
                )
        return longer

    def check_unchanged(self, values: Any, directory: Path) -> "RunConfig":
        """Sees to it that this is what a checkpoint was trained with; its length may differ.

        Returns what the checkpoint says, or where it is of a version that said nothing, what
        `config.json` does.

        Raises InputError that lists the differences.
        """
        if values is None:
            return RunConfig.read(directory)
        before = RunConfig.from_values(values, f"{directory}: a checkpoint's configuration")
        lengths = {name: getattr(self.train, name) for name in _EXTENDABLE}
        extended = dataclasses.replace(before, train=dataclasses.replace(before.train, **lengths))
        if changes := differences(extended.options, self.options):
            raise InputError(
                f"{directory}: its config.json was changed since its checkpoint was saved: "
                f"{', '.join(changes)}; undo that, or start a new run with --from {directory}"
            )
        return before

    @classmethod
    def read(cls, directory: Path) -> "RunConfig":
        """Reads `config.json` of a run directory.

        Raises InputError where there is none, IntegrityError where it is not eqxunet's.
        """
        path = directory / "config.json"
        try:
            values = read_json(path)
        except FileNotFoundError:
            if has_checkpoints(directory):
                raise InputError(
                    f"{directory}: its config.json is lost, without which its checkpoints, which "
                    "stay as they are, cannot be used; put it back, or copy that of a run with the "
                    "same options, model and data"
                ) from None
            raise InputError(
                f"{directory}: not a run directory (no config.json); train one first, or name "
                "another"
            ) from None
        except IntegrityError as error:
            raise IntegrityError(f"{error}; name another run") from error
        return cls.from_values(values, str(path))

    @classmethod
    def from_values(cls, values: Any, place: str) -> "RunConfig":
        """What `values` gave; raises IntegrityError, which names the place, for anything else."""
        try:
            weights = values["weights"] or {"source": "auto"}
            config = cls(
                ModelConfig(**values["model"]),
                TrainConfig(**_TRAINED_LATER | values["train"]),
                **{name: values[name] for name in _PLAIN},
                **{name: _tuples(values.get(name, other)) for name, other in _LATER.items()},
                weights=weights["source"],
                provenance={k: v for k, v in weights.items() if k != "source"} or None,
            )
            if config.labels is not None:
                config.make_task()
            return config
        except InputError as error:
            raise IntegrityError(f"{place}: {shown(error)}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise IntegrityError(
                f"{place}: not the configuration of a run, or damaged "
                f"({type(error).__name__}: {shown(error)}); name another run"
            ) from error

    def values(self) -> dict[str, Any]:
        """As `config.json` and checkpoints hold it."""
        values = dataclasses.asdict(self)
        del values["provenance"]
        values["weights"] = self.weights_record
        return values

    def write(self, directory: Path) -> None:
        """Writes `config.json`, with the versions and the device beside the options.

        When the run was created stays as it stands there.
        """
        path = directory / "config.json"
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        about = {
            "versions": {"eqxunet": __version__, "python": platform.python_version()}
            | {name: version(name) for name in _VERSIONED},
            "device": {
                "platform": jax.default_backend(),
                "kind": jax.devices()[0].device_kind,
                "count": jax.device_count(),
            },
            "created": read_json(path).get("created", now) if path.exists() else now,
        }
        write_json(path, self.values() | about)

    @property
    def options(self) -> Options:
        """All of it, by field."""
        values = dataclasses.asdict(self)
        return values.pop("model") | values.pop("train") | values

    def command(self, directory: Path) -> str:
        """What trains this in a directory."""
        words = words_of(self.options, type(self)().options)
        return f"train {words} --run {shlex.quote(str(directory))}"

    @property
    def weights_record(self) -> dict[str, Any] | None:
        """Where the encoder's weights came from: `{"source", "sha256", "known_release"}`.

        None where there are no such weights, or those of `start` took their place.
        """
        if not self.model.has_pretrained_weights or self.start:
            return None
        return {"source": self.weights, **(self.provenance or {})}


def has_checkpoints(directory: Path) -> bool:
    """Whether a directory holds what a run saves."""
    folder = directory / "checkpoints"
    return folder.is_dir() and any(path.name.isdecimal() for path in folder.iterdir())


def absolute(data: str | os.PathLike[str]) -> str:
    """A dataset's name as it is, a path as an absolute one."""
    return str(data) if data in DATASETS else os.path.abspath(os.path.expanduser(data))


def _require(is_possible: bool, name: str, value: Any) -> None:
    if not is_possible:
        raise InputError(
            f"{name}={shown(repr(value))} is not possible in the configuration of a run"
        )


def _is_provenance(value: object) -> bool:
    return value is None or (
        isinstance(value, Mapping) and value.keys() <= {"sha256", "known_release"}
    )


def _is_identity(value: object) -> bool:
    if value is None:
        return True
    return (
        isinstance(value, Mapping)
        and value.keys() == {"train", "val"}
        and all(
            isinstance(split, Mapping)
            and split.keys() == {"count", "crc32"}
            and is_whole(split["count"])
            and isinstance(split["crc32"], str)
            for split in value.values()
        )
    )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
