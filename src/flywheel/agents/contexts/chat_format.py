"""How an observation is rendered for chat models, and how their answers are parsed.

The words of an observation can be read back (`flywheel.sections`), which is how `flywheel serve-policy` understands a
dialogue.

An answer is `Thought: …`, `Subgoal: …` and `Action: …`, each on a line of its own; only the action is needed. Where the
environment lists no actions, the action is the rest of the answer, word for word.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from flywheel.environments.protocol import Observation
from flywheel.sections import (
    AUDIT,
    DOCUMENT,
    FEEDBACK,
    VIEW,
    many_lines,
    one_line,
    parse_sections,
    render_sections,
)

LOCATION, STATE, FINISH, WHOLE = "location", "state", "finish", "whole"
STOP = "stop"
"""What a model answers as its action when it is done and the environment has no action for that."""
_FIELD = re.compile(r"^[\s*_>#-]*(thought|subgoal|action)[*_]*\s*:[*_]*\s*(.*?)\s*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """An answer, read. `subgoal` is empty where none was named."""

    action: str
    subgoal: str = ""
    thought: str = ""


def render_observation(observation: Observation, *, audit: str = "", whole: bool = False) -> str:
    """An observation as text; `whole` adds what only another Flywheel needs."""
    texts = {FEEDBACK: observation.feedback, DOCUMENT: observation.document, VIEW: observation.text}
    if whole:
        texts |= {LOCATION: observation.location, STATE: observation.state_key, FINISH: observation.finish or ""}
        texts |= {WHOLE: WHOLE if observation.whole else ""}
    return render_sections({**texts, AUDIT: audit}, observation.valid_actions)


def parse_observation(text: str) -> tuple[Observation, str]:
    """The observation of a text that was rendered with `whole`, and an auditor's reason. Other text is a view."""
    sections, actions = parse_sections(text)
    observation = Observation(
        text=sections.get(VIEW, ""),
        feedback=sections.get(FEEDBACK, ""),
        document=sections.get(DOCUMENT, ""),
        location=sections.get(LOCATION, ""),
        state_key=sections.get(STATE, ""),
        valid_actions=actions,
        whole=WHOLE in sections,
        finish=sections.get(FINISH) or None,
    )
    return observation, sections.get(AUDIT, "")


def render_answer(answer: ParsedAnswer, valid: tuple[str, ...] | None = None) -> str:
    """An answer as text, which `parse_answer` reads back. An action that nobody listed stands last, as it is."""
    lines = [("Thought", answer.thought), ("Subgoal", answer.subgoal)]
    action = answer.action if valid is None else one_line(answer.action)
    return "\n".join([*(f"{name}: {one_line(text)}" for name, text in lines if text), f"Action: {action}"])


def parse_answer(text: str, valid: tuple[str, ...] | None = None) -> ParsedAnswer | None:
    """What an answer says, or None if no action can be found in it.

    Among listed actions, one is spelt as the environment spells it. Where none are listed, all that follows `Action:`
    is the action, line breaks and backslashes included.
    """
    fields: dict[str, str] = {}
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if match := _FIELD.match(line):
            name, value = match.group(1).lower(), match.group(2)
            if name == "action" and valid is None:
                fields[name] = "\n".join([line[match.start(2) :], *lines[number + 1 :]]).strip()
                break
            fields.setdefault(name, value)
    bare = text.strip()
    action = fields.get("action") or (bare if valid and spelt(bare, valid) in valid else "")
    if not action:
        return None
    if valid is not None:
        action = spelt(many_lines(action), valid)
    return ParsedAnswer(action, many_lines(fields.get("subgoal", "")), many_lines(fields.get("thought", "")))


def spelt(action: str, valid: tuple[str, ...]) -> str:
    """As the environment spells it, whatever the case, the quotes or a full stop; else as it is."""
    if action in valid:
        return action
    plain = action.strip(" `'\"*.-").casefold()
    return next((option for option in valid if option.casefold() == plain), action)
