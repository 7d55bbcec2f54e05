"""Downloads from a local server that misbehaves in every way it can."""

import contextlib
import email.message
import hashlib
import http.server
import os
import random
import threading
import time
import urllib.error
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from filelock import FileLock

from eqxunet.errors import InputError, IntegrityError, UnavailableError
from eqxunet.weights.download import download, require_answer

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


def is_silent(handler, n):
    """As long as the client listens, or half a minute."""
    with contextlib.suppress(TimeoutError):
        handler.connection.settimeout(30)
        handler.rfile.read(1)


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


def redirects(place: str, status: int = 302) -> Answer:
    return lambda handler, n: handler.send(b"", status, Location=place)


def sends_byte_by_byte(handler, n):
    """About 100 bytes a second, and says a long file; the header comes at once."""
    handler.send(b"", said=len(BODY))
    drip(handler, b"x")


def sends_a_header_without_end(handler, n):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
    drip(handler, b"x")


def continues_without_end(handler, n):
    drip(handler, b"HTTP/1.1 100 Continue\r\n\r\n")


def drip(handler, piece: bytes) -> None:
    """Until the client is gone, which a server notices late."""
    end = time.monotonic() + 2
    while time.monotonic() < end:
        handler.wfile.write(piece)
        time.sleep(0.01)
    handler.close_connection = True


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
    found = dest.parent.iterdir() if dest.parent.exists() else []
    return {path.name for path in found} - {"file.lock"}


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
        (fails(503), "answers 503 Service Unavailable"),
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


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/file", "ftp://[a", "http://[a", "http://a:b/", "http:///file", "file", ""],
)
def test_what_is_no_url_is_said_at_once(dest, url):
    for ask in (lambda: fetch(url, dest), lambda: require_answer(url)):
        with pytest.raises(InputError, match="no http, https or file URL") as caught:
            ask()
        assert len(str(caught.value).splitlines()) == 1 and not dest.parent.exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_final_answers_are_not_asked_again(serve, dest, status):
    url, asked = serve(fails(status))
    with pytest.raises(UnavailableError, match=f"answers {status} .*Check the URL"):
        fetch(url, dest, backoff=60)
    assert len(asked) == 1 and left(dest) == set()


@pytest.mark.parametrize(
    "place",
    ["file:///etc/hostname", "ftp://127.0.0.1:9/file", "data:,x", "//[/", "gopher://a\x1bb/"],
)
def test_redirects_lead_to_servers_of_http_alone(serve, dest, place):
    url, asked = serve(redirects(place))
    with pytest.raises(UnavailableError, match="302|gives no answer") as caught:
        fetch(url, dest, retries=0)
    assert "\x1b" not in str(caught.value)
    assert asked == [None] and left(dest) == set()


def test_a_redirect_is_followed_with_the_range_that_is_asked_for(serve, dest):
    other, asked = serve(breaks_off, good)
    url, _ = serve(redirects(other, 307))
    fetch(url, dest)
    assert dest.read_bytes() == BODY and asked == [None, "bytes=100000-"]


def test_redirects_end(serve, dest):
    url, asked = serve(redirects("/file"))
    with pytest.raises(UnavailableError, match="redirects over 10 times"):
        fetch(url, dest, backoff=60)
    assert len(asked) == 11


def test_the_text_of_a_redirect_is_not_read(serve, dest):
    def chatters(handler, n):
        handler.send(b"", 302, said=-1, Location="/file")
        drip(handler, b"x")

    url, asked = serve(chatters, good)
    fetch(url, dest, retries=0)  # the first attempt is not given up while it reads
    assert len(asked) == 2 and dest.read_bytes() == BODY


def test_no_redirect_leads_from_https_to_http(serve, dest, monkeypatch):
    url, asked = serve(good)

    def moved(opener, request, timeout):
        headers = email.message.Message()
        headers["Location"] = url
        raise urllib.error.HTTPError(request.full_url, 301, "Moved", headers, None)

    monkeypatch.setattr("urllib.request.OpenerDirector.open", moved)
    with pytest.raises(UnavailableError, match="answers 301 and leads to http://127.*unfollowed"):
        fetch("https://127.0.0.1:9/file", dest, backoff=60)
    assert asked == []


@pytest.mark.parametrize(
    "server, why",
    [
        (sends_byte_by_byte, r"sends \d+ bytes a second \(2 attempts\)"),
        (sends_a_header_without_end, r"gives no answer: timed out \(2 attempts\)"),
        (continues_without_end, r"gives no answer: timed out \(2 attempts\)"),
    ],
)
def test_a_server_that_keeps_one_waiting_is_given_up(serve, dest, server, why):
    url, asked = serve(server)
    start = time.perf_counter()
    with pytest.raises(UnavailableError, match=why):
        fetch(url, dest, retries=1, slowest=2000)
    assert len(asked) == 2 and time.perf_counter() - start < 2


def test_all_attempts_together_have_an_end(serve, dest):
    url, asked = serve(sends_byte_by_byte)
    start = time.perf_counter()
    with pytest.raises(UnavailableError, match=r"takes too long \(1 attempts\)"):
        fetch(url, dest, slowest=0, deadline=0.3, retries=9)
    assert len(asked) == 1 and time.perf_counter() - start < 1.5
    assert left(dest) == {"file.part"}


@pytest.mark.parametrize("length", ["-5", "1e5", "9" * 5000, " ", "+300000"])
def test_a_length_that_is_none_is_not_believed(serve, dest, length):
    def lies(handler, n):
        handler.send(BODY, said=-1, Content_Length=length)
        handler.close_connection = True

    url, _ = serve(lies)
    fetch(url, dest)
    assert dest.read_bytes() == BODY


def test_a_length_beyond_all_weights_is_refused(serve, dest):
    url, _ = serve(lambda handler, n: handler.send(b"", said=10**17))
    with pytest.raises(IntegrityError, match="has 1" + 17 * "0" + " bytes, over 8589934592"):
        fetch(url, dest, size=None)


def test_what_a_server_says_does_not_act_on_a_terminal(serve, dest):
    def shouts(handler, n):
        handler.wfile.write(b"HTTP/1.1 404 \x1b]0;mine\x07gone\r\n\r\n")
        handler.close_connection = True

    url, _ = serve(shouts)
    with pytest.raises(UnavailableError) as caught:
        fetch(url, dest)
    assert r"answers 404 \x1b]0;mine\x07gone. Check" in str(caught.value)


def test_what_a_server_says_at_length_is_cut(serve, dest):
    long = "x" * 10_000

    def fails_at_length(code):
        return lambda handler, n: handler.send_response_only(code, long) or handler.end_headers()

    answers = {
        "404 x+. Check": fails_at_length(404),
        "503 x+ .1 attempts": fails_at_length(503),
        "302 and leads to ftp://x+, unfollowed": redirects(f"ftp://{long}"),
    }
    for end, answer in answers.items():
        url, _ = serve(answer)
        with pytest.raises(UnavailableError, match=end) as caught:
            fetch(url, dest, retries=0)
        assert len(str(caught.value)) < 600


def sends_more_and_more(handler, n):
    handler.send(b"", said=-1)
    while True:
        handler.wfile.write(BODY)


@pytest.mark.parametrize("server", [sends_more_and_more, is_silent])
def test_a_server_that_is_left_keeps_no_thread(serve, dest, server):
    url, _ = serve(server)
    with pytest.raises((IntegrityError, UnavailableError), match="more than|timed out"):
        fetch(url, dest, retries=0)
    end = time.monotonic() + 20
    while any(thread.name == "answer" for thread in threading.enumerate()):
        assert time.monotonic() < end, "it is still listened to"
        time.sleep(0.01)


def test_folders_for_nothing_are_removed_again(serve, dest):
    url, _ = serve(fails(404))
    inner = dest.parent / "a" / "file"
    with pytest.raises(UnavailableError):
        fetch(url, inner)
    assert not dest.parent.exists()
    dest.parent.mkdir()
    with pytest.raises(UnavailableError):
        fetch(url, inner)
    assert [*dest.parent.iterdir()] == []


def test_a_pipe_is_neither_a_file_nor_a_beginning_of_one(serve, dest, tmp_path, ends_soon):
    url, asked = serve(good)
    dest.parent.mkdir()
    os.mkfifo(dest)
    with pytest.raises(InputError, match="file: is no file"):
        download(url, dest)
    dest.unlink()
    os.mkfifo(dest.with_name("file.part"))
    fetch(url, dest)
    assert dest.read_bytes() == BODY and asked == [None]
    dest.unlink()
    (tmp_path / "mine").write_bytes(BODY[:10])
    dest.with_name("file.part").symlink_to(tmp_path / "mine")
    fetch(url, dest)
    assert dest.read_bytes() == BODY and (tmp_path / "mine").read_bytes() == BODY[:10]


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


def test_another_process_is_waited_for_as_long_as_a_download_may_take(serve, dest):
    url, asked = serve(good)
    dest.parent.mkdir()
    start = time.perf_counter()
    with FileLock(f"{dest}.lock"):
        with pytest.raises(UnavailableError, match="another process .* waited for 2 seconds.* End"):
            fetch(url, dest, deadline=2)
    assert asked == [] and 2 <= time.perf_counter() - start < 15


def test_full_disk_is_said(serve, dest, monkeypatch):
    url, _ = serve(good)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnavailableError, match="cannot be written: No space left"):
        fetch(url, dest)
    assert not dest.exists()
