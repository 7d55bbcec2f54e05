"""What a URL answers, in bounded time and from where it may be fetched, whatever a server does."""

import http.client
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from typing import Any
from urllib.parse import urljoin, urlsplit

MAX_REDIRECTS = 10
_MOVED = {301, 302, 303, 307, 308}
_CHUNK = 1 << 18
# Without urllib's own of redirects, which follows them to FTP, and reads their text to its end.
_HANDLERS = (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.FileHandler,
    urllib.request.UnknownHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPErrorProcessor,
)


class Refused(http.client.HTTPException):
    """A redirect that is not followed."""


class Answer:
    """A server's answer: `response`, and `chunks` of its bytes as they come.

    It is read in a thread of its own: looking up a name, a handshake, and a header that comes byte
    by byte have no end by a socket's timeout. A thread that is left ends at the next byte.

    Arguments:

    - `timeout`: seconds until there is a response, and between two chunks.

    Raises TimeoutError, and what urllib does: OSError, HTTPException, ValueError.
    """

    def __init__(self, request: urllib.request.Request, timeout: int | float):
        self._timeout = timeout
        self._read: queue.Queue[Any] = queue.Queue(maxsize=4)
        self._is_left = threading.Event()
        threading.Thread(target=self._ask, args=(request,), name="answer", daemon=True).start()
        try:
            self.response = self._next()
        except BaseException:
            self.close()
            raise

    @property
    def chunks(self) -> Iterator[bytes]:
        """The bytes, as they come."""
        while chunk := self._next():
            yield chunk

    def close(self) -> None:
        """Leaves what has not been read."""
        self._is_left.set()
        try:
            while True:  # room for what the thread waits to put
                self._read.get_nowait()
        except queue.Empty:
            pass

    def _next(self) -> Any:
        try:
            found = self._read.get(timeout=self._timeout)
        except queue.Empty:
            raise TimeoutError("timed out") from None
        if isinstance(found, Exception):
            raise found
        return found

    def _ask(self, request: urllib.request.Request) -> None:
        try:
            with closing(_opened(request, self._timeout)) as response:
                self._read.put(response)
                while not self._is_left.is_set():
                    chunk = response.read1(_CHUNK)
                    self._read.put(chunk)
                    if not chunk:
                        break
        except Exception as error:  # whatever it is, it is raised where it is waited for
            self._read.put(error)


def _opened(request: urllib.request.Request, timeout: int | float) -> Any:
    """Opens a request, or where it leads: to http or https, and from https to https alone."""
    opener = urllib.request.OpenerDirector()
    for handler in _HANDLERS:
        opener.add_handler(handler())
    for _ in range(MAX_REDIRECTS + 1):
        try:
            return opener.open(request, timeout=timeout)
        except urllib.error.HTTPError as error:
            place = error.headers.get("Location") if error.code in _MOVED else None
            if place is None:
                raise
            error.close()
            url = urljoin(request.full_url, place)
            allowed = {"https"} if request.type == "https" else {"http", "https"}
            if urlsplit(url).scheme not in allowed:
                raise Refused(
                    f"answers {error.code} and leads to {url[:200]}, unfollowed"
                ) from None
            request = urllib.request.Request(
                url, headers=request.headers, method=request.get_method()
            )
    raise Refused(f"redirects over {MAX_REDIRECTS} times")
