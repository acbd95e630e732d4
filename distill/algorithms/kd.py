"""Knowledge distillation from a teacher's stored top-k log-probabilities (Hinton et al. 2015, arXiv 1503.02531).

What the teacher thinks of all other tokens together is known, too: the tail is one more outcome of both
distributions. Leaving it out would push the student to put everything on the k tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from flywheel.agents.contexts.language import padding
from flywheel.agents.contexts.prompts import Role
from flywheel.config.algorithms import KDConfig
from flywheel.config.root import Config
from flywheel.distill.algorithms.bc import cloned
from flywheel.distill.algorithms.protocol import AD_HOC, AddColumns, Finetuning, RoleTraining, Training
from flywheel.distill.algorithms.teacher_logprobs import TOP_IDS, TOP_LOGPROBS, stored, teach, with_teacher_logprobs
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.packing import Targets
from flywheel.distill.data.rows import Rows
from flywheel.policies.card import PolicyCard
from flywheel.policies.models import load_part
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import on_device
from flywheel.runtime.devices import pick_device

SMALLEST = -30.0
"""A log-probability below this is as good as impossible; KL stays finite."""


def kd_loss(logits_NV: Tensor, targets: Targets, *, reverse: bool = False) -> Tensor:
    """Σ w KL(teacher ‖ student), or with `reverse` KL(student ‖ teacher) (MiniLLM, arXiv 2306.08543: mode-seeking)."""
    student_NK1, teacher_NK1 = outcomes(logits_NV, targets.columns[TOP_IDS], targets.columns[TOP_LOGPROBS])
    first, second = (student_NK1, teacher_NK1) if reverse else (teacher_NK1, student_NK1)
    terms_NK1 = torch.where(first > -torch.inf, first.exp() * (first - second.clamp(min=SMALLEST)), 0.0)
    return (targets.weight_N * terms_NK1.sum(-1)).sum()


def outcomes(logits_NV: Tensor, ids_NK: Tensor, logprobs_NK: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, K + 1) of student and teacher: the k tokens, and all others together."""
    ids_NK = ids_NK.long()
    whole_N1 = logits_NV.logsumexp(-1, keepdim=True)
    others_NV = logits_NV.scatter(-1, ids_NK, -torch.inf)
    student = torch.cat([logits_NV.gather(-1, ids_NK) - whole_N1, others_NV.logsumexp(-1, keepdim=True) - whole_N1], -1)
    rest_N1 = 1.0 - logprobs_NK.exp().sum(-1, keepdim=True)
    tail_N1 = torch.where(rest_N1 > 1e-7, rest_N1.clamp(min=1e-7).log(), -torch.inf)
    return student, torch.cat([logprobs_NK, tail_N1], -1)


@dataclass(frozen=True, slots=True)
class KD:
    """A larger student is cloned first; what it says of the rows is stored in the lake and learned from."""

    settings: KDConfig

    def finetune(self, start: Finetuning) -> PolicyCard:
        settings, config = self.settings, start.config
        wide = config.model_copy(update={"student": settings.teacher, "seed": settings.teacher_seed})
        epochs = settings.teacher_epochs or config.train.epochs
        training = Training(lambda: cloned, tokenizers=start.directory)
        teacher = start.train(wide, start.corpus, AD_HOC, "", epochs, training).policy_id
        phase = start.phase(settings)
        loss = partial(kd_loss, reverse=settings.reverse)

        def role_training(role: Role) -> RoleTraining:
            return RoleTraining(loss, columns=partial(self._columns, phase, start, teacher, role))

        return start.trained(phase, settings, lambda: role_training, identity=(teacher,))

    def _columns(self, config: Config, start: Finetuning, teacher: str, role: Role, rows: Rows) -> AddColumns:
        """Adds the teacher's top tokens, which the lake holds or the teacher is asked for."""
        lake, draw, k = start.lake, rows.digest, self.settings.top_k
        folder = policy_directory(lake, teacher) / role

        @cache
        def model() -> tuple[PreTrainedModel, int]:
            model, tokenizer = load_part(folder)
            return on_device(model, pick_device(config.train.device)), padding(tokenizer)

        def add(epoch: int, places: range, owners: Sequence[str], examples: Sequence[Example]) -> Iterator[Example]:
            known = stored(lake, teacher, role, draw, epoch, places, k)
            if len(known) < len(examples):
                batch_tokens = config.train.batch_tokens
                teach(lake, *model(), teacher, role, draw, epoch, places, owners, examples, k, batch_tokens)
                known = stored(lake, teacher, role, draw, epoch, places, k)
            for place, example in zip(places, examples, strict=True):
                yield with_teacher_logprobs(example, *known[place], k)

        return add
