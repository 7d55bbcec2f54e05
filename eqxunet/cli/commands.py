"""The command line. Each command imports what it needs when it runs, so `--help` is instant."""

import difflib
import os
import re
from typing import Annotated

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import EqxunetError
from ..storage import cache_folder
from .compare import compare
from .console import console, errors, say_error
from .data import data_app
from .evaluate import evaluate
from .predict import predict
from .signals import Stopped
from .train import train
from .weights import weights_app

# What other programs call these options.
_OTHER_NAMES = {
    "--architecture": "--encoder",
    "--backbone": "--encoder",
    "--batch": "--batch-size",
    "--checkpoint": "--run",
    "--dataset": "--data",
    "--image-size": "--size",
    "--img-size": "--size",
    "--imgsz": "--size",
    "--learning-rate": "--lr",
    "--max-steps": "--steps",
    "--model": "--encoder",
    "--output": "--out",
}

# Typer's error about a value that is not one of several.
_CHOICE = re.compile(r"(?:Value error, )?('(.*)' is not one of (.*)\.)")
_WORD = re.compile(r"'(.*?)'")


class _Group(TyperGroup):
    """Turns errors that have a way out into one or two lines and their exit code."""

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except Stopped as error:
            errors.print(str(error))
            raise typer.Exit(error.exit_code) from None
        except (EqxunetError, OSError, KeyboardInterrupt, MemoryError) as error:
            if ctx.params["debug"]:
                raise
            if isinstance(error, KeyboardInterrupt):
                code, message = 130, "interrupted"
            elif isinstance(error, MemoryError):
                code, message = 2, "out of memory; lower --size, or how many images there are"
            elif isinstance(error, EqxunetError):
                code, message = error.exit_code, str(error)
            else:
                code, message = 6, f"{error}; free or name another place and try again"
            say_error(message)
            raise typer.Exit(code) from None
        except Exception as error:
            if choice := _CHOICE.fullmatch(getattr(error, "message", "")):
                close = difflib.get_close_matches(choice[2].lower(), _WORD.findall(choice[3]), n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                error.message = choice[1] + hint  # pyright: ignore[reportAttributeAccessIssue]
            # Typer's error about an unknown option proposes names that are spelt alike.
            if other := _OTHER_NAMES.get(getattr(error, "option_name", "")):
                error.possibilities = [other]  # pyright: ignore[reportAttributeAccessIssue]
            raise

    def parse_args(self, ctx, args):
        # `train --debug` works as well as `--debug train`.
        if "--debug" in args:
            args = ["--debug", *(arg for arg in args if arg != "--debug")]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # whose tables cut the names of options at 80 columns
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        console.print(f"eqxunet {__version__}")
        raise typer.Exit()


@app.callback()
def main(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Segments images with U-Nets in JAX and Equinox."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("xla")))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


app.command()(train)
app.command(name="eval")(evaluate)
app.command()(compare)
app.command()(predict)
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")
