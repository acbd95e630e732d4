"""Consistent renaming: the same episode with its things called by each other's names.

A small student learns by heart which thing goes with which deed in the training tasks, and fails where held-out
tasks pair them otherwise. Renaming breaks that shortcut: only what the context says can tell what to do. A renamed
row keeps every marker, template and position of the original; names alone change places, everywhere at once.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from flywheel.agents.prompts import Piece, Window
from flywheel.distill.tokenizer import named_things
from flywheel.trajectory import Trajectory


def exchangeable_names(trajectories: Sequence[Trajectory]) -> list[str]:
    """Things that the actions name and that some documents mention while others do not.

    What every recipe or none speaks of (`meal`, `fridge`) has a fixed part in the world; the rest are instances.
    """
    names = named_things({step.action for one in trajectories for step in one.steps if step.trainable})
    documents = {step.note for one in trajectories for step in one.steps if step.note}
    mentions: Counter[str] = Counter()
    for document in documents:
        lines = set(document.splitlines())
        mentions.update(name for name in names if name in lines)
    return [name for name in names if 0 < mentions[name] < len(documents)]


def shuffled(names: Sequence[str], chance: random.Random) -> dict[str, str]:
    """A random permutation of the names."""
    return dict(zip(names, chance.sample(list(names), len(names)), strict=True))


def renamed(windows: Sequence[Window], mapping: Mapping[str, str]) -> list[list[Piece]]:
    """The pieces of each window with every name replaced at once."""
    if not mapping:
        return [window.pieces for window in windows]
    longest_first = sorted(mapping, key=lambda name: (-len(name), name))
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
    return [
        [replace(piece, text=pattern.sub(lambda found: mapping[found.group()], piece.text)) for piece in window.pieces]
        for window in windows
    ]
