"""What can go wrong, by what the user can do about it. The command line exits with `exit_code`."""


class EqxunetError(Exception):
    """Base of every error that eqxunet raises on purpose; its text is one or two lines."""

    exit_code = 1


class InputError(EqxunetError, ValueError):
    """Bad usage or bad input: change what was given."""

    exit_code = 2


class IntegrityError(EqxunetError):
    """Weights, a checkpoint or an archive is not what it should be: fetch or make it anew."""

    exit_code = 3


class DivergedError(EqxunetError):
    """Training met too many non-finite steps in a row: lower the learning rate."""

    exit_code = 4


class BusyError(EqxunetError):
    """Another process holds the run directory."""

    exit_code = 5


class UnavailableError(EqxunetError):
    """Storage or network is not available: free it, or use something local."""

    exit_code = 6
