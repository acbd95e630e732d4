"""BabyAI (Chevalier-Boisvert et al., arXiv 1810.08272) for the Gymnasium adapter: what the agent sees in words, and the
bot that ships with it as an expert which can be asked from any state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

UNSEEN = frozenset({"unseen", "empty", "wall", "floor"})
"""What is not worth a word."""


def text(environment: Any, seen: dict[str, Any]) -> str:
    """The mission, the things in view by where they lie from the agent's place, and what is right in front of it."""
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

    image = seen["image"]
    width, depth = image.shape[:2]
    things = []
    for column in range(width):
        for row in range(depth):
            kind = IDX_TO_OBJECT[int(image[column][row][0])]
            if kind in UNSEEN:
                continue
            ahead, side = depth - 1 - row, column - width // 2
            beside = f" {abs(side)} {'left' if side < 0 else 'right'}" if side else ""
            things.append(f"{IDX_TO_COLOR[int(image[column][row][1])]} {kind} {ahead} ahead{beside}")
    front = IDX_TO_OBJECT[int(image[width // 2][depth - 2][0])]
    return f"Mission: {seen['mission']}. You see: {', '.join(sorted(things)) or 'nothing'}. In front: {front}."


def expert(environment: Any) -> Callable[[int | None], tuple[int, str]]:
    """BabyAI's bot, which plans anew from wherever it has got to; its subgoal is the thing that it makes for."""
    from minigrid.core.actions import Actions
    from minigrid.utils.baby_ai_bot import BabyAIBot

    bot: Any = BabyAIBot(environment.unwrapped)  # type: ignore[no-untyped-call]

    def advise(last: int | None) -> tuple[int, str]:
        action = bot.replan(None if last is None else Actions(last))
        described = (goal.datum for goal in bot.stack if hasattr(goal.datum, "color") and hasattr(goal.datum, "type"))
        goal = next(described, None)
        words = [] if goal is None else [word for word in (goal.color, goal.type) if word]
        return int(action), f"go to the {' '.join(words)}" if words else ""

    return advise
