"""A live table of running episodes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flywheel.agents.policy import Decision
from flywheel.flows.progress import bar
from flywheel.integrations.otel import tracing
from flywheel.rollouts.episode import Episode
from flywheel.rollouts.play import RolloutHooks
from flywheel.text import plain_console, printable
from flywheel.trajectory import StopReason, Trajectory

ROWS = 24
"""Episodes that are shown; a terminal holds no more."""


@dataclass(slots=True)
class Board:
    """A callback of rollouts: what runs now, and how what ended ended."""

    running: dict[int, tuple[Episode, str, str]] = field(default_factory=dict)
    """Slot → (episode, subgoal, action)."""
    ended_by: dict[StopReason, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begun(self, slot: int, episode: Episode) -> None:
        with self._lock:
            self.running[slot] = episode, "", ""

    def decided(self, slot: int, episode: Episode, decision: Decision, seconds: float) -> None:
        with self._lock:
            self.running[slot] = episode, decision.subgoal, decision.action or ""

    def stepped(self, slot: int, episode: Episode, seconds: float) -> None:
        pass

    def ended(self, slot: int, trajectory: Trajectory) -> None:
        with self._lock:
            self.running.pop(slot, None)
            self.ended_by[trajectory.stop_reason] = self.ended_by.get(trajectory.stop_reason, 0) + 1

    def __rich__(self) -> Group:
        table = Table("slot", "task", "policy", "steps", "progress", "tokens", "seconds", "subgoal", "action")
        with self._lock:
            rows, ended = sorted(self.running.items()), dict(self.ended_by)
        now = time.time()
        for slot, (episode, subgoal, action) in rows[:ROWS]:
            table.add_row(
                str(slot),
                Text(printable(episode.job.task.task_id)),
                Text(printable(episode.policy.name)),
                str(len(episode.steps)),
                f"{episode.progress:.0%}",
                "?" if episode.tokens is None else str(episode.tokens),
                f"{now - episode.started_at:.1f}",
                Text(printable(subgoal)),
                Text(printable(action)),
            )
        more = f"{len(rows) - ROWS} more running; " if len(rows) > ROWS else ""
        return Group(table, more + ", ".join(f"{count} {reason}" for reason, count in ended.items()))


@contextmanager
def watched(title: str, total: int, *, table: bool) -> Iterator[tuple[Callable[[int], None], RolloutHooks]]:
    """What tells of a collection while it runs: (progress, hooks). A bar, or the table on a terminal; and spans."""
    console = plain_console(stderr=True)
    with tracing() as spans:
        if not (table and console.is_terminal):
            with bar(title, total) as progress:
                yield progress, RolloutHooks(callbacks=tuple(spans))
            return
        board = Board()
        with Live(board, console=console, refresh_per_second=4, transient=True):
            yield (lambda done: None), RolloutHooks(callbacks=(board, *spans))
