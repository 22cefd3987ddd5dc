"""The page as Chromium shows it: what sorting, filtering and switching really do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from report.page import page
from report.published import PublishedRow
from report.runs import find_runs
from report.tables import build_tables
from tests.report.fake_runs import entry, settings, write_pictures, write_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver"),
]
FINAL = {"mib": (0.6, 0.64), "lwf": (0.095,), "plop": (0.4, 0.5)}  # mIoU by seed; as text 9.5 would come last


def make_runs(folder):
    """Three methods on two splits, one run unfinished, with pictures of 15-1."""
    names = ["background", *(f"class <{i}>" for i in range(151))]
    for task in ("15-1", "15-5"):
        for method, values in FINAL.items():
            for seed, value in enumerate(values):
                entries = [entry(t, dict.fromkeys(names[: 100 + 26 * t], value), miou=value) for t in range(3)]
                entries[-1]["pixel_accuracy"] = None if method == "plop" else value
                path = write_run(folder / f"{task}/{method}/seed{seed}", entries, settings(task=task, seed=seed),
                                 method=method, tasks=3)  # fmt: skip
                if task == "15-1":
                    for t in range(3):
                        write_pictures(
                            path, t, "photo", np.full((90, 120), t, np.uint8), np.full((90, 120), t + 1, np.uint8)
                        )
    write_run(folder / f"15-1/sdr/{'a-very-long-name-' * 5}", entries[:1], settings(task="15-1"), method="sdr", tasks=3,
              error="RuntimeError: " + "out_of_memory" * 30)  # fmt: skip


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    make_runs(folder / "runs")
    runs, damaged = find_runs([folder / "runs"])
    benchmark = runs[0].benchmark._replace(task="15-1")
    papers = [
        PublishedRow(benchmark, m, m, "MiB", "Cermelli", "table 1", "", True, {"miou": 55.0}) for m in ("mib", "ilt")
    ]
    (folder / "report.html").write_text(page(build_tables(runs, papers), runs, damaged), encoding="utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def chromium():
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, address):
    """The page, newly opened; an error on its console fails the test."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    chromium.get_log("performance")
    resize(chromium, 1280)
    chromium.get(address)
    yield chromium
    assert chromium.get_log("browser") == []


def resize(browser, width):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def shown(browser, selector):
    return [element for element in find(browser, selector) if element.is_displayed()]


def rows(browser):
    """Methods of the first table's rows, from above."""
    table = find(browser, "table.results")[0]
    return [row.text.split()[0] for row in table.find_elements("css selector", "tbody tr") if row.is_displayed()]


def choose(browser, name, value):
    from selenium.webdriver.support.ui import Select

    Select(find(browser, f"#filter [name={name}]")[0]).select_by_value(value)


def heading(browser, text):
    table = find(browser, "table.results")[0]
    return next(h for h in table.find_elements("css selector", "thead th") if h.text.startswith(text))


def test_a_click_sorts_by_number_and_another_turns_it_round(browser):
    assert rows(browser) == ["lwf", "mib", "mib", "plop", "ilt"]
    miou = heading(browser, "mIoU")
    miou.find_element("css selector", "button").click()
    assert rows(browser) == ["mib", "mib", "ilt", "plop", "lwf"]
    assert miou.get_attribute("aria-sort") == "descending"
    miou.find_element("css selector", "button").click()
    assert rows(browser) == ["lwf", "plop", "mib", "ilt", "mib"]
    assert miou.get_attribute("aria-sort") == "ascending"


def test_what_is_undefined_stays_last_and_keys_sort_as_well(browser):
    accuracy, method = heading(browser, "acc"), heading(browser, "method")
    method.find_element("css selector", "button").send_keys(" ")
    assert rows(browser)[0] == "ilt"  # a paper's row, without accuracy
    for first, order in (("mib", "descending"), ("lwf", "ascending")):
        accuracy.find_element("css selector", "button").send_keys("\n")
        assert accuracy.get_attribute("aria-sort") == order
        assert rows(browser)[0] == first
        assert set(rows(browser)[2:]) == {"plop", "mib", "ilt"}
    method.find_element("css selector", "button").send_keys(" ")
    assert rows(browser) == ["ilt", "lwf", "mib", "mib", "plop"]
    assert accuracy.get_attribute("aria-sort") is None


def test_filters_hide_what_they_should(browser):
    count = find(browser, "#count")[0]
    assert count.text == "8 of 8 rows, 11 of 11 runs"
    choose(browser, "task", "15-5")
    assert [h.text for h in shown(browser, "h2")][:1] == ["voc · 15-5 · overlap"]
    assert count.text == "3 of 8 rows, 5 of 11 runs"
    choose(browser, "task", "")
    choose(browser, "method", "mib")
    assert rows(browser) == ["mib", "mib"]
    assert len(shown(browser, ".chart svg g[data-kind] .line")) == 2  # a table each
    assert len(shown(browser, "details")) == 2
    assert [h.text for h in shown(browser, ".pictures th[scope=col]")][1:] == ["image", "label", "mib"]
    choose(browser, "status", "published")
    assert rows(browser) == ["mib"]
    assert not shown(browser, ".chart svg")
    choose(browser, "method", "")
    choose(browser, "status", "failed")
    assert [h.text for h in shown(browser, "h2")][:2] == ["voc · 15-1 · overlap", "All runs"]
    assert "sdr, seed 0" in shown(browser, "ul.unfinished")[0].text


def test_words_filter_in_any_order(browser):
    text = find(browser, "#filter [name=text]")[0]
    text.send_keys("Seed1 15-1")
    assert [r.get_attribute("data-method") for r in shown(browser, ".runs tbody tr")] == ["mib", "plop"]
    text.send_keys(" no-such-word")
    assert find(browser, "#count")[0].text == "0 of 8 rows, 0 of 11 runs"


def test_the_address_keeps_the_filter(browser, address):
    choose(browser, "method", "plop")
    find(browser, "#filter [name=text]")[0].send_keys("15-1 a&b=c")
    assert "#" in browser.current_url
    before = browser.current_url
    browser.refresh()
    assert browser.current_url == before
    assert find(browser, "#filter [name=text]")[0].get_attribute("value") == "15-1 a&b=c"
    assert find(browser, "#count")[0].text == "0 of 8 rows, 0 of 11 runs"
    browser.execute_script("location.hash = 'method=mib&task=none-such'")
    browser.get(address + "#method=mib&dataset=gone")
    assert rows(browser) == ["mib", "mib"]


def test_another_task_shows_other_pictures(browser):
    from selenium.webdriver.support.ui import Select

    def sources():
        return [image.get_attribute("src") for image in shown(browser, ".pictures img")]

    last = sources()
    assert len(last) == 5  # image, label, three methods
    assert all(image.get_property("naturalWidth") == 240 for image in shown(browser, ".pictures img"))
    Select(find(browser, "select.after")[0]).select_by_value("0")
    first = sources()
    assert first[0] == last[0]
    assert len(first) == 5
    assert not set(first[1:]) & set(last[1:])


def test_points_say_their_values(browser):
    from selenium.webdriver import ActionChains

    point = next(p for p in find(browser, "[data-tip]") if p.get_attribute("data-tip").startswith("mib, task 1"))
    ActionChains(browser).move_to_element(point).perform()
    tip = find(browser, "#tip")[0]
    assert tip.is_displayed()
    assert tip.text == "mib, task 1: 62.0 ± 2.8 (n = 2)"
    ActionChains(browser).move_to_element(find(browser, "h1")[0]).perform()
    assert not tip.is_displayed()


def test_nothing_is_requested(browser):
    messages = [json.loads(line["message"])["message"] for line in browser.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert sent
    assert [url for url in sent if not url.startswith("data:")] == [browser.current_url.partition("#")[0]]


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_is_no_wider_than_the_window(browser, width):
    resize(browser, width)
    browser.execute_script("document.querySelectorAll('details').forEach((map) => { map.open = true; })")
    assert browser.execute_script("return innerWidth") == width
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    if width == 1280:
        assert browser.execute_script(
            "const t = document.querySelector('.results'); return t.scrollWidth <= t.parentNode.clientWidth"
        )


def test_headings_stay_in_sight_in_a_map_of_151_classes(browser):
    browser.execute_script("document.querySelector('details').open = true")
    top = "const box = document.querySelector('details .scroll'); box.scrollTop = 1000;"
    place = (
        "return [box.scrollTop, box.querySelector('th').getBoundingClientRect().top - box.getBoundingClientRect().top]"
    )
    scrolled, distance = browser.execute_script(top + place)
    assert scrolled == 1000
    assert 0 <= distance < 5
