"""How an observation is rendered for chat models, and how their answers are parsed.

The words of an observation can be read back, which is how `flywheel serve-policy` understands a dialogue: sections that
begin with `[name]` at the start of a line; lines of the text itself that begin with `[` or a backslash get a backslash.

An answer is `Thought: …`, `Subgoal: …` and `Action: …`, each on a line of its own; only the action is needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from flywheel.environments.protocol import Observation

FEEDBACK, DOCUMENT, VIEW, LOCATION, STATE, FINISH, ACTIONS, AUDIT = (
    "feedback",
    "document",
    "view",
    "location",
    "state",
    "finish",
    "actions",
    "audit",
)
STOP = "stop"
"""What a model answers as its action when it is done and the environment has no action for that."""
_SECTION = re.compile(r"^\[([a-z]+)\] ?", re.MULTILINE)
_SPECIAL = re.compile(r"^(?=[\[\\])", re.MULTILINE)
_ESCAPED = re.compile(r"^\\", re.MULTILINE)
_FIELD = re.compile(r"^[\s*_>#-]*(thought|subgoal|action)[*_]*\s*:[*_]*\s*(.*?)\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer, read. `subgoal` is empty where none was named."""

    action: str
    subgoal: str = ""
    thought: str = ""


def render_observation(observation: Observation, *, audit: str = "", whole: bool = False) -> str:
    """An observation as text; `whole` adds what only another Flywheel needs."""
    parts = [(FEEDBACK, observation.feedback), (DOCUMENT, observation.document), (VIEW, observation.text)]
    if whole:
        parts += [(LOCATION, observation.location), (STATE, observation.state_key), (FINISH, observation.finish or "")]
    parts.append((AUDIT, audit))
    lines = [f"[{name}] {_SPECIAL.sub(_backslash, text)}" for name, text in parts if text or name == VIEW]
    if observation.valid_actions is not None:
        lines.append(f"[{ACTIONS}]")
        lines += [f"- {_one_line(action)}" for action in observation.valid_actions]
    return "\n".join(lines)


def parse_observation(text: str) -> tuple[Observation, str]:
    """The observation of a text that was rendered with `whole`, and an auditor's reason. Other text is a view."""
    marks = list(_SECTION.finditer(text))
    if not marks or marks[0].start() != 0:
        return Observation(text), ""
    ends = [*(mark.start() - 1 for mark in marks[1:]), len(text)]
    sections = {mark.group(1): text[mark.end() : end] for mark, end in zip(marks, ends, strict=True)}
    fields = {
        name: _ESCAPED.sub("", sections.get(name, ""))
        for name in (FEEDBACK, DOCUMENT, VIEW, LOCATION, STATE, FINISH, AUDIT)
    }
    actions = None
    if ACTIONS in sections:
        actions = tuple(_many_lines(line[2:]) for line in sections[ACTIONS].split("\n") if line.startswith("- "))
    observation = Observation(
        text=fields[VIEW],
        feedback=fields[FEEDBACK],
        document=fields[DOCUMENT],
        location=fields[LOCATION],
        state_key=fields[STATE],
        valid_actions=actions,
        finish=fields[FINISH] or None,
    )
    return observation, fields[AUDIT]


def render_answer(answer: ParsedAnswer) -> str:
    """An answer as text, which `parse_answer` reads back."""
    parts = [("Thought", answer.thought), ("Subgoal", answer.subgoal), ("Action", answer.action)]
    return "\n".join(f"{name}: {_one_line(text)}" for name, text in parts if text or name == "Action")


def parse_answer(text: str, valid: tuple[str, ...] | None = None) -> ParsedAnswer | None:
    """What an answer says, or None if no action can be found in it. An action is spelt as the environment spells it."""
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        if match := _FIELD.match(line):
            fields.setdefault(match.group(1).lower(), match.group(2))
    bare = text.strip()
    action = fields.get("action") or (bare if valid and _spelt(bare, valid) in valid else "")
    if not action:
        return None
    spelt = _spelt(_many_lines(action), valid or ())
    return ParsedAnswer(spelt, _many_lines(fields.get("subgoal", "")), _many_lines(fields.get("thought", "")))


def _spelt(action: str, valid: tuple[str, ...]) -> str:
    """As the environment spells it, whatever the case, the quotes or a full stop; else as it is."""
    if action in valid:
        return action
    plain = action.strip(" `'\"*.-").casefold()
    return next((option for option in valid if option.casefold() == plain), action)


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _many_lines(text: str) -> str:
    letters = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}
    return re.sub(r"\\[\\nr]", lambda match: letters[match.group()], text)


def _backslash(_: re.Match[str]) -> str:
    return "\\"
