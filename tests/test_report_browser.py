"""The page of an evaluation in headless Chromium."""

import dataclasses
import re

import numpy as np
import pytest
from report_pages import binary, counts_at, drawn, semantic

from eqxunet.report import save_report
from eqxunet.report.embedding import packed

webdriver = pytest.importorskip("selenium.webdriver", reason="needs the extra `dev`")
from browser import CHROMIUM, DRIVER, chromium, open_page, set_up  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt-get install them"
    ),
]
PICTURES = drawn(120)
NASTY = "</script><img src=x onerror='window.hacked = 1'>\"'\n\u2028 猫"
NAMES = [NASTY, *(f"image_{i:04}" for i in range(1, 120))]


# How many pixels of a canvas are red, and how many blue.
ERRORS = (
    "const {width, height} = arguments[0];"
    "const pixels = arguments[0].getContext('2d').getImageData(0, 0, width, height).data;"
    "let [red, blue] = [0, 0];"
    "for (let i = 0; i < pixels.length; i += 4) {"
    "  red += pixels[i] === 215; blue += pixels[i + 2] === 210;"
    "} return [red, blue]"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page of a binary task, and one of several classes."""
    folder = tmp_path_factory.mktemp("pages")
    records = [{"epoch": e, "train/loss": 1 / e, "val/loss": 2 / e} for e in (1, 2, 3)]
    table = {f"group {i}": {"count": 3, "iou": {"mean": 0.5, "ci95": [0.4, 0.6]}} for i in (1, 2)}
    report = binary(PICTURES, NAMES, groups=table)
    report = dataclasses.replace(report, records=records, config={"data": "x" * 200})
    save_report(report, PICTURES, folder / "binary.html")
    save_report(*semantic(PICTURES[:30], (NASTY, "cat", "dog")), folder / "semantic.html")
    return folder


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser, pages):
    """The page of a binary task, newly opened; it must leave nothing on the console."""
    set_up(browser)
    open_page(browser, pages / "binary.html")
    yield browser
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None


def find(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def texts(page, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
    return page.execute_script(script, selector)


def set_value(page, selector, value):
    page.execute_script(
        "arguments[0].value = arguments[1];"
        "arguments[0].dispatchEvent(new Event('input', {bubbles: true}))",
        find(page, selector),
        str(value),
    )


def settle(page):
    """Waits until the page has drawn what it was told."""
    page.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def wait_for(page, selector, expected):
    """Waits until texts are those expected."""
    WebDriverWait(page, 20).until(
        lambda page: texts(page, selector) == expected, f"{selector}: not {expected}"
    )


def column(page, number):
    return texts(page, f"#body tr:not(.space) td:nth-child({number})")


@pytest.mark.parametrize("k", [0, 1, 77, 128, 200, 255])
def test_scores_at_a_threshold_are_those_of_python(page, k):
    set_value(page, "#slider", k)
    counts = counts_at(PICTURES, k)
    pooled = type(counts)(*(np.sum(cells, keepdims=True) for cells in counts))
    for id, value in (
        ("mean-iou", counts.iou.mean()),
        ("mean-dice", counts.dice.mean()),
        ("pooled-iou", pooled.iou.item()),
        ("pooled-dice", pooled.dice.item()),
    ):
        assert float(find(page, f"#{id}").text) == pytest.approx(value, abs=1e-6)
        exact = float(find(page, f"#{id}").get_attribute("value"))
        assert exact == pytest.approx(value, abs=1e-12)
    assert find(page, "#level").text == f"{k / 256:.3f}"
    point = find(page, "#by-threshold .line-0").get_attribute("points").split()[k].split(",")
    assert float(point[0]) == float(find(page, "#by-threshold .mark").get_attribute("x1"))
    assert float(point[1]) == pytest.approx(10 + 162 * (1 - counts.iou.mean()), abs=1e-6)


@pytest.mark.parametrize("k", [60, 128, 220])
def test_pictures_follow_the_threshold(page, k):
    set_value(page, "#slider", k)
    card = find(page, "#worst .card")
    page.execute_script("arguments[0].scrollIntoView()", card)
    settle(page)
    worst = int(np.argmin(counts_at(PICTURES, 128).iou))
    counts = counts_at([PICTURES[worst]], k)
    canvas = card.find_elements(By.TAG_NAME, "canvas")[2]
    assert canvas.get_attribute("aria-label") == f"errors of {NAMES[worst]}"
    red, blue = page.execute_script(ERRORS, canvas)
    assert (red, blue) == (counts.fp[0], counts.fn[0])
    assert card.find_element(By.TAG_NAME, "data").text == f"IoU {counts.iou[0]:.3f}"


def test_the_slider_answers_to_keys_and_to_its_button(page):
    slider = find(page, "#slider")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert (find(page, "#level").text, slider.get_attribute("aria-valuetext")) == ("0.504",) * 2
    find(page, "#reset").click()
    assert find(page, "#level").text == "0.500"


def test_a_heading_sorts_and_sorts_back(page):
    iou = counts_at(PICTURES, 128).iou
    assert column(page, 2)[:20] == [f"{v:.3f}" for v in np.sort(iou)[:20]]  # the worst first
    tp = counts_at(PICTURES, 128).tp
    for sign, direction in ((1, "ascending"), (-1, "descending")):
        find(page, "#heads th:nth-child(4) button").click()
        shown = [int(text) for text in column(page, 4)]
        assert shown[:20] == (sign * np.sort(sign * tp))[:20].tolist()
        assert find(page, "#heads th:nth-child(4)").get_attribute("aria-sort") == direction
        assert len(page.find_elements(By.CSS_SELECTOR, "th[aria-sort]")) == 1
    find(page, "#heads th:nth-child(1) button").click()
    assert column(page, 1)[0] == NASTY


def test_filters_by_name_group_and_score(page):
    set_value(page, "#query", "IMAGE_001")
    assert sorted(column(page, 1)) == NAMES[10:20]
    assert find(page, "#shown").text == "10 of 120 images"
    set_value(page, "#query", "g1")
    assert find(page, "#shown").text == "60 of 120 images"
    set_value(page, "#query", "")
    set_value(page, "#from", 0.3)
    set_value(page, "#to", 0.5)
    iou = counts_at(PICTURES, 128).iou
    inside = ((iou >= 0.3) & (iou <= 0.5)).sum()
    assert find(page, "#shown").text == f"{inside} of 120 images"
    assert all(0.3 <= float(text) <= 0.5 for text in column(page, 2))
    find(page, "#clear").click()
    assert find(page, "#shown").text == "120 of 120 images"


def test_only_rows_in_sight_are_in_the_document(page):
    assert len(column(page, 1)) < 60
    page.execute_script("document.getElementById('scroller').scrollTop = 1e6")
    settle(page)
    iou = counts_at(PICTURES, 128).iou
    assert column(page, 2)[-1] == f"{iou.max():.3f}"


def test_the_table_answers_to_keys(page):
    table = find(page, "#table")
    order = np.argsort(counts_at(PICTURES, 128).iou, kind="stable")
    table.send_keys(Keys.END)
    assert table.get_attribute("aria-activedescendant") == f"row-{order[-1]}"
    row, sight = page.execute_script(
        "return ['[aria-selected=true]', '#scroller'].map(s => document.querySelector(s))"
        ".map(e => [e.getAttribute('aria-rowindex'), e.getBoundingClientRect().bottom])"
    )
    assert row[0] == "121" and row[1] <= sight[1]
    table.send_keys(Keys.HOME, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ENTER)
    viewer = find(page, "#viewer")
    assert viewer.get_attribute("open") is not None
    assert texts(page, "#viewer-name") == [NAMES[order[2]]]
    set_value(page, "#slider", 60)
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert texts(page, "#viewer-name") == [NAMES[order[3]]]
    shown = dict(
        zip(texts(page, "#viewer-values dt"), texts(page, "#viewer-values dd"), strict=True)
    )
    counts = counts_at(PICTURES, 128)
    assert shown["TP"] == str(counts.tp[order[3]]) and shown["IoU"] == f"{counts.iou[order[3]]:.3f}"
    moved = counts_at(PICTURES, 60)
    note = f"IoU {moved.iou[order[3]]:.3f}, Dice {moved.dice[order[3]]:.3f}"
    wait_for(page, "#viewer-note", [f"At the threshold 0.234: {note}."])
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert viewer.get_attribute("open") is None
    assert page.switch_to.active_element == table


def test_a_row_shows_its_picture(page):
    set_value(page, "#query", NAMES[33])
    find(page, "#body tr:not(.space)").click()
    wait_for(page, "#viewer figcaption", ["image", "truth", "prediction", "errors"])
    script = "const image = document.querySelector('#viewer img'); await image.decode();"
    assert page.execute_script(script + "return image.naturalWidth") == 32


def test_a_page_of_little_room_says_what_it_shows(browser, tmp_path):
    room = 9 * sum(len(packed(picture, 128)) for picture in PICTURES) // 10
    cards = np.argsort(counts_at(PICTURES, 128).iou, kind="stable")[[*range(12), *range(-12, 0)]]
    save_report(binary(PICTURES, NAMES), PICTURES, tmp_path / "report.html", room=room)
    page = (tmp_path / "report.html").read_text()
    carried = dict(re.findall(r'id="picture-(\d+)">\d+ \d+ (\d+)', page))
    assert all(carried[str(index)] == "1" for index in cards)
    coarse = next(int(index) for index, step in carried.items() if step == "16")
    absent = next(index for index in range(120) if str(index) not in carried)
    set_up(browser)
    open_page(browser, tmp_path / "report.html")
    set_value(browser, "#slider", 60)
    set_value(browser, "#query", NAMES[coarse])
    find(browser, "#body tr:not(.space)").click()
    wait_for(browser, "#viewer figcaption", ["image", "truth", "prediction", "errors"])
    near = counts_at([PICTURES[coarse]], 64)
    errors = browser.execute_script(ERRORS, find(browser, "#viewer figure:last-child canvas"))
    assert errors == [near.fp[0], near.fn[0]]
    asked = counts_at([PICTURES[coarse]], 60)
    assert find(browser, "#viewer-note").text == (
        f"At the threshold 0.234: IoU {asked.iou[0]:.3f}, Dice {asked.dice[0]:.3f}. "
        "Shown at 0.250, the nearest that the page carries of this picture."
    )
    find(browser, "#close").click()
    set_value(browser, "#query", NAMES[absent])
    find(browser, "#body tr:not(.space)").click()
    reason = "The page does not carry this picture: with all of them it would be too large."
    wait_for(browser, "#viewer-panels p", [reason])
    assert browser.get_log("browser") == []


def test_names_are_text(page):
    assert NASTY in texts(page, "#worst button, #best button, #body td")
    assert page.execute_script("return document.querySelectorAll('img[src=x]').length") == 0


@pytest.mark.parametrize("is_dark", [False, True])
def test_the_theme_is_the_systems_until_the_button_is_pressed(page, is_dark):
    set_up(page, is_dark=is_dark)
    settle(page)
    light, dark = "rgb(250, 250, 248)", "rgb(20, 21, 23)"

    def ground():
        return page.execute_script(
            "return getComputedStyle(document.documentElement).backgroundColor"
        )

    assert ground() == (dark if is_dark else light)
    button = find(page, "#theme")
    assert button.get_attribute("aria-pressed") == str(is_dark).lower()
    button.click()
    assert ground() == (light if is_dark else dark)
    assert button.get_attribute("aria-pressed") == str(not is_dark).lower()


@pytest.mark.parametrize("name", ["binary", "semantic"])
def test_a_phone_scrolls_one_way(browser, pages, name):
    set_up(browser, width=360)
    open_page(browser, pages / f"{name}.html")
    width = "return [document.documentElement.scrollWidth, innerWidth]"
    assert browser.execute_script(width) == [360, 360]
    browser.execute_script("document.querySelectorAll('details').forEach(d => (d.open = true))")
    browser.execute_script("document.querySelector('.card button').click()")
    assert browser.execute_script(width) == [360, 360]
    assert browser.get_log("browser") == []


def test_several_classes_have_their_colours_and_no_threshold(browser, pages):
    set_up(browser)
    open_page(browser, pages / "semantic.html")
    assert browser.find_elements(By.ID, "slider") == []
    canvas = find(browser, "#worst .card canvas")
    colours = browser.execute_script(
        "const {width, height} = arguments[0];"
        "const pixels = arguments[0].getContext('2d').getImageData(0, 0, width, height).data;"
        "const seen = new Set();"
        "for (let i = 0; i < pixels.length; i += 4) seen.add(pixels.slice(i, i + 3).join(' '));"
        "return [...seen].sort()",
        canvas,
    )
    report, _ = semantic(PICTURES[:1], (NASTY, "cat", "dog"))
    expected = {" ".join(map(str, report.colours[k])) for k in (0, 1)} | {"128 128 128"}
    assert set(colours) == expected  # the first picture has pixels that do not count
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.hacked") is None
