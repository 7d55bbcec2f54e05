"""Command line of eqxunet: `python cli.py --help`."""

from eqxunet.cli import app

if __name__ == "__main__":
    app()
