"""Segmentation with U-Nets in JAX and Equinox.

Names load on first use, so that `import eqxunet` and `--help` are instant; `__init__.pyi` lists
them in pipeline order.

The import hook checks every annotation with beartype while JAX traces (`JAXTYPING_DISABLE=1` turns
it off). It imports JAX, so it leaves out what `--help` needs: the command line and plain values,
none of which take arrays.
"""

import lazy_loader
from jaxtyping import install_import_hook

__version__ = "0.1.0"

CHECKED = (
    "data",
    "ops",
    "weights",
    "models",
    "tasks",
    "evaluation",
    "training",
    "report",
    "runs",
)

install_import_hook([f"{__name__}.{name}" for name in CHECKED], "beartype.beartype")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
