"""Foreground segmentation with U-Nets in JAX and Equinox.

Names load on first use, so that `import eqxunet` and `--help` stay fast; `__init__.pyi` lists
them in pipeline order. The import hook checks every annotation of the package with beartype while
JAX traces; `JAXTYPING_DISABLE=1` turns it off.
"""

import lazy_loader
from jaxtyping import install_import_hook

install_import_hook("eqxunet", "beartype.beartype")

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
