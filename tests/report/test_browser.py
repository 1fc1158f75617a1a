"""The page in a real browser: it opens at once, needs no network, works by keyboard, and is readable in light and dark
mode, on a phone and on paper. Screenshots go to DYVIT_SCREENSHOTS, or to the tests' temporary folder."""
import os
import shutil
from pathlib import Path

import pytest

import dyvit_deploy as dv

pytest.importorskip("jinja2", reason="Jinja2 is missing: pip install 'dyvit-deploy[report]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install 'dyvit-deploy[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright",
                          reason="axe is missing: pip install 'dyvit-deploy[dev]'")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.browser,
              pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")]
# Without a sandbox, because tests may run as root; and without the browser's own network requests.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-dev-shm-usage", "--disable-sync", "--no-first-run"]
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def url(measured, tmp_path_factory):
    out = tmp_path_factory.mktemp("browser") / "report.html"
    dv.write_report(measured, out, dv.ReportConfig(str(measured.parent / "photos"), images=10))
    return out.as_uri()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as tools:
        started = tools.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def visit(browser, url):
    """Opens the page in its own window; any error or network request of the page fails the test."""
    complaints, contexts = [], []

    def opened(viewport=DESK, **options):
        context = browser.new_context(viewport=viewport, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url)
                if not request.url.startswith(("file:", "data:")) else None)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    folder = Path(os.environ.get("DYVIT_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shown(page, selector):
    """The visible elements."""
    return [e for e in page.query_selector_all(selector) if e.is_visible()]


def test_it_is_there_at_once_and_small(visit):
    """What its time goes into can be counted on any machine: bytes, elements, and how often they are laid out."""
    page = visit()
    watched = page.context.new_cdp_session(page)
    watched.send("Performance.enable")
    page.reload()
    told = {metric["name"]: metric["value"] for metric in watched.send("Performance.getMetrics")["metrics"]}
    assert 1 <= told["LayoutCount"] <= 3
    assert 100 < page.evaluate("document.querySelectorAll('*').length") < 10_000
    assert Path(page.evaluate("decodeURI(location.pathname)")).stat().st_size < 5 * 2**20
    assert "dyvit report" in page.title()


@pytest.mark.parametrize("name, viewport, scheme", [("light", DESK, "light"), ("dark", DESK, "dark"),
                                                    ("phone", PHONE, "light"), ("phone-dark", PHONE, "dark")])
def test_it_is_accessible_and_fits_the_window(visit, shots, name, viewport, scheme):
    page = visit(viewport, color_scheme=scheme)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate("[...document.querySelectorAll('main *')].every(e => e.closest('.scroll, .unseen, defs')"
                         " || e.getBoundingClientRect().right <= innerWidth + 1)")
    page.screenshot(path=shots / f"{name}.png", full_page=True)


def test_light_and_dark_differ(visit):
    colours = [visit(color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
               for scheme in ("light", "dark")]
    assert colours[0] != colours[1]


def test_the_slider_goes_through_the_stages_by_keyboard(visit, shots):
    page = visit()
    slider = shown(page, ".gallery input[type=range]")[0]
    label = shown(page, ".gallery output")[0]
    assert label.text_content() == "stage 2: 2 of 16 patches"
    slider.focus()
    counts = []
    for _ in range(3):
        counts.append(len(shown(page, ".gallery .drop")))
        page.keyboard.press("ArrowLeft")
    assert label.text_content() == "all 16 patches" and not shown(page, ".gallery .drop")
    assert counts == [10, 10, 10] and slider.get_attribute("aria-valuetext") == "all 16 patches"
    page.keyboard.press("ArrowRight")
    assert label.text_content() == "stage 0: 8 of 16 patches" and len(shown(page, ".gallery .drop-1")) == 10
    page.locator("#patches").screenshot(path=shots / "stage.png")
    assert {s.input_value() for s in page.query_selector_all(".gallery input[type=range]")} == {"1"}


def test_tabs_are_changed_by_keyboard(visit):
    page = visit()
    [before] = shown(page, "#latency .panel")
    page.locator("#latency input").first.focus()
    page.keyboard.press("ArrowRight")
    [after] = shown(page, "#latency .panel")
    assert before.query_selector("h3").text_content() == "batch 1"
    assert after.query_selector("h3").text_content() == "batch 4"


def test_everything_can_be_reached_by_tab(visit):
    page = visit()
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.getAttribute('href') || "
                               "document.activeElement.getAttribute('role')"))
    assert {"#verdicts", "#artifact-A", "trade-1", "latency-1", "gallery-1", "stage-0", "region"} <= seen


def test_paper_shows_every_tab_and_the_last_stage(visit, shots):
    page = visit({"width": 760, "height": 1000})
    page.locator(".gallery input[type=range]").first.fill("0")
    page.emulate_media(media="print")
    panels = page.query_selector_all(".panel")
    assert len(shown(page, ".panel")) == len(panels) and not shown(page, "nav, .slide, .tabs > label")
    assert len(shown(page, ".drop")) == len(page.query_selector_all(".drop.last"))
    assert len(shown(page, "details dd")) == len(page.query_selector_all("details dd")) > 0
    page.screenshot(path=shots / "print.png", full_page=True)


def test_without_scripts_nothing_is_lost(visit):
    page = visit(java_script_enabled=False)
    assert not page.locator(".slide input").first.is_visible()
    assert len(page.locator(".gallery").first.locator(".drop.last").all()) == 10
    assert page.locator(".gallery .drop.last").first.is_visible()
    page.locator("#latency label").last.click()
    assert page.locator("#latency .panel").last.is_visible()


def test_facts_are_closed_and_open_by_keyboard_and_hashes_are_copied_whole(visit):
    page = visit()
    assert not shown(page, "details dd")
    page.locator("details summary").first.focus()
    page.keyboard.press("Enter")
    assert shown(page, "details dd")
    digest = page.locator("details .digest").first
    assert len(digest.get_attribute("title")) == 64 and digest.bounding_box()["width"] < 120
    digest.click()
    assert page.evaluate("getSelection().toString()") == digest.get_attribute("title")


def test_a_phone_shows_the_four_signs_and_breaks_names_where_they_can_be_broken(visit):
    page = visit(PHONE)
    row = page.locator(".glance tbody tr").first
    assert row.locator("td.one .sign:visible").count() == 4
    # The hidden text for screen readers.
    assert all(": " in text for text in row.locator("td.one").all_text_contents())
    assert "tiny-<wbr>dense.<wbr>safetensors" in page.locator(".glance").inner_html()


def test_the_facts_are_on_paper_without_scripts(visit):
    page = visit(java_script_enabled=False)
    page.emulate_media(media="print")
    assert page.locator("details dd").first.is_visible()
