"""Command line of eqxunet: `python cli.py --help`."""

from eqxunet.cli.start import main

if __name__ == "__main__":
    main()
