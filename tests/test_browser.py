"""The report page in a real browser: headless Chromium, driven by playwright."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from defend.records.compare import compare
from defend.records.reading import read_results
from defend.report.leaderboard import leaderboard
from defend.report.page import Section, render

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PLAYWRIGHT = importlib.util.find_spec("playwright")
MISSING = [name for name, found in (("playwright", PLAYWRIGHT), ("Chromium", CHROMIUM)) if found is None]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
VIEWS = {"desktop": (1280, 900), "tablet": (800, 1000), "phone": (380, 800)}


@pytest.fixture(scope="module")
def chromium():
    if MISSING:
        why = f"not installed: {', '.join(MISSING)}"
        if os.environ.get("DEFEND_REQUIRE_BROWSER"):
            pytest.fail(f"DEFEND_REQUIRE_BROWSER is set, and there is no browser to test with ({why})")
        pytest.skip(why)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages of made-up runs: one with everything, one that a check blocks, and one of several runs."""
    spec = importlib.util.spec_from_file_location("made_up_run", ROOT / "core/tests/made_up_run.py")
    made_up_run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_up_run)
    folder = tmp_path_factory.mktemp("pages")
    runs = [
        made_up_run.write(folder / "full"),
        made_up_run.write(folder / "blocked", name="dae", checks=("fail",), detector=False, threats=("adaptive",)),
        made_up_run.write(folder / "old", name="apudae", parts=False),
    ]
    results = [read_results(run) for run in runs]
    compared = compare([each.run for each in results])
    sections = [Section(each, place, each.run.label) for place, each in enumerate(results, start=1)]
    found = {
        "full": render(sections[:1], None, []),
        "blocked": render(sections[1:2], None, []),
        "several": render(sections, compared, leaderboard(results, compared)),
    }
    for name, html in found.items():
        (folder / f"{name}.html").write_text(html, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in found}


@pytest.fixture
def show(chromium):
    """Open a page in a fresh context; whatever it says, requests or throws fails the test at the end."""
    contexts, complaints, requests, shown = [], [], [], []

    def open_page(path, view="desktop", scheme="light", **options):
        width, height = VIEWS[view]
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        shown.append(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == shown


def overflow(page):
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def unfold(page):
    page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")


def sizes(page, selector):
    """Return the sizes of what is displayed among the elements."""
    return page.evaluate(
        """selector => [...document.querySelectorAll(selector)].filter(each => each.checkVisibility())
           .map(each => each.getBoundingClientRect()).map(box => [box.width, box.height])""",
        selector,
    )


@pytest.mark.parametrize("name", ["full", "several"])
def test_the_page_shows_its_figures_and_fits(show, pages, name):
    page = show(pages[name])
    for unfolded in (False, True):
        if unfolded:
            unfold(page)
        for view, (width, height) in VIEWS.items():
            page.set_viewport_size({"width": width, "height": height})
            assert overflow(page) == 0, (view, unfolded)
            boxes = {selector: sizes(page, selector) for selector in ("figure", "figure svg", "figure img", "table")}
            for selector, found in boxes.items():
                assert found or (name == "several" and selector == "figure img" and not unfolded), (view, selector)
                assert all(min(size) > 20 for size in found), (view, selector)
            assert all(across <= width for across, _ in boxes["figure svg"]), view
    assert len(boxes["figure"]) == page.locator("figure").count()
    assert page.evaluate("[...document.images].every(each => each.complete && each.naturalWidth > 0)")


def test_the_headline_can_be_read(show, pages):
    full = show(pages["full"])
    assert full.locator(".headline .figure").inner_text().endswith("\xa0%")
    assert "worst-case accuracy, 95\xa0% interval" in full.locator(".headline").inner_text()
    assert not full.locator(".banner").count()
    blocked = show(pages["blocked"])
    assert blocked.locator(".banner").inner_text().startswith("Not to be trusted: loss surface")
    assert blocked.locator(".banner").bounding_box()["y"] < 400
    assert blocked.locator(".headline s").is_visible()
    assert not blocked.locator(".headline .figure").count()


@pytest.mark.parametrize("view", ["desktop", "phone"])
def test_light_and_dark_differ_and_both_can_be_read(show, pages, view):
    page = show(pages["full"], view, "dark")
    dark_paper, dark_ink = brightness(page)
    assert overflow(page) == 0 and page.locator("figure svg").count() > 5
    page.emulate_media(color_scheme="light")
    light_paper, light_ink = brightness(page)
    assert light_paper - light_ink > 400 and dark_ink - dark_paper > 400


def brightness(page):
    """Return how bright the page and the text of its first chart are, of 765."""
    return page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
                  ...[...document.querySelectorAll('svg text')].filter(each => each.checkVisibility()).slice(0, 1)
                     .map(each => getComputedStyle(each).fill)]
           .map(colour => colour.match(/\\d+/g).map(Number).reduce((sum, each) => sum + each, 0))"""
    )


def test_details_open_and_close_by_keyboard_and_click(show, pages):
    page = show(pages["full"])
    row = page.locator("details.row").first
    summary, table = row.locator("summary"), row.locator("table")
    assert not table.is_visible()
    summary.click()
    assert table.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert not table.is_visible()
    assert page.locator("details.row[open]").count() == 1  # the row that leaves least
    numbers = page.locator(".checks details").first
    numbers.locator("summary").click()
    assert "pgd/adaptive" in numbers.locator("pre").inner_text()

    several = show(pages["several"])
    assert several.locator("details.run[open]").count() == 0
    several.locator("details.run > summary").first.click()
    assert several.get_by_text("To run it again").first.is_visible()


def test_a_wide_table_scrolls_in_its_own_frame(show, pages):
    page = show(pages["full"], "phone")
    frame = page.locator(".scroll.broad")
    assert frame.evaluate("each => each.scrollWidth > each.clientWidth + 100")
    frame.evaluate("each => { each.scrollLeft = 200; }")
    assert frame.evaluate("each => each.scrollLeft") == 200
    caption = frame.locator("caption > span").bounding_box()
    assert caption["x"] >= 0 and caption["x"] + caption["width"] <= 380


def test_it_reads_the_same_without_javascript(show, pages):
    page = show(pages["full"], java_script_enabled=False)
    assert page.locator("figure").first.bounding_box()["height"] > 100
    assert page.get_by_role("heading", name="To run it again").is_visible()


def test_print_is_light_unfolded_and_fits(show, pages):
    page = show(pages["full"], "tablet", "dark")
    page.set_viewport_size({"width": 673, "height": 970})  # A4 between its margins
    page.emulate_media(media="print")
    assert overflow(page) == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    folded = page.locator("details.row:not([open]) figure").first
    assert folded.evaluate("each => each.getBoundingClientRect().height") > 100
    assert page.pdf(format="A4", prefer_css_page_size=True).startswith(b"%PDF-")


@pytest.mark.parametrize("view", ["desktop", "phone"])
def test_an_image_opens_large_and_a_row_leads_to_its_threat_without_a_script(show, pages, view):
    page = show(pages["full"], view, java_script_enabled=True)
    small = page.locator("details.row[open] .large img").first
    before = small.bounding_box()
    page.locator("details.row[open] .large .open").first.click()
    after = small.bounding_box()
    width, height = VIEWS[view]
    assert after["width"] > 4 * before["width"]
    assert after["x"] >= 0 and after["x"] + after["width"] <= width and after["y"] + after["height"] <= height
    assert overflow(page) == 0
    page.locator(".large:target .close").click()
    assert small.bounding_box()["width"] == before["width"]
    link = page.locator("td a[href='#adaptive1']").first
    link.click()
    assert page.locator(":target").inner_text() == "adaptive"
    page.emulate_media(media="print")
    assert page.locator(".large:target").count() == 0
