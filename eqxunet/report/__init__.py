"""Pictures of runs."""

from .comparison import save_comparison as save_comparison
from .pictures import save_curves as save_curves
from .pictures import save_predictions as save_predictions
from .progress import save_progress as save_progress
