"""`python -m eqxunet`."""

from .cli.start import main

main("python -m eqxunet")
