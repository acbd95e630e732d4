"""Hierarchical advantage estimation (HiPER, arXiv 2602.16165): credit at both levels of a planner and an executor.

Shapes: T steps, K segments (one subgoal each, K ≤ T), N trajectories.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel.distill.credit.advantages import returns, temporal_difference
from flywheel.distill.credit.ragged import Runs, accumulate
from flywheel.filters.batch import Floats, Ints


@dataclass(frozen=True, slots=True)
class Levels:
    """Advantages with the returns that they compare: executor and switch by step (T,), planner by segment (K,)."""

    executor_T: Floats
    executor_return_T: Floats
    planner_K: Floats
    planner_return_K: Floats
    switch_T: Floats
    switch_return_T: Floats


@dataclass(frozen=True, slots=True)
class Critics:
    """Values of states: under the executor (T,), under the planner where it decides (K,), of going on (T,).

    `final_N`: the planner's value of each final state; 0 where the task ended.
    """

    low_T: Floats
    high_K: Floats
    keep_T: Floats
    final_N: Floats


def hae(
    reward_T: Floats, runs: Runs, parts: Runs, critics: Critics, gamma: float, lam_N: Floats, lam_planner_N: Floats
) -> Levels:
    """HAE with critics (section 4.2). `parts` are the segments; each lies in one trajectory.

    Executor: a GAE that ends with its segment, where the planner's value of the next state takes over. Planner: a
    GAE over segments as one decision each (semi-Markov: Sutton, Precup & Singh 1999), R_k = Σ_j γ^j r_{s_k+j},
    δ_k = R_k + γ^{d_k} V_high(s_{k+1}) − V_high(s_k). Switch: what the segment still brings, less the value of going
    on. With a switch at every step the planner's is flat GAE.
    """
    of_K = runs.owner_T[parts.first_N]
    chain = Runs(np.append(np.searchsorted(of_K, np.arange(len(runs))), len(parts)))
    after_K = chain.next_T(critics.high_K, critics.final_N)
    delta_T = temporal_difference(reward_T, critics.low_T, parts, gamma, after_K)
    executor_T = accumulate(delta_T, parts.within_T(runs.spread_T(gamma * lam_N)))
    inside_T = returns(reward_T, parts, gamma, after_K)
    delta_K = inside_T[parts.first_N] - critics.high_K
    reach_K = gamma ** parts.length_N.astype(np.float64) * lam_planner_N[of_K]
    return Levels(
        executor_T=executor_T,
        executor_return_T=inside_T,
        planner_K=accumulate(delta_K, chain.within_T(reach_K)),
        planner_return_K=returns(reward_T, runs, gamma, critics.final_N)[parts.first_N],
        switch_T=inside_T - critics.keep_T,
        switch_return_T=inside_T,
    )


def hae_without_critics(reward_T: Floats, runs: Runs, parts: Runs, group_N: Ints, gamma: float) -> Levels:
    """HAE from groups (section 4.3): an action is worth what its segment still brings, a subgoal what its segment
    brought, a switch the whole return, each normalised within the group, the trajectories of one task."""
    zero_K, zero_N = np.zeros(len(parts)), np.zeros(len(runs))
    group_T = group_N[runs.owner_T]
    action_T = returns(reward_T, parts, gamma, zero_K)
    subgoal_K = action_T[parts.first_N]
    whole_N = returns(reward_T, runs, gamma, zero_N)[runs.first_N]
    whole_T = whole_N[runs.owner_T]
    return Levels(
        executor_T=normalised(action_T, group_T),
        executor_return_T=action_T,
        planner_K=normalised(subgoal_K, group_T[parts.first_N]),
        planner_return_K=subgoal_K,
        switch_T=normalised(whole_N, group_N)[runs.owner_T],
        switch_return_T=whole_T,
    )


def normalised(value: Floats, group: Ints | None = None) -> Floats:
    """Mean 0 and standard deviation 1, as a whole or within groups 0, 1, …; 0 where a group does not vary."""
    code = np.zeros(len(value), np.int64) if group is None else group
    count = np.maximum(np.bincount(code), 1)
    apart = value - (np.bincount(code, value) / count)[code]
    spread = np.sqrt(np.bincount(code, apart**2) / count)[code]
    scale = np.maximum(np.abs(value).max(initial=0.0), 1.0)
    return np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 1e-9 * scale)
