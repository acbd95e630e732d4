"""Returns and generalised advantages over ragged batches. Pure functions; T steps of N trajectories.

Only `terminated` ends what can still be earned: where a limit cut the episode, the value of its final state stands in
for the rest (`final_N`; 0 where the task ended).
"""

from __future__ import annotations

import numpy as np

from flywheel.distill.credit.ragged import Runs, accumulate
from flywheel.filters.batch import Floats, Ints


def returns(reward_T: Floats, runs: Runs, gamma: float, final_N: Floats) -> Floats:
    """(T,): discounted return from each step, G_t = r_t + γ G_{t+1}, with `final_N` after the last step."""
    base_T = reward_T.copy()
    base_T[runs.last_N] += gamma * final_N
    return accumulate(base_T, runs.within_T(np.full(runs.steps, gamma)))


def gae(reward_T: Floats, value_T: Floats, runs: Runs, gamma: float, lam_N: Floats, final_N: Floats) -> Floats:
    """(T,): A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V(s_{t+1}) − V(s_t), λ by trajectory.

    Schulman et al. 2015 (arXiv 1506.02438), equation 16. The critic's own target is `returns`, that is λ = 1
    (decoupled GAE: VC-PPO, arXiv 2503.01491, section 4.2).
    """
    return accumulate(
        temporal_difference(reward_T, value_T, runs, gamma, final_N), runs.within_T(runs.spread_T(gamma * lam_N))
    )


def temporal_difference(reward_T: Floats, value_T: Floats, runs: Runs, gamma: float, final_N: Floats) -> Floats:
    """(T,): δ_t = r_t + γ V(s_{t+1}) − V(s_t), with `final_N` for the state after a run's last step."""
    delta_T = runs.next_T(value_T, final_N)
    delta_T *= gamma
    delta_T += reward_T
    delta_T -= value_T
    return delta_T


def length_adaptive(length_N: Ints, alpha: float, low: float, high: float) -> Floats:
    """(N,): λ = 1 − 1/(α·l), kept within [low, high]: the longer the episode, the further credit travels.

    VAPO (arXiv 2504.05118, section 4.2) counts l in tokens with α = 0.05; here l counts steps, and α near 1 keeps
    about a third of a reward's weight at the episode's first step.
    """
    return np.clip(1.0 - 1.0 / (alpha * length_N), low, high)


def shaped(reward_T: Floats, progress_T: Floats, terminated_N: Floats, runs: Runs, gamma: float) -> Floats:
    """(T,): r_t + γ Φ(s_{t+1}) − Φ(s_t), Φ the progress (Ng, Harada & Russell 1999, theorem 1).

    `progress_T` stands after each action. Φ is 0 before the first and in terminal states; a truncated episode keeps
    its Φ. Differences of returns between policies stay what they were.
    """
    after_T = progress_T.copy()
    after_T[runs.last_N] *= 1.0 - terminated_N
    before_T = np.zeros_like(progress_T)
    before_T[1:] = progress_T[:-1]
    before_T[runs.first_N] = 0.0
    return reward_T + gamma * after_T - before_T


def progress_gain(chance_T: Floats, before_N: Floats, runs: Runs) -> Floats:
    """(T,): A_t = Q_t − Q_{t−1}, Q_t the chance of success after step t, `before_N` the chance before any.

    Progress as advantage (AgentPRM, arXiv 2511.08325, section 3): fit for sparse rewards and deterministic worlds.
    """
    earlier_T = np.empty_like(chance_T)
    earlier_T[1:] = chance_T[:-1]
    earlier_T[runs.first_N] = before_N
    return chance_T - earlier_T
