"""Images and masks, from where they are kept to batches: sources, decoding, cache, batches.

`eqxunet.data.augment` and `eqxunet.data.batches` are imported by their own names, since they need
JAX and Grain.
"""

from .cache import Split as Split
from .cache import load_split as load_split
from .source import DATA_DIR as DATA_DIR
from .source import Example as Example
from .source import Source as Source
from .source import SplitName as SplitName
from .source import open_source as open_source
