"""Pictures of runs."""

from .pictures import overlay as overlay
from .pictures import save_curves as save_curves
from .pictures import save_predictions as save_predictions
