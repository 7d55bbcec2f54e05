"""What an epoch's record says of its steps, summed up while it goes on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import IntegrityError
from ..training import StepMetrics
from .documents import is_number, is_whole


@dataclass(frozen=True)
class EpochSums:
    """Sums over the steps of an epoch until now, which a checkpoint inside it keeps.

    They are added up in double precision, one step after another, so that they are the same bits
    wherever a run was interrupted.

    - `steps`: until now; `finite`: those of them that changed something.
    - `loss`, `iou`: summed over the finite ones.
    """

    steps: int = 0
    finite: int = 0
    loss: float = 0.0
    iou: float = 0.0

    def plus(self, metrics: StepMetrics) -> "EpochSums":
        """With another step, whose metrics are on the host."""
        if metrics.skipped:
            return dataclasses.replace(self, steps=self.steps + 1)
        return EpochSums(
            self.steps + 1,
            self.finite + 1,
            self.loss + float(metrics.loss),
            self.iou + float(metrics.iou),
        )

    def record(self) -> dict[str, Any]:
        """The means, none where no step was finite."""
        return {
            "train/loss": self.loss / self.finite if self.finite else None,
            "train/iou": self.iou / self.finite if self.finite else None,
            "skipped_steps": self.steps - self.finite,
        }

    @classmethod
    def read(cls, values: Any, place: Path) -> "EpochSums":
        """Of what a checkpoint says; raises IntegrityError, which names the place, otherwise."""
        names = {"steps": is_whole, "finite": is_whole, "loss": is_number, "iou": is_number}
        if not (
            isinstance(values, Mapping)
            and values.keys() == names.keys()
            and all(is_right(values[name]) for name, is_right in names.items())
        ):
            raise IntegrityError(
                f"{place}: its checkpoint says nothing that could be sums of an epoch"
            )
        return cls(**values)
