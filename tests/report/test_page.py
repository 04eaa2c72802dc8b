"""The page in a browser: what it shows, its filters, keyboard and width, and that nothing in the data runs."""

import numpy as np
import pytest

from report.command import main
from tests.report.conftest import HOSTILE
from utils.retrieval.results import load_scores

WIDE, PHONE = (1280, 900), (390, 800)


@pytest.fixture(scope="module")
def page(made, trainings, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert main([str(made.run), str(trainings), "--out", str(path)]) == 0
    return path


@pytest.fixture
def opened(browser, page):
    """The page, newly opened at a desktop's width; the console must be empty at the end."""
    resize(browser, WIDE)
    browser.get(page.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def resize(browser, size):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def all_of(browser, selector: str) -> list:
    return browser.find_elements("css selector", selector)


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)", selector
    )


def choose(browser, label: str, value: str):
    (found,) = [node for node in all_of(browser, "label") if node.text.startswith(label)]
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
        found.find_element("css selector", "select"),
        value,
    )


def shown_paths(browser) -> list[str]:
    return texts(browser, ".query h4")


def test_tables_and_curves_name_their_files(opened, made, trainings):
    assert texts(opened, "#tables h3") == [
        "Rankings of evaluations, in %",
        "Runs: best and last recalls, in %",
        "Means over seeds, in %",
        "Fitted weights",
    ]
    cells = texts(opened, "#tables td")
    assert cells.count(str(made.run)) == 7  # four rankings, the run, and two fitted rankings
    assert "81.50 ± 0.71" in cells
    assert opened.execute_script("return document.querySelector('img.curves').naturalWidth") > 500
    assert (
        opened.title == texts(opened, "h1")[0] and "have a photo of their product first" in texts(opened, ".result")[0]
    )
    assert texts(opened, "nav a") == ["Status", "Tables", "Curves", "Gallery", "Sources"]
    sources = texts(opened, "#sources li")
    assert any(line.startswith(f"{made.folder / 'scores.npz'}, MD5 ") for line in sources)


def test_neighbours_before_and_after(opened, made):
    candidates, labels = load_scores(made.folder)
    assert len(shown_paths(opened)) == 20 and all(HOSTILE.split("/")[0] in path for path in shown_paths(opened))
    choose(opened, "After", "1")  # by the logit
    card = all_of(opened, ".query")[0]
    query = int(card.find_element("css selector", "h4").text.split("/")[-1].split("_")[0]) * 4
    query += int(card.find_element("css selector", "h4").text.split("_")[-1].split(".")[0])
    before, after = card.find_elements("css selector", ".tiles")
    by_logit = candidates.neighbours[query][np.argsort(-candidates.logits[query], kind="stable")]
    for row, expected in ((before, candidates.neighbours[query]), (after, by_logit)):
        tiles = row.find_elements("css selector", ".tile")
        hits = labels.gallery[expected[:10]] == labels.queries[query]
        assert len(tiles) == 10
        assert ["hit" in tile.get_attribute("class") for tile in tiles] == hits.tolist()
        assert [tile.find_element("css selector", ".sign").text for tile in tiles] == [
            "✓" if hit else "✕" for hit in hits
        ]
        assert [tile.get_attribute("title").split("/")[-1] for tile in tiles] == [
            f"{i // 4}_{i % 4}.JPG" for i in expected[:10]
        ]
    assert card.find_element("css selector", ".is-query .sign").text == "Q"
    widths = opened.execute_script("return [...document.querySelectorAll('.tile img')].map((i) => i.naturalWidth)")
    assert widths and min(widths) > 0


def test_filters(opened):
    choose(opened, "After", "1")
    buttons = all_of(opened, ".choices button")
    counts = [int(button.text.split()[-1]) for button in buttons]
    assert counts[0] == sum(counts[1:]) == 20
    for button, count in zip(buttons, counts, strict=True):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        assert len(shown_paths(opened)) == count
        outcome = "".join(button.text.split()[1:-1])
        assert outcome == "" or {text.replace(" ", "")[1:] for text in texts(opened, ".badge")} <= {outcome}
    buttons[0].click()
    choose(opened, "Class", "3")
    assert sorted(path[-7:] for path in shown_paths(opened)) == [f"3_{i}.JPG" for i in range(4)]
    opened.find_element("css selector", "input[type=search]").send_keys("3_2.jpg")
    assert [path[-7:] for path in shown_paths(opened)] == ["3_2.JPG"]
    assert "1 of 20 queries here match" in texts(opened, "[role=status]")[0]


def test_attention_of_a_pair_by_keyboard(opened):
    marked = next(tile for tile in all_of(opened, ".tile") if tile.find_elements("css selector", ".eye"))
    marked.send_keys("\ue007")  # enter
    dialog = opened.find_element("css selector", "dialog[open]")
    masks = [float(node.get_attribute("fill-opacity")) for node in all_of(opened, ".mask")]
    assert len(masks) == 2 * 2 * 2 and min(masks) == 0  # 64 pixels have 2 x 2 patches
    assert "The readout takes" in dialog.text and "logit" in dialog.text
    assert 0 < len(all_of(opened, ".link")) <= 6  # the Chamfer similarity's, in the last layer
    choose(opened, "Layer", "0")
    choose(opened, "Head", "2")
    assert len(all_of(opened, ".link")) == 6
    opened.switch_to.active_element.send_keys("\ue00c")  # escape
    assert not all_of(opened, "dialog[open]")
    assert opened.switch_to.active_element == marked


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
def test_nothing_is_wider_than_the_window(opened, size):
    resize(opened, size)
    assert opened.execute_script("return document.documentElement.scrollWidth") <= size[0]
    opened.find_element("css selector", ".eye").find_element("xpath", "..").click()
    box = opened.find_element("css selector", "dialog[open]").rect
    assert box["x"] >= 0 and box["x"] + box["width"] <= size[0]


def test_nothing_of_the_data_runs(opened, page):
    assert page.read_text().count("<script") == 2
    assert len(all_of(opened, "script")) == 2
    blocked = opened.execute_async_script(
        "const done = arguments[0];"
        "document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));"
        "const script = document.createElement('script'); script.textContent = 'window.ran = 1';"
        "document.body.append(script);"
    )
    assert blocked.startswith("script-src") and opened.execute_script("return window.ran") is None
    assert len(opened.get_log("browser")) == 1  # of that alone
