"""Pictures of runs, and the page of an evaluation."""

from .comparison import save_comparison as save_comparison
from .embedding import Picture as Picture
from .page import Report as Report
from .page import save_report as save_report
from .pictures import overlay as overlay
from .pictures import save_curves as save_curves
from .pictures import save_predictions as save_predictions
from .progress import save_progress as save_progress
