"""Chromium by Playwright (https://playwright.dev): pages that are read as text and acted on by numbered elements.

One browser for all pages of a process. Playwright's own event loop runs in a thread, so that environments stay plain
functions; a browser that dies is an infrastructure failure, and the next page brings a new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio.from_thread import BlockingPortal

from flywheel.errors import InfrastructureError, PrerequisiteError, named_reason

if TYPE_CHECKING:
    from playwright.async_api import Browser as Chromium
    from playwright.async_api import Page, Playwright

CHROMIUM = "FLYWHEEL_CHROMIUM"
"""The environment variable that names another browser than the system's."""
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-renderer-backgrounding",
    "--disable-backgrounding-occluded-windows",
    "--disable-background-timer-throttling",
    "--no-sandbox",  # it cannot be had as root, and the pages are the package's own, without network
)
ACTION_MS = 2000
"""How long an element may take to be ready for an action; then the agent is told."""
OPEN_MS = 15_000
"""How long a page may take to load."""
POLL_MS = 5
"""How often a page that is waited for is looked at."""
MARK = "data-flywheel"
"""The attribute that numbers elements."""


class Browser:
    """Chromium, started when the first page is opened."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._playwright: Playwright | None = None
        self._chromium: Chromium | None = None

    def page(self, width: int, height: int) -> BrowserPage:
        """A page without network in a context of its own. Raises `InfrastructureError` where no browser starts."""
        return BrowserPage(self._portal, self._call(self._open, width, height))

    def close(self) -> None:
        with suppress(Exception):  # it may be gone already
            self._portal.call(self._end)

    def _call(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
        try:
            return self._portal.call(function, *arguments)
        except Exception as error:
            raise InfrastructureError(f"the browser does not start: {named_reason(error)}") from error

    async def _open(self, width: int, height: int) -> Page:
        from playwright.async_api import async_playwright

        if self._playwright is None:
            self._playwright = await async_playwright().start()
        if self._chromium is None or not self._chromium.is_connected():
            self._chromium = await self._playwright.chromium.launch(executable_path=executable(), args=list(FLAGS))
        context = await self._chromium.new_context(viewport={"width": width, "height": height}, offline=True)
        context.set_default_timeout(ACTION_MS)
        context.set_default_navigation_timeout(OPEN_MS)
        return await context.new_page()

    async def _end(self) -> None:
        if self._chromium is not None:
            await self._chromium.close()
        if self._playwright is not None:
            await self._playwright.stop()


class BrowserPage:
    """One page. What an element refuses raises `RuntimeError`, which is told to the agent; a page or browser that is
    gone raises `InfrastructureError`."""

    def __init__(self, portal: BlockingPortal, page: Page) -> None:
        self._portal, self._page = portal, page
        self.is_lost = False
        """Is it of no more use?"""

    def open(self, url: str) -> None:
        self._do(self._page.goto, url)

    def run(self, script: str, argument: Any = None) -> Any:
        """What a function of JavaScript returns."""
        return self._do(self._page.evaluate, script, argument)

    def wait_for(self, script: str) -> None:
        async def waited() -> None:
            await self._page.wait_for_function(script, polling=POLL_MS)

        self._do(waited)

    def click(self, element: int) -> None:
        self._on(element, self._page.locator(_selector(element)).click)

    def fill(self, element: int, text: str) -> None:
        self._on(element, self._page.locator(_selector(element)).fill, text)

    def choose(self, element: int, option: str) -> None:
        async def chosen() -> None:
            await self._page.locator(_selector(element)).select_option(label=option)

        self._on(element, chosen)

    def press(self, key: str) -> None:
        self._do(self._page.keyboard.press, key)

    def _on(self, element: int, action: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> None:
        if not self._do(self._page.locator(_selector(element)).count):
            raise RuntimeError(f"there is no element [{element}] on the page")
        self._do(action, *arguments, refusal=f"element [{element}] does not take that")

    def _do(self, action: Callable[..., Coroutine[Any, Any, Any]], *arguments: object, refusal: str = "") -> Any:
        from playwright.async_api import Error

        try:
            return self._portal.call(action, *arguments)
        except Error as error:
            browser = self._page.context.browser
            if refusal and not self._page.is_closed() and browser is not None and browser.is_connected():
                raise RuntimeError(refusal) from None
            self.is_lost = True
            raise InfrastructureError(f"the browser fails: {error.message.splitlines()[0][:200]}") from error


def executable() -> str | None:
    """The browser: what the environment names, or the system's; None where there is none."""
    return os.environ.get(CHROMIUM) or shutil.which("chromium") or shutil.which("google-chrome")


def browser_problem() -> str:
    """Why no browser can be used on this machine; empty where one can be tried."""
    return "" if executable() else "apt-get install chromium, or playwright install chromium and set FLYWHEEL_CHROMIUM"


def check_browser() -> None:
    """Raises `PrerequisiteError` where there is none."""
    if problem := browser_problem():
        raise PrerequisiteError(f"there is no browser: {problem}")


def _selector(element: int) -> str:
    return f'[{MARK}="{element}"]'
