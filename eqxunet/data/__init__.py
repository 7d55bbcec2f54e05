"""Images and masks, from where they are kept to batches: sources, decoding, cache, batches.

`eqxunet.data.augment` and `eqxunet.data.batches` are imported by their own names, since they need
JAX.
"""

from ..config import SplitName as SplitName
from .cache import load_split as load_split
from .example import Example as Example
from .example import Source as Source
from .source import label_kind as label_kind
from .source import open_source as open_source
from .split import Split as Split
