"""The page of `dsfer view` in a real browser: swipe, threshold, attributes, errors, keys."""

import io
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import geopandas as gpd
import numpy as np
import pytest
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from dsfer.figures import ERROR_COLOURS
from dsfer.mapping.predict import MapOptions, predict_raster
from dsfer.viewer.folder import ChangeFolder
from dsfer.viewer.server import HOST, application
from tests.test_mapping import detector, write
from tests.test_viewer import COLS, ROWS, blocks, make_maps

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), "")

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium found: apt-get install chromium"),
    pytest.mark.xdist_group("browser"),  # one browser and one server for all
]

STRONG, WEAK, MISSED, GROUND = (100, 80), (370, 250), (90, 335), (230, 60)
"""Column and row of a pixel of each block of the made-up pair, and of one beside them."""

BEFORE, AFTER = (90, 90, 90), (250, 250, 250)
"""Colours of the strong block."""


@pytest.fixture(scope="module")
def maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_maps(tmp_path_factory.mktemp("page"))


@contextmanager
def served(maps: Path) -> Iterator[str]:
    """The server of `dsfer view` in a thread: its address."""
    server = uvicorn.Server(uvicorn.Config(application(ChangeFolder(maps)), log_config=None))
    with socket.create_server((HOST, 0)) as listener:
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://{HOST}:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def address(maps: Path) -> Iterator[str]:
    with served(maps) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM) as browser,
    ):
        yield browser


def opened(browser: Browser, address: str) -> Iterator[Page]:
    """The page, loaded. In the end: it asked nobody but its server, and no script failed."""
    page = browser.new_page(viewport={"width": 1366, "height": 768}, reduced_motion="reduce")
    asked, failed = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(address)
    page.get_by_text("in view.").wait_for()  # the outlines, which come last
    settled(page)
    yield page
    settled(page)
    page.close()
    assert f"{address}map.json" in asked
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert failed == []


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    yield from opened(browser, address)


def settled(page: Page) -> None:
    """Wait until the map has come to rest and all tiles in view are drawn."""
    page.wait_for_function("""() => !document.querySelector(
        ".leaflet-tile:not(.leaflet-tile-loaded), .leaflet-pan-anim, .leaflet-zoom-anim")""")
    page.evaluate("""() => new Promise(
        (then) => requestAnimationFrame(() => requestAnimationFrame(then)))""")


def place(page: Page, pixel: tuple[int, int]) -> tuple[float, float]:
    """Where the page shows a pixel of the raster, which it shows whole, in its middle."""
    box = page.locator("#map").bounding_box()
    zoom = np.floor(4 * np.log2(min(box["width"] / COLS, box["height"] / ROWS))) / 4
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    x, y = (
        middle[i] + (pixel[i] + 0.5 - size / 2) * 2**zoom for i, size in enumerate((COLS, ROWS))
    )
    return x, y


def colour(page: Page, pixel: tuple[int, int]) -> tuple[int, ...]:
    """What the screen shows where a pixel of the raster lies."""
    settled(page)
    screen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return screen.getpixel(tuple(int(value) for value in place(page, pixel)))


def bare(page: Page) -> None:
    """Show nothing but the imagery."""
    for name in ("probability", "outlines", "grid"):
        page.locator(f"#show-{name}").uncheck()


def share(page: Page) -> float:
    return float(page.locator("#swipe").input_value())


def test_the_swipe_moves_by_mouse_and_by_key(page):
    bare(page)
    assert colour(page, STRONG) == BEFORE  # left of the middle
    box = page.locator("#swipe").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(833, y)
    page.mouse.down()
    page.mouse.move(500, y, steps=5)
    page.mouse.up()
    assert share(page) == pytest.approx(200 / 1066, abs=0.01)
    assert page.locator("#divider").bounding_box()["x"] == pytest.approx(500, abs=4)
    page.locator("#swipe").fill("0.1")
    assert colour(page, STRONG) == AFTER
    for _ in range(15):
        page.keyboard.press("d")
    assert share(page) == pytest.approx(0.4)
    assert colour(page, STRONG) == BEFORE
    page.keyboard.press("a")
    assert share(page) == pytest.approx(0.38)


def test_the_swipe_stays_in_place_when_the_map_moves(page):
    bare(page)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    settled(page)
    screen = np.array(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    panes = page.evaluate(
        "() => ['before', 'after'].map((name) => "
        "document.querySelector(`.leaflet-${name}-pane`).style.clipPath)"
    )
    assert all(clip.startswith("polygon(") for clip in panes)
    # The weak block, moved by 80 pixels each way, is after on the right of the divider.
    x, y = place(page, WEAK)
    assert tuple(screen[int(y) - 80, int(x) - 80]) == (150, 150, 150)


def test_the_threshold_slider_changes_the_layer_at_once(page):
    page.locator("#show-outlines").uncheck()
    page.locator("#show-grid").uncheck()
    page.locator("#swipe").fill("0")
    assert page.locator("#threshold-value").inner_text() == "0.50"
    weak, strong = colour(page, WEAK), colour(page, STRONG)
    assert weak != (150, 150, 150)
    assert strong != AFTER
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("#threshold").fill("0.8")
    assert colour(page, WEAK) == (150, 150, 150)  # 0.69 is below: the imagery shows
    assert colour(page, STRONG) == strong
    assert "0.5" in page.locator("#threshold-note").inner_text()
    for _ in range(12):
        page.keyboard.press("s")
    assert page.locator("#threshold-value").inner_text() == "0.68"
    assert colour(page, WEAK) == weak
    page.keyboard.press("w")
    page.keyboard.press("w")
    assert colour(page, WEAK) == (150, 150, 150)
    assert asked == []  # nothing is fetched for it
    page.locator("#threshold").fill("0")
    page.keyboard.press("p")
    assert colour(page, WEAK) == (150, 150, 150)


def test_a_click_shows_the_attributes(page, maps):
    stored = gpd.read_file(maps / "changes.gpkg").set_index("id")
    change = page.locator("#change")
    assert "Click an outline" in change.inner_text()
    page.mouse.click(*place(page, STRONG))
    area, mean = stored.loc[1, ["area_m2", "mean_probability"]]
    assert change.inner_text().split("\n") == [
        "number", "1 of 2", "area", f"{area:,.0f} m²", "mean probability", f"{mean:.3f}",
    ]  # fmt: skip
    page.mouse.click(*place(page, WEAK))
    assert "2 of 2" in change.inner_text()
    assert f"{stored.loc[2, 'mean_probability']:.3f}" in change.inner_text()
    page.mouse.click(*place(page, GROUND))
    assert "Click an outline" in change.inner_text()


def test_keys_and_buttons_go_from_change_to_change(page):
    change = page.locator("#change")
    page.keyboard.press("n")
    page.keyboard.press("n")  # sooner than the first is answered
    change.get_by_text("2 of 2").wait_for()
    page.get_by_role("button", name="Next").click()
    change.get_by_text("1 of 2").wait_for()
    page.keyboard.press("b")
    change.get_by_text("2 of 2").wait_for()
    page.get_by_text("1 change in view.").wait_for()
    page.keyboard.press("f")
    page.get_by_text("2 changes in view.").wait_for()


def test_errors_have_their_colours_and_a_legend(page):
    bare(page)
    assert not page.locator("#errors-legend").is_visible()
    page.keyboard.press("e")
    assert colour(page, STRONG) == ERROR_COLOURS["TP"]
    assert colour(page, WEAK) == ERROR_COLOURS["FP"]
    assert colour(page, MISSED) == ERROR_COLOURS["FN"]
    assert colour(page, GROUND) == (90, 90, 90)
    assert page.locator("#errors-legend").is_visible()
    assert "F1" in page.locator("#scores").inner_text()


def test_all_of_it_is_used_by_keyboard_and_has_a_name(page):
    reached = []
    for _ in range(20):
        page.keyboard.press("Tab")
        ring, name = page.evaluate(
            "() => { const e = document.activeElement, s = getComputedStyle(e);"
            "  return [s.outlineStyle !== 'none' || e.id === 'swipe', e.id || e.className]; }"
        )
        if name in reached or not name:
            break
        assert ring, f"{name} shows no focus"
        reached.append(name)
    controls = {"show-probability", "show-outlines", "show-errors", "show-grid", "threshold"}
    assert controls | {"previous", "next", "map", "swipe"} <= set(reached)
    names = page.locator("body").aria_snapshot()
    for name in (
        'checkbox "Probability of change"',
        'checkbox "Outlines of changes"',
        'checkbox "Errors against the label"',
        'slider "Threshold"',
        'slider "Swipe: share of the map that shows before"',
        'application "Map: before on the left of the swipe, after on the right',
        'button "Zoom in"',
    ):
        assert name in names


def test_arrow_keys_move_the_map_and_a_pixel_is_read_below_the_mouse(page):
    page.mouse.move(*place(page, WEAK))
    said = page.locator("#position").inner_text()
    col, row = WEAK
    assert said.startswith("EPSG:32633  ")
    x, y = (float(value) for value in said.split("  ")[1].split(", "))
    assert (x, y) == pytest.approx((500_000 + 2 * col, 5_000_000 - 2 * row), abs=3)
    assert said.endswith("p 0.69")
    page.keyboard.press("ArrowRight")
    settled(page)
    page.mouse.move(*np.add(place(page, WEAK), (1, 0)))
    assert page.locator("#position").inner_text() != said


def test_no_picture_is_larger_than_a_tile(page):
    page.keyboard.press("+")
    settled(page)
    sides = page.evaluate(
        "() => [...document.images].map((i) => [i.naturalWidth, i.naturalHeight])"
    )
    assert sides
    assert {tuple(side) for side in sides} == {(256, 256)}


def test_panel_and_map_fit_a_laptop(page):
    page.keyboard.press("e")
    page.keyboard.press("n")
    settled(page)
    panel = page.evaluate(
        "() => { const a = document.querySelector('aside');"
        "  return [a.scrollHeight <= a.clientHeight, a.scrollWidth <= a.clientWidth]; }"
    )
    assert panel == [True, True]


def test_a_raster_that_is_gone_is_said_on_the_page(browser, tmp_path):
    maps = make_maps(tmp_path)
    (tmp_path / "t1.tif").unlink()
    with served(maps) as address:
        for page in opened(browser, address):
            message = page.get_by_role("alert")
            assert "t1.tif: no such file" in message.inner_text()
            assert "--t1" in message.inner_text()
            page.locator("#swipe").fill("0")
            bare(page)
            assert colour(page, STRONG) == AFTER


def test_a_threshold_close_to_one_is_where_the_page_opens_and_is_found_again(browser, tmp_path):
    images = blocks()[0]
    images[1, 200:300, 300:440] = 202  # of probability 0.993
    files = [write(tmp_path / f"{i}.tif", images[i]) for i in range(2)]
    options = MapOptions(threshold=0.996)
    predict_raster(*files, detector(128), tmp_path / "maps", options=options)
    with served(tmp_path / "maps") as address:
        for page in opened(browser, address):
            bare(page)
            page.locator("#show-probability").check()
            page.locator("#swipe").fill("0")
            said, note = page.locator("#threshold-value"), page.locator("#threshold-note")
            assert (said.inner_text(), note.inner_text()) == ("0.9960", "As mapped.")
            assert colour(page, WEAK) == (202, 202, 202)
            assert colour(page, STRONG) != AFTER
            page.keyboard.press("s")
            assert said.inner_text() == "0.99" and "0.996" in note.inner_text()
            assert colour(page, WEAK) != (202, 202, 202)
            page.keyboard.press("w")
            assert note.inner_text() == "As mapped."
            assert colour(page, WEAK) == (202, 202, 202)
