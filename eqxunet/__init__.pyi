from . import losses as losses
from . import metrics as metrics
from .config import ModelConfig as ModelConfig
from .config import TrainConfig as TrainConfig
from .inference import predict as predict
from .models import ResNet10 as ResNet10
from .models import build as build
from .models import from_flax as from_flax
from .runs import load_run as load_run

__version__: str
CHECKED: tuple[str, ...]
