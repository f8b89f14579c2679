"""A real Chromium (Debian's, headless) for tests of pages, driven by selenium.

It reaches this machine alone: a test fails if its page asked for anything else, or told the console of an error. Every
test leaves a screenshot of the last page that it saw in ``build/screenshots``.
"""

import base64
import json
import re
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.support.wait import WebDriverWait

from cluster.cache import CHECKOUT
from cluster.debian import have

SCREENSHOTS = CHECKOUT / "build" / "screenshots"
PROGRAMS = ("chromium", "chromedriver")
PACKAGES = ("chromium", "chromium-driver", "fonts-dejavu-core")
SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # which root cannot have; the pages are our own
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--no-proxy-server",
    "--force-color-profile=srgb",
    "--hide-scrollbars",
    # Names of others are not even looked up.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
)
WIDE, NARROW = 1280, 390
"""Widths in CSS pixels: a laptop's, a phone's."""
_HEIGHT = 900
_SECONDS = 30
_LOGS = {"goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
_SEVERE = "SEVERE"
_OWN_SCHEMES = ("file", "data", "blob", "about", "chrome")
_OWN_HOSTS = ("127.0.0.1", "localhost", "::1")


class Browser:
    """One that runs, with one page. ``driver`` is selenium's, for what is not here."""

    def __init__(self, driver: Chrome, name: str) -> None:
        self.driver = driver
        self.expected: list[str] = []
        """Patterns of the console's errors that the test causes on purpose (a server that it stops)."""
        self._name = name
        self._told: list[str] = []
        self._opened = False

    def open(self, where: str | Path) -> None:
        """Show a file or an address, up to its load event."""
        self.driver.get(where.resolve().as_uri() if isinstance(where, Path) else where)
        self._opened = True

    def resize(self, width: int, height: int = _HEIGHT) -> None:
        """Give the page so many CSS pixels; a window would not go below 500."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def colours(self, scheme: str) -> None:
        """Prefer ``light`` or ``dark`` pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def script(self, body: str, *arguments: Any) -> Any:
        """What a function of this body returns in the page."""
        return self.driver.execute_script(body, *arguments)

    def until(
        self, condition: str | Callable[[], Any], seconds: float, what: str, seen: Callable[[], Any] | None = None
    ) -> Any:
        """What ``condition`` (a script's body, or a function) gives, once it is true; a failure tells ``seen``."""
        look = (lambda: self.script(condition)) if isinstance(condition, str) else condition
        try:
            return WebDriverWait(self.driver, seconds, 0.1).until(lambda _: look())
        except TimeoutException:
            pytest.fail(f"waited {seconds} s for {what}" + (f", not {seen()}" if seen else ""))

    def press(self, *keys: str) -> None:
        """Press keys (``selenium.webdriver.Keys`` or characters), wherever the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def screenshot(self, suffix: str = "") -> Path:
        """Keep a picture of the whole page, however long; returns where it is."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        path = SCREENSHOTS / f"{self._name}{'-' if suffix else ''}{suffix}.png"
        taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def problems(self) -> list[str]:
        """What the page has done so far that it must not: errors in the console, requests to elsewhere."""
        for entry in self.driver.get_log("browser"):
            message = entry["message"]
            if entry["level"] == _SEVERE and not any(re.search(one, message) for one in self.expected):
                self._told.append(f"console: {message}")
        for address in _addresses(self.driver.get_log("performance")):
            if not is_own(address):
                self._told.append(f"request: {address}")
        return self._told

    def finish(self) -> list[str]:
        """The last screenshot; returns all problems."""
        if self._opened:
            self.screenshot()
        return self.problems()


def is_own(address: str) -> bool:
    """Whether nothing but this machine answers it."""
    parts = urllib.parse.urlsplit(address)
    return parts.scheme in _OWN_SCHEMES or parts.hostname in _OWN_HOSTS


def _addresses(log: list[dict[str, Any]]) -> Iterator[str]:
    """What pages asked for, by Chromium's log of its development protocol."""
    for entry in log:
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]
        elif message["method"] == "Network.webSocketCreated":
            yield message["params"]["url"]


@contextmanager
def chromium(folder: Path, name: str, *switches: str) -> Iterator[Browser]:
    """Within: a browser whose profile is in ``folder``, and whose screenshots begin with ``name``.

    Raises:
        BuildError: Chromium is not here, and could not be installed.
    """
    browser, driver = _programs()
    folder.mkdir(parents=True, exist_ok=True)
    options = ChromeOptions()
    options.binary_location = browser
    # With a page to begin with, it does not show its own, which is heavy.
    own = f"--window-size={WIDE},{_HEIGHT}", f"--user-data-dir={folder / 'profile'}", "about:blank"
    for switch in (*SWITCHES, *switches, *own):
        options.add_argument(switch)
    for capability, value in _LOGS.items():
        options.set_capability(capability, value)
    # Both programs are named, so that selenium looks for none on the network.
    service = ChromeService(executable_path=driver, log_output=str(folder / "chromedriver.log"))
    started = Chrome(options=options, service=service)
    try:
        started.set_page_load_timeout(_SECONDS)
        started.set_script_timeout(_SECONDS)
        yield Browser(started, name)
    finally:
        started.quit()


def _programs() -> list[str]:
    have(PROGRAMS, PACKAGES)
    return [shutil.which(name) or name for name in PROGRAMS]


@pytest.fixture
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser of the test's own. The test fails if the page told of an error or asked for what is elsewhere."""
    name = re.sub(r"[^-\w.]+", "-", request.node.name).strip("-")
    with chromium(tmp_path_factory.mktemp("browser"), name) as started:
        yield started
        try:
            problems = started.finish()
        except WebDriverException as error:
            problems = [f"it is gone: {error.msg}"]
        if problems:
            pytest.fail("in the browser:\n" + "\n".join(problems), pytrace=False)
