"""Data augmentation by consistent renaming: the same episode with the names of its objects exchanged.

A small student learns by heart which thing goes with which deed in the training tasks, and fails where held-out
tasks pair them otherwise. Renaming breaks that shortcut: only what the context says can tell what to do. A renamed
row keeps every marker, template and position of the original; names alone change places, everywhere at once.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from flywheel.agents.contexts.prompts import Piece, Window
from flywheel.policies.tokenizer import LONGEST_NAME, SHORTEST_NAME
from flywheel.trajectory import Trajectory

COPIED = 0.9
"""Share of the calls that name a thing in which it was read before, so that any other thing could stand for it."""
CONSTANT = 0.05
"""Share of the episodes whose agents write a number, from which it is one of the world's, as a rate or a limit."""

_NUMBER = re.compile(r"\b[1-9]\d+\b")


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


def exchangeable_values(trajectories: Iterable[Trajectory]) -> tuple[list[list[str]], list[str]]:
    """(things that agents' calls name and that they had read before, by the argument in which they stand: the items of
    orders, the streets of addresses; numbers that many of them write). Which of the things it was teaches nobody."""
    named: defaultdict[str, Counter[str]] = defaultdict(Counter)
    copied: defaultdict[str, Counter[str]] = defaultdict(Counter)
    written: Counter[str] = Counter()
    episodes = 0
    for trajectory in trajectories:
        read, numbers = "", set[str]()
        for step in trajectory.steps:
            read += step.observation
            for call in step.output.tool_calls if step.output else ():
                numbers |= set(_NUMBER.findall(call.arguments))
                for argument, name in _named(call.arguments):
                    named[argument][name] += 1
                    copied[argument][name] += name in read
        written.update(numbers)
        episodes += 1
    groups = (
        [name for name, count in names.items() if copied[argument][name] >= COPIED * count]
        for argument, names in sorted(named.items())
    )
    constants = sorted(number for number, count in written.items() if count >= max(2, CONSTANT * episodes))
    return [sorted(group) for group in groups if len(group) > 1], constants


def _named(arguments: str) -> Iterator[tuple[str, str]]:
    """(argument, what it names), words without their numbers."""
    try:
        given = json.loads(arguments)
    except ValueError:
        return
    for argument, value in given.items() if isinstance(given, dict) else ():
        for part in re.split(r"\d+", value) if isinstance(value, str) else ():
            if SHORTEST_NAME <= len(name := part.strip()) <= LONGEST_NAME:
                yield argument, name


def shuffled(groups: Sequence[Sequence[str]], chance: random.Random) -> dict[str, str]:
    """A random permutation of the names of each group."""
    pairs: dict[str, str] = {}
    for names in groups:
        pairs |= zip(names, chance.sample(list(names), len(names)), strict=True)
    return pairs


def renumbered(windows: Sequence[Window], constants: Collection[str], chance: random.Random) -> dict[str, str]:
    """Other numbers for those, of two digits or more, that the agent copied from what it read, and that are no
    `constants`: which order it was teaches nobody."""
    pieces = [piece for window in windows for piece in window.pieces]
    written, read = (
        {number for piece in pieces if piece.target is target for number in _NUMBER.findall(piece.text)}
        for target in (True, False)
    )
    mapping: dict[str, str] = {}
    for number in sorted((written & read).difference(constants)):
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

    def swapped(text: str) -> str:
        return pattern.sub(lambda match: mapping[match.group()], text)

    return [
        [
            replace(
                piece,
                text=swapped(piece.text),
                messages=tuple(replace(message, content=swapped(message.content)) for message in piece.messages),
            )
            for piece in window.pieces
        ]
        for window in windows
    ]
