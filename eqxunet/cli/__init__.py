"""The command line. Its commands load on first use, since signals are listened to before."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"commands": ["app", "main"]}
)
