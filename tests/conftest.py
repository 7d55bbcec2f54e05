import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

# Compiled functions are kept from process to process and from run to run of the tests.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
_KERNELS = Path(__file__).parents[1] / ".pytest_cache" / "kernels"


@pytest.fixture(scope="session")
def new_cache(tmp_path_factory) -> Callable[[], Path]:
    """Makes caches in which nothing is but the native kernels that the tests compiled before."""

    def new_cache() -> Path:
        cache = tmp_path_factory.mktemp("cache")
        (cache / "eqxunet").mkdir()
        _KERNELS.mkdir(parents=True, exist_ok=True)
        (cache / "eqxunet" / "kernels").symlink_to(_KERNELS)
        return cache

    return new_cache


@pytest.fixture(scope="session", autouse=True)
def heard():
    """Signals arrive, in processes too, where these tests run under nohup or in the background of
    a shell, which have some ignored."""
    handlers = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def own_folders(new_cache, monkeypatch):
    """Caches of decoded images stay out of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(new_cache()))


@pytest.fixture
def ends_soon():
    """Fails a test that waits for something without end."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("waits without end"))
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
