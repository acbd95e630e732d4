"""The gate without a simulator: challenger and champion played against the same recorded sessions.

A session counts as held where the policy, answered from the record, ends it with the record's calls. What leaves the
record is no success, although it may have been as good: the test errs on the side of refusal.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from flywheel.arrow import batched
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import ConfigError
from flywheel.evaluation.decision import GateDecision
from flywheel.evaluation.gate import decide
from flywheel.evaluation.replay import TOGETHER, answers_of, normaliser, verified_sessions
from flywheel.evaluation.simulated import Ending, simulate
from flywheel.policies.registry import policy_directory, registered
from flywheel.policies.students import load_policy
from flywheel.runtime.devices import pick_device
from flywheel.trajectory import Split, Trajectory

RECORD = "recorded"
"""The opponent before there is a champion: the model that answered, which ends every session as recorded."""


def replayed_decision(
    config: Config, lake: Lake, challenger: str, opponent: str, alpha: float, progress: Callable[[int], None]
) -> GateDecision:
    """The paired test on the dev sessions that were verified: held against held, agreement against agreement. Against
    `RECORD`, `gate.margin` applies. Raises `ConfigError` without one: nobody is better than the record."""
    if opponent == RECORD and not config.gate.margin:
        raise ConfigError("nobody is better than the record: set gate.margin, how much worse a student may be, as 0.05")
    ids = verified_sessions(config, lake, Split.DEV)
    ours, theirs = (_outcomes(config, lake, name, ids, progress) for name in (challenger, opponent))
    sessions = lake.trajectories(ids)
    slices = {session.trajectory_id: _slices(session, config.gate.slices) for session in sessions}
    names = dict.fromkeys(name for each in ids for name in slices[each])
    return decide(
        [ours[each][0] for each in ids],
        [theirs[each][0] for each in ids],
        alpha=alpha,
        power=config.gate.power,
        gains=[ours[each][1] - theirs[each][1] for each in ids],
        groups=[session.task_group for session in sessions],
        slices={name: np.array([name in slices[each] for each in ids]) for name in names},
        margin=config.gate.margin if opponent == RECORD else 0.0,
    )


def _outcomes(
    config: Config, lake: Lake, name: str, ids: Sequence[str], progress: Callable[[int], None]
) -> Mapping[str, tuple[bool, float]]:
    """Session → (was it held, share of its answers that are the record's)."""
    if name == RECORD:
        return dict.fromkeys(ids, (True, 1.0))
    folder = policy_directory(lake, str(registered(lake, name).policy_id))
    policy = load_policy(folder, pick_device(config.train.device))
    normalise = normaliser(config)
    outcomes: dict[str, tuple[bool, float]] = {}
    for chunk in batched(ids, TOGETHER):
        sessions = lake.trajectories(chunk)
        agreed: defaultdict[str, list[bool]] = defaultdict(list)
        for answer in answers_of(policy, sessions, normalise):
            agreed[answer.session].append(answer.same)
        for each, ending in zip(chunk, simulate(policy, sessions, normalise), strict=True):
            outcomes[each] = ending is Ending.SAME_CALLS, float(np.mean(agreed[each]))
        progress(len(chunk))
    return outcomes


def _slices(session: Trajectory, fields: Sequence[str]) -> tuple[str, ...]:
    """Names of the parts that a session belongs to: its length, the tools that it called, and what the `fields` of its
    data say."""
    low = 1 << (max(session.length, 1).bit_length() - 1)
    calls = [call.name for step in session.steps if step.output for call in step.output.tool_calls]
    data = json.loads(session.task_data or "{}")
    known = [(name, data[name]) for name in fields if isinstance(data, dict) and data.get(name) is not None]
    return (f"{low} to {2 * low - 1} answers", *dict.fromkeys(calls), *(f"{name} {value}" for name, value in known))
