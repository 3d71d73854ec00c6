"""Can the page be used with fingers on a phone, and with keys alone?"""

from __future__ import annotations

import json
import re

import pytest
from chromium import Browser, needs_chromium
from models import make_dataset, make_model

from xmosaic.explore import explore

DS = make_dataset(periods=8)
PHONES = {"large": (390, 844), "small": (360, 640)}
VIEW = "location.hash.match(/view=([^&]*)/)[1].split('%2C').map(Number)"

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    variables = ["2t", "z500"]
    made = DS.mosaic.forecast("2D", 3, model=make_model(), time="2020-02-29", variables=variables, progress=False)
    return explore(made, DS, progress=False).save(tmp_path_factory.mktemp("page") / "page.html")


def opened(page: Browser, file, at: str = "") -> Browser:
    page.open(f"file://{file}{at}", "document.documentElement.dataset.ready === 'true'")
    return page


@pytest.fixture(scope="module", params=PHONES)
def phone(request, file, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("phone"), *PHONES[request.param], phone=True) as page:
        yield opened(page, file)
        assert page.complaints == []


@pytest.fixture
def globe(phone, file):
    """Middle of the globe on the screen [CSS pixels]; the page as it was at first."""
    phone.value("xmosaic.set({view: '35,0,1', point: '35,0', map: 'globe', lead: 1}); scrollTo(0, 0)")
    phone.value("document.getElementById('sky').scrollIntoView({block: 'center'})")
    phone.until(f"JSON.stringify({VIEW}) === '[35,0,1]'")
    x, y, width = phone.value(
        "(() => {const b = document.getElementById('lines').getBoundingClientRect();"
        " return [b.x + b.width / 2, b.y + b.height / 2, b.width]})()"
    )
    return x, y, width * 0.475


def line(start: tuple[float, float], end: tuple[float, float], steps: int = 12) -> list[tuple[float, float]]:
    return [
        (start[0] + k / steps * (end[0] - start[0]), start[1] + k / steps * (end[1] - start[1]))
        for k in range(steps + 1)
    ]


def test_a_finger_turns_the_globe_and_does_not_scroll(phone, globe):
    x, y, radius = globe
    before = phone.value("scrollY")
    phone.touch(line((x - 40, y), (x + 60, y)))
    phone.until(f"{VIEW}[1] < -1")
    latitude, longitude, zoom = phone.value(VIEW)
    # the browser keeps the first few pixels, to see whether a finger moves at all
    assert -100 / radius * 57.3 - 1 < longitude < -75 / radius * 57.3
    assert (latitude, zoom) == (35, 1)
    assert phone.value("scrollY") == before


def test_two_fingers_zoom_and_turn_any_way(phone, globe):
    x, y, radius = globe
    phone.touch(line((x - 30, y), (x - 90, y), 20), line((x + 30, y), (x + 90, y), 20))
    phone.until(f"{VIEW}[2] > 1.5")
    latitude, longitude, zoom = phone.value(VIEW)
    assert 2 < zoom < 3.2  # three times as far apart
    assert (latitude, longitude) == pytest.approx((35, 0), abs=3)
    phone.value("xmosaic.set({view: '35,0,1'})")
    phone.touch(line((x - 60, y), (x - 60, y - 80), 20), line((x + 60, y), (x + 60, y - 80), 20))
    phone.until(f"{VIEW}[0] < 30")
    latitude, longitude, zoom = phone.value(VIEW)
    assert 35 - 80 / radius * 57.3 - 1 < latitude < 35 - 45 / radius * 57.3
    assert (longitude, zoom) == pytest.approx((0, 1), abs=0.5)


def test_a_tap_picks_a_point(phone, globe):
    x, y, radius = globe
    phone.touch([(x + radius / 2, y), (x + radius / 2, y)])
    phone.until("!location.hash.includes('point=30%2C0')")
    point = phone.value("location.hash.match(/point=([^&]*)/)[1]")
    # half a radius east of the middle: latitude 29.9°, longitude 35.2°
    assert point == "30%2C30"
    assert "30°N 30°E" in phone.value("document.getElementById('plume-title').textContent")


def test_one_finger_up_and_down_scrolls(phone, globe):
    """The globe fills the screen's width; it must not hold fast who wants to the diagrams beneath."""
    x, y, _ = globe
    before = phone.value("scrollY")
    phone.touch(line((x, y + 80), (x, y - 120), 20))
    phone.until(f"scrollY > {before} + 50")
    assert phone.value(VIEW) == [35, 0, 1]


def test_a_phone_shows_all_without_scrolling_sideways(phone):
    assert phone.value("document.documentElement.scrollWidth - innerWidth") <= 0
    small = phone.value(
        "[...document.querySelectorAll('button, select, input')].filter((e) => e.offsetParent)"
        ".map((e) => [e.id, Math.round(e.getBoundingClientRect().height)]).filter(([, height]) => height < 40)"
    )
    assert small in ([], [["member", 16]])  # the range's track; its row is higher
    seen = "getComputedStyle(document.getElementById('{}')).display !== 'none'"
    assert [phone.value(seen.format(name)) for name in ("fingers", "keys")] == [True, False]


# ------------------------------------------------------------------------------------------------------------ keys


@pytest.fixture(scope="module")
def desk(file, tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("desk"), 1100, 800) as page:
        yield opened(page, file)
        assert page.complaints == []


def tabbed(page: Browser, wanted: str) -> list[str]:
    """What has the focus, Tab after Tab, until it's what is wanted."""
    page.value("document.activeElement.blur()")
    seen: list[str] = []
    while wanted not in seen:
        page.key("Tab")
        seen.append(page.value("document.activeElement.id"))
        assert len(seen) < 30, seen
    return seen


def test_keys_alone_turn_zoom_pick_and_step(desk):
    desk.value("xmosaic.set({view: '35,0,1', lead: 1})")
    assert "variable" in tabbed(desk, "lines")
    outline = desk.value("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"  # where one is, is seen
    for key in ("ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp"):
        desk.key(key)
    desk.until(f"JSON.stringify({VIEW}) === '[45,30,1]'")
    desk.key("Enter")
    desk.until("location.hash.includes('point=60%2C30') || location.hash.includes('point=30%2C30')")
    desk.key("+")
    desk.until(f"{VIEW}[2] === 1.25")
    desk.key("Home")
    desk.until(f"JSON.stringify({VIEW}) === '[35,0,1]'")
    desk.key(".")
    desk.until("xmosaic.state().lead === 2")
    assert "+2 d" in desk.value("document.getElementById('lead-text').textContent")
    desk.key("]")
    desk.until("xmosaic.state().member === '2'")
    assert "member 2" in desk.value("document.getElementById('picture').textContent")


def test_everything_has_a_name_for_who_does_not_see_it(desk):
    tree = desk("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "slider", "application", "img", "figure"}
    nameless = [
        node["role"]["value"]
        for node in tree
        if node.get("role", {}).get("value") in roles and not node.get("name", {}).get("value") and not node["ignored"]
    ]
    assert nameless == []
    assert desk.value("document.documentElement.lang") == "en"
    assert desk.value("document.title")
    assert desk.value("[...document.querySelectorAll('h1, h2, h3')].map((e) => e.tagName).join()").startswith("H1")


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, as WCAG 2.2 has it."""
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(desk, theme):
    """4.5 to 1 for each text, before what really lies behind it."""
    desk.value(f"xmosaic.set({{theme: '{theme}'}})")
    desk.value("new Promise((done) => setTimeout(done, 300))")  # colours that fade
    script = """(() => {
      const behind = (e) => {
        for (let at = e; at; at = at.parentElement) {
          const colour = getComputedStyle(at).backgroundColor;
          if (colour !== 'rgba(0, 0, 0, 0)') return colour;
        }
        return 'rgb(255, 255, 255)';
      };
      return [...document.querySelectorAll('body *')]
        .filter((e) => e.offsetParent && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()))
        .map((e) => [e.id || e.tagName, getComputedStyle(e).color, behind(e)]);
    })()"""
    texts = desk.value(script)
    assert len(texts) > 15
    for name, front, back in texts:
        brighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
        assert (brighter + 0.05) / (darker + 0.05) >= 4.5, (name, front, back)


def test_the_globe_and_its_controls_fit_the_frame_between_text(file, tmp_path):
    """Some 620 pixels in the documentation; the diagrams are further down there."""
    with Browser(tmp_path / "page", 620, 960) as page:
        opened(page, file)
        box = "document.getElementById('{}').getBoundingClientRect().bottom"
        assert (
            page.value(box.format("sky")) < page.value(box.format("bar-ticks")) < page.value(box.format("play")) <= 960
        )
        assert page.value("document.documentElement.scrollWidth") <= 620


def test_diagrams_stand_beside_the_globe_in_a_notebook(file, tmp_path):
    """A cell's output is some 760 pixels wide on a laptop: nothing is hidden below the frame's 960."""
    with Browser(tmp_path / "cell", 760, 960) as page:
        opened(page, file)
        boxes = page.value(
            "['sky', 'plume', 'scores'].map((id) => document.getElementById(id).getBoundingClientRect().toJSON())"
        )
        sky, plume, scores = boxes
        assert plume["left"] >= sky["right"], json.dumps(boxes)
        assert scores["bottom"] <= 960
        assert page.value("document.documentElement.scrollHeight") <= 960
        assert page.value("document.documentElement.scrollWidth") <= 760
