"""What a trained model predicts, and what that scores."""

from .calibration import Calibration as Calibration
from .calibration import calibrate as calibrate
from .images import as_rgb as as_rgb
from .intervals import mean_intervals as mean_intervals
from .predictor import Predictor as Predictor
from .predictor import forward as forward
from .predictor import predict as predict
from .scoring import Scores as Scores
from .scoring import score as score
from .scoring import score_at_own_size as score_at_own_size
from .summary import baseline as baseline
from .summary import per_image as per_image
from .summary import summarise as summarise
