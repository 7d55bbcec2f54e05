"""Numbers and tables as texts."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LABELS = {
    "iou": "IoU",
    "dice": "Dice",
    "hd95": "HD95 (px)",
    "ece": "ECE",
    "lr": "learning rate",
    "tp": "TP",
    "fp": "FP",
    "fn": "FN",
    "tn": "TN",
}


NOT_COUNTED = "not counted"
"""What pictures and tables call pixels that are ignored."""


@dataclass(frozen=True)
class Table:
    """Scores of the parts of something.

    - `stub`: what the rows are.
    - `columns`: keys of the cells, in order.
    - `rows`: by name, cells by column; a column may be missing.
    """

    title: str
    stub: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Any]]


def breakdown(title: str, stub: str, parts: Mapping[str, Any] | None) -> Table:
    """A table of scores by name, nested ones side by side."""
    rows = {name: flat(scores, " ") for name, scores in (parts or {}).items()}
    rows = {
        name: {k: v for k, v in cells.items() if not isinstance(v, str)}
        for name, cells in rows.items()
    }
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    return Table(title, stub, tuple(columns), rows)


def borders(by_border: Mapping[str, Any]) -> Table:
    """A table of what border policies differ in; the others of their scores need more room."""
    rows = {}
    for name, scores in by_border.items():
        parts = {part: scores[part] for part in ("pooled", "baseline") if part in scores}
        rows[NOT_COUNTED if name == "ignore" else name] = _overlaps(scores) | {
            part: _overlaps(values) for part, values in parts.items()
        }
    return breakdown("Border policies", "border counts as", rows)


def _overlaps(scores: Mapping[str, Any]) -> dict[str, Any]:
    return {name: scores[name] for name in ("iou", "dice") if name in scores}


def conditions(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What the scores hold for, by name: all single values, the weights and the baseline."""
    given = {
        name: value
        for name, value in metrics.items()
        if isinstance(value, str | int | float) and not (name == "loss" or _is_moot(name, metrics))
    }
    texts = {label(name): number(value) for name, value in given.items()}
    if weights := metrics.get("weights"):
        known = " (known release)" if weights.get("known_release") else ""
        digest = f", sha256 {weights['sha256'][:12]}…" if weights.get("sha256") else ""
        texts["weights"] = f"{weights['source']}{known}{digest}"
    if "size" in metrics:
        texts["size"] = f"{metrics['size']} × {metrics['size']} pixels"
    if baseline := metrics.get("baseline"):
        texts["baseline"] = f"IoU {number(baseline['iou'])} for {baseline['class']} everywhere"
    if calibration := metrics.get("calibration"):
        named = {"temperature": "temperature", "ece": "ECE", "threshold": "fitted threshold"}
        texts |= {
            text: number(calibration[name])
            for name, text in named.items()
            if calibration.get(name) is not None and not _is_moot(name, metrics)
        }
    if metrics.get("border") == "ignore":
        texts["border"] = NOT_COUNTED
    return texts


def _is_moot(name: str, metrics: Mapping[str, Any]) -> bool:
    return name == "threshold" and metrics["task"] != "binary"


def flat(values: Mapping[str, Any] | None, separator: str = ".") -> dict[str, Any]:
    """Nested values by joined names; scores with their intervals stay whole."""
    result: dict[str, Any] = {}
    for name, value in (values or {}).items():
        if isinstance(value, Mapping) and "mean" not in value:
            inner = flat(value, separator)
            result |= {f"{name}{separator}{below}": v for below, v in inner.items()}
        else:
            result[name] = value
    return result


def label(name: str) -> str:
    """A column's or a score's name for people."""
    return " ".join(_LABELS.get(word, word) for word in name.replace("_", " ").split(" "))


def number(value: Any, name: str = "") -> str:
    """A value as a text: three decimals, or four digits from 100 on; of a distance one decimal."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\N{THIN SPACE}")
    if isinstance(value, float) and is_distance(name):
        return f"{value:.1f}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def is_distance(name: str) -> bool:
    """Whether a score is in pixels."""
    return name.endswith("hd95")


def score(value: Any, name: str = "") -> str:
    """A score with its 95% interval, if it has one."""
    if not isinstance(value, Mapping):
        return number(value, name)
    ends = ", ".join(number(end, name) for end in value.get("ci95") or ())
    return number(value["mean"], name) + (f" [{ends}]" if ends else "")
