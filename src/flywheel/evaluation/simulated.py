"""A policy played against recorded sessions: what the tools answered then, they answer now.

A call that equals a recorded one, whenever it is made, gets the recorded result; whatever else a policy calls is not
on record, and ends the run: it has left the record, which is never success. Who speaks hears what the user said next,
or has finished: with the calls of the record, or with fewer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from flywheel.agents.policy import Decision, Policy, Turn
from flywheel.distill.batching.examples import observations_of
from flywheel.environments.protocol import Observation
from flywheel.environments.tools import names_of
from flywheel.messages import Message, Normalise, answer_of_action, as_they_are, call_key, text_of_inputs
from flywheel.trajectory import Split, Task, Trajectory

SPARE = 4
"""Answers beyond twice those of the record, after which a run has left it."""


class Ending(StrEnum):
    """How a simulated run ended."""

    SAME_CALLS = "same calls"
    FEWER_CALLS = "fewer calls"
    LEFT = "left the record"


@dataclass(slots=True)
class _Run:
    """A running session. `results`: call → what it returned, each time; `replies`: what users said after answers."""

    session: Trajectory
    seen: Observation
    results: dict[tuple[str, str], list[Message]]
    replies: list[Observation]
    left: int
    made: Counter[tuple[str, str]] = field(default_factory=Counter)


def simulate(policy: Policy, sessions: Sequence[Trajectory], normalise: Normalise = as_they_are) -> list[Ending]:
    """How a policy's run of each session ends, all of them side by side."""
    runs = dict(enumerate(_begun(session, normalise) for session in sessions))
    endings: dict[int, Ending] = {}
    for slot, run in runs.items():
        policy.begin(slot, Task("simulated", "{}", Split.TEST, 0, run.session.instruction), 0)
    while runs:
        decisions = policy.act([Turn(slot, run.seen) for slot, run in runs.items()])
        for (slot, run), decision in zip(list(runs.items()), decisions, strict=True):
            if ending := _advanced(run, decision, normalise):
                endings[slot] = ending
                del runs[slot]
    return [endings[slot] for slot in sorted(endings)]


def _begun(session: Trajectory, normalise: Normalise) -> _Run:
    observations = observations_of(session)
    results: defaultdict[tuple[str, str], list[Message]] = defaultdict(list)
    replies = []
    following = [step.inputs or () for step in session.steps[1:]] + [session.final_inputs or ()]
    for index, (step, after) in enumerate(zip(session.steps, following, strict=True)):
        calls = step.output.tool_calls if step.output else ()
        answered = [message for message in after if message.role == "tool"]
        for call, message in zip(calls, answered, strict=False):
            results[call_key(call, normalise)].append(message)
        if not calls and index + 1 < len(observations):
            replies.append(observations[index + 1])
    return _Run(session, observations[0], dict(results), replies, 2 * len(session.steps) + SPARE)


def _advanced(run: _Run, decision: Decision, normalise: Normalise) -> Ending | None:
    """Answer a decision from the record; how the run ended, if it did."""
    run.left -= 1
    if decision.action is None or run.left < 0:
        return Ending.LEFT
    tools = run.seen.tools or "[]"
    calls = answer_of_action(decision.action, names_of(tools), 0).tool_calls
    if not calls:
        if run.replies:
            run.seen = run.replies.pop(0)
            return None
        recorded = Counter({key: len(each) for key, each in run.results.items()})
        return Ending.FEWER_CALLS if recorded - run.made else Ending.SAME_CALLS
    returned = []
    for key in (call_key(call, normalise) for call in calls):
        if key not in run.results:
            return Ending.LEFT
        returned.append(run.results[key][min(run.made[key], len(run.results[key]) - 1)])
        run.made[key] += 1
    run.seen = Observation(text_of_inputs(returned), whole=True, tools=tools, messages=tuple(returned))
    return None
