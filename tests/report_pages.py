"""Evaluations without a model, for the tests of eqxunet.report."""

import numpy as np

from eqxunet.report import Picture, Report
from eqxunet.tasks.metrics import Counts

TP_FP_FN_TN = ((1, True), (0, True), (1, False), (0, False))  # truth, and whether it is found


def drawn(count: int, size: int = 32, seed: int = 0) -> list[Picture]:
    """Discs on noise, some with a ring that does not count, and soft predictions beside them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    pictures = []
    for index in range(count):
        distance = np.hypot(x - rng.normal(0, 0.1), y - rng.normal(0, 0.1))
        target = (distance < 0.3).astype(np.uint8)
        if index % 3 == 0:
            target[abs(distance - 0.3) < 0.04] = 255
        near = np.hypot(x - rng.normal(0, 0.1), y - rng.normal(0, 0.1))
        p = 1 / (1 + np.exp(30 * (near - rng.uniform(0.1, 0.4)) + rng.normal(0, 1, near.shape)))
        image = (120 + 80 * (distance < 0.3)[..., None] + rng.normal(0, 20, (size, size, 3))).clip(
            0, 255
        )
        output = np.minimum(np.floor(256 * p), 255).astype(np.uint8)
        pictures.append(Picture(image.astype(np.uint8), target, output))
    return pictures


def counts_at(pictures: list[Picture], k: int) -> Counts:
    """Of each picture, at the threshold k / 256."""
    counted = []
    for _, target, output, _ in pictures:
        cells = [(target == t) & ((output >= k) == is_found) for t, is_found in TP_FP_FN_TN]
        counted.append([np.sum(cell) for cell in cells])
    return Counts(*np.array(counted).T)


def binary(pictures: list[Picture], names: list[str] | None = None, **metrics) -> Report:
    names = names or [f"image_{i:04}" for i in range(len(pictures))]
    counts = counts_at(pictures, 128)
    rows = [
        {"name": name, "iou": iou, "dice": dice, **Counts(*cells)._asdict(), "group": f"g{i % 2}"}
        for i, (name, iou, dice, cells) in enumerate(
            zip(names, counts.iou, counts.dice, np.array(counts).T, strict=True)
        )
    ]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("iou", "dice")}
    given = {
        "run": "runs/a",
        "task": "binary",
        "split": "test",
        "count": len(rows),
        "threshold": 0.5,
        **{
            key: {"mean": value, "ci95": [value - 0.02, value + 0.02]}
            for key, value in mean.items()
        },
    }
    colours = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    return Report(given | metrics, rows, ("background", "foreground"), colours)


def semantic(pictures: list[Picture], classes: tuple[str, ...]) -> tuple[Report, list[Picture]]:
    """The same with an index of a class a pixel, in bands of the output."""
    k = len(classes)
    pictures = [
        p._replace(output=(p.output.astype(int) * k // 256).astype(np.uint8)) for p in pictures
    ]
    rows = [{"name": f"image_{i}", "iou": i / len(pictures)} for i in range(len(pictures))]
    confusion = (np.eye(k, dtype=int) * 90 + 10).tolist()
    score = {"mean": 0.5, "ci95": [0.4, 0.6]}
    metrics = {
        "run": "runs/b",
        "task": "semantic",
        "split": "val",
        "iou": score,
        "dice": {"mean": 0.6, "ci95": None},
        "per_class": {name: {"iou": score, "dice": None, "pooled_iou": 0.5} for name in classes},
        "confusion": confusion,
    }
    colours = np.arange(3 * k, dtype=np.uint8).reshape(k, 3) * 9
    return Report(metrics, rows, classes, colours), pictures
