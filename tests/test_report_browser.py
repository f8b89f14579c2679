"""Pages in a real Chromium: they show what they should, on a laptop and a phone, with a keyboard, without a network."""

import re

import pytest
from selenium.webdriver import Keys

from browser import NARROW, WIDE, chromium, is_own
from experimenting import World
from finetune_cli.comparison import subject_of
from finetune_cli.comparison_page import comparison_page
from finetune_cli.experiments.report import report
from test_experiment_report import MADE

PAGE = "<!doctype html><html lang=en><title>t</title><h1>Page</h1>{}</html>"


@pytest.fixture
def page(tmp_path):
    def write(content):
        path = tmp_path / "page.html"
        path.write_text(PAGE.format(content))
        return path

    return write


def test_a_page_is_shown(browser, page):
    browser.open(page("<p id=p>…</p><script>setTimeout(() => p.textContent = 'done', 300)</script>"))
    browser.until("return p.textContent === 'done'", 10, "the script")
    assert browser.script("return document.querySelector('h1').textContent") == "Page"
    assert browser.screenshot("shown").stat().st_size > 1000


BAD = {
    "script": ("<script>throw new Error('broken on purpose')</script>", "console: .*broken on purpose"),
    "image": ("<img src='https://example.com/a.png'>", "request: https://example.com/a.png"),
    "fetch": ("<script>fetch('http://192.0.2.1/').catch(() => {})</script>", "request: http://192.0.2.1/"),
    "socket": ("<script>new WebSocket('ws://example.com/')</script>", "request: ws://example.com/"),
}


@pytest.mark.parametrize(("content", "problem"), BAD.values(), ids=BAD)
def test_what_a_page_must_not_do_is_found(tmp_path, page, content, problem):
    with chromium(tmp_path, "bad") as browser:
        browser.open(page(content))
        browser.until(lambda: any(re.match(problem, one) for one in browser.problems()), 10, problem)


OWN = {
    "file:///a": True,
    "data:image/png;base64,A": True,
    "http://127.0.0.1:80/x": True,
    "http://[::1]:80/x": True,
    "https://localhost/": True,
    "https://example.com": False,
    "ws://10.0.0.1/": False,
}


@pytest.mark.parametrize(("address", "own"), OWN.items())
def test_what_is_our_own(address, own):
    assert is_own(address) is own


def written(tmp_path, page):
    path = tmp_path / "page.html"
    path.write_text(page)
    return path


def compared(world):
    """Every trial beside the others, a curve a variant."""
    rows = {row.name: row.variant for row in world.status.trial_table}
    return comparison_page([subject_of(name, world.jobs[name], group=variant) for name, variant in rows.items()])


WIDTHS = "return [document.documentElement.scrollWidth, innerWidth]"
HIDDEN_TEXT = """
const hidden = [];
for (const picture of document.querySelectorAll('svg')) {
  const frame = picture.getBoundingClientRect();
  for (const text of picture.querySelectorAll('text')) {
    const box = text.getBoundingClientRect();
    if (box.left < frame.left - 1 || box.right > frame.right + 1) hidden.push(text.textContent);
  }
}
return hidden;
"""
PAGES = {
    "variants": lambda: report(*_ended("variants")),
    "search": lambda: report(*_ended("search")),
    "comparison": lambda: compared(World(*MADE["variants"][:2]).run()),
}


def _ended(name):
    world = World(*MADE[name][:2]).run()
    return world.experiment, world.jobs


@pytest.mark.parametrize("made", PAGES.values(), ids=PAGES)
def test_a_page_of_ours(browser, tmp_path, made):
    """Nothing is cut off on a laptop or a phone, in light or dark, and the keyboard reaches all that scrolls."""
    path = written(tmp_path, made())
    for width in (WIDE, NARROW):
        browser.resize(width)
        for scheme in ("light", "dark"):
            browser.colours(scheme)
            browser.open(path)
            needed, given = browser.script(WIDTHS)
            assert needed <= given, f"the page scrolls sideways at {width} px"
            assert browser.script(HIDDEN_TEXT) == []
            browser.screenshot(f"{width}-{scheme}")
    regions = browser.script("return [...document.querySelectorAll('[role=region]')].map(one => one.ariaLabel)")
    reached = []
    for _ in range(100):
        browser.press(Keys.TAB)
        reached.append(browser.script("return document.activeElement.ariaLabel || document.activeElement.textContent"))
    assert set(regions) <= set(reached)
    assert len(regions) == len(set(regions)), "each has a name of its own"
