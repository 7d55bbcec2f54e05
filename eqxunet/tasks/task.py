"""What a pixel's logits mean: the seam between a network and what it is trained for."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from ..config import Border, Labels
from ..data.complaints import some_of
from ..errors import InputError
from .metrics import Counts

IGNORED = 255
"""Target of a pixel that does not count."""

# The class of each raw label; those that have a border, by what it counts as.
_PLAIN: Mapping[Labels, Mapping[int, int]] = {
    "mask": {0: 0, 1: 1},
    "classes": {label: label for label in range(IGNORED)},
}
_BORDERED: Mapping[Labels, Mapping[Border, Mapping[int, int]]] = {
    "trimap": {
        "foreground": {1: 1, 2: 0, 3: 1},
        "background": {1: 1, 2: 0, 3: 0},
        "ignore": {1: 1, 2: 0, 3: IGNORED},
    },
    "species": {
        "foreground": {0: 0, 1: 1, 2: 2, 3: 1, 4: 2},
        "background": {0: 0, 1: 1, 2: 2, 3: 0, 4: 0},
        "ignore": {0: 0, 1: 1, 2: 2, 3: IGNORED, 4: IGNORED},
    },
}

Score = Literal["iou", "dice", "precision", "recall"]
SCORES: tuple[Score, ...] = get_args(Score)

Intervals = Callable[[np.ndarray], list[dict[str, Any]]]

Confusion = Int[Array | np.ndarray, "*b k k"]
"""Pixels by true class (rows) and predicted class (columns)."""


class AbstractTask(eqx.Module):
    """What a network's outputs are trained for, and how they are decoded and scored.

    Tasks hold plain values alone, so they cost nothing to pass into a compiled function. Targets,
    probabilities and predictions of NumPy arrays are NumPy arrays, which nothing is compiled for.

    - `classes`: names, by index; background first where there is one.
    - `kind`: what the values of raw labels mean.
    - `border`: what the border of `"trimap"` and `"species"` labels counts as.
    """

    classes: eqx.AbstractVar[tuple[str, ...]]
    kind: eqx.AbstractVar[Labels]
    border: eqx.AbstractVar[Border]

    def check(self, kind: Labels, classes: Sequence[str]) -> None:
        """Raises InputError where a split's labels are not those that the task takes."""
        if kind != self.kind:
            raise InputError(
                f'the labels are of kind "{kind}", the task takes "{self.kind}"; make the task '
                f'with kind="{kind}"'
            )
        if kind == "classes" and len(classes) > len(self.classes):
            raise InputError(
                f"the labels have {len(classes)} classes ({some_of(classes)}), the task "
                f"{len(self.classes)} ({some_of(self.classes)}); give the task all of them"
            )

    @property
    def has_border(self) -> bool:
        """Whether labels tell the border, and the policy says what it counts as."""
        return self.kind in _BORDERED

    @property
    @abstractmethod
    def outputs(self) -> int:
        """How many logits a pixel has."""

    @property
    @abstractmethod
    def colours(self) -> UInt8[np.ndarray, "k 3"]:
        """Of each class, in RGB."""

    @abstractmethod
    def targets(
        self, labels: UInt8[Array | np.ndarray, "*b h w"]
    ) -> UInt8[Array | np.ndarray, "*b h w"]:
        """Each pixel's class, from raw labels; `IGNORED` where it does not count."""

    @abstractmethod
    def loss(
        self, logits: Float[Array, "h w k"], target: UInt8[Array | np.ndarray, "h w"]
    ) -> Float[Array, ""]:
        """Of one image, in float32."""

    @abstractmethod
    def probability(
        self, logits: Float[Array | np.ndarray, "*b h w k"]
    ) -> Float[Array | np.ndarray, "..."]:
        """Of each class; of foreground alone, without an axis for it, where that is all."""

    @abstractmethod
    def prediction(
        self,
        logits: Float[Array | np.ndarray, "*b h w k"],
        threshold: Float[Array, ""] | float = 0.5,
    ) -> UInt8[Array | np.ndarray, "*b h w"]:
        """The class of each pixel."""

    @property
    @abstractmethod
    def scored_classes(self) -> tuple[int, ...]:
        """Indices of the classes that are scored."""

    def counts(self, confusion: Confusion) -> Counts:
        """Pixels of each scored class against all others, on the last axis."""
        truth, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
        tp = confusion.diagonal(0, -2, -1)
        total = confusion.sum(axis=(-2, -1))[..., None]
        counts = Counts(tp, fp=predicted - tp, fn=truth - tp, tn=total - truth - predicted + tp)
        return Counts(*(array[..., list(self.scored_classes)] for array in counts))

    def score(self, name: Score, confusion: Confusion) -> Float[Array | np.ndarray, "*b"]:
        """An image's score: the mean over the scored classes of its truth or its prediction.

        A class that is in neither has no part in it; where there is none, the score is 1.
        """
        counts = self.counts(confusion)
        is_present = counts.tp + counts.fp + counts.fn > 0
        present = is_present.sum(axis=-1)
        total = (getattr(counts, name) * is_present).sum(axis=-1)
        return (total + (present == 0)) / (present + (present == 0))

    @abstractmethod
    def columns(self, confusion: Int[np.ndarray, "n k k"]) -> dict[str, Any]:
        """Further columns of `per_image.csv`, one value an image each."""

    @abstractmethod
    def details(self, confusion: Int[np.ndarray, "n k k"], intervals: Intervals) -> dict[str, Any]:
        """Further entries of `metrics.json`.

        Arguments:

        - `intervals`: makes `{"mean", "ci95"}` of each column of "n m"; NaN is left out.
        """


def class_of_label(
    labels: UInt8[Array | np.ndarray, "*b h w"], kind: Labels, border: Border
) -> UInt8[Array | np.ndarray, "*b h w"]:
    """Each pixel's class, by what a kind of labels means; `IGNORED` for values it does not have."""
    return look_up(_PLAIN.get(kind) or _BORDERED[kind][border], labels)


def look_up(
    classes: Mapping[int, int], labels: UInt8[Array | np.ndarray, "*b h w"]
) -> UInt8[Array | np.ndarray, "*b h w"]:
    """Each pixel's class by its label; `IGNORED` for labels without one."""
    table = np.full(256, IGNORED, np.uint8)
    table[list(classes)] = list(classes.values())
    return table[labels] if isinstance(labels, np.ndarray) else jnp.asarray(table)[labels]


def confusion_matrix(
    prediction: UInt8[Array | np.ndarray, "h w"],
    target: UInt8[Array | np.ndarray, "h w"],
    classes: int,
) -> Int[Array, "k k"]:
    """Counts one image's pixels by true class (rows) and predicted class (columns)."""
    # Exact below 2**24 pixels an entry; one product, where a histogram would be a scatter.
    truth = jax.nn.one_hot(target.reshape(-1), classes)
    predicted = jax.nn.one_hot(prediction.reshape(-1), classes)
    return jnp.einsum("pk,pl->kl", truth, predicted, precision="highest").astype(jnp.int32)
