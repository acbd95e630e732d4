"""Progress bars for long stages: live on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

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
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}", markup=False), console=console) as progress:
        rows: dict[str, TaskID] = {}

        def show(line: str, done: int, total: int | None, note: str) -> None:
            if line not in rows:
                rows[line] = progress.add_task(line, total=total, note=note)
            progress.update(rows[line], completed=done, note=note)

        yield show


class _Lines:
    """Plain lines for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = time.monotonic()

    def __call__(self, line: str, done: int, total: int | None, note: str) -> None:
        if time.monotonic() - self._said < QUIET_SECONDS:
            return
        self._said = time.monotonic()
        of = f"/{total}" if total else ""
        self._console.print(f"{line}: {done}{of} {note}", highlight=False)
