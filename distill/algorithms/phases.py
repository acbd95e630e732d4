"""What each objective makes of a role's rows: the examples of an epoch, and the loss that they are learned under."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

from transformers import PreTrainedModel

from flywheel.agents.contexts.prompts import PAD, Role
from flywheel.agents.contexts.tokenization import PieceTokenizer, token_id
from flywheel.config.distill import RefineConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.algorithms.advantage_weights import credited
from flywheel.distill.algorithms.bc import bc_loss
from flywheel.distill.algorithms.dpo import dpo_loss
from flywheel.distill.algorithms.dpo_pairs import Pair, pair_rows
from flywheel.distill.algorithms.kd import kd_loss
from flywheel.distill.algorithms.teacher_logprobs import stored, teach, with_teacher_logprobs
from flywheel.distill.batching.examples import Example
from flywheel.distill.credit.critics import ValueHead
from flywheel.distill.data.corpus import Corpus
from flywheel.distill.data.rows import Drawn, Rows
from flywheel.distill.training.loop import Objective, Watch
from flywheel.policies.card import PolicyCard
from flywheel.policies.models import load_part
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import on_device
from flywheel.runtime.devices import pick_device

More = Callable[[int, range, Sequence[str], Sequence[Example]], Iterable[Example]]
"""(epoch, places in it, trajectories, rows) → the same rows with columns of their own."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """`rows`: (rows, tokens, epochs) → what is learned from, in any order. `more`: rows → what completes it.
    `watch`: what else is worth a curve. `head`: the critic behind the rows' weights, kept with the model."""

    rows: Callable[[Rows, PieceTokenizer, int], Iterator[Drawn]] = Rows.epochs
    more: Callable[[Rows], More] | None = None
    objective: Objective = bc_loss
    watch: Watch = lambda logits, targets: {}
    head: ValueHead | None = None


def cloned(role: Role) -> Lesson:
    """Every target of every row alike."""
    return Lesson()


def lessons(
    config: Config,
    settings: RefineConfig,
    lake: Lake,
    corpus: Corpus,
    roles: Sequence[Role],
    student: PolicyCard,
    teacher: str,
    pairs: Sequence[Pair],
    iteration: int,
) -> Callable[[Role], Lesson]:
    """The second phase of a cloned student, by role."""
    base = policy_directory(lake, student.policy_id)
    if settings.objective == "regression":
        credit = credited(config, settings, lake, corpus, roles, base, iteration)
        return lambda role: Lesson(
            lambda rows, tokens, count: rows.epochs(tokens, count, credit.weigh(role)), head=credit.heads[role]
        )
    if settings.objective == "imitation":
        ask = partial(_taught, config, settings, lake, teacher)
        objective = partial(kd_loss, reverse=settings.reverse)
        return lambda role: Lesson(more=partial(ask, role), objective=objective)
    if settings.objective == "preference":
        compared = pair_rows(config, lake, pairs, base)
        return lambda role: Lesson(compared, objective=partial(dpo_loss, beta=settings.beta))
    return cloned


def _taught(config: Config, settings: RefineConfig, lake: Lake, teacher: str, role: Role, rows: Rows) -> More:
    """Adds the teacher's top tokens, which the lake holds or the teacher is asked for."""
    draw, k, size = rows.digest, settings.top_k, config.train.batch_tokens
    folder = policy_directory(lake, teacher) / role

    @cache
    def asked() -> tuple[PreTrainedModel, int]:
        model, tokenizer = load_part(folder)
        return on_device(model, pick_device(config.train.device)), token_id(tokenizer, PAD)

    def more(epoch: int, places: range, owners: Sequence[str], examples: Sequence[Example]) -> Iterator[Example]:
        known = stored(lake, teacher, role, draw, epoch, places, k)
        if len(known) < len(examples):
            model, pad = asked()
            teach(lake, model, teacher, role, draw, epoch, places, owners, examples, k, size, pad)
            known = stored(lake, teacher, role, draw, epoch, places, k)
        for place, one in zip(places, examples, strict=True):
            yield with_teacher_logprobs(one, *known[place], k)

    return more
