"""Files of huggingface.co, through its own library where that is installed."""

# As the library need not be where types are checked.
# pyright: reportMissingImports=false

from pathlib import Path

from ..errors import InputError, UnavailableError
from ..text import printable
from .download import require_answer

PREFIX = "hf:"


def fetch_from_hub(name: str) -> Path:
    """Returns the path of a file of the hub, from its cache or else fetched into it.

    Honours what `huggingface_hub` does, such as HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE.

    Arguments:

    - `name`: hf:OWNER/NAME, whose `model.safetensors` it is, or hf:OWNER/NAME/FILE.

    Raises InputError where there is no such file, UnavailableError without the library, and where
    the hub gives no answer.
    """
    parts = name.removeprefix(PREFIX).split("/", 2)
    if len(parts) < 2 or not all(parts):
        raise InputError(f"--weights {name}: give {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME/FILE.")
    repository, file = "/".join(parts[:2]), parts[2] if len(parts) > 2 else "model.safetensors"
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise UnavailableError(
            f'{name}: needs `pip install "eqxunet[hub]"`; or fetch the file by other means, and '
            "use --weights FILE."
        ) from None
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
    except errors.LocalEntryNotFoundError:
        pass
    try:
        if not constants.HF_HUB_OFFLINE:
            # Which its library would try six times.
            require_answer(constants.ENDPOINT)
        return Path(huggingface_hub.hf_hub_download(repository, file))
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        UnavailableError,
    ) as error:
        raise UnavailableError(
            f"{name}: is not in the hub's cache, and the hub gives no answer.\nFetch the file by "
            "other means and use --weights FILE, or use --weights random."
        ) from error
    except (
        errors.RepositoryNotFoundError,
        errors.EntryNotFoundError,
        errors.HFValidationError,
    ) as error:
        raise InputError(f"{name}: {_line(error)} Check the name.") from error
    except (OSError, errors.HfHubHTTPError) as error:
        raise UnavailableError(
            f"{name}: {_line(error)} Try again, or use --weights FILE."
        ) from error


def _line(error: Exception) -> str:
    """The last line says what is wrong, after addresses and request ids."""
    said = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    return printable(said[0]).rstrip(".") + "."
