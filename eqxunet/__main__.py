"""`python -m eqxunet`."""

from .cli import app

app(prog_name="python -m eqxunet")
