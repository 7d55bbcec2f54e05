"""Downloads that resume, retry, check and never leave half a file under the final name."""

import hashlib
import http.client
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock, Timeout

from ..errors import InputError, IntegrityError, UnavailableError
from ..text import printable
from .answers import Answer, Refused

Progress = Callable[[int, int | None], None]

_MOST = 1 << 33  # bytes of a file whose size is not known
# Answers after which the same request can succeed; all others below 500 are final.
_PASSING = {408, 425, 429}
_RANGE = re.compile(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)")


class _Transient(Exception):
    """A failure after which it makes sense to try again."""


def download(
    url: str,
    dest: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    timeout: int | float = 30,
    slowest: int | float = 1000,
    deadline: int | float = 6 * 3600,
    retries: int = 3,
    backoff: int | float = 1,
) -> Path:
    """Fetches a URL into a file that appears under its name only when complete and checked.

    Bytes gather in `dest` + ".part", from which a later attempt resumes if `sha256` is there to
    tell a mixture. Two at once: the second waits, and finds the file. A file that is already there
    is kept if it fits.

    Arguments:

    - `url`: http, https or file.
    - `sha256`, `size`: what the file must be, hexadecimal (or how that begins) and in bytes.
    - `progress`: called with the bytes so far and the total, if known.
    - `timeout`: seconds without an answer before an attempt fails.
    - `slowest`: bytes a second below which one fails, over `timeout`.
    - `deadline`: seconds until all attempts together have failed, waiting for another process
      included.
    - `retries`: attempts after the first one; `backoff`: seconds before the first of them, doubled
      each time.

    A redirect is followed to http and https, and from https to https alone.

    Raises InputError if `dest` holds another file, IntegrityError if size or sha256 differ (the
    .part is removed), UnavailableError if network or storage fail for good. Folders that were made
    for it are then removed again, unless there is a .part to go on from.
    """
    dest = Path(dest)
    _check_url(url)
    end = time.monotonic() + deadline
    made = [folder for folder in (dest.parent, *dest.parent.parents) if not folder.exists()]
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{dest}.lock", timeout=deadline), _emptied(made, Path(f"{dest}.lock")):
            if os.path.lexists(dest):
                if not dest.is_file():
                    raise InputError(f"{dest}: is no file. Move it away first.")
                if difference := _difference(dest, sha256, size):
                    raise InputError(f"{dest}: exists and {difference}. Move it away first.")
                return dest
            part = dest.with_name(dest.name + ".part")
            if sha256 is None or part.is_symlink() or not part.is_file():
                part.unlink(missing_ok=True)
            for attempt in range(retries + 1):
                try:
                    _fetch(url, part, size, progress, timeout, slowest, end)
                    break
                except _Transient as error:
                    pause = backoff * 2**attempt
                    if attempt == retries or time.monotonic() + pause >= end:
                        raise UnavailableError(
                            f"{url}: {error} ({attempt + 1} attempts). Try again later"
                            f"{', it goes on from where it stopped' if sha256 else ''}."
                        ) from error.__cause__
                    time.sleep(pause)
            if difference := _difference(part, sha256, size):
                part.unlink()
                raise IntegrityError(f"{url}: {difference}. Try again, or another URL.")
            os.replace(part, dest)
            return dest
    except Timeout:
        raise UnavailableError(
            f"{dest}: another process is fetching it, and was waited for {deadline:,.0f} seconds. "
            "End it, and try again."
        ) from None
    except OSError as error:
        raise UnavailableError(f"{dest}: cannot be written: {error.strerror or error}.") from error


def require_answer(url: str, *, timeout: int | float = 5) -> None:
    """Raises UnavailableError, soon and without a second attempt, where nothing answers at a URL.

    Without a network, the attempts of `download` would keep one waiting for minutes.

    Raises InputError for what is no URL.
    """
    _check_url(url)
    request = urllib.request.Request(url, headers={"User-Agent": "eqxunet"}, method="HEAD")
    try:
        Answer(request, timeout).close()
    except urllib.error.HTTPError as error:
        error.close()  # an answer, of which `download` makes more
    except Refused:
        pass  # and another
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UnavailableError(f"{url}: gives no answer: {_reason(error)}.") from error


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        # A port that cannot be one raises as it is read.
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        is_possible = is_web or parts.scheme == "file"
    except ValueError:
        is_possible = False
    if not is_possible:
        raise InputError(f"{printable(url)}: is no http, https or file URL.")


@contextmanager
def _emptied(made: list[Path], lock: Path) -> Iterator[None]:
    """Removes folders, from the inner one out, where what is done in them fails and leaves nothing
    but a lock."""
    try:
        yield
    except BaseException:
        if made and [*made[0].iterdir()] == [lock]:
            lock.unlink()
            with suppress(OSError):  # others may have put something there meanwhile
                for folder in made:
                    folder.rmdir()
        raise


def _fetch(
    url: str,
    part: Path,
    size: int | None,
    progress: Progress | None,
    timeout: int | float,
    slowest: int | float,
    end: float,
) -> None:
    """Completes the .part file, or raises _Transient, or for good."""
    start = part.stat().st_size if part.exists() else 0
    if size is not None and start >= size:
        if start == size:
            return
        part.unlink()
        start = 0
    request = urllib.request.Request(url, headers={"User-Agent": "eqxunet"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    most = _MOST if size is None else size
    with closing(_open(request, part, timeout)) as answer:
        start, total = _extent(answer.response, start)
        if size is not None and total not in (None, size):
            raise IntegrityError(f"{url}: has {total} bytes, not {size}. Check the URL.")
        if total is not None and total > most:
            raise IntegrityError(f"{url}: has {total} bytes, over {most}. Check the URL.")
        done = start
        with open(part, "ab" if start else "wb") as file:
            for chunk in _fast(_chunks(answer), timeout, slowest, end):
                done += len(chunk)
                if done > most:
                    part.unlink()
                    raise IntegrityError(f"{url}: has more than {most} bytes. Check the URL.")
                file.write(chunk)
                if progress is not None:
                    progress(done, total if total is not None else size)
            file.flush()
            os.fsync(file.fileno())
    expected = total if total is not None else size
    if expected is not None and done < expected:
        raise _Transient(f"broke off after {done} of {expected} bytes")


def _open(request: urllib.request.Request, part: Path, timeout: int | float) -> Answer:
    try:
        return Answer(request, timeout)
    except Refused as error:
        raise UnavailableError(f"{request.full_url}: {_reason(error)}. Check the URL.") from error
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the .part is no beginning of what is there now
            part.unlink(missing_ok=True)
            raise _Transient("cannot go on from where it stopped") from error
        if error.code >= 500 or error.code in _PASSING:
            raise _Transient(f"answers {error.code} {_reason(error)}") from error
        raise UnavailableError(
            f"{request.full_url}: answers {error.code} {_reason(error)}. Check the URL."
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = _reason(error)
        if request.type == "file":
            raise UnavailableError(f"{request.full_url}: cannot be read: {said}.") from error
        if isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
            raise UnavailableError(f"{request.full_url}: is not trusted: {said}.") from error
        raise _Transient(f"gives no answer: {said}") from error


def _reason(error: Exception) -> str:
    """What an error says, of which a server may have written a part."""
    return printable(str(getattr(error, "reason", error))[:300])


def _extent(response, start: int) -> tuple[int, int | None]:
    """Returns from which byte the answer starts and the total size, if it is said."""
    length = response.headers.get("Content-Length", "")
    if getattr(response, "status", None) == 206:
        said = _RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        if said is None or int(said[1]) != start:
            raise _Transient("answers another range than asked")
        return start, None if said[2] == "*" else int(said[2])
    # 200, or a file: the whole from its first byte, whatever was asked.
    return 0, int(length) if re.fullmatch("[0-9]{1,18}", length) else None


def _chunks(answer: Answer) -> Iterator[bytes]:
    try:
        yield from answer.chunks
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _Transient(f"broke off: {_reason(error) or type(error).__name__}") from error


def _fast(
    chunks: Iterator[bytes], seconds: int | float, slowest: int | float, end: float
) -> Iterator[bytes]:
    """Passes chunks on; raises _Transient at the end, or where few come in so many seconds."""
    began, count = time.monotonic(), 0
    for chunk in chunks:
        yield chunk
        count += len(chunk)
        now = time.monotonic()
        if now >= end:
            raise _Transient("takes too long")
        if now - began >= seconds:
            if count < slowest * seconds:
                raise _Transient(f"sends {count / (now - began):.0f} bytes a second")
            began, count = now, 0


def _difference(file: Path, sha256: str | None, size: int | None) -> str:
    """Returns how a file differs from what it must be, or nothing."""
    got_size = file.stat().st_size
    if size not in (None, got_size):
        return f"has {got_size} bytes, not {size}"
    with open(file, "rb") as opened:
        got = hashlib.file_digest(opened, "sha256").hexdigest()
    return "" if sha256 is None or got.startswith(sha256) else f"has sha256 {got}, not {sha256}"
