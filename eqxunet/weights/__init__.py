"""SERL's ResNet-10 weights: fetched, verified, read and converted, without JAX."""

from .identity import Identity as Identity
from .identity import identify as identify
from .identity import verify as verify
from .resolve import fetch_release as fetch_release
from .resolve import resolve_weights as resolve_weights
from .serl import RELEASE as RELEASE
from .serl import SHAPES as SHAPES
from .serl import read_serl as read_serl
