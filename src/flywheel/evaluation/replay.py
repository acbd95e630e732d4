"""How a policy would have answered recorded sessions: asked at every answer, with the session's own past before it.

No simulator is needed, and nothing is proved by it: who answers otherwise than the model did may be right. It tells
what a student has learned, where it would first leave the record, and how far its own confidence can be trusted.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import exp
from statistics import median
from typing import Any

import numpy as np

from flywheel.agents.policy import Decision, Policy, Turn
from flywheel.arrow import batched
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.distill.batching.examples import observations_of
from flywheel.environments.protocol import Observation
from flywheel.environments.tools import names_of
from flywheel.errors import ConfigError, reason_of
from flywheel.evaluation.simulated import Ending, simulate
from flywheel.evaluation.statistics import Interval, clustered_mean, rate
from flywheel.messages import Message, Normalise, agree, answer_of_action, as_they_are
from flywheel.named_objects import named_object
from flywheel.trajectory import Split, Task, Trajectory

TOGETHER = 64
CONFIDENCES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a session and the policy's in its place. `tool`: what the model called first, "" where it spoke."""

    session: str
    index: int
    tool: str
    same_tool: bool
    same: bool
    confidence: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """Agreement on so many sessions. `same`: the same tools with equal arguments, or text for text; `same_tools`: the
    tools alone; intervals are clustered by session. `diverges_at`: the median answer at which one that diverges does.

    `endings`: how the sessions end where the policy plays them against the recorded results
    (`evaluation.simulated`), as shares. `by_tool`: (answers, share that is the same). `by_confidence`: threshold →
    (share of the answers that are at least so confident, share of those that are the same, its lower bound).
    """

    policy_id: str
    split: str
    sessions: int
    unknown: int
    answers: int
    same: Interval
    same_tools: Interval
    whole_sessions: float
    diverges_at: float | None
    endings: dict[str, float] = field(default_factory=dict)
    by_tool: dict[str, tuple[int, float]] = field(default_factory=dict)
    by_confidence: dict[float, tuple[float, float, float]] = field(default_factory=dict)


def replay(
    config: Config, lake: Lake, policy: Policy, split: Split, progress: Callable[[int], None] = lambda done: None
) -> Replayed:
    """Ask a policy at every answer of the split's recorded sessions that were verified. Sessions of which nobody knows
    how they ended, or that ended badly, are no example. Raises `ConfigError` where there is none."""
    ids = verified_sessions(config, lake, split)
    (counted,) = lake.sql(
        f"""select count(*) as n from trajectories where purpose in ('recorded', 'imported') and split = {quoted(split)}
            and environment = {quoted(config.environment.name)} and verified is null"""
    ).to_pylist()
    normalise = normaliser(config)
    answers: list[Answer] = []
    endings: Counter[str] = Counter()
    for chunk in batched(ids, TOGETHER):
        sessions = lake.trajectories(chunk)
        answers += answers_of(policy, sessions, normalise)
        endings.update(map(str, simulate(policy, sessions, normalise)))
        progress(len(chunk))
    return _summary(policy.policy_id, split, answers, endings, counted["n"])


def verified_sessions(config: Config, lake: Lake, split: Split) -> list[str]:
    """Ids of the split's recorded sessions that ended well. Raises `ConfigError` where there is none."""
    ids: list[str] = lake.sql(
        f"""select trajectory_id from trajectories where purpose in ('recorded', 'imported') and split = {quoted(split)}
            and environment = {quoted(config.environment.name)} and verified = 1 order by trajectory_id"""
    )["trajectory_id"].to_pylist()
    if not ids:
        raise ConfigError(f"no verified session of {config.environment.name} is held out as {split}; curate some first")
    return ids


def normaliser(config: Config) -> Normalise:
    """What `evaluate.normalise` names. Raises `ConfigError` where it is none, and when it fails on a call."""
    if not config.evaluate.normalise:
        return as_they_are
    named = named_object(config.evaluate.normalise)

    def normalise(name: str, arguments: Any) -> Any:
        try:
            normal = named(name, arguments)
            json.dumps(normal)
        except Exception as error:
            raise ConfigError(f"{config.evaluate.normalise} fails on a call of {name}: {reason_of(error)}") from error
        return normal

    return normalise


def answers_of(policy: Policy, sessions: Sequence[Trajectory], normalise: Normalise = as_they_are) -> list[Answer]:
    """A policy's answers in the place of the model's, all sessions side by side, answer by answer."""
    observations = list(map(observations_of, sessions))
    answers = []
    for index, column in enumerate(zip_longest(*observations)):
        slots = [slot for slot, observation in enumerate(column) if observation is not None]
        for slot in slots:
            steps = sessions[slot].steps[:index]
            past = [
                (each, Decision(step.action, output=step.output))
                for each, step in zip(observations[slot], steps, strict=False)
            ]
            policy.begin(slot, Task("replay", "{}", Split.TEST, 0, sessions[slot].instruction), 0, past)
        decisions = policy.act([Turn(slot, observations[slot][index]) for slot in slots])
        for slot, decision in zip(slots, decisions, strict=True):
            answers.append(_compared(sessions[slot], index, observations[slot][index], decision, normalise))
    return answers


def _compared(session: Trajectory, index: int, seen: Observation, decision: Decision, normalise: Normalise) -> Answer:
    step = session.steps[index]
    theirs = step.output or Message("assistant", step.action)
    ours = answer_of_action(decision.action or "", names_of(seen.tools or "[]"), index)
    names = [[call.name for call in message.tool_calls] for message in (ours, theirs)]
    answered = decision.action is not None
    return Answer(
        session.trajectory_id,
        index,
        names[1][0] if names[1] else "",
        answered and names[0] == names[1],
        answered and agree(ours, theirs, normalise),
        exp(sum(decision.logprobs)) if decision.logprobs else 1.0,
    )


def _summary(policy_id: str, split: Split, answers: Sequence[Answer], endings: Counter[str], unknown: int) -> Replayed:
    sessions = [answer.session for answer in answers]
    same = np.array([answer.same for answer in answers])
    confidence = np.array([answer.confidence for answer in answers])
    first: dict[str, int] = {}
    by_tool: defaultdict[str, list[bool]] = defaultdict(list)
    for answer in answers:
        by_tool[answer.tool].append(answer.same)
        if not answer.same:
            first[answer.session] = min(first.get(answer.session, answer.index), answer.index)
    return Replayed(
        policy_id=policy_id,
        split=str(split),
        sessions=len(set(sessions)),
        unknown=unknown,
        answers=len(answers),
        same=clustered_mean(same, sessions),
        same_tools=clustered_mean([answer.same_tool for answer in answers], sessions),
        whole_sessions=1 - len(first) / len(set(sessions)),
        diverges_at=median(first.values()) if first else None,
        endings={ending: endings[ending] / len(set(sessions)) for ending in Ending},
        by_tool={tool: (len(each), float(np.mean(each))) for tool, each in sorted(by_tool.items())},
        by_confidence={least: _kept(same[confidence >= least], len(answers)) for least in CONFIDENCES},
    )


def _kept(same: Any, answers: int) -> tuple[float, float, float]:
    agreed = rate(int(same.sum()), len(same)) if len(same) else Interval(0.0, 0.0, 0.0)
    return len(same) / answers, agreed.value, agreed.low


def threshold(replayed: Replayed, agreement: float) -> float:
    """The lowest confidence from which a policy's answers agree with the record so often, by the lower bound of the
    Wilson interval. Raises `ConfigError` where none does."""
    enough = [least for least, (_, _, low) in sorted(replayed.by_confidence.items()) if low >= agreement]
    if not enough:
        best = max(low for _, _, low in replayed.by_confidence.values())
        raise ConfigError(
            f"at no confidence do {agreement:.0%} of {replayed.policy_id}'s answers agree with the record: at most "
            f"{best:.0%} for certain; ask for less, or let it learn more"
        )
    return enough[0]
