"""Direct preference over whole episodes: a success and a failure of one task (DPO, arXiv 2305.18290, equation 7; as in
ETO, arXiv 2403.02502, section 3.3, over all of an agent's turns)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from flywheel.agents.contexts.prompts import Role
from flywheel.config.algorithms import DPOConfig
from flywheel.datasets.versions.contamination import refuse_contamination
from flywheel.distill.algorithms.pairs import PAIR, REFERENCE, SIDE, pair_rows, pairs_of
from flywheel.distill.algorithms.protocol import Finetuning, RoleTraining
from flywheel.distill.batching.packing import Targets
from flywheel.policies.card import PolicyCard


def dpo_loss(logits_NV: Tensor, targets: Targets, *, beta: float = 0.1) -> Tensor:
    """−Σ_pairs log σ(β margin); the margin is how much further apart the two episodes are than under the reference."""
    margin_P = margins(logits_NV, targets)
    return -logsigmoid(beta * margin_P).sum()


def margins(logits_NV: Tensor, targets: Targets) -> Tensor:
    """(P,): Σ log π/π_ref over the better episode less the same over the worse one, by pair."""
    logprob_N = -cross_entropy(logits_NV, targets.next_N, reduction="none")
    apart_N = targets.columns[SIDE] * (logprob_N - targets.columns[REFERENCE])
    _, pair_N = torch.unique(targets.columns[PAIR], return_inverse=True)
    margin_P: Tensor = apart_N.new_zeros(int(pair_N.max()) + 1).index_add(0, pair_N, apart_N)
    return margin_P


@dataclass(frozen=True, slots=True)
class DPO:
    """Pairs of a verified and a failed episode of one task, compared whole: for flat students, which say all of it."""

    settings: DPOConfig

    def finetune(self, start: Finetuning) -> PolicyCard:
        pairs = pairs_of(start.lake, start.corpus, start.iteration)
        rejected = sorted({worse for _, worse in pairs} - start.corpus.routes.keys())
        refuse_contamination(start.lake, rejected, start.config.curate.leak)
        phase = start.phase(self.settings)

        def roles() -> Callable[[Role], RoleTraining]:
            rows = pair_rows(phase, start.lake, pairs, start.directory)
            return lambda role: RoleTraining(partial(dpo_loss, beta=self.settings.beta), rows)

        return start.trained(phase, self.settings, roles, identity=(pairs,), also=rejected)
