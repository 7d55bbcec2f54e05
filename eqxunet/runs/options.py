"""What a run depends on, as options of the command line."""

import shlex
from collections.abc import Mapping
from typing import Any

from .documents import shown

Options = Mapping[str, Any]
"""Of a `RunConfig` and what is in it, by field."""

FILLED_IN = ("classes", "provenance", "identity")
"""What the run itself fills in."""

_WITHOUT_OPTION = (*FILLED_IN, "stage_sizes", "warmup")


def differences(before: Options, now: Options) -> list[str]:
    """In what two configurations differ, as the command line has it."""
    return [
        shown(f"{' '.join(_option(name, now[name]))} (was {_text(value)})")
        for name, value in before.items()
        if now[name] != value
    ]


def words_of(options: Options, default: Options) -> str:
    """What the command `train` takes of those that are not the default."""
    moot = {
        *_WITHOUT_OPTION,
        *(["labels"] if options["task"] == "binary" else []),  # of which data have one kind
        *([] if options["steps"] is None else ["epochs"]),
    }
    return shlex.join(
        word
        for name, value in options.items()
        if value != default[name] and name not in moot
        for word in _option(name, value)
    )


def _option(name: str, value: Any) -> tuple[str, ...]:
    if name in FILLED_IN:
        return name, str(value)
    words = "from" if name == "start" else name.replace("_", "-")
    if isinstance(value, bool):
        return (f"--{'' if value else 'no-'}{words}",)
    return f"--{words}", _text(value)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
