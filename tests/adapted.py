"""What a user writes beside the adapters: an expert, tools and scores."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any


def broken_expert(environment: Any) -> Any:
    def advise(last: int | None) -> int:
        raise RuntimeError("lost the way")

    return advise


def add(first: int, second: int) -> int:
    """Add two numbers.

    Args:
        first: One number.
        second: Another one.
    """
    return first + second


def divide(first: int, second: int) -> float:
    """Divide two numbers.

    Args:
        first: What is divided.
        second: By what.
    """
    return first / second


def undocumented(first: int) -> int:
    return first


def right_sum(data: dict[str, Any], answer: str | None, calls: list[tuple[str, dict[str, Any]]]) -> float:
    return float(answer == str(data["sum"]) and any(name == "add" for name, _ in calls))


def no_score(data: Any, answer: str | None, calls: Any) -> float:
    raise KeyError("sum")


class Counter:
    """TRL's contract: a counter to be brought to a goal."""

    def __init__(self) -> None:
        self.value, self.goal, self.done = 0, 0, False

    def reset(self, goal: int, **columns: Any) -> str:
        self.value, self.goal, self.done = 0, goal, False
        return f" Reach {goal}."

    async def add(self, amount: int) -> str:
        """Add to the counter.

        Args:
            amount: How much.
        """
        if amount < 1:
            raise ValueError("amount must be positive")
        self.value += amount
        self.done = self.value >= self.goal
        return f"value={self.value}"

    def get_reward(self) -> float:
        return float(self.value == self.goal)


def git_setup(data: dict[str, Any], folder: Path) -> None:
    """A repository with a file that nobody has added."""
    subprocess.run(["git", "init", "-q", "-b", "main", str(folder / "repository")], check=True)
    for name, value in (("user.name", "Ada"), ("user.email", "ada@localhost")):
        subprocess.run(["git", "-C", str(folder / "repository"), "config", name, value], check=True)
    (folder / "repository" / data["file"]).write_text("hello\n")


def git_score(data: dict[str, Any], folder: Path, answer: str | None) -> float:
    """Is the file committed, under the right message?"""
    shown = subprocess.run(
        ["git", "-C", str(folder / "repository"), "log", "--format=%s", "--", data["file"]],
        capture_output=True,
        text=True,
        check=False,
    )
    return float(shown.stdout.strip() == data["message"])
