"""Runs: directories in which a model is trained, scored and kept."""

from .comparison import compare as compare
from .config import RunConfig as RunConfig
from .directory import RUNS as RUNS
from .epochs import Outcome as Outcome
from .evaluation import evaluate as evaluate
from .load import Run as Run
from .load import load_run as load_run
from .load import predict as predict
from .observer import Observer as Observer
from .observer import Request as Request
from .prediction import Predictions as Predictions
from .prediction import predict_files as predict_files
from .records import best_of as best_of
from .resume import resumable as resumable
from .training import run_training as run_training
from .training import train as train
