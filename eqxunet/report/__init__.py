"""Pictures of runs, and the page of an evaluation."""

from .embedding import Picture as Picture
from .page import Report as Report
from .page import save_report as save_report
from .pictures import save_curves as save_curves
from .pictures import save_predictions as save_predictions
