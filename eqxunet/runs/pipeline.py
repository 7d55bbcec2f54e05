"""Image files to predictions, while others are read ahead and written behind."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8, UInt16
from PIL import Image

from ..data.complaints import FileError
from ..data.decoding import decoding, opened, pixel_budget, read_image, read_resized
from ..data.example import Progress
from ..evaluation import Predictor
from ..evaluation.images import MAX_TILED_PIXELS, TOO_LARGE
from ..evaluation.tiles import Band, resized_bands
from ..tasks import AbstractTask
from .observer import Observer
from .outputs import Content, Output, save

T = TypeVar("T")

Size = tuple[int, int]
Small = tuple[UInt8[np.ndarray, "size size 3"], Size]
"""An image at the model's size, and its own size."""
Whole = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]
Probability = UInt16[np.ndarray, "h w"] | Float[np.ndarray, "h w k"]
Result = tuple[Output, FileError | None]

_STRIP = 1 << 20  # pixels


class Job(NamedTuple):
    """How images are predicted; `kinds` are those of the files beside the mask."""

    predictor: Predictor
    threshold: float
    tile: int | None
    kinds: tuple[str, ...]


def predict_all(
    job: Job, todo: Sequence[Output], observer: Observer
) -> Generator[Result, None, None]:
    """Yields each image when its files are written, or with what is wrong with it."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        if job.tile is not None:
            yield from _tiled(job, todo, job.tile, pool, observer)
            return
        with observer.progress("predicting") as progress:
            for done, result in enumerate(_resized(job, todo, pool), start=1):
                progress(done, len(todo))
                yield result
    finally:  # what is being written gets finished, nothing else is begun
        pool.shutdown(cancel_futures=True)


def _resized(job: Job, todo: Sequence[Output], pool: ThreadPoolExecutor) -> Iterator[Result]:
    """Predicts in batches, of images at the model's size."""
    size, at_a_time = job.predictor.model.size, job.predictor.batch_size
    writing: deque[Future[Result]] = deque()

    def read(output: Output) -> Small:
        path = output.image.path
        with decoding(path), opened(path, str(path)) as file:
            return read_resized(file, str(path), size, too_large=TOO_LARGE)

    def write(output: Output, logits: Float[np.ndarray, "size size k"], own: Size) -> None:
        with pixel_budget.taking(own[0] * own[1]):
            _write(job, output, *_decide(job, resized_bands(logits, own), own))

    def compute(batch: Sequence[tuple[Output, Small]]) -> None:
        logits = job.predictor.logits(np.stack([small for _, (small, _) in batch]))
        for (output, (_, own)), one in zip(batch, logits, strict=True):
            writing.append(pool.submit(_attempt, output, write, one, own))

    batch: list[tuple[Output, Small]] = []
    for output, small in _ahead(pool, read, todo, 2 * at_a_time):
        if isinstance(small, FileError):
            yield output, small
            continue
        batch.append((output, small))
        if len(batch) == at_a_time:
            compute(batch)
            batch = []
            yield from _ended(writing, 2 * at_a_time)
    if batch:
        compute(batch)
    yield from _ended(writing)


def _tiled(
    job: Job, todo: Sequence[Output], tile: int, pool: ThreadPoolExecutor, observer: Observer
) -> Iterator[Result]:
    """Predicts one image at a time, since each may be large."""
    writing: deque[Future[Result]] = deque()

    def write(output: Output, mask: Mask, probability: Probability | None, image: Whole) -> None:
        _write(job, output, mask, probability, image)

    for number, (output, image) in enumerate(_ahead(pool, _read, todo, 1), start=1):
        if isinstance(image, FileError):
            yield output, image
            continue
        size = image.shape[:2]
        text = f"{output.image.path.name} ({number} of {len(todo)}), rows"
        with observer.progress(text) as progress:
            bands = _counted(job.predictor.bands(image, tile), size[0], progress)
            decided = _decide(job, bands, size)
        yield from _ended(writing)
        writing.append(pool.submit(_attempt, output, write, *decided, image))
    yield from _ended(writing)


def _decide(job: Job, bands: Iterable[Band], size: Size) -> tuple[Mask, Probability | None]:
    """Each pixel's class, and its probability where that is asked for."""
    mask = np.empty(size, np.uint8)
    probability = None
    if "probability" in job.kinds:
        probability = np.empty(size, np.uint16)
    elif "probabilities" in job.kinds:
        probability = np.empty((*size, job.predictor.task.outputs), np.float16)
    for top, logits in bands:
        rows = slice(top, top + len(logits))
        mask[rows] = job.predictor.prediction(logits, job.threshold)
        if probability is not None:
            found = np.asarray(job.predictor.probability(logits))
            probability[rows] = found if probability.ndim == 3 else np.rint(found * 65535)
    return mask, probability


def _write(
    job: Job,
    output: Output,
    mask: Mask,
    probability: Probability | None,
    image: Whole | None = None,
) -> None:
    """Writes the files of an image, which is read again where it is not given."""
    task = job.predictor.task
    contents: dict[str, Content] = {}
    if probability is not None:
        is_grey = probability.ndim == 2
        contents[job.kinds[0]] = Image.fromarray(probability) if is_grey else probability
    if "overlay" in job.kinds:
        image = _read(output) if image is None else image
        contents["overlay"] = Image.fromarray(_overlaid(image, mask, task))
    if task.outputs == 1:
        contents["mask"] = Image.fromarray(mask * np.uint8(255))
    else:
        contents["mask"] = Image.fromarray(mask)
        contents["mask"].putpalette(task.colours.tobytes())
    save(output, contents)


def _overlaid(image: Whole, mask: Mask, task: AbstractTask) -> Whole:
    """The image with its prediction over it, in its own memory where that may be."""
    from ..report import overlay  # with Matplotlib, which takes a second

    image = image if image.flags.writeable else image.copy()
    rows = max(1, _STRIP // image.shape[1])
    for top in range(0, len(image), rows):
        part = slice(top, top + rows + 1)  # outlines depend on the row below
        drawn = overlay(image[part], mask[part], task.colours, is_binary=task.outputs == 1)
        image[top : top + rows] = drawn[:rows]
    return image


def _read(output: Output) -> Whole:
    path = output.image.path
    with opened(path, str(path)) as file:
        return read_image(file, str(path), max_pixels=MAX_TILED_PIXELS)


def _ahead(
    pool: ThreadPoolExecutor, read: Callable[[Output], T], todo: Sequence[Output], count: int
) -> Iterator[tuple[Output, T | FileError]]:
    """Reads so many images ahead, in order."""
    waiting = iter(todo)
    reading = deque(
        (output, pool.submit(_tried, output, read)) for output in itertools.islice(waiting, count)
    )
    while reading:
        output, future = reading.popleft()
        image = future.result()
        del future
        for following in itertools.islice(waiting, 1):
            reading.append((following, pool.submit(_tried, following, read)))
        yield output, image
        del image


def _tried(output: Output, use: Callable[..., T], *rest: Any) -> T | FileError:
    """What `use` makes of an image, or what is wrong with it."""
    try:
        return use(output, *rest)
    except FileError as error:
        return error
    except OSError as error:
        return FileError(str(output.image.path), f"cannot be read ({error.strerror})")


def _attempt(output: Output, write: Callable[..., None], *rest: Any) -> Result:
    return output, _tried(output, write, *rest)


def _ended(writing: deque[Future[Result]], most: int = 0) -> Iterator[Result]:
    """Waits until so many images at most are still being written."""
    while len(writing) > most:
        yield writing.popleft().result()


def _counted(bands: Iterable[Band], height: int, progress: Progress) -> Iterator[Band]:
    for top, logits in bands:
        yield top, logits
        progress(top + len(logits), height)
