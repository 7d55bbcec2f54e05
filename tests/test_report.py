"""The page of an evaluation, as text."""

import base64
import dataclasses
import hashlib
import io
import json
import re
import weakref
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from report_pages import binary, drawn, semantic

from eqxunet.report import Picture, save_report
from eqxunet.report.charts import Chart, histogram, joined, learning_curves
from eqxunet.report.embedding import Embedding, packed
from eqxunet.report.tables import breakdown, label, number, score

NASTY = [
    "<script>window.hacked = 1</script>",
    "</script><img src=x onerror='window.hacked = 1'>",
    "\"quotes' & <b>",
    "line\nbreak\u2028and\u2029others",
    "<!--<script>",
    "Käfer 猫 \udcff",
]


class Page(HTMLParser):
    """Collects a page's tags, and the text of each by its id."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.table_cells, self._open = [], {}, [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style", "th", "td", "h2", "title", "figcaption"):
            self._open.append(dict(attrs).get("id", tag))
            self.texts.setdefault(self._open[-1], []).append("")

    def handle_endtag(self, tag):
        if tag in ("script", "style", "th", "td", "h2", "title", "figcaption"):
            self._open.pop()

    def handle_data(self, text):
        if self._open:
            self.texts[self._open[-1]][-1] += text

    def text(self, key):
        return self.texts[key][0]

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def page_of(report, pictures, tmp_path):
    save_report(report, pictures, tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def unpacked(text):
    """What `packed` packs, by sums where the page has loops."""
    width, height, _, image, maps = text.split(" ")
    deltas = np.frombuffer(zlib.decompress(base64.b64decode(maps)), np.uint8)
    deltas = deltas.reshape(2, int(height), int(width))
    maps = np.cumsum(np.cumsum(deltas, axis=1, dtype=np.uint8), axis=2, dtype=np.uint8)
    return Image.open(io.BytesIO(base64.b64decode(image))), *maps


def test_the_page_needs_nothing_else_and_names_its_own_script_and_style(tmp_path):
    pictures = drawn(4)
    page = page_of(binary(pictures), pictures, tmp_path)
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    for directive, content in (("script", page.texts["script"][-1]), ("style", page.text("style"))):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{directive}-src 'sha256-{digest}'" in policy


def test_every_control_has_a_name_and_every_table_its_headers(tmp_path):
    pictures = drawn(4)
    page = page_of(binary(pictures), pictures, tmp_path)
    text = (tmp_path / "report.html").read_text()
    for tag, attributes in page.tags:
        if tag == "input":
            id = attributes["id"]
            assert f'for="{id}"' in text or re.search(rf'<label>[^<]+<input[^>]+id="{id}"', text)
        if tag == "svg":
            assert "aria-label" in attributes or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert attributes["scope"] in ("row", "col")


def test_names_classes_and_options_cannot_break_out(tmp_path):
    pictures = drawn(len(NASTY))
    report, indices = semantic(pictures, tuple(NASTY))
    rows = [row | {"name": name, name: name} for row, name in zip(report.rows, NASTY, strict=True)]
    rows = [dict.fromkeys([k for r in rows for k in r]) | row for row in rows]
    metrics = dict(report.metrics) | {"data": NASTY[0], "run": f"runs/{NASTY[2]}"}
    metrics["groups"] = {name: {"count": 1} for name in NASTY}
    report = dataclasses.replace(
        report, rows=rows, metrics=metrics, config={"data": NASTY[1], NASTY[0]: NASTY[4]}
    )
    page = page_of(report, indices, tmp_path)
    # The data, the pictures, and the page's own.
    assert page.count("script") == 1 + len(NASTY) + 1
    assert page.count("img") == page.count("b") - page.count("figcaption") == 0
    data = json.loads(page.text("data"))
    assert data["classes"] == NASTY
    assert next(c for c in data["columns"] if c["name"] == "name")["values"] == NASTY
    shown = [text.encode(errors="replace").decode() for text in NASTY]
    assert set(shown) <= set(page.texts["th"])
    assert NASTY[1] in page.texts["td"] and NASTY[4] in page.texts["td"]
    assert page.text("title") == f"{NASTY[2]}, val"


def test_pictures_and_histograms_survive(tmp_path):
    pictures = drawn(5, size=24)
    pictures[1] = Picture(*(array[:16] for array in pictures[1][:3]))  # sizes may differ
    page = page_of(binary(pictures), pictures, tmp_path)
    for index, (image, target, output) in enumerate(p[:3] for p in pictures):
        shown, *maps = unpacked(page.text(f"picture-{index}"))
        np.testing.assert_array_equal(maps, [target, output])
        assert shown.size == image.shape[1::-1]
        assert np.abs(np.asarray(shown).mean() - image.mean()) < 3
    content = zlib.decompress(base64.b64decode(page.text("histograms")))
    counts = np.frombuffer(content, "<u4").reshape(5, 2, 256)
    for index, (_, target, output, _) in enumerate(pictures):
        for k in (0, 1, 100, 255):
            found = [((target == t) & (output >= k)).sum() for t in (0, 1)]
            np.testing.assert_array_equal(counts[index, :, k:].sum(axis=1), found)


def test_pictures_have_equal_shares_of_the_room_and_those_of_the_page_all_they_need():
    pictures = drawn(9)
    whole = dict(Embedding(pictures, 9, (), start=100, room=10**6))
    assert [len(whole), whole[0].split(" ")[2]] == [9, "1"]
    coarse = [packed(picture, 100) for picture in pictures]
    room = 9 * max(map(len, coarse))
    some = Embedding(pictures, 9, (7,), start=100, room=room)
    texts = dict(some)
    assert texts.keys() == whole.keys() and texts[7] == whole[7]
    assert all(text in (whole[i], coarse[i]) for i, text in texts.items())
    assert 4 <= sum(text == coarse[i] for i, text in texts.items())
    assert sum(len(text) for i, text in texts.items() if i != 7) <= room
    for picture, text in zip(pictures, coarse, strict=True):
        output = unpacked(text)[2].astype(int)
        for k in range(4, 256, 16):  # whole steps away from the start
            np.testing.assert_array_equal(output >= k, picture.output >= k)
    none = Embedding(pictures, 9, (7,), start=100, room=9 * 100)
    assert dict(none) == {7: whole[7]}
    # Scores are of all.
    assert none.histograms == some.histograms
    assert len(zlib.decompress(base64.b64decode(none.histograms))) == 9 * 2 * 256 * 4


def test_counts_of_others_than_are_shown(tmp_path):
    """The scores of an image may be of more pixels than its picture has."""
    pictures = drawn(3, size=24)
    counts = [np.arange(512).reshape(2, 256) + i for i in range(3)]
    given = [picture._replace(histogram=n) for picture, n in zip(pictures, counts, strict=True)]
    page = page_of(binary(pictures), given, tmp_path)
    content = zlib.decompress(base64.b64decode(page.text("histograms")))
    np.testing.assert_array_equal(np.frombuffer(content, "<u4").reshape(3, 2, 256), counts)


def test_one_picture_is_in_memory_at_a_time(tmp_path):
    pictures = drawn(6)
    report = binary(pictures)
    alive = []

    def stream():
        while pictures:
            assert sum(reference() is not None for reference in alive) <= 1
            alive.append(weakref.ref(pictures[0].output))
            yield pictures.pop(0)

    save_report(report, stream(), tmp_path / "report.html")
    assert len(alive) == 6


@pytest.mark.parametrize("count", [3, 5])
def test_another_number_of_pictures_leaves_the_page_of_before(count, tmp_path):
    pictures = drawn(4)
    (tmp_path / "report.html").write_text("before")
    with pytest.raises(ValueError, match="shorter|longer"):
        save_report(binary(pictures), drawn(count), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text() == "before"


def test_worst_and_best_are_those_by_iou_without_what_has_none(tmp_path):
    pictures = drawn(40, size=8)
    report = binary(pictures)
    rng = np.random.default_rng(0)
    ious = rng.permutation(40) / 40
    rows = [dict(row, iou=iou) for row, iou in zip(report.rows, ious, strict=True)]
    rows[3]["iou"] = float("nan")
    ious[3] = np.nan
    page = page_of(dataclasses.replace(report, rows=rows), pictures, tmp_path)
    data = json.loads(page.text("data"))
    order = np.argsort(ious)[:39].tolist()  # nan comes last
    assert data["worst"] == order[:12] and data["best"] == order[:-13:-1]
    assert next(c for c in data["columns"] if c["name"] == "iou")["values"][3] is None


def test_the_page_shows_what_there_is(tmp_path):
    pictures = drawn(3)
    score_ = {"mean": 0.5, "ci95": [0.4, 0.6]}
    report = binary(pictures)
    bare = page_of(report, pictures, tmp_path)
    assert not {"run-title", "td"} & set(bare.texts)
    whole = dataclasses.replace(
        binary(
            pictures,
            hd95={"mean": None, "ci95": None},
            sizes={"small": {"count": 2, "iou": score_}, "large": {"count": 1, "iou": None}},
            by_border={"foreground": {"iou": score_}, "ignore": {"iou": {"mean": 0.25}}},
            calibration={
                "ece": 0.1,
                "temperature": 1.5,
                "bins": [{"confidence": 0.5, "accuracy": 0.25}],
            },
            threshold_curve={
                "threshold": [0.2, 0.8],
                "precision": [0.5, None],
                "recall": [1, 0],
                "dice": [0.6, 0.4],
            },
        ),
        records=[{"epoch": 1, "train/loss": None, "val/loss": 0.5, "val/iou": 0.2, "lr": 1e-3}],
        config={"train": {"lr": 0.001}, "limit": None},
    )
    page = page_of(whole, pictures, tmp_path)
    captions = [re.sub(r"\s+", " ", text).strip() for text in page.texts["figcaption"]]
    assert captions == [
        "Loss",
        "Validation",
        "Learning rate",
        "Precision against recall",
        "Dice against threshold",
        "Reliability: share that is foreground",
        "IoU of the images",
        "Means by threshold IoU Dice",
    ]
    cells = [text.strip() for text in page.texts["td"]]
    assert cells == [
        "2",
        "0.500 [0.400, 0.600]",
        "1",
        "–",
        "0.500 [0.400, 0.600]",
        "0.250",
        "0.001",
        "null",
    ]
    assert page.texts["th"][-2:] == ["train.lr", "limit"]


def test_a_matrix_gives_the_shares_of_each_true_class(tmp_path):
    report, pictures = semantic(drawn(3), ("ground", "cat", "dog"))
    page = page_of(report, pictures, tmp_path)
    cells = np.array([text.strip() for text in page.texts["td"]][-9:]).reshape(3, 3)
    np.testing.assert_array_equal(cells, np.where(np.eye(3), "83.3% 100", "8.3% 10"))
    assert "histograms" not in page.texts


def test_charts_lie_where_their_axes_say():
    points = np.array([[1.0, 0.5], [3.0, 2.0]])
    chart = Chart("Loss", "epoch", "loss", {"training": points})
    assert chart.path(points) == f"46.0,{10 + 162 * 0.75} 346.0,10.0"
    assert chart.x_ticks == [(1, "1"), (2, "2"), (3, "3")]
    assert (
        chart.y(0.0) == 172 and chart.summary == "Loss: loss against epoch. training from 0.5 to 2"
    )
    one = Chart("Loss", "epoch", "loss", {"training": points[:1]})
    assert one.x(1.0) == 46 and one.x(2.0) == 346


def test_points_without_a_number_are_left_out():
    points = joined([1, 2, 3, 4], [0.5, None, float("nan"), 1])
    np.testing.assert_array_equal(points, [[1, 0.5], [4, 1]])
    assert [c.title for c in learning_curves([{"epoch": 1, "val/iou": 0.5}])] == ["Validation"]
    assert learning_curves([]) == []


def test_the_histogram_counts_each_image_once():
    bars = histogram([0, 0.049, 0.05, 0.5, 1.0, None, float("nan")]).bars
    assert bars is not None and bars.shape == (20, 3)
    assert bars[:, 2].tolist() == [2, 1] + [0] * 8 + [1] + [0] * 8 + [1]
    assert bars[1, :2].tolist() == [0.05, 0.1]


def test_texts_of_numbers():
    assert [
        number(v) for v in (None, float("nan"), 3669, 0.12345, 0.0, 2e-5, 123.456, "a", True)
    ] == [
        "–",
        "–",
        "3\N{THIN SPACE}669",
        "0.123",
        "0.000",
        "0.000",
        "123.5",
        "a",
        "true",
    ]
    assert score({"mean": 0.5, "ci95": [0.25, 0.75]}) == "0.500 [0.250, 0.750]"
    assert [label(name) for name in ("pooled iou", "boundary_iou", "iou_cat", "loss")] == [
        "pooled IoU",
        "boundary IoU",
        "IoU cat",
        "loss",
    ]


def test_a_breakdown_has_the_columns_of_all_rows():
    table = breakdown("T", "s", {"a": {"pooled": {"iou": 1.0}}, "b": {"n": 2, "class": "x"}})
    assert table.columns == ("pooled iou", "n")
    assert table.rows == {"a": {"pooled iou": 1.0}, "b": {"n": 2}}
    assert breakdown("T", "s", None).rows == {}
