from . import losses as losses
from . import metrics as metrics
from .config import ModelConfig as ModelConfig
from .config import TrainConfig as TrainConfig
