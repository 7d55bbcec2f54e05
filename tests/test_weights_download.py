"""Downloads from a local server that misbehaves in every way it can."""

import hashlib
import http.server
import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from eqxunet.errors import InputError, IntegrityError, UnavailableError
from eqxunet.weights.download import download

BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
Answer = Callable[["Handler", int], None]


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers the n-th request by the n-th of the server's answers, then by the last of them."""

    def do_GET(self):
        asked, answers = self.server.asked, self.server.answers
        asked.append(self.headers.get("Range"))
        answers[min(len(asked), len(answers)) - 1](self, len(asked))

    def log_message(self, *arguments):
        pass

    def send(self, body: bytes, status: int = 200, *, said: int | None = None, **headers) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if said != -1:
            self.send_header("Content-Length", str(len(body) if said is None else said))
        self.end_headers()
        self.wfile.write(body)


def good(handler, n):
    """A server that knows Range."""
    asked = handler.headers.get("Range")
    if asked is None:
        return handler.send(BODY)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    if start >= len(BODY):
        return handler.send(b"", 416)
    said = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
    handler.send(BODY[start:], 206, Content_Range=said)


def ignores_range(handler, n):
    handler.send(BODY)


def breaks_off(handler, n):
    """Says the full length, sends a part of what is left and closes."""
    start = int((handler.headers.get("Range") or "bytes=0-")[6:-1])
    status, headers = 200, {}
    if start:
        status, headers = 206, {"Content_Range": f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"}
    handler.send(BODY[start : start + 100_000], status, said=len(BODY) - start, **headers)
    handler.close_connection = True


def stalls(handler, n):
    handler.send(BODY[:1000], said=len(BODY))
    time.sleep(1)


def says_nothing(handler, n):
    time.sleep(1)


def fails(status: int) -> Answer:
    return lambda handler, n: handler.send(b"no", status)


def lies_about_the_range(handler, n):
    if handler.headers.get("Range"):
        handler.send(BODY[10:], 206, Content_Range=f"bytes 10-{len(BODY) - 1}/{len(BODY)}")
    else:
        handler.send(BODY)


def sends_other(handler, n):
    handler.send(BODY[:-1] + bytes([BODY[-1] ^ 1]))


def sends_without_end(handler, n):
    handler.send(BODY + BODY, said=-1)
    handler.close_connection = True


def sends_a_page(handler, n):
    handler.send(b"<html>Sign in</html>")


def speaks_no_http(handler, n):
    handler.wfile.write(b"\0\1\2\3\r\n\r\n")
    handler.close_connection = True


def redirects_to_a_file(handler, n):
    handler.send(b"", 302, Location="file:///etc/hostname")


@pytest.fixture
def serve():
    """Starts a server with given answers; returns its URL and the ranges it was asked for."""
    servers = []

    def start(*answers: Answer) -> tuple[str, list[str | None]]:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.handle_error = lambda *_: None  # clients that give up are the point
        server.answers, server.asked = answers, []
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/file", server.asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "folder" / "file"


def fetch(url, dest, **options):
    options = {"sha256": SHA256, "size": len(BODY), "backoff": 0.01, "timeout": 0.3} | options
    return download(url, dest, **options)


def left(dest) -> set[str]:
    return {path.name for path in dest.parent.iterdir()} - {"file.lock"}


def test_file_arrives_whole_with_progress(serve, dest):
    url, asked = serve(good)
    seen = []
    assert fetch(url, dest, progress=lambda done, total: seen.append((done, total))) == dest
    assert dest.read_bytes() == BODY and left(dest) == {"file"}
    assert seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen) and len(seen) > 1
    assert asked == [None]
    fetch(url, dest)
    assert asked == [None], "a file that fits is not fetched again"


def test_file_urls_work(tmp_path, dest):
    (tmp_path / "source").write_bytes(BODY)
    fetch((tmp_path / "source").as_uri(), dest)
    assert dest.read_bytes() == BODY
    with pytest.raises(UnavailableError, match="cannot be read"):
        fetch((tmp_path / "absent").as_uri(), dest.with_name("other"))


def test_without_sha256_and_size(serve, dest):
    url, asked = serve(breaks_off, breaks_off, good)
    download(url, dest, backoff=0.01)
    assert dest.read_bytes() == BODY
    assert asked == [None, "bytes=100000-", "bytes=200000-"]


def test_a_part_of_unknown_origin_is_not_resumed_without_sha256(serve, dest):
    url, asked = serve(good)
    dest.parent.mkdir()
    dest.with_name("file.part").write_bytes(b"older")
    download(url, dest)
    assert dest.read_bytes() == BODY and asked == [None]


def test_interrupted_download_resumes(serve, dest):
    url, asked = serve(breaks_off, good)
    with pytest.raises(UnavailableError, match="broke off after 100000 of 300000 bytes"):
        fetch(url, dest, retries=0)
    assert left(dest) == {"file.part"}
    fetch(url, dest, retries=0)
    assert asked == [None, "bytes=100000-"]
    assert dest.read_bytes() == BODY and left(dest) == {"file"}


def test_killed_download_resumes(serve, dest):
    url, asked = serve(good)
    seen = []

    def stop(done, total):
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(url, dest, progress=stop)
    assert left(dest) == {"file.part"} and 0 < seen[0] < len(BODY)
    fetch(url, dest)
    assert asked == [None, f"bytes={seen[0]}-"] and dest.read_bytes() == BODY


@pytest.mark.parametrize("server", [ignores_range, lies_about_the_range])
def test_restarts_where_range_does_not_work(serve, dest, server):
    url, asked = serve(breaks_off, server, ignores_range)
    fetch(url, dest)
    assert dest.read_bytes() == BODY
    assert set(asked[1:]) == {"bytes=100000-"}


def test_part_that_is_no_beginning_is_thrown_away(serve, dest):
    url, asked = serve(good)
    dest.parent.mkdir()
    part = dest.with_name("file.part")
    part.write_bytes(b"x" * len(BODY))  # complete, but wrong
    with pytest.raises(IntegrityError, match=f"not {SHA256}"):
        fetch(url, dest)
    assert asked == [] and left(dest) == set()
    part.write_bytes(b"x" * (len(BODY) + 1))  # too long
    fetch(url, dest)
    assert asked == [None] and dest.read_bytes() == BODY
    dest.unlink()
    part.write_bytes(b"x" * (len(BODY) + 1))  # too long, and the size is not known: 416
    fetch(url, dest, size=None)
    assert asked[1:] == [f"bytes={len(BODY) + 1}-", None] and dest.read_bytes() == BODY


@pytest.mark.parametrize("trouble", [fails(500), fails(503), fails(429), stalls, says_nothing])
def test_passing_trouble_is_waited_out(serve, dest, trouble):
    url, asked = serve(trouble, trouble, good)
    fetch(url, dest)
    assert len(asked) == 3 and dest.read_bytes() == BODY


@pytest.mark.parametrize(
    "trouble, why",
    [
        (fails(503), "answers 503"),
        (says_nothing, "gives no answer: timed out"),
        (stalls, "broke off: timed out"),
        (speaks_no_http, "gives no answer"),
    ],
)
def test_lasting_trouble_ends_after_bounded_retries(serve, dest, trouble, why):
    url, asked = serve(trouble)
    start = time.perf_counter()
    with pytest.raises(UnavailableError) as caught:
        fetch(url, dest, retries=2, timeout=0.1, backoff=0.05)
    assert len(asked) == 3
    assert 0.05 + 0.1 <= time.perf_counter() - start < 3
    message = str(caught.value)
    assert message.startswith(url) and why in message and "(3 attempts)" in message
    assert not dest.exists()


def test_no_server_is_unavailable(dest):
    with pytest.raises(UnavailableError, match="gives no answer: .*refused"):
        fetch("http://127.0.0.1:9/file", dest, retries=1)
    with pytest.raises(InputError, match="no http, https or file URL"):
        fetch("ftp://127.0.0.1/file", dest)


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_final_answers_are_not_asked_again(serve, dest, status):
    url, asked = serve(fails(status))
    with pytest.raises(UnavailableError, match=f"answers {status} .*Check the URL"):
        fetch(url, dest, backoff=60)
    assert len(asked) == 1 and left(dest) == set()


def test_redirect_to_a_file_is_not_followed(serve, dest):
    url, asked = serve(redirects_to_a_file)
    with pytest.raises(UnavailableError, match="302"):
        fetch(url, dest, backoff=60)
    assert left(dest) == set()


@pytest.mark.parametrize(
    "server, why",
    [
        (sends_other, f"has sha256 [0-9a-f]{{64}}, not {SHA256}"),
        (sends_without_end, "more than 300000 bytes"),
        (sends_a_page, "has 20 bytes, not 300000"),
    ],
)
def test_other_content_is_refused_and_thrown_away(serve, dest, server, why):
    url, asked = serve(server, good)
    with pytest.raises(IntegrityError, match=why):
        fetch(url, dest)
    assert left(dest) == set() and len(asked) == 1
    fetch(url, dest)
    assert dest.read_bytes() == BODY


def test_other_file_in_the_place_is_kept(serve, dest):
    url, asked = serve(good)
    dest.parent.mkdir()
    dest.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists and has 4 bytes, not 300000"):
        fetch(url, dest)
    assert dest.read_bytes() == b"mine" and asked == []


def test_two_at_once_fetch_once(serve, dest):
    def slowly(handler, n):
        time.sleep(0.2)
        good(handler, n)

    url, asked = serve(slowly)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: fetch(url, dest, timeout=5), range(2)))
    assert results == [dest, dest] and asked == [None]
    assert dest.read_bytes() == BODY


def test_full_disk_is_said(serve, dest, monkeypatch):
    url, _ = serve(good)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="cannot be written: No space left"):
        fetch(url, dest)
    assert not dest.exists()
