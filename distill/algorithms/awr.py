"""Advantage-weighted regression (Peng et al. 2019, arXiv 1910.00177, equation 10): better decisions count more.

The loss is that of behaviour cloning; only its weights differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from flywheel.agents.contexts.prompts import DONE, Piece, Role
from flywheel.config.algorithms import AWRConfig
from flywheel.distill.algorithms.bc import bc_loss
from flywheel.distill.algorithms.estimated_advantages import LEVELS, by_decision, estimate_advantages
from flywheel.distill.algorithms.protocol import Finetuning, RoleTraining
from flywheel.distill.credit.hierarchical import normalised
from flywheel.distill.credit.methods import EXECUTOR, FLAT, PLANNER, SWITCH
from flywheel.distill.data.corpus import VERIFIED
from flywheel.distill.data.rows import Weighs
from flywheel.filters.batch import Floats
from flywheel.policies.card import ROLES, PolicyCard


def advantage_weights(advantage_M: Floats, beta: float, limit: float) -> Floats:
    """(M,): min(exp(A/β), limit), over their mean, so that the learning rate means what it means in cloning."""
    weight_M = np.minimum(np.exp(np.minimum(advantage_M / beta, np.log(limit))), limit)
    return np.asarray(weight_M / max(float(weight_M.mean()) if len(weight_M) else 1.0, 1e-12), np.float64)


@dataclass(frozen=True, slots=True)
class AWR:
    """Critics are fitted on the cloned student; advantages under them weigh the decisions of its corpus."""

    settings: AWRConfig

    def finetune(self, start: Finetuning) -> PolicyCard:
        phase = start.phase(self.settings)

        def roles() -> Callable[[Role], RoleTraining]:
            credits, critics = estimate_advantages(
                phase, self.settings.credit, start.lake, start.corpus, ROLES[start.kind], start.directory
            )
            weights = self._weights(start, credits)
            return lambda role: RoleTraining(
                bc_loss,
                lambda rows, tokens, epochs: rows.epochs(tokens, epochs, _weigh(weights[LEVELS[role]])),
                critic=critics[role],
            )

        return start.trained(phase, self.settings, roles)

    def _weights(self, start: Finetuning, credits: pa.Table) -> dict[str, Mapping[tuple[str, int], float]]:
        """Level → (trajectory, step) → weight. Executors learn from all episodes, the others from verified ones."""
        routes = start.corpus.routes
        verified = pa.array([trajectory for trajectory, route in routes.items() if route in VERIFIED], pa.string())
        every = pa.array(list(routes), pa.string())
        teaching = {FLAT: verified, PLANNER: verified, EXECUTOR: every, SWITCH: every}
        weights: dict[str, Mapping[tuple[str, int], float]] = {}
        for level in dict.fromkeys(credits["level"].to_pylist()):
            here = pc.and_(pc.equal(credits["level"], level), pc.is_in(credits["trajectory_id"], teaching[level]))
            rows = credits.filter(here)
            weight_M = advantage_weights(
                normalised(rows["advantage"].to_numpy()), self.settings.beta, self.settings.max_weight
            )
            weights[level] = by_decision(rows, weight_M)
        return weights


def _weigh(weights: Mapping[tuple[str, int], float]) -> Weighs:
    """ "Done" keeps weight 1: no critic here looks at the state in which it is said."""

    def weight(trajectory: str, piece: Piece) -> float:
        return 1.0 if piece.marker == DONE else weights.get((trajectory, piece.decision), 1.0)

    return weight
