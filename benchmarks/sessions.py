"""How often sessions are joined or split wrongly where no client names them: recorded runs replayed as requests.

    python benchmarks/sessions.py runs.json --at-once 50

A file is JSON: a list of runs, each a list of chat messages, or an object with them under `traj` or `messages`. Every
answer of an assistant becomes the request that it was given to. Runs are interleaved at random, so many at once. One
JSON line a way of spoiling what the gateway goes by: nothing; ids of tool calls made equal; the history summarised in
mid-run; and both. `joined`: sessions that hold calls of several runs; `split`: runs that lie in several sessions.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

from flywheel.gateway.fingerprints import call_ids, chain
from flywheel.gateway.sessions import OpenSessions

Message = dict[str, Any]


def read_runs(paths: list[Path]) -> list[list[Message]]:
    runs = []
    for path in paths:
        for entry in json.loads(path.read_text()):
            messages = entry if isinstance(entry, list) else entry.get("traj") or entry.get("messages")
            runs.append([message for message in messages if message.get("role")])
    return runs


def requests_of(run: list[Message], *, compact: bool) -> list[tuple[list[Message], Message]]:
    """(what was sent, what came back) of each call. `compact`: from the middle on, a summary and the last four messages
    stand for what came before."""
    places = [place for place, message in enumerate(run) if message["role"] == "assistant"]
    calls = []
    for number, place in enumerate(places):
        sent = run[:place]
        if compact and number > len(places) // 2:
            cut = max(places[len(places) // 2] - 4, 1)
            sent = [run[0], {"role": "user", "content": "Summary: it went well so far."}, *run[cut:place]]
        calls.append((sent, run[place]))
    return calls


def same_ids(message: Message) -> Message:
    """The message with ids that say nothing, as some servers give them."""
    calls = [{**call, "id": f"call_{number}"} for number, call in enumerate(message.get("tool_calls") or ())]
    spoiled = {**message, **({"tool_calls": calls} if calls else {})}
    return {**spoiled, **({"tool_call_id": "call_0"} if "tool_call_id" in message else {})}


def replay(calls_of_runs: list[list[tuple[list[Message], Message]]], at_once: int, seed: int) -> dict[str, Any]:
    opened, drawn = OpenSessions(lambda name: 0), random.Random(seed)
    waiting, running = list(range(len(calls_of_runs)))[::-1], list[int]()
    done, number = defaultdict[int, int](int), 0
    runs_of, sessions_of = defaultdict[str, set[int]](set), defaultdict[int, set[str]](set)
    calls_joined, sizes = 0, defaultdict[str, list[int]](list)
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(waiting.pop())
        run = drawn.choice(running)
        sent, answer = calls_of_runs[run][done[run]]
        prefixes, number = chain(sent), number + 1
        place = opened.place("", prefixes, call_ids(sent), "", float(number))
        tails = [chain([answer], prefixes[-1])[-1]]
        opened.answered(place.session, str(number), tails, call_ids([*sent, answer]))
        opened.done(place.session, float(number))
        runs_of[place.session].add(run)
        sessions_of[run].add(place.session)
        sizes[place.session].append(run)
        done[run] += 1
        if done[run] == len(calls_of_runs[run]):
            running.remove(run)
    for owners in sizes.values():
        calls_joined += len(owners) - max(owners.count(run) for run in set(owners))
    return {
        "runs": len(calls_of_runs),
        "calls": number,
        "sessions": len(runs_of),
        "joined": sum(len(runs) > 1 for runs in runs_of.values()),
        "calls_in_another_runs_session": calls_joined,
        "split": sum(len(sessions) > 1 for sessions in sessions_of.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--at-once", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    runs = read_runs(given.files)
    plain = [[same_ids(message) for message in run] for run in runs]
    for name, source, compact in (
        ("as recorded", runs, False),
        ("equal ids", plain, False),
        ("summarised in mid-run", runs, True),
        ("summarised, equal ids", plain, True),
    ):
        calls = [requests_of(run, compact=compact) for run in source]
        print(
            json.dumps({"spoiled": name, **replay([run for run in calls if run], given.at_once, given.seed)}),
            flush=True,
        )


if __name__ == "__main__":
    main()
