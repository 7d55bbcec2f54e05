"""What a trained model predicts, and what that scores."""

from .images import as_rgb as as_rgb
from .predictor import Predictor as Predictor
from .predictor import forward as forward
from .predictor import predict as predict
from .scoring import Scores as Scores
from .scoring import baseline as baseline
from .scoring import per_image as per_image
from .scoring import score as score
from .scoring import summarise as summarise
