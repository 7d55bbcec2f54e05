"""Size of the page of an evaluation, and the time to write it and to open it in Chromium.

Drawn pets with blurred and disturbed truths for predictions, of as many images as a split has.
Prints one JSON line.

    python -m benchmarks.report --images 3669 --size 128
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import expit

import eqxunet as eu
from benchmarks.processes import machine
from eqxunet.report import Picture, save_report
from tests.browser import chromium, open_page, set_up
from tests.report_pages import binary

DRAWN = 40  # pets, which come again and again with other predictions


def pictures(count: int, size: int) -> Iterator[Picture]:
    split = eu.load_split("synthetic", "test", size=size, limit=DRAWN)
    targets = np.asarray(eu.Binary(kind=split.kind, border="ignore").targets(split.labels))
    rng = np.random.default_rng(0)
    for index in range(count):
        image, target = split.images[index % DRAWN], targets[index % DRAWN]
        logit = gaussian_filter(12.0 * (target == 1) - 6, 1.5)
        for blur, strength in ((6, 40), (1.5, 3)):
            logit += strength * gaussian_filter(rng.normal(size=target.shape), blur)
        output = np.minimum(np.floor(256 * expit(logit)), 255).astype(np.uint8)
        yield Picture(image, target, output)


def main() -> None:
    parser = argparse.ArgumentParser(description="Size and speed of the page of an evaluation.")
    parser.add_argument("--images", type=int, default=3669)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5, help="openings")
    arguments = parser.parse_args()
    # Scores of some stand for those of all.
    few = binary(list(pictures(min(arguments.images, DRAWN), arguments.size)))
    rows = [
        {**few.rows[i % len(few.rows)], "name": f"image_{i:05}"} for i in range(arguments.images)
    ]
    report = few.__class__(few.metrics, rows, few.classes, few.colours)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        save_report(report, pictures(arguments.images, arguments.size), page)
        written = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with chromium() as driver:
            set_up(driver)
            seconds = [open_page(driver, page) for _ in range(arguments.repeats)]
            assert driver.get_log("browser") == []
            carried = driver.execute_script(
                "return document.querySelectorAll('script[id^=picture-]').length"
            )
        record = {
            "benchmark": "report",
            "images": arguments.images,
            "size": arguments.size,
            "pictures_carried": carried,
            "megabytes": page.stat().st_size / 1e6,
            "seconds_to_write": written,
            "megabytes_of_memory_to_write": (peak - before) / 1e3,
            "seconds_to_open": {"median": statistics.median(seconds), "high": max(seconds)},
            "machine": machine(),
        }
    print(json.dumps(record))


if __name__ == "__main__":
    main()
