"""The page of a report in a browser: plots and pictures are there, nothing is fetched, nothing overflows a phone."""

import json
import shutil

import numpy as np
import pytest

from benchmarks.report import draw_pictures, draw_rows, write_predictions
from posepipe import report
from posepipe.config import ReportConfig

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not CHROMIUM or not DRIVER:
        pytest.skip("no browser: chromium and chromedriver are not installed (Debian: apt-get install chromium chromium-driver)")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page_uri(tmp_path_factory):
    """A report of two runs of 40 people; one picture cannot be read, and one name is long."""
    folder = tmp_path_factory.mktemp("report")
    pictures = [*draw_pictures(str(folder / "mpii"), 3), "/nowhere/a.jpg"]
    uris = [str(folder / name) for name in ("first", "a-second-run-whose-name-is-rather-long-and-has-no-space-to-break-it")]
    for seed, uri in enumerate(uris):
        write_predictions(
            uri, [draw_rows(np.arange(40), 0.4, pictures, seed)], {"tasks": {"pose": {"floor": {"pckh": 0.17}}}, "framing": "person"}
        )
    outcome = report.build(ReportConfig(report_uri=str(folder / "report"), predictions_uri=tuple(uris)))
    return outcome["page_uri"]


def open_page(browser, page_uri, width):
    """Opens the page as a screen of this width does, and returns the messages of its console and the URLs that it asked for."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(f"file://{page_uri}")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return browser.get_log("browser"), [url for url in asked if not url.startswith("data:")]


@pytest.mark.parametrize("width", [1280, 390])
def test_plots_and_pictures_are_shown_and_nothing_is_fetched(browser, page_uri, width):
    messages, asked = open_page(browser, page_uri, width)
    assert messages == []
    assert asked == [f"file://{page_uri}"]
    sizes = browser.execute_script("return [...document.images].map(image => [image.naturalWidth, image.clientWidth, image.alt.length])")
    assert len(sizes) > 40
    for natural, shown, told in sizes:
        assert natural > 50
        assert 50 < shown <= width
        assert told > 5


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_is_no_wider_than_the_screen(browser, page_uri, width):
    open_page(browser, page_uri, width)
    browser.execute_script("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert browser.execute_script("return [document.documentElement.scrollWidth, innerWidth]") == [width, width]
    too_wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll, .film')"
        f" && each.getBoundingClientRect().right > {width} + 0.5).map(each => each.outerHTML.slice(0, 200))"
    )
    assert too_wide == []


def test_every_link_of_the_page_leads_to_a_section(browser, page_uri):
    open_page(browser, page_uri, 1280)
    links = browser.execute_script("return [...document.querySelectorAll('nav a')].map(each => [each.textContent, each.hash])")
    assert [text for text, _ in links][:2] == ["At a glance", "Joints"]
    for _, anchor in links:
        assert browser.execute_script("return document.querySelector(arguments[0]).offsetHeight", anchor) > 20


def test_text_is_large_enough_to_read_on_a_phone(browser, page_uri):
    open_page(browser, page_uri, 390)
    texts = "document.querySelectorAll('p, li, td, th, figcaption, summary')"
    sizes = browser.execute_script(f"return [...{texts}].map(each => parseFloat(getComputedStyle(each).fontSize))")
    assert min(sizes) >= 12
