"""A run's configuration as options of the command line."""

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .documents import shown

if TYPE_CHECKING:
    from .config import RunConfig

FILLED_IN = ("classes", "provenance", "identity")
"""What the run itself fills in."""

_WITHOUT_OPTION = (*FILLED_IN, "stage_sizes", "warmup")


def differences(before: "RunConfig", now: "RunConfig") -> list[str]:
    """The options in which two configurations differ, as the command line has them."""
    old, new = _values(before), _values(now)
    return [
        shown(f"{' '.join(_option(name, new[name]))} (was {value})")
        for name, value in old.items()
        if new[name] != value
    ]


def command(config: "RunConfig", directory: Path) -> str:
    """What trains a configuration in a directory."""
    values = _values(config)
    if config.task == "binary":
        del values["labels"]  # of which data have one kind
    if config.train.steps is not None:
        del values["epochs"]
    default = _values(type(config)())
    words = [
        word
        for name, value in values.items()
        if value != default[name] and name not in _WITHOUT_OPTION
        for word in _option(name, value)
    ]
    return shlex.join(["train", *words, "--run", str(directory)])


def _values(config: "RunConfig") -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return values.pop("model") | values.pop("train") | values


def _option(name: str, value: Any) -> tuple[str, ...]:
    if name in FILLED_IN:
        return name, str(value)
    words = "from" if name == "start" else name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--{'' if value else 'no-'}{words}",)
    return f"--{words}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
