"""Charts as plain geometry, which a template draws as SVG in the page's own colours."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

Points = Float[np.ndarray, "_ 2"]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes, and bars behind them.

    - `lines`: by name, points in the order they are joined.
    - `bars`: from left to right: where each starts and ends, and its height.
    - `x_range`, `y_range`: what the axes show; None for what there is to show.
    - `ideal`: points of a dashed line to compare with.
    - `mark`: where on the x axis a dashed line stands.
    """

    title: str
    x_label: str
    y_label: str
    lines: Mapping[str, Points] = field(default_factory=dict)
    bars: Float[np.ndarray, "_ 3"] | None = None
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    ideal: Points | None = None
    mark: float | None = None

    # Of the plot within a drawing of 360 x 214 units.
    left, top, width, height = 46, 10, 300, 162

    @property
    def x_ticks(self) -> list[tuple[float, str]]:
        """Where the x axis has ticks, and their texts."""
        return self._ticks(0)

    @property
    def y_ticks(self) -> list[tuple[float, str]]:
        """Where the y axis has ticks, and their texts."""
        return self._ticks(1)

    def x(self, value: float) -> float:
        """Where a value lies, in units of the drawing."""
        low, high = self._limits(0)
        return round(self.left + self.width * (value - low) / (high - low), 2)

    def y(self, value: float) -> float:
        """Where a value lies, in units of the drawing, which count downwards."""
        low, high = self._limits(1)
        return round(self.top + self.height * (high - value) / (high - low), 2)

    def path(self, points: Points) -> str:
        """The points as SVG's `polyline` takes them."""
        return " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)

    @property
    def summary(self) -> str:
        """The chart in words, for those who do not see it."""
        lines = [
            f"{name} from {points[0, 1]:.3g} to {points[-1, 1]:.3g}"
            for name, points in self.lines.items()
            if len(points)
        ]
        return f"{self.title}: {self.y_label} against {self.x_label}. {'; '.join(lines)}"

    def _ticks(self, axis: int) -> list[tuple[float, str]]:
        low, high = self._limits(axis)
        values = self._values(axis)
        is_whole = len(values) > 0 and not (values % 1).any()
        locator = MaxNLocator(nbins=5, steps=[1, 2, 5, 10], integer=is_whole)
        ticks = locator.tick_values(low, high)
        return [(float(t), f"{t:.4g}") for t in ticks if low - 1e-9 <= t <= high + 1e-9]

    def _limits(self, axis: int) -> tuple[float, float]:
        if fixed := (self.x_range, self.y_range)[axis]:
            return fixed
        values = np.append(self._values(axis), [0.0] * axis)  # heights start at zero
        low, high = float(values.min()), float(values.max())
        return low, high if high > low else low + 1

    def _values(self, axis: int) -> Float[np.ndarray, " _"]:
        parts = [points[:, axis] for points in self.lines.values()]
        if self.bars is not None:
            parts += [self.bars[:, 2]] if axis else [self.bars[:, 0], self.bars[:, 1]]
        return np.concatenate(parts or [np.empty(0)])


def joined(xs: Iterable[Any], ys: Iterable[Any]) -> Points:
    """Points of two sequences, without those that have no number."""
    pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if x is not None and y is not None]
    points = np.array(pairs, float).reshape(-1, 2)
    return points[np.isfinite(points).all(axis=1)]


def learning_curves(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Loss, validation scores and learning rate against epochs."""
    epochs = [record["epoch"] for record in records]
    charts = []
    for title, y_label, names, y_range in (
        ("Loss", "loss", {"train/loss": "training", "val/loss": "validation"}, None),
        ("Validation", "mean score", {"val/iou": "IoU", "val/dice": "Dice"}, (0.0, 1.0)),
        ("Learning rate", "rate", {"lr": "learning rate"}, None),
    ):
        curves = {
            name: joined(epochs, [record.get(key) for record in records])
            for key, name in names.items()
        }
        curves = {name: points for name, points in curves.items() if len(points)}
        if curves:
            charts.append(Chart(title, "epoch", y_label, curves, y_range=y_range))
    return charts


def validation_curves(metrics: Mapping[str, Any]) -> list[Chart]:
    """Precision against recall, Dice against threshold, and reliability; those that there are."""
    unit: dict[str, Any] = {"x_range": (0.0, 1.0), "y_range": (0.0, 1.0)}
    charts = []
    if curve := metrics.get("threshold_curve"):
        points = {"precision": joined(curve["recall"], curve["precision"])}
        charts.append(Chart("Precision against recall", "recall", "precision", points, **unit))
        points = {"Dice": joined(curve["threshold"], curve["dice"])}
        mark = metrics.get("threshold")
        charts.append(
            Chart("Dice against threshold", "threshold", "Dice", points, mark=mark, **unit)
        )
    if bins := (metrics.get("calibration") or {}).get("bins"):
        points = joined([b["confidence"] for b in bins], [b["accuracy"] for b in bins])
        is_binary = metrics.get("task") == "binary"
        share = f"share that is {'foreground' if is_binary else 'right'}"
        said = "probability of foreground" if is_binary else "confidence"
        diagonal = np.array([[0.0, 0.0], [1.0, 1.0]])
        charts.append(
            Chart(f"Reliability: {share}", said, share, {"model": points}, ideal=diagonal, **unit)
        )
    return charts


def threshold_axes() -> Chart:
    """Axes over which the page's script draws the scores at every threshold."""
    none = np.empty((0, 2))
    unit = (0.0, 1.0)
    lines = {"IoU": none, "Dice": none}
    title = "Means by threshold"
    return Chart(title, "threshold", "mean score", lines, x_range=unit, y_range=unit, mark=0.5)


def histogram(values: Iterable[Any]) -> Chart:
    """How many images have which IoU, in twenty bins."""
    finite = [value for value in values if value is not None and np.isfinite(value)]
    counts, edges = np.histogram(finite, bins=20, range=(0, 1))
    bars = np.stack([edges[:-1], edges[1:], counts], axis=1).astype(float)
    return Chart("IoU of the images", "IoU", "images", bars=bars, x_range=(0.0, 1.0))
