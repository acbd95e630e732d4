"""Progress bars for long stages: live on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flywheel.runtime.distributed import is_main
from flywheel.text import plain_console

QUIET_SECONDS = 15.0
"""Without a terminal, a line is printed at most this often."""


@contextmanager
def bar(title: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A callback for the number of episodes that have finished."""
    done = 0
    with _reporter() as report:

        def advance(count: int) -> None:
            nonlocal done
            done += count
            report(title, done, total, "episodes")

        yield advance


@contextmanager
def training_bar(title: str) -> Iterator[Callable[[str, int, int, float], None]]:
    """A callback for (role, updates done, updates in all, loss)."""
    with _reporter() as report:
        yield lambda role, update, total, loss: report(f"{title} {role}", update, total, f"loss {loss:.3f}")


def left(began: tuple[float, int], done: int, total: int | None, now: float) -> str:
    """About how long the rest takes, if it goes on as since `began`, a time and what was done by then; empty where
    nobody can know."""
    then, before = began
    if not total or not before < done < total:
        return ""
    seconds = (now - then) / (done - before) * (total - done)
    if seconds < 90:
        return f", about {max(5 * round(seconds / 5), 5):.0f} s left"
    return f", about {seconds / 60:.0f} min left" if seconds < 5400 else f", about {seconds / 3600:.1f} h left"


@contextmanager
def _reporter() -> Iterator[Callable[[str, int, int | None, str], None]]:
    """A callback that shows (line, done, total, note), each line on a bar of its own; one process prints."""
    if not is_main():
        yield lambda line, done, total, note: None
        return
    console = plain_console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=console) as progress:
        rows: dict[str, TaskID] = {}
        began: dict[str, tuple[float, int]] = {}

        def show(line: str, done: int, total: int | None, note: str) -> None:
            now = time.monotonic()
            if line not in rows:
                rows[line], began[line] = progress.add_task(line, total=total, note=note), (now, done)
            full_note = f"{_count(done, total)} {note}{left(began[line], done, total, now)}"
            progress.update(rows[line], completed=done, note=full_note)

        yield show


def _count(done: int, total: int | None) -> str:
    return f"{done:,} of {total:,}" if total else f"{done:,}"


class _Lines:
    """Plain lines for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = time.monotonic()
        self._began: dict[str, tuple[float, int]] = {}

    def __call__(self, line: str, done: int, total: int | None, note: str) -> None:
        now = time.monotonic()
        began = self._began.setdefault(line, (now, done))
        if now - self._said < QUIET_SECONDS:
            return
        self._said = now
        self._console.print(f"{line}: {_count(done, total)} {note}{left(began, done, total, now)}", highlight=False)
