"""Knowledge distillation from a teacher's stored top-k log-probabilities (Hinton et al. 2015, arXiv 1503.02531).

What the teacher thinks of all other tokens together is known, too: the tail is one more outcome of both
distributions. Leaving it out would push the student to put everything on the k tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flywheel.distill.batching.packing import Targets

TOP_IDS, TOP_LOGPROBS = "top_ids", "top_logprobs"
"""Columns (N, K) of the targets."""


def kd_loss(logits_NV: Tensor, targets: Targets, *, reverse: bool = False) -> Tensor:
    """Σ w KL(teacher ‖ student), or with `reverse` KL(student ‖ teacher) (MiniLLM, arXiv 2306.08543: mode-seeking)."""
    student_NK1, teacher_NK1 = outcomes(logits_NV, targets.columns[TOP_IDS], targets.columns[TOP_LOGPROBS])
    one, other = (student_NK1, teacher_NK1) if reverse else (teacher_NK1, student_NK1)
    terms_NK1 = torch.where(one > -torch.inf, one.exp() * (one - other.clamp(min=SMALLEST)), 0.0)
    return (targets.weight_N * terms_NK1.sum(-1)).sum()


SMALLEST = -30.0
"""A log-probability below this is as good as impossible; KL stays finite."""


def outcomes(logits_NV: Tensor, ids_NK: Tensor, logprobs_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, K + 1) of student and teacher: the k tokens, and all others together."""
    ids_NK = ids_NK.long()
    whole_N1 = logits_NV.logsumexp(-1, keepdim=True)
    others_NV = logits_NV.scatter(-1, ids_NK, -torch.inf)
    student = torch.cat([logits_NV.gather(-1, ids_NK) - whole_N1, others_NV.logsumexp(-1, keepdim=True) - whole_N1], -1)
    rest_N1 = 1.0 - logprobs_NK.exp().sum(-1, keepdim=True)
    tail_N1 = torch.where(rest_N1 > 1e-7, rest_N1.clamp(min=1e-7).log(), -torch.inf)
    return student, torch.cat([logprobs_NK, tail_N1], -1)
