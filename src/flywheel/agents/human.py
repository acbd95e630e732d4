"""A person at the terminal, one episode at a time: to look at a task, or to debug an environment."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from flywheel.agents.policy import Decision, Past, Turn
from flywheel.environments.protocol import Observation
from flywheel.trajectory import StopReason, Task

PROMPT = "number or text; empty line: stop > "


class Human:
    """Shows what is seen and reads what to do: the number of a listed action, or any text."""

    name, policy_id, version = "human", "human", "1"

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        print(f"\n=== {task.task_id} ===\n{task.instruction}", file=sys.stderr)

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [self._ask(turn) for turn in turns]

    def _ask(self, turn: Turn) -> Decision:
        seen = turn.observation
        for text in (seen.feedback, seen.document if seen.document != seen.feedback else "", seen.text, turn.audit):
            if text:
                print(text, file=sys.stderr)
        for number, action in enumerate(seen.valid_actions or ()):
            print(f"  {number:3} {action}", file=sys.stderr)
        print(PROMPT, end="", file=sys.stderr, flush=True)
        return _chosen(sys.stdin.readline().strip(), seen)


def _chosen(text: str, seen: Observation) -> Decision:
    valid = seen.valid_actions or ()
    if text.isdecimal() and int(text) < len(valid):
        return Decision(valid[int(text)])
    return Decision(text) if text else Decision(None, stop=StopReason.GAVE_UP)
