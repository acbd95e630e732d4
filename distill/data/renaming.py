"""Data augmentation by consistent renaming: the same episode with the names of its objects exchanged.

A small student learns by heart which thing goes with which deed in the training tasks, and fails where held-out
tasks pair them otherwise. Renaming breaks that shortcut: only what the context says can tell what to do. A renamed
row keeps every marker, template and position of the original; names alone change places, everywhere at once.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from flywheel.agents.contexts.prompts import Piece, Window

_NUMBER = re.compile(r"\b[1-9]\d{2,}\b")


def exchangeable_names(names: Sequence[str], documents: Iterable[str]) -> list[str]:
    """Things that actions name and that some documents mention while others do not. Each document is read once.

    What every document or none mentions has a fixed part in the world; the rest are instances.
    """
    mentions: Counter[str] = Counter()
    count = 0
    for document in documents:
        lines = set(document.splitlines())
        mentions.update(name for name in names if name in lines)
        count += 1
    return [name for name in names if 0 < mentions[name] < count]


def shuffled(names: Sequence[str], chance: random.Random) -> dict[str, str]:
    """A random permutation of the names."""
    return dict(zip(names, chance.sample(list(names), len(names)), strict=True))


def renumbered(windows: Sequence[Window], chance: random.Random) -> dict[str, str]:
    """Other numbers for those, of three digits or more, that the agent copied from what it read: which order it was
    teaches nobody."""
    pieces = [piece for window in windows for piece in window.pieces]
    said, read = (
        {number for piece in pieces if piece.target is target for number in _NUMBER.findall(piece.text)}
        for target in (True, False)
    )
    mapping: dict[str, str] = {}
    for number in sorted(said & read):
        other = number
        while other in read or other in mapping.values():
            other = str(chance.randrange(10 ** (len(number) - 1), 10 ** len(number)))
        mapping[number] = other
    return mapping


def renamed(windows: Sequence[Window], mapping: Mapping[str, str]) -> list[list[Piece]]:
    """The pieces of each window with every name replaced at once."""
    if not mapping:
        return [window.pieces for window in windows]
    longest_first = sorted(mapping, key=lambda name: (-len(name), name))
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, longest_first))})\b")
    return [
        [replace(piece, text=pattern.sub(lambda match: mapping[match.group()], piece.text)) for piece in window.pieces]
        for window in windows
    ]
