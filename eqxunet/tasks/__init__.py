"""Tasks: what a pixel's logits mean, how they are trained, decoded, scored and coloured."""

from collections.abc import Callable

from ..config import Border, Labels, TaskName
from . import losses as losses
from . import metrics as metrics
from .binary import Binary as Binary
from .semantic import Semantic as Semantic
from .task import IGNORED as IGNORED
from .task import AbstractTask as AbstractTask
from .task import confusion_matrix as confusion_matrix

TASKS: dict[TaskName, Callable[[tuple[str, ...], Labels, Border], AbstractTask]] = {
    "binary": lambda classes, kind, border: Binary(kind=kind, border=border),
    "semantic": Semantic,
}
"""From the names of the classes in the labels, the kind of labels, and the border policy."""


def make_task(
    name: TaskName, *, kind: Labels, classes: tuple[str, ...], border: Border
) -> AbstractTask:
    """The task of a name.

    Arguments:

    - `kind`: of the labels.
    - `classes`: in the labels, by index.
    - `border`: what a border counts as, where labels have one.
    """
    return TASKS[name](classes, kind, border)
