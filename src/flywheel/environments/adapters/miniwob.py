"""MiniWoB++ (Liu et al., arXiv 1802.08802) in a real Chromium, its pages chained to longer episodes.

A page is solved with a raw reward of 1, and no less: time does not count, and a half-right answer is none.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal

from flywheel.environments.adapters.browser import Browser, BrowserPage, check_browser
from flywheel.environments.adapters.miniwob_pages import BEGIN, EXPERTS, READY, VIEW, PageView, advised
from flywheel.environments.capabilities import Advice
from flywheel.environments.seeds import check_seed, seeds_of
from flywheel.environments.tool_environment import ToolEnvironment, settings_of
from flywheel.environments.tools import Toolbox, tool
from flywheel.errors import ConfigError, PrerequisiteError
from flywheel.trajectory import Split, Task

NAME = "miniwob"
PARAMETERS = ("pages", "chain")
WIDTH, HEIGHT = 500, 400


ELEMENT = {"type": "integer", "minimum": 1}
TOOLS = (
    tool("click", "Click an element by its number.", element=ELEMENT),
    tool("fill", "Put a text into a field, in place of what is there.", element=ELEMENT, text={"type": "string"}),
    tool("choose", "Choose an option of a list.", element=ELEMENT, option={"type": "string"}),
    tool("press", "Press a key.", key={"enum": ["Enter", "Tab", "Escape", "Space", "ArrowDown", "ArrowUp"]}),
)


class MiniwobSession:
    """One chain of pages. Implements `tool_environment.Session`."""

    toolbox = Toolbox(TOOLS)

    def __init__(self, page: BrowserPage, html: Path, task: Task) -> None:
        self._page, self._html, self._seed = page, html, task.seed
        self._names: list[str] = json.loads(task.data)["pages"]
        self._place = 0
        self._solved = 0
        self._begin_page()
        self.opening = self._shown()

    @property
    def over(self) -> bool:
        return self._place == len(self._names)

    @property
    def name(self) -> str:
        """The page's."""
        return self._names[self._place]

    def call(self, name: str, arguments: dict[str, Any]) -> str:
        page = self._page
        actions: dict[str, Callable[..., None]] = {
            "click": page.click,
            "fill": page.fill,
            "choose": page.choose,
            "press": page.press,
        }
        actions[name](**arguments)
        done, raw = self._look()
        if not done:
            return self.view.text
        self._solved += raw == 1
        self._place += 1
        if self.over:
            return "That was the last page."
        self._begin_page()
        return self._shown()

    def score(self, answer: str | None) -> float:
        return self._solved / len(self._names)

    def close(self) -> None:
        """The page stays, for the next episode."""

    def _begin_page(self) -> None:
        self._page.open((self._html / f"{self.name}.html").as_uri())
        self._page.run(BEGIN, f"{self._seed}/{self._place}")
        self._page.wait_for(READY)
        self._look()

    def _look(self) -> tuple[bool, float]:
        """(is the page over?, its raw reward); what it shows is the view from now on."""
        state = self._page.run(VIEW)
        self.view = PageView(state["goal"], tuple(state["lines"]))
        return bool(state["done"]), float(state["raw"])

    def _shown(self) -> str:
        return f"Page {self._place + 1} of {len(self._names)}. {self.view.text}"


class MiniwobEnvironment(ToolEnvironment):
    """Chains one after the other, in a page of its own. Implements `AdvisesLive`."""

    def __init__(self, browser: Browser, html: Path) -> None:
        super().__init__(self._begin_session, success=1.0)
        self._browser, self._html = browser, html
        self._page: BrowserPage | None = None

    def advise(self) -> Advice | None:
        session = self._session
        assert isinstance(session, MiniwobSession)
        action = advised(session.name, session.view)
        return Advice(action, session.name.replace("-", " ")) if action else None

    def _begin_session(self, task: Task) -> MiniwobSession:
        if self._page is None or self._page.is_lost:
            self._page = self._browser.page(WIDTH, HEIGHT)
        return MiniwobSession(self._page, self._html, task)


class MiniwobWorld:
    """Chains of pages by seed. Implements `MakesTasks` and `FindsTasks`."""

    def __init__(self, browser: Browser, html: Path, parameters: str, pages: Sequence[str], chain: int) -> None:
        self._browser, self._html, self._parameters, self._pages, self._chain = browser, html, parameters, pages, chain
        self._environments: list[MiniwobEnvironment] = []

    def environments(self, count: int) -> Sequence[MiniwobEnvironment]:
        while len(self._environments) < count:
            self._environments.append(MiniwobEnvironment(self._browser, self._html))
        return self._environments[:count]

    def tasks(self, split: Split, start: int, count: int) -> tuple[Task, ...]:
        return tuple(self.find(split, seed) for seed in seeds_of(split, start, count))

    def find(self, split: Split, seed: int) -> Task:
        check_seed(split, seed)
        pages = random.Random(seed).choices(self._pages, k=self._chain)
        instruction = (
            f"Do what each of the {self._chain} pages asks for." if self._chain > 1 else "Do what the page asks for."
        )
        data, family = json.dumps({"pages": pages}), pages[0] if self._chain == 1 else ""
        return Task(NAME, self._parameters, split, seed, instruction, family=family, data=data)


@contextmanager
def open_world(parameters: str) -> Iterator[MiniwobWorld]:
    """`pages`: names of MiniWoB++'s pages, those with an expert if not told; `chain`: how many make an episode.

    Raises `PrerequisiteError` without the package or a browser.
    """
    settings = settings_of(parameters, NAME, PARAMETERS)
    package, playwright = find_spec("miniwob"), find_spec("playwright")
    if package is None or playwright is None or package.origin is None:
        raise PrerequisiteError("miniwob needs a package: pip install 'trajectory-flywheel[browser]'")
    check_browser()
    html = Path(package.origin).parent / "html" / "miniwob"
    pages, chain = settings.get("pages") or list(EXPERTS), settings.get("chain", 5)
    if unknown := [page for page in pages if not (html / f"{page}.html").is_file()]:
        raise ConfigError(f"MiniWoB++ has no page '{unknown[0]}'")
    if not isinstance(chain, int) or chain < 1:
        raise ConfigError(f"environment.parameters.chain is {chain}; it is the number of pages of an episode")
    with start_blocking_portal("asyncio") as portal:
        browser = Browser(portal)
        try:
            yield MiniwobWorld(browser, html, parameters, pages, chain)
        finally:
            browser.close()
