"""The calls of a session as threads: runs of calls of which each continues the one before.

A session is a tree, or several: an answer that was asked for twice, a conversation that was edited or compacted, a
sub-agent and a call for a title beside the main run each begin a thread of their own. Each call is in exactly one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.gateway.spool import Call


@dataclass(frozen=True, slots=True)
class Thread:
    """`context`: the calls before its first, which belong to other threads. `branch_of`: the thread that it leaves, by
    its place in the list, or None for one that begins anew."""

    calls: tuple[Call, ...]
    context: tuple[Call, ...] = ()
    branch_of: int | None = None


def threads_of(calls: Sequence[Call]) -> list[Thread]:
    """The threads of a session's answered calls, the longest first: the main one."""
    by_id = {call.id: call for call in calls}
    children: dict[str, list[Call]] = {}
    for call in calls:
        children.setdefault(call.parent if call.parent in by_id else "", []).append(call)
    weight: dict[str, tuple[int, float]] = {}
    for call in reversed(_from_the_roots(children)):
        below = [weight[child.id] for child in children.get(call.id, ())]
        longest = max((calls for calls, _ in below), default=0)
        weight[call.id] = (1 + longest, max([call.began, *(at for _, at in below)]))
    goes_on = {
        parent: max(several, key=lambda call: weight[call.id]).id for parent, several in children.items() if parent
    }
    firsts = [call for call in calls if goes_on.get(call.parent) != call.id]
    runs = sorted((_run(first, goes_on, by_id) for first in firsts), key=lambda run: -len(run))
    owner = {call.id: number for number, run in enumerate(runs) for call in run}
    return [Thread(tuple(run), _context(run[0], by_id), owner.get(run[0].parent)) for run in runs]


def _from_the_roots(children: dict[str, list[Call]]) -> list[Call]:
    """Every call after its parent."""
    order, waiting = list[Call](), list(children.get("", ()))
    while waiting:
        call = waiting.pop()
        order.append(call)
        waiting += children.get(call.id, ())
    return order


def _run(first: Call, goes_on: dict[str, str], by_id: dict[str, Call]) -> list[Call]:
    run = [first]
    while (following := goes_on.get(run[-1].id)) is not None:
        run.append(by_id[following])
    return run


def _context(first: Call, by_id: dict[str, Call]) -> tuple[Call, ...]:
    before: list[Call] = []
    while (first.parent if not before else before[-1].parent) in by_id:
        before.append(by_id[first.parent if not before else before[-1].parent])
    return tuple(reversed(before))
