"""A counter behind OpenReward's own server, for the object that TRL's integration makes of it."""

from __future__ import annotations

import os
import sys
from typing import Any

from openreward.environments import Environment, Server, TextBlock, ToolOutput, tool
from pydantic import BaseModel


class Amount(BaseModel):
    amount: int


class Counter(Environment):
    def __init__(self, task_spec: dict[str, Any], secrets: Any = None) -> None:
        super().__init__(task_spec, secrets or {})
        self.value, self.goal = task_spec["start"], task_spec["goal"]

    async def get_prompt(self) -> list[TextBlock]:
        return [TextBlock(text=f"Reach {self.goal} from {self.value}.")]

    @classmethod
    def list_tasks(cls, split: str) -> list[dict[str, Any]]:
        return [{"start": start, "goal": start + 3} for start in range(3)]

    @classmethod
    def list_splits(cls) -> list[str]:
        return ["train"]

    @tool
    async def add(self, given: Amount) -> ToolOutput:
        """Add to the counter."""
        self.value += given.amount
        over = self.value >= self.goal
        reward = float(self.value == self.goal) if over else None
        return ToolOutput(blocks=[TextBlock(text=f"value={self.value}")], reward=reward, finished=over)


def environment() -> Any:
    """What TRL makes of the server at OPENREWARD_API_URL."""
    from trl.experimental.openreward import OpenRewardSpec

    return OpenRewardSpec(os.environ["OPENREWARD_API_URL"], split="train").environment_factory()


if __name__ == "__main__":
    Server([Counter]).run(host="127.0.0.1", port=int(sys.argv[1]))
