"""MiniWoB++'s pages (Liu et al., arXiv 1802.08802) as lines of text, and an expert for some of them.

The expert reads nothing but what an agent is shown, from any state: it recovers from whatever was done before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

VIEW = """
() => {
  const plain = text => (text || "").replace(/\\s+/g, " ").trim();
  const shown = node => node.getClientRects().length > 0 && getComputedStyle(node).visibility !== "hidden";
  const pointed = node => getComputedStyle(node).cursor === "pointer";
  const acts = node => node.matches("a, button, input, select, textarea, [onclick], [role=button], [role=tab]")
    || (pointed(node) && !pointed(node.parentElement));
  const kinds = { a: "link", select: "list", text: "field", textarea: "field", submit: "button" };
  const lines = [];
  let count = 0;
  const described = node => {
    node.dataset.flywheel = ++count;
    const tag = node.tagName.toLowerCase(), kind = tag === "input" ? node.type : tag;
    const isButton = ["submit", "button"].includes(kind), isForm = ["input", "select", "textarea"].includes(tag);
    const label = plain(node.labels && node.labels.length ? node.labels[0].innerText : "");
    const name = isButton ? plain(node.innerText || node.value || node.id)
      : isForm ? label || node.placeholder || node.id : plain(node.innerText || node.id);
    const words = [`[${count}]`, kinds[kind] || kind, name];
    if (["checkbox", "radio"].includes(kind)) words.push(node.checked ? "(chosen)" : "");
    else if (tag === "select") {
      const options = [...node.options].map(option => plain(option.text));
      words.push(`= ${options[node.selectedIndex] || ""} of ${options.join(", ")}`);
    } else if (isForm && !isButton) words.push(`= ${JSON.stringify(node.value)}`);
    if (["aria-selected", "aria-expanded"].some(state => node.getAttribute(state) === "true")) words.push("(open)");
    if (node.disabled) words.push("(disabled)");
    return words.filter(Boolean).join(" ");
  };
  const walk = node => {
    if (node.nodeType === Node.TEXT_NODE) {
      if (plain(node.textContent)) lines.push(plain(node.textContent));
    } else if (node.nodeType === Node.ELEMENT_NODE && shown(node) && !node.matches("script, style")) {
      if (acts(node)) lines.push(described(node));
      else if (node.matches("label") && node.control && shown(node.control)) [...node.children].forEach(walk);
      else node.childNodes.forEach(walk);
    }
  };
  document.querySelectorAll("[data-flywheel]").forEach(node => delete node.dataset.flywheel);
  walk(document.querySelector("#area") || document.body);
  const goal = plain((document.querySelector("#query") || {}).innerText);
  return { goal, lines, done: WOB_DONE_GLOBAL, raw: WOB_RAW_REWARD_GLOBAL };
}
"""
"""JavaScript: the goal of a page, what is shown line by line with the elements that can be acted on numbered, whether
it is over, and its reward before any decay by time."""
BEGIN = """
seed => {
  core.endEpisode(0);
  core.EPISODE_MAX_TIME = 3.6e6;
  if (window.jQuery) jQuery.fx.off = true;
  Math.seedrandom(seed);
  core.startEpisodeReal();
}
"""
READY = "() => WOB_TASK_READY"
_ELEMENT = re.compile(r"\[(\d+)\] (\w+) ?(.*)")


@dataclass(frozen=True, slots=True)
class Element:
    """A line that can be acted on. `text`: its name and its state."""

    number: int
    kind: str
    text: str

    def is_named(self, name: str) -> bool:
        """Has it this name, whatever its state?"""
        return self.text == name or self.text.startswith((f"{name} (", f"{name} ="))


@dataclass(frozen=True, slots=True)
class PageView:
    """What is shown of a page."""

    goal: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n".join([f"Goal: {self.goal}", *self.lines])

    def elements(self, *kinds: str) -> list[Element]:
        """Those of some kinds; all if none is named."""
        elements = (
            Element(int(match[1]), match[2], match[3]) for line in self.lines if (match := _ELEMENT.match(line))
        )
        return [element for element in elements if not kinds or element.kind in kinds]

    def named(self, name: str, *kinds: str) -> Element | None:
        return next((element for element in self.elements(*kinds) if element.is_named(name)), None)


def click(element: Element) -> str:
    return f"click {json.dumps({'element': element.number})}"


def fill(element: Element, text: str) -> str:
    return f"fill {json.dumps({'element': element.number, 'text': text}, ensure_ascii=False)}"


def choose(element: Element, option: str) -> str:
    return f"choose {json.dumps({'element': element.number, 'option': option}, ensure_ascii=False)}"


Expert = Callable[[PageView], str | None]


def _click_named(pattern: str, *kinds: str) -> Expert:
    """Click what the goal names."""

    def expert(view: PageView) -> str | None:
        match = re.search(pattern, view.goal)
        element = view.named(match[1], *kinds) if match else None
        return click(element) if element else None

    return expert


def _submit(view: PageView) -> str | None:
    buttons = view.elements("button")
    return click(buttons[-1]) if buttons else None


def _choose_boxes(view: PageView) -> str | None:
    match = re.search(r"Select (.*) and click Submit", view.goal)
    wanted = [] if not match or match[1] == "nothing" else match[1].split(", ")
    for box in view.elements("checkbox", "radio"):
        if any(box.is_named(name) for name in wanted) != box.text.endswith("(chosen)"):
            return click(box)
    return _submit(view)


def _choose_list(view: PageView) -> str | None:
    match, lists = re.search(r"Select (.*) from the list", view.goal), view.elements("list")
    if not match or not lists:
        return None
    is_chosen = f"= {match[1]} of " in lists[0].text
    return _submit(view) if is_chosen else choose(lists[0], match[1])


def _fill_in(view: PageView, *values: str) -> str | None:
    """The fields in their order, then the button."""
    for field, value in zip(view.elements("field", "password"), values, strict=False):
        if not field.text.endswith(f"= {json.dumps(value, ensure_ascii=False)}"):
            return fill(field, value)
    return _submit(view)


def _quoted(view: PageView) -> str | None:
    return _fill_in(view, *re.findall(r'"([^"]*)"', view.goal))


def _twice(view: PageView) -> str | None:
    return _fill_in(view, *re.findall(r'"([^"]*)"', view.goal)[:1] * 2)


def _from_table(view: PageView) -> str | None:
    match = re.search(r"value of (.*) into", view.goal)
    if not match or match[1] not in view.lines:
        return None
    return _fill_in(view, view.lines[view.lines.index(match[1]) + 1])


def _focus(view: PageView) -> str | None:
    match, fields = re.search(r"the (\d+)", view.goal), view.elements("field")
    return click(fields[int(match[1]) - 1]) if match and int(match[1]) <= len(fields) else None


def _behind(kind: str) -> Expert:
    """Open one section after the other until the link is there."""

    def expert(view: PageView) -> str | None:
        match, sections = re.search(r'"([^"]*)"', view.goal), view.elements(kind)
        if not match or not sections:
            return None
        if link := view.named(match[1], "span", "link"):
            return click(link)
        opened = next((place for place, each in enumerate(sections) if each.text.endswith("(open)")), -1)
        return click(sections[(opened + 1) % len(sections)])

    return expert


EXPERTS: dict[str, Expert] = {
    "click-button": _click_named(r'Click on the "(.*)" button', "button"),
    "click-link": _click_named(r'Click on the link "(.*)"', "span", "link"),
    "click-option": _choose_boxes,
    "click-checkboxes": _choose_boxes,
    "click-checkboxes-large": _choose_boxes,
    "choose-list": _choose_list,
    "enter-text": _quoted,
    "enter-password": _twice,
    "login-user": _quoted,
    "focus-text-2": _focus,
    "click-tab-2": _behind("li"),
    "click-collapsible-2": _behind("h3"),
    "read-table": _from_table,
}
"""Page → its expert."""


def advised(page: str, view: PageView) -> str | None:
    """What the expert of a page would do now; None where there is none, or where it is at a loss."""
    expert = EXPERTS.get(page)
    return expert(view) if expert else None
