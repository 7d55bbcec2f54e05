"""Headless Chromium, for the tests and the benchmark of eqxunet.report."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    """A browser without a network, as any user, in any container."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def set_up(driver: webdriver.Chrome, *, width: int = 1280, is_dark: bool = False) -> None:
    """Sets the screen's width and what the system says of its colours."""
    scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


def open_page(driver: webdriver.Chrome, path: Path) -> float:
    """Opens a report; returns the seconds until its script has done all."""
    start = time.perf_counter()
    driver.get(path.as_uri())
    driver.set_script_timeout(60)
    driver.execute_async_script(
        "const done = arguments[0];"
        "const root = document.documentElement;"
        "const look = () => 'ready' in root.dataset ? done() : setTimeout(look, 5);"
        "look();"
    )
    return time.perf_counter() - start
