"""From a model to a trained one: the compiled step, what it optimises, statistics, checkpoints.

`checkpoint` is imported by its own name: Orbax takes 40 MB, which a loop that saves nothing spares.
"""

from .loop import fit as fit
from .loop import with_precise_statistics as with_precise_statistics
from .optimizer import learning_rate as learning_rate
from .statistics import precise_statistics as precise_statistics
from .step import StepMetrics as StepMetrics
from .step import Trainer as Trainer
from .step import TrainState as TrainState
from .step import initialise as initialise
from .step import train_step as train_step
from .unfreezing import fit_in_phases as fit_in_phases
from .unfreezing import unfreeze as unfreeze
