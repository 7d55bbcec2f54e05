from . import errors as errors
from .config import ModelConfig as ModelConfig
from .config import TrainConfig as TrainConfig
from .data import Split as Split
from .data import load_split as load_split
from .models import AbstractEncoder as AbstractEncoder
from .models import ResNet10 as ResNet10
from .models import UNet as UNet
from .models import build as build
from .models import fold as fold
from .models import from_flax as from_flax
from .models import load_resnet10 as load_resnet10
from .models import load_weights as load_weights
from .runs import Observer as Observer
from .runs import Run as Run
from .runs import RunConfig as RunConfig
from .runs import compare as compare
from .runs import evaluate as evaluate
from .runs import load_run as load_run
from .runs import predict as predict
from .runs import predict_files as predict_files
from .runs import train as train
from .tasks import Binary as Binary
from .tasks import Semantic as Semantic
from .tasks import losses as losses
from .tasks import metrics as metrics
from .training import Trainer as Trainer
from .training import TrainState as TrainState
from .training import fit as fit
from .training import initialise as initialise
from .training import precise_statistics as precise_statistics
from .training import unfreeze as unfreeze
from .training import with_precise_statistics as with_precise_statistics
from .weights import read_serl as read_serl
from .weights import read_state_dict as read_state_dict

__version__: str
CHECKED: tuple[str, ...]
