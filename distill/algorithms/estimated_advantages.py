"""Advantages of recorded decisions under critics that are fitted on the student itself, at each of its levels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from flywheel.agents.contexts.language import language_of, markers_of, padding
from flywheel.agents.contexts.prompts import Role
from flywheel.config.algorithms import CreditConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.distill.credit.advantages import returns
from flywheel.distill.credit.critics import States, ValueHead, by_trajectory, fit, states_of
from flywheel.distill.credit.hierarchical import Critics, hae
from flywheel.distill.credit.methods import (
    EXECUTOR,
    FLAT,
    METHODS,
    PLANNER,
    SWITCH,
    Episodes,
    Hae,
    Method,
    arguments_of,
)
from flywheel.distill.credit.record import assign_credit, flattened, steps_of
from flywheel.distill.data.corpus import Corpus
from flywheel.distill.data.rows import rows_of
from flywheel.filters.batch import Bools, Floats
from flywheel.policies.models import load_part
from flywheel.policies.students import on_device
from flywheel.runtime.devices import pick_device
from flywheel.trajectory import digest

LEVELS = {Role.FLAT: FLAT, Role.PLANNER: PLANNER, Role.EXECUTOR: EXECUTOR}
HELD = 10
"""One task in so many is held out when critics are fitted."""


def by_decision(rows: pa.Table, values_M: Floats) -> dict[tuple[str, int], float]:
    """Values of rows of credit by (trajectory, step)."""
    keys = zip(rows["trajectory_id"].to_pylist(), rows["index"].to_pylist(), strict=True)
    return dict(zip(keys, values_M.tolist(), strict=True))


def estimate_advantages(
    config: Config,
    settings: CreditConfig,
    lake: Lake,
    corpus: Corpus,
    roles: Sequence[Role],
    base: Path,
) -> tuple[pa.Table, dict[Role, ValueHead]]:
    """Fit critics on a student and append advantages under them to the lake; (those rows of `credits`, the critics)."""
    source = f"credit/1 {base.name}"
    read = {role: _states(config, corpus, role, base / role) for role in roles}
    known = {trajectory_id for states in read.values() for trajectory_id in states.trajectory_M}
    steps = steps_of(lake, sorted(known), config.train.segments)
    runs, held = Episodes(steps).runs, _held_out(corpus)
    order = steps["trajectory_id"].take(pa.array(runs.first_N)).to_pylist()
    begins = dict(zip(order, runs.first_N.tolist(), strict=True))
    lengths = dict(zip(order, runs.length_N.tolist(), strict=True))
    values, heads = dict[str, dict[str, Floats]](), dict[Role, ValueHead]()
    # the executor's returns end in planner's values
    for role in sorted(roles, key=lambda role: role is Role.EXECUTOR):
        level = LEVELS[role]
        return_T = _returns(Episodes(steps, flattened(values, steps)), settings, role)
        at_M = np.array([begins[trajectory_id] for trajectory_id in read[role].trajectory_M]) + read[role].step_M
        held_M: Bools = np.array([held[trajectory_id] for trajectory_id in read[role].trajectory_M], np.bool_)
        heads[role] = fit(read[role].features_MD, return_T[at_M], held_M)
        values[level] = by_trajectory(read[role], heads[role](read[role].features_MD), lengths)
    if EXECUTOR in values:
        values[SWITCH] = values[EXECUTOR]
    name, method = _method(settings, config.train.segments, flat=FLAT in values)
    credited = assign_credit(lake, name, method, "true", ids=list(lengths), values=values, source=source)
    sources = ", ".join(map(quoted, credited.sources))
    rows = lake.sql(
        f"""select trajectory_id, "index", level, advantage from credits where source in ({sources})
            and method = '{name}' and arguments = {quoted(arguments_of(method))}
            order by level, trajectory_id, "index" """
    )
    return rows, heads


def _method(settings: CreditConfig, segments: str, *, flat: bool) -> tuple[str, Method]:
    """The credit method of the settings by name, with those of them that it has."""
    name = settings.method or ("gae" if flat else "hae")
    given = settings.model_dump() | {"segments": segments, "critics": True}
    return name, METHODS[name](**{key: given[key] for key in METHODS[name].model_fields if key in given})


def _states(config: Config, corpus: Corpus, role: Role, folder: Path) -> States:
    model, tokenizer = load_part(folder)
    model = on_device(model, pick_device(config.train.device))
    rows = rows_of(config, corpus, role, 0, everything=role is Role.PLANNER)
    tokens, pad = markers_of(language_of(tokenizer)), padding(tokenizer)
    return states_of(model, rows.windows(), tokens, config.train.batch_tokens, pad)


def _held_out(corpus: Corpus) -> dict[str, bool]:
    """Trajectory → is its task left out when critics are fitted?"""
    return {trajectory_id: int(digest("critic", task), 16) % HELD == 0 for trajectory_id, task in corpus.tasks.items()}


def _returns(episodes: Episodes, settings: CreditConfig, role: Role) -> Floats:
    """(T,): what a role's critic should say at each step."""
    method = Hae(gamma=settings.gamma, shaping=settings.shaping)
    reward_T, runs, none_N = method.rewards(episodes), episodes.runs, np.zeros(len(episodes.runs))
    if role is not Role.EXECUTOR:
        return returns(reward_T, runs, method.gamma, none_N)
    high_T, final_N = episodes.value(PLANNER)
    parts = episodes.parts
    critics = Critics(np.zeros(runs.steps), high_T[parts.first_N], np.zeros(runs.steps), final_N)
    lam_N = np.ones(len(runs))
    return hae(reward_T, runs, parts, critics, method.gamma, lam_N, lam_N).executor_return_T
