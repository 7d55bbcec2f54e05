"""Pretrained weights: fetched, verified, read and converted, without JAX."""

from .identity import Identity as Identity
from .identity import identify as identify
from .identity import read_weights as read_weights
from .identity import verify as verify
from .releases import RELEASES as RELEASES
from .resolve import fetch_release as fetch_release
from .resolve import resolve_weights as resolve_weights
from .serl import SHAPES as SHAPES
from .serl import read_serl as read_serl
from .state_dict import read_state_dict as read_state_dict
