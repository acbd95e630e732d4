"""A house behind tools: a word lies behind a door, and the answer is what is read there."""

from __future__ import annotations

import itertools
import random
from typing import Any

NAMES = [
    *("alder", "birch", "cedar", "elm", "fir", "hazel"),
    *("larch", "maple", "oak", "pine", "rowan", "yew"),
]
WORDS = ["amber", "azure", "black", "brown", "coral", "green", "grey", "ivory", "olive", "pearl", "pink", "red"]


class House:
    """TRL's contract."""

    def reset(self, house: str, door: str, word: str, **columns: Any) -> None:
        self.right, self.word, self.read = (house, door), word, False

    def look(self, house: str, door: str) -> str:
        """Look behind a door.

        Args:
            house: The house's name.
            door: The door's name.
        """
        self.read = (house, door) == self.right
        return f"It says: {self.word}" if self.read else "There is nothing."

    def get_reward(self) -> float:
        return float(self.read)


def tasks() -> list[dict[str, Any]]:
    """Rows of a list, in an order that says nothing."""
    rows = [
        {
            "id": f"{house}-{door}-{word}",
            "instruction": f"Go to the house {house} and say the word behind the door {door}.",
            "data": {"house": house, "door": door, "word": word},
        }
        for (house, door), word in itertools.product(itertools.permutations(NAMES, 2), WORDS)
    ]
    random.Random(0).shuffle(rows)
    return rows
