"""The page of an evaluation: one HTML file with scores, curves and pictures, and all they need."""

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from .. import __version__
from ..storage import replacing
from .charts import histogram, learning_curves, threshold_axes, validation_curves
from .embedding import ROOM, Embedding, Picture
from .tables import (
    Table,
    borders,
    breakdown,
    conditions,
    flat,
    is_distance,
    label,
    number,
    score,
)

_TEMPLATES = Path(__file__).parent / "templates"
_SCRIPTS = ("store", "paint", "viewer", "threshold", "table", "theme")
_SHOWN = 12  # of the worst images, and of the best


@dataclass(frozen=True)
class Report:
    """What a page is made of; it shows what is there.

    - `metrics`: of `metrics.json`.
    - `rows`: of `per_image.csv`: with a `name` and an `iou`, and any others.
    - `classes`, `colours`: of the task, by index.
    - `records`: the lines of `metrics.jsonl`.
    - `config`: of `config.json`.
    """

    metrics: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    classes: Sequence[str]
    colours: UInt8[np.ndarray, "k 3"]
    records: Sequence[Mapping[str, Any]] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_binary(self) -> bool:
        return self.metrics["task"] == "binary"


def save_report(
    report: Report, pictures: Iterable[Picture], path: Path, *, room: int = ROOM
) -> None:
    """Writes the page; its pictures are read and written one by one.

    Arguments:

    - `pictures`: of the report's rows, in their order. The page carries the worst and the best,
      and of the others what there is room for, coarsely if need be (see `Embedding`).
    - `room`: characters for those others.

    Raises ValueError where there are more or fewer pictures than rows.
    """
    ranks = sorted(
        (i for i, row in enumerate(report.rows) if _plain(row["iou"]) is not None),
        key=lambda i: report.rows[i]["iou"],
    )
    worst = ranks[: min(_SHOWN, (len(ranks) + 1) // 2)]
    best = ranks[len(worst) :][: -_SHOWN - 1 : -1]
    metrics = report.metrics
    start = min(round(256 * metrics.get("threshold", 0.5)), 255) if report.is_binary else None
    embedding = Embedding(pictures, len(report.rows), [*worst, *best], start=start, room=room)
    style = _read("report.css")
    script = Markup("\n").join(_read(f"{name}.js") for name in _SCRIPTS)
    parts = (
        _environment()
        .get_template("report.html")
        .generate(
            version=__version__,
            style=style,
            style_hash=_hash(style),
            script=script,
            script_hash=_hash(script),
            report=report,
            metrics=metrics,
            name=Path(str(metrics.get("run", "run"))).name,
            scores={k: v for k, v in metrics.items() if isinstance(v, Mapping) and "mean" in v},
            conditions=conditions(metrics),
            tables=_tables(metrics),
            learning=learning_curves(report.records),
            validation=validation_curves(metrics),
            spread=histogram(row["iou"] for row in report.rows),
            by_threshold=threshold_axes(),
            options=flat(report.config),
            embedding=embedding,
            data={
                "isBinary": report.is_binary,
                "start": start,
                "classes": list(report.classes),
                "colours": report.colours.tolist(),
                "columns": _columns(report.rows),
                "worst": worst,
                "best": best,
            },
        )
    )
    with replacing(path) as file:
        for part in parts:
            file.write(part.encode(errors="replace"))


def _tables(metrics: Mapping[str, Any]) -> list[Table]:
    """The scores of parts: classes, groups, sizes, border policies."""
    tables = [
        breakdown("Classes", "class", metrics.get("per_class")),
        breakdown("Groups", "group", metrics.get("groups")),
        breakdown("Sizes of the objects", "size", metrics.get("sizes")),
    ]
    policies = metrics.get("by_border") or {}
    if any(scores != next(iter(policies.values())) for scores in policies.values()):
        tables.append(borders(policies))
    return [table for table in tables if table.rows]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows by column, as the page's script takes them."""
    columns = []
    for name in rows[0] if rows else ():
        values = [_plain(row[name]) for row in rows]
        kind = "distance" if is_distance(name) else _kind(values)
        columns.append({"name": name, "label": label(name), "kind": kind, "values": values})
    return columns


def _kind(values: Sequence[Any]) -> str:
    """What a column holds: whole numbers, numbers, or else text."""
    for kind, types in (("whole", int), ("number", int | float)):
        if all(value is None or isinstance(value, types) for value in values):
            return kind
    return "text"


def _plain(value: Any) -> Any:
    """A value as JSON has it: None for what is no finite number."""
    value = value.item() if isinstance(value, np.generic | np.ndarray) else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "score": score, "label": label, "json": json.dumps}
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment


def _read(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _hash(content: str) -> str:
    """As a content security policy names a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}"
