from . import losses as losses
from . import metrics as metrics
from .config import ModelConfig as ModelConfig
from .config import TrainConfig as TrainConfig
from .inference import predict as predict
from .models import ResNet10 as ResNet10
from .models import build as build
from .models import fold as fold
from .models import from_flax as from_flax
from .models import load_resnet10 as load_resnet10
from .runs import load_run as load_run
from .statistics import precise_statistics as precise_statistics
from .weights import read_serl as read_serl

__version__: str
CHECKED: tuple[str, ...]
