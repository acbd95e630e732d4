"""Prompts: rollouts and training rows build their contexts here, byte for byte the same.

A context is a list of pieces, each text with a flag: is it the agent's own words, hence a target of training?
Pieces are tokenised one by one, so a prefix of a context is always a prefix of its tokens.

    executor   header without documents · subgoal · (act · feedback)* · act done
    flat       header · (act · feedback)*
    planner    header · (view · task · document* · in view? · subgoal · outcome)*

The planner's next subgoal is what its task and its documents ask for, less what is done. A causal model cannot mark a
line of theirs as done where they stand before the deeds; restated behind the current view, their lines look back at the
deeds, and those that a finished subgoal says word for word are left out (docs/experiments/0013). Only what fits
`RESTATED` is restated; longer documents stay in the header. Lines of the documents that the view shows, and that no
finished subgoal names, are repeated last.

Where an environment answers nothing but shows something else than before, the view stands in place of the feedback.
Tokens are the budget: what the same location showed before in this window is not said again, sentence by sentence, but
for views that are whole ones at every step.
A window holds at most `window` decisions, then a new one starts with a fresh header: bounded, whatever the horizon. The
executor's is of one subgoal alone: what it was after before, and what the documents ask for, is the planner's business
(GLIDER, arXiv 2505.19761; docs/experiments/0013).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import lru_cache

from flywheel.agents.contexts.memory import Memory
from flywheel.environments.protocol import Observation
from flywheel.messages import Message

WORDING = 5
"""Counts the ways in which contexts have been worded. Who learned from another one acts as another version under this
one, and is distilled anew where it is asked for again."""
TASK, DOCUMENT, ROUTES, PAST, VIEW = "<|task|>", "<|document|>", "<|routes|>", "<|past|>", "<|view|>"
IN_VIEW = "<|in view|>"
SUBGOAL, ACT, FEEDBACK, OUTCOME, DONE, END = (
    "<|subgoal|>",
    "<|act|>",
    "<|feedback|>",
    "<|outcome|>",
    "<|done|>",
    "<|end|>",
)
PAD = "<|pad|>"
RESTATED = 2000
"""Characters of the task and the documents that stand behind each of the planner's views."""
MOST_IN_VIEW = 500
"""Characters of those lines of the documents that are repeated because the view shows them."""
_WORD = re.compile(r"\w+")
_SMALL_WORDS = frozenset({"a", "an", "and", "from", "in", "of", "on", "the", "to", "with"})
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
SPECIAL_TOKENS = (PAD, END, TASK, DOCUMENT, ROUTES, PAST, VIEW, IN_VIEW, SUBGOAL, ACT, FEEDBACK, OUTCOME, DONE)


class Role(StrEnum):
    """Which student reads the context."""

    PLANNER = "planner"
    EXECUTOR = "executor"
    FLAT = "flat"


class SubgoalOutcome(StrEnum):
    """How a subgoal ended."""

    DONE = "done"
    TIMEOUT = "timeout"
    """Its steps ran out."""
    STUCK = "stuck"
    """Nothing that was tried under it changed anything any more."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a context, with the marker before it and, where it `ends`, the end marker behind it.

    Markers are structure and the text is data: whatever it spells, no marker comes of it. `decision`: the step of which
    these are the agent's own words, or -1. `own`: are they its own words, learned from or not? `messages`, `tools`: the
    chat messages whose text this is and the tools that come with them (JSON), where it came as such; models with a chat
    template read these instead (`contexts.chat_template`).
    """

    text: str = ""
    target: bool = False
    decision: int = -1
    marker: str = ""
    ends: bool = False
    own: bool = False
    messages: tuple[Message, ...] = ()
    tools: str = ""

    @property
    def spelling(self) -> str:
        """As one would read it."""
        return f"{self.marker}{self.text}{END if self.ends else ''}"


def task_piece(observation: Observation) -> Piece:
    """The task of an agent that brings its own, prompt and all: what it was asked first."""
    return Piece(observation.text, marker=TASK, messages=observation.messages or (), tools=observation.tools or "")


def header(task: Piece, memory: Memory, later: Sequence[Piece] = ()) -> list[Piece]:
    """Task, documents, ways between locations and the recent past: everything a fresh window starts from, but for what
    stands `later` in it."""
    pieces = [piece for piece in _given(task, memory.documents) if piece not in later]
    if memory.routes:
        pieces.append(Piece(marker=ROUTES))
        pieces += [Piece(f"{location}, {action}, {to}.") for location, action, to in memory.routes]
    if memory.past:
        done, failed = memory.earlier
        summary = f"{done} done, {failed} failed. " if done + failed else ""
        pieces.append(Piece(summary, marker=PAST))
        pieces += [Piece(f"{entry}.") for entry in memory.past]
    return pieces


def restated(task: Piece, documents: Sequence[str], finished: Sequence[str] = ()) -> list[Piece]:
    """The task and the documents, as many of them as `RESTATED` holds: the task first, then the newest documents.

    Lines whose words all stand in one finished subgoal are done, and left out: of a task, too, that ends with a list
    of what is to be done.
    """
    task = replace(task, text=_left(task.text, finished) or task.text)
    given = _given(task, [_left(document, finished) for document in documents])
    room, kept = RESTATED, []
    for piece in [given[0], *given[:0:-1]]:
        if len(piece.text) <= room:
            room -= len(piece.text)
            kept.append(piece)
    return [piece for piece in given if piece in kept]


def _left(document: str, finished: Sequence[str]) -> str:
    """What a document still asks for."""
    done = list(map(_words, finished))
    lines = document.splitlines()
    return "\n".join(line for line in lines if not _words(line) or not any(_words(line) <= words for words in done))


@lru_cache(1 << 14)
def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower())) - _SMALL_WORDS


def lines_in_view(documents: Sequence[str], view: str, finished: Sequence[str]) -> list[Piece]:
    """Lines of the documents that stand in the view, whole words and any case, but in no finished subgoal: what is
    asked for, in reach, and not done. At most `MOST_IN_VIEW` characters of them, the first."""
    shown, done = view.casefold(), " \n ".join(finished).casefold()
    lines = dict.fromkeys(line.strip() for document in documents for line in document.splitlines())
    room, wanted = MOST_IN_VIEW, []
    for line in lines:
        if 0 < len(line) <= room and _stands(line.casefold(), shown) and not _stands(line.casefold(), done):
            room -= len(line)
            wanted.append(line)
    return [Piece(", ".join(wanted), marker=IN_VIEW)] if wanted else []


def _stands(line: str, text: str) -> bool:
    return line in text and bool(re.search(rf"(?<!\w){re.escape(line)}(?!\w)", text))


def _given(task: Piece, documents: Sequence[str]) -> list[Piece]:
    return [task, *(Piece(document, marker=DOCUMENT) for document in documents)]


def sentences(text: str) -> list[str]:
    return [part for part in _SENTENCE_END.split(text) if part]


@dataclass(slots=True)
class Window:
    """A growing context of one role. `decisions` counts what the agent decided since the header."""

    pieces: list[Piece]
    decisions: int = 0
    has_subgoal: bool = False
    _shown: dict[str, frozenset[str]] = field(default_factory=dict)

    def look(self, observation: Observation) -> None:
        """The current view, less what the last look at the same location showed, unless it is a whole one; its first
        sentence always stays."""
        self._show(VIEW, observation.text, observation)

    def restate(self, pieces: Sequence[Piece]) -> None:
        """Task and documents once more, near the decision that follows from them."""
        self.pieces += pieces

    def feedback(self, observation: Observation) -> None:
        """What the environment answered, less what was in view before."""
        self._show(FEEDBACK, observation.feedback, observation)

    def subgoal(self, text: str, *, own: bool = False, target: bool = False, decision: int = -1) -> None:
        """Add a subgoal: the planner's own words, context of the executor."""
        self.has_subgoal = True
        self.pieces.append(Piece(marker=SUBGOAL))
        self.pieces.append(Piece(text, target, decision, ends=True, own=own))

    def act(self, text: str, *, target: bool, decision: int) -> None:
        self.pieces.append(Piece(marker=ACT))
        self.pieces.append(Piece(text, target, decision, ends=True, own=True))

    def end_with(self, marker: str, *, target: bool, decision: int) -> None:
        """A marker in place of an action: the subgoal is done, or the episode ends."""
        self.pieces.append(Piece(marker=ACT))
        self.pieces.append(Piece("", target, decision, marker, ends=True, own=True))

    @property
    def chars(self) -> int:
        """Of all that is read."""
        return sum(len(piece.text) for piece in self.pieces)

    def shortened(self, task: Piece, memory: Memory, turns: int, chars: int) -> Window:
        """A fresh window of an agent's conversation: what it was asked, what it did since by name, and of the turns
        the newest, at most so many and of so many characters, but one at least. They are context and no targets."""
        pieces = [replace(piece, target=False, decision=-1) for piece in self.pieces]
        acts = [place for place, piece in enumerate(pieces) if piece.marker == ACT]
        while len(acts) > 1 and (len(acts) > turns or sum(len(piece.text) for piece in pieces[acts[0] :]) > chars):
            acts = acts[1:]
        forgotten = replace(memory, past=memory.past[: -len(acts)])
        return Window([*header(task, forgotten), *pieces[acts[0] :]], len(acts), self.has_subgoal)

    def branch(self, text: str) -> Window:
        """What would be read if this had been done instead; it alone is a target, and of no step that was taken."""
        past = [replace(piece, target=False, decision=-1) for piece in self.pieces]
        other = Window(past, self.decisions, self.has_subgoal)
        other.act(text, target=True, decision=-1)
        return other

    def outcome(self, outcome: SubgoalOutcome) -> None:
        self.pieces.append(Piece(str(outcome), marker=OUTCOME))

    def _show(self, marker: str, text: str, observation: Observation) -> None:
        first, *rest = sentences(text) or [""]
        known = frozenset[str]() if observation.whole else self._shown.get(observation.location, frozenset())
        shown = " ".join([first, *(part for part in rest if part not in known)])
        messages = observation.messages or () if marker == VIEW else ()
        self.pieces.append(Piece(shown, marker=marker, messages=messages, tools=observation.tools or ""))
        self._shown[observation.location] = frozenset(sentences(observation.text))


class UnreadWindow(Window):
    """A window whose text is not needed: it counts decisions."""

    def shortened(self, task: Piece, memory: Memory, turns: int, chars: int) -> Window:
        return UnreadWindow([])

    def _show(self, marker: str, text: str, observation: Observation) -> None:
        pass


def open_window(task: Piece, memory: Memory, observation: Observation, later: Sequence[Piece] = ()) -> Window:
    """A fresh window: header, less what stands `later` in it, and the whole current view."""
    window = Window(header(task, memory, later))
    window.look(observation)
    return window
