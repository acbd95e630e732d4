"""`flywheel show` and `flywheel compare`: runs as a person reads them."""

from __future__ import annotations

import hashlib
import os
import sys
import webbrowser
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flywheel.cli.console import DEFAULT_DATA, AsJson, DataDir, open_lake, say
from flywheel.cli.output import show_table
from flywheel.errors import QueryError
from flywheel.text import plain_console, printable

if TYPE_CHECKING:
    from rich.console import Console

    from flywheel.datasets.lake.lake import Lake
    from flywheel.evaluation.compare import Pair
    from flywheel.evaluation.pairwise import Judged

SHORT_LINES, SHORT_CHARS = 8, 600
"""So much of a text is shown without `--full`."""
COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")


def show(
    trajectory: Annotated[str, typer.Argument(help="A trajectory id, or the beginning of it.")],
    steps: Annotated[
        str, typer.Option(metavar="FROM:TO", help="Only these steps, as 10:20; either may be left out.")
    ] = ":",
    full: Annotated[bool, typer.Option("--full", help="Whole texts, and every item of every verdict.")] = False,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """One run as a person reads it: what was seen, thought and done, with subgoals, tool calls, credit and verdicts."""
    from flywheel.datasets.lake.show import describe_trajectory

    first, last = _range(steps)
    description = describe_trajectory(open_lake(data_dir, only_one=True), trajectory)
    description["steps"] = description["steps"][first:last]
    if as_json:
        say(description, as_json)
        return
    with _paged() as console:
        _show(console, description, full)


def annotate(
    trajectory: Annotated[str, typer.Argument(help="A trajectory id, or the beginning of it.")],
    tag: Annotated[list[str] | None, typer.Option(help="A tag that it has.")] = None,
    untag: Annotated[list[str] | None, typer.Option(help="A tag that it has no longer.")] = None,
    note: Annotated[str, typer.Option(help="A note.")] = "",
    label: Annotated[str, typer.Option(help="Did it truly succeed? succeeded or failed.")] = "",
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Say something of a run: tags to find it by, notes, and labels that judges are measured against."""
    from flywheel.datasets.lake.annotations import Kind, annotations_of, check
    from flywheel.datasets.lake.annotations import annotate as say_of
    from flywheel.datasets.lake.show import whole_id

    annotations = [(Kind.TAG, value, False) for value in tag or ()] + [(Kind.TAG, value, True) for value in untag or ()]
    annotations += [(kind, value, False) for kind, value in ((Kind.NOTE, note), (Kind.LABEL, label)) if value]
    if not annotations:
        raise QueryError("say something of it: --tag, --untag, --note or --label")
    lake = open_lake(data_dir)
    name = whole_id(lake, trajectory)
    for kind, value, _ in annotations:
        check(kind, value)
    for kind, value, withdrawn in annotations:
        say_of(lake, name, kind, value, withdrawn=withdrawn)
    say({"trajectory_id": name, "annotations": annotations_of(lake, [name]).get(name, [])}, as_json)


def ui(
    data_dir: DataDir = DEFAULT_DATA,
    host: Annotated[str, typer.Option(help="An address of this machine alone.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8322,
    browser: Annotated[bool, typer.Option("--open/--no-open", help="Open it in a browser.")] = True,
) -> None:
    """See the flywheel in a browser: curves and gates, runs step by step, comparisons, lineage, SQL. Ctrl-C ends it."""
    from flywheel.ui.server import serve_ui

    def started(url: str) -> None:
        print(f"{url}  (Ctrl-C ends it)", flush=True)
        if browser and sys.stdout.isatty():
            webbrowser.open(url)

    serve_ui(open_lake(data_dir, only_one=True), host, port, started)


def compare(
    first: Annotated[str, typer.Argument(help="A policy id.")],
    second: Annotated[str, typer.Argument(help="Another one.")],
    where: Annotated[str, typer.Option(help="Which runs, SQL over the view trajectories.")] = "split <> 'train'",
    contexts: Annotated[int, typer.Option(min=0, help="Of so many tasks that one alone solved: where they part.")] = 1,
    judge: Annotated[str, typer.Option(metavar="URL", help="A chat model's server, to say who did better.")] = "",
    judge_model: Annotated[str, typer.Option(help="Its model; the key is read from FLYWHEEL_JUDGE_KEY.")] = "",
    full: Annotated[bool, typer.Option("--full", help="Whole texts.")] = False,
    data_dir: DataDir = DEFAULT_DATA,
    as_json: AsJson = False,
) -> None:
    """Two policies on the same tasks: won and lost by the first, and where they first did something else.

    --judge asks a model about each pair of runs, in both orders, and holds its word against people's labels.
    """
    from flywheel.evaluation.compare import compare as compare_policies
    from flywheel.evaluation.compare import divergence

    lake = open_lake(data_dir, only_one=True)
    pairs = compare_policies(lake, first, second, where)
    if judge:
        say(asdict(_judged(lake, pairs, judge, judge_model)), as_json)
        return
    counts = Counter(pair.result for pair in pairs)
    parted = [pair for pair in pairs if pair.result in ("won", "lost")][:contexts]
    parts = [(pair, divergence(lake, pair)) for pair in parted]
    if as_json:
        rows = [{**asdict(pair), "result": pair.result} for pair in pairs]
        divergences = {pair.task_id: part and asdict(part) for pair, part in parts}
        say({"counts": counts, "tasks": rows, "divergences": divergences}, as_json)
        return
    show_table(
        ["task", "result", f"{first}: steps", f"{second}: steps"],
        [[pair.task_id, pair.result, pair.first_steps, pair.second_steps] for pair in pairs],
    )
    say(dict(counts), as_json)
    console = plain_console()
    for pair, part in parts:
        if part is None:
            continue
        _line(console, f"\n{pair.task_id}, {pair.result}: they part at step {part.index}", "bold")
        for name, context in ((first, part.first), (second, part.second)):
            _line(console, f"{name}:" if context else f"{name}: had ended", "bold")
            for field, text in (context or {}).items():
                _field(console, field, text, full, "bold" if field == "action" else "")


def _judged(lake: Lake, pairs: Sequence[Pair], url: str, model: str) -> Judged:
    from flywheel.agents.inference.endpoint import Server
    from flywheel.evaluation.pairwise import judge_pairs
    from flywheel.filters.verifiers.judge import KEY
    from flywheel.flows.progress import bar

    if not model:
        raise QueryError("a judge needs --judge-model NAME")
    with bar("judge", len(pairs)) as progress:
        return judge_pairs(lake, Server("judge", url, model, KEY, timeout=120.0), pairs, progress)


def _range(text: str) -> tuple[int | None, int | None]:
    first, colon, last = text.partition(":")
    try:
        begin = int(first) if first else None
        return begin, (int(last) if last else None) if colon else (begin or 0) + 1
    except ValueError:
        raise QueryError(f"--steps is FROM:TO, as 10:20, and not {text}") from None


@contextmanager
def _paged() -> Iterator[Console]:
    """A console whose output is paged on a terminal."""
    console = plain_console()
    if sys.stdout.isatty():
        os.environ.setdefault("LESS", "-R")  # the pager shows colours instead of their escapes
        with console.pager(styles=True):
            yield console
    else:
        yield console


def _show(console: Console, run: dict[str, Any], full: bool) -> None:
    for name, value in run.items():
        if value not in (None, "") and name not in ("steps", "verdicts", "final_observation", "tools", "system"):
            _line(console, f"{name}: {value}")
    for name in ("system", "tools"):
        _field(console, name, run[name] or "", full, "dim")
    for step in run["steps"]:
        _show_step(console, step, full)
    _line(console, "")
    _field(console, "in the end", run["final_observation"], full)
    for verdict in run["verdicts"]:
        mark = "passed" if verdict["passed"] else "failed"
        marks = f"completion {verdict['completion']:.4g}, integrity {verdict['integrity']:.3g}"
        words = f"{verdict['verifier']} {mark}: {marks}"
        _line(console, words, "green" if verdict["passed"] else "red")
        for item in verdict["items"]:
            if full or item["fraction"] < 1:
                _line(console, f"  {item['name']}: {item['fraction']:.3g} of {item['points']:.4g}, {item['evidence']}")


def _show_step(console: Console, step: dict[str, Any], full: bool) -> None:
    facts = [f"step {step['index']}", step["policy_id"]]
    facts += [f"{name} {step[name]:.3g}" for name in ("reward", "progress") if step[name] is not None]
    facts += [f"{name} {value:+.3g}" for name, value in step["credit"].items()]
    facts += [] if step["trainable"] else ["not taught"]
    band = _colour(step["subgoal"]) if step["subgoal"] else "white"
    _line(console, "")
    _line(console, f"{'█ ' + step['subgoal'] + '  ' if step['subgoal'] else ''}{' · '.join(facts)}", f"bold {band}")
    for name in ("observation", "feedback", "document", "audit", "thought"):
        _field(console, name, step[name], full, "italic" if name == "thought" else "", band)
    if not step["tool_calls"]:
        _field(console, "action", step["action"], full, "bold", band)
    for call in step["tool_calls"]:
        _field(console, call["name"], call["arguments"], full, "bold", band)
        name, style = ("error", "red") if call["error"] else ("result", "")
        _field(console, name, call["error"] or call["result"] or "", full, style, band)
    if step["teacher_action"]:
        _field(console, "teacher", step["teacher_action"], full, "dim", band)


def _colour(subgoal: str) -> str:
    """The same colour for the same subgoal, in every run."""
    return COLOURS[hashlib.blake2b(subgoal.encode(), digest_size=1).digest()[0] % len(COLOURS)]


def _field(console: Console, name: str, text: str, full: bool, style: str = "", band: str = "white") -> None:
    if not text:
        return
    shown = text if full else _short(text)
    for number, line in enumerate(shown.split("\n")):
        _line(console, f"{name + ':' if number == 0 else '':<12} {line}", style, band)


def _short(text: str) -> str:
    lines = text[:SHORT_CHARS].split("\n")[:SHORT_LINES]
    short = "\n".join(lines)
    return short if len(short) == len(text) else f"{short} … (+{len(text) - len(short)} characters; --full)"


def _line(console: Console, text: str, style: str = "", band: str | None = None) -> None:
    from rich.text import Text

    line = Text("▌ ", band) if band else Text("")
    console.print(line.append(printable(text), style or None))
